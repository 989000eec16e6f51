//! What a chat template may do where callers' texts meet its own and each other: how the rest of a control
//! token's spelling could come to stand behind its beginning.

use super::{
    jinja::{Token, tokens},
    spelling::Spellings,
};
use std::collections::BTreeSet;

/// Filters and methods that change the case of letters.
const FOLDS: [&str; 6] = ["lower", "upper", "title", "capitalize", "swapcase", "casefold"];

/// What the templates of a model say about their seams.
#[derive(Debug, Default)]
pub(super) struct Seams {
    /// Texts that a template looks for: tags, and arguments of its calls. It may take them out.
    markers: BTreeSet<String>,
    /// Those as JSON text begins with them: up to what it must escape.
    openings: Vec<String>,
    /// Words that a template compares with.
    words: BTreeSet<String>,
    /// What it calls things: attributes and variables.
    names: BTreeSet<String>,
    /// The templates' own texts.
    texts: Vec<String>,
    /// A template changes the case of letters.
    folds: bool,
}

impl Seams {
    /// Reads templates. One that cannot be read says nothing: it does not render either.
    pub(super) fn of<'a>(sources: impl Iterator<Item = &'a str>) -> Self {
        let mut seams = Self::default();
        for source in sources {
            let (mut in_call, mut called) = (false, false);
            for token in tokens(source).unwrap_or_default() {
                match &token {
                    Token::Data(text) => seams.texts.push(text.clone()),
                    Token::Text(text) => seams.literal(text, in_call),
                    Token::Name(name) => {
                        seams.folds |= called && FOLDS.contains(&name.as_str());
                        seams.names.insert(name.clone());
                    }
                    _ => {}
                }
                called = matches!(token, Token::Sign("|" | "."));
                in_call = matches!(token, Token::Sign("(" | ","));
            }
        }
        seams
    }

    fn literal(&mut self, text: &str, in_call: bool) {
        self.texts.push(text.to_owned());
        if is_word(text) {
            self.words.insert(text.to_owned());
        }
        let tag = (text.starts_with('<') && text.ends_with('>'))
            || (text.starts_with('[') && text.ends_with(']'));
        let Some(&first) = text.trim().as_bytes().first() else { return };
        if (tag && text.len() > 2) || (in_call && !first.is_ascii_alphanumeric()) {
            self.markers.insert(text.trim().to_owned());
            let escaped = |letter: char| matches!(letter, '"' | '\\') || letter.is_control();
            let opening = text.trim().split(escaped).next().unwrap_or_default();
            // What begins with an escape is seen by its backslash.
            if !opening.is_empty() {
                self.openings.push(opening.to_owned());
            }
        }
    }

    /// Whether a template writes the beginning of a spelling and leaves it open, or could change letters
    /// into those of one: then any text of a caller may go on with it.
    pub(super) fn are_open(&self, spellings: &Spellings) -> bool {
        self.folds || self.texts.iter().any(|text| spellings.ends_begun(text))
    }

    /// JSON text begins with something that a template may take out.
    pub(super) fn may_vanish(&self, json: &[u8]) -> bool {
        self.openings.iter().any(|opening| json.starts_with(opening.as_bytes()))
    }

    /// A text begins with something that a template may take out.
    pub(super) fn vanishes(&self, text: &str) -> bool {
        self.markers.iter().any(|marker| text.starts_with(marker.as_str()))
    }

    /// Those in a text, each with where it begins, from left to right.
    pub(super) fn markers_in<'t>(
        &'t self,
        text: &'t str,
    ) -> impl Iterator<Item = (usize, &'t str)> {
        let mut from = 0;
        std::iter::from_fn(move || {
            let rest = text.get(from..)?;
            let found = self.markers.iter().filter_map(|marker| {
                Some((rest.find(marker.as_str())?, std::cmp::Reverse(marker.len()), marker))
            });
            let (at, _, marker) = found.min()?;
            let start = from + at;
            from = start + marker.len();
            Some((start, marker.as_str()))
        })
    }

    /// A template compares with this word.
    pub(super) fn knows_word(&self, word: &str) -> bool {
        self.words.contains(word)
    }

    /// A template reads an attribute or a variable of this name.
    pub(super) fn knows_name(&self, name: &str) -> bool {
        self.names.contains(name) || self.words.contains(name)
    }
}

/// Letters, digits and underscores: nothing to spell a control token's brackets with.
pub(super) fn is_word(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn open(source: &str) -> bool {
        let token = |text: &str| json!({"id": 1, "content": text, "special": true});
        let spellings = Spellings::of(&[token("<|end|>"), token("[INST]"), token("</s>")]);
        Seams::of([source].into_iter()).are_open(&spellings)
    }

    #[test]
    fn templates_that_leave_a_spelling_open_are_known() {
        for source in [
            "{% for m in messages %}{{ '<|' + m.role + '|>' }}{% endfor %}",
            "<|{{ messages[0].role }}|>",
            "{{ '\n<' ~ key ~ '>' }}",
            "{{ messages[0].content | lower }}",
            "{{ messages[0].content.upper() }}",
        ] {
            assert!(open(source), "{source}");
        }
        for source in [
            "{% for m in messages %}{{ '<|end|>' + m['role'] + '</s>' }}{% endfor %}{{ messages[0] }}",
            "[INST] {{ messages[0].content }} [/INST]{# <| #}",
            "{% if '</think>' in m.content and 1 < 2 %}{% set lower = 1 %}{% endif %}",
        ] {
            assert!(!open(source), "{source}");
        }
    }

    #[test]
    fn what_a_template_may_take_out_is_known() {
        let seams = Seams::of(
            ["{{ c.split('</think>')[-1].split('<think>')[0] | replace('~', '') }}{{ 'plain' }}"]
                .into_iter(),
        );
        assert!(seams.vanishes("</think>x") && seams.vanishes("~") && !seams.vanishes("plain"));
        let found: Vec<_> = seams.markers_in("a<think>b</think>~").collect();
        assert_eq!(found, [(1, "<think>"), (9, "</think>"), (17, "~")]);
    }
}
