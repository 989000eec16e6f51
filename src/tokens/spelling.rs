//! Finds the spellings of control tokens in callers' text, and writes them so that they spell nothing.
//!
//! Most servers read `<|im_end|>` in a message as the token that ends it. Whoever may write it can write
//! turns of the conversation that nobody else wrote.

use super::seams::Seams;
use aho_corasick::{AhoCorasick, MatchKind};
use memchr::{memchr_iter, memchr2_iter, memchr3_iter};
use serde_json::Value;
use std::collections::HashMap;

/// Stands behind the first letter of a spelling that was made harmless: U+200B, zero width space. Readers do
/// not see it, no server trims it, and no tokenizer's control token holds it.
const WEDGE: char = '\u{200b}';

/// Rounds of mending: putting letters between others cannot go on making new spellings.
const ROUNDS_MAX: usize = 4;

/// One more byte than can be searched for at once.
const NEEDLES_MAX: usize = 4;

/// Bytes of a spelling that are reason enough to look closer, whatever stands behind them.
const TELLING: usize = 3;

/// The control tokens of one vocabulary, by their spelling.
pub(super) struct Spellings {
    /// `None`: there are none.
    finder: Option<AhoCorasick>,
    /// Sorted.
    texts: Vec<String>,
    names: HashMap<u32, String>,
    /// Their first bytes, and for each the second bytes that follow it.
    starts: Vec<(u8, [bool; 256])>,
    /// Some are looked for in text that the tokenizer has changed first: it may change into a spelling.
    late: bool,
}

impl Spellings {
    /// The control tokens among the added tokens of a `tokenizer.json`.
    pub(super) fn of(added_tokens: &[Value]) -> Self {
        let mut texts: Vec<String> = Vec::new();
        let mut names = HashMap::new();
        let mut late = false;
        for token in added_tokens {
            let flag = |name: &str| token.get(name).and_then(Value::as_bool).unwrap_or(false);
            let text = token.get("content").and_then(Value::as_str).unwrap_or_default();
            // A single letter or white space is nobody's forgery.
            // Marks of turns are written so, and some files do not call them special.
            let mark = [("<|", "|>"), ("<｜", "｜>")]
                .iter()
                .any(|(open, close)| text.starts_with(open) && text.ends_with(close));
            if !(flag("special") || mark) || text.len() < 2 || text.trim().is_empty() {
                continue;
            }
            let id = token.get("id").and_then(Value::as_u64).and_then(|id| u32::try_from(id).ok());
            names.extend(id.map(|id| (id, text.to_owned())));
            texts.push(text.to_owned());
            late |= flag("normalized");
        }
        texts.sort_unstable();
        texts.dedup();
        let mut starts: Vec<(u8, [bool; 256])> = Vec::new();
        for text in &texts {
            let &[first, second, ..] = text.as_bytes() else { continue };
            let at = starts.iter().position(|(start, _)| *start == first).unwrap_or_else(|| {
                starts.push((first, [false; 256]));
                starts.len() - 1
            });
            if let Some(follows) = starts.get_mut(at).map(|(_, seconds)| seconds)
                && let Some(follows) = follows.get_mut(usize::from(second))
            {
                *follows = true;
            }
        }
        let builder =
            || AhoCorasick::builder().match_kind(MatchKind::LeftmostLongest).build(&texts);
        let finder = if texts.is_empty() { None } else { builder().ok() };
        Self { finder, texts, names, starts, late }
    }

    /// There are no control tokens.
    pub(super) fn is_empty(&self) -> bool {
        self.finder.is_none()
    }

    /// Only the tokens of the prompt tell whether one was spelled.
    pub(super) fn are_late(&self) -> bool {
        self.late
    }

    /// The spelling of a token, if it is a control token.
    pub(super) fn name(&self, id: u32) -> Option<&str> {
        self.names.get(&id).map(String::as_str)
    }

