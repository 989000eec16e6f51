//! Trials: while a server's breaker is open, the daemon itself asks it for one token now and then. The
//! breaker closes as soon as the server answers, and no caller is spent on finding out.

use super::{Broker, dispatch::Outcome};
use crate::{
    api::Route,
    ids::{ModelName, RequestId, ServerId},
    servers::{Call, ModelServer},
};
use bytes::Bytes;
use http::StatusCode;
use std::{collections::HashMap, sync::Arc, time::Duration};
use tokio::{
    task::{Id, JoinSet},
    time::Instant,
};

/// How often due trials are looked for. Also bounds how late a reading is noticed to be stale.
const TICK: Duration = Duration::from_millis(100);
/// How long a trial may take.
const LIMIT: Duration = Duration::from_secs(10);
/// Largest answer to a trial that is read.
const ANSWER_MAX: usize = 64 * 1024;

/// Watches all breakers. Never returns; dropping the future ends trials under way.
pub async fn watch(broker: Arc<Broker>) {
    // By task, so that a trial is over however its task ends.
    let mut under_way: HashMap<Id, (ServerId, Instant)> = HashMap::new();
    let mut trials = JoinSet::new();
    let mut tick = tokio::time::interval(TICK);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = tick.tick() => {}
            Some(done) = trials.join_next_with_id(), if !trials.is_empty() => {
                let (task, outcome) = match done {
                    Ok(done) => done,
                    // A trial that panicked found out nothing good. The next one may.
                    Err(error) => (error.id(), Some(Outcome::Failed)),
                };
                if let Some((server, begun)) = under_way.remove(&task) {
                    // One that is suspect may be full: a trial that waits behind requests that get ahead
                    // says nothing.
                    let waits = outcome.is_none() && broker.dispatch.gets_ahead(&server, begun);
                    let silent = if waits { Outcome::Unjudged } else { Outcome::Failed };
                    finish(&broker, &server, outcome.unwrap_or(silent));
                }
                continue;
            }
        }
        broker.dispatch.tick();
        for (server, model) in broker.dispatch.trials_due(Instant::now()) {
            // One at a time for each server, so there are never more than servers.
            if under_way.values().any(|(id, _)| id == server.id()) {
                continue;
            }
            let id = server.id().clone();
            let task = trials
                .spawn(async move { tokio::time::timeout(LIMIT, ask(server, model)).await.ok() });
            under_way.insert(task.id(), (id, Instant::now()));
        }
    }
}

fn finish(broker: &Arc<Broker>, id: &ServerId, outcome: Outcome) {
    let closed = broker.dispatch.report(id, outcome, Instant::now());
    if closed && outcome == Outcome::Answered {
        tracing::info!(server = id.as_str(), "the server answers again; its breaker is closed");
    }
}

