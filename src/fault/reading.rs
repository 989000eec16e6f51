//! What a round of readings says about a card, and what is held against it for that.

use super::{
    Needs,
    finding::{Cause, Finding, UNSURE_WEIGHT},
    machine::Machine,
    sign::{Growth, Lasting},
};
use crate::snapshot::{Answering, GpuState, NvLink, RecoveryAction};
use std::{collections::BTreeMap, time::Duration};
use tokio::time::Instant;

/// A card that was lost answers again when it did so for this many rounds.
const BACK_ROUNDS: u32 = 3;

/// Rounds in a row in which nothing can be read before that is held against the card.
const SILENT_ROUNDS: u32 = 3;

/// Slowing down, and heat, count when they last this long ...
const SLOW_ENTER: Duration = Duration::from_secs(3);
/// ... and until they were away for this long.
const SLOW_LEAVE: Duration = Duration::from_secs(30);

/// The least weight of a card that slows down: it still works.
const SLOW_WEIGHT_LEAST: f64 = 0.1;

/// By how much the clocks must change before the weight follows.
const SLOW_STEP: f64 = 0.1;

/// Clocks tell what a card is worth only while it works, percent.
const WORKING_PERCENT: u32 = 20;

/// From here on the connection to the host runs as fast as it can, percent: idle cards lower it.
const LOADED_PERCENT: u32 = 50;
/// A connection that is narrower than it was counts when it lasts this long under load.
const NARROW_ENTER: Duration = Duration::from_secs(5);

/// Errors of a connection are held against the card for this long.
const ERRORS_FOR: Duration = Duration::from_secs(10 * 60);
/// PCIe packets sent again in a minute that are still ordinary: NVIDIA's own health check (DCGM) takes
/// the same figure.
const REPLAYS_MOST: u64 = 8;
/// CRC errors of one NVLink in a minute that matter: DCGM takes 100 a second.
const CRC_LEAST: u64 = 6_000;

/// NVLinks that are followed; no card has as many.
const LINKS_MAX: u32 = 64;

/// What earlier readings left behind.
#[derive(Debug, Default)]
pub(super) struct Memory {
    /// The driver's session in which it answered last.
    session: Option<u64>,
    /// Rounds in a row in which it answered.
    answered: u32,
    /// Rounds in a row in which it did not, without being lost.
    silent: u32,
    /// Counters since the driver was loaded or the card reset, as they were last.
    energy_mj: Option<u64>,
    uncorrected: Option<u64>,
    /// What the driver said last that the card needs.
    recovery: Option<RecoveryAction>,
    /// The driver told that this changed; so many rounds may have been under way before.
    recovery_asked: Option<u8>,
    slow: Lasting,
    /// Clock beside the highest one, as it was last seen while slow and at work.
    slow_ratio: Option<f64>,
    hot: Lasting,
    /// Links that were up, one bit each.
    links_up: u64,
    links_down: Lasting,
    /// Of each link: CRC, replay and recovery errors.
    link_errors: BTreeMap<u32, [Growth; 3]>,
    /// The most that PCIe had under load: generation, lanes.
    pcie_best: (u32, u32),
    narrow: Lasting,
    replays: Growth,
}

impl Memory {
    /// The next readings say what the driver wants done.
    pub(super) fn ask_recovery(&mut self) {
        self.recovery_asked = Some(1);
    }

    /// What was known of connections begins anew.
    pub(super) fn forget_links(&mut self) {
        self.links_up = 0;
        self.links_down = Lasting::default();
        self.link_errors.clear();
        self.replays.reset();
    }
}

impl Machine {
    /// One round of readings.
    pub(super) fn read(&mut self, gpu: &GpuState, session: u64, now: Instant) {
        (self.index, self.listed) = (Some(gpu.index), true);
        self.parent = gpu.mig.as_ref().map(|part| part.parent.clone());
        if !self.answers(&gpu.answering) {
            return;
        }
        self.counters(gpu, session);
        self.recovery(gpu.recovery);
        self.rows(gpu);
        self.speed(gpu, now);
        self.links(&gpu.nvlinks, now);
        self.host(gpu, now);
    }

    /// The driver does not list it any more.
    pub(super) fn missing(&mut self) {
        self.listed = false;
        self.memory.answered = 0;
        let text = "the driver does not list it any more";
        self.hold(Cause::Gone, Finding::lost(Needs::RebootHost, text.into()));
    }

    fn answers(&mut self, answering: &Answering) -> bool {
        match answering {
            Answering::Yes => {
                self.memory.silent = 0;
                self.memory.answered = self.memory.answered.saturating_add(1);
                self.drop(Cause::Silent);
                if self.memory.answered >= BACK_ROUNDS
                    && self.findings.remove(&Cause::Gone).is_some()
                {
                    // A card that was off the bus and is not any more was started anew.
                    self.drop(Cause::RebootXid);
                    self.drop(Cause::Unavailable);
                }
                true
            }
            Answering::Lost(why) => {
                self.memory.answered = 0;
                // NVML has one code for "off the bus" and one for "reset it first".
                let reset = why.contains("reset");
                let needs = if reset { Needs::ResetGpu } else { Needs::RebootHost };
                self.hold(Cause::Gone, Finding::lost(needs, format!("it does not answer: {why}")));
                false
            }
            Answering::No(why) => {
                self.memory.answered = 0;
                self.memory.silent = self.memory.silent.saturating_add(1);
                if self.memory.silent >= SILENT_ROUNDS {
                    self.hold(Cause::Silent, Finding::suspect(format!("its readings fail: {why}")));
                }
                false
            }
        }
    }

