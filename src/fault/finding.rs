//! One thing that is known against a card.

use super::{Condition, Needs};
use tokio::time::Instant;

/// Weight of a card that works, but is not what it should be, where nothing was measured: a healthy one
/// is preferred, and this one still carries what the others have no room for.
pub(super) const UNSURE_WEIGHT: f64 = 0.8;

/// Why something is held against a card. Each cause is held once at most, which bounds what is remembered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Cause {
    /// It does not answer, or the driver does not list it any more.
    Gone,
    /// An Xid of the reboot class.
    RebootXid,
    /// The driver says what it needs.
    Recovery,
    /// An Xid of the reset class.
    ResetXid,
    /// An Xid that concerns NVLink.
    NvLinkXid,
    /// Such an Xid of another card, which one server uses together with this one.
    Neighbour,
    /// Memory errors that ECC could not correct.
    Uncorrected,
    /// The driver called poisoned data fatal.
    Poison,
    /// The driver called the card unavailable.
    Unavailable,
    /// No spare row was left for a broken one.
    RemapFailed,
    /// Xids of the application class again and again.
    Repeated,
    /// An Xid of the application class, or an unknown one.
    OneXid,
    /// Its readings fail, though it is not lost.
    Silent,
    /// Rows or pages wait for a reset to be replaced.
    Pending,
    /// Signs of wear, too many in an hour.
    Wear,
    /// It protects itself by lower clocks.
    Slow,
    /// It is as hot as it may get.
    Hot,
    /// An NVLink that was up is down.
    LinkDown,
    /// NVLinks make errors.
    LinkErrors,
    /// The connection to the host is narrower or slower under load than it was.
    Narrow,
    /// The connection to the host sends much again.
    Replays,
    /// The driver asks for something that we do not know.
    Other,
}

impl Cause {
    /// A reset of the card, or a reboot, takes this away.
    pub(super) const fn ends_with_reset(self) -> bool {
        matches!(
            self,
            Self::RebootXid
                | Self::ResetXid
                | Self::NvLinkXid
                | Self::Uncorrected
                | Self::Poison
                | Self::Unavailable
                | Self::LinkDown
                | Self::LinkErrors
        )
    }
}

/// What is held against a card.
#[derive(Clone, Debug)]
pub(super) struct Finding {
    /// The state that it asks for.
    pub condition: Condition,
    /// What the operator must do about it.
    pub needs: Option<Needs>,
    /// In words.
    pub text: String,
    /// Share of its full work that the card is good for; 1.0 where this does not lower it.
    pub weight: f64,
    /// When it is forgotten by itself.
    pub until: Option<Instant>,
}

impl Finding {
    /// Something that takes the card's servers out.
    pub(super) fn drain(needs: Needs, text: String) -> Self {
        Self { condition: Condition::Draining, needs: Some(needs), text, weight: 1.0, until: None }
    }

    /// The card is gone.
    pub(super) fn lost(needs: Needs, text: String) -> Self {
        Self { condition: Condition::Lost, ..Self::drain(needs, text) }
    }

    /// Something that may have harmed what ran there.
    pub(super) fn suspect(text: String) -> Self {
        Self { condition: Condition::Suspect, needs: None, text, weight: 1.0, until: None }
    }

    /// Something that makes the card less than it should be.
    pub(super) fn degraded(needs: Option<Needs>, text: String, weight: f64) -> Self {
        Self { condition: Condition::Degraded, needs, text, weight, until: None }
    }

    /// The same, forgotten at some time.
    pub(super) fn until(self, until: Instant) -> Self {
        Self { until: Some(until), ..self }
    }
}
