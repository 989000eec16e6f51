//! Watches one server: asks it again and again, and publishes what it said.
//!
//! **Stale readings.** A failed round of a server that is up publishes nothing: the last state stays,
//! with its date. Who reads a state compares `read_at` with `probe.stale_after`; a server whose readings
//! are older gets nothing new.

use super::ModelServer;
use crate::{
    config::Probe,
    snapshot::{Health, ServerState},
};
use std::{sync::Arc, time::Duration};
use tokio::{
    sync::{Notify, watch::Sender},
    time::{sleep, timeout},
};

/// Longest pause between rounds while a server is down, unless the period itself is longer.
/// A restarted server is back in use this soon.
const PAUSE_MAX: Duration = Duration::from_secs(5);

/// Shortest pause between rounds: a burst of failed requests must not become a burst of probes.
const PAUSE_MIN: Duration = Duration::from_millis(100);

/// A round asks several pages, each within the probe limit; this ends one that went wrong altogether.
const ROUND_SLACK: Duration = Duration::from_secs(10);

/// Watches a server until dropped; dropping it stops in the middle of a round and leaves the last
/// published state.
///
/// * A server that is up turns down after `failures_down` failed rounds in a row; until then its state
///   stays as it was. One that was not up turns down at the first: there is nothing to hold on to.
/// * The first good round turns it up (or starting) again.
/// * `nudge.notify_one()` asks for a round at once; one that comes during a round is kept for after.
pub async fn watch(
    server: Arc<dyn ModelServer>,
    settings: Probe,
    publish: Sender<Arc<ServerState>>,
    nudge: Arc<Notify>,
) {
    let mut failures = 0u32;
    loop {
        let last = Arc::clone(&publish.borrow());
        let seen = round(&*server, settings.limit, &last).await;
        let failed = matches!(seen.health, Health::Down(_));
        failures = if failed { failures.saturating_add(1) } else { 0 };
        let patient = last.health == Health::Up && failures < settings.failures_down;
        if !(failed && patient) {
            tell(&last, &seen);
            publish.send_replace(Arc::new(seen));
        }
        rest(pause(&settings, failures), &nudge).await;
    }
}

/// One round with an end. The adapter's own limits are tighter; this one holds for all adapters.
async fn round(server: &dyn ModelServer, limit: Duration, last: &ServerState) -> ServerState {
    let whole = limit.saturating_mul(2).saturating_add(ROUND_SLACK);
    timeout(whole, server.observe(last)).await.unwrap_or_else(|_| ServerState {
        health: Health::Down(format!("no answer within {whole:?}")),
        ..last.clone()
    })
}

/// The pause after a round. Twice as long after each round that found the server down.
fn pause(settings: &Probe, failures: u32) -> Duration {
    let down_for = failures.saturating_sub(settings.failures_down);
    // Ten doublings are far beyond the ceiling already.
    let longer = settings.period.saturating_mul(1 << down_for.min(10));
    longer.min(PAUSE_MAX.max(settings.period))
}

async fn rest(pause: Duration, nudge: &Notify) {
    let least = PAUSE_MIN.min(pause);
    sleep(least).await;
    // Dropping either loses nothing: a nudge that no one takes stays for the next round.
    tokio::select! {
        () = sleep(pause.saturating_sub(least)) => {}
        () = nudge.notified() => {}
    }
}

