//! What a text may say, on its way in and out: exact checks, policy and verdicts. Knows no model and no socket.

mod inspect;
pub mod output;
mod passage;
pub mod rules;
pub mod secrets;
mod stages;
pub mod text;
mod verdict;

pub use inspect::{Inspected, Inspector, without};
pub use passage::{Passage, Place, passages, rewritten};
pub use rules::{Origin, Rules};
pub use stages::{Scores, join};
pub use verdict::{
    CONTROL, Finding, HIDDEN, INJECTION, PERSONAL, SECRET, Verdict, bar, bar_of_text, decide,
};

use crate::config::Action;

/// A rule's own action in the policy's words.
const fn of_rule(action: rules::Action) -> Action {
    match action {
        rules::Action::Flag => Action::Flag,
        rules::Action::Sanitise => Action::Sanitise,
        rules::Action::Refuse => Action::Refuse,
    }
}
