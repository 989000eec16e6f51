//! One pattern: checked when it is read, compiled when a text may match it.
//!
//! A compiled pattern takes 10 to 100 KB, and the state that it builds while it runs as much again. Ten
//! thousand would take a gigabyte, and nearly all never run; so only what runs is compiled, and kept as long
//! as all that is kept fits into a budget.

use super::{
    literal::required,
    size::{counted, weight},
};
use regex::{Regex, RegexBuilder};
use regex_syntax::{
    ParserBuilder,
    hir::{Hir, HirKind, Repetition},
};
use std::{
    borrow::Cow,
    ops::Range,
    sync::{
        OnceLock,
        atomic::{AtomicUsize, Ordering},
    },
};

/// Most bytes of a pattern as written.
const SOURCE_MAX: usize = 8 << 10;
/// How deep groups may stand in groups.
const NESTED_MAX: u32 = 64;
/// Largest program of a pattern, bytes by [`weight`].
const WEIGHT_MAX: usize = 1 << 20;
/// Most characters that counted repetitions of a pattern stand for: `.{0,80}x{3}` has 83. Each may have to
/// be followed at once, which takes about 5 ns for a byte of text.
const COUNTED_MAX: usize = 512;
/// Largest program that is compiled: more than `WEIGHT_MAX`, which is an estimate.
const PROGRAM_MAX: usize = 4 << 20;
/// Most bytes of the automaton that a pattern builds while it runs, which most patterns are far from. Beyond,
/// it runs without: with 128 KiB some patterns took 30 s for 1 MB that take 0.05 s with this.
const RUNNING_MAX: usize = 2 << 20;
/// What it usually takes, bytes.
const RUNNING: usize = 128 << 10;
/// Most bytes of all compiled patterns that are kept.
const KEPT_MAX: usize = 128 << 20;
/// Fewest bytes of a text that is worth looking for.
const LITERAL_MIN: usize = 3;

/// One pattern.
#[derive(Debug)]
pub(super) struct Pattern {
    /// The pattern without its word boundaries, if it has some. On text that is not ASCII they cost fifty
    /// times as much as all the rest; so they are looked at only where the rest matches.
    first: Option<Program>,
    whole: Program,
}

/// A pattern to compile.
#[derive(Debug)]
struct Program {
    source: Box<str>,
    /// About how many bytes it takes when it is compiled.
    cost: usize,
    compiled: OnceLock<Option<Regex>>,
}

/// Why a pattern is refused: what is wrong, and what to do.
pub(super) type Refused = (String, String);

/// Bytes of compiled patterns that are kept.
#[derive(Debug, Default)]
pub(super) struct Kept(AtomicUsize);

impl Pattern {
    /// Checks a pattern. Also returns sets of texts, one of each of which is in all that it matches.
    /// `words`: it matches whole words only.
    pub(super) fn new(source: &str, words: bool) -> Result<(Self, Vec<Vec<String>>), Refused> {
        if source.len() > SOURCE_MAX {
            let what = format!("the pattern is longer than {} KiB", SOURCE_MAX >> 10);
            return Err((what, "use `phrases`, or a list, for many words".into()));
        }
        let source = if words { format!(r"\b(?:{source})\b") } else { source.to_owned() };
        let parsed = ParserBuilder::new().nest_limit(NESTED_MAX).build().parse(&source);
        let parsed = parsed.map_err(|error| {
            (format!("the pattern cannot be read: {}", reason(&error)), syntax_remedy(&source))
        })?;
        if parsed.properties().minimum_len().unwrap_or(0) == 0 {
            let remedy = "make one part of it mandatory: `+` instead of `*`, no `?`";
            return Err(("the pattern matches where there is nothing".into(), remedy.into()));
        }
        let weight = weight(&parsed);
        if weight > WEIGHT_MAX {
            let what = format!(
                "the pattern is too large: its program takes about {} KiB, and {} are allowed",
                weight >> 10,
                WEIGHT_MAX >> 10
            );
            let remedy =
                "repeat less often, or write `(?-u:\\w)` for `\\w`, which has 130000 characters";
            return Err((what, remedy.into()));
        }
        let counted = counted(&parsed);
        if counted > COUNTED_MAX {
            let what = format!(
                "the pattern is too large: its counted repetitions stand for {counted} characters, and \
                 {COUNTED_MAX} are allowed"
            );
            return Err((what, "allow fewer, such as `.{0,80}`, or any number: `.*`".into()));
        }
        let literals = required(&parsed, LITERAL_MIN);
        // Forwards, backwards, and what it builds while it runs.
        let cost = 3 * weight + RUNNING;
        let first = without_word_bounds(&parsed).map(|first| Program::new(first.to_string(), cost));
        Ok((Self { first, whole: Program::new(source, cost) }, literals))
    }

