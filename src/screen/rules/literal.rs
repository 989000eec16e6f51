//! Texts one of which must be in any text that a pattern matches: what spares trying thousands of patterns.

use super::fold::{Folds, fold_char, fold_phrase, push_folded};
use regex_syntax::hir::{Class, Hir, HirKind, Repetition};

/// Most texts of a set, and most sets of a pattern.
const SET_MAX: usize = 64;
pub(super) const SETS_MAX: usize = 4;
/// Most characters of a class that is looked at one by one.
const CLASS_MAX: u32 = 64;
/// Most bytes of a text that repeats.
const REPEATED_MAX: usize = 64;

/// What is known of the texts that a part of a pattern matches, all of it folded.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Known {
    /// Always this.
    Exactly(String),
    /// Of each set one is in it.
    Sets(Vec<Vec<String>>),
}

impl Known {
    fn sets(self) -> Vec<Vec<String>> {
        match self {
            Self::Exactly(text) if text.is_empty() => Vec::new(),
            Self::Exactly(text) => vec![vec![text]],
            Self::Sets(sets) => sets,
        }
    }
}

/// Sets of folded texts: one of each set is in the folded form of any text that the pattern matches. All have
/// `least` bytes. Empty if the pattern matches too many different texts.
pub(super) fn required(pattern: &Hir, least: usize) -> Vec<Vec<String>> {
    let mut sets = known(pattern).sets();
    sets.retain(|set| set.iter().all(|text| text.len() >= least));
    sets.sort_by_key(|set| std::cmp::Reverse(worth(set)));
    sets.dedup();
    sets.truncate(SETS_MAX);
    sets
}

/// What a set is worth: the length of its shortest text; of two that are alike the one with fewer texts.
fn worth(set: &[String]) -> (Option<usize>, std::cmp::Reverse<usize>) {
    (set.iter().map(String::len).min(), std::cmp::Reverse(set.len()))
}

fn known(hir: &Hir) -> Known {
    match hir.kind() {
        HirKind::Empty | HirKind::Look(_) => Known::Exactly(String::new()),
        HirKind::Literal(literal) => match str::from_utf8(&literal.0) {
            Ok(text) => Known::Exactly(fold_phrase(text)),
            Err(_) => Known::Sets(Vec::new()),
        },
        HirKind::Class(class) => match class_folds(class) {
            Some(one) => Known::Exactly(one.into()),
            None => Known::Sets(Vec::new()),
        },
        HirKind::Capture(capture) => known(&capture.sub),
        HirKind::Repetition(repetition) => repeated(repetition),
        HirKind::Concat(parts) => joined(parts),
        HirKind::Alternation(parts) => Known::Sets(alternatives(parts).into_iter().collect()),
    }
}

/// The character that all of a class fold to, such as both cases of a letter, or white space.
fn class_folds(class: &Class) -> Option<char> {
    let Class::Unicode(class) = class else { return None };
    let size = |range: &regex_syntax::hir::ClassUnicodeRange| {
        u32::from(range.end()) - u32::from(range.start()) + 1
    };
    if class.ranges().iter().map(size).sum::<u32>() > CLASS_MAX {
        return None;
    }
    let mut members = class.ranges().iter().flat_map(|range| range.start()..=range.end());
    let fold = |character| match fold_char(character) {
        Some(Folds::One(one)) => Some(one),
        _ => None,
    };
    let first = fold(members.next()?)?;
    members.all(|member| fold(member) == Some(first)).then_some(first)
}

fn repeated(repetition: &Repetition) -> Known {
    let times = repetition.min as usize;
    if times == 0 {
        return Known::Sets(Vec::new());
    }
    match known(&repetition.sub) {
        // However many blanks, they fold to one.
        Known::Exactly(text) if text == " " => Known::Exactly(text),
        Known::Exactly(text) if text.len().saturating_mul(times) <= REPEATED_MAX => {
            let all = Known::Exactly(fold_phrase(&text.repeat(times)));
            if repetition.max == Some(repetition.min) { all } else { Known::Sets(all.sets()) }
        }
        other => Known::Sets(other.sets()),
    }
}

