//! One streamed attempt: events on their way from a server to the caller.
//!
//! Before the commit point, the first event with content, anything that goes wrong means the next
//! candidate. After it the caller has seen output, so nothing may be sent again: the stream ends with a
//! typed error. That rule is the `match` in `Attempt::outcome` and nowhere else.

use super::{
    alarm::Alarm,
    dispatch::Placement,
    flow::Slot,
    record::Record,
    relay::{Fault, Job, Watched, unless_recalled, within},
    screening::Guard,
    watch::{Step, Watcher},
};
use crate::{
    api::{
        event::{self, Said},
        stream::{Event, Splitter},
    },
    error::{Reason, Refusal},
    servers::{Answer, AnswerBody},
};
use bytes::Bytes;
use prometheus_client::metrics::histogram::Histogram;
use std::time::Duration;
use tokio::time::Instant;

/// After `[DONE]` only the end of the body may follow; the connection is worth this much waiting.
const TAIL_LIMIT: Duration = Duration::from_millis(200);

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

/// Until when the first content must come.
#[derive(Clone, Copy, Debug)]
struct FirstLimit {
    by: Instant,
    limit: Duration,
    /// It is the caller's own deadline, not the server's limit.
    own: bool,
}

impl FirstLimit {
    fn fault(self) -> Fault {
        if self.own { Fault::late() } else { Fault::silent(self.limit, "first content") }
    }
}

