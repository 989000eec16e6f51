//! The messages of a request as a template's list, each opened only when something looks inside.

use super::{CountError, keys};
use crate::tokens::{
    jinja::{Dict, Later, Maker, Value},
    messages::{self, Wants},
    profile::Rules,
    python,
};
use memchr::memchr;
use serde_json::{Map, Value as Json};
use std::{
    ops::Range,
    sync::{Arc, OnceLock},
};

/// The messages of one request.
struct Conversation {
    /// The caller's JSON text of the list.
    text: Box<str>,
    places: Vec<Range<usize>>,
    rules: Rules,
    wants: Wants,
    failed: Arc<OnceLock<CountError>>,
}

/// Where the messages of a list stand, and who speaks.
pub(super) struct Outline<'a> {
    pub(super) text: &'a str,
    pub(super) places: Vec<Range<usize>>,
    pub(super) roles: Vec<&'a str>,
}

impl<'a> Outline<'a> {
    /// Reads a list of messages. `None` unless it is a list of objects with plain keys and one role each.
    ///
    /// The text must be valid JSON: that has been checked where it came in.
    pub(super) fn of(text: &'a str) -> Option<Self> {
        let mut reader = Reader { bytes: text.as_bytes(), at: 0 };
        let mut places = Vec::with_capacity(text.len() / 512 + 2);
        let mut roles = Vec::with_capacity(text.len() / 512 + 2);
        reader.expect(b'[')?;
        if reader.next_is(b']') {
            return None;
        }
        loop {
            let start = reader.skip_space();
            let role = reader.message()?;
            places.push(start..reader.at);
            roles.push(text.get(role)?);
            match reader.symbol()? {
                b',' => {}
                b']' => break,
                _ => return None,
            }
        }
        Some(Self { text, places, roles })
    }
}

/// The messages as a template's list. Why one could not be prepared is left in `failed`.
pub(super) fn list(
    outline: &Outline<'_>,
    rules: Rules,
    wants: Wants,
    failed: &Arc<OnceLock<CountError>>,
) -> Value {
    let maker: Arc<dyn Maker> = Arc::new(Conversation {
        text: outline.text.into(),
        places: outline.places.clone(),
        rules,
        wants,
        failed: Arc::clone(failed),
    });
    let turn = |(which, place): (usize, &Range<usize>)| {
        let key = keys::of(outline.text.as_bytes().get(place.clone()).unwrap_or_default());
        Value::Dict(Arc::new(Dict::later(Later { key, by: (Arc::clone(&maker), which) })))
    };
    Value::from(outline.places.iter().enumerate().map(turn).collect::<Vec<_>>())
}

impl Maker for Conversation {
    fn make(&self, which: usize) -> Vec<(Value, Value)> {
        self.prepare(which).unwrap_or_else(|error| {
            let _ = self.failed.set(error);
            Vec::new()
        })
    }
}

impl Conversation {
    /// The entries of a prepared message.
    fn prepare(&self, which: usize) -> Result<Vec<(Value, Value)>, CountError> {
        let place = self.places.get(which).cloned().unwrap_or_default();
        let text = self.text.get(place).unwrap_or_default();
        let message: Map<String, Json> =
            serde_json::from_str(text).map_err(|_| CountError::NoMessages)?;
        let message = messages::prepare_message(&self.rules, self.wants, &message)?;
        Ok(python::entries(&message))
    }
}

// === finding messages in JSON text ===

