//! What a command does to the state. A command that is refused changes nothing.

use super::{
    cards::CardName,
    command::{Command, HELP, Pairs, Wrong, wrong},
    mig,
    state::{Line, State},
};

/// Events that are kept in the file. Whoever waits has long had the older ones.
const EVENTS_KEPT: usize = 256;

/// The most lines of a file, which is also what the library reads of one kind.
const LINES_MAX: usize = 4096;

/// Changes the state. What comes back is to be printed.
pub(super) fn apply(state: &mut State, command: &Command) -> Result<Option<String>, Wrong> {
    if state.lines().count() >= LINES_MAX {
        return Err(wrong(format_args!("the state file has {LINES_MAX} lines already")));
    }
    match command {
        Command::Set { gpu, pairs } => set(state, *gpu, pairs)?,
        Command::Unset { gpu, keys } => unset(state, *gpu, keys)?,
        Command::Proc { gpu, pid, pairs } => process(state, *gpu, *pid, pairs)?,
        Command::End { gpu, pid } => end(state, *gpu, *pid)?,
        Command::Link { gpu, link, pairs } => {
            card(state, *gpu)?;
            let head = format!("link {gpu} {link}");
            state.mark(&head);
            let line = state.line_mut(&head).ok_or_else(|| wrong("no such link"))?;
            pairs.iter().for_each(|(key, value)| line.set(key, value));
        }
        Command::Event { gpu, kind, pairs } => {
            if let Some(gpu) = gpu {
                count_error(card(state, *gpu)?, kind);
            }
            event(state, *gpu, kind, pairs);
        }
        Command::Lose { gpu } => {
            card(state, *gpu)?;
            state.mark(&format!("lost {gpu}"));
        }
        Command::Find { gpu } => {
            card(state, *gpu)?;
            state.remove(|line| line.head() == format!("lost {gpu}"));
        }
        Command::Events { lost: true } => state.mark("lost_events"),
        Command::Events { lost: false } => {
            state.remove(|line| line.head() == "lost_events");
        }
        Command::Order { verb, call, value } => {
            let start = format!("{verb} {call}=");
            state.remove(|line| line.head().starts_with(&start));
            state.push(Line::new(format!("{start}{value}")));
        }
        Command::Release => {
            state.remove(|line| ["hang", "slow", "return"].contains(&line.kind()));
        }
        Command::Driver { mark } => {
            state.remove(|line| ["unloaded", "mismatch"].contains(&line.kind()));
            mark.iter().for_each(|mark| state.mark(mark));
        }
        Command::Cards { count, card } => cards(state, *count, *card),
        Command::Mig { gpu, parts } => {
            card(state, *gpu)?;
            mig::divide(state, *gpu, *parts)?;
            event(state, Some(*gpu), "mig", &Vec::new());
        }
        Command::Reset { gpu } => reset(state, *gpu)?,
        Command::Show => return Ok(Some(state.text())),
        Command::Help => return Ok(Some(HELP.to_owned())),
        Command::Play { .. } => return Err(wrong("only a running simulation can play a script")),
    }
    Ok(None)
}

pub(super) fn card(state: &mut State, gpu: usize) -> Result<&mut Line, Wrong> {
    let cards = state.cards();
    state
        .line_mut(&format!("gpu {gpu}"))
        .ok_or_else(|| wrong(format_args!("there is no GPU {gpu}; the node has {cards}")))
}

fn set(state: &mut State, gpu: usize, pairs: &Pairs) -> Result<(), Wrong> {
    let line = card(state, gpu)?;
    let mut next = line.clone();
    pairs.iter().for_each(|(key, value)| next.set(key, value));
    let says = |wanted: &str| pairs.iter().any(|(key, _)| key == wanted);
    // Free memory is what is left, unless somebody wants it to be a lie.
    if !says("mem_free") && ["mem_total", "mem_used", "mem_reserved"].into_iter().any(says) {
        fill(&mut next)?;
    }
    *line = next;
    Ok(())
}

/// Makes the free memory what the used and the reserved leave.
fn fill(line: &mut Line) -> Result<(), Wrong> {
    let (Some(total), Some(used)) = (line.number("mem_total"), line.number("mem_used")) else {
        return Ok(());
    };
    let reserved = line.number("mem_reserved").unwrap_or(0);
    let free = total.checked_sub(used.saturating_add(reserved)).ok_or_else(|| {
        let most = total.saturating_sub(reserved);
        wrong(format_args!("the memory does not suffice: {used} of {most} bytes"))
    })?;
    line.set("mem_free", free);
    Ok(())
}

fn unset(state: &mut State, gpu: usize, keys: &[String]) -> Result<(), Wrong> {
    let line = card(state, gpu)?;
    if let Some(absent) = keys.iter().find(|key| line.get(key).is_none()) {
        return Err(wrong(format_args!("GPU {gpu} has no {absent}")));
    }
    for key in keys {
        line.unset(key);
    }
    Ok(())
}

// === Processes ===

fn is_process(line: &Line, gpu: usize, pid: u32) -> bool {
    line.kind() == "proc" && line.is_about(gpu) && line.number("pid") == Some(u64::from(pid))
}

