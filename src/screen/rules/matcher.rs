//! All rules at once: one pass over the text for every phrase and for what patterns need, then the few
//! patterns that may match.
//!
//! Sets of patterns were measured against this: a set of 16 is faster than single patterns on 4 KB and
//! slower on 1 MB, one of 64 a hundred times slower on both, because its automaton outgrows its memory.

use super::{
    Hit, Rule,
    fold::{Folded, fold_phrase},
    origin::Origin,
    pattern::{Kept, Pattern},
    problem::{Problem, Report},
    read::Written,
};
use aho_corasick::{AhoCorasick, AhoCorasickKind};
use std::{collections::HashMap, ops::Range};

/// Most hits of one rule in one text.
const RULE_HITS_MAX: usize = 64;
/// Most hits beside the first of each rule. So no rule hides behind another that hits often.
const MORE_HITS_MAX: usize = 1024;
/// Most phrases of all rules, and most bytes of all of them.
const PHRASES_MAX: usize = 500_000;
const PHRASES_BYTES_MAX: usize = 32 << 20;
/// Most bytes of all phrases that are put into the fast automaton.
const FAST_MAX: usize = 16 << 10;
/// Most and fewest bytes of a phrase, folded.
const PHRASE: std::ops::RangeInclusive<usize> = 2..=1024;
/// Most phrases that end a phrase: each is looked at where the longest stands.
const NESTED_MAX: usize = 64;
/// Most patterns that must be tried on every text.
const ALWAYS_MAX: usize = 64;

/// Who waits for a literal.
#[derive(Clone, Copy, Debug)]
enum Owner {
    /// A phrase of a rule.
    Phrase(usize),
    /// A pattern that cannot match without one of the texts of this set, of which it is one.
    Pattern(usize, u8),
}

/// A pattern.
#[derive(Debug)]
struct Entry {
    pattern: Pattern,
    /// Its rule.
    rule: usize,
    /// A bit for each set of which a text must be there.
    sets: u8,
}

/// All rules, compiled.
#[derive(Debug, Default)]
pub(super) struct Matcher {
    literals: Option<AhoCorasick>,
    /// Of each literal.
    owners: Vec<Vec<Owner>>,
    patterns: Vec<Entry>,
    /// Patterns that no literal tells.
    always: Vec<usize>,
    kept: Kept,
}

/// Rules on their way into a matcher.
#[derive(Default)]
struct Builder {
    matcher: Matcher,
    places: HashMap<String, usize>,
    bytes: usize,
}

impl Matcher {
    /// Compiles rules. What is wrong goes to `problems`.
    pub(super) fn new(rules: &[Written], problems: &mut Vec<Problem>) -> Self {
        let mut builder = Builder::default();
        for (place, rule) in rules.iter().enumerate() {
            let mut report = Report { problems, rule: rule.id.clone() };
            for (phrase, line) in &rule.phrases {
                builder.phrase(place, phrase, *line, &mut report);
            }
            for (pattern, line) in &rule.patterns {
                builder.pattern(place, rule.words, pattern, *line, &mut report);
            }
        }
        builder.finish(rules, problems)
    }

    /// The hits in a text, in order.
    pub(super) fn find(&self, rules: &[Rule], text: &str, origin: Origin) -> Vec<Hit> {
        let mut search = Search {
            rules,
            origin,
            text,
            counts: vec![0; rules.len()],
            more: MORE_HITS_MAX,
            hits: Vec::new(),
        };
        let candidates = self.phrases(&mut search);
        for pattern in candidates.into_iter().chain(self.always.iter().copied()) {
            let Some(Entry { pattern, rule, .. }) = self.patterns.get(pattern) else { continue };
            if search.applies(*rule) {
                pattern.find(text, &self.kept, |span| search.hit(*rule, span));
            }
        }
        search.hits.sort_by_key(|hit| (hit.span.start, hit.rule));
        search.hits
    }