fn joined(parts: &[Hir]) -> Known {
    let mut sets = Vec::new();
    let mut run = String::new();
    let mut all_exact = true;
    for part in parts {
        match known(part) {
            Known::Exactly(text) => {
                text.chars().for_each(|character| push_folded(&mut run, character));
            }
            Known::Sets(more) => {
                all_exact = false;
                sets.extend(Known::Exactly(std::mem::take(&mut run)).sets());
                sets.extend(more);
            }
        }
    }
    if all_exact {
        return Known::Exactly(run);
    }
    sets.extend(Known::Exactly(run).sets());
    Known::Sets(sets)
}

/// Of each alternative its best set, all of them together.
fn alternatives(parts: &[Hir]) -> Option<Vec<String>> {
    let mut all = Vec::new();
    for part in parts {
        all.extend(known(part).sets().into_iter().max_by_key(|set| worth(set))?);
    }
    all.sort_unstable();
    all.dedup();
    Some(all).filter(|all| all.len() <= SET_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(pattern: &str) -> Vec<Vec<String>> {
        required(&regex_syntax::parse(pattern).unwrap(), 3)
    }

    #[test]
    fn patterns_have_texts_that_must_be_there() {
        let cases: &[(&str, &[&[&str]])] = &[
            ("ignore", &[&["ignore"]]),
            ("(?i)IGNORE", &[&["ignore"]]),
            (r"(?i)\bignore\s+all\b", &[&["ignore all"]]),
            (r"(?i)ignore\s*all", &[&["ignore"], &["all"]]),
            (r"(?i)ignore(?: all)? previous", &[&[" previous"], &["ignore"]]),
            (r"(?i)(?:ignore|forget) it", &[&["forget", "ignore"], &[" it"]]),
            (r"(?i)(?:ignore|forget) everything", &[&[" everything"], &["forget", "ignore"]]),
            (r"x[0-9]+yess{2,}", &[&["yes"]]),
            (r"(?:abc){2}", &[&["abcabc"]]),
            (r"(?:abc)+", &[&["abc"]]),
            (r"(?:abc.def)+", &[&["abc"], &["def"]]),
            (r"abc.abc", &[&["abc"]]),
            (r"abc.def|ghij.kl", &[&["def", "ghij"]]),
            (r"(?i)ki\u{17f}\u{17f}", &[&["kiss"]]),
            (r"(?i)игнорируй", &[&["игнорируй"]]),
            (r"don['’]t", &[&["don't"]]),
            (r"a\u{200b}bc", &[&["abc"]]),
            (r"aaa.bbb.ccc.ddd.eeee", &[&["eeee"], &["aaa"], &["bbb"], &["ccc"]]),
            (r"(?:abc)?", &[]),
            (r"\d{3}-\d{4}", &[]),
            (r"ab.c", &[]),
            (r"abc|\d+", &[]),
            (r"\w+", &[]),
            ("(?:)", &[]),
        ];
        for (pattern, sets) in cases {
            assert_eq!(of(pattern), *sets, "{pattern}");
        }
    }

    #[test]
    fn what_matches_contains_one_of_the_texts() {
        let cases = [
            (r"(?i)\bignore\s+all\b", "IGNORE \n\t ALL"),
            (r"(?i)ki\u{17f}s", "\u{212a}ISſ"),
            (r"a\s+\s+b{3}", "a   bbb"),
            (r"(?i)ΟΔΟΣ", "οδος"),
            (r"x\s{2}yz", "x  yz"),
            (r" +abc +", "   abc  "),
        ];
        for (pattern, text) in cases {
            assert!(regex::Regex::new(pattern).unwrap().is_match(text), "{pattern}");
            let folded = super::super::fold::fold_phrase(text);
            let sets = of(pattern);
            assert!(!sets.is_empty(), "{pattern}");
            let has_one = |set: &Vec<String>| set.iter().any(|part| folded.contains(part));
            assert!(sets.iter().all(has_one), "{pattern}: {sets:?}");
        }
    }
}