/// Walks JSON text that is known to be valid, and looks at no more of it than it must.
struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Reader<'_> {
    fn skip_space(&mut self) -> usize {
        while self.bytes.get(self.at).is_some_and(u8::is_ascii_whitespace) {
            self.at += 1;
        }
        self.at
    }

    /// The next byte that is no white space; steps over it.
    fn symbol(&mut self) -> Option<u8> {
        self.skip_space();
        let byte = *self.bytes.get(self.at)?;
        self.at += 1;
        Some(byte)
    }

    fn expect(&mut self, symbol: u8) -> Option<()> {
        (self.symbol()? == symbol).then_some(())
    }

    fn next_is(&mut self, symbol: u8) -> bool {
        self.skip_space();
        self.bytes.get(self.at) == Some(&symbol)
    }

    /// Steps behind the string whose opening quote has been read; gives its inside.
    fn string(&mut self) -> Option<Range<usize>> {
        let start = self.at;
        loop {
            self.at += memchr(b'"', self.bytes.get(self.at..)?)?;
            // A quote behind an odd number of backslashes is part of the string.
            let inside = self.bytes.get(start..self.at)?;
            let slashes = inside.iter().rev().take_while(|byte| **byte == b'\\').count();
            self.at += 1;
            if slashes % 2 == 0 {
                return Some(start..self.at - 1);
            }
        }
    }

    /// As [`Reader::string`], for one without escapes.
    fn plain_string(&mut self) -> Option<Range<usize>> {
        let place = self.string()?;
        let plain = memchr(b'\\', self.bytes.get(place.clone())?).is_none();
        plain.then_some(place)
    }

    /// Steps over a value.
    fn value(&mut self) -> Option<()> {
        match self.symbol()? {
            b'"' => self.string().map(drop),
            b'{' | b'[' => {
                let mut depth = 1usize;
                while depth > 0 {
                    match *self.bytes.get(self.at)? {
                        b'"' => {
                            self.at += 1;
                            self.string()?;
                            continue;
                        }
                        b'{' | b'[' => depth += 1,
                        b'}' | b']' => depth -= 1,
                        _ => {}
                    }
                    self.at += 1;
                }
                Some(())
            }
            _ => {
                let ends =
                    |byte: &u8| matches!(byte, b',' | b'}' | b']') || byte.is_ascii_whitespace();
                while self.bytes.get(self.at).is_some_and(|byte| !ends(byte)) {
                    self.at += 1;
                }
                Some(())
            }
        }
    }

    /// Steps over a message; gives the place of its role.
    fn message(&mut self) -> Option<Range<usize>> {
        let mut role = None;
        self.expect(b'{')?;
        if self.next_is(b'}') {
            return None;
        }
        loop {
            self.expect(b'"')?;
            let key = self.plain_string()?;
            self.expect(b':')?;
            if self.bytes.get(key) == Some(b"role") {
                self.expect(b'"')?;
                let place = self.plain_string()?;
                if role.replace(place).is_some() {
                    return None;
                }
            } else {
                self.value()?;
            }
            match self.symbol()? {
                b',' => {}
                b'}' => return role,
                _ => return None,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_found_whatever_stands_in_them() {
        let text = r#" [ {"role":"user","content":"a \"]}{[ \\"} ,
            {"content":[{"type":"text","text":"}]"}],"n":[1,{"a":null}],"x":-1.5e3,"role" : "tool"},{"role":"a"}]"#;
        let outline = Outline::of(text).unwrap();
        assert_eq!(outline.roles, ["user", "tool", "a"]);
        for (place, role) in outline.places.iter().zip(["user", "tool", "a"]) {
            let message: Json = serde_json::from_str(text.get(place.clone()).unwrap()).unwrap();
            assert_eq!(message["role"], role);
        }
    }

    #[test]
    fn what_could_be_read_in_two_ways_is_left_to_the_careful_reader() {
        for text in [
            r"[]",
            r#"[{"content":"no role"}]"#,
            r#"["text"]"#,
            r#"[{"rol\u0065":"user"}]"#,
            r#"[{"role":"us\u0065r"}]"#,
            r#"[{"role":"user","role":"system"}]"#,
            r#"[{"role":1}]"#,
            r"[{}]",
            r#"{"role":"user"}"#,
        ] {
            assert!(Outline::of(text).is_none(), "{text}");
        }
    }
}
