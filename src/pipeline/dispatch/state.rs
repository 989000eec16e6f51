//! What the dispatch mutex guards: queue, rooms, servers, and the arithmetic on them.

use super::{
    Footing, Hung,
    decisions::{DecisionId, Decisions},
    pulse::Pulse,
};
use crate::{
    config,
    error::{Reason, Refusal},
    ids::{ModelName, ServerId},
    queue::Limits,
    schedule::{
        Grant, Late, Need, Progress, Request, Rules, Scheduler, SeatId, Turn, breaker::Breaker,
    },
    servers::ModelServer,
    snapshot::{Health, ServerState},
    units::Tokens,
};
use std::{collections::HashMap, sync::Arc, time::Duration};
use tokio::{
    sync::{Notify, oneshot},
    time::Instant,
};

pub(super) struct State {
    /// Queue and rooms.
    pub(super) scheduler: Scheduler<Waiting>,
    pub(super) berths: HashMap<ServerId, Berth>,
    pub(super) queue_rules: config::Queue,
    pub(super) breaker_rules: config::Breaker,
    pub(super) models: Vec<config::Model>,
    pub(super) stale_after: Duration,
    /// What was decided of late.
    pub(super) decisions: Decisions,
}

/// One server beside its room.
pub(super) struct Berth {
    pub(super) server: Arc<dyn ModelServer>,
    /// Asks its watcher to look at once.
    pub(super) nudge: Arc<Notify>,
    pub(super) state: ServerState,
    pub(super) breaker: Breaker,
    pub(super) drained: bool,
    pub(super) busy_until: Option<Instant>,
    /// Times that it came up. What comes back may be another process.
    pub(super) comings: u64,
    /// Since when it has taken no requests.
    pub(super) unusable_since: Option<Instant>,
    /// What the devices under it say.
    pub(super) footing: Footing,
    /// Shared with the requests that it has.
    pub(super) pulse: Arc<Pulse>,
    /// Since when it has had requests without a break.
    pub(super) busy_since: Option<Instant>,
    pub(super) hung: Option<Hung>,
    /// It is to be tried although its breaker is closed.
    pub(super) suspect: bool,
    /// No longer configured; goes when its last request has ended.
    pub(super) leaving: bool,
}

/// Who waits for a turn.
#[derive(Debug)]
pub(super) struct Waiting {
    pub(super) decision: DecisionId,
    pub(super) give: oneshot::Sender<Given>,
}

/// What becomes of somebody who waits.
#[derive(Debug)]
pub(super) enum Given {
    /// Its turn.
    Turn(Granted),
    /// It would be too late by now, and when it may come again.
    Late(Late, bool, Duration),
    /// Its place went to a tenant who had less, and when it may come again.
    Displaced(Duration),
}

/// A turn, in the hands of whoever waited for it.
#[derive(Debug)]
pub(super) struct Granted {
    pub(super) server: ServerId,
    pub(super) seat: SeatId,
    /// Recalls from this server before it.
    pub(super) recalls: u64,
    pub(super) progress: Arc<Progress>,
}

/// Expected output of a model nobody configured.
pub(super) const DEFAULT_OUTPUT: Tokens = Tokens(256);

impl State {
    /// What an answer of a model is expected to need before any was seen.
    pub(super) fn guess(&self, model: &ModelName) -> Tokens {
        let known = self.models.iter().find(|known| known.name == *model);
        known.map_or(DEFAULT_OUTPUT, |known| known.expected_output)
    }

    /// Takes over what a server's readings say about its room.
    pub(super) fn adopt(&mut self, id: &ServerId) {
        let Some(berth) = self.berths.get(id) else { return };
        let Some(room) = self.scheduler.room_mut(id) else { return };
        room.adopt(&berth.state.models, &berth.state.capacity);
    }

    /// Says anew which servers take requests.
    pub(super) fn refresh(&mut self, now: Instant) {
        for room in &mut self.scheduler.rooms {
            let Some(berth) = self.berths.get_mut(&room.id) else { continue };
            let read_at = berth.state.read_at;
            let fresh = read_at.is_some_and(|at| now.duration_since(at) <= self.stale_after);
            berth.busy_until = berth.busy_until.filter(|until| *until > now);
            room.usable = fresh
                && berth.state.health == Health::Up
                && !berth.breaker.is_open()
                && !berth.drained
                && !berth.leaving
                && berth.footing.stop.is_none()
                && berth.busy_until.is_none();
            room.weight = berth.footing.weight;
            match room.usable {
                true => berth.unusable_since = None,
                false => _ = berth.unusable_since.get_or_insert(now),
            }
        }
    }

    /// Takes over a turn that the rules gave.
    pub(super) fn granted(
        &mut self,
        grant: Grant,
        progress: Arc<Progress>,
        now: Instant,
    ) -> Granted {
        let recalls = self.berths.get_mut(&grant.server).map_or(0, |berth| {
            berth.busy_since.get_or_insert(now);
            berth.pulse.recalls()
        });
        Granted { server: grant.server, seat: grant.seat, recalls, progress }
    }

    pub(super) fn take_back(&mut self, granted: &Granted, output: Option<Tokens>, now: Instant) {
        let Granted { server, seat, .. } = granted;
        self.scheduler.take_back(server, *seat, output, now);
        let idle = self.scheduler.room(server).is_none_or(|room| room.requests == 0);
        if let Some(berth) = self.berths.get_mut(server).filter(|_| idle) {
            berth.busy_since = None;
        }
    }

