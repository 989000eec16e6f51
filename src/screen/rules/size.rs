//! How large a pattern's program is, before it is compiled.

use regex_syntax::{
    hir::{Class, Hir, HirKind},
    utf8::Utf8Sequences,
};

/// What one step of a program takes, bytes.
const STEP: usize = 40;

/// The characters that counted repetitions stand for.
pub(super) fn counted(hir: &Hir) -> usize {
    match hir.kind() {
        HirKind::Empty | HirKind::Look(_) | HirKind::Literal(_) | HirKind::Class(_) => 0,
        HirKind::Capture(capture) => counted(&capture.sub),
        HirKind::Concat(parts) | HirKind::Alternation(parts) => {
            parts.iter().map(counted).fold(0, usize::saturating_add)
        }
        HirKind::Repetition(repetition) => match repetition.max.unwrap_or(repetition.min) {
            0 | 1 => counted(&repetition.sub),
            times => characters(&repetition.sub).saturating_mul(times as usize),
        },
    }
}

/// The characters that a part of a pattern stands for, repetitions written out.
fn characters(hir: &Hir) -> usize {
    match hir.kind() {
        HirKind::Empty | HirKind::Look(_) => 0,
        HirKind::Class(_) => 1,
        HirKind::Literal(literal) => literal.0.len(),
        HirKind::Capture(capture) => characters(&capture.sub),
        HirKind::Concat(parts) | HirKind::Alternation(parts) => {
            parts.iter().map(characters).fold(0, usize::saturating_add)
        }
        HirKind::Repetition(repetition) => {
            let times = repetition.max.unwrap_or(repetition.min).max(1) as usize;
            characters(&repetition.sub).saturating_mul(times)
        }
    }
}

/// About how many bytes the pattern's program takes, never much less than it does.
pub(super) fn weight(hir: &Hir) -> usize {
    let steps = match hir.kind() {
        HirKind::Empty => 1,
        HirKind::Look(_) => 1,
        HirKind::Literal(literal) => literal.0.len(),
        HirKind::Class(class) => return class_weight(class),
        HirKind::Capture(capture) => return weight(&capture.sub) + 2 * STEP,
        HirKind::Repetition(repetition) => {
            let times = repetition.max.unwrap_or(repetition.min + 1).max(repetition.min) as usize;
            return weight(&repetition.sub).saturating_add(STEP).saturating_mul(times.max(1));
        }
        HirKind::Concat(parts) | HirKind::Alternation(parts) => {
            return parts.iter().map(|part| weight(part) + STEP).fold(0, usize::saturating_add);
        }
    };
    steps.saturating_mul(STEP)
}

fn class_weight(class: &Class) -> usize {
    let steps = match class {
        Class::Bytes(_) => 1,
        Class::Unicode(class) => class
            .ranges()
            .iter()
            .flat_map(|range| Utf8Sequences::new(range.start(), range.end()))
            .map(|sequence| sequence.len())
            .sum(),
    };
    // Steps are shared among characters that start or end alike.
    if steps > 64 { steps * STEP / 2 } else { steps * STEP }
}

#[cfg(test)]
mod tests {
    use super::*;
    use regex::RegexBuilder;

    #[test]
    fn weights_are_near_what_patterns_take() {
        let patterns = [
            "ignore",
            r"(?i)\bignore\s+(?:all|any)\s+instructions\b",
            r"(?i)ignore.{0,40}instructions",
            r"ticket-\d{4,8}\w*",
            r"(?i)\b(?:ignore|forget|drop)\w*\W+instructions",
            r"(?:\w+\s){3}x",
            r"[^\n]{1,200}!",
            r"a{500}",
            r"(?i)ignore\W{1,8}(?:\w+\W+){0,3}instructions",
            r"(?:(?:ab){1,9}c){1,9}",
            r"\p{Greek}+\p{Han}",
        ];
        for pattern in patterns {
            let weight = weight(&regex_syntax::parse(pattern).unwrap());
            let fits = |limit| RegexBuilder::new(pattern).size_limit(limit).build().is_ok();
            assert!(fits(2 * weight), "{pattern}: takes more than twice {weight}");
            // Of a plain text no program is made.
            assert!(
                weight < 4096 || !fits(weight / 12),
                "{pattern}: takes much less than {weight}"
            );
        }
    }

    #[test]
    fn counted_characters_are_counted() {
        let cases = [
            ("abc", 0),
            ("a*b+c?", 0),
            ("a{3}", 3),
            ("a{3,}", 3),
            ("(?:ab|c){2,4}", 12),
            ("(?:[ab]{1,5}c){1,10}x{2}", 62),
            ("(?:a{3}b)*", 3),
        ];
        for (pattern, count) in cases {
            assert_eq!(counted(&regex_syntax::parse(pattern).unwrap()), count, "{pattern}");
        }
    }
}
