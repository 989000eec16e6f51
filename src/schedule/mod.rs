//! Placement: which server takes a request, and whether it fits now.
//!
//! A server takes a request when its free token room holds input plus expected output and it may run as
//! many more sequences as the request has. Where its memory grows with its work, its GPUs must have that, too
//! (`memory`). Of those that fit, the least loaded takes it.

pub mod breaker;
pub mod catalog;
pub mod hung;
pub mod memory;
pub mod pace;

use crate::{
    ids::{ModelName, ServerId},
    snapshot::{Capacity, ServedModel},
    units::Tokens,
};
use memory::MemoryRoom;
use std::{cmp::Ordering, collections::BTreeMap};

/// Sequences at once on a server that tells no limit and has none configured.
pub const RUNNING_UNKNOWN: u32 = 256;

/// The least weight that counts: a card may be slow, but it does not become infinitely full by that.
const WEIGHT_LEAST: f64 = 0.05;

/// What one server holds for us and can hold.
#[derive(Clone, Debug)]
pub struct Room {
    /// Which server.
    pub id: ServerId,
    /// It is up, its breaker is closed, it is not drained.
    pub usable: bool,
    /// Share of its full work that it is good for, above 0.0 up to 1.0: a card that runs slower counts as
    /// fuller than it is.
    pub weight: f64,
    /// Models it serves.
    pub models: Vec<ServedModel>,
    /// What it can hold.
    pub capacity: Capacity,
    /// KV tokens of the requests that we placed there.
    pub placed_tokens: Tokens,
    /// Sequences of the requests that we placed there.
    pub placed: u32,
    /// Requests that we placed there.
    pub requests: u32,
    /// What it may still use of its GPUs' memory, where that grows with its work and can be told.
    pub memory: Option<MemoryRoom>,
    /// Readings of its memory since start.
    pub readings: u64,
    /// Requests that we placed there, by model, of models that are loaded when they are asked for.
    pub busy: BTreeMap<ModelName, u32>,
    /// Requests placed there since start; spreads work over idle servers.
    pub placed_ever: u64,
}

impl Room {
    /// An empty room.
    pub fn new(id: ServerId) -> Self {
        Self {
            id,
            usable: false,
            weight: 1.0,
            models: Vec::new(),
            capacity: Capacity::default(),
            placed_tokens: Tokens::ZERO,
            placed: 0,
            requests: 0,
            memory: None,
            readings: 0,
            busy: BTreeMap::new(),
            placed_ever: 0,
        }
    }

    /// It serves the model with a window that is wide enough, and did not have the request yet; usable
    /// or not.
    pub fn may_take(&self, need: Need<'_>) -> bool {
        let served = self.models.iter().find(|served| served.name == *need.model);
        let wide = |window: Option<Tokens>| window.is_none_or(|window| need.span <= window);
        served.is_some_and(|served| wide(served.context_window)) && !need.tried.contains(&self.id)
    }

    fn max_running(&self) -> u32 {
        self.capacity.max_running.unwrap_or(RUNNING_UNKNOWN)
    }

    /// KV room that a request takes up here. One that needs more than the whole server takes the whole
    /// server: it runs alone or never.
    pub fn claim(&self, need: Tokens) -> Tokens {
        self.capacity.kv_tokens.map_or(need, |all| need.min(all))
    }

    /// Sequences that a request takes up here, by the same rule.
    pub fn claim_sequences(&self, sequences: u32) -> u32 {
        sequences.clamp(1, self.max_running().max(1))
    }

    /// KV room in all; a server that tells none is taken to have enough.
    fn size(&self) -> Tokens {
        self.capacity.kv_tokens.unwrap_or(Tokens(u64::MAX))
    }

    fn fits(&self, need: Need<'_>) -> bool {
        let tokens = self
            .capacity
            .kv_tokens
            .is_none_or(|all| self.placed_tokens.plus(self.claim(need.tokens)) <= all);
        let placed = self.placed.saturating_add(self.claim_sequences(need.sequences));
        tokens && placed <= self.max_running() && self.memory_fits(need)
    }

