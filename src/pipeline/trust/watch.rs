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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        config,
        ids::ServerId,
        pipeline::{Live, count::Counters, trust::pair::Standing},
        servers::{Answer, Call, CallError, Later, ModelServer, Route, Told},
        snapshot::{Health, ServedModel, ServerKind, ServerState},
        units::Tokens,
    };
    use bytes::Bytes;
    use std::sync::{
        Mutex,
        atomic::{AtomicI64, AtomicU32, Ordering::SeqCst},
    };
    use tokio::{sync::Notify, time::timeout};

    /// What all counting servers of a test share.
    #[derive(Default)]
    struct Shared {
        off: AtomicI64,
        asking: AtomicU32,
        most_asking: AtomicU32,
        /// When each round began.
        rounds: Mutex<Vec<Instant>>,
    }

    /// Counts as our files do, and `off` more.
    struct Counts(ServerId, Arc<Broker>, Arc<Shared>);

    impl ModelServer for Counts {
        fn id(&self) -> &ServerId {
            &self.0
        }

        fn kind(&self) -> ServerKind {
            ServerKind::Vllm
        }

        fn send(&self, _call: Call) -> Later<'_, Result<Answer, CallError>> {
            Box::pin(std::future::pending())
        }

        fn observe<'a>(&'a self, last: &'a ServerState) -> Later<'a, ServerState> {
            Box::pin(std::future::ready(last.clone()))
        }

        fn count(&self, _route: Route, _body: Bytes) -> Later<'_, Option<Tokens>> {
            Box::pin(std::future::pending())
        }

        fn count_told(&self, route: Route, body: Bytes) -> Later<'_, Told> {
            Box::pin(async move {
                let Self(_, broker, shared) = self;
                if body == probes::all(&"m".into())[0].body {
                    shared.rounds.lock().unwrap().push(Instant::now());
                }
                let now = shared.asking.fetch_add(1, SeqCst) + 1;
                shared.most_asking.fetch_max(now, SeqCst);
                tokio::time::sleep(Duration::from_millis(1)).await;
                shared.asking.fetch_sub(1, SeqCst);
                let counter = broker.counter_of(&broker.live.load(), &"m".into()).unwrap();
                match counter.count_body(route, &body) {
                    Ok(tokens) => {
                        let off = shared.off.load(SeqCst);
                        Told::Tokens(Tokens(tokens.get().checked_add_signed(off).unwrap()))
                    }
                    Err(_) => Told::Refused,
                }
            })
        }
    }

    /// A broker with files for `m` and these servers, which list it.
    fn broker(servers: &[&str], shared: &Arc<Shared>) -> Arc<Broker> {
        let key = "50d858e0985ecc7f60418aaf0cc5ab587f42c2570a884095a9e8ccacd0f6545c";
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/models/demo-chat");
        let text = format!(
            "[probe]\nstale_after_s = 86400\n[[tenants]]\nname = \"t\"\nkeys_sha256 = [\"{key}\"]\n\
             [[models]]\nname = \"m\"\nfolder = \"{folder}\"\n"
        );
        let settings = config::parse_text("test", &text).unwrap().settings;
        let (counters, problems) = Counters::load(&settings);
        assert!(problems.is_empty(), "{problems:?}");
        let broker = Broker::new(Live::new(settings, counters));
        for name in servers {
            let known = ServerState {
                health: Health::Up,
                models: vec![ServedModel::ready("m".into(), None)],
                read_at: Some(Instant::now()),
                ..ServerState::unknown((*name).into(), ServerKind::Vllm)
            };
            let server = Counts((*name).into(), Arc::clone(&broker), Arc::clone(shared));
            broker.dispatch.join(Arc::new(server), Arc::new(Notify::new()), known);
        }
        broker
    }

    fn standing(broker: &Broker, server: &str) -> Option<Standing> {
        broker.trust.lock().standing(&("m".into(), server.into()))
    }

    #[tokio::test(start_paused = true)]
    async fn servers_are_asked_one_at_a_time_and_once() {
        let shared = Arc::new(Shared::default());
        let broker = broker(&["a", "b", "c"], &shared);
        let _ = timeout(Duration::from_secs(60), watch(Arc::clone(&broker), |_, _, _| None)).await;
        for server in ["a", "b", "c"] {
            assert_eq!(standing(&broker, server), Some(Standing::Exact));
        }
        assert_eq!(shared.most_asking.load(SeqCst), 1);
        assert_eq!(shared.rounds.lock().unwrap().len(), 3, "what is proven is not asked again");
    }

    #[tokio::test(start_paused = true)]
    async fn probes_run_again_at_growing_pauses_until_they_agree() {
        let shared = Arc::new(Shared::default());
        shared.off.store(2, SeqCst);
        let broker = broker(&["a"], &shared);
        let (begun, mended) = (Instant::now(), Duration::from_secs(40));
        let mend = async {
            tokio::time::sleep(mended).await;
            assert_eq!(standing(&broker, "a"), Some(Standing::Estimated));
            let counter = broker.counter_of(&broker.live.load(), &"m".into()).unwrap();
            assert!(!broker.trust.believes(&"m".into(), &counter));
            shared.off.store(0, SeqCst);
        };
        let watched = watch(Arc::clone(&broker), |_, _, _| None);
        let _ = timeout(Duration::from_secs(200), async { tokio::join!(watched, mend) }).await;
        assert_eq!(standing(&broker, "a"), Some(Standing::Exact));
        let rounds = shared.rounds.lock().unwrap();
        let at: Vec<u64> = rounds.iter().map(|at| (*at - begun).as_secs()).collect();
        // After pauses of 1, 2, 4, 8, 16 and 32 s, each at the next look; then no more.
        assert_eq!(at.len(), 7, "{at:?}");
        for (at, due) in at.iter().zip([0, 1, 3, 7, 15, 31, 63]) {
            assert!((due..=due + 4).contains(at), "{due}: {at}");
        }
    }
}
