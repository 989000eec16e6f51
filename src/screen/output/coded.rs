//! Reads base64 and hexadecimal in a stream as it comes, into characters. Everything is taken for code that can
//! be: what was no code comes out as noise, which means nothing to whoever looks for given words.

/// Characters of base64 in a row after which white space is taken for a line's end within it.
const LINE_LEAST: u8 = 16;

/// Takes the stream's characters, gives the coded text's.
#[derive(Clone, Debug, Default)]
pub(super) struct Base64 {
    bits: u32,
    /// Characters of the group of four.
    group: u8,
    row: u8,
    /// Where the group began.
    start: usize,
    utf8: Utf8,
}

impl Base64 {
    /// Takes the character that began at byte `at`. Those that are complete are handed on, with the place
    /// where their last group of four began.
    pub(super) fn push(&mut self, ch: char, at: usize, each: impl FnMut(char, usize)) {
        let Some(sextet) = sextet(ch) else { return self.end_row(ch) };
        if self.group == 0 {
            self.start = at;
        }
        self.bits = (self.bits << 6) | u32::from(sextet);
        self.group = (self.group + 1) % 4;
        self.row = self.row.saturating_add(1);
        let byte = match self.group {
            2 => self.bits >> 4,
            3 => self.bits >> 2,
            0 => self.bits,
            _ => return,
        };
        self.utf8.push(byte as u8, self.start, each);
    }

    fn end_row(&mut self, ch: char) {
        // A long row goes on after a line's end. A short one was a word.
        let goes_on = ch.is_whitespace() && (self.row == 0 || self.row >= LINE_LEAST);
        if !goes_on {
            self.group = 0;
        }
        self.row = 0;
    }
}

fn sextet(ch: char) -> Option<u8> {
    Some(match ch {
        'A'..='Z' => ch as u8 - b'A',
        'a'..='z' => ch as u8 - b'a' + 26,
        '0'..='9' => ch as u8 - b'0' + 52,
        '+' | '-' => 62,
        '/' | '_' => 63,
        _ => return None,
    })
}

/// Takes the stream's characters, gives those that pairs of hexadecimal digits stand for.
#[derive(Clone, Debug, Default)]
pub(super) struct Hex {
    /// The first digit of a pair and where it stood.
    first: Option<(u8, usize)>,
    utf8: Utf8,
}

impl Hex {
    /// Takes the character that began at byte `at`. Those that are complete are handed on.
    pub(super) fn push(&mut self, ch: char, at: usize, each: impl FnMut(char, usize)) {
        let digit = ch.to_digit(16).map(|digit| digit as u8);
        match (self.first.take(), digit) {
            (Some((high, start)), Some(low)) => self.utf8.push((high << 4) | low, start, each),
            (None, Some(high)) => self.first = Some((high, at)),
            // Separators and prefixes (`0x`, `\x`, `%`) stand between pairs.
            (_, None) => {}
        }
    }
}

/// Puts characters together from bytes. What is no UTF-8 is skipped.
#[derive(Clone, Copy, Debug, Default)]
struct Utf8 {
    value: u32,
    missing: u8,
}

impl Utf8 {
    fn push(&mut self, byte: u8, at: usize, mut each: impl FnMut(char, usize)) {
        let (value, missing) = match byte {
            0x80..=0xBF if self.missing > 0 => {
                ((self.value << 6) | u32::from(byte & 0x3F), self.missing - 1)
            }
            0..=0x7F => (u32::from(byte), 0),
            0xC2..=0xDF => (u32::from(byte & 0x1F), 1),
            0xE0..=0xEF => (u32::from(byte & 0x0F), 2),
            0xF0..=0xF4 => (u32::from(byte & 0x07), 3),
            _ => (0, 0),
        };
        (self.value, self.missing) = (value, missing);
        if missing == 0
            && let Some(ch) = char::from_u32(value).filter(|ch| *ch != '\0')
        {
            each(ch, at);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use base64::{Engine, engine::general_purpose as engines};

    fn base64(text: &str) -> String {
        let (mut decoder, mut out) = (Base64::default(), String::new());
        text.char_indices().for_each(|(at, ch)| decoder.push(ch, at, |ch, _| out.push(ch)));
        out
    }

    fn hex(text: &str) -> String {
        let (mut decoder, mut out) = (Hex::default(), String::new());
        text.char_indices().for_each(|(at, ch)| decoder.push(ch, at, |ch, _| out.push(ch)));
        out
    }

    #[test]
    fn base64_is_read_in_lines_and_in_both_alphabets() {
        let text = "Never tell anyone that the vault's code is 4711 — 你好, señor ÿÿÿ???>>>";
        let coded = engines::STANDARD.encode(text);
        assert_eq!(base64(&coded), text);
        assert_eq!(base64(&engines::URL_SAFE_NO_PAD.encode(text)), text);
        // Cut into lines of any length, behind prose.
        for width in [17, 19, 64, 76] {
            let lines: Vec<String> = coded
                .as_bytes()
                .chunks(width)
                .map(|line| String::from_utf8_lossy(line).into())
                .collect();
            let found = base64(&format!("Here it is:\n```\n{}\n```", lines.join("\r\n")));
            assert!(found.contains("Never tell anyone that the vault"), "{width}: {found}");
            assert!(found.contains(if width > 16 { "señor" } else { "" }), "{width}: {found}");
        }
        // Groups apart.
        let groups: Vec<&str> =
            coded.as_bytes().chunks(4).filter_map(|four| std::str::from_utf8(four).ok()).collect();
        assert!(base64(&groups.join(" ")).contains(text));
    }

    #[test]
    fn hexadecimals_are_read_with_all_kinds_of_separators() {
        let text = "Nie verraten: ключ";
        for (before, between) in
            [("", ""), ("", " "), ("0x", ", "), ("\\x", ""), ("%", ""), ("", ":")]
        {
            let bytes: Vec<String> =
                text.bytes().map(|byte| format!("{before}{byte:02X}")).collect();
            assert_eq!(hex(&bytes.join(between)), text, "{before} {between}");
        }
    }

    #[test]
    fn what_is_no_utf8_is_skipped() {
        assert_eq!(hex("ff 41 c3 41 c3 a9 e4 bd 42 80 43 ed a0 80 44"), "AAéBCD");
    }
}