    /// Share of this server that is taken, by tokens or by sequences, whichever is scarcer.
    fn load(&self) -> f64 {
        let sequences = f64::from(self.placed) / f64::from(self.max_running().max(1));
        let tokens = self.capacity.kv_tokens.map_or(0.0, |all| self.placed_tokens.share_of(all));
        sequences.max(tokens)
    }

    /// The load that decides: by how much this server is filled for what it is good for. A weaker one is
    /// passed over while it is idle, too, by no more than one sequence of load.
    fn weighed_load(&self) -> f64 {
        let weight = self.weight.clamp(WEIGHT_LEAST, 1.0);
        let handicap = (1.0 / weight - 1.0) / f64::from(self.max_running().max(1));
        self.load() / weight + handicap
    }
}

/// What a request needs.
#[derive(Clone, Copy, Debug)]
pub struct Need<'a> {
    /// The model.
    pub model: &'a ModelName,
    /// Input plus expected output, in tokens.
    pub tokens: Tokens,
    /// What one sequence of it must have room for in the context window.
    pub span: Tokens,
    /// Answers that it makes at once: `n` times its prompts.
    pub sequences: u32,
    /// Servers that had it already.
    pub tried: &'a [ServerId],
}

/// What can be done for it now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Choice {
    /// This room takes it.
    Here(usize),
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

/// Chooses a room. A request larger than every server waits for the largest and has it alone; it never
/// squeezes into a small one while a large one exists.
pub fn choose(rooms: &[Room], need: Need<'_>) -> Choice {
    let open = |room: &Room| room.may_take(need);
    let largest = rooms.iter().filter(|room| open(room) && room.usable).map(Room::size).max();
    let enough = need.tokens.min(largest.unwrap_or(need.tokens));
    let mut best: Option<(usize, &Room)> = None;
    let mut choice = Choice::Nobody;
    for (index, room) in rooms.iter().enumerate().filter(|(_, room)| open(room)) {
        if !room.usable {
            if choice == Choice::Nobody {
                choice = Choice::Down;
            }
            continue;
        }
        if !room.memory_could_fit(need) {
            if choice != Choice::Full {
                choice = Choice::Cramped;
            }
            continue;
        }
        // It would never take this one, so there is nothing to wait for here.
        if room.size() < enough {
            continue;
        }
        choice = Choice::Full;
        if room.fits(need) && best.is_none_or(|(_, other)| order(room, other).is_lt()) {
            best = Some((index, room));
        }
    }
    best.map_or(choice, |(index, _)| Choice::Here(index))
}