/// Asks for one token. Any sensible HTTP answer shows that the server is back: a model that cannot
/// chat says so with a 4xx.
async fn ask(server: Arc<dyn ModelServer>, model: ModelName) -> Outcome {
    let body = serde_json::json!({
        "model": model.as_str(),
        "messages": [{"role": "user", "content": "Hi"}],
        "max_tokens": 1,
    });
    let call = Call {
        route: Route::Chat,
        body: Bytes::from(body.to_string()),
        request_id: RequestId::fresh(),
    };
    let Ok(mut answer) = server.send(call).await else { return Outcome::Failed };
    match answer.status {
        StatusCode::UNAUTHORIZED
        | StatusCode::FORBIDDEN
        | StatusCode::PROXY_AUTHENTICATION_REQUIRED => return Outcome::Failed,
        StatusCode::TOO_MANY_REQUESTS => return Outcome::Answered,
        status if status.is_client_error() => return Outcome::Answered,
        status if !status.is_success() => return Outcome::Failed,
        _ => {}
    }
    let mut body = Vec::new();
    while let Some(piece) = answer.body.next().await {
        let Ok(piece) = piece else { return Outcome::Failed };
        body.extend_from_slice(&piece);
        if body.len() > ANSWER_MAX {
            return Outcome::Failed;
        }
    }
    let answer: Result<serde_json::Value, _> = serde_json::from_slice(&body);
    match answer {
        Ok(answer) if answer.get("choices").is_some_and(|c| c.get(0).is_some()) => {
            Outcome::Answered
        }
        _ => Outcome::Failed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        config,
        ids::RequestId,
        pipeline::{Live, count::Counters, dispatch::Ask},
        schedule::Request,
        servers::{Answer, CallError, Later},
        snapshot::{Health, ServedModel, ServerKind, ServerState},
        units::Tokens,
    };
    use std::sync::atomic::{AtomicU32, Ordering};
    use tokio::sync::Notify;

    /// Panics at every call, and counts them.
    struct Panics(ServerId, Arc<AtomicU32>);

    impl ModelServer for Panics {
        fn id(&self) -> &ServerId {
            &self.0
        }

        fn kind(&self) -> ServerKind {
            ServerKind::OpenAi
        }

        fn send(&self, _call: Call) -> Later<'_, Result<Answer, CallError>> {
            self.1.fetch_add(1, Ordering::Relaxed);
            panic!("as this test wants it")
        }

        fn observe<'a>(&'a self, last: &'a ServerState) -> Later<'a, ServerState> {
            Box::pin(std::future::ready(last.clone()))
        }

        fn count(&self, _route: Route, _body: Bytes) -> Later<'_, Option<Tokens>> {
            Box::pin(std::future::ready(None))
        }
    }

    /// Never answers.
    struct Mute(ServerId);

    impl ModelServer for Mute {
        fn id(&self) -> &ServerId {
            &self.0
        }

        fn kind(&self) -> ServerKind {
            ServerKind::OpenAi
        }

        fn send(&self, _call: Call) -> Later<'_, Result<Answer, CallError>> {
            Box::pin(std::future::pending())
        }

        fn observe<'a>(&'a self, last: &'a ServerState) -> Later<'a, ServerState> {
            Box::pin(std::future::ready(last.clone()))
        }

        fn count(&self, _route: Route, _body: Bytes) -> Later<'_, Option<Tokens>> {
            Box::pin(std::future::ready(None))
        }
    }

    /// A broker with one server whose breaker is open.
    fn broker() -> (Arc<Broker>, Arc<AtomicU32>) {
        let calls = Arc::new(AtomicU32::new(0));
        let broker = broker_of(Arc::new(Panics("a".into(), Arc::clone(&calls))));
        for _ in 0..broker.live.load().settings.breaker.failures {
            broker.dispatch.report(&"a".into(), Outcome::Failed, Instant::now());
        }
        (broker, calls)
    }

    fn broker_of(server: Arc<dyn ModelServer>) -> Arc<Broker> {
        let key = "50d858e0985ecc7f60418aaf0cc5ab587f42c2570a884095a9e8ccacd0f6545c";
        let text = format!("[[tenants]]\nname = \"t\"\nkeys_sha256 = [\"{key}\"]\n");
        let settings = config::parse_text("test", &text).unwrap().settings;
        let broker = Broker::new(Live::new(settings, Counters::default()));
        let known = ServerState {
            health: Health::Up,
            models: vec![ServedModel::ready("m".into(), None)],
            read_at: Some(Instant::now()),
            ..ServerState::unknown("a".into(), ServerKind::OpenAi)
        };
        broker.dispatch.join(server, Arc::new(Notify::new()), known);
        broker
    }

    /// A full server cannot answer a trial in time. One fault of a program once took it out for that.
    #[tokio::test(start_paused = true)]
    async fn a_suspect_server_that_gets_ahead_with_its_requests_is_not_failed_for_its_trials() {
        let broker = broker_of(Arc::new(Mute("a".into())));
        let request = Request::plain("m".into(), "t".into(), Tokens(10), Instant::now());
        let mut ask = Ask { id: RequestId::fresh(), request, recalls: 0, decision: None };
        let placement = broker.dispatch.turn(&mut ask).await.unwrap();
        broker.dispatch.suspect(&"a".into());
        let streams = async {
            for _ in 0..120 {
                tokio::time::sleep(Duration::from_secs(1)).await;
                placement.hear(Instant::now());
            }
        };
        tokio::select! {
            () = streams => {}
            () = watch(Arc::clone(&broker)) => unreachable!(),
        }
        assert!(!broker.dispatch.servers()[0].breaker_open);
        // It falls silent.
        let _ = tokio::time::timeout(Duration::from_secs(60), watch(Arc::clone(&broker))).await;
        assert!(broker.dispatch.servers()[0].breaker_open);
    }

    /// A trial that panicked once stayed under way for ever: its server was never tried again.
    #[tokio::test(start_paused = true)]
    async fn a_trial_that_panics_is_followed_by_others() {
        let (broker, calls) = broker();
        let watch = watch(Arc::clone(&broker));
        let _ = tokio::time::timeout(Duration::from_secs(10), watch).await;
        let calls = calls.load(Ordering::Relaxed);
        // After 0.25, 0.5, 1, 2, 2 and 2 seconds, each at the next tick.
        assert!((5..=7).contains(&calls), "{calls}");
    }

    /// Nothing new goes to a drained server, not even a trial.
    #[tokio::test(start_paused = true)]
    async fn a_drained_server_is_left_alone_and_tried_when_it_is_wanted_again() {
        let (broker, calls) = broker();
        broker.dispatch.set_drained(&"a".into(), true);
        let first = tokio::time::timeout(Duration::from_secs(10), watch(Arc::clone(&broker)));
        let _ = first.await;
        assert_eq!(calls.load(Ordering::Relaxed), 0);
        broker.dispatch.set_drained(&"a".into(), false);
        let second = tokio::time::timeout(Duration::from_millis(150), watch(Arc::clone(&broker)));
        let _ = second.await;
        assert_eq!(calls.load(Ordering::Relaxed), 1);
    }
}