    /// Tells the matches in a text, until it is told to stop. A pattern that cannot be compiled has none;
    /// its check makes that impossible as far as anyone knows.
    pub(super) fn find(&self, text: &str, kept: &Kept, mut tell: impl FnMut(Range<usize>) -> bool) {
        let first = self.first.as_ref().and_then(|first| first.compiled(kept));
        if first.is_some_and(|first| !first.is_match(text)) {
            return;
        }
        if let Some(whole) = self.whole.compiled(kept) {
            whole.find_iter(text).all(|found| tell(found.range()));
        }
    }

    /// Compiles what runs first, if there is room to keep it.
    pub(super) fn warm(&self, kept: &Kept) {
        self.first.as_ref().unwrap_or(&self.whole).compiled(kept);
    }
}

impl Program {
    fn new(source: String, cost: usize) -> Self {
        Self { source: source.into(), cost, compiled: OnceLock::new() }
    }

    /// The compiled pattern: a kept one, or one of its own if there is no room to keep it.
    fn compiled(&self, kept: &Kept) -> Option<Cow<'_, Regex>> {
        if let Some(compiled) = self.compiled.get() {
            return compiled.as_ref().map(Cow::Borrowed);
        }
        if kept.0.fetch_add(self.cost, Ordering::Relaxed) + self.cost > KEPT_MAX {
            kept.0.fetch_sub(self.cost, Ordering::Relaxed);
            return self.compile().map(Cow::Owned);
        }
        let mut mine = false;
        let compiled = self.compiled.get_or_init(|| {
            mine = true;
            self.compile()
        });
        if !mine {
            kept.0.fetch_sub(self.cost, Ordering::Relaxed);
        }
        compiled.as_ref().map(Cow::Borrowed)
    }

    fn compile(&self) -> Option<Regex> {
        RegexBuilder::new(&self.source)
            .nest_limit(NESTED_MAX)
            .size_limit(PROGRAM_MAX)
            .dfa_size_limit(RUNNING_MAX)
            .build()
            .ok()
    }
}

/// The pattern without the word boundaries that look at all of Unicode; it matches all that the pattern
/// matches, and more. None if there are none.
fn without_word_bounds(hir: &Hir) -> Option<Hir> {
    if !hir.properties().look_set().contains_word_unicode() {
        return None;
    }
    let without = |hir: &Hir| without_word_bounds(hir).unwrap_or_else(|| hir.clone());
    Some(match hir.kind() {
        HirKind::Look(_) => Hir::empty(),
        HirKind::Capture(capture) => without(&capture.sub),
        HirKind::Repetition(repetition) => {
            let sub = Box::new(without(&repetition.sub));
            Hir::repetition(Repetition { sub, ..repetition.clone() })
        }
        HirKind::Concat(parts) => Hir::concat(parts.iter().map(without).collect()),
        HirKind::Alternation(parts) => Hir::alternation(parts.iter().map(without).collect()),
        HirKind::Empty | HirKind::Literal(_) | HirKind::Class(_) => hir.clone(),
    })
}

/// The last line of the parser's explanation: what is wrong, without the drawing of where.
fn reason(error: &regex_syntax::Error) -> String {
    let text = error.to_string();
    let last = text.lines().last().unwrap_or_default();
    last.trim().trim_start_matches("error: ").to_owned()
}

