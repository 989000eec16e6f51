//! All cards of the host: readings and events go to their machines, and what follows comes out.

use super::{
    Condition, GpuHealth, Needs,
    finding::{Cause, Finding},
    machine::Machine,
    xid::{Class, Xid},
};
use crate::{
    ids::GpuId,
    snapshot::{EventKind, GpuEvent, GpuPlane},
};
use std::{collections::BTreeMap, time::Duration};
use tokio::time::Instant;

/// Cards and MIG devices that are followed. A driver that lists more is broken.
const GPUS_MAX: usize = 512;

/// The condition of every GPU.
#[derive(Debug)]
pub struct Faults {
    machines: BTreeMap<GpuId, Machine>,
    stale_after: Duration,
    /// When the last round ended that was read.
    read_at: Option<Instant>,
    /// The driver answered when it was asked last.
    driver: bool,
}

/// A GPU's state changed.
#[derive(Clone, Debug, PartialEq)]
pub struct Change {
    /// Position in the driver's list, if it was ever listed.
    pub index: Option<u32>,
    /// The state before.
    pub from: Condition,
    /// How it is now.
    pub now: GpuHealth,
}

impl Change {
    /// It got worse; what is known to be wrong is worse than what is not known.
    pub const fn is_worse(&self) -> bool {
        grave(self.now.condition) > grave(self.from)
    }
}

/// What the GPUs under a server mean for it.
#[derive(Clone, Debug, PartialEq)]
pub struct Ground {
    /// Why nothing new may go there: which GPU, what it has, what it needs.
    pub stop: Option<String>,
    /// One of them is lost: what was sent there and has not begun will not.
    pub lost: bool,
    /// Share of its full work that it is good for, above 0.0 up to 1.0: its weakest GPU's.
    pub weight: f64,
}

/// What became of an event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Heard {
    /// The whole card that it is about; `None` where that cannot be told.
    pub card: Option<GpuId>,
    /// The GPUs and MIG devices whose servers should be tried.
    pub probe: Vec<GpuId>,
}

impl Faults {
    /// Nothing is known yet. Readings older than `stale_after` are not believed any more.
    pub const fn new(stale_after: Duration) -> Self {
        Self { machines: BTreeMap::new(), stale_after, read_at: None, driver: false }
    }

    /// What the driver says now. A round that was read already changes nothing.
    pub fn read(&mut self, plane: &GpuPlane, now: Instant) {
        let state = match plane {
            GpuPlane::Off => return,
            GpuPlane::NoDriver(_) => {
                self.driver = false;
                return;
            }
            GpuPlane::Driver(state) => state,
        };
        if self.driver && self.read_at == Some(state.read_at) {
            return;
        }
        (self.driver, self.read_at) = (true, Some(state.read_at));
        let is_listed = |id: &GpuId| state.gpus.iter().any(|gpu| gpu.id == *id);
        self.machines.retain(|id, machine| {
            let gone = machine.index.is_some() && !is_listed(id);
            if gone {
                machine.missing();
            }
            // MIG devices are made and removed at an operator's wish.
            !gone || machine.parent.is_none()
        });
        for gpu in &state.gpus {
            if let Some(machine) = self.machine(&gpu.id, now) {
                machine.read(gpu, state.session, now);
            }
        }
    }

