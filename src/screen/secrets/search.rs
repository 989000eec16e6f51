//! From texts that make detectors look to findings that do not overlap.
//!
//! One pass tells the places (a set of literals at once, and digits), each place is looked at by one
//! detector through a [`View`], and what they found is put in order. A detector that would have to see more
//! than has come so far stays open. Findings are reported in order, and none before it is certain that
//! nothing can still start before its end: so a text in pieces gives what the whole gives.

use super::{
    Found,
    alphabet::{GRAPHIC, UPPER},
    detect::{Sign, What, signs},
    kind::Kinds,
    view::{AHEAD, View},
};
use aho_corasick::{AhoCorasick, AhoCorasickKind, Input};
use std::ops::Range;

/// Most bytes before the text that makes a detector look at which its finding can start: a name before
/// the `@`.
const LOOK_BACK: usize = 64;
/// Findings that overlap become one until it has this many bytes.
const JOINED_MAX: usize = 1024;
/// Most bytes at the end of a text that wait for a decision: a finding that others joined until the last
/// of them reached its whole window, and a detector's window behind it.
pub(super) const HELD_MAX: usize = JOINED_MAX + 2 * (AHEAD + AHEAD / PATIENCE) + LOOK_BACK;
/// A detector that must see more looks again when what it saw has grown by this part: so what comes in
/// many small pieces is not read anew at each.
const PATIENCE: usize = 8;

/// The texts to look for.
#[derive(Clone, Debug)]
pub(super) struct Index {
    /// None if there are no such texts, or too many of them (there are not).
    literals: Option<AhoCorasick>,
    signs: Vec<Sign>,
    /// Bytes of the longest.
    longest: usize,
    kinds: Kinds,
}

/// A place where a detector looks.
#[derive(Clone, Debug)]
struct Place {
    what: What,
    /// The text that made it look, in bytes of the whole.
    at: Range<usize>,
    /// Where its finding would start.
    start: usize,
    /// It looks again when this many bytes of the whole have come.
    next: usize,
}

/// How far a text was searched. Offsets are bytes of the whole text.
#[derive(Debug, Default)]
pub(super) struct Search {
    searched: usize,
    open: Vec<Place>,
    /// Findings that wait for what may come before them.
    waiting: Vec<Found>,
    /// The finding that others may still join.
    joined: Option<Found>,
}

impl Index {
    pub(super) fn new(kinds: Kinds) -> Self {
        let signs = signs(kinds);
        let literals = AhoCorasick::builder()
            .kind(Some(AhoCorasickKind::DFA))
            .ascii_case_insensitive(true)
            .build(signs.iter().map(|sign| sign.text))
            .ok()
            .filter(|_| !signs.is_empty());
        let longest = signs.iter().map(|sign| sign.text.len()).max().unwrap_or(1);
        Self { literals, signs, longest, kinds }
    }

    /// Bytes of the longest text that is looked for.
    pub(super) fn longest(&self) -> usize {
        self.longest
    }

    /// Tells all places whose text ends in `fresh`.
    fn places(&self, text: &str, fresh: Range<usize>, mut tell: impl FnMut(What, Range<usize>)) {
        if let Some(literals) = &self.literals {
            let from = fresh.start.saturating_sub(self.longest - 1);
            let input = Input::new(text).span(from..fresh.end);
            for found in literals.find_overlapping_iter(input) {
                let Some(sign) = self.signs.get(found.pattern().as_usize()) else { continue };
                let same = || text.as_bytes().get(found.range()) == Some(sign.text.as_bytes());
                if found.end() > fresh.start && (!sign.exact || same()) {
                    tell(sign.what, found.range());
                }
            }
        }
        if self.kinds.meets(What::Number.kinds()) {
            numbers(text.as_bytes(), fresh, |at| tell(What::Number, at..at + 1));
        }
    }
}

