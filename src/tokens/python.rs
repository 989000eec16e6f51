//! How Python writes values: `str`, `repr`, `json.dumps`, and what it takes for whitespace.
//!
//! Chat templates are written against Python's jinja2, so one float or control character written the
//! Rust way changes the prompt and with it the count.

use minijinja::{
    Error, ErrorKind, Value,
    value::{Object, ObjectRepr, ValueKind},
};
use serde_json::Value as Json;
use std::{
    fmt::{self, Write},
    sync::Arc,
};

/// Whether Python's `str.isspace` and `str.strip` take the character for whitespace.
pub(super) fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)
}

/// Whether Python's `str.splitlines` ends a line here.
fn ends_line(c: char) -> bool {
    matches!(
        c,
        '\n' | '\r' | '\u{b}' | '\u{c}' | '\u{1c}'..='\u{1e}' | '\u{85}' | '\u{2028}' | '\u{2029}'
    )
}

/// `text.splitlines(keepends)`.
pub(super) fn lines(text: &str, keep_ends: bool) -> Vec<&str> {
    let mut found = Vec::new();
    let mut rest = text;
    while let Some((at, c)) = rest.char_indices().find(|(_, c)| ends_line(*c)) {
        let mut next = at + c.len_utf8();
        if c == '\r' && rest.get(next..).is_some_and(|tail| tail.starts_with('\n')) {
            next += 1;
        }
        found.push(rest.get(..if keep_ends { next } else { at }).unwrap_or_default());
        rest = rest.get(next..).unwrap_or_default();
    }
    if !rest.is_empty() {
        found.push(rest);
    }
    found
}

// === str and repr ===

/// `str(value)`, with nothing for an undefined value, as jinja2 prints it.
pub(super) fn text(value: &Value) -> String {
    let mut out = String::new();
    // Writing to a string cannot fail.
    let _ = write_text(&mut out, value);
    out
}

/// Writes `str(value)`.
pub(super) fn write_text(out: &mut dyn Write, value: &Value) -> fmt::Result {
    match value.as_str() {
        Some(text) => out.write_str(text),
        None if value.is_undefined() => Ok(()),
        None => write_repr(out, value),
    }
}

/// Writes `repr(value)`.
fn write_repr(out: &mut dyn Write, value: &Value) -> fmt::Result {
    match value.kind() {
        ValueKind::String => write_quoted(out, value.as_str().unwrap_or_default()),
        ValueKind::Undefined => out.write_str("Undefined"),
        ValueKind::Number => write_number(out, value, ["nan", "inf", "-inf"]),
        ValueKind::Seq => {
            let (open, close) = if value.is_tuple() { ('(', ')') } else { ('[', ']') };
            out.write_char(open)?;
            let mut count = 0usize;
            for item in value.try_iter().into_iter().flatten() {
                if count > 0 {
                    out.write_str(", ")?;
                }
                write_repr(out, &item)?;
                count += 1;
            }
            if value.is_tuple() && count == 1 {
                out.write_char(',')?;
            }
            out.write_char(close)
        }
        ValueKind::Map => {
            out.write_char('{')?;
            for (at, (key, item)) in pairs(value).into_iter().enumerate() {
                if at > 0 {
                    out.write_str(", ")?;
                }
                write_repr(out, &key)?;
                out.write_str(": ")?;
                write_repr(out, &item)?;
            }
            out.write_char('}')
        }
        _ => write!(out, "{value}"),
    }
}

/// Keys and values of a map, in order.
pub(super) fn pairs(map: &Value) -> Vec<(Value, Value)> {
    map.as_object().and_then(|object| object.try_iter_pairs()).into_iter().flatten().collect()
}

fn write_quoted(out: &mut dyn Write, text: &str) -> fmt::Result {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    out.write_char(quote)?;
    for c in text.chars() {
        match c {
            '\\' => out.write_str("\\\\")?,
            '\n' => out.write_str("\\n")?,
            '\r' => out.write_str("\\r")?,
            '\t' => out.write_str("\\t")?,
            c if c == quote => write!(out, "\\{c}")?,
            c if is_printable(c) => out.write_char(c)?,
            c => match u32::from(c) {
                code @ 0..=0xff => write!(out, "\\x{code:02x}")?,
                code @ 0x100..=0xffff => write!(out, "\\u{code:04x}")?,
                code => write!(out, "\\U{code:08x}")?,
            },
        }
    }
    out.write_char(quote)
}

/// `str.isprintable` of one character, except that code points not yet assigned count as printable:
/// that would need the whole Unicode table for text that no template prints this way.
fn is_printable(c: char) -> bool {
    let other_space = c != ' ' && c.is_whitespace();
    let format = matches!(u32::from(c),
        0xad | 0x600..=0x605 | 0x61c | 0x6dd | 0x70f | 0x890..=0x891 | 0x8e2 | 0x180e | 0x200b..=0x200f
        | 0x202a..=0x202e | 0x2060..=0x206f | 0xfeff | 0xfff0..=0xfffb | 0x110bd | 0x110cd
        | 0x13430..=0x1343f | 0x1bca0..=0x1bca3 | 0x1d173..=0x1d17a | 0xe0000..=0xe007f);
    let private = matches!(u32::from(c), 0xe000..=0xf8ff | 0xf0000..=0x10ffff);
    !(c.is_control() || other_space || format || private)
}

