//! Memory of GPUs in admission: what a server whose memory grows with its work may still be given.
//!
//! A request may go to such a server when what it could need is free on each of the server's cards, above a
//! floor, and not promised to others yet. Promised is what requests that were placed may still come to need:
//! their tokens' worth less the growth that is seen already.
//!
//! **Between two readings** nothing is assumed to come free: what was placed since counts in full, what ended
//! gives back only what it was promised since. **Memory that a server keeps** when its work is done (a pool) serves its
//! next requests: it counts once several readings in a row saw more of it than the work needed.
//!
//! **A card that the server itself filled** is its normal state. While no foreign process took any memory since
//! the server was first seen, the floor is at most half of what the idle server leaves free, and one
//! request may always run alone: without us it would run, too, and it teaches what a token takes.

pub mod growth;

use super::{Need, Room};
use crate::{
    ids::{GpuId, ModelName},
    units::{Bytes, Tokens},
};

/// So many readings in a row must see memory without work before it counts as kept.
const KEPT_READINGS: usize = 4;

/// One card, as it was read last.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Card {
    /// Which.
    pub gpu: GpuId,
    /// Its number, for people.
    pub index: u32,
    /// Memory that nobody holds.
    pub free: Bytes,
    /// Memory that must stay free.
    pub floor: Bytes,
    /// The foreign process that holds most, in words with figures.
    pub foreign: Option<String>,
}

/// What was found out about a server whose memory grows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    /// What a token of work takes, on all its cards together.
    pub per_token: Bytes,
    /// The cards that it is on, as indices into the list of cards. It takes the same on each.
    pub cards: Vec<usize>,
    /// The cards that it may load a model to, each as far as there is room.
    pub load_cards: Vec<usize>,
    /// Its memory above what it holds without work.
    pub growth: Bytes,
    /// No foreign process took memory on its cards since it was first seen.
    pub undisturbed: bool,
}

/// The memory that a server may still use for us.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MemoryRoom {
    per_token: Bytes,
    cards: Vec<usize>,
    load_cards: Vec<usize>,
    growth: Bytes,
    undisturbed: bool,
    /// Promised at the last reading, and not seen in its growth.
    outstanding: Bytes,
    /// Promised since the last reading, and not given back.
    since: Bytes,
    /// Growth that its work did not need at each of the last readings. A request that ended in the moment of one
    /// makes it look so; one that ended at each of them is a pool.
    idle_growth: [Bytes; KEPT_READINGS],
    /// The least of them: it stays for the next requests.
    kept: Bytes,
    /// Which reading this is.
    reading: u64,
    /// The most that a request may need now.
    left: Bytes,
    /// The most that a request may need once all of ours have ended.
    most: Bytes,
    /// The same two for a request whose model must be loaded first, before anything is unloaded.
    load_left: Bytes,
    load_most: Bytes,
    /// Nothing on its cards is promised to other servers.
    others_quiet: bool,
}

/// What a grant took of a server's memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Promise {
    bytes: Bytes,
    reading: u64,
}

/// The memory side of a server, for operators.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub struct MemoryView {
    /// What a token of work is taken to need.
    pub per_token_bytes: Bytes,
    /// What it holds above what it holds without work.
    pub growth_bytes: Bytes,
    /// The most that one more request may need.
    pub left_bytes: Bytes,
    /// The most that one may need whose model must be loaded first, before the server unloads others for it.
    pub load_left_bytes: Bytes,
    /// A foreign process took memory on its cards since it was first seen.
    pub squeezed: bool,
}

fn times(tokens: Tokens, per_token: Bytes) -> Bytes {
    Bytes(tokens.get().saturating_mul(per_token.get()))
}

fn part(bytes: Bytes, of: usize) -> Bytes {
    Bytes(bytes.get().div_ceil(u64::try_from(of).unwrap_or(u64::MAX).max(1)))
}

impl MemoryRoom {
    /// For operators.
    pub const fn view(&self) -> MemoryView {
        MemoryView {
            per_token_bytes: self.per_token,
            growth_bytes: self.growth,
            left_bytes: self.left,
            load_left_bytes: self.load_left,
            squeezed: !self.undisturbed,
        }
    }

    /// The most that a request may need once all of ours have ended, its model loaded already.
    pub const fn most(&self) -> Bytes {
        self.most
    }

    const fn promised(&self) -> Bytes {
        self.outstanding.plus(self.since).less(self.kept)
    }