    /// The first spelling in a text.
    pub(super) fn find<'t>(&self, text: &'t str) -> Option<&'t str> {
        let found = self.finder.as_ref()?.find(text)?;
        text.get(found.range())
    }

    /// The text with no spelling left in it; `None` if that cannot be had.
    pub(super) fn mend(&self, text: &str) -> Option<String> {
        let finder = self.finder.as_ref()?;
        let mut text = text.to_owned();
        for _ in 0..ROUNDS_MAX {
            let mut out = String::with_capacity(text.len() + 16);
            let mut from = 0;
            for found in finder.find_iter(&text) {
                let first = text.get(found.start()..)?.chars().next()?;
                let cut = found.start() + first.len_utf8();
                out.push_str(text.get(from..cut)?);
                out.push(WEDGE);
                from = cut;
            }
            out.push_str(text.get(from..)?);
            text = out;
            if self.find(&text).is_none() {
                return Some(text);
            }
        }
        None
    }

    // === the quick look at JSON text ===

    /// Whether the strings of a JSON text can hold no spelling, nor a part of one that something behind it
    /// could make whole. Says no too often, but costs little.
    pub(super) fn is_plain(&self, json: &[u8], seams: &Seams) -> bool {
        !self.any(json, Some(b'\\'), |at| !self.is_plain_at(json, at, seams))
    }

    /// Whether `holds` of any place where a spelling could begin, or where `also` stands.
    fn any(&self, text: &[u8], also: Option<u8>, holds: impl FnMut(usize) -> bool) -> bool {
        let mut bytes = [0; NEEDLES_MAX];
        let wanted = self.starts.iter().map(|(start, _)| *start).chain(also);
        let count = bytes.iter_mut().zip(wanted.clone()).map(|(byte, start)| *byte = start).count();
        match (count, bytes) {
            (0, _) => false,
            (1, [one, ..]) => memchr_iter(one, text).any(holds),
            (2, [one, two, ..]) => memchr2_iter(one, two, text).any(holds),
            (3, [one, two, three, _]) => memchr3_iter(one, two, three, text).any(holds),
            _ => {
                let mut stops = [false; 256];
                for byte in wanted {
                    if let Some(stop) = stops.get_mut(usize::from(byte)) {
                        *stop = true;
                    }
                }
                let stops = |byte: u8| stops.get(usize::from(byte)).copied().unwrap_or(true);
                let places = text.iter().enumerate().filter(|(_, byte)| stops(**byte));
                places.map(|(at, _)| at).any(holds)
            }
        }
    }

    fn is_plain_at(&self, json: &[u8], at: usize, seams: &Seams) -> bool {
        let Some((&byte, rest)) = json.get(at..).and_then(<[u8]>::split_first) else { return true };
        let Some(&next) = rest.first() else { return true };
        if byte == b'\\' && matches!(next, b'u' | b'/') {
            // These stand for any letter.
            return false;
        }
        let Some((_, seconds)) = self.starts.iter().find(|(start, _)| *start == byte) else {
            return true;
        };
        let goes_on = seconds.get(usize::from(next)).copied().unwrap_or(true);
        if goes_on || !next.is_ascii() {
            return false;
        }
        let behind = rest.trim_ascii_start();
        if seams.may_vanish(behind) {
            return false;
        }
        match behind {
            [b'\\', ..] => false,
            // Where a string ends, the next may begin with the rest of a spelling. Where one begins, the
            // byte was a bracket of the JSON itself.
            [b'"', behind @ ..] => {
                !matches!(behind.trim_ascii_start().first(), None | Some(b',' | b':' | b'}' | b']'))
            }
            _ => true,
        }
    }

    // === the close look at a string ===

    /// Whether a string holds the beginning of a spelling that could become whole in the prompt: where the
    /// string ends, or where the template may take something out.
    pub(super) fn dangles(&self, text: &str, seams: &Seams) -> bool {
        self.any(text.as_bytes(), None, |at| {
            let rest = text.get(at..).unwrap_or_default();
            let Some(shared) = self.begun(rest) else { return false };
            let behind = rest.get(shared..).unwrap_or_default().trim_start();
            shared >= TELLING || behind.is_empty() || seams.vanishes(behind)
        })
    }

    /// Whether a text ends with the beginning of a spelling.
    pub(super) fn ends_begun(&self, text: &str) -> bool {
        text.char_indices().any(|(at, _)| {
            let rest = text.get(at..).unwrap_or_default();
            self.texts
                .iter()
                .any(|spelling| spelling.len() > rest.len() && spelling.starts_with(rest))
        })
    }

    /// Bytes of some spelling, but not all of it, that a text begins with.
    fn begun(&self, text: &str) -> Option<usize> {
        // In sorted order the one that shares most with a text stands next to where it would stand.
        let at = self.texts.partition_point(|spelling| spelling.as_str() <= text);
        let before = at.checked_sub(1).and_then(|before| self.texts.get(before));
        let shared = |spelling: &String| {
            let shared = spelling.bytes().zip(text.bytes()).take_while(|(a, b)| a == b).count();
            (shared < spelling.len()).then_some(shared)
        };
        let mut most =
            [before, self.texts.get(at)].into_iter().flatten().filter_map(shared).max()?;
        while !text.is_char_boundary(most) {
            most -= 1;
        }
        (most > 0).then_some(most)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn spellings(texts: &[&str]) -> Spellings {
        let token =
            |(id, text): (usize, &&str)| json!({"id": id, "content": text, "special": true});
        Spellings::of(&texts.iter().enumerate().map(token).collect::<Vec<_>>())
    }

    fn seams() -> Seams {
        Seams::of(["{{ m.content.split('</think>')[-1] }}"].into_iter())
    }

    #[test]
    fn only_control_tokens_count() {
        let tokens = [
            json!({"id": 1, "content": "<think>", "special": false}),
            json!({"id": 2, "content": " ", "special": true}),
            json!({"id": 3, "content": "</s>", "special": true}),
        ];
        let spellings = Spellings::of(&tokens);
        assert_eq!(spellings.find("a<think> </s>b"), Some("</s>"));
        assert_eq!((spellings.name(3), spellings.name(1)), (Some("</s>"), None));
        assert!(Spellings::of(&tokens[..2]).is_empty());
    }

    #[test]
    fn what_is_mended_spells_nothing_and_loses_nothing() {
        let spellings = spellings(&["<|im_end|>", "<s>", "</s>", "｜x｜"]);
        for text in ["<|im_end|>", "a<s><s>b</s>", "<<s>s>", "｜x｜x｜", "plain"] {
            let mended = spellings.mend(text).unwrap();
            assert_eq!(spellings.find(&mended), None, "{mended:?}");
            assert_eq!(mended.replace(WEDGE, ""), text);
        }
    }

    #[test]
    fn the_quick_look_lets_ordinary_text_pass_and_nothing_that_could_spell() {
        let spellings = spellings(&["<|im_end|>", "[INST]", "</s>"]);
        let plain = |text: &str| spellings.is_plain(text.as_bytes(), &seams());
        for text in [
            r#"[{"role":"user","content":"if a < b && v[0] <= 3 \"x\"\n<div class=\"c\"> [1, 2]"}]"#,
            r#"{"required":["city","unit"],"enum":[ "a" ],"n":[[1],[]]}"#,
            r#"{"e":"","l":[""]}"#,
        ] {
            assert!(plain(text), "{text}");
        }
        for text in [
            r#"["<|im_end|>"]"#,
            r#"["\u003c|im_end|>"]"#,
            r#"["<\/s>"]"#,
            r#"["\\u003c/s>"]"#,
            r#"["<", "|im_end|>"]"#,
            r#"["<  ","|im_end|>"]"#,
            r#"["<\n","|im_end|>"]"#,
            r#"["x[","INST]"]"#,
            "[\"<\u{a0}\"]",
            r#"["<</think>|im_end|>"]"#,
        ] {
            assert!(!plain(text), "{text}");
        }
    }

    #[test]
    fn beginnings_are_seen_where_something_may_join_them() {
        let spellings = spellings(&["<|im_end|>", "</s>", "<s>"]);
        let dangles = |text: &str| spellings.dangles(text, &seams());
        for text in ["<", "a<|im_", "<|im_ \n", "<|im_</think>end|>", "<|imx", "</\u{a0}", "x <s"] {
            assert!(dangles(text), "{text:?}");
        }
        for text in ["", "a < b", "</div>", "<|im_end|>", "<span>", "|im_end|>", "<｜"] {
            assert!(!dangles(text), "{text:?}");
        }
    }
}