// === values of a request ===

/// A float that the engine would write in another way than Python: in the hands of `~`, which knows no
/// formatter, it writes itself.
#[derive(Debug)]
struct OddFloat(f64);

impl Object for OddFloat {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Plain
    }

    fn is_true(self: &Arc<Self>) -> bool {
        self.0 != 0.0
    }

    fn render(self: &Arc<Self>, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&float_text(self.0))
    }
}

/// A JSON value as templates see it.
pub(super) fn from_json(json: &Json) -> Value {
    match json {
        Json::Null => Value::from(()),
        Json::Bool(flag) => Value::from(*flag),
        Json::String(text) => Value::from(text.as_str()),
        Json::Array(items) => Value::from(items.iter().map(from_json).collect::<Vec<_>>()),
        Json::Object(map) => Value::from_pairs(
            map.iter().map(|(key, item)| (Value::from(key.as_str()), from_json(item))),
        ),
        Json::Number(number) => match (number.as_i64(), number.as_u64(), number.as_f64()) {
            (Some(whole), _, _) => Value::from(whole),
            (None, Some(whole), _) => Value::from(whole),
            (None, None, Some(float)) if float_text(float).contains('e') => {
                Value::from_object(OddFloat(float))
            }
            (None, None, float) => Value::from(float),
        },
    }
}

/// The number a value is, if it is a float.
fn float_of(value: &Value) -> Option<f64> {
    match value.downcast_object_ref::<OddFloat>() {
        Some(odd) => Some(odd.0),
        None if value.kind() == ValueKind::Number && !value.is_integer() => {
            value.clone().try_into().ok()
        }
        None => None,
    }
}

/// Whether Python takes the value for a number: booleans are.
pub(super) fn is_number(value: &Value) -> bool {
    matches!(value.kind(), ValueKind::Number | ValueKind::Bool) || is_float(value)
}

/// Whether Python takes the value for a float.
pub(super) fn is_float(value: &Value) -> bool {
    float_of(value).is_some()
}

// === numbers ===

/// Writes a number as Python does; `odd` are its words for not-a-number and the infinities.
fn write_number(out: &mut dyn Write, value: &Value, odd: [&str; 3]) -> fmt::Result {
    let [nan, plus, minus] = odd;
    match float_of(value) {
        None => write!(out, "{value}"),
        Some(float) if float.is_nan() => out.write_str(nan),
        Some(float) if float.is_infinite() => out.write_str(if float > 0.0 { plus } else { minus }),
        Some(float) => out.write_str(&float_text(float)),
    }
}

/// `repr` of a finite float: shortest digits that read back, an exponent below 1e-4 and from 1e16.
fn float_text(float: f64) -> String {
    let scientific = format!("{float:e}");
    let Some((digits, exponent)) = scientific.split_once('e') else { return scientific };
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if (-4..16).contains(&exponent) {
        let plain = format!("{float}");
        return if plain.contains('.') { plain } else { format!("{plain}.0") };
    }
    let sign = if exponent < 0 { '-' } else { '+' };
    format!("{digits}e{sign}{:02}", exponent.unsigned_abs())
}

// === json.dumps ===

/// The arguments of `json.dumps` that templates may give.
#[derive(Clone, Debug)]
pub(super) struct Dumps {
    /// Escape everything outside ASCII.
    pub(super) ensure_ascii: bool,
    /// Text of one step of indentation; `None` writes one line.
    pub(super) indent: Option<String>,
    /// Between items, and between a key and its value.
    pub(super) separators: (String, String),
    /// Order keys by their text.
    pub(super) sort_keys: bool,
}

impl Dumps {
    /// Python's defaults, where the item separator loses its space when there is indentation.
    pub(super) fn new(indent: Option<String>) -> Self {
        let item = if indent.is_some() { "," } else { ", " };
        Self {
            ensure_ascii: false,
            indent,
            separators: (item.into(), ": ".into()),
            sort_keys: false,
        }
    }

    /// `json.dumps(value)`.
    pub(super) fn dump(&self, value: &Value) -> Result<String, Error> {
        let mut out = String::new();
        self.write(&mut out, value, 0)?;
        Ok(out)
    }