    fn floor(&self, card: &Card) -> Bytes {
        if !self.undisturbed {
            return card.floor;
        }
        let idle_free = card.free.plus(Bytes(self.growth.get() / self.cards.len().max(1) as u64));
        card.floor.min(Bytes(idle_free.get() / 2))
    }

    /// The least of a figure over its cards, times their number.
    fn over_cards(&self, cards: &[Card], figure: impl Fn(usize, &Card) -> Bytes) -> Bytes {
        let known = self.cards.iter().filter_map(|index| Some((*index, cards.get(*index)?)));
        let least = known.map(|(index, card)| figure(index, card)).min().unwrap_or_default();
        Bytes(least.get().saturating_mul(self.cards.len() as u64))
    }
}

/// A figure summed over some cards.
fn sum_over(indices: &[usize], cards: &[Card], figure: impl Fn(usize, &Card) -> Bytes) -> Bytes {
    let known = indices.iter().filter_map(|index| Some((*index, cards.get(*index)?)));
    known.fold(Bytes::ZERO, |sum, (index, card)| sum.plus(figure(index, card)))
}

impl Room {
    /// A model that must be loaded first for this request, and what that takes.
    fn to_load(&self, model: &ModelName) -> Option<Bytes> {
        let loading = self.models.iter().find(|served| served.name == *model)?.loading?;
        (!loading.loaded && !self.busy.contains_key(model)).then_some(loading.memory)
    }

    /// It loads a model that a request of ours asked for.
    pub fn is_loading(&self) -> bool {
        let mut used = self.models.iter().filter(|served| self.busy.contains_key(&served.name));
        used.any(|served| served.loading.is_some_and(|loading| !loading.loaded))
    }

    /// What the server would unload itself to make room for a model: those loaded that nobody uses.
    fn unloadable(&self, model: &ModelName, busy: bool) -> Bytes {
        let loaded = self.models.iter().filter(|served| {
            served.name != *model && (busy || !self.busy.contains_key(&served.name))
        });
        let loaded = loaded.filter_map(|served| served.loading.filter(|loading| loading.loaded));
        loaded.fold(Bytes::ZERO, |sum, loading| sum.plus(loading.memory))
    }

    /// What a request could need of the memory of GPUs, the loading of its model included.
    pub fn memory_need(&self, need: Need<'_>) -> Bytes {
        let Some(memory) = &self.memory else { return Bytes::ZERO };
        let load = self.to_load(need.model);
        if load.is_none() && memory.cards.is_empty() {
            // It runs, and on no card.
            return Bytes::ZERO;
        }
        times(self.claim(need.tokens), memory.per_token).plus(load.unwrap_or_default())
    }

    /// Whether the memory for a request is there now.
    pub(super) fn memory_fits(&self, need: Need<'_>) -> bool {
        let Some(memory) = &self.memory else { return true };
        let asked = self.memory_need(need);
        match self.to_load(need.model) {
            Some(_) => asked <= memory.load_left.plus(self.unloadable(need.model, false)),
            None => {
                let alone = memory.undisturbed && memory.others_quiet && self.requests == 0;
                alone || asked <= memory.left
            }
        }
    }

    /// Whether it would be there once all our requests have ended. If not, somebody else must give some back.
    pub fn memory_could_fit(&self, need: Need<'_>) -> bool {
        let Some(memory) = &self.memory else { return true };
        let most = match self.to_load(need.model) {
            Some(_) => memory.load_most.plus(self.unloadable(need.model, true)),
            None if memory.undisturbed => return true,
            None => memory.most,
        };
        self.memory_need(need) <= most
    }

    /// Promises the memory of a request that is placed here. [`settle`] must follow.
    pub fn promise(&mut self, need: Need<'_>) -> Promise {
        let bytes = self.memory_need(need);
        if self.models.iter().any(|served| served.name == *need.model && served.loading.is_some()) {
            *self.busy.entry(need.model.clone()).or_default() += 1;
        }
        let Some(memory) = &mut self.memory else { return Promise::default() };
        memory.since = memory.since.plus(bytes);
        Promise { bytes, reading: memory.reading }
    }

    /// Takes a promise back when its request has ended. [`settle`] must follow.
    pub fn unpromise(&mut self, promise: Promise, model: &ModelName) {
        if let Some(users) = self.busy.get_mut(model) {
            *users = users.saturating_sub(1);
            if *users == 0 {
                self.busy.remove(model);
            }
        }
        // What was promised before the last reading may be in use until the next one shows that it is not.
        if let Some(memory) = &mut self.memory
            && memory.reading == promise.reading
        {
            memory.since = memory.since.less(promise.bytes);
        }
    }

