//! Every string of a JSON text, with where it stands, and the text again with some of them changed.
//!
//! What is not changed keeps the caller's bytes.

use memchr::memchr2;
use std::{borrow::Cow, fmt::Write};

/// Letters of a key that are shown in a place.
const SHOWN_KEY_MAX: usize = 40;

/// A step down into a JSON value.
#[derive(Clone, Debug)]
pub(super) enum Step<'a> {
    /// Under this key; none has come yet.
    Key(Cow<'a, str>),
    /// The item of a list, from 0.
    Item(usize),
}

/// A string of a JSON text.
pub(super) struct Found<'a, 'w> {
    /// Decoded.
    pub(super) text: &'w str,
    /// It is a key, not a value.
    pub(super) is_key: bool,
    /// The way to it; a key's own step is its last.
    pub(super) path: &'w [Step<'a>],
}

impl Found<'_, '_> {
    /// The key it stands under, if it is a value.
    pub(super) fn key(&self) -> Option<&str> {
        match self.path.last() {
            Some(Step::Key(key)) if !self.is_key => Some(key),
            _ => None,
        }
    }

    /// Where it stands below `root`: `messages[2].content`.
    pub(super) fn place(&self, root: &str) -> String {
        let mut place = root.to_owned();
        for step in self.path {
            // Writing into a string cannot fail.
            let _ = match step {
                Step::Key(key) => {
                    let key: String = key.chars().take(SHOWN_KEY_MAX).collect();
                    write!(place, ".{key}")
                }
                Step::Item(at) => write!(place, "[{at}]"),
            };
        }
        place
    }
}

/// Calls `see` with every string of a JSON text, keys included; what it returns stands there instead.
/// Gives the new text if there is any change.
///
/// The text must be valid JSON: that has been checked where it came in.
pub(super) fn walk<'a>(
    json: &'a str,
    mut see: impl FnMut(&Found<'a, '_>) -> Option<String>,
) -> Option<String> {
    let bytes = json.as_bytes();
    let mut path: Vec<Step<'a>> = Vec::new();
    let mut out: Option<String> = None;
    let (mut at, mut copied, mut is_key) = (0, 0, false);
    while let Some(byte) = bytes.get(at) {
        match byte {
            b'{' => {
                path.push(Step::Key(Cow::Borrowed("")));
                is_key = true;
            }
            b'[' => {
                path.push(Step::Item(0));
                is_key = false;
            }
            b'}' | b']' => drop(path.pop()),
            b':' => is_key = false,
            b',' => {
                is_key = match path.last_mut() {
                    Some(Step::Item(number)) => {
                        *number += 1;
                        false
                    }
                    step => step.is_some(),
                };
            }
            b'"' => {
                let end = string_end(bytes, at + 1)?;
                let text = decoded(json, at, end)?;
                if is_key && let Some(Step::Key(key)) = path.last_mut() {
                    key.clone_from(&text);
                }
                let new = see(&Found { text: &text, is_key, path: &path });
                if let Some(new) = new {
                    let out = out.get_or_insert_default();
                    out.push_str(json.get(copied..at)?);
                    // A string can always be written as JSON.
                    out.push_str(&serde_json::to_string(&new).unwrap_or_default());
                    copied = end + 1;
                }
                at = end;
            }
            _ => {}
        }
        at += 1;
    }
    if let Some(out) = &mut out {
        out.push_str(json.get(copied..)?);
    }
    out
}

/// Where the closing quote stands of the string whose inside begins at `from`.
fn string_end(bytes: &[u8], mut from: usize) -> Option<usize> {
    loop {
        let found = from + memchr2(b'"', b'\\', bytes.get(from..)?)?;
        if bytes.get(found) == Some(&b'"') {
            return Some(found);
        }
        from = found + 2;
    }
}

/// The string between two quotes.
fn decoded(json: &str, start: usize, end: usize) -> Option<Cow<'_, str>> {
    let inside = json.get(start + 1..end)?;
    if !inside.contains('\\') {
        return Some(Cow::Borrowed(inside));
    }
    serde_json::from_str::<String>(json.get(start..=end)?).ok().map(Cow::Owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str =
        r#" [ {"role" : "us\u0065r","n":[1,{},"a"],"e":{"x":"}\"]"}} , "last",[["deep"]]]"#;

    #[test]
    fn every_string_is_found_where_it_stands() {
        let mut found = Vec::new();
        let same = walk(TEXT, |string| {
            found.push((string.place("m"), string.text.to_owned(), string.is_key));
            None
        });
        assert_eq!(same, None);
        let values: Vec<_> =
            found.iter().filter(|(.., key)| !key).map(|(at, text, _)| (&**at, &**text)).collect();
        let expected = [
            ("m[0].role", "user"),
            ("m[0].n[2]", "a"),
            ("m[0].e.x", "}\"]"),
            ("m[1]", "last"),
            ("m[2][0][0]", "deep"),
        ];
        assert_eq!(values, expected);
        let keys: Vec<_> = found.iter().filter(|(.., key)| *key).map(|(at, ..)| &**at).collect();
        assert_eq!(keys, ["m[0].role", "m[0].n", "m[0].e", "m[0].e.x"]);
    }

    #[test]
    fn what_is_not_changed_keeps_its_bytes() {
        let new = walk(TEXT, |string| (string.text == "a").then(|| "b\"<".to_owned()));
        assert_eq!(new.as_deref(), Some(&*TEXT.replace("\"a\"", "\"b\\\"<\"")));
        let new = walk(TEXT, |string| (string.text == "role").then(|| "r".to_owned()));
        assert_eq!(new.as_deref(), Some(&*TEXT.replace("\"role\"", "\"r\"")));
    }
}