fn order(a: &Room, b: &Room) -> Ordering {
    a.weighed_load().total_cmp(&b.weighed_load()).then(a.placed_ever.cmp(&b.placed_ever))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn room(id: &str, kv: u64, placed_tokens: u64, placed: u32) -> Room {
        Room {
            usable: true,
            models: vec![ServedModel::ready("m".into(), None)],
            capacity: Capacity {
                kv_tokens: Some(Tokens(kv)),
                max_running: Some(4),
                ..Capacity::default()
            },
            placed_tokens: Tokens(placed_tokens),
            placed,
            ..Room::new(id.into())
        }
    }

    fn pick(rooms: &[Room], tokens: u64, tried: &[ServerId]) -> Choice {
        choose(
            rooms,
            Need {
                model: &"m".into(),
                tokens: Tokens(tokens),
                span: Tokens::ZERO,
                sequences: 1,
                tried,
            },
        )
    }

    #[test]
    fn the_least_loaded_server_that_fits_is_taken() {
        let rooms = [room("a", 1000, 500, 1), room("b", 1000, 300, 1), room("c", 100, 0, 0)];
        assert_eq!(pick(&rooms, 400, &[]), Choice::Here(1));
        assert_eq!(pick(&rooms, 100, &[]), Choice::Here(2));
        // Larger than c, so it waits for room elsewhere; larger than all, it waits for one to be empty.
        assert_eq!(pick(&rooms, 900, &[]), Choice::Full);
        assert_eq!(pick(&rooms, 5000, &[]), Choice::Full);
        let empty = [room("a", 1000, 0, 0), room("c", 100, 0, 0)];
        assert_eq!(pick(&empty, 5000, &[]), Choice::Here(0));
        assert_eq!(pick(&empty, 900, &["a".into()]), Choice::Here(1));
        assert_eq!(pick(&rooms, 1, &["a".into(), "b".into(), "c".into()]), Choice::Nobody);
    }

    #[test]
    fn sequences_are_room_too() {
        let rooms = [room("a", 100_000, 400, 4)];
        assert_eq!(pick(&rooms, 1, &[]), Choice::Full);
        let many = |rooms: &[Room], sequences| {
            choose(
                rooms,
                Need {
                    model: &"m".into(),
                    tokens: Tokens(1),
                    span: Tokens::ZERO,
                    sequences,
                    tried: &[],
                },
            )
        };
        let rooms = [room("a", 100_000, 400, 2)];
        assert_eq!(many(&rooms, 2), Choice::Here(0));
        assert_eq!(many(&rooms, 3), Choice::Full);
        // More than the server ever runs at once: it runs alone.
        assert_eq!(many(&rooms, 5), Choice::Full);
        assert_eq!(many(&[room("a", 100_000, 0, 0)], 5), Choice::Here(0));
        assert_eq!(many(&[room("a", 100_000, 0, 0)], u32::MAX), Choice::Here(0));
    }

    #[test]
    fn down_is_told_from_full_and_from_nobody() {
        let mut rooms = [room("a", 100, 0, 0)];
        rooms[0].usable = false;
        assert_eq!(pick(&rooms, 1, &[]), Choice::Down);
        assert_eq!(
            choose(
                &rooms,
                Need {
                    model: &"other".into(),
                    tokens: Tokens(1),
                    span: Tokens::ZERO,
                    sequences: 1,
                    tried: &[]
                }
            ),
            Choice::Nobody
        );
    }

    #[test]
    fn a_server_whose_window_is_too_small_is_passed_over() {
        let mut rooms = [room("small", 1000, 0, 0), room("wide", 1000, 500, 1)];
        rooms[0].models[0].context_window = Some(Tokens(64));
        rooms[1].models[0].context_window = Some(Tokens(4096));
        let model: ModelName = "m".into();
        let need = |span: u64| Need {
            model: &model,
            tokens: Tokens(10),
            span: Tokens(span),
            sequences: 1,
            tried: &[],
        };
        assert_eq!(choose(&rooms, need(60)), Choice::Here(0));
        assert_eq!(choose(&rooms, need(100)), Choice::Here(1));
        assert_eq!(choose(&rooms, need(5000)), Choice::Nobody);
    }

    #[test]
    fn a_weaker_server_counts_as_fuller() {
        let mut rooms = [room("slow", 1000, 0, 0), room("fast", 1000, 0, 0)];
        rooms[0].weight = 0.5;
        rooms[1].placed_ever = 9;
        assert_eq!(pick(&rooms, 1, &[]), Choice::Here(1));
        // But not as full without end: it takes what the fast one has no room for.
        let mut rooms = [room("slow", 1000, 0, 0), room("fast", 1000, 900, 3)];
        rooms[0].weight = 0.5;
        assert_eq!(pick(&rooms, 1, &[]), Choice::Here(0));
    }

    #[test]
    fn idle_servers_take_turns() {
        let mut rooms = [room("a", 100, 0, 0), room("b", 100, 0, 0)];
        rooms[0].placed_ever = 1;
        assert_eq!(pick(&rooms, 1, &[]), Choice::Here(1));
    }
}
