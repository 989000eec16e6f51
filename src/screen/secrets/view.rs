//! `View`: what a detector may see of a text around the place that made it look.
//!
//! All reading goes through here, and that is what makes a text in pieces give the same findings as the
//! whole: a detector that never asked for a byte that has not come yet would say the same whatever comes;
//! one that did is asked again later.

use super::{
    alphabet::{Alphabet, SPACE, WORD},
    kind::{Kind, Kinds},
};
use std::{cell::Cell, ops::Range};

/// Most bytes before its place that a detector sees.
pub(super) const BACK: usize = 512;
/// Most bytes from its place on that a detector sees. A private key of 8192 bits fits.
pub(super) const AHEAD: usize = 8192;

/// A window on a text.
pub(super) struct View<'a> {
    text: &'a [u8],
    /// The first byte that may be seen, and the one behind the last.
    window: Range<usize>,
    /// Nothing comes behind the text.
    last: bool,
    kinds: Kinds,
    short: Cell<bool>,
    begin: Cell<usize>,
}

impl<'a> View<'a> {
    /// What a detector sees that looks at `at`. `last`: the text ends here.
    pub(super) fn new(text: &'a str, at: usize, last: bool, kinds: Kinds) -> Self {
        Self {
            text: text.as_bytes(),
            window: at.saturating_sub(BACK)..at + AHEAD,
            last,
            kinds,
            short: Cell::new(false),
            begin: Cell::new(at),
        }
    }

    /// Is the kind looked for?
    pub(super) fn wants(&self, kind: Kind) -> bool {
        self.kinds.has(kind)
    }

    /// Did the detector ask for bytes that have not come yet? Then what it said means nothing.
    pub(super) fn was_short(&self) -> bool {
        self.short.get()
    }

    /// Where a finding would start, for all that is known so far.
    pub(super) fn start(&self) -> usize {
        self.begin.get()
    }

    /// Tells that a finding, if there is one, starts at or behind `at`. What a detector concludes after it
    /// missed text does not count.
    pub(super) fn begins(&self, at: usize) {
        if !self.was_short() {
            self.begin.set(at);
        }
    }

    /// Tells that a finding, if there is one, starts behind all that has come so far, until
    /// [`Self::begins`] says otherwise.
    pub(super) fn begins_later(&self) {
        self.begins(self.text.len());
    }

    /// The end of the window.
    pub(super) fn limit(&self) -> usize {
        self.window.end
    }

    /// The byte at a place.
    pub(super) fn get(&self, at: usize) -> Option<u8> {
        if !self.window.contains(&at) {
            return None;
        }
        let byte = self.text.get(at).copied();
        self.short.set(self.short.get() || (byte.is_none() && !self.last));
        byte
    }

    /// The byte before a place.
    pub(super) fn before(&self, at: usize) -> Option<u8> {
        self.get(at.checked_sub(1)?)
    }

    /// Is the byte at a place one of these?
    pub(super) fn is(&self, at: usize, set: Alphabet) -> bool {
        self.get(at).is_some_and(|byte| set.has(byte))
    }

    /// Is the byte before a place one of these?
    pub(super) fn was(&self, at: usize, set: Alphabet) -> bool {
        self.before(at).is_some_and(|byte| set.has(byte))
    }

    /// Where a run of these bytes ends that starts at `from`, after at most `most` of them.
    pub(super) fn run(&self, from: usize, set: Alphabet, most: usize) -> usize {
        let limit = from.saturating_add(most).min(self.window.end);
        let seen = self.text.get(from..limit.min(self.text.len())).unwrap_or_default();
        let length = seen.iter().position(|byte| !set.has(*byte)).unwrap_or(seen.len());
        let end = from + length;
        if end >= self.text.len() && end < limit {
            self.short.set(self.short.get() || !self.last);
        }
        end
    }

    /// Where a run of these bytes starts that ends before `to`, of at most `most` of them.
    pub(super) fn run_back(&self, to: usize, set: Alphabet, most: usize) -> usize {
        let limit = to.saturating_sub(most).max(self.window.start);
        let seen = self.text.get(limit..to).unwrap_or_default();
        to - seen.iter().rev().take_while(|byte| set.has(**byte)).count()
    }

