//! The task that keeps the pairs true: sees servers and files come and go, looks for files, and asks one
//! server at a time for its counts. No request waits for it.

use super::{
    book::Key,
    pair::{Outcome, Pair},
    probes,
    search::{FindFiles, Search},
};
use crate::pipeline::Broker;
use std::{sync::Arc, time::Duration};
use tokio::{
    task::JoinSet,
    time::{Instant, MissedTickBehavior, interval},
};

/// How often is looked at what changed. Bounds how late a new server is compared.
const TICK: Duration = Duration::from_millis(500);

/// Watches for ever; dropping the future ends what is under way. `find` looks for the files of a model.
pub async fn watch(broker: Arc<Broker>, find: FindFiles) {
    let mut search = Search::new(find);
    let mut probing = Probing::default();
    let mut tick = interval(TICK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = tick.tick() => {}
            () = broker.trust.wake.notified() => {}
            () = probing.over(&broker), if probing.is_on() => {}
            () = search.over(&broker), if search.is_on() => {}
        }
        let live = broker.live.load_full();
        search.look(&broker, &live);
        broker.attach(&live, Instant::now());
        probing.begin(&broker);
    }
}

/// The one round of probes under way.
#[derive(Default)]
struct Probing {
    task: JoinSet<Outcome>,
    whose: Option<(Key, Pair)>,
}

impl Probing {
    fn is_on(&self) -> bool {
        !self.task.is_empty()
    }

    fn begin(&mut self, broker: &Arc<Broker>) {
        if self.is_on() {
            return;
        }
        let book = broker.trust.lock();
        let due = book.due(Instant::now()).map(|(key, pair)| (key.clone(), pair.clone()));
        drop(book);
        let Some((key, pair)) = due else { return };
        let Some(server) = broker.dispatch.server(&key.1) else { return };
        self.task.spawn(probes::run(server, key.0.clone(), Arc::clone(&pair.counter)));
        self.whose = Some((key, pair));
    }

    /// Waits for its end and notes it. Dropping the future loses nothing.
    async fn over(&mut self, broker: &Broker) {
        let Some(ended) = self.task.join_next().await else { return };
        let outcome = ended.unwrap_or_else(|error| Outcome::Failed(error.to_string()));
        if let Some((key, begun)) = self.whose.take() {
            broker.probed(&key, &begun, outcome);
        }
    }
}