    /// Finds phrases, and tells the patterns that may match.
    fn phrases(&self, search: &mut Search<'_>) -> Vec<usize> {
        let mut candidates = Vec::new();
        let Some(literals) = &self.literals else { return candidates };
        let folded = Folded::new(search.text);
        let mut done = vec![false; self.owners.len()];
        let mut seen = vec![0; self.patterns.len()];
        for found in literals.find_overlapping_iter(folded.text.as_ref()) {
            let literal = found.pattern().as_usize();
            let (Some(owners), Some(done)) = (self.owners.get(literal), done.get_mut(literal))
            else {
                continue;
            };
            if *done {
                continue;
            }
            *done = true;
            for owner in owners {
                match owner {
                    Owner::Phrase(rule) => *done &= !search.phrase(*rule, &folded, found.range()),
                    Owner::Pattern(pattern, set) => {
                        let (Some(entry), Some(seen)) =
                            (self.patterns.get(*pattern), seen.get_mut(*pattern))
                        else {
                            continue;
                        };
                        let before = std::mem::replace(seen, *seen | set);
                        if *seen == entry.sets && before != entry.sets {
                            candidates.push(*pattern);
                        }
                    }
                }
            }
        }
        candidates
    }
}

impl Builder {
    fn literal(&mut self, text: String, owner: Owner) {
        let next = self.places.len();
        self.bytes += text.len();
        let place = *self.places.entry(text).or_insert(next);
        if place == next {
            self.matcher.owners.push(Vec::new());
        }
        if let Some(owners) = self.matcher.owners.get_mut(place) {
            owners.push(owner);
        }
    }

    fn phrase(&mut self, rule: usize, phrase: &str, line: usize, report: &mut Report<'_>) {
        let folded = fold_phrase(phrase.trim());
        if PHRASE.contains(&folded.len()) {
            self.literal(folded, Owner::Phrase(rule));
        } else {
            let shown: String = phrase.chars().take(40).collect();
            let what = format!("the phrase {shown:?} has {} bytes", folded.len());
            report.add(line, what, format!("use {} to {} bytes", PHRASE.start(), PHRASE.end()));
        }
    }

    fn pattern(
        &mut self,
        rule: usize,
        words: bool,
        source: &str,
        line: usize,
        report: &mut Report<'_>,
    ) {
        let (pattern, sets) = match Pattern::new(source, words) {
            Ok(made) => made,
            Err((what, remedy)) => return report.add(line, what, remedy),
        };
        let place = self.matcher.patterns.len();
        let mut bits = 0;
        for (number, set) in sets.into_iter().enumerate() {
            bits |= 1 << number;
            for literal in set {
                self.literal(literal, Owner::Pattern(place, 1 << number));
            }
        }
        self.matcher.patterns.push(Entry { pattern, rule, sets: bits });
        if bits == 0 {
            self.matcher.always.push(place);
            if self.matcher.always.len() == ALWAYS_MAX + 1 {
                let what = format!(
                    "more than {ALWAYS_MAX} patterns have no three letters in a row that must be there, \
                     and each of them is tried on every text"
                );
                report.add(line, what, "put a word into the pattern");
            }
        }
    }