    /// Gives turns as long as anybody can have one.
    pub(super) fn hand_out(&mut self) {
        let now = Instant::now();
        while let Some(turn) = self.scheduler.next(now) {
            let (waiting, given) = match turn {
                // A caller who left takes no turn.
                Turn::Granted(waiting, grant, request) => {
                    self.decisions.placed(waiting.decision, &grant.server, &grant.weighed, now);
                    let granted = self.granted(grant, request.progress, now);
                    (waiting, Given::Turn(granted))
                }
                Turn::Late(waiting, late, request) => {
                    let retry = self.retry(&request, now);
                    self.decisions.refused(waiting.decision, Reason::WaitTooLong.as_str(), now);
                    (waiting, Given::Late(late, request.strict, retry))
                }
                Turn::Displaced(waiting, request) => {
                    let retry = self.retry(&request, now);
                    self.decisions.refused(waiting.decision, Reason::QueueFull.as_str(), now);
                    (waiting, Given::Displaced(retry))
                }
                Turn::Preempt(server, _) => {
                    if let Some(berth) = self.berths.get(&server) {
                        berth.pulse.stir();
                    }
                    continue;
                }
                // Let go without a word: its end of the line says that no server is left.
                Turn::Nobody(waiting) => {
                    self.decisions.refused(waiting.decision, Reason::NoServer.as_str(), now);
                    continue;
                }
            };
            if let Err(Given::Turn(granted)) = waiting.give.send(given) {
                self.take_back(&granted, None, now);
            }
        }
    }

    /// When a request that is refused may come again. Room is kept for it.
    pub(super) fn retry(&mut self, request: &Request, now: Instant) -> Duration {
        let seconds = self.scheduler.promise(request, now);
        self.scheduler.retry_after(seconds, chance())
    }

    /// Since when no server that this request may go to takes any. `None`: one does.
    pub(super) fn down_since(&self, need: Need<'_>) -> Option<Instant> {
        let mut last = None;
        for room in self.scheduler.rooms.iter().filter(|room| room.may_take(need)) {
            last = last.max(Some(self.berths.get(&room.id)?.unusable_since?));
        }
        last
    }

    pub(super) fn forget_gone(&mut self) {
        let berths = &mut self.berths;
        self.scheduler.rooms.retain(|room| {
            let gone = room.requests == 0 && berths.get(&room.id).is_none_or(|berth| berth.leaving);
            if gone {
                berths.remove(&room.id);
            }
            !gone
        });
    }

    /// What is said to a caller whose deadline cannot be met: now, not after waiting for it.
    pub(super) fn late(late: &Late, strict: bool, retry: Duration) -> Refusal {
        let Late { ttft_s, left_s, hopeless } = *late;
        if hopeless {
            let text = format!(
                "This prompt alone takes longer than the deadline allows: its first token is expected in {}, and {} are left. Allow more time, or shorten it.",
                span(ttft_s),
                span(left_s)
            );
            return Refusal::new(Reason::WaitTooLong, text);
        }
        let what = if strict { "The first token" } else { "A turn" };
        let text = format!(
            "{what} is expected in {}, later than this request's deadline in {}. Retry later, or allow more time.",
            span(ttft_s),
            span(left_s)
        );
        Refusal::new(Reason::WaitTooLong, text).retry_after(retry)
    }

    pub(super) fn too_late(&mut self, request: &Request, entered: Instant) -> Refusal {
        let waited = entered.elapsed().as_secs_f64();
        let text =
            format!("No server had room for this request within {waited:.1} s. Retry later.");
        let retry = self.retry(request, Instant::now());
        Refusal::new(Reason::WaitTooLong, text).retry_after(retry)
    }
}

/// A time as people read it.
fn span(seconds: f64) -> String {
    if seconds < 1.0 { format!("{:.0} ms", seconds * 1000.0) } else { format!("{seconds:.1} s") }
}

/// A number from 0.0 to 1.0 by chance, to spread those who come again. Not for secrets.
fn chance() -> f64 {
    let mut bytes = [0; 4];
    // Without a source of chance all are told the middle.
    match getrandom::fill(&mut bytes) {
        Ok(()) => f64::from(u32::from_le_bytes(bytes)) / f64::from(u32::MAX),
        Err(_) => 0.5,
    }
}

/// What scheduling goes by, as configured.
pub(super) fn rules(settings: &config::Settings) -> Rules {
    let schedule = &settings.schedule;
    let share = |percent: u8| f64::from(percent) / 100.0;
    Rules {
        kv_share: share(schedule.kv_share_percent),
        batch_leaves: share(schedule.batch_leaves_percent),
        debt_max_s: schedule.prefill_debt.as_secs_f64(),
        token_gap_s: schedule.token_gap.as_secs_f64(),
        chunk: schedule.chunk,
        preempt_batch: schedule.preempt_batch,
        ..Rules::default()
    }
}

pub(super) fn limits(settings: &config::Settings) -> Limits {
    let rules = &settings.queue;
    // A tenant alone has nobody to leave room for.
    let percent = if settings.tenants.len() < 2 { 100 } else { rules.tenant_share_percent };
    let share = rules.length_max.saturating_mul(usize::from(percent)) / 100;
    Limits {
        length_max: rules.length_max,
        tenant_max: share.max(1),
        standard_ages: settings.schedule.standard_ages,
        batch_ages: settings.schedule.batch_ages,
    }
}