    /// Counters that begin with the driver's load or a reset tell both, but a reading that is a little less than
    /// the one before is a bad reading; errors that cannot be corrected
    /// must not come.
    fn counters(&mut self, gpu: &GpuState, session: u64) {
        let uncorrected = gpu.ecc.and_then(|ecc| ecc.uncorrected_volatile);
        let (energy_was, uncorrected_was) = (self.memory.energy_mj, self.memory.uncorrected);
        let energies = energy_was.zip(gpu.energy_mj);
        let errors = uncorrected_was.zip(uncorrected);
        let began_anew = energies.is_some_and(|(was, is)| is < was / 2)
            || errors.is_some_and(|(was, is)| was > 0 && is == 0);
        // A session that was opened anew while the counters went on was only ours, not the driver's.
        let went_on = energies.is_some() || errors.is_some_and(|(was, _)| was > 0);
        let opened_anew = self.memory.session.replace(session).is_some_and(|was| was != session);
        if began_anew || (opened_anew && !went_on) {
            self.was_reset();
            // Nothing that ran there lives on.
            self.restarted();
        } else if let Some((was, is)) = errors
            && is > was
        {
            let text = format!("{} memory errors that ECC could not correct", is - was);
            self.hold(Cause::Uncorrected, Finding::drain(Needs::ResetGpu, text));
        }
        self.memory.energy_mj = gpu.energy_mj.or(energy_was);
        self.memory.uncorrected = uncorrected.or(uncorrected_was);
    }

    /// What the driver says that the card needs. It knows better than any table.
    fn recovery(&mut self, action: Option<RecoveryAction>) {
        let Some(action) = action else { return };
        let says = |what: &str| format!("the driver says: {what}");
        let drain = |needs, what: &str| (Cause::Recovery, Finding::drain(needs, says(what)));
        let held = match action {
            RecoveryAction::None => None,
            RecoveryAction::Reset => Some(drain(Needs::ResetGpu, "it must be reset")),
            RecoveryAction::Reboot => Some(drain(Needs::RebootHost, "the host must be rebooted")),
            RecoveryAction::DrainP2p => {
                Some(drain(Needs::ResetGpu, "traffic between GPUs must end and its links be reset"))
            }
            RecoveryAction::DrainAndReset => {
                Some(drain(Needs::ResetGpu, "all work must end and it must be reset"))
            }
            RecoveryAction::Other(number) => {
                let text = says(&format!("recovery action {number}, which we do not know"));
                Some((Cause::Other, Finding::degraded(Some(Needs::Service), text, UNSURE_WEIGHT)))
            }
        };
        self.drop(Cause::Recovery);
        self.drop(Cause::Other);
        let was = self.memory.recovery.replace(action);
        let asked = match (&held, self.memory.recovery_asked) {
            // This round may have been under way when the driver told.
            (None, Some(rounds)) if rounds > 0 => {
                self.memory.recovery_asked = Some(rounds - 1);
                false
            }
            (_, asked) => {
                self.memory.recovery_asked = None;
                asked.is_some()
            }
        };
        match held {
            Some((cause, finding)) => self.hold(cause, finding),
            None if asked || was.is_some_and(|was| was != RecoveryAction::None) => {
                self.was_reset();
            }
            None => {}
        }
    }

    fn rows(&mut self, gpu: &GpuState) {
        let rows = gpu.remapped_rows;
        let pages = gpu.retired_pages.and_then(|pages| pages.pending);
        let pending = match (rows.map(|rows| rows.pending), pages) {
            (None, None) => None,
            (rows, pages) => Some(rows == Some(true) || pages == Some(true)),
        };
        self.hold_while(Cause::Pending, pending, || {
            let text = "broken memory waits for a reset to be replaced".into();
            Finding::degraded(Some(Needs::ResetGpu), text, UNSURE_WEIGHT)
        });
        self.hold_while(Cause::RemapFailed, rows.map(|rows| rows.failed), || {
            let text = "broken memory could not be replaced: no spare rows are left".into();
            Finding::drain(Needs::Service, text)
        });
    }