fn syntax_remedy(source: &str) -> String {
    let cannot = ["(?=", "(?!", "(?<=", "(?<!"].iter().any(|look| source.contains(look));
    if cannot {
        "patterns run in linear time and cannot look around: write what may stand there into the pattern"
    } else {
        "mend it; the syntax is that of the Rust crate `regex`, and in TOML '…' needs no escapes"
    }
    .to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_used_is_refused_with_a_reason() {
        let cases = [
            ("(ab", "cannot be read: unclosed group", "regex"),
            (r"a(?!b)", "look-ahead and look-behind, is not supported", "cannot look around"),
            ("(?:ab)*", "matches where there is nothing", "mandatory"),
            (r"(?:x{1000}){1000}", "too large", "repeat less"),
            (r"(?:\w+\s+){100}", "too large", r"(?-u:\w)"),
            (r"a.{0,600}b", "stand for 600 characters", ".{0,80}"),
            (r"(?-u:\xFF)", "can match invalid UTF-8", "regex"),
        ];
        for (source, what, remedy) in cases {
            let (found, advice) = Pattern::new(source, false).unwrap_err();
            assert!(found.contains(what), "{source}: {found}");
            assert!(advice.contains(remedy), "{source}: {advice}");
        }
        let long = Pattern::new(&"ab".repeat(SOURCE_MAX), false).unwrap_err();
        assert!(long.0.contains("longer than"), "{long:?}");
        let deep = format!("{}a{}", "(".repeat(200), ")".repeat(200));
        assert!(Pattern::new(&deep, false).is_err());
        assert!(Pattern::new("(a+)+$", false).is_ok(), "runs in linear time");
    }

    #[test]
    fn whole_words_are_matched_if_asked_for() {
        let kept = Kept::default();
        let is_match = |words, text: &str| {
            let (pattern, _) = Pattern::new("cat|dog", words).unwrap();
            let mut found = false;
            pattern.find(text, &kept, |_| {
                found = true;
                false
            });
            found
        };
        assert!(is_match(false, "cats"));
        assert!(!is_match(true, "cats"));
        assert!(is_match(true, "a dog."));
        assert!(is_match(true, "ä dog ä"));
        assert!(!is_match(true, "ädog"));
        assert!(!is_match(true, "dogä"));
    }

    #[test]
    fn word_bounds_are_taken_out_and_nothing_else() {
        let cases = [
            (r"\bcat\b", Some("cat")),
            (r"(?:\bcat|^dog$)+", Some("(?:cat|^dog$)+")),
            (r"(\bcat){2}", Some("(?:cat){2}")),
            (r"a\Bb\b{start}", Some("ab")),
            (r"^cat$", None),
            (r"(?-u:\b)cat", None),
        ];
        for (pattern, without) in cases {
            let parse = |pattern: &str| regex_syntax::parse(pattern).unwrap();
            let found = without_word_bounds(&parse(pattern)).map(|hir| hir.to_string());
            assert_eq!(found, without.map(|without| parse(without).to_string()), "{pattern}");
        }
    }

    #[test]
    fn patterns_are_kept_while_there_is_room() {
        let kept = Kept::default();
        let (pattern, _) = Pattern::new("abc", false).unwrap();
        assert!(matches!(pattern.whole.compiled(&kept), Some(Cow::Borrowed(_))));
        assert_eq!(kept.0.load(Ordering::Relaxed), pattern.whole.cost);
        assert!(matches!(pattern.whole.compiled(&kept), Some(Cow::Borrowed(_))));
        assert_eq!(kept.0.load(Ordering::Relaxed), pattern.whole.cost, "kept once");
        let full = Kept(AtomicUsize::new(KEPT_MAX));
        let (other, _) = Pattern::new("abc", false).unwrap();
        assert!(matches!(other.whole.compiled(&full), Some(Cow::Owned(_))));
        assert_eq!(full.0.load(Ordering::Relaxed), KEPT_MAX);
    }
}
