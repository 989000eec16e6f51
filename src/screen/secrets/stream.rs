//! `Stream`: a text that comes in pieces, such as a model's answer.

use super::{
    Finder, Found,
    search::{Part, Search},
    view::BACK,
};

/// Bytes that are no longer needed before they are let go. Few in tests, so that they see what is missing.
const SPARE: usize = if cfg!(test) { 16 } else { 4096 };

/// Searches a text that comes in pieces. It finds what [`Finder::find`] finds in the whole, each finding
/// once and in order, however the text is cut.
///
/// Memory: at most about [`Finder::reach`] bytes of text beside the last piece, and a small entry for each
/// candidate among them.
#[derive(Debug)]
pub struct Stream {
    finder: Finder,
    search: Search,
    /// The end of what has come.
    text: String,
    /// Bytes before it.
    base: usize,
}

impl Stream {
    /// Starts with nothing.
    pub fn new(finder: &Finder) -> Self {
        let finder = finder.clone();
        Self { finder, search: Search::default(), text: String::new(), base: 0 }
    }

    /// Adds a piece. Returns the findings that are certain now; spans count bytes from the start of the
    /// whole text.
    pub fn push(&mut self, piece: &str) -> Vec<Found> {
        self.text.push_str(piece);
        let found = self.advance(false);
        self.forget();
        found
    }

    /// Ends the text. Returns the findings that only its end makes certain.
    pub fn finish(mut self) -> Vec<Found> {
        self.advance(true)
    }

    /// How many bytes at the end of what has come may still become part of a finding that was not returned
    /// yet, bytes. A relay that lets out all but these lets out no part of a secret. It is at a character's
    /// boundary, and never more than [`Finder::reach`].
    pub fn held(&self) -> usize {
        let from = self.search.held_from(self.part(false)).min(self.end());
        // Of what was let go of only findings are left, and they start at boundaries.
        let from = match from.checked_sub(self.base) {
            Some(at) => self.base + floor(&self.text, at),
            None => from,
        };
        self.end() - from
    }

    /// How many bytes have come.
    pub fn end(&self) -> usize {
        self.base + self.text.len()
    }

    fn part(&self, last: bool) -> Part<'_> {
        Part { text: &self.text, base: self.base, last }
    }

    fn advance(&mut self, last: bool) -> Vec<Found> {
        let mut found = Vec::new();
        let part = Part { text: &self.text, base: self.base, last };
        self.search.advance(&self.finder.index, part, &mut found);
        found
    }

    /// Lets go of what no detector will look at again.
    fn forget(&mut self) {
        let next = self.end().saturating_sub(self.finder.index.longest());
        let needed = self.search.first_open().min(next).saturating_sub(BACK);
        let spare = floor(&self.text, needed.saturating_sub(self.base));
        if spare >= SPARE {
            self.text.drain(..spare);
            self.base += spare;
        }
    }
}

/// The last character boundary up to a byte.
fn floor(text: &str, at: usize) -> usize {
    (0..=at.min(text.len())).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::{
        super::{Kind, samples::SAMPLES},
        *,
    };

    #[test]
    fn a_long_text_is_let_go_of_and_still_seen_as_far_back_as_needed() {
        let finder = Finder::shared();
        let filler = "Some words of no meaning. ".repeat(600);
        for (kind, before, secret, behind) in SAMPLES {
            let text = format!("{filler}{before}{secret}{behind} end. {filler}");
            let mut stream = Stream::new(finder);
            let (mut found, mut most) = (Vec::new(), 0);
            let mut rest = text.as_str();
            while let Some((next, _)) = rest.char_indices().nth(7) {
                let (piece, others) = rest.split_at(next);
                found.extend(stream.push(piece));
                most = most.max(stream.text.len());
                rest = others;
            }
            found.extend(stream.push(rest));
            assert!(stream.base > 0 && most < SPARE + finder.reach(), "{kind}: {most}");
            found.extend(stream.finish());
            assert_eq!(found, finder.find(&text), "{kind}");
            assert_eq!(found.len(), 1, "{kind}");
        }
    }

    #[test]
    fn what_stands_far_before_is_still_seen() {
        let lead = format!("\"type\": \"service_account\", \"x\": \"{}\", ", "y ".repeat(200));
        let text = "word ".repeat(4000) + &lead + "-----BEGIN PRIVATE KEY-----";
        let mut stream = Stream::new(Finder::shared());
        let pieces = text.as_bytes().chunks(11).map(|piece| str::from_utf8(piece).unwrap());
        let mut found: Vec<_> = pieces.flat_map(|piece| stream.push(piece)).collect();
        found.extend(stream.finish());
        assert_eq!(found.iter().map(|found| found.kind).collect::<Vec<_>>(), [Kind::GcpServiceKey]);
    }

    #[test]
    fn boundaries_are_found_downwards() {
        for (at, expected) in [(0, 0), (1, 1), (2, 1), (3, 3), (4, 4), (9, 4)] {
            assert_eq!(floor("aéb", at), expected);
        }
    }
}
