//! Memory of GPUs, for rooms: readings come in, refusals with figures go out.

use super::{Ask, Dispatch, state::State, turn::need};
use crate::{
    error::{Reason, Refusal},
    ids::{ServerId, ServerKind},
    schedule::{
        Scheduler,
        memory::{self, Card, Held},
    },
    units::{Bytes, Tokens},
};
use std::{collections::HashMap, time::Duration};

/// When a caller may ask again: whoever took the memory seldom gives it back sooner.
const RETRY: Duration = Duration::from_secs(10);

/// What one server has to do, for judging its memory.
#[derive(Clone, Debug)]
pub struct Placed {
    /// Which server.
    pub server: ServerId,
    /// Which program it is.
    pub kind: ServerKind,
    /// It listens on this host's loopback.
    pub local: bool,
    /// Tokens placed there.
    pub tokens: Tokens,
    /// It loads models when they are asked for.
    pub on_demand: bool,
    /// What its loaded models take then.
    pub loaded: Bytes,
    /// It loads one now.
    pub loading: bool,
}

impl Dispatch {
    /// What each server has to do.
    pub fn placed(&self) -> Vec<Placed> {
        let state = self.lock();
        let placed = state.scheduler.rooms.iter().filter_map(|room| {
            let berth = state.berths.get(&room.id)?;
            let loading = room.models.iter().filter_map(|model| model.loading);
            let loaded = loading.filter(|loading| loading.loaded);
            Some(Placed {
                server: room.id.clone(),
                kind: berth.server.kind(),
                local: berth.server.address().is_some_and(|(host, _)| is_loopback(host)),
                tokens: room.placed_tokens(),
                on_demand: room.models.iter().any(|model| model.loading.is_some()),
                loading: room.is_loading(),
                loaded: loaded.fold(Bytes::ZERO, |sum, loading| sum.plus(loading.memory)),
            })
        });
        placed.collect()
    }

    /// Takes a reading of cards, and of the servers whose memory grows on them. A server that is not among
    /// them is not guarded any more.
    pub fn guard(&self, cards: Vec<Card>, mut held: HashMap<ServerId, Held>) {
        let mut state = self.lock();
        let Scheduler { rooms, cards: known, .. } = &mut state.scheduler;
        *known = cards;
        for room in rooms.iter_mut() {
            room.hold(held.remove(&room.id));
        }
        memory::settle(rooms, known);
        state.hand_out();
    }
}

impl State {
    /// What is said when the memory for a request is nowhere: of the server that comes nearest.
    pub(super) fn no_memory(&self, ask: &Ask) -> Refusal {
        let need = need(ask);
        let rooms = self.scheduler.rooms.iter().filter(|room| room.usable && room.may_take(need));
        let nearest = rooms.max_by_key(|room| room.memory.as_ref().map(|memory| memory.most()));
        let text = nearest.and_then(|room| memory::explain(room, &self.scheduler.cards, need));
        let text = text.unwrap_or_else(|| "GPU memory is short.".to_owned());
        Refusal::new(Reason::NoGpuMemory, format!("{text} Retry later.")).retry_after(RETRY)
    }
}

fn is_loopback(host: &str) -> bool {
    let ip = host.trim_start_matches('[').trim_end_matches(']').parse::<std::net::IpAddr>();
    ip.map_or(host.eq_ignore_ascii_case("localhost"), |ip| ip.to_canonical().is_loopback())
}
