//! Short rows of letters that must be met as a whole: canaries, and system prompts of a few words. It
//! compares them exactly, and knows no texts.

use super::{
    secretive::How,
    shingles::{TAIL, Window},
};

/// One row of letters, in one reading.
#[derive(Clone, Debug)]
pub(super) struct Pattern {
    /// The last letter first, at most [`TAIL`].
    letters: Box<[u16]>,
    pub(super) how: How,
    /// The number of the canary; none for a system prompt.
    pub(super) canary: Option<usize>,
    /// It may be said.
    known: bool,
}

impl Pattern {
    /// Letters that one needs.
    pub(super) const SHORTEST: usize = 4;

    /// Letters in it.
    pub(super) fn len(&self) -> usize {
        self.letters.len()
    }

    fn ends(&self, window: &Window) -> bool {
        self.letters.iter().enumerate().all(|(back, code)| window.letter(back) == Some(*code))
    }

    /// How many of its letters, counted from its first, the stream ends with, not all.
    fn begun(&self, window: &Window) -> usize {
        let met = |len: &usize| {
            let first = self.letters.iter().skip(self.letters.len() - len);
            first.enumerate().all(|(back, code)| window.letter(back) == Some(*code))
        };
        (Self::SHORTEST..self.letters.len()).rev().find(met).unwrap_or(0)
    }
}

/// Patterns, found by their last four letters.
#[derive(Clone, Debug, Default)]
pub(super) struct Patterns {
    list: Vec<Pattern>,
    /// The last four letters of each and its number, sorted once [`Patterns::seal`] was called.
    ends: Vec<(u64, u16)>,
    /// A bit for each of 64 classes of the above.
    classes: u64,
}

impl Patterns {
    /// Adds a row of letters, unless it is too short.
    pub(super) fn add(
        &mut self,
        letters: impl DoubleEndedIterator<Item = u16>,
        how: How,
        canary: Option<usize>,
    ) {
        let letters: Box<[u16]> = letters.rev().take(TAIL).collect();
        let Ok(number) = u16::try_from(self.list.len()) else { return };
        if letters.len() < Pattern::SHORTEST {
            return;
        }
        let end =
            letters.iter().take(Pattern::SHORTEST).rev().fold(0, |end, code| newer(end, *code));
        self.ends.push((end, number));
        self.classes |= class(end);
        self.list.push(Pattern { letters, how, canary, known: false });
    }

    /// All are added.
    pub(super) fn seal(&mut self) {
        self.ends.sort_unstable();
    }

    /// Are there none that may not be said?
    pub(super) fn is_empty(&self) -> bool {
        self.list.iter().all(|pattern| pattern.known)
    }

    /// The first pattern that the stream ends with now. `end` is its last four letters, see [`newer`].
    pub(super) fn met(&self, end: u64, window: &Window) -> Option<&Pattern> {
        if self.classes & class(end) == 0 {
            return None;
        }
        let from = self.ends.partition_point(|(other, _)| *other < end);
        let same = self.ends.iter().skip(from).take_while(|(other, _)| *other == end);
        let mut patterns = same.filter_map(|(_, number)| self.list.get(usize::from(*number)));
        patterns.find(|pattern| !pattern.known && pattern.ends(window))
    }

    /// What ends here may be said, but for canaries.
    pub(super) fn forget(&mut self, window: &Window) {
        let ended = |pattern: &&mut Pattern| pattern.canary.is_none() && pattern.ends(window);
        self.list.iter_mut().filter(ended).for_each(|pattern| pattern.known = true);
    }

    /// The most letters of one that the stream ends with, at least four, not all; 0 for none.
    pub(super) fn begun(&self, window: &Window) -> usize {
        let unknown = self.list.iter().filter(|pattern| !pattern.known);
        unknown.map(|pattern| pattern.begun(window)).max().unwrap_or(0)
    }
}

/// The last four letters, with one more.
pub(super) fn newer(end: u64, code: u16) -> u64 {
    (end << 16) | u64::from(code)
}

fn class(end: u64) -> u64 {
    1 << (end.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 58)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_is_met_at_its_last_letter() {
        let codes = |text: &str| text.encode_utf16().collect::<Vec<_>>();
        let mut patterns = Patterns::default();
        patterns.add(codes("canary").into_iter(), How::Plain, Some(3));
        patterns.add(codes("ary").into_iter(), How::Plain, Some(4));
        patterns.add(codes("primary").into_iter(), How::Reversed, None);
        patterns.seal();
        let (mut window, mut end, mut met) = (Window::new(100), 0, Vec::new());
        let mut begun = Vec::new();
        for (at, code) in codes("canacanaryprimary").into_iter().enumerate() {
            window.push(code, at);
            end = newer(end, code);
            met.extend(patterns.met(end, &window).map(|found| (at, found.canary, found.len())));
            begun.push(patterns.begun(&window));
        }
        assert_eq!(met, [(9, Some(3), 6), (16, None, 7)]);
        assert_eq!(begun, [0, 0, 0, 4, 0, 0, 0, 4, 5, 0, 0, 0, 0, 4, 5, 6, 0]);
    }
}
