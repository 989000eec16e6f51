//! What is heard of those who run: first tokens, ends, and how their answers grow.

use super::{memory, scheduler::Scheduler, seat::SeatId};
use crate::{ids::ServerId, units::Tokens};
use tokio::time::Instant;

impl<T> Scheduler<T> {
    /// The first token of an answer came.
    pub fn first_token(&mut self, server: &ServerId, seat: SeatId, now: Instant) {
        let Some(room) = self.rooms.iter_mut().find(|room| room.id == *server) else { return };
        let others = room.seats.iter().any(|seat| seat.first.is_some());
        room.flow.first_token(seat.number(), others, &self.rules, now);
        if let Some(seat) = room.seats.get_mut(seat.0) {
            seat.first = Some(now);
            if let Some(foreseen) = seat.foreseen {
                self.bias.saw(foreseen, now);
            }
        }
    }

    /// Takes a turn back. `output`: what it made, if its answer was whole.
    pub fn take_back(
        &mut self,
        server: &ServerId,
        seat: SeatId,
        output: Option<Tokens>,
        now: Instant,
    ) {
        let weight = self.rules.output_weight;
        let Some(room) = self.rooms.iter_mut().find(|room| room.id == *server) else { return };
        let Some(gone) = room.seats.remove(seat.0) else { return };
        debug_assert!(
            room.requests > 0 && room.placed >= gone.sequences && room.claimed >= gone.claim,
            "room given back twice"
        );
        // Of one whose first token nobody would have seen, time tells.
        let computed = gone.first.is_some()
            || output.is_some()
            || gone.progress.produced() > Tokens::ZERO
            || (!gone.watched && !room.flow.waits_for(seat.number(), now));
        let before = room.placed_tokens();
        room.claimed = room.claimed.less(gone.claim);
        room.placed = room.placed.saturating_sub(gone.sequences);
        room.requests = room.requests.saturating_sub(1);
        let begun = room.flow.computed(seat.number(), now);
        room.flow.gone(seat.number(), now);
        if room.requests == 0 {
            room.flow.idles();
        }
        if gone.blocks.tokens > 0 {
            room.prefix.unpin(&gone.blocks.hashes, computed);
        }
        room.unpromise(gone.promise, &gone.model);
        let freed = before.less(room.placed_tokens());
        room.fit_prefix();
        // What it took in the end, for what it was charged at first; nothing, if it was never computed.
        let output = output.unwrap_or_else(|| gone.progress.produced());
        let due = match computed {
            true => gone.charged - weight * (gone.output.get() as f64 - output.get() as f64),
            // What was computed of its prompt by then.
            false => begun * (gone.charged - weight * gone.output.get() as f64).max(0.0),
        };
        self.queue.charge(&gone.model, gone.tier, &gone.tenant, gone.weight, due - gone.charged);
        for model in room.models.iter().map(|served| &served.name) {
            let busy = !self.queue.is_idle(model);
            if busy || self.pace.contains_key(model) {
                match self.pace.get_mut(model) {
                    Some(pace) => pace.freed(freed, busy, now),
                    None => self.pace.entry(model.clone()).or_default().freed(freed, busy, now),
                }
            }
        }
        if self.calling.as_ref().is_some_and(|(of, called)| of == server && *called == seat) {
            self.calling = None;
        }
        memory::settle(&mut self.rooms, &self.cards);
    }

    /// Looks at what runs: longer answers than expected need more room, and gaps between tokens say whether
    /// prefill must slow down. To be called about twice a second.
    pub fn look(&mut self, now: Instant) {
        let Self { rooms, queue, outputs, rules, .. } = self;
        for room in rooms {
            let quiet_s = room.flow.costs().quiet_step_s(room.placed_tokens());
            let (mut running, mut risky, mut fragile, mut more) = (0.0, 0.0, 0, Tokens::ZERO);
            for (_, seat) in room.seats.iter_mut() {
                let Some(first) = seat.first else { continue };
                let pulse = seat.pulse(first, quiet_s, rules, now);
                running += 1.0;
                risky += f64::from(u8::from(pulse.at_risk));
                fragile += u32::from(pulse.fragile);
                let lengths = outputs.of(&seat.tenant, &seat.model);
                let extra = seat.outgrown(lengths);
                if extra > Tokens::ZERO {
                    let charge = rules.output_weight * extra.get() as f64;
                    seat.charged += charge;
                    more = more.plus(extra);
                    queue.charge(&seat.model, seat.tier, &seat.tenant, seat.weight, charge);
                }
            }
            room.claimed = room.claimed.plus(more);
            room.fragile = fragile;
            room.flow.correct(if running > 0.0 { risky / running } else { 0.0 }, now);
        }
    }
}