fn process(state: &mut State, gpu: usize, pid: u32, pairs: &Pairs) -> Result<(), Wrong> {
    card(state, gpu)?;
    let old = state.lines().find(|line| is_process(line, gpu, pid)).cloned();
    let mut new = old.clone().unwrap_or_else(|| Line::new(format!("proc {gpu}")));
    new.set("pid", pid);
    pairs.iter().for_each(|(key, value)| new.set(key, value));
    // On a copy: the memory of two lines may be concerned, and the second may refuse.
    let mut next = state.clone();
    next.remove(|line| is_process(line, gpu, pid));
    old.iter().try_for_each(|old| charge(&mut next, gpu, old, false))?;
    charge(&mut next, gpu, &new, true)?;
    next.push(new);
    *state = next;
    Ok(())
}

fn end(state: &mut State, gpu: usize, pid: u32) -> Result<(), Wrong> {
    card(state, gpu)?;
    let old = state.lines().find(|line| is_process(line, gpu, pid)).cloned();
    let old = old.ok_or_else(|| wrong(format_args!("no process {pid} is on GPU {gpu}")))?;
    state.remove(|line| is_process(line, gpu, pid));
    charge(state, gpu, &old, false)
}

/// Puts a process's memory on its card, and on its MIG device; or takes it off.
fn charge(state: &mut State, gpu: usize, process: &Line, on: bool) -> Result<(), Wrong> {
    let Some(memory) = process.number("mem") else { return Ok(()) };
    let instance = |line: &Line| (line.number("gi"), line.number("ci"));
    let of = instance(process);
    let uses = |line: &&mut Line| match line.kind() {
        "gpu" => line.is_about(gpu),
        "mig" => line.is_about(gpu) && of.0.is_some() && instance(line) == of,
        _ => false,
    };
    for line in state.lines_mut().filter(uses) {
        let Some(used) = line.number("mem_used") else { continue };
        let used = if on { used.saturating_add(memory) } else { used.saturating_sub(memory) };
        line.set("mem_used", used);
        fill(line)?;
    }
    Ok(())
}

// === Events ===

/// A memory error that is reported is counted, too.
fn count_error(line: &mut Line, kind: &str) {
    let counters = match kind {
        "sbe" => ["ecc_corrected", "ecc_corrected_total"],
        "dbe" => ["ecc_uncorrected", "ecc_uncorrected_total"],
        _ => return,
    };
    for counter in counters {
        if let Some(count) = line.number(counter) {
            line.set(counter, count.saturating_add(1));
        }
    }
}

pub(super) fn event(state: &mut State, gpu: Option<usize>, kind: &str, pairs: &Pairs) {
    let is_event = |line: &Line| line.kind() == "event";
    let last = state.lines().filter(|line| is_event(line)).filter_map(Line::index).max();
    let number = last.unwrap_or(0).saturating_add(1);
    let mut line = Line::new(format!("event {number}"));
    match gpu {
        Some(gpu) => line.set("gpu", gpu),
        None => line.set("gpu", "none"),
    }
    line.set("type", kind);
    pairs.iter().for_each(|(key, value)| line.set(key, value));
    state.push(line);
    let oldest = number.saturating_sub(EVENTS_KEPT as u64);
    state.remove(|line| is_event(line) && line.index().is_some_and(|index| index <= oldest));
}

// === The node ===

fn cards(state: &mut State, count: usize, card: Option<CardName>) {
    let first = state.line("gpu 0").and_then(|line| line.get("name"));
    let card = card.or_else(|| first.and_then(CardName::by_name)).unwrap_or(CardName::H200);
    state.remove(|line| line.head().starts_with("count="));
    state.remove(|line| (count..super::command::CARDS_MAX).any(|gpu| line.is_about(gpu)));
    for gpu in 0..count {
        if state.line(&format!("gpu {gpu}")).is_none() {
            card.add(gpu, state);
        }
    }
}

fn reset(state: &mut State, gpu: usize) -> Result<(), Wrong> {
    card(state, gpu)?;
    let processes: Vec<u32> = state
        .lines()
        .filter(|line| line.kind() == "proc" && line.is_about(gpu))
        .filter_map(|line| line.number("pid")?.try_into().ok())
        .collect();
    processes.iter().try_for_each(|pid| end(state, gpu, *pid))?;
    state.remove(|line| line.head() == format!("lost {gpu}"));
    let line = card(state, gpu)?;
    let zeros = [
        "energy_mj",
        "ecc_corrected",
        "ecc_uncorrected",
        "retired_pending",
        "rows_pending",
        "recovery",
        "pcie_replays",
        "violation_power_ns",
        "violation_thermal_ns",
        "util",
        "mem_util",
    ];
    zeros.iter().for_each(|key| line.set_if_there(key, 0));
    line.set_if_there("throttle", "0x1");
    if line.get("energy").is_some() {
        let epoch = line.number("energy_epoch").unwrap_or(0);
        line.set("energy_epoch", epoch.wrapping_add(1));
    }
    Ok(())
}
