//! Who shares in one card, for the time between two readings.
//!
//! Parts of the card (MIG devices, else the card itself) by their size; in a part servers and others by the
//! utilisation of their processes where it is known, else servers by what their requests did; in a server
//! requests by what they did, and where nobody showed anything, by time.

use super::{
    Key, Places, Work, split,
    works::{Done, Progress},
};
use crate::{
    ids::ServerId,
    snapshot::{GpuProcess, GpuState},
};
use std::{collections::BTreeMap, sync::Arc};

/// What shares are counted in on their way down, so that each split is a whole number.
const WHOLE: u64 = 1 << 40;

/// One who can have a share.
#[derive(Clone, Debug)]
pub(super) enum Who {
    /// A request at work.
    Live(Arc<Work>),
    /// Requests that are over, all of one key.
    Done(Key),
    /// Somebody else: another process, or work that did not come through here.
    Foreign,
}

/// What requests did between two readings, by server.
#[derive(Debug, Default)]
pub(super) struct Active {
    servers: BTreeMap<ServerId, Vec<(Who, Done)>>,
}

/// One share of a card.
#[derive(Clone, Debug)]
pub(super) struct Share {
    pub who: Who,
    pub weight: u64,
}

/// How a card was shared.
#[derive(Debug, Default)]
pub(super) struct Shared {
    /// Empty while nobody used it.
    pub shares: Vec<Share>,
    /// The share of time that it worked, 0.0 to 1.0.
    pub busy: f64,
}

impl Active {
    pub(super) fn of(progress: Progress) -> Self {
        let mut active = Self::default();
        let live = progress.live.into_iter().map(|(work, done)| (Who::Live(work), done));
        let done = progress.done.into_iter().map(|(key, done)| (Who::Done(key), done));
        for (who, done) in live.chain(done) {
            // Who came in this very moment did nothing yet.
            if done != Done::default() {
                let server = match &who {
                    Who::Live(work) => work.key.server.clone(),
                    Who::Done(key) => key.server.clone(),
                    Who::Foreign => continue,
                };
                active.servers.entry(server).or_default().push((who, done));
            }
        }
        active
    }

    /// What each server did, thousandths of a weighted token.
    pub(super) fn weights(&self) -> impl Iterator<Item = (&ServerId, u64)> {
        self.servers.iter().map(|(server, items)| (server, weight_of(items)))
    }
}

fn weight_of(items: &[(Who, Done)]) -> u64 {
    items.iter().fold(0, |sum, (_, done)| sum.saturating_add(done.weight))
}

fn worked_of(items: &[(Who, Done)]) -> u64 {
    items.iter().fold(0, |sum, (_, done)| sum.saturating_add(micros(done)))
}

fn micros(done: &Done) -> u64 {
    u64::try_from(done.worked.as_micros()).unwrap_or(u64::MAX)
}

/// Weights by what was done; by time where nobody showed anything.
fn by_work(weights: Vec<u64>, times: impl FnOnce() -> Vec<u64>) -> Vec<u64> {
    if weights.iter().any(|weight| *weight > 0) { weights } else { times() }
}

