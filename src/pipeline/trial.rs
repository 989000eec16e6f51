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
use std::{collections::HashSet, sync::Arc, time::Duration};
use tokio::{task::JoinSet, time::Instant};

/// How often due trials are looked for. Also bounds how late a reading is noticed to be stale.
const TICK: Duration = Duration::from_millis(100);
/// How long a trial may take.
const LIMIT: Duration = Duration::from_secs(10);
/// Largest answer to a trial that is read.
const ANSWER_MAX: usize = 64 * 1024;

/// Watches all breakers. Never returns; dropping the future ends trials under way.
pub async fn watch(broker: Arc<Broker>) {
    let mut under_way: HashSet<ServerId> = HashSet::new();
    let mut trials = JoinSet::new();
    let mut tick = tokio::time::interval(TICK);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = tick.tick() => {}
            Some(done) = trials.join_next(), if !trials.is_empty() => {
                if let Ok((id, outcome)) = done {
                    under_way.remove(&id);
                    finish(&broker, &id, outcome);
                }
                continue;
            }
        }
        broker.dispatch.tick();
        for (server, model) in broker.dispatch.trials_due(Instant::now()) {
            // One at a time for each server, so there are never more than servers.
            if under_way.insert(server.id().clone()) {
                trials.spawn(async move {
                    let id = server.id().clone();
                    let outcome = tokio::time::timeout(LIMIT, ask(server, model)).await;
                    (id, outcome.unwrap_or(Outcome::Failed))
                });
            }
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
