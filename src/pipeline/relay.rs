//! One call to one server, and what its answer means: whole answers here, streams in `attempt`.

use super::{
    dispatch::{Outcome, Placement},
    record::Record,
    screening::{self, Guard},
    watch::Wishes,
};
use crate::{
    api::{Route, answer::ToldInput, outgoing},
    config,
    error::{Reason, Refusal},
    ids::Tier,
    servers::{Answer, AnswerBody, Call, CallError},
};
use bytes::{Bytes, BytesMut};
use http::{HeaderMap, StatusCode, header::CONTENT_TYPE, header::RETRY_AFTER};
use std::{future::Future, sync::Arc, time::Duration};
use tokio::time::Instant;

/// Why an attempt failed.
#[derive(Debug)]
pub struct Fault {
    /// The failure's label in metrics.
    pub cause: &'static str,
    /// What the caller hears if no other server helps.
    pub refusal: Refusal,
    /// What the breaker hears.
    pub outcome: Outcome,
    /// No other server would do better.
    pub last: bool,
    /// The server had the request, and may have worked on it.
    pub had: bool,
}

impl Fault {
    /// The server failed; another may do better.
    pub(super) fn failed(cause: &'static str, message: impl Into<String>) -> Self {
        let refusal =
            Refusal::new(Reason::ServerFailed, message.into()).retry_after(Duration::from_secs(1));
        Self { cause, refusal, outcome: Outcome::Failed, last: false, had: true }
    }

    /// The server said nothing for too long; another may do better.
    pub(super) fn silent(limit: Duration, what: &str) -> Self {
        let text = format!("The model server sent no {what} within {:.0} s.", limit.as_secs_f64());
        let refusal = Refusal::new(Reason::ServerSilent, text).retry_after(Duration::from_secs(1));
        Self { cause: "silent", refusal, outcome: Outcome::Failed, last: false, had: true }
    }

    /// The caller's own time is over. That says nothing about the server: a caller in a hurry must not
    /// shut it off for the others.
    pub(super) fn late() -> Self {
        let text = "No content came within this request's own deadline. Retry, or allow more time.";
        let refusal = Refusal::new(Reason::WaitTooLong, text).retry_after(Duration::from_secs(1));
        Self { cause: "deadline", refusal, outcome: Outcome::Unjudged, last: true, had: true }
    }

    /// The server hangs or its GPU is gone, and the request was taken back before the caller saw any of its
    /// answer.
    pub(super) fn hung() -> Self {
        let text = "The model server stood still or lost its GPU before it said anything. Retry.";
        let refusal = Refusal::new(Reason::ServerSilent, text).retry_after(Duration::from_secs(1));
        // The breaker knows already.
        Self { cause: HUNG, refusal, outcome: Outcome::Unjudged, last: false, had: true }
    }

    /// The request gave its room to somebody more urgent before its caller saw anything.
    pub(super) fn preempted() -> Self {
        let text = "More urgent requests took this one's room. Retry.";
        let refusal = Refusal::new(Reason::ServerBusy, text).retry_after(Duration::from_secs(1));
        Self { cause: PREEMPTED, refusal, outcome: Outcome::Unjudged, last: false, had: true }
    }

    /// The answer's content ended it. The server did what was asked, and another would do the same.
    pub(super) fn stopped(refusal: Refusal) -> Self {
        Self { cause: "stopped", refusal, outcome: Outcome::Answered, last: true, had: true }
    }

    /// Whether the answer's content ended it.
    pub(super) fn is_stopped(&self) -> bool {
        self.cause == "stopped"
    }

    /// Whether it gave its room to somebody more urgent.
    pub(super) fn is_preempted(&self) -> bool {
        self.cause == PREEMPTED
    }

    /// Whether the request was taken back, rather than failed.
    pub(super) fn is_recall(&self) -> bool {
        self.cause == HUNG
    }

    /// The server refused before it began.
    const fn unstarted(mut self) -> Self {
        self.had = false;
        self
    }

    /// The server's configuration or ours is wrong, or it does not offer this: another may.
    const fn unjudged(mut self) -> Self {
        self.outcome = Outcome::Unjudged;
        self
    }
}

/// The label of requests that were taken back from a server that hung, or whose GPU is gone.
const HUNG: &str = "hung";

