//! The relay: one call to one server, and what its answer means.
//!
//! Before the commit point, the first event with content, anything that goes wrong means the next
//! candidate. After it the caller has seen output, so nothing may be sent again: the stream ends with a
//! typed error. That rule is the `match` in `Attempt::outcome` and nowhere else.

use super::{
    alarm::Alarm,
    dispatch::{Outcome, Placement},
    flow::Slot,
    record::Record,
    watch::{Step, Watcher, Wishes},
};
use crate::{
    api::{
        Route,
        event::{self, Said},
        stream::{Event, Splitter},
    },
    config,
    error::{Reason, Refusal},
    servers::{Answer, AnswerBody, Call, CallError},
};
use bytes::{Bytes, BytesMut};
use http::{HeaderMap, StatusCode, header::CONTENT_TYPE, header::RETRY_AFTER};
use prometheus_client::metrics::histogram::Histogram;
use std::{future::Future, time::Duration};
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
    /// The caller's own fault: no other server would say otherwise.
    pub final_: bool,
}

impl Fault {
    fn failed(cause: &'static str, message: impl Into<String>) -> Self {
        let refusal =
            Refusal::new(Reason::ServerFailed, message.into()).retry_after(Duration::from_secs(1));
        Self { cause, refusal, outcome: Outcome::Failed, final_: false }
    }

    fn silent(limit: Duration, what: &str) -> Self {
        let text = format!("The model server sent no {what} within {:.0} s.", limit.as_secs_f64());
        let refusal = Refusal::new(Reason::ServerSilent, text).retry_after(Duration::from_secs(1));
        Self { cause: "silent", refusal, outcome: Outcome::Failed, final_: false }
    }
}

/// Largest error body read from a server.
const ERROR_BODY_MAX: usize = 64 * 1024;
/// Longest time spent on reading one.
const ERROR_BODY_LIMIT: Duration = Duration::from_secs(5);
/// After `[DONE]` only the end of the body may follow; the connection is worth this much waiting.
const TAIL_LIMIT: Duration = Duration::from_millis(200);

/// What every attempt of a request shares.
#[derive(Debug)]
pub struct Job {
    /// Which API.
    pub route: Route,
    /// The caller wants a stream.
    pub stream: bool,
    /// The body for the server.
    pub body: Bytes,
    /// Limits.
    pub relay: config::Relay,
    /// When the first content of a stream is of no more use, where the caller said so.
    pub content_by: Option<Instant>,
    /// Limits on answers.
    pub limits: config::Limits,
    /// What the watcher must know.
    pub wishes: Wishes,
}