    fn write(&self, out: &mut String, value: &Value, depth: usize) -> Result<(), Error> {
        // The engine's own recursion limit does not see us; JSON bodies are at most 128 deep.
        if depth > 256 {
            return Err(Error::new(
                ErrorKind::InvalidOperation,
                "value nested too deeply for tojson",
            ));
        }
        match value.kind() {
            ValueKind::None => out.push_str("null"),
            ValueKind::Bool => out.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number => write_number(out, value, ["NaN", "Infinity", "-Infinity"])?,
            ValueKind::String => self.write_string(out, value.as_str().unwrap_or_default()),
            ValueKind::Seq => {
                let mut items = value.try_iter()?.peekable();
                if items.peek().is_none() {
                    out.push_str("[]");
                    return Ok(());
                }
                out.push('[');
                for (at, item) in items.enumerate() {
                    self.write_gap(out, at, depth + 1);
                    self.write(out, &item, depth + 1)?;
                }
                self.write_line(out, depth);
                out.push(']');
            }
            ValueKind::Map => self.write_map(out, value, depth)?,
            _ if is_float(value) => write_number(out, value, ["NaN", "Infinity", "-Infinity"])?,
            other => {
                let told = format!("Object of type {other} is not JSON serializable");
                return Err(Error::new(ErrorKind::BadSerialization, told));
            }
        }
        Ok(())
    }

    fn write_map(&self, out: &mut String, value: &Value, depth: usize) -> Result<(), Error> {
        let mut entries = pairs(value);
        if entries.is_empty() {
            out.push_str("{}");
            return Ok(());
        }
        if self.sort_keys {
            entries.sort_by(|(one, _), (two, _)| one.cmp(two));
        }
        out.push('{');
        for (at, (key, item)) in entries.iter().enumerate() {
            self.write_gap(out, at, depth + 1);
            match key.kind() {
                ValueKind::String => self.write_string(out, key.as_str().unwrap_or_default()),
                // Numbers, booleans and null become the text they would have as values.
                _ => {
                    out.push('"');
                    self.write(out, key, depth + 1)?;
                    out.push('"');
                }
            }
            out.push_str(&self.separators.1);
            self.write(out, item, depth + 1)?;
        }
        self.write_line(out, depth);
        out.push('}');
        Ok(())
    }

    /// What stands before the item at this place.
    fn write_gap(&self, out: &mut String, at: usize, depth: usize) {
        if at > 0 {
            out.push_str(&self.separators.0);
        }
        self.write_line(out, depth);
    }

    fn write_line(&self, out: &mut String, depth: usize) {
        if let Some(indent) = &self.indent {
            out.push('\n');
            for _ in 0..depth {
                out.push_str(indent);
            }
        }
    }

    fn write_string(&self, out: &mut String, text: &str) {
        out.push('"');
        for c in text.chars() {
            match c {
                '"' => out.push_str("\\\""),
                '\\' => out.push_str("\\\\"),
                '\n' => out.push_str("\\n"),
                '\r' => out.push_str("\\r"),
                '\t' => out.push_str("\\t"),
                '\u{8}' => out.push_str("\\b"),
                '\u{c}' => out.push_str("\\f"),
                c if c < ' ' || (self.ensure_ascii && c > '~') => {
                    for unit in c.encode_utf16(&mut [0; 2]) {
                        // Writing to a string cannot fail.
                        let _ = write!(out, "\\u{unit:04x}");
                    }
                }
                c => out.push(c),
            }
        }
        out.push('"');
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn floats_read_like_pythons() {
        let cases = [
            (1e-6, "1e-06"),
            (0.0001, "0.0001"),
            (1e16, "1e+16"),
            (1e15, "1000000000000000.0"),
            (2.5, "2.5"),
            (100.0, "100.0"),
            (1.5e-7, "1.5e-07"),
            (1.0e300, "1e+300"),
            (-0.0, "-0.0"),
        ];
        for (float, told) in cases {
            assert_eq!(text(&Value::from(float)), told);
        }
    }

    #[test]
    fn containers_print_as_python_literals() {
        let value = from_json(&json!({"a": [1, true, null, "it's"], "b": "x\u{1f}\n"}));
        assert_eq!(text(&value), r#"{'a': [1, True, None, "it's"], 'b': 'x\x1f\n'}"#);
    }

    #[test]
    fn json_has_pythons_spacing_and_escapes() {
        let value = from_json(&json!({"b": [1, 1e-6], "a": "é\u{1f}<'", "c": {}, "d": []}));
        assert_eq!(
            Dumps::new(None).dump(&value).unwrap(),
            "{\"b\": [1, 1e-06], \"a\": \"é\\u001f<'\", \"c\": {}, \"d\": []}"
        );
        let sorted = Dumps { ensure_ascii: true, sort_keys: true, ..Dumps::new(Some(" ".into())) };
        assert_eq!(
            sorted.dump(&value).unwrap(),
            "{\n \"a\": \"\\u00e9\\u001f<'\",\n \"b\": [\n  1,\n  1e-06\n ],\n \"c\": {},\n \"d\": []\n}"
        );
    }

    #[test]
    fn lines_end_where_python_ends_them() {
        assert_eq!(lines("a\r\nb\u{85}c\n", false), ["a", "b", "c"]);
        assert_eq!(lines("a\n\n", true), ["a\n", "\n"]);
        assert!(lines("", false).is_empty());
    }
}