/// Tells where runs of digits start.
fn numbers(text: &[u8], fresh: Range<usize>, mut tell: impl FnMut(usize)) {
    let mut inside = fresh.start.checked_sub(1).and_then(|at| text.get(at)).is_some_and(is_digit);
    let mut at = fresh.start;
    for block in text.get(fresh).unwrap_or_default().chunks(64) {
        // Most blocks have none, and this is what the processor does for many bytes at once.
        if block.iter().fold(false, |some, byte| some | is_digit(byte)) {
            for (offset, byte) in block.iter().enumerate() {
                let was = std::mem::replace(&mut inside, is_digit(byte));
                if inside && !was {
                    tell(at + offset);
                }
            }
        } else {
            inside = false;
        }
        at += block.len();
    }
}

fn is_digit(byte: &u8) -> bool {
    byte.is_ascii_digit()
}

/// A part of a text: where it starts in the whole, and whether nothing comes behind it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Part<'a> {
    /// The part.
    pub text: &'a str,
    /// Bytes of the whole before it.
    pub base: usize,
    /// Is this the end of the whole?
    pub last: bool,
}

impl Search {
    /// Searches on in a part that goes up to the end of what has come. Adds findings that are certain, in
    /// order.
    pub(super) fn advance(&mut self, index: &Index, part: Part<'_>, found: &mut Vec<Found>) {
        let fresh = self.searched.saturating_sub(part.base)..part.text.len();
        self.searched = part.base + part.text.len();
        for place in std::mem::take(&mut self.open) {
            if place.next <= self.searched || part.last {
                self.look(index, part, place);
            } else {
                self.open.push(place);
            }
        }
        // They look at once, so that the places of a long text need no memory.
        index.places(part.text, fresh, |what, at| {
            let at = at.start + part.base..at.end + part.base;
            self.look(index, part, Place { what, start: at.start, at, next: 0 });
        });
        self.settle(if part.last { usize::MAX } else { self.horizon(part) }, found);
    }

    /// Lets a detector look, and those that go on where it had to stop.
    fn look(&mut self, index: &Index, part: Part<'_>, mut place: Place) {
        loop {
            let at = place.at.start - part.base..place.at.end - part.base;
            let view = View::new(part.text, at.start, part.last, index.kinds);
            let hit = place.what.look(&view, at);
            if view.was_short() {
                place.start = view.start() + part.base;
                place.next = self.searched + (self.searched - place.at.start) / PATIENCE;
                self.open.push(place);
                return;
            }
            let Some(hit) = hit.filter(|hit| index.kinds.has(hit.kind)) else { return };
            let end = hit.span.end + part.base;
            self.waiting.push(Found { kind: hit.kind, span: hit.span.start + part.base..end });
            let Some(what) = hit.then else { return };
            place = Place { what, at: end..end, start: end, next: 0 };
        }
    }

    /// Where a finding that is not known yet can start at the earliest.
    fn horizon(&self, part: Part<'_>) -> usize {
        let open = self.open.iter().map(|place| place.start).min().unwrap_or(usize::MAX);
        open.min(part.base + tail(part.text.as_bytes()))
    }

    /// Orders what is certain before the horizon, makes one of what overlaps, and gives it out.
    fn settle(&mut self, horizon: usize, found: &mut Vec<Found>) {
        let mut ready: Vec<_> =
            self.waiting.extract_if(.., |waiting| waiting.span.start < horizon).collect();
        ready.sort_unstable_by_key(|ready| (ready.span.start, ready.kind, ready.span.end));
        for mut next in ready {
            if let Some(joined) = &mut self.joined {
                if next.span.start < joined.span.end && joined.span.len() < JOINED_MAX {
                    joined.span.end = joined.span.end.max(next.span.end);
                    joined.kind = joined.kind.min(next.kind);
                    continue;
                }
                next.span.start = next.span.start.max(joined.span.end);
                if next.span.is_empty() {
                    continue;
                }
            }
            found.extend(self.joined.replace(next));
        }
        found.extend(self.joined.take_if(|joined| joined.span.end <= horizon));
    }