/// The label of requests that gave their room to others.
const PREEMPTED: &str = "preempted";
/// Longest `Retry-After` of a server that is believed.
const RETRY_MAX: Duration = Duration::from_secs(60);
/// Largest error body read from a server.
const ERROR_BODY_MAX: usize = 64 * 1024;
/// Longest time spent on reading one.
const ERROR_BODY_LIMIT: Duration = Duration::from_secs(5);
/// What every attempt of a request shares.
#[derive(Debug)]
pub struct Job {
    /// Which API.
    pub route: Route,
    /// The caller wants a stream.
    pub stream: bool,
    /// The body for the server.
    pub body: Bytes,
    /// The same with token ids, for servers that take them.
    pub ids_body: Option<Bytes>,
    /// Limits.
    pub relay: config::Relay,
    /// When the first content of a stream is of no more use, where the caller said so.
    pub content_by: Option<Instant>,
    /// Limits on answers.
    pub limits: config::Limits,
    /// How urgent, for servers that honour it.
    pub tier: Tier,
    /// What the watcher must know.
    pub wishes: Wishes,
    /// How answers are watched for what they say; `None`: nobody does.
    pub guard: Option<Arc<screening::Plan>>,
}

impl Job {
    /// Sends the call and checks the answer's head: a 2xx of the right media type.
    pub(super) async fn open(
        &self,
        placement: &Placement,
        record: &Record,
        media: &str,
    ) -> Result<Answer, Fault> {
        let Some(server) = placement.server() else {
            let fault = Fault::failed("left", "The model server left the configuration.");
            return Err(fault.unstarted().unjudged());
        };
        let body = match &self.ids_body {
            Some(body) if server.takes_ids(self.route) => body,
            _ => &self.body,
        };
        let body = match server.priority(self.tier) {
            Some(priority) => outgoing::with_priority(body, priority),
            None => body.clone(),
        };
        let call = Call { route: self.route, body, request_id: record.id.clone() };
        let mut answer = server.send(call).await.map_err(|error| match error {
            CallError::Refused(text) => Fault {
                cause: "refused",
                refusal: Refusal::new(
                    Reason::ServerBusy,
                    format!("The model server refused: {text}."),
                ),
                outcome: Outcome::Busy(None),
                last: false,
                had: false,
            },
            CallError::Connect(text) => {
                tracing::debug!(server = placement.id().as_str(), error = text, "cannot connect");
                Fault::failed("connect", "The model server cannot be reached.").unstarted()
            }
            CallError::Broken(text) => {
                tracing::debug!(server = placement.id().as_str(), error = text, "broken");
                Fault::failed("broken", "The model server broke the connection.")
            }
        })?;
        // A head by itself is no sign of life: a front end may send one while its engine stands still.
        if !answer.status.is_success() {
            let status = answer.status;
            let headers = std::mem::take(&mut answer.headers);
            let body = whole_body(&mut answer.body, ERROR_BODY_MAX, || {});
            let body = tokio::time::timeout(ERROR_BODY_LIMIT, body).await;
            let body = body.ok().and_then(Result::ok).unwrap_or_default();
            return Err(rejected(status, &headers, &body));
        }
        let said = answer.headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
        if said.is_some_and(|said| said.trim_start().to_ascii_lowercase().starts_with(media)) {
            return Ok(answer);
        }
        let said: String = said.unwrap_or("nothing").chars().take(100).collect();
        Err(Fault::failed(
            "media_type",
            format!("The model server answered {said} instead of {media}."),
        ))
    }
}

/// What an error status from a server means.
fn rejected(status: StatusCode, headers: &HeaderMap, body: &[u8]) -> Fault {
    let retry = headers
        .get(RETRY_AFTER)
        .and_then(|value| value.to_str().ok()?.parse::<u64>().ok())
        .map(|seconds| Duration::from_secs(seconds).min(RETRY_MAX));
    match status.as_u16() {
        429 | 503 => {
            let text = "Every model server that was tried is overloaded. Retry later.";
            let refusal = Refusal::new(Reason::ServerBusy, text)
                .retry_after(retry.unwrap_or(Duration::from_secs(1)));
            let outcome = Outcome::Busy(retry);
            Fault { cause: "busy", refusal, outcome, last: false, had: false }
        }
        // Our key or our account at the server: never the caller's doing.
        401 | 402 | 403 | 407 => Fault::failed(
            "credentials",
            "The model server did not accept berthd's call. The operator must mend its configuration.",
        )
        .unstarted(),
        // It does not have this route or this model: it works, but not for this. Whoever asks for what a
        // server does not offer must not shut it off for the others.
        404 | 405 => Fault::failed(
            "not_offered",
            "The model server does not offer this for this model.",
        )
        .unstarted()
        .unjudged(),
        400 | 413 | 415 | 422 | 501 => {
            let text = message_of(body).unwrap_or_else(|| format!("status {status}"));
            let refusal = Refusal::new(
                Reason::ServerRejected,
                format!("The model server rejected this request: {text}"),
            )
            .with_server_status(status.as_u16());
            // It works: it read the request and said what is wrong with it.
            let outcome = Outcome::Answered;
            Fault { cause: "rejected", refusal, outcome, last: true, had: false }
        }
        // Whatever else it says (424 is an engine failure, 408 and 499 are the connection's), another
        // server may do better.
        _ => Fault::failed(
            "status",
            format!("The model server answered with status {}.", status.as_u16()),
        ),
    }
}