    /// Bytes that were read already.
    pub(super) fn slice(&self, range: Range<usize>) -> &'a [u8] {
        self.text.get(range).unwrap_or_default()
    }

    /// Does the text go on with this at a place?
    pub(super) fn follows(&self, at: usize, text: &[u8]) -> bool {
        text.iter().enumerate().all(|(offset, byte)| self.get(at + offset) == Some(*byte))
    }

    /// Is a word's first character here? A letter that belongs to an escape (`\n`) is no part of a word.
    pub(super) fn starts_word(&self, at: usize) -> bool {
        self.starts_run(at, WORD)
    }

    /// Does a run of these bytes start here? A letter that belongs to an escape (`\n`) is no part of it.
    pub(super) fn starts_run(&self, at: usize, set: Alphabet) -> bool {
        !self.was(at, set)
            || (self.was(at, Alphabet::of(b"nrt")) && self.before(at - 1) == Some(b'\\'))
    }

    /// The bytes before a place that may be seen, at most `most`.
    pub(super) fn behind(&self, at: usize, most: usize) -> &'a [u8] {
        self.slice(at.saturating_sub(most).max(self.window.start)..at)
    }

    /// Behind white space, at most `most` characters of it.
    pub(super) fn skip_space(&self, from: usize, most: usize) -> usize {
        self.run(from, SPACE, most)
    }
}

#[cfg(test)]
mod tests {
    use super::{super::alphabet::*, *};

    fn view(text: &str, at: usize, last: bool) -> View<'_> {
        View::new(text, at, last, Kinds::default())
    }

    #[test]
    fn asking_behind_the_end_is_noticed_unless_the_text_is_over() {
        type Ask = fn(&View<'_>);
        let cases: &[(&str, Ask, bool)] = &[
            ("last byte", |view| assert_eq!(view.get(3), Some(b'4')), false),
            ("behind it", |view| assert_eq!(view.get(4), None), true),
            ("a run up to the end", |view| assert_eq!(view.run(1, DIGIT, 9), 4), true),
            ("a run with its fill", |view| assert_eq!(view.run(1, DIGIT, 3), 4), false),
            ("a run that stops", |view| assert_eq!(view.run(0, LETTER, 9), 1), false),
            ("a run from the end", |view| assert_eq!(view.run(4, LETTER, 1), 4), true),
            ("a literal", |view| assert!(view.follows(2, b"34")), false),
            ("a longer literal", |view| assert!(!view.follows(2, b"345")), true),
            ("another literal", |view| assert!(!view.follows(2, b"999")), false),
            ("backwards", |view| assert_eq!(view.run_back(4, DIGIT, 9), 1), false),
        ];
        for (name, ask, short) in cases {
            for last in [false, true] {
                let view = view("a234", 0, last);
                ask(&view);
                assert_eq!(view.was_short(), *short && !last, "{name}, last: {last}");
            }
        }
    }

    #[test]
    fn nothing_is_seen_outside_the_window() {
        let text = "a".repeat(2 * AHEAD);
        let view = view(&text, BACK + 7, false);
        assert_eq!((view.get(6), view.get(7)), (None, Some(b'a')));
        assert_eq!(view.run_back(BACK + 7, LETTER, usize::MAX), 7);
        assert_eq!(view.behind(BACK + 7, usize::MAX).len(), BACK);
        assert_eq!(view.run(BACK + 7, LETTER, usize::MAX), BACK + 7 + AHEAD);
        assert_eq!(view.get(BACK + 7 + AHEAD), None);
        assert!(!view.was_short(), "the window's end is no missing text");
    }

    #[test]
    fn what_is_concluded_after_text_was_missed_does_not_count() {
        let view = view("a234", 0, false);
        view.begins(2);
        assert_eq!((view.get(4), view.was_short()), (None, true));
        view.begins(3);
        view.begins_later();
        assert_eq!(view.start(), 2);
    }

    #[test]
    fn words_start_where_no_word_goes_on() {
        let cases: &[(&str, usize, bool)] = &[
            ("key", 0, true),
            (" key", 1, true),
            ("akey", 1, false),
            ("_key", 1, false),
            ("=key", 1, true),
            ("ékey", 2, true),
            (r"\nkey", 2, true),
            (r"nkey", 1, false),
            (r"\xkey", 2, false),
        ];
        for (text, at, starts) in cases {
            assert_eq!(view(text, *at, true).starts_word(*at), *starts, "{text}");
        }
    }
}