    /// Lower clocks and heat.
    fn speed(&mut self, gpu: &GpuState, now: Instant) {
        let slow = gpu.throttle.map(|throttle| throttle.is_slowdown());
        let clocks = gpu.clocks.sm_mhz.zip(gpu.clocks.sm_max_mhz).filter(|(_, most)| *most > 0);
        let works = gpu.utilisation_percent.is_none_or(|percent| percent >= WORKING_PERCENT);
        if slow == Some(true)
            && works
            && let Some((is, most)) = clocks
        {
            // Followed in steps: a weight that trembles would only make noise.
            let ratio = f64::from(is) / f64::from(most);
            let step = self.memory.slow_ratio.is_none_or(|was| (ratio - was).abs() >= SLOW_STEP);
            self.memory.slow_ratio = if step { Some(ratio) } else { self.memory.slow_ratio };
        }
        let ratio = self.memory.slow_ratio;
        let weight = ratio.map_or(UNSURE_WEIGHT, |ratio| ratio.clamp(SLOW_WEIGHT_LEAST, 1.0));
        let lasting = self.memory.slow.look(slow, now, SLOW_ENTER, SLOW_LEAVE);
        if lasting && slow == Some(true) {
            let why: Vec<&str> =
                gpu.throttle.iter().flat_map(|throttle| throttle.names()).collect();
            let at = ratio.map_or_else(String::new, |ratio| {
                format!(", at {:.0} % of its highest clock", ratio * 100.0)
            });
            let text = format!(
                "it protects itself by lower clocks ({}){at}: look at its cooling and its power",
                why.join(", ")
            );
            self.hold(Cause::Slow, Finding::degraded(None, text, weight));
        } else if !lasting {
            self.drop(Cause::Slow);
            self.memory.slow_ratio = ratio.filter(|_| slow == Some(true));
        }
        let heat = gpu.temperature_c.zip(gpu.slowdown_c);
        let hot = heat.map(|(is, most)| most > 0 && is >= most);
        if self.memory.hot.look(hot, now, SLOW_ENTER, SLOW_LEAVE) {
            // While it cools down, the text stays with the heat that it had.
            if let Some((is, most)) = heat.filter(|_| hot == Some(true)) {
                let text = format!("it is at {is} °C; from {most} °C on it slows down");
                self.hold(Cause::Hot, Finding::degraded(None, text, UNSURE_WEIGHT));
            }
        } else {
            self.drop(Cause::Hot);
        }
    }

    fn links(&mut self, links: &[NvLink], now: Instant) {
        let links = links.iter().filter(|link| link.link < LINKS_MAX);
        let (mut listed, mut up) = (0_u64, 0_u64);
        let mut errors = None;
        for link in links {
            listed |= 1 << link.link;
            up |= u64::from(link.active) << link.link;
            let counts = [link.crc_errors, link.replay_errors, link.recovery_errors];
            let grown = self.memory.link_errors.entry(link.link).or_default();
            let limits = [(CRC_LEAST, "CRC"), (1, "replay"), (1, "recovery")];
            for ((growth, count), (least, what)) in grown.iter_mut().zip(counts).zip(limits) {
                let by = count.map_or(0, |count| growth.see(count, now));
                if by >= least {
                    errors = Some(format!("NVLink {} made {by} {what} errors", link.link));
                }
            }
        }
        if let Some(text) = errors {
            let finding = Finding::degraded(Some(Needs::Service), text, UNSURE_WEIGHT);
            self.hold(Cause::LinkErrors, finding.until(now + ERRORS_FOR));
        }
        let down = self.memory.links_up & listed & !up;
        self.memory.links_up |= up;
        let there = (listed != 0).then_some(down != 0);
        if !self.memory.links_down.look(there, now, SLOW_ENTER, SLOW_LEAVE) {
            self.drop(Cause::LinkDown);
        } else if down != 0 {
            let text = format!("NVLink {} was up and is down", down.trailing_zeros());
            let finding = Finding::degraded(Some(Needs::ResetGpu), text, UNSURE_WEIGHT);
            self.hold(Cause::LinkDown, finding);
        }
    }

    /// The connection to the host.
    fn host(&mut self, gpu: &GpuState, now: Instant) {
        let loaded = gpu.utilisation_percent.is_some_and(|percent| percent >= LOADED_PERCENT);
        let has = gpu.pcie.generation.zip(gpu.pcie.width).filter(|_| loaded);
        let best = self.memory.pcie_best;
        let worse = has.map(|(generation, width)| generation < best.0 || width < best.1);
        if let Some((generation, width)) = has {
            self.memory.pcie_best = (best.0.max(generation), best.1.max(width));
        }
        if !self.memory.narrow.look(worse, now, NARROW_ENTER, SLOW_LEAVE) {
            self.drop(Cause::Narrow);
        } else if let Some((generation, width)) = has.filter(|_| worse == Some(true)) {
            let text = format!(
                "PCIe runs at generation {generation} with {width} lanes under load; it had generation {} with {}",
                best.0, best.1
            );
            let finding = Finding::degraded(Some(Needs::Service), text, UNSURE_WEIGHT);
            self.hold(Cause::Narrow, finding);
        }
        let again = gpu.pcie.replays.map_or(0, |replays| self.memory.replays.see(replays, now));
        if again > REPLAYS_MOST {
            let text = format!("PCIe sent {again} packets again within a minute");
            let finding = Finding::degraded(Some(Needs::Service), text, UNSURE_WEIGHT);
            self.hold(Cause::Replays, finding.until(now + ERRORS_FOR));
        }
    }
}
