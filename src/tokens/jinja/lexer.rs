//! A template's text cut into tokens, with jinja2's rules for whitespace around tags.

use crate::tokens::python::is_space;

/// One token.
#[derive(Clone, Debug, PartialEq)]
pub(in crate::tokens) enum Token {
    /// Text between tags.
    Data(String),
    /// `{{`
    OpenPrint,
    /// `}}`
    ClosePrint,
    /// `{%`
    OpenBlock,
    /// `%}`
    CloseBlock,
    /// A name or keyword.
    Name(String),
    /// A string literal, escapes undone.
    Text(String),
    /// A whole number.
    Int(i128),
    /// A number with a point or exponent.
    Float(f64),
    /// An operator or bracket.
    Sign(&'static str),
}

const SIGNS: [&str; 28] = [
    "//", "**", "==", "!=", ">=", "<=", "+", "-", "/", "*", "%", "~", "[", "]", "(", ")", "{", "}",
    ">", "<", "=", ".", ":", "|", ",", ";", "!", "@",
];

/// What opens where.
#[derive(Clone, Copy, PartialEq)]
enum Tag {
    Print,
    Block,
    Comment,
    Raw,
}

/// Cuts a template. The error is a sentence.
pub(in crate::tokens) fn tokens(source: &str) -> Result<Vec<Token>, String> {
    // Line ends are made equal before; the last one is not part of the template.
    let source = source.strip_suffix('\n').unwrap_or(source);
    let mut lexer = Lexer { rest: source, line_starting: true, tokens: Vec::new() };
    while !lexer.rest.is_empty() {
        lexer.step()?;
    }
    Ok(lexer.tokens)
}

/// Which characters are digits.
type Kind = fn(char) -> bool;

struct Lexer<'a> {
    rest: &'a str,
    /// Whether what was read last ends with a newline.
    line_starting: bool,
    tokens: Vec<Token>,
}

impl<'a> Lexer<'a> {
    /// Reads text up to the next tag, and the tag.
    fn step(&mut self) -> Result<(), String> {
        let found = self.rest.match_indices('{').find_map(|(at, _)| {
            let tail = self.rest.get(at..)?;
            Some((at, opening(tail)?))
        });
        let Some((at, (tag, sign, length))) = found else {
            self.data(self.rest);
            self.rest = "";
            return Ok(());
        };
        let (text, tail) = self.rest.split_at(at);
        self.data(trimmed_before(text, sign, tag != Tag::Print, self.line_starting));
        self.rest = tail.get(length..).unwrap_or_default();
        self.line_starting = tail.get(..length).is_some_and(|tag| tag.ends_with('\n'));
        match tag {
            Tag::Comment => self.comment(),
            Tag::Raw => self.raw(),
            Tag::Print => self.inside(Token::OpenPrint, Token::ClosePrint, "}}"),
            Tag::Block => self.inside(Token::OpenBlock, Token::CloseBlock, "%}"),
        }
    }

    fn data(&mut self, text: &str) {
        if !text.is_empty() {
            self.tokens.push(Token::Data(text.to_owned()));
        }
    }

    fn comment(&mut self) -> Result<(), String> {
        let end = self.rest.match_indices("#}").next();
        let (at, _) = end.ok_or("a comment has no end")?;
        let (inside, tail) = self.rest.split_at(at);
        let sign = inside.chars().next_back().filter(|sign| matches!(sign, '-' | '+'));
        self.close(tail, 2, sign, true);
        Ok(())
    }

    fn raw(&mut self) -> Result<(), String> {
        for (at, _) in self.rest.match_indices("{%") {
            let (text, tail) = self.rest.split_at(at);
            let inside = tail.get(2..).unwrap_or_default();
            let sign = inside.chars().next().filter(|sign| matches!(sign, '-' | '+'));
            let inside = inside.get(sign.map_or(0, char::len_utf8)..).unwrap_or_default();
            let Some(after) = inside.trim_start_matches(is_space).strip_prefix("endraw") else {
                continue;
            };
            let after = after.trim_start_matches(is_space);
            let last = after.chars().next().filter(|sign| matches!(sign, '-' | '+'));
            let after = after.get(last.map_or(0, char::len_utf8)..).unwrap_or_default();
            if after.starts_with("%}") {
                self.data(trimmed_before(text, sign, true, self.line_starting));
                self.close(after, 2, last, true);
                return Ok(());
            }
        }
        Err("a raw block has no end".into())
    }

