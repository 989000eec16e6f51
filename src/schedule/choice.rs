//! Which server takes a request, if any does now.

use super::{
    room::{Bar, Need, Room, Weighed},
    rules::Rules,
    seat::Known,
};
use crate::units::Tokens;
use std::cmp::Ordering;
use tokio::time::Instant;

/// Time that a first token may take beside what is owed and computed: the step under way, seconds.
const STEP_S: f64 = 0.05;
/// How much longer than estimated the prefill of a request may take before it counts as lost.
pub(super) const PREFILL_MARGIN: f64 = 1.1;

/// What can be done for a request now.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Choice {
    /// This room takes it.
    Here(usize, Weighed),
    /// A server is worth waiting for: it owes prefill, and still is done with this sooner than any that is
    /// free.
    Patient,
    /// A server that serves it is usable but full.
    Full,
    /// A server that serves it is usable, but its GPUs have not the memory, and will not have it when all our
    /// requests have ended.
    Cramped,
    /// A server that serves it exists and was not tried, but none is usable.
    Down,
    /// No untried server serves it.
    Nobody,
}

/// The size that a server must have for this request: one larger than every server waits for the largest and
/// has it alone; it never squeezes into a small one while a large one exists.
pub fn enough(rooms: &[Room], need: Need<'_>) -> Tokens {
    let open = rooms.iter().filter(|room| room.usable && room.may_take(need));
    let largest = open.map(Room::size).max();
    need.tokens.min(largest.unwrap_or(need.tokens))
}

/// Chooses a room: of those that take it now the one with the least expected cost, unless one that only owes
/// prefill costs less still. The second figure is when its first token may come, seconds from now, infinite if
/// nowhere.
pub fn choose(
    rooms: &[Room],
    need: Need<'_>,
    known: &mut Known,
    rules: &Rules,
    now: Instant,
) -> (Choice, f64) {
    View { rooms, held: &[], patient: true }.choose(need, known, rules, now)
}

/// The rooms as one request may see them.
#[derive(Clone, Copy, Debug)]
pub(super) struct View<'a> {
    pub rooms: &'a [Room],
    /// Rooms that are kept for somebody else.
    pub held: &'a [bool],
    /// A server that only owes prefill is worth waiting for.
    pub patient: bool,
}

impl View<'_> {
    /// As [`choose`].
    pub(super) fn choose(
        self,
        need: Need<'_>,
        known: &mut Known,
        rules: &Rules,
        now: Instant,
    ) -> (Choice, f64) {
        let enough = enough(self.rooms, need);
        let mut best: Option<(usize, &Room, Weighed)> = None;
        let mut owing: Option<f64> = None;
        let mut soonest = f64::INFINITY;
        let mut choice = Choice::Nobody;
        let open = self.rooms.iter().enumerate().filter(|(_, room)| room.may_take(need));
        for (index, room) in open {
            let mut weighed = room.weigh(need, known, enough, rules, now);
            if !matches!(weighed.bar, Some(Bar::Down | Bar::Memory | Bar::Small)) {
                let first_s = weighed.debt_s + PREFILL_MARGIN * weighed.prefill_s + STEP_S;
                soonest = soonest.min(if room.flow.is_known() { first_s } else { 0.0 });
                if self.held.get(index).copied().unwrap_or(false) {
                    weighed.bar = Some(Bar::Full);
                }
            }
            match weighed.bar {
                None if best.is_none_or(|(_, other, than)| {
                    order((room, weighed), (other, than)).is_lt()
                }) =>
                {
                    best = Some((index, room, weighed));
                }
                None | Some(Bar::Small) => {}
                Some(Bar::Down) if choice == Choice::Nobody => choice = Choice::Down,
                Some(Bar::Down) => {}
                Some(Bar::Memory) if choice != Choice::Full => choice = Choice::Cramped,
                Some(Bar::Memory) => {}
                Some(Bar::Full) => choice = Choice::Full,
                Some(Bar::Owing) => {
                    choice = Choice::Full;
                    owing = Some(owing.unwrap_or(f64::MAX).min(weighed.cost_s));
                }
            }
        }
        let waits = |cost_s: f64| self.patient && owing.is_some_and(|owing| owing < cost_s);
        let choice = match best {
            Some((_, _, weighed)) if waits(weighed.cost_s) => Choice::Patient,
            Some((index, _, weighed)) => Choice::Here(index, weighed),
            None => choice,
        };
        (choice, soonest)
    }
}