/// The message of an error body, in any of the forms that servers use.
fn message_of(body: &[u8]) -> Option<String> {
    let value: serde_json::Value = serde_json::from_slice(body).ok()?;
    let error = value.get("error").unwrap_or(&value);
    let text = error
        .as_str()
        .or_else(|| error.get("message")?.as_str())
        .or_else(|| value.get("detail")?.as_str())?;
    Some(text.chars().take(2000).collect())
}

/// The label of an answer beyond `limits.answer_max_mib`.
const TOO_LARGE: &str = "too_large";

async fn whole_body(
    body: &mut AnswerBody,
    max: usize,
    heard: impl Fn(),
) -> Result<Bytes, &'static str> {
    let mut out = BytesMut::new();
    while let Some(piece) = body.next().await {
        let piece = piece.map_err(|_| "broken")?;
        heard();
        if out.len() + piece.len() > max {
            return Err(TOO_LARGE);
        }
        out.extend_from_slice(&piece);
    }
    Ok(out.freeze())
}

// === whole answers ===

/// Asks for a whole answer and checks it.
///
/// # Errors
/// Anything but an answer; the caller has seen nothing.
pub async fn whole(
    job: &Job,
    placement: &Placement,
    record: &mut Record,
) -> Result<(Bytes, Watched), Fault> {
    let limit = job.relay.answer_limit;
    let max = usize::try_from(job.limits.answer_max.get()).unwrap_or(usize::MAX);
    let work = async {
        let mut answer = job.open(placement, record, "application/json").await?;
        let heard = || placement.hear(Instant::now());
        let body = whole_body(&mut answer.body, max, heard).await;
        body.map_err(|cause| broken_off(cause, job))
    };
    let body = within(Instant::now() + limit, unless_recalled(placement, work))
        .await
        .unwrap_or_else(|| Err(Fault::silent(limit, "whole answer")))?;
    let checked = super::whole::check(job, body)
        .map_err(|cause| Fault::failed(cause, "The model server's answer was not an answer."))?;
    if let Some(plan) = &job.guard {
        record.output = checked.1.usage.completion;
        let mut guard = Guard::new(Arc::clone(plan), job.wishes.choices);
        let watched = guard.whole(&super::whole::texts(&checked.0)).await;
        record.watched = Some(guard.answered());
        watched.map_err(|stopped| Fault::stopped(stopped.refusal()))?;
    }
    Ok(checked)
}

fn broken_off(cause: &'static str, job: &Job) -> Fault {
    if cause != TOO_LARGE {
        return Fault::failed(cause, "The model server broke off its answer.");
    }
    // The server did what was asked, and every other would do the same.
    let text = format!(
        "The answer is larger than {} MiB, the most this daemon takes. Ask for less at once, or ask the operator to raise limits.answer_max_mib.",
        job.limits.answer_max.get() >> 20
    );
    let refusal = Refusal::new(Reason::ServerRejected, text).with_server_status(400);
    Fault { cause, refusal, outcome: Outcome::Answered, last: true, had: true }
}

/// What a finished answer used, and whether the server said so.
#[derive(Clone, Copy, Debug)]
pub struct Watched {
    /// Tokens.
    pub usage: crate::api::answer::Usage,
    /// The server's word, rather than our count.
    pub from_server: bool,
    /// The server's word on the input, whether or not the rest of its usage can be true.
    pub told: Option<ToldInput>,
}

/// The work, unless the placement is taken back first; the work is dropped then, and its connection closed.
pub(super) async fn unless_recalled<T>(
    placement: &Placement,
    work: impl Future<Output = Result<T, Fault>>,
) -> Result<T, Fault> {
    tokio::select! {
        // In order: an answer that has come is taken, whatever is thought of its server.
        biased;
        done = work => done,
        () = placement.recalled() => {
            Err(if placement.is_preempted() { Fault::preempted() } else { Fault::hung() })
        }
    }
}

pub(super) async fn within<T>(until: Instant, work: impl Future<Output = T>) -> Option<T> {
    tokio::time::timeout_at(until, work).await.ok()
}