impl Job {
    /// Sends the call and checks the answer's head: a 2xx of the right media type.
    async fn open(
        &self,
        placement: &Placement,
        record: &Record,
        media: &str,
    ) -> Result<Answer, Fault> {
        let Some(server) = placement.server() else {
            return Err(Fault::failed("left", "The model server left the configuration."));
        };
        let call =
            Call { route: self.route, body: self.body.clone(), request_id: record.id.clone() };
        let mut answer = server.send(call).await.map_err(|error| match error {
            CallError::Refused(text) => Fault {
                cause: "refused",
                refusal: Refusal::new(
                    Reason::ServerBusy,
                    format!("The model server refused: {text}."),
                ),
                outcome: Outcome::Busy(None),
                final_: false,
            },
            CallError::Connect(text) => {
                tracing::debug!(server = placement.id().as_str(), error = text, "cannot connect");
                Fault::failed("connect", "The model server cannot be reached.")
            }
            CallError::Broken(text) => {
                tracing::debug!(server = placement.id().as_str(), error = text, "broken");
                Fault::failed("broken", "The model server broke the connection.")
            }
        })?;
        if !answer.status.is_success() {
            let status = answer.status;
            let headers = std::mem::take(&mut answer.headers);
            let body = whole_body(&mut answer.body, ERROR_BODY_MAX);
            let body = tokio::time::timeout(ERROR_BODY_LIMIT, body).await;
            let body = body.ok().and_then(Result::ok).unwrap_or_default();
            return Err(rejected(status, &headers, &body));
        }
        let said = answer.headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
        if said.is_some_and(|said| said.trim_start().to_ascii_lowercase().starts_with(media)) {
            return Ok(answer);
        }
        let said = said.unwrap_or("nothing");
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
        .map(Duration::from_secs);
    match status.as_u16() {
        429 | 503 => {
            let mut refusal = Refusal::new(
                Reason::ServerBusy,
                "Every model server that was tried is overloaded. Retry later.",
            );
            refusal = refusal.retry_after(retry.unwrap_or(Duration::from_secs(1)));
            Fault { cause: "busy", refusal, outcome: Outcome::Busy(retry), final_: false }
        }
        // Our key for the server, its model name, its routes: never the caller's doing.
        401 | 403 | 404 | 405 | 407 => Fault::failed(
            "credentials",
            "The model server did not accept berthd's call. The operator must mend its configuration.",
        ),
        400..=499 => {
            let text = message_of(body).unwrap_or_else(|| format!("status {status}"));
            let refusal = Refusal::new(
                Reason::ServerRejected,
                format!("The model server rejected this request: {text}"),
            )
            .with_server_status(status.as_u16());
            // It works: it read the request and said what is wrong with it.
            Fault { cause: "rejected", refusal, outcome: Outcome::Answered, final_: true }
        }
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

async fn whole_body(body: &mut AnswerBody, max: usize) -> Result<Bytes, &'static str> {
    let mut out = BytesMut::new();
    while let Some(piece) = body.next().await {
        let piece = piece.map_err(|_| "broken")?;
        if out.len() + piece.len() > max {
            return Err("too_large");
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
    record: &Record,
) -> Result<(Bytes, Watched), Fault> {
    let limit = job.relay.answer_limit;
    let max = usize::try_from(job.limits.answer_max.get()).unwrap_or(usize::MAX);
    let work = async {
        let mut answer = job.open(placement, record, "application/json").await?;
        whole_body(&mut answer.body, max)
            .await
            .map_err(|cause| Fault::failed(cause, "The model server broke off its answer."))
    };
    let body = within(Instant::now() + limit, work)
        .await
        .unwrap_or_else(|| Err(Fault::silent(limit, "whole answer")))?;
    super::whole::check(job, body)
        .map_err(|cause| Fault::failed(cause, "The model server's answer was not an answer."))
}

/// What a finished answer used, and whether the server said so.
#[derive(Clone, Copy, Debug)]
pub struct Watched {
    /// Tokens.
    pub usage: crate::api::answer::Usage,
    /// The server's word, rather than our count.
    pub from_server: bool,
}

async fn within<T>(until: Instant, work: impl Future<Output = T>) -> Option<T> {
    tokio::time::timeout_at(until, work).await.ok()
}

// === streams ===

/// How a streamed attempt ended.
#[derive(Debug)]
pub enum Ending {
    /// Whole. What the server still has to say is in the body: it is read once the answer is booked.
    Whole(Watched, Option<AnswerBody>),
    /// Not whole, and the caller has seen nothing: the next candidate may try.
    Again(Fault),
    /// Not whole, and the caller has seen a part: only an honest end is left.
    Torn(Fault),
}

/// Who ended an answer.
#[derive(Clone, Copy, Debug)]
enum Over {
    /// The server.
    Done,
    /// We did, at `max_tokens`.
    Cut,
}

/// One streamed attempt.
pub struct Attempt<'a> {
    job: &'a Job,
    slot: &'a Slot,
    record: &'a mut Record,
    watcher: Watcher,
    gaps: Histogram,
    last_content: Option<Instant>,
    alarm: Alarm,
    /// Events from before the commit point, in order.
    held: Vec<Bytes>,
    held_bytes: usize,
    /// The body behind `[DONE]`.
    tail: Option<AnswerBody>,
}

impl<'a> Attempt<'a> {
    /// An attempt that has not begun.
    pub fn new(job: &'a Job, slot: &'a Slot, record: &'a mut Record, gaps: Histogram) -> Self {
        let watcher = Watcher::new(job.wishes.clone());
        Self {
            job,
            slot,
            record,
            watcher,
            gaps,
            last_content: None,
            alarm: Alarm::default(),
            held: Vec::new(),
            held_bytes: 0,
            tail: None,
        }
    }

    /// Runs it. Dropping the future closes the connection to the server.
    pub async fn run(mut self, placement: &Placement) -> Ending {
        let result = self.stream(placement).await;
        self.record.output = self.watcher.output();
        match result {
            Ok(()) => {
                let (usage, from_server) = self.watcher.usage();
                Ending::Whole(Watched { usage, from_server }, self.tail)
            }
            Err(fault) => self.outcome(fault),
        }
    }

    /// The commit rule: where a second try is allowed, and where it is not.
    fn outcome(&self, mut fault: Fault) -> Ending {
        if !self.watcher.committed {
            return Ending::Again(fault);
        }
        let text = format!(
            "The answer broke off: {} What came before is incomplete.",
            fault.refusal.message
        );
        fault.refusal = Refusal::new(Reason::AnswerBroken, text);
        Ending::Torn(fault)
    }

    async fn stream(&mut self, placement: &Placement) -> Result<(), Fault> {
        let limit = self.job.relay.first_token_limit;
        let first_by = Instant::now() + limit;
        let first_by = self.job.content_by.map_or(first_by, |by| by.min(first_by));
        let opening = self.job.open(placement, self.record, "text/event-stream");
        let answer = within(first_by, opening)
            .await
            .unwrap_or_else(|| Err(Fault::silent(limit, "first content")))?;
        // The head is read, and the buffer that it came in is the body's again once the head is gone.
        let Answer { mut body, .. } = answer;
        let max = usize::try_from(self.job.limits.event_max.get()).unwrap_or(usize::MAX);
        let mut splitter = Splitter::new(max);
        loop {
            let piece = self.next_piece(&mut body, first_by).await?;
            let Some(piece) = piece else { break };
            splitter.push(piece);
            loop {
                let event = splitter.next_event().map_err(|_| {
                    Fault::failed(
                        "event_too_long",
                        "The model server sent an event beyond all measure.",
                    )
                })?;
                let Some(event) = event else { break };
                match self.step(&event).await? {
                    None => {}
                    // It would go on: its connection is closed instead.
                    Some(Over::Cut) => return Ok(()),
                    Some(Over::Done) => {
                        self.tail = Some(body);
                        return Ok(());
                    }
                }
            }
        }
        if let Some(event) = splitter.rest()
            && self.step(&event).await?.is_some()
        {
            return Ok(());
        }
        match self.watcher.end() {
            Ok(last) => {
                self.flush().await;
                for raw in last {
                    self.slot.give(raw).await;
                }
                Ok(())
            }
            Err(cause) => {
                Err(Fault::failed(cause, "The model server ended the stream without finishing."))
            }
        }
    }

    /// The next piece of the body: until the first content within the first-token limit, after it
    /// within the idle limit.
    async fn next_piece(
        &mut self,
        body: &mut AnswerBody,
        first_by: Instant,
    ) -> Result<Option<Bytes>, Fault> {
        let (until, limit, what) = if self.watcher.committed {
            let limit = self.job.relay.idle_limit;
            (Instant::now() + limit, limit, "more content")
        } else {
            (first_by, self.job.relay.first_token_limit, "first content")
        };
        let Some(piece) = self.alarm.within(until, body.next()).await else {
            return Err(Fault::silent(limit, what));
        };
        piece.transpose().map_err(|error| {
            tracing::debug!(%error, "stream broke");
            Fault::failed("broken", "The model server broke the connection.")
        })
    }

    /// Handles one event. `Some`: the answer is whole, and whether the server thinks so too.
    async fn step(&mut self, event: &Event) -> Result<Option<Over>, Fault> {
        let step = self.watcher.read(event);
        self.note_content();
        match step {
            Step::Keep => {}
            Step::Pass(raw) if self.watcher.committed => {
                self.flush().await;
                self.slot.give(raw).await;
            }
            Step::Pass(raw) => self.hold(raw)?,
            Step::Cut(last) => {
                self.flush().await;
                for raw in last {
                    self.slot.give(raw).await;
                }
                return Ok(Some(Over::Cut));
            }
            Step::Done(last) => {
                self.flush().await;
                for raw in last {
                    self.slot.give(raw).await;
                }
                return Ok(Some(Over::Done));
            }
            Step::Broken(cause) => {
                let text = match event.data().as_deref().map(event::read) {
                    Some(Said::Chunk(_)) => "The model server reported an error.",
                    _ => "The model server sent something that is no answer.",
                };
                return Err(Fault::failed(cause, text));
            }
        }
        Ok(None)
    }

    fn note_content(&mut self) {
        if !self.watcher.content {
            return;
        }
        let now = Instant::now();
        match self.last_content.replace(now) {
            Some(last) => self.gaps.observe((now - last).as_secs_f64()),
            None => self.record.first_content(),
        }
        // So that a caller who leaves now is charged for what he got.
        self.record.output = self.watcher.output();
    }

    fn hold(&mut self, raw: Bytes) -> Result<(), Fault> {
        self.held_bytes += raw.len();
        if self.held_bytes as u64 > self.job.limits.event_max.get() {
            return Err(Fault::failed(
                "no_content",
                "The model server sent events without content.",
            ));
        }
        self.held.push(raw);
        Ok(())
    }

    async fn flush(&mut self) {
        for raw in std::mem::take(&mut self.held) {
            self.slot.give(raw).await;
        }
    }
}

/// Reads the end of a body, so that its connection can serve again. What does not end in time is
/// dropped with its connection.
pub async fn drain(mut body: AnswerBody) {
    let tail = async { while let Some(Ok(_)) = body.next().await {} };
    let _ = tokio::time::timeout(TAIL_LIMIT, tail).await;
}