/// One line for each change of health, none for a round like the last.
fn tell(last: &ServerState, seen: &ServerState) {
    if last.health.as_str() == seen.health.as_str() {
        return;
    }
    match &seen.health {
        Health::Down(why) => tracing::warn!(server = %seen.id, %why, "server is down"),
        Health::Starting(why) => tracing::info!(server = %seen.id, %why, "server is starting"),
        Health::Up | Health::Unknown => {
            tracing::info!(server = %seen.id, models = seen.models.len(), "server is up");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        ids::ServerId,
        servers::{Answer, Call, CallError, Later, Route},
        snapshot::ServerKind,
        units::Tokens,
    };
    use bytes::Bytes;
    use std::{collections::VecDeque, future::Future, sync::Mutex};
    use tokio::{sync::watch::Receiver, time::Instant};

    /// Plays one health after another; the last one stays. `None`: does not answer at all.
    struct Scripted {
        id: ServerId,
        script: Mutex<VecDeque<Option<Health>>>,
        asked: Mutex<Vec<Duration>>,
        start: Instant,
    }

    impl Scripted {
        fn rounds(&self) -> Vec<u64> {
            self.asked.lock().unwrap().iter().map(|at| at.as_millis() as u64).collect()
        }
    }

    impl ModelServer for Scripted {
        fn id(&self) -> &ServerId {
            &self.id
        }

        fn kind(&self) -> ServerKind {
            ServerKind::OpenAi
        }

        fn send(&self, _: Call) -> Later<'_, Result<Answer, CallError>> {
            Box::pin(async { Err(CallError::Refused("not here".into())) })
        }

        fn observe<'a>(&'a self, last: &'a ServerState) -> Later<'a, ServerState> {
            Box::pin(async {
                self.asked.lock().unwrap().push(self.start.elapsed());
                let step = {
                    let mut script = self.script.lock().unwrap();
                    if script.len() > 1 { script.pop_front().unwrap() } else { script[0].clone() }
                };
                let Some(health) = step else { return std::future::pending().await };
                let answered = !matches!(health, Health::Down(_));
                let read_at = if answered { Some(Instant::now()) } else { last.read_at };
                ServerState { health, read_at, ..last.clone() }
            })
        }

        fn count(&self, _: Route, _: Bytes) -> Later<'_, Option<Tokens>> {
            Box::pin(async { None })
        }
    }

    fn settings() -> Probe {
        Probe {
            period: Duration::from_secs(1),
            limit: Duration::from_secs(2),
            stale_after: Duration::from_secs(10),
            failures_down: 3,
            discover: false,
        }
    }

    fn down() -> Option<Health> {
        Some(Health::Down("refused".into()))
    }

    /// Runs the loop over a script while the story is told.
    async fn during<F: Future>(
        script: impl IntoIterator<Item = Option<Health>>,
        story: impl FnOnce(Receiver<Arc<ServerState>>, Arc<Notify>, Arc<Scripted>) -> F,
    ) {
        let server = Arc::new(Scripted {
            id: "s".into(),
            script: Mutex::new(script.into_iter().collect()),
            asked: Mutex::default(),
            start: Instant::now(),
        });
        let unknown = ServerState::unknown("s".into(), ServerKind::OpenAi);
        let (publish, states) = tokio::sync::watch::channel(Arc::new(unknown));
        let nudge = Arc::new(Notify::new());
        let story = story(states, Arc::clone(&nudge), Arc::clone(&server));
        tokio::select! {
            () = watch(server, settings(), publish, nudge) => panic!("it never ends"),
            _ = story => {}
        }
    }

    async fn at(start: Instant, millis: u64) {
        tokio::time::sleep_until(start + Duration::from_millis(millis)).await;
    }

    #[tokio::test(start_paused = true)]
    async fn the_first_failure_of_an_unknown_server_counts() {
        during([down()], |states, _, _| async move {
            at(Instant::now(), 10).await;
            assert_eq!(states.borrow().health, Health::Down("refused".into()));
            assert!(states.borrow().read_at.is_none());
        })
        .await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_that_is_up_gets_three_tries() {
        let script = [Some(Health::Up), down(), down(), down()];
        during(script, |states, _, _| async move {
            let start = Instant::now();
            at(start, 2500).await;
            // Two rounds failed: still up, and its reading keeps its old date.
            assert_eq!(states.borrow().health, Health::Up);
            assert_eq!(states.borrow().read_at, Some(start));
            at(start, 3500).await;
            assert_eq!(states.borrow().health.as_str(), "down");
        })
        .await;
    }

    #[tokio::test(start_paused = true)]
    async fn failures_count_only_in_a_row() {
        let up = || Some(Health::Up);
        let script = [up(), down(), down(), up(), down(), down(), up()];
        during(script, |states, _, _| async move {
            let start = Instant::now();
            for second in 0..10 {
                at(start, second * 1000 + 500).await;
                assert_eq!(states.borrow().health, Health::Up, "second {second}");
            }
        })
        .await;
    }

    #[tokio::test(start_paused = true)]
    async fn one_good_round_is_enough_to_return() {
        let starting = Some(Health::Starting("loading".into()));
        let script = [down(), starting, Some(Health::Up)];
        during(script, |states, _, _| async move {
            let start = Instant::now();
            at(start, 1500).await;
            assert_eq!(states.borrow().health.as_str(), "starting");
            at(start, 2500).await;
            assert_eq!(states.borrow().health, Health::Up);
        })
        .await;
    }

    #[tokio::test(start_paused = true)]
    async fn pauses_grow_to_a_ceiling_while_down_and_shrink_again() {
        let mut script = vec![down(); 7];
        script.push(Some(Health::Up));
        during(script, |_, _, server| async move {
            at(Instant::now(), 25_500).await;
            let expected = [0, 1000, 2000, 3000, 5000, 9000, 14_000, 19_000];
            assert_eq!(server.rounds()[..8], expected);
            assert_eq!(server.rounds()[8..], [20_000, 21_000, 22_000, 23_000, 24_000, 25_000]);
        })
        .await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_nudge_probes_at_once_but_a_storm_does_not() {
        during([Some(Health::Up)], |_, nudge, server| async move {
            let start = Instant::now();
            at(start, 400).await;
            nudge.notify_one();
            at(start, 401).await;
            assert_eq!(server.rounds(), [0, 400]);
            for step in 0..100 {
                at(start, 402 + step).await;
                nudge.notify_one();
            }
            at(start, 900).await;
            assert!(server.rounds().len() <= 5, "{:?}", server.rounds());
        })
        .await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_round_that_hangs_is_a_failed_round() {
        during([None], |states, _, server| async move {
            at(Instant::now(), 15_500).await;
            assert_eq!(states.borrow().health.as_str(), "down");
            assert_eq!(server.rounds(), [0, 15_000]);
        })
        .await;
    }
}
