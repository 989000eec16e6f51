//! Finds tokens that steer a model and should never be text: ends of turns, paddings, roles. An answer about
//! such tokens shows them in code or between spaces; one that has fallen apart has them right behind its words.

/// Longest token that is known, without its brackets.
const LONGEST: usize = 32;

/// Between `<` and `>`; those between bars (`<|...|>`) are all taken.
const ANGLED: [&str; 12] = [
    "unk",
    "pad",
    "eos",
    "bos",
    "/s",
    "start_of_turn",
    "end_of_turn",
    "end_of_utterance",
    "<SYS",
    "</SYS",
    "mask",
    "eot",
];
/// Between `[` and `]`.
const SQUARE: [&str; 9] =
    ["INST", "/INST", "PAD", "UNK", "SEP", "CLS", "MASK", "EOS", "gMASK]<sop"];
/// Of these, those that texts have too: HTML's struck words, examples of tokens.
const COMMON: [&str; 6] = ["/s", "mask", "PAD", "SEP", "CLS", "MASK"];

/// Counts tokens in a stream.
#[derive(Clone, Debug, Default)]
pub(super) struct Control {
    /// What came behind an opening bracket, while it may become a token.
    name: [u8; LONGEST],
    len: usize,
    open: Option<char>,
    /// The character before the bracket, or the last.
    before: Option<char>,
    /// The last token, and how often it came with nothing but white space between.
    last: u64,
    row: u32,
    stray: u32,
    ticks: u8,
    /// Within a block of code, or within code in a line.
    block: bool,
    inline: bool,
}

impl Control {
    /// Takes the next character.
    pub(super) fn push(&mut self, ch: char) {
        self.code(ch);
        let Some(open) = self.open else {
            return self.outside(ch);
        };
        let close = if open == '<' { '>' } else { ']' };
        match ch {
            _ if ch == close => {
                self.token(open);
                (self.open, self.before) = (None, Some('>'));
            }
            '<' if open == '<' && self.len == 0 => self.add(b'<'),
            'a'..='z' | 'A'..='Z' | '0'..='9' | '|' | '/' | '_' | '-' | '.' => self.add(ch as u8),
            // How some models draw theirs.
            '｜' => self.add(b'|'),
            '▁' => self.add(b'_'),
            _ => {
                (self.open, self.before) = (None, Some(open));
                self.row = 0;
                self.outside(ch);
            }
        }
    }

    fn outside(&mut self, ch: char) {
        if ch == '<' || ch == '[' {
            (self.open, self.len) = (Some(ch), 0);
            return;
        }
        // The second bracket of some is no word.
        if !ch.is_whitespace() && ch != '>' {
            self.row = 0;
        }
        self.before = Some(ch);
    }

    fn add(&mut self, byte: u8) {
        match self.name.get_mut(self.len) {
            Some(to) => *to = byte,
            None => {
                self.open = None;
                self.before = Some('x');
                self.row = 0;
            }
        }
        self.len += 1;
    }

    fn code(&mut self, ch: char) {
        if ch == '`' {
            self.ticks = self.ticks.saturating_add(1);
            return;
        }
        match self.ticks {
            0 => {}
            3.. => (self.block, self.inline) = (!self.block, false),
            _ => self.inline = !self.inline,
        }
        self.ticks = 0;
        if ch == '\n' {
            self.inline = false;
        }
    }

    fn token(&mut self, open: char) {
        let name = self.name.get(..self.len).unwrap_or_default();
        let known = |list: &[&str]| list.iter().any(|known| known.as_bytes() == name);
        let barred = name.len() >= 4 && name.starts_with(b"|") && name.ends_with(b"|");
        let byte = name.len() == 4 && name.starts_with(b"0x");
        let token = if open == '<' { barred || byte || known(&ANGLED) } else { known(&SQUARE) };
        if !token || self.block || self.inline {
            self.row = 0;
            return;
        }
        let hash = name
            .iter()
            .fold(1, |hash: u64, byte| hash.wrapping_mul(0x100_0000_01B3) ^ u64::from(*byte));
        self.row = if self.last == hash { self.row.saturating_add(1) } else { 1 };
        self.last = hash;
        // One that is talked about stands between spaces, quotes or brackets.
        let apart = self.before.is_some_and(|before| {
            matches!(
                before,
                ' ' | '\t'
                    | '"'
                    | '\''
                    | '('
                    | '['
                    | ','
                    | '“'
                    | '‘'
                    | '「'
                    | '《'
                    | '«'
                    | '*'
                    | '|'
            )
        });
        // `f::<0x20>()` is code.
        let code = byte && self.before == Some(':');
        self.stray = self.stray.saturating_add(u32::from(!apart && !code && !known(&COMMON)));
    }

    /// Tokens that stood right behind words or lines.
    pub(super) fn stray(&self) -> u32 {
        self.stray
    }

    /// Are there so many, or twice so many of one in a row?
    pub(super) fn is_stray(&self, most: u32) -> bool {
        self.stray >= most || self.row >= 2 * most
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> (u32, bool) {
        let (mut control, mut ever) = (Control::default(), false);
        text.chars().for_each(|ch| {
            control.push(ch);
            ever |= control.is_stray(4);
        });
        (control.stray(), ever)
    }

    #[test]
    fn stray_tokens_are_counted() {
        let cases = [
            ("Hello!<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n", 4, true),
            ("Done.<|eot_id|>", 1, false),
            ("Well</s><s>[INST] Next [/INST] Yes [INST]", 1, false),
            ("Ok<｜end▁of▁sentence｜><｜begin▁of▁sentence｜>", 2, false),
            ("<unk><unk><unk><unk>", 4, true),
            ("a <pad> <pad> <pad> <pad> <pad> <pad> <pad> <pad>", 0, true),
            ("be<0xE2><0x80><0x99>s", 3, false),
            ("x<<SYS>>y<</SYS>>", 2, false),
            ("[INST][INST]x[/INST]\n[INST]", 4, true),
        ];
        for (text, stray, ever) in cases {
            assert_eq!(read(text), (stray, ever), "{text}");
        }
    }

    #[test]
    fn those_that_are_talked_about_are_not() {
        let cases = [
            "The tokens <|im_start|> and <|im_end|> frame a turn; \"<|endoftext|>\" ends it (<|eot_id|>).",
            "```\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n<|im_end|>\n```\nThat is the form.",
            "Use `<unk>`, `<|a|><|b|>x<|c|><|d|>` and ``x<pad>``.",
            "a<b && c>d || x[i]<y[j]; Vec<u8>; f::<0x20>(1); <s>old</s> <s>price</s><s>now</s></s></s>",
            "[CLS]my dog[SEP]likes[MASK]play[SEP][PAD][PAD][PAD]",
            "| Token | Use |\n|---|---|\n|<bos>|start|\n|<eos>|end|\n|<unk>|unknown|\n|<pad>|padding|",
            "<div><p><unknown></p></div><a></a><|></|>",
        ];
        for text in cases {
            assert_eq!(read(text), (0, false), "{text}");
        }
    }
}