    /// Goes behind a closing delimiter and the whitespace that it takes with it.
    fn close(&mut self, tail: &'a str, length: usize, sign: Option<char>, takes_newline: bool) {
        let after = tail.get(length..).unwrap_or_default();
        let rest = match sign {
            Some('-') => after.trim_start_matches(is_space),
            Some('+') => after,
            _ if takes_newline => after.strip_prefix('\n').unwrap_or(after),
            _ => after,
        };
        let taken = after.get(..after.len() - rest.len()).unwrap_or_default();
        self.line_starting = taken.ends_with('\n');
        self.rest = rest;
    }

    /// Reads the inside of a tag, and its end.
    fn inside(&mut self, open: Token, close: Token, end: &str) -> Result<(), String> {
        let is_block = open == Token::OpenBlock;
        self.tokens.push(open);
        let mut brackets: Vec<char> = Vec::new();
        loop {
            if brackets.is_empty() {
                let first = self.rest.chars().next();
                let sign = first.filter(|sign| *sign == '-' || (*sign == '+' && is_block));
                let tail = self.rest.get(usize::from(sign.is_some())..).unwrap_or_default();
                if self.rest.starts_with(end) {
                    self.close(self.rest, 2, None, is_block);
                } else if sign.is_some() && tail.starts_with(end) {
                    self.close(tail, 2, sign, is_block);
                } else {
                    self.token(&mut brackets)?;
                    continue;
                }
                self.tokens.push(close);
                return Ok(());
            }
            self.token(&mut brackets)?;
        }
    }

    /// Reads one token of a tag, or whitespace.
    fn token(&mut self, brackets: &mut Vec<char>) -> Result<(), String> {
        let rest = self.rest;
        let first = rest.chars().next().ok_or("a tag has no end")?;
        if is_space(first) {
            self.rest = rest.trim_start_matches(is_space);
            return Ok(());
        }
        if first.is_ascii_digit() {
            return self.number();
        }
        if is_word(first) {
            let end = rest.find(|c| !is_word(c)).unwrap_or(rest.len());
            let (name, tail) = rest.split_at(end);
            self.tokens.push(Token::Name(name.to_owned()));
            self.rest = tail;
            return Ok(());
        }
        if first == '"' || first == '\'' {
            return self.text(first);
        }
        let sign = SIGNS.into_iter().find(|sign| rest.starts_with(sign));
        let sign = sign.ok_or_else(|| format!("unexpected character {first:?}"))?;
        match first {
            '(' => brackets.push(')'),
            '[' => brackets.push(']'),
            '{' => brackets.push('}'),
            ')' | ']' | '}' if brackets.pop() != Some(first) => {
                return Err(format!("unexpected '{first}'"));
            }
            _ => {}
        }
        self.tokens.push(Token::Sign(sign));
        self.rest = rest.get(sign.len()..).unwrap_or_default();
        Ok(())
    }

    fn text(&mut self, quote: char) -> Result<(), String> {
        let body = self.rest.get(1..).unwrap_or_default();
        let mut escaped = false;
        let end = body.char_indices().find(|(_, c)| {
            let ends = *c == quote && !escaped;
            escaped = *c == '\\' && !escaped;
            ends
        });
        let (end, _) = end.ok_or("a string has no end")?;
        let (inside, tail) = body.split_at(end);
        self.tokens.push(Token::Text(unescaped(inside)?));
        self.rest = tail.get(1..).unwrap_or_default();
        Ok(())
    }

    fn number(&mut self) -> Result<(), String> {
        let rest = self.rest;
        let digits = |text: &str, kind: Kind| {
            let end = text.find(|c| !kind(c) && c != '_').unwrap_or(text.len());
            text.get(..end).unwrap_or_default().trim_end_matches('_').len()
        };
        let decimal: Kind = |c| c.is_ascii_digit();
        let prefix = rest.get(..2).unwrap_or_default().to_ascii_lowercase();
        let base: Option<(u32, Kind)> = match prefix.as_str() {
            "0x" => Some((16, |c| c.is_ascii_hexdigit())),
            "0o" => Some((8, |c| matches!(c, '0'..='7'))),
            "0b" => Some((2, |c| matches!(c, '0' | '1'))),
            _ => None,
        };
        let told = |text: &str| format!("bad number {text}");
        if let Some((base, kind)) = base {
            let end = 2 + digits(rest.get(2..).unwrap_or_default(), kind);
            let (number, tail) = rest.split_at(end);
            let plain = number.get(2..).unwrap_or_default().replace('_', "");
            let value = i128::from_str_radix(&plain, base).map_err(|_| told(number))?;
            self.tokens.push(Token::Int(value));
            self.rest = tail;
            return Ok(());
        }
        let mut end = digits(rest, decimal);
        let mut is_float = false;
        // Behind a dot, as in `list.0.5`, only whole numbers are read.
        let after_dot = self.tokens.last() == Some(&Token::Sign("."));
        let tail = rest.get(end..).unwrap_or_default();
        let point = tail.strip_prefix('.').map_or(0, |tail| digits(tail, decimal));
        if point > 0 && !after_dot {
            end += 1 + point;
            is_float = true;
        }
        let tail = rest.get(end..).unwrap_or_default();
        if let Some(power) = tail.strip_prefix(['e', 'E'])
            && !after_dot
        {
            let unsigned = power.strip_prefix(['+', '-']).unwrap_or(power);
            let length = digits(unsigned, decimal);
            if length > 0 {
                end += 1 + (power.len() - unsigned.len()) + length;
                is_float = true;
            }
        }
        let (number, tail) = rest.split_at(end);
        let plain = number.replace('_', "");
        self.tokens.push(if is_float {
            Token::Float(plain.parse().map_err(|_| told(number))?)
        } else {
            if plain.len() > 1 && plain.starts_with('0') && plain.contains(|c| c != '0') {
                return Err(told(number));
            }
            Token::Int(plain.parse().map_err(|_| told(number))?)
        });
        self.rest = tail;
        Ok(())
    }
}

