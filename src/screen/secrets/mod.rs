//! Secrets and personal data in text: where they are and what they are.
//!
//! A finding is never a guess about meaning. Each kind has a form (a prefix, a length, an alphabet), and
//! where its makers provided one, a checksum that is computed. What has neither needs a word near that
//! names it, and enough disorder. Documented sample keys are found like others; what is plainly a
//! placeholder (`<your key>`, `xxxx`) is not. IP addresses are not looked for: in what models read and
//! write nearly all of them are examples.
//!
//! Ordinary text costs one pass over its bytes by an automaton and one that looks for digits. A detector
//! runs only where one of its signs stands, sees a bounded window, and does bounded work in it.
//!
//! ```text
//! kind      names of kinds           tokens    prefixes of makers
//! alphabet  sets of characters       cloud     AWS, Azure, Telegram
//! checks    checksums                keys      private keys, JSON web tokens
//! view      what a detector sees     assigned  what a word or an address gives away
//! detect    who looks where          number    numbers that states give people
//! search    places to findings       bank      cards and accounts
//! stream    text in pieces           contact   e-mail and telephone
//! ```

mod alphabet;
mod assigned;
mod bank;
mod checks;
mod cloud;
mod contact;
mod detect;
mod keys;
mod kind;
mod number;
mod search;
mod stream;
mod tokens;
mod view;

#[cfg(test)]
mod samples;
#[cfg(test)]
mod tests;

use self::{
    kind::Kinds,
    search::{HELD_MAX, Index, Part, Search},
    view::BACK,
};
pub use self::{
    kind::{Class, Kind, UnknownKind},
    stream::Stream,
};
use std::{
    ops::Range,
    sync::{Arc, LazyLock},
};

/// One finding.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// What it is.
    pub kind: Kind,
    /// Where it is, bytes of the text; always at characters' boundaries. Of an assignment it is the value,
    /// of an address the password.
    pub span: Range<usize>,
}

/// Looks for secrets and personal data. Made once, used from any number of threads; clones share it.
#[derive(Clone, Debug)]
pub struct Finder {
    index: Arc<Index>,
}

impl Finder {
    /// One that looks for these kinds only. Costs about a millisecond.
    pub fn of(kinds: impl IntoIterator<Item = Kind>) -> Self {
        Self { index: Arc::new(Index::new(kinds.into_iter().collect::<Kinds>())) }
    }

    /// The one that looks for every kind.
    pub fn shared() -> &'static Self {
        static ALL: LazyLock<Finder> = LazyLock::new(|| Finder::of(Kind::ALL.iter().copied()));
        &ALL
    }

    /// All findings in a text that is whole, in order and without overlap. Where several claim the same
    /// text they are one, of the kind that comes first.
    pub fn find(&self, text: &str) -> Vec<Found> {
        let mut found = Vec::new();
        Search::default().advance(&self.index, Part { text, base: 0, last: true }, &mut found);
        found
    }

    /// The longest tail that a caller who gets a text in pieces must keep so that nothing is missed, bytes.
    /// [`Stream`] keeps it by itself.
    pub fn reach(&self) -> usize {
        BACK + HELD_MAX + self.index.longest()
    }
}

/// The text with each finding replaced by its kind in brackets: `[jwt]`. Neighbours of one kind become one.
/// The findings must be in order, as [`Finder::find`] returns them; those that do not fit the text are
/// passed over.
pub fn mask(text: &str, found: &[Found]) -> String {
    let mut out = String::with_capacity(text.len());
    let mut done = 0;
    let mut before = None;
    for Found { kind, span } in found {
        let (Some(kept), Some(_)) = (text.get(done..span.start), text.get(span.clone())) else {
            continue;
        };
        out.push_str(kept);
        if !(kept.is_empty() && before == Some(*kind)) {
            out.push('[');
            out.push_str(kind.as_str());
            out.push(']');
        }
        (done, before) = (span.end, Some(*kind));
    }
    out.push_str(text.get(done..).unwrap_or_default());
    out
}