/// One streamed attempt.
pub struct Attempt<'a> {
    job: &'a Job,
    slot: &'a Slot,
    record: &'a mut Record,
    watcher: Watcher,
    gaps: Histogram,
    last_content: Option<Instant>,
    /// When the server last said something that was no comment.
    active: Instant,
    alarm: Alarm,
    /// Events from before the commit point, in order.
    held: Vec<Bytes>,
    held_bytes: usize,
    /// The body behind `[DONE]`.
    tail: Option<AnswerBody>,
    /// Watches what the answer says.
    guard: Option<Guard>,
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
            active: Instant::now(),
            alarm: Alarm::default(),
            held: Vec::new(),
            held_bytes: 0,
            tail: None,
            guard: job.guard.clone().map(|plan| Guard::new(plan, job.wishes.choices)),
        }
    }

    /// Runs it. Dropping the future closes the connection to the server.
    pub async fn run(mut self, placement: &Placement) -> Ending {
        let result = self.stream(placement).await;
        self.record.output = self.watcher.output();
        self.record.watched = self.guard.as_ref().map(Guard::answered);
        match result {
            Ok(()) => {
                let (usage, from_server) = self.watcher.usage();
                let told = self.watcher.told();
                Ending::Whole(Watched { usage, from_server, told }, self.tail)
            }
            Err(fault) => self.outcome(fault),
        }
    }

    /// The commit rule: where a second try is allowed, and where it is not.
    fn outcome(&self, mut fault: Fault) -> Ending {
        if fault.is_stopped() {
            return Ending::Torn(fault);
        }
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
        let first = self.first_limit();
        let opening = self.job.open(placement, self.record, "text/event-stream");
        let opening = unless_recalled(placement, opening);
        let answer = within(first.by, opening).await.unwrap_or_else(|| Err(first.fault()))?;
        self.active = Instant::now();
        // The head is read, and the buffer that it came in is the body's again once the head is gone.
        let Answer { mut body, .. } = answer;
        let max = usize::try_from(self.job.limits.event_max.get()).unwrap_or(usize::MAX);
        let mut splitter = Splitter::new(max);
        loop {
            let piece = self.piece(&mut body, first, placement).await?;
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
                match self.step(&event, placement).await? {
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
            && self.step(&event, placement).await?.is_some()
        {
            return Ok(());
        }
        match self.watcher.end() {
            Ok(last) => {
                self.let_go().await?;
                self.give_all(last).await;
                Ok(())
            }
            Err(cause) => {
                Err(Fault::failed(cause, "The model server ended the stream without finishing."))
            }
        }
    }

    /// Until when the first content must come, and whose limit that is.
    fn first_limit(&self) -> FirstLimit {
        let limit = self.job.relay.first_token_limit;
        let by = Instant::now() + limit;
        match self.job.content_by {
            Some(own) if own < by => FirstLimit { by: own, limit, own: true },
            _ => FirstLimit { by, limit, own: false },
        }
    }

    /// The next piece of the body. Meanwhile what is held back for too long goes on.
    async fn piece(
        &mut self,
        body: &mut AnswerBody,
        first: FirstLimit,
        placement: &Placement,
    ) -> Result<Option<Bytes>, Fault> {
        loop {
            let Some(due) = self.guard.as_ref().and_then(Guard::due) else {
                return self.next_piece(body, first, placement).await;
            };
            // Reading a piece keeps nothing of its own between two polls.
            let piece = tokio::time::timeout_at(due, self.next_piece(body, first, placement)).await;
            if let Ok(piece) = piece {
                return piece;
            }
            let Some(guard) = self.guard.as_mut() else { continue };
            let free =
                guard.overdue().await.map_err(|stopped| Fault::stopped(stopped.refusal()))?;
            for raw in free {
                self.slot.give(raw).await;
            }
        }
    }

    /// The next piece of the body: until the first content within the first limit, after it within the
    /// idle limit. Comments are no sign of life: a server whose engine hangs may still send them.
    async fn next_piece(
        &mut self,
        body: &mut AnswerBody,
        first: FirstLimit,
        placement: &Placement,
    ) -> Result<Option<Bytes>, Fault> {
        let piece = if self.watcher.committed {
            // What the caller has seen cannot be taken back.
            let idle = self.job.relay.idle_limit;
            let piece = self.alarm.within(self.active + idle, body.next()).await;
            piece.ok_or_else(|| Fault::silent(idle, "more content"))?
        } else {
            let next = async { Ok(body.next().await) };
            let piece = self.alarm.within(first.by, unless_recalled(placement, next)).await;
            piece.unwrap_or_else(|| Err(first.fault()))?
        };
        piece.transpose().map_err(|error| {
            tracing::debug!(%error, "stream broke");
            Fault::failed("broken", "The model server broke the connection.")
        })
    }

    /// Handles one event. `Some`: the answer is whole, and whether the server thinks so too.
    async fn step(&mut self, event: &Event, placement: &Placement) -> Result<Option<Over>, Fault> {
        let step = self.watcher.read(event);
        self.note_content(placement);
        if event.data().is_some() {
            self.active = Instant::now();
            placement.hear(self.active);
        }
        match step {
            Step::Keep => {}
            Step::Pass(raw) if self.watcher.committed => {
                self.flush().await;
                match self.guard.as_mut() {
                    None => self.slot.give(raw).await,
                    Some(guard) => {
                        let free = guard.pass(event, raw).await;
                        for raw in free.map_err(|stopped| Fault::stopped(stopped.refusal()))? {
                            self.slot.give(raw).await;
                        }
                    }
                }
            }
            Step::Pass(raw) => self.hold(raw)?,
            Step::Cut(last) => {
                self.let_go().await?;
                self.give_all(last).await;
                return Ok(Some(Over::Cut));
            }
            Step::Done(last) => {
                self.let_go().await?;
                self.give_all(last).await;
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

    fn note_content(&mut self, placement: &Placement) {
        if !self.watcher.content {
            return;
        }
        let now = Instant::now();
        match self.last_content.replace(now) {
            Some(last) => self.gaps.observe((now - last).as_secs_f64()),
            None => {
                self.record.first_content();
                placement.first_token(now);
            }
        }
        placement.produced(self.watcher.output());
        // So that a caller who leaves now is charged for what he got.
        self.record.said(self.watcher.output());
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

    /// The answer is whole: what is held back goes on, unless something in it ends the answer.
    async fn let_go(&mut self) -> Result<(), Fault> {
        let Some(guard) = self.guard.as_mut() else { return Ok(()) };
        let free = guard.finish().await.map_err(|stopped| Fault::stopped(stopped.refusal()))?;
        self.flush().await;
        for raw in free {
            self.slot.give(raw).await;
        }
        Ok(())
    }

    async fn give_all(&mut self, mut last: Vec<Bytes>) {
        self.tell(&mut last);
        self.flush().await;
        for raw in last {
            self.slot.give(raw).await;
        }
    }

    /// Puts before the end mark what the answer took, where the caller asked for it.
    fn tell(&mut self, last: &mut [Bytes]) {
        self.record.stops_working(Some(self.watcher.usage().0));
        let told = self.record.told().filter(|_| self.record.tell_energy);
        if let (Some(told), Some(end)) = (told, last.last_mut()) {
            *end = told.before(end);
        }
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