    /// From where on a text that goes up to the end of what has come may become part of a finding that was
    /// not given out yet.
    pub(super) fn held_from(&self, part: Part<'_>) -> usize {
        let waiting = self.waiting.iter().chain(&self.joined).map(|found| found.span.start).min();
        self.horizon(part).min(waiting.unwrap_or(usize::MAX))
    }

    /// The place of the first detector that must look again.
    pub(super) fn first_open(&self) -> usize {
        self.open.iter().map(|place| place.at.start).min().unwrap_or(usize::MAX)
    }
}

/// Where the end of a text starts that may belong to a finding whose sign has not come yet.
fn tail(text: &[u8]) -> usize {
    let last = text.get(text.len().saturating_sub(LOOK_BACK)..).unwrap_or_default();
    let run = last.iter().rev().take_while(|byte| GRAPHIC.has(**byte)).count();
    match text {
        // The two letters of a national insurance number, which may have a space behind them.
        [.., first, second, b' '] if UPPER.has(*first) && UPPER.has(*second) => text.len() - 3,
        _ => text.len() - run,
    }
}

#[cfg(test)]
mod tests {
    use super::{super::kind::Kind, *};

    #[test]
    fn what_overlaps_becomes_one_up_to_a_size() {
        type Case = (&'static [(Kind, Range<usize>)], &'static [(Kind, Range<usize>)]);
        let cases: &[Case] = &[
            (&[(Kind::Email, 0..5), (Kind::Jwt, 5..9)], &[(Kind::Email, 0..5), (Kind::Jwt, 5..9)]),
            (&[(Kind::Email, 0..5), (Kind::Jwt, 4..9)], &[(Kind::Jwt, 0..9)]),
            (&[(Kind::Jwt, 4..9), (Kind::Email, 0..12)], &[(Kind::Jwt, 0..12)]),
            (&[(Kind::Email, 3..5), (Kind::Jwt, 3..4)], &[(Kind::Jwt, 3..5)]),
            (
                &[(Kind::Email, 0..1024), (Kind::Jwt, 9..2000), (Kind::Jwt, 10..30)],
                &[(Kind::Email, 0..1024), (Kind::Jwt, 1024..2000)],
            ),
        ];
        for (waiting, expected) in cases {
            let of = |list: &[(Kind, Range<usize>)]| -> Vec<_> {
                list.iter().map(|(kind, span)| Found { kind: *kind, span: span.clone() }).collect()
            };
            let mut search = Search { waiting: of(waiting), ..Search::default() };
            let mut found = Vec::new();
            search.settle(usize::MAX, &mut found);
            assert_eq!(found, of(expected));
        }
    }

    #[test]
    fn findings_wait_for_what_may_still_join_them() {
        let found = |span| Found { kind: Kind::Email, span };
        let mut search = Search { waiting: vec![found(0..5), found(7..9)], ..Search::default() };
        let mut out = Vec::new();
        search.settle(4, &mut out);
        assert_eq!(out, [], "something may start at 4");
        search.settle(7, &mut out);
        assert_eq!(out, [found(0..5)]);
        search.settle(9, &mut out);
        assert_eq!(out, [found(0..5), found(7..9)]);
    }

    #[test]
    fn runs_of_digits_are_told_once_however_the_text_is_cut() {
        let text = format!("1 22{}333-4 {}5", "x".repeat(63), "y".repeat(130)).into_bytes();
        let places = |cuts: &[usize]| {
            let mut places = Vec::new();
            for pair in cuts.windows(2) {
                numbers(&text, pair[0]..pair[1], |at| places.push(at));
            }
            places
        };
        let whole = places(&[0, text.len()]);
        assert_eq!(whole.len(), 5);
        for cut in 0..=text.len() {
            assert_eq!(places(&[0, cut, text.len()]), whole, "{cut}");
        }
    }
}