    /// Takes over a new reading; `None` where its memory does not grow, or is not known. [`settle`] must
    /// follow.
    pub fn hold(&mut self, held: Option<Held>) {
        let Some(held) = held else {
            self.memory = None;
            return;
        };
        let loading = self.models.iter().filter(|served| self.busy.contains_key(&served.name));
        let loading = loading.filter_map(|served| served.loading.filter(|one| !one.loaded));
        let loading = loading.fold(Bytes::ZERO, |sum, one| sum.plus(one.memory));
        let demand = times(self.placed_tokens(), held.per_token).plus(loading);
        let before = self.memory.take().unwrap_or_default();
        // Never that of a promise from before: neither one of nothing, nor one of an earlier guard.
        self.readings = self.readings.wrapping_add(1).max(1);
        let mut idle_growth = before.idle_growth;
        idle_growth.rotate_right(1);
        if let Some(first) = idle_growth.first_mut() {
            *first = held.growth.less(demand);
        }
        self.memory = Some(MemoryRoom {
            outstanding: demand.less(held.growth),
            since: Bytes::ZERO,
            idle_growth,
            kept: idle_growth.into_iter().min().unwrap_or_default(),
            reading: self.readings,
            per_token: held.per_token,
            cards: held.cards,
            load_cards: held.load_cards,
            growth: held.growth,
            undisturbed: held.undisturbed,
            ..MemoryRoom::default()
        });
    }
}

/// Says anew what each server may still be given. What is promised to one lessens all others on its cards.
pub fn settle(rooms: &mut [Room], cards: &[Card]) {
    if rooms.iter().all(|room| room.memory.is_none()) {
        return;
    }
    let mut promised = vec![Bytes::ZERO; cards.len()];
    for memory in rooms.iter().filter_map(|room| room.memory.as_ref()) {
        let each = part(memory.promised(), memory.cards.len());
        for index in &memory.cards {
            if let Some(sum) = promised.get_mut(*index) {
                *sum = sum.plus(each);
            }
        }
    }
    for memory in rooms.iter_mut().filter_map(|room| room.memory.as_mut()) {
        let own = part(memory.promised(), memory.cards.len());
        let others = |index: usize| promised.get(index).copied().unwrap_or_default().less(own);
        let left = memory.over_cards(cards, |index, card| {
            card.free.less(memory.floor(card)).less(others(index))
        });
        let most = memory.over_cards(cards, |_, card| card.free.less(memory.floor(card)));
        let quiet = memory.cards.iter().all(|index| others(*index) == Bytes::ZERO);
        memory.left = left.plus(memory.kept).less(memory.outstanding.plus(memory.since));
        memory.most = most.plus(memory.growth);
        let above = |index: usize, card: &Card| card.free.less(card.floor).less(others(index));
        let load_left = sum_over(&memory.load_cards, cards, above);
        memory.load_left = load_left.less(memory.outstanding.plus(memory.since));
        memory.load_most =
            sum_over(&memory.load_cards, cards, |_, card| card.free.less(card.floor));
        memory.others_quiet = quiet;
    }
}

/// Why a request does not fit into a server's memory: what it needs, what is free, and who has the rest.
pub fn explain(room: &Room, cards: &[Card], need: Need<'_>) -> Option<String> {
    let memory = room.memory.as_ref()?;
    let above = |card: &Card| card.free.less(card.floor);
    let of = |indices: &[usize]| -> Vec<&Card> {
        indices.iter().filter_map(|index| cards.get(*index)).collect()
    };
    let asked = room.memory_need(need);
    let (what, asked, cards) = match room.to_load(need.model) {
        Some(_) => {
            let what = format!("Loading model '{}' and running this request needs", need.model);
            (what, asked, of(&memory.load_cards))
        }
        None => {
            let each = part(asked, memory.cards.len());
            let tightest = of(&memory.cards).into_iter().min_by_key(|card| above(card));
            ("This request needs".to_owned(), each, tightest.into_iter().collect())
        }
    };
    let first = cards.first()?;
    let free = cards.iter().fold(Bytes::ZERO, |sum, card| sum.plus(above(card)));
    let names: Vec<String> = cards.iter().map(|card| card.index.to_string()).collect();
    let mut text = format!(
        "{what} about {} on GPU {}; {} are free there above the floor of {}",
        asked.human(),
        names.join(", "),
        free.human(),
        first.floor.human()
    );
    for foreign in cards.iter().filter_map(|card| card.foreign.as_ref()) {
        text.push_str("; ");
        text.push_str(foreign);
    }
    text.push('.');
    Some(text)
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
