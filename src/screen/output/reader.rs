//! Reads the escapes of JSON strings, addresses and HTML, as answers inside of tool calls and code have them:
//! `\n` is no letter, `\u00e9`, `%20` and `&#233;` are the characters that they stand for.
//!
//! Both sides of a comparison go through it, so it need not know whether an escape was meant.

/// Takes characters, hands on characters. A few bytes of state.
#[derive(Clone, Debug, Default)]
pub(super) struct Reader {
    state: State,
    /// Where the escape began that is being read.
    start: usize,
}

#[derive(Clone, Copy, Debug, Default)]
enum State {
    #[default]
    Text,
    Slash,
    /// Digits of a code are still missing.
    Code {
        value: u32,
        left: u8,
    },
    /// A percent sign, and perhaps a digit of two.
    Percent(Option<u32>),
    /// An ampersand, and what may be the name of a character.
    Entity {
        name: [u8; NAME_MAX],
        len: u8,
    },
}

/// Longest name of a character that is read, its `#` counted.
const NAME_MAX: usize = 7;

impl Reader {
    /// Takes the character at `at` and hands on those that are certain now, each with the place where it (or
    /// its escape) began.
    pub(super) fn push(&mut self, ch: char, at: usize, mut each: impl FnMut(char, usize)) {
        if matches!(self.state, State::Text) {
            return self.plain(ch, at, each);
        }
        let state = std::mem::take(&mut self.state);
        match (state, ch.to_digit(16)) {
            (State::Code { value, left }, Some(digit)) => {
                let value = value * 16 + digit;
                if left > 1 {
                    self.state = State::Code { value, left: left - 1 };
                } else if let Some(ch) = char::from_u32(value) {
                    each(ch, self.start);
                }
            }
            (State::Percent(None), Some(digit)) => self.state = State::Percent(Some(digit)),
            (State::Percent(Some(high)), Some(low)) => {
                // Bytes of longer characters are left to whoever reads hexadecimals.
                if let Some(ch) = char::from_u32(high * 16 + low).filter(char::is_ascii) {
                    each(ch, self.start);
                }
            }
            (State::Percent(Some(digit)), None) => {
                // It was no escape after all.
                if let Some(ch) = char::from_digit(digit, 16) {
                    each(ch, self.start + 1);
                }
                self.plain(ch, at, each);
            }
            (State::Entity { name, len }, _) => self.entity(name, len, (ch, at), each),
            (State::Slash, _) => self.behind_slash(ch, at, each),
            (State::Text | State::Code { .. } | State::Percent(None), _) => {
                self.plain(ch, at, each);
            }
        }
    }

    fn plain(&mut self, ch: char, at: usize, mut each: impl FnMut(char, usize)) {
        match ch {
            '\\' => (self.state, self.start) = (State::Slash, at),
            '%' => (self.state, self.start) = (State::Percent(None), at),
            '&' => {
                (self.state, self.start) = (State::Entity { name: [0; NAME_MAX], len: 0 }, at);
            }
            _ => each(ch, at),
        }
    }

    fn entity(
        &mut self,
        mut name: [u8; NAME_MAX],
        len: u8,
        (ch, at): (char, usize),
        mut each: impl FnMut(char, usize),
    ) {
        let Some((read, left)) = name.split_at_mut_checked(usize::from(len)) else { return };
        if ch == ';'
            && let Some(meant) = named(read)
        {
            return each(meant, self.start);
        }
        let goes_on = ch.is_ascii_alphanumeric() || (ch == '#' && len == 0);
        match left.first_mut().filter(|_| goes_on) {
            Some(next) => {
                *next = ch as u8;
                self.state = State::Entity { name, len: len + 1 };
            }
            None => {
                // It was none after all.
                let start = self.start + 1;
                read.iter().zip(start..).for_each(|(byte, at)| each(char::from(*byte), at));
                self.plain(ch, at, each);
            }
        }
    }

    fn behind_slash(&mut self, ch: char, at: usize, mut each: impl FnMut(char, usize)) {
        match ch {
            'n' | 'r' | 't' | 'b' | 'f' => each('\n', self.start),
            'u' => self.state = State::Code { value: 0, left: 4 },
            'x' => self.state = State::Code { value: 0, left: 2 },
            // Escaped twice is as good as once.
            '\\' => self.state = State::Slash,
            _ => self.plain(ch, at, each),
        }
    }
}

/// The character that an HTML name means. Of those with words only the ones that no text does without.
fn named(name: &[u8]) -> Option<char> {
    match name {
        b"nbsp" => Some(' '),
        b"amp" => Some('&'),
        b"lt" => Some('<'),
        b"gt" => Some('>'),
        b"quot" => Some('"'),
        b"apos" => Some('\''),
        [b'#', b'x' | b'X', digits @ ..] => number(digits, 16),
        [b'#', digits @ ..] => number(digits, 10),
        _ => None,
    }
}

fn number(digits: &[u8], base: u32) -> Option<char> {
    let text = std::str::from_utf8(digits).ok()?;
    char::from_u32(u32::from_str_radix(text, base).ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> String {
        let (mut reader, mut out) = (Reader::default(), String::new());
        for (at, ch) in text.char_indices() {
            reader.push(ch, at, |ch, from| {
                assert!(from <= at);
                out.push(ch);
            });
        }
        out
    }

    #[test]
    fn escapes_are_read_and_all_else_is_left() {
        let cases = [
            (r"one\ntwo\\nthree\tfour", "one\ntwo\nthree\nfour"),
            (r"caf\u00e9 \x41", "café A"),
            ("a%20b%2Fc", "a b/c"),
            ("100% of 5%a and 7%", "100 of 5a and 7"),
            (r#"\"quoted\" \_under\_"#, r#""quoted" _under_"#),
            ("%E4%BD%A0 ok", " ok"),
            ("%%41", "A"),
            ("caf&#233; caf&#xE9;&nbsp;&quot;x&quot;", "café café \"x\""),
            ("R&D, Q&A; a & b &c; &unknownname; &&#65;", "RD, QA; a  b c; unknownname; A"),
            ("&amp;#65; &#; &#x;", "&#65; #; #x;"),
            ("plain", "plain"),
        ];
        for (text, expected) in cases {
            assert_eq!(read(text), expected, "{text}");
        }
    }
}