    fn finish(mut self, rules: &[Written], problems: &mut Vec<Problem>) -> Matcher {
        let mut file = Report { problems, rule: String::new() };
        if self.places.len() > PHRASES_MAX || self.bytes > PHRASES_BYTES_MAX {
            let what = format!(
                "{} phrases of {} MiB are too many",
                self.places.len(),
                self.bytes.div_ceil(1 << 20)
            );
            let remedy = format!("use at most {PHRASES_MAX}, of {} MiB", PHRASES_BYTES_MAX >> 20);
            file.add(0, what, remedy);
            return self.matcher;
        }
        let mut texts: Vec<_> = self.places.into_iter().collect();
        texts.sort_unstable_by_key(|(_, place)| *place);
        // Three times as fast, and takes 256 bytes and more for a byte of text.
        let kind = (self.bytes <= FAST_MAX).then_some(AhoCorasickKind::DFA);
        let literals = AhoCorasick::builder().kind(kind).build(texts.iter().map(|(text, _)| text));
        match literals {
            Ok(literals) => {
                for (text, place) in &texts {
                    let nested = literals
                        .find_overlapping_iter(text)
                        .filter(|found| found.end() == text.len());
                    if nested.count() > NESTED_MAX {
                        let rule = self.matcher.rule_of(*place).and_then(|rule| rules.get(rule));
                        file.rule = rule.map(|rule| rule.id.clone()).unwrap_or_default();
                        let what =
                            format!("more than {NESTED_MAX} phrases are the end of {text:?}");
                        file.add(0, what, "leave out those that a shorter one covers");
                        break;
                    }
                }
                self.matcher.literals = Some(literals).filter(|_| !texts.is_empty());
            }
            Err(error) => {
                file.add(0, format!("the phrases cannot be put together: {error}"), "use fewer")
            }
        }
        self.matcher
    }
}

impl Matcher {
    /// The rule that a literal belongs to.
    fn rule_of(&self, literal: usize) -> Option<usize> {
        match self.owners.get(literal)?.first()? {
            Owner::Phrase(rule) => Some(*rule),
            Owner::Pattern(pattern, _) => self.patterns.get(*pattern).map(|entry| entry.rule),
        }
    }

    /// Compiles each pattern now, as far as there is room to keep it.
    pub(super) fn warm(&self, most: usize) {
        for entry in self.patterns.iter().take(most) {
            entry.pattern.warm(&self.kept);
        }
    }
}

/// One search in a text.
struct Search<'a> {
    rules: &'a [Rule],
    origin: Origin,
    text: &'a str,
    /// Hits of each rule.
    counts: Vec<usize>,
    /// How many hits beside the first of each rule may still come.
    more: usize,
    hits: Vec<Hit>,
}

impl Search<'_> {
    fn applies(&self, rule: usize) -> bool {
        self.rules.get(rule).is_some_and(|rule| rule.origins.has(self.origin))
    }

    /// A phrase is in the folded text. Returns whether there may be more hits of its rule.
    fn phrase(&mut self, rule: usize, folded: &Folded<'_>, at: Range<usize>) -> bool {
        if !self.applies(rule) {
            return false;
        }
        let words = self.rules.get(rule).is_some_and(|rule| rule.words);
        if words && !is_whole(&folded.text, at.clone()) {
            return true;
        }
        let span = folded.original(at.start)..folded.original(at.end);
        self.hit(rule, span)
    }

    /// Adds a hit. Returns whether there may be more of its rule.
    fn hit(&mut self, place: usize, span: Range<usize>) -> bool {
        let (Some(rule), Some(count)) = (self.rules.get(place), self.counts.get_mut(place)) else {
            return false;
        };
        if *count > 0 {
            if *count >= RULE_HITS_MAX || self.more == 0 {
                return false;
            }
            self.more -= 1;
        }
        *count += 1;
        self.hits.push(Hit {
            rule: place,
            id: rule.id.clone(),
            label: rule.label.clone(),
            score: rule.score,
            action: rule.action,
            span: whole_characters(self.text, span),
        });
        true
    }
}

/// Does no letter, digit or `_` stand beside it?
fn is_whole(text: &str, at: Range<usize>) -> bool {
    let is_word = |character: char| character.is_alphanumeric() || character == '_';
    let before = text.get(..at.start).and_then(|before| before.chars().next_back());
    let behind = text.get(at.end..).and_then(|behind| behind.chars().next());
    !before.is_some_and(is_word) && !behind.is_some_and(is_word)
}

fn whole_characters(text: &str, span: Range<usize>) -> Range<usize> {
    let start = (0..=span.start).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
    let end = (span.end..=text.len()).find(|at| text.is_char_boundary(*at)).unwrap_or(text.len());
    start..end
}
