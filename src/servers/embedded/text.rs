//! From token pieces to text that may be shown: whole characters only, and nothing of a stop string.

/// Collects pieces into text. What may still become part of a character or of a stop string is held back.
#[derive(Debug)]
pub(super) struct Text {
    stops: Vec<String>,
    /// Bytes of a character that is not complete.
    bytes: Vec<u8>,
    /// Text not shown yet.
    held: String,
    stopped: Option<String>,
}

impl Text {
    /// Text that ends before the first of `stops`. Empty ones are ignored.
    pub(super) fn new(stops: &[String]) -> Self {
        let stops = stops.iter().filter(|stop| !stop.is_empty()).cloned().collect();
        Self { stops, bytes: Vec::new(), held: String::new(), stopped: None }
    }

    /// The stop string that was met.
    pub(super) fn stopped(&self) -> Option<&str> {
        self.stopped.as_deref()
    }

    /// Takes a token's bytes and gives the text that may be shown now.
    pub(super) fn push(&mut self, piece: &[u8]) -> String {
        if self.stopped.is_some() {
            return String::new();
        }
        self.bytes.extend_from_slice(piece);
        let whole = whole_characters(&self.bytes);
        let rest = self.bytes.split_off(whole);
        self.held.push_str(&String::from_utf8_lossy(&self.bytes));
        self.bytes = rest;
        self.release()
    }

    /// Gives what was held back, at the end of the sequence.
    pub(super) fn finish(&mut self) -> String {
        if self.stopped.is_some() {
            return String::new();
        }
        let rest = std::mem::take(&mut self.bytes);
        self.held.push_str(&String::from_utf8_lossy(&rest));
        let shown = self.release();
        // A stop string may have become complete only now.
        if self.stopped.is_some() { shown } else { shown + &std::mem::take(&mut self.held) }
    }

    fn release(&mut self) -> String {
        let found =
            self.stops.iter().filter_map(|stop| Some((self.held.find(stop.as_str())?, stop)));
        if let Some((at, stop)) = found.min_by_key(|(at, _)| *at) {
            self.stopped = Some(stop.clone());
            let mut shown = std::mem::take(&mut self.held);
            shown.truncate(at);
            return shown;
        }
        let keep = self.stops.iter().map(|stop| overlap(&self.held, stop)).max().unwrap_or(0);
        let rest = self.held.split_off(self.held.len() - keep);
        std::mem::replace(&mut self.held, rest)
    }
}

/// How many bytes at the end of `text` are the beginning of `stop`.
fn overlap(text: &str, stop: &str) -> usize {
    let mut ends = stop.char_indices().map(|(at, _)| at).rev();
    ends.find(|&at| stop.get(..at).is_some_and(|beginning| text.ends_with(beginning))).unwrap_or(0)
}

/// The length of `bytes` without an unfinished character at the end.
fn whole_characters(bytes: &[u8]) -> usize {
    // A character has at most four bytes, so an unfinished one at most three.
    for back in 1..=bytes.len().min(3) {
        let start = bytes.len() - back;
        let tail = bytes.get(start..).unwrap_or_default();
        let unfinished =
            |error: std::str::Utf8Error| error.error_len().is_none() && error.valid_up_to() == 0;
        if std::str::from_utf8(tail).is_err_and(unfinished) {
            return start;
        }
    }
    bytes.len()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn text(stops: &[&str]) -> Text {
        Text::new(&stops.iter().map(|&stop| stop.to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn characters_come_whole() {
        let mut text = text(&[]);
        let shown: Vec<_> = "aé€😀".bytes().map(|byte| text.push(&[byte])).collect();
        assert_eq!(shown, ["a", "", "é", "", "", "€", "", "", "", "😀"]);
    }

    #[test]
    fn broken_bytes_become_replacement_characters() {
        let mut text = text(&[]);
        assert_eq!(text.push(b"a\xFFb"), "a\u{FFFD}b");
        assert_eq!(text.push(b"\xE2\x82"), "");
        assert_eq!(text.push(b"z"), "\u{FFFD}z");
        assert_eq!(text.push(b"\xF0\x9F"), "");
        assert_eq!(text.finish(), "\u{FFFD}");
    }

    #[test]
    fn a_stop_string_is_cut_even_across_pieces() {
        let mut text = text(&["\n\nUser:", "END"]);
        assert_eq!(text.push(b"Hello\n"), "Hello");
        assert_eq!(text.push(b"\nUs"), "");
        assert_eq!(text.push(b"age E"), "\n\nUsage ");
        assert_eq!(text.push(b"NDless"), "");
        assert_eq!(text.stopped(), Some("END"));
        assert_eq!((text.push(b"more"), text.finish()), (String::new(), String::new()));
    }

    #[test]
    fn a_prefix_that_leads_nowhere_is_shown_at_the_end() {
        let mut text = text(&["stop"]);
        assert_eq!(text.push(b"st"), "");
        assert_eq!(text.finish(), "st");
        assert_eq!(text.stopped(), None);
    }

    proptest! {
        /// However the bytes are cut, the text is the same, up to the stop string.
        #[test]
        fn pieces_do_not_matter(whole in "[ab€😀]{0,24}", cuts in prop::collection::vec(1usize..4, 0..40)) {
            let mut text = text(&["ab€"]);
            let mut shown = String::new();
            let mut left = whole.as_bytes();
            for cut in cuts.into_iter().chain([usize::MAX]) {
                let (piece, rest) = left.split_at(cut.min(left.len()));
                shown.push_str(&text.push(piece));
                left = rest;
            }
            shown.push_str(&text.finish());
            prop_assert_eq!(shown, whole.split("ab€").next().unwrap());
        }
    }
}
