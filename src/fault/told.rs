//! What the driver told by an event, and what is held against the card for it.

use super::{
    Needs,
    finding::{Cause, Finding},
    machine::Machine,
    xid::{Class, Xid},
};
use crate::snapshot::EventKind;
use std::time::Duration;
use tokio::time::Instant;

/// A card stays suspect for this long after what made it so.
pub(super) const SUSPECT_FOR: Duration = Duration::from_secs(60);

/// Application faults are counted over this time.
pub(super) const REPEATED_WINDOW: Duration = Duration::from_secs(10 * 60);

/// One program that fails is often told by several Xids, one for each of its channels or units. What comes
/// within this time is one fault.
const ONE_INCIDENT: Duration = Duration::from_secs(1);

/// Signs of wear are counted over this time.
const WEAR_WINDOW: Duration = Duration::from_secs(60 * 60);

impl Machine {
    /// An event about this card. True if its servers should be tried.
    pub(super) fn hear(&mut self, kind: EventKind, now: Instant) -> bool {
        match kind {
            EventKind::Xid(number) => return self.xid(Xid::of(number), now),
            EventKind::EccDoubleBit => {
                let text = "ECC found an error that it could not correct";
                self.hold(Cause::Uncorrected, Finding::drain(Needs::ResetGpu, text.into()));
            }
            EventKind::FatalPoison => {
                let text = "poisoned data was used; the driver calls it fatal";
                self.hold(Cause::Poison, Finding::drain(Needs::ResetGpu, text.into()));
            }
            EventKind::Unavailable => {
                let text = "the driver says that the GPU cannot be used any more";
                self.hold(Cause::Unavailable, Finding::lost(Needs::ResetGpu, text.into()));
            }
            EventKind::NonFatalPoison => {
                return self.suspect("poisoned data was found and kept away".into(), now);
            }
            EventKind::RecoveryAction => self.memory.ask_recovery(),
            EventKind::EccSingleBit | EventKind::MigChanged | EventKind::Other(_) => {}
        }
        false
    }

    fn xid(&mut self, xid: Xid, now: Instant) -> bool {
        match xid.class {
            // 79 says that nothing on the card can be reached; the others leave it running.
            Class::Reboot if xid.number == 79 => {
                self.hold(Cause::RebootXid, Finding::lost(Needs::RebootHost, xid.to_string()));
            }
            Class::Reboot => {
                self.hold(Cause::RebootXid, Finding::drain(Needs::RebootHost, xid.to_string()));
            }
            Class::Reset => {
                self.hold(Cause::ResetXid, Finding::drain(Needs::ResetGpu, xid.to_string()));
            }
            Class::NvLink => {
                self.hold(Cause::NvLinkXid, Finding::drain(Needs::ResetGpu, xid.to_string()));
            }
            Class::Application => {
                self.application_fault(xid, now);
                return self.suspect(xid.to_string(), now);
            }
            Class::Unknown => return self.suspect(xid.to_string(), now),
            Class::Note => {
                if xid.tells_wear() {
                    self.wears(xid, now);
                }
            }
            // What it needs is known with the next reading.
            Class::Recovery => self.memory.ask_recovery(),
        }
        false
    }

    fn suspect(&mut self, what: String, now: Instant) -> bool {
        let text = format!("{what}: what ran there may have failed, so its servers are tried");
        self.hold(Cause::OneXid, Finding::suspect(text).until(now + SUSPECT_FOR));
        true
    }

    /// One fault may be a program's own. The same again and again is a server that needs a restart, or a
    /// card that needs one.
    fn application_fault(&mut self, xid: Xid, now: Instant) {
        let last = self.application.last();
        if last.is_none_or(|at| now.saturating_duration_since(at) >= ONE_INCIDENT) {
            self.application.note(now);
        }
        if self.application.within(REPEATED_WINDOW, now) {
            let text = format!(
                "{} application faults within {} minutes, the last one {xid}",
                super::machine::REPEATED,
                REPEATED_WINDOW.as_secs() / 60
            );
            let finding = Finding::drain(Needs::RestartServer, text);
            self.hold(Cause::Repeated, finding.until(now + REPEATED_WINDOW));
        }
    }

    fn wears(&mut self, xid: Xid, now: Instant) {
        self.wear.note(now);
        if self.wear.within(WEAR_WINDOW, now) {
            let count = super::machine::WEAR;
            let text = format!("{count} signs of worn memory within an hour, the last one {xid}");
            let finding =
                Finding::degraded(Some(Needs::Service), text, super::finding::UNSURE_WEIGHT);
            self.hold(Cause::Wear, finding.until(now + WEAR_WINDOW));
        }
    }
}
