//! Looks for servers that hang: what is heard of them, beside what their GPUs do.
//!
//! The rule is `schedule::hung`. This task brings the readings together, takes a server out, and lets it
//! back when it gets ahead again. A trial that is answered lets it back, too (`pipeline::trial`).

use crate::{
    ids::ServerId,
    pipeline::{
        Broker,
        dispatch::{Heard, Outcome},
    },
    schedule::hung::{self, Rules, Sight, Signs, Watch},
    snapshot::GpuPlane,
};
use std::{collections::HashMap, sync::Arc, time::Duration};
use tokio::{
    sync::watch::Receiver,
    time::{Instant, MissedTickBehavior, interval},
};

/// How often servers are looked at, beside each new reading of the GPUs.
const LOOK: Duration = Duration::from_millis(250);

/// Watches all servers. Never returns; dropping the future ends it and changes nothing.
pub async fn watch(broker: Arc<Broker>, mut gpus: Receiver<Arc<GpuPlane>>) {
    let mut watches = HashMap::new();
    let mut tick = interval(LOOK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = tick.tick() => {}
            // A GPU thread that ended says nothing new, and its last readings grow old.
            Ok(()) = gpus.changed() => {}
        }
        let plane = Arc::clone(&gpus.borrow_and_update());
        look(&broker, &plane, &mut watches);
    }
}

fn look(broker: &Broker, plane: &GpuPlane, watches: &mut HashMap<ServerId, Watch>) {
    let Some(rules) = Rules::of(&broker.live.load().settings.gpu) else {
        watches.clear();
        return;
    };
    let now = Instant::now();
    let holdings = broker.devices.holdings();
    let heard = broker.dispatch.heard();
    if watches.len() > heard.len() {
        watches.retain(|id, _| heard.iter().any(|heard| heard.server == *id));
    }
    for heard in heard {
        let gpus = match (plane, holdings.servers.get(&heard.server)) {
            (GpuPlane::Driver(driver), Some(holding)) => {
                hung::sight(holding.gpus.keys(), &holding.pids, &driver.gpus, driver.read_at)
            }
            _ => Sight::Unknown,
        };
        let watch = watches.entry(heard.server.clone()).or_insert_with(|| Watch::new(now));
        judge(broker, &heard, gpus, watch, rules, now);
    }
}

fn judge(
    broker: &Broker,
    heard: &Heard,
    gpus: Sight,
    watch: &mut Watch,
    rules: Rules,
    now: Instant,
) {
    let Heard { server, busy_since, last_byte, loading, load, hung_at } = heard;
    // What is read from a disk keeps no GPU busy.
    let gpus = if *loading { Sight::Unknown } else { gpus };
    let signs = Signs { busy_since: *busy_since, last_byte: *last_byte, load, gpus };
    let silence = watch.look(&signs, rules, now);
    if let Some(hung_at) = hung_at {
        if watch.moved_since(*hung_at, *last_byte) {
            broker.dispatch.report(server, Outcome::Answered, now);
            tracing::info!(server = server.as_str(), "the server that hung gets ahead again");
        }
        return;
    }
    let Some(silence) = silence else { return };
    if let Some(requests) = broker.dispatch.hang(server, silence.to_string(), now) {
        broker.books.metrics.server_hung(server);
        tracing::error!(
            server = server.as_str(),
            signs = %silence,
            requests,
            "the server hangs; it is taken out, and its waiting requests move on"
        );
    }
}
