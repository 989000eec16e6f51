//! Counts characters that fill and say nothing: one over and over, white space, the mark of broken text.

/// Characters between two marks of broken text that make up for one. Servers that cut a stream within a
/// character leave one or two now and then.
const BETWEEN: u32 = 32;

/// Rows of the same, up to the newest character.
#[derive(Clone, Debug, Default)]
pub(super) struct Fill {
    last: Option<char>,
    run: u32,
    longest: u32,
    blanks: u32,
    lines: u32,
    replaced: u32,
    level: u32,
}

/// Limits, in characters.
#[derive(Clone, Copy, Debug)]
pub(super) struct FillLimits {
    /// Of one letter; others than letters may be four times as many.
    pub(super) same: u32,
    /// Of line ends with nothing but white space between.
    pub(super) lines: u32,
    /// Of white space.
    pub(super) blanks: u32,
    /// Of marks of broken text: in a row, and three times as many all in all.
    pub(super) broken: u32,
}

impl Fill {
    /// Takes the next character.
    pub(super) fn push(&mut self, ch: char) {
        self.run = if self.last == Some(ch) { self.run.saturating_add(1) } else { 1 };
        self.last = Some(ch);
        let blank = ch.is_whitespace() || is_unseen(ch);
        if blank {
            self.blanks = self.blanks.saturating_add(1);
            self.lines = self.lines.saturating_add(u32::from(ch == '\n'));
        } else {
            (self.blanks, self.lines) = (0, 0);
            self.longest = self.longest.max(self.run);
        }
        if ch == char::REPLACEMENT_CHARACTER {
            self.replaced = self.replaced.saturating_add(1);
            self.level = self.level.saturating_add(BETWEEN);
        } else {
            self.level = self.level.saturating_sub(1);
        }
    }

    /// Has nothing been said for too long?
    pub(super) fn is_endless(&self, limits: &FillLimits) -> bool {
        let same = match self.last {
            // The first token of many vocabularies, which a server with broken numbers writes for ever.
            Some('!') => limits.same / 3,
            Some(ch) if ch.is_alphabetic() => limits.same,
            _ => limits.same * 4,
        };
        let blank = self.blanks >= limits.blanks || self.lines >= limits.lines;
        blank || (self.blanks == 0 && self.run >= same)
    }

    /// Is the text broken?
    pub(super) fn is_broken(&self, limits: &FillLimits) -> bool {
        let broken = self.last == Some(char::REPLACEMENT_CHARACTER);
        broken && (self.run >= limits.broken || self.level >= 3 * limits.broken * BETWEEN)
    }

    /// Most times that one character, no white space, came in a row.
    pub(super) fn longest(&self) -> u32 {
        self.longest
    }

    /// Marks of broken text so far.
    pub(super) fn replaced(&self) -> u32 {
        self.replaced
    }
}

/// Characters without width, and controls.
fn is_unseen(ch: char) -> bool {
    ch.is_control() || matches!(ch, '\u{200B}'..='\u{200F}' | '\u{2060}' | '\u{FEFF}' | '\u{3164}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_of_filling_has_its_limit() {
        let limits = FillLimits { same: 300, lines: 60, blanks: 700, broken: 8 };
        let ends = |text: &str| {
            let mut fill = Fill::default();
            let wrong = |ch| {
                fill.push(ch);
                fill.is_endless(&limits) || fill.is_broken(&limits)
            };
            text.chars().map(wrong).position(|wrong| wrong).map(|at| at + 1)
        };
        let cases = [
            ("a".repeat(299), None),
            ("a".repeat(300), Some(300)),
            ("!".repeat(120), Some(100)),
            ("-".repeat(1199), None),
            ("=".repeat(1200), Some(1200)),
            (" ".repeat(699) + ".", None),
            (" ".repeat(800), Some(700)),
            ("\n \t".repeat(70), Some(60 * 3 - 2)),
            ("\u{200b}".repeat(700), Some(700)),
            ("\u{fffd}".repeat(8), Some(8)),
            ("\u{fffd}\u{fffd} ok ".repeat(20), Some(12 * 6 + 2)),
            (
                format!("{}.", "\u{fffd}".repeat(2))
                    + &"Words and words and words and words and words and words.".repeat(2),
                None,
            ),
        ];
        for (text, expected) in cases {
            assert_eq!(ends(&text), expected, "{}", text.chars().take(20).collect::<String>());
        }
        let rare = format!(
            "\u{fffd}\u{fffd}{}",
            "sixty characters of words that are whole and make sense too. "
        );
        assert_eq!(ends(&rare.repeat(50)), None);
    }
}