fn order((a, than): (&Room, Weighed), (b, other): (&Room, Weighed)) -> Ordering {
    /// Costs nearer than this are equal, seconds: what is estimated is not known to the millisecond.
    const EQUAL_S: f64 = 5e-3;
    // While nobody knows what work costs on either, only what is cached there says more than how full they are.
    let known = a.flow.is_known() || b.flow.is_known();
    let differ = known || than.cached != other.cached;
    if differ && (than.cost_s - other.cost_s).abs() > EQUAL_S {
        return than.cost_s.total_cmp(&other.cost_s);
    }
    a.load().total_cmp(&b.load()).then(a.placed_ever.cmp(&b.placed_ever))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        ids::{ModelName, ServerId, Tier},
        schedule::{Blocks, block_tokens},
        snapshot::{Capacity, ServedModel},
    };

    /// A room in which other work of so many tokens and sequences is placed.
    fn room(id: &str, kv: u64, placed_tokens: u64, placed: u32) -> Room {
        let mut room = Room::new(id.into(), &Rules::default());
        room.usable = true;
        let capacity =
            Capacity { kv_tokens: Some(Tokens(kv)), max_running: Some(4), ..Capacity::default() };
        room.adopt(&[ServedModel::ready("m".into(), None)], &capacity);
        room.claimed = Tokens(placed_tokens);
        room.placed = placed;
        room.requests = placed;
        room
    }

    fn need<'a>(model: &'a ModelName, blocks: &'a Blocks, tokens: u64) -> Need<'a> {
        Need {
            model,
            tokens: Tokens(tokens),
            input: Tokens(tokens),
            span: Tokens::ZERO,
            sequences: 1,
            tier: Tier::Standard,
            blocks,
            tried: &[],
        }
    }

    fn chosen(rooms: &[Room], need: Need<'_>) -> Result<usize, Choice> {
        let now = Instant::now();
        match choose(rooms, need, &mut Known::default(), &Rules::default(), now).0 {
            Choice::Here(at, _) => Ok(at),
            choice => Err(choice),
        }
    }

    fn pick(rooms: &[Room], tokens: u64, tried: &[ServerId]) -> Result<usize, Choice> {
        chosen(rooms, Need { tried, ..need(&"m".into(), &Blocks::default(), tokens) })
    }

    #[test]
    fn the_least_loaded_server_that_fits_is_taken() {
        let rooms = [room("a", 1000, 500, 1), room("b", 1000, 300, 1), room("c", 100, 0, 0)];
        assert_eq!(pick(&rooms, 400, &[]), Ok(1));
        assert_eq!(pick(&rooms, 100, &[]), Ok(2));
        // Larger than c, so it waits for room elsewhere; larger than all, it waits for one to be empty.
        assert_eq!(pick(&rooms, 900, &[]), Err(Choice::Full));
        assert_eq!(pick(&rooms, 5000, &[]), Err(Choice::Full));
        let empty = [room("a", 1000, 0, 0), room("c", 100, 0, 0)];
        assert_eq!(pick(&empty, 5000, &[]), Ok(0));
        assert_eq!(pick(&empty, 900, &["a".into()]), Ok(1));
        let all = ["a".into(), "b".into(), "c".into()];
        assert_eq!(pick(&rooms, 1, &all), Err(Choice::Nobody));
    }

    #[test]
    fn sequences_are_room_too() {
        assert_eq!(pick(&[room("a", 100_000, 400, 4)], 1, &[]), Err(Choice::Full));
        let many = |rooms: &[Room], sequences| {
            chosen(rooms, Need { sequences, ..need(&"m".into(), &Blocks::default(), 1) })
        };
        let rooms = [room("a", 100_000, 400, 2)];
        assert_eq!(many(&rooms, 2), Ok(0));
        assert_eq!(many(&rooms, 3), Err(Choice::Full));
        // More than the server ever runs at once: it runs alone.
        assert_eq!(many(&rooms, 5), Err(Choice::Full));
        assert_eq!(many(&[room("a", 100_000, 0, 0)], 5), Ok(0));
        assert_eq!(many(&[room("a", 100_000, 0, 0)], u32::MAX), Ok(0));
    }

    #[test]
    fn down_is_told_from_full_and_from_nobody() {
        let mut rooms = [room("a", 100, 0, 0)];
        rooms[0].usable = false;
        assert_eq!(pick(&rooms, 1, &[]), Err(Choice::Down));
        let other = "other".into();
        assert_eq!(chosen(&rooms, need(&other, &Blocks::default(), 1)), Err(Choice::Nobody));
    }

    #[test]
    fn a_server_whose_window_is_too_small_is_passed_over() {
        let mut rooms = [room("small", 1000, 0, 0), room("wide", 1000, 500, 1)];
        rooms[0].models[0].context_window = Some(Tokens(64));
        rooms[1].models[0].context_window = Some(Tokens(4096));
        let wide = |span: u64| {
            chosen(&rooms, Need { span: Tokens(span), ..need(&"m".into(), &Blocks::default(), 10) })
        };
        assert_eq!(wide(60), Ok(0));
        assert_eq!(wide(100), Ok(1));
        assert_eq!(wide(5000), Err(Choice::Nobody));
    }

    #[test]
    fn a_weaker_server_counts_as_fuller() {
        let mut rooms = [room("slow", 1000, 0, 0), room("fast", 1000, 0, 0)];
        rooms[0].weight = 0.5;
        rooms[1].placed_ever = 9;
        assert_eq!(pick(&rooms, 1, &[]), Ok(1));
        // But not as full without end: it takes what the fast one has no room for.
        let mut rooms = [room("slow", 1000, 0, 0), room("fast", 1000, 900, 3)];
        rooms[0].weight = 0.5;
        assert_eq!(pick(&rooms, 100, &[]), Ok(0));
    }

    #[test]
    fn idle_servers_take_turns() {
        let mut rooms = [room("a", 100, 0, 0), room("b", 100, 0, 0)];
        rooms[0].placed_ever = 1;
        assert_eq!(pick(&rooms, 1, &[]), Ok(1));
    }

    #[test]
    fn blocks_too_small_to_hash_are_taken_together() {
        assert_eq!(
            [None, Some(1), Some(5), Some(16), Some(64)].map(block_tokens),
            [16, 16, 20, 16, 64]
        );
    }
}