/// Which tag begins here, its whitespace sign, and the length of its opening.
fn opening(tail: &str) -> Option<(Tag, Option<char>, usize)> {
    let tag = match tail.as_bytes().get(1)? {
        b'{' => Tag::Print,
        b'%' => Tag::Block,
        b'#' => Tag::Comment,
        _ => return None,
    };
    let inside = tail.get(2..)?;
    let sign = inside.chars().next().filter(|sign| matches!(sign, '-' | '+'));
    let length = 2 + usize::from(sign.is_some());
    if tag == Tag::Block
        && let Some(after) = tail.get(length..)?.trim_start_matches(is_space).strip_prefix("raw")
    {
        let after = after.trim_start_matches(is_space);
        if after.starts_with("%}") {
            return Some((Tag::Raw, sign, tail.len() - after.len() + 2));
        }
        if after.starts_with("-%}") {
            let after = after.get(3..)?.trim_start_matches(is_space);
            return Some((Tag::Raw, sign, tail.len() - after.len()));
        }
    }
    Some((tag, sign, length))
}

/// Text without what the tag behind it takes away.
fn trimmed_before(text: &str, sign: Option<char>, is_block: bool, line_starting: bool) -> &str {
    match sign {
        Some('-') => text.trim_end_matches(is_space),
        None if is_block => {
            let line = text.rfind('\n').map_or(0, |at| at + 1);
            let (before, last) = text.split_at(line);
            let blank = !last.is_empty() && last.chars().all(is_space);
            if blank && (line > 0 || line_starting) { before } else { text }
        }
        _ => text,
    }
}

fn is_word(c: char) -> bool {
    c == '_' || c.is_alphanumeric()
}

/// A string literal's text, as Python's `unicode-escape` reads it.
fn unescaped(inside: &str) -> Result<String, String> {
    let mut out = String::with_capacity(inside.len());
    let mut rest = inside.chars();
    while let Some(c) = rest.next() {
        if c != '\\' {
            out.push(c);
            continue;
        }
        let Some(escape) = rest.next() else { return Err("\\ at end of string".into()) };
        let mut code = |digits: usize| {
            let text: String = rest.clone().take(digits).collect();
            let code = u32::from_str_radix(&text, 16).ok().filter(|_| text.len() == digits);
            rest.nth(digits - 1);
            let told = || format!("truncated escape \\{escape}");
            code.and_then(char::from_u32).ok_or_else(told)
        };
        match escape {
            '\n' => {}
            '\\' | '\'' | '"' => out.push(escape),
            'a' => out.push('\u{7}'),
            'b' => out.push('\u{8}'),
            'f' => out.push('\u{c}'),
            'n' => out.push('\n'),
            'r' => out.push('\r'),
            't' => out.push('\t'),
            'v' => out.push('\u{b}'),
            'x' => out.push(code(2)?),
            'u' => out.push(code(4)?),
            'U' => out.push(code(8)?),
            'N' => return Err("named characters are not known".into()),
            '0'..='7' => {
                let mut value = escape.to_digit(8).unwrap_or(0);
                for _ in 0..2 {
                    let Some(digit) = rest.clone().next().and_then(|c| c.to_digit(8)) else {
                        break;
                    };
                    value = value * 8 + digit;
                    rest.next();
                }
                out.push(char::from_u32(value).unwrap_or_default());
            }
            // An escape of what is not ASCII was written in escapes before Python looks at it.
            other if !other.is_ascii() => {
                out.push('\\');
                out.push(other);
            }
            other => {
                out.push('\\');
                out.push(other);
            }
        }
    }
    Ok(out)
}
