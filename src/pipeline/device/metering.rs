//! The meter's task: at each reading of the cards it looks at all requests at work, and books what they
//! took. No request waits for it.

use crate::{
    energy::{Meter, Places, Prices, Round},
    pipeline::Broker,
    snapshot::{DriverState, GpuPlane},
};
use std::{future::pending, sync::Arc};
use tokio::{sync::watch, time::Instant};

/// Meters for as long as it runs; it never ends by itself.
pub async fn watch(broker: Arc<Broker>, mut plane: watch::Receiver<Arc<GpuPlane>>) {
    let mut meter = Meter::default();
    loop {
        let now = Arc::clone(&plane.borrow_and_update());
        settle(&broker, &mut meter, &now);
        if plane.changed().await.is_err() {
            // The thread that reads is gone; the daemon ends by that.
            return pending().await;
        }
    }
}

/// Books what was used since the last reading.
fn settle(broker: &Broker, meter: &mut Meter, plane: &GpuPlane) {
    let driver = match plane {
        GpuPlane::Off => return,
        // Until there was a driver, there is nothing to meter.
        GpuPlane::NoDriver(_) if meter.at().is_none() => return,
        GpuPlane::NoDriver(_) => None,
        GpuPlane::Driver(driver) => Some(driver),
    };
    let at = driver.map_or_else(Instant::now, newest);
    if meter.at().is_some_and(|last| at <= last) {
        return;
    }
    let live = broker.live.load();
    let energy = &live.settings.energy;
    broker.works.meter(energy.output_weight);
    let configured = live.settings.servers.iter().map(|server| (&server.name, &*server.gpus));
    let places = Places::of(&broker.devices.holdings(), configured);
    let round = meter.round(at, driver, &places, broker.works.take(at));
    book(broker, &round, Prices::of(energy));
    broker.devices.meter(meter.cards());
}

/// The time of the newest reading: meters may be read more often than the rest.
fn newest(driver: &DriverState) -> Instant {
    let metered = driver.gpus.iter().filter_map(|gpu| gpu.metered_at);
    metered.fold(driver.read_at, Instant::max)
}

fn book(broker: &Broker, round: &Round, prices: Prices) {
    let books = &broker.books;
    for (key, spent) in &round.grants {
        let cost = prices.fine(*spent);
        books.ledger.spend(&key.tenant, &key.model, *spent, cost);
        books.metrics.spent(key, *spent, prices.are_set().then_some(cost));
    }
    for (gpu, shares) in &round.cards {
        books.metrics.gpu_shares(gpu, shares);
    }
    for (server, spent, weight) in &round.costs {
        broker.works.pace(server).learn_cost(*spent, *weight);
    }
}