/// How a card with these MIG devices was shared.
pub(super) fn shared(
    card: &GpuState,
    migs: &[&GpuState],
    places: &Places,
    active: &Active,
) -> Shared {
    let mut parts: Vec<&GpuState> = migs.to_vec();
    // Where a server is said to be on the whole of a card that is cut, it has a part of its own.
    if migs.is_empty() || places.on(&card.id).any(|server| active.servers.contains_key(server)) {
        parts.push(card);
    }
    let size = |part: &GpuState| part.memory_total.map_or(1, |bytes| bytes.get().max(1));
    let all: u64 = migs.iter().map(|part| size(part)).sum();
    let mut sizes = Vec::new();
    let mut users = Vec::new();
    for part in parts {
        let used = users_of(part, places, active);
        if !used.is_empty() {
            sizes.push(size(part));
            users.push(used);
        }
    }
    let mut shares = Vec::new();
    for (weight, used) in split(WHOLE, &sizes).into_iter().zip(users) {
        let weights: Vec<u64> = used.iter().map(|(_, weight)| *weight).collect();
        for (weight, (user, _)) in split(weight, &weights).into_iter().zip(used) {
            match user {
                None => shares.push(Share { who: Who::Foreign, weight }),
                Some(items) => shares.extend(within(items, weight)),
            }
        }
    }
    let busy = match card.utilisation_percent {
        Some(percent) => f64::from(percent.min(100)) / 100.0,
        None if shares.is_empty() => 0.0,
        None if migs.is_empty() => 1.0,
        None => (sizes.iter().sum::<u64>() as f64 / all.max(1) as f64).min(1.0),
    };
    Shared { shares, busy }
}

/// The requests of one server.
fn within(items: &[(Who, Done)], weight: u64) -> impl Iterator<Item = Share> {
    let weights = items.iter().map(|(_, done)| done.weight).collect();
    let weights = by_work(weights, || items.iter().map(|(_, done)| micros(done)).collect());
    let parts = split(weight, &weights).into_iter().zip(items);
    parts.map(|(weight, (who, _))| Share { who: who.clone(), weight })
}

/// A user of a part, a server's requests or somebody else, and its weight.
type User<'a> = (Option<&'a [(Who, Done)]>, u64);

fn users_of<'a>(part: &GpuState, places: &Places, active: &'a Active) -> Vec<User<'a>> {
    let here: Vec<(&ServerId, &'a [(Who, Done)])> = places
        .on(&part.id)
        .filter_map(|server| Some((server, active.servers.get(server)?.as_slice())))
        .collect();
    let processes = part.processes.as_deref().unwrap_or_default();
    let told = processes.iter().any(|process| process.utilisation_percent.is_some());
    let used = |process: &GpuProcess| u64::from(process.utilisation_percent.unwrap_or(0));
    if here.is_empty() {
        let computing = part.utilisation_percent.is_some_and(|percent| percent > 0)
            || processes.iter().any(|process| used(process) > 0);
        return if computing { vec![(None, 1)] } else { Vec::new() };
    }
    // A server of ours without requests of ours works for somebody else.
    let is_ours = |process: &GpuProcess| match places.server_of(process.pid) {
        Some(server) => here.iter().any(|(here, _)| *here == server),
        None => !places.is_foreign(&part.id, process.pid),
    };
    let sum = |ours: bool| {
        let those = processes.iter().filter(|process| is_ours(process) == ours);
        those.map(used).sum::<u64>()
    };
    let (ours, foreign) = if told { (sum(true).max(1), sum(false)) } else { (1, 0) };
    let by_process: Vec<Option<u64>> = here
        .iter()
        .map(|(server, _)| {
            let own: Vec<&GpuProcess> = processes
                .iter()
                .filter(|process| places.server_of(process.pid) == Some(*server))
                .collect();
            // Short work falls between the driver's samples: it is not nothing.
            (told && !own.is_empty()).then(|| own.into_iter().map(used).sum::<u64>().max(1))
        })
        .collect();
    let weights = by_process.into_iter().collect::<Option<Vec<u64>>>().unwrap_or_else(|| {
        let weights = here.iter().map(|(_, items)| weight_of(items)).collect();
        by_work(weights, || here.iter().map(|(_, items)| worked_of(items)).collect())
    });
    let both = split(WHOLE, &[ours, foreign]);
    let (ours, foreign) = (both.first().copied().unwrap_or(0), both.last().copied().unwrap_or(0));
    let mut users: Vec<User<'a>> = split(ours, &weights)
        .into_iter()
        .zip(here)
        .map(|(weight, (_, items))| (Some(items), weight))
        .collect();
    if foreign > 0 {
        users.push((None, foreign));
    }
    users
}