    /// Something happened. `together`: the GPUs of each server, for faults that spread over links.
    pub fn hear<'a>(
        &mut self,
        event: &GpuEvent,
        together: impl IntoIterator<Item = &'a [GpuId]>,
        now: Instant,
    ) -> Heard {
        let Some(unit) = event.gpu.clone().or_else(|| self.only_card()) else {
            return Heard { card: None, probe: Vec::new() };
        };
        let parent = self.machines.get(&unit).and_then(|machine| machine.parent.clone());
        let card = parent.unwrap_or_else(|| unit.clone());
        // What a program did stays in its MIG device; all else is the whole card's.
        let class = match event.kind {
            EventKind::Xid(number) => Some(Xid::of(number).class),
            _ => None,
        };
        let about = match class {
            Some(Class::Application | Class::Unknown) => unit,
            _ => card.clone(),
        };
        let probe = self.machine(&about, now).is_some_and(|machine| machine.hear(event.kind, now));
        if class == Some(Class::NvLink) {
            self.spread(&card, together, now);
        }
        let probe = if probe { self.parts(&about) } else { Vec::new() };
        Heard { card: Some(card), probe }
    }

    /// A GPU and the MIG devices that it is cut into.
    pub fn parts(&self, gpu: &GpuId) -> Vec<GpuId> {
        let parts = self.machines.iter().filter(|(_, one)| one.parent.as_ref() == Some(gpu));
        std::iter::once(gpu.clone()).chain(parts.map(|(id, _)| id.clone())).collect()
    }

    /// The driver answers and its readings are young enough to be believed.
    pub fn is_read(&self, now: Instant) -> bool {
        let young = |at| now.saturating_duration_since(at) <= self.stale_after;
        self.driver && self.read_at.is_some_and(young)
    }

    /// The processes that served from this GPU were all replaced.
    pub fn restarted(&mut self, gpu: &GpuId) {
        if let Some(machine) = self.machines.get_mut(gpu) {
            machine.restarted();
        }
    }

    /// GPUs whose faults end with new server processes, and since when they wait for those.
    pub fn await_restart(&self) -> Vec<(GpuId, Instant)> {
        let waiting = self.machines.iter();
        waiting.filter_map(|(id, one)| Some((id.clone(), one.awaits_restart()?))).collect()
    }

    /// An operator says that a GPU is well, or is gone for good. What is still wrong comes back with the
    /// next reading. False if there is no such GPU.
    pub fn clear(&mut self, gpu: &GpuId) -> bool {
        let known = self.machines.contains_key(gpu);
        let of_it =
            |id: &GpuId, machine: &Machine| id == gpu || machine.parent.as_ref() == Some(gpu);
        for (_, machine) in self.machines.iter_mut().filter(|(id, one)| of_it(id, one)) {
            machine.clear();
        }
        // What the driver does not list has nothing to come back with.
        self.machines.retain(|id, machine| id != gpu || machine.listed);
        known
    }

    /// Draws the consequences; tells whose state changed. To be called after each change, and now and then
    /// for what time alone changes.
    pub fn settle(&mut self, now: Instant) -> Vec<Change> {
        self.unspread();
        let unread = !self.is_read(now);
        let settled = self.machines.iter_mut().filter_map(|(id, machine)| {
            let (from, _) = machine.settle(unread, now)?;
            Some(Change { index: machine.index, from, now: machine.health(id.clone()) })
        });
        settled.collect()
    }

    /// How each GPU is, in the driver's order. A MIG device has its card's faults beside its own.
    pub fn health(&self) -> Vec<GpuHealth> {
        let mut ids: Vec<(&GpuId, &Machine)> = self.machines.iter().collect();
        ids.sort_by_key(|(id, one)| (one.index.unwrap_or(u32::MAX), one.parent.is_some(), *id));
        ids.into_iter().map(|(id, machine)| self.whole(id, machine)).collect()
    }

    /// What these GPUs mean for the server that uses them; `None` where none of them is known.
    pub fn ground<'a>(&self, gpus: impl IntoIterator<Item = &'a GpuId>) -> Option<Ground> {
        let known = gpus.into_iter().filter_map(|id| {
            let machine = self.machines.get(id)?;
            Some((machine.index, self.whole(id, machine)))
        });
        let known: Vec<(Option<u32>, GpuHealth)> = known.collect();
        let stopping = known.iter().filter(|(_, health)| health.condition.stops());
        let stop = stopping.max_by_key(|(_, health)| health.condition).map(|(index, health)| {
            let which = index.map_or_else(|| health.gpu.to_string(), |index| index.to_string());
            let why = health.reasons.first().map_or("", String::as_str);
            let needs = health.needs.map_or("", Needs::order);
            let then = if needs.is_empty() { "" } else { "; " };
            format!("GPU {which} is {}: {why}{then}{needs}", health.condition.as_str())
        });
        let weight = known.iter().map(|(_, health)| health.weight).reduce(f64::min)?;
        let lost = known.iter().any(|(_, health)| health.condition == Condition::Lost);
        Some(Ground { stop, lost, weight })
    }

    /// Its position in the driver's list.
    pub fn index(&self, gpu: &GpuId) -> Option<u32> {
        self.machines.get(gpu).and_then(|machine| machine.index)
    }

    /// A machine, made if there is room for one more.
    fn machine(&mut self, id: &GpuId, now: Instant) -> Option<&mut Machine> {
        if self.machines.len() >= GPUS_MAX && !self.machines.contains_key(id) {
            return None;
        }
        Some(self.machines.entry(id.clone()).or_insert_with(|| Machine::new(now)))
    }

    fn only_card(&self) -> Option<GpuId> {
        let mut cards = self.machines.iter().filter(|(_, machine)| machine.parent.is_none());
        let (only, _) = cards.next()?;
        cards.next().is_none().then(|| only.clone())
    }

    /// An NVLink fault is one of all cards that a server computes on together.
    fn spread<'a>(
        &mut self,
        origin: &GpuId,
        together: impl IntoIterator<Item = &'a [GpuId]>,
        now: Instant,
    ) {
        let which =
            self.index(origin).map_or_else(|| origin.to_string(), |index| index.to_string());
        for group in together.into_iter().filter(|group| group.contains(origin)) {
            for peer in group.iter().filter(|peer| *peer != origin) {
                let Some(machine) = self.machine(peer, now) else { continue };
                let text =
                    format!("a server uses it together with GPU {which}, whose NVLink failed");
                machine.neighbour_of.insert(origin.clone());
                machine.hold(Cause::Neighbour, Finding::drain(Needs::ResetGpu, text));
            }
        }
    }

    /// When the origin is well again, so are those that were only drawn in.
    fn unspread(&mut self) {
        let ill: Vec<GpuId> = self
            .machines
            .iter()
            .filter(|(_, machine)| machine.findings.contains_key(&Cause::NvLinkXid))
            .map(|(id, _)| id.clone())
            .collect();
        for machine in self.machines.values_mut() {
            machine.neighbour_of.retain(|origin| ill.contains(origin));
            if machine.neighbour_of.is_empty() {
                machine.drop(Cause::Neighbour);
            }
        }
    }

    /// A unit's health, with its card's.
    fn whole(&self, id: &GpuId, machine: &Machine) -> GpuHealth {
        let own = machine.health(id.clone());
        let Some(card) = machine.parent.as_ref().and_then(|parent| self.machines.get(parent))
        else {
            return own;
        };
        let card = card.health(id.clone());
        let (mut graver, lesser) =
            if grave(card.condition) > grave(own.condition) { (card, own) } else { (own, card) };
        graver.weight = graver.weight.min(lesser.weight);
        graver.needs = graver.needs.or(lesser.needs);
        graver.reasons.extend(lesser.reasons);
        graver
    }
}

/// How grave a state is beside another: what is known to be wrong goes before what is not known.
const fn grave(condition: Condition) -> u8 {
    match condition {
        Condition::Ok => 0,
        Condition::Degraded => 1,
        Condition::Suspect => 2,
        Condition::Unknown => 3,
        Condition::Draining => 4,
        Condition::Lost => 5,
    }
}
