//! How Python writes values: `str`, `repr`, `json.dumps`, and what it takes for whitespace.
//!
//! Chat templates are written against Python's jinja2, so one float or control character written the
//! Rust way changes the prompt and with it the count.

use super::jinja::{Dict, Stop, Value, View};
use serde_json::Value as Json;
use std::fmt::Write;

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

/// `len(text)`
pub(super) fn char_count(text: &str) -> usize {
    if text.is_ascii() { text.len() } else { text.chars().count() }
}

/// Lists that hold one another many times over make endless texts.
fn bounded(out: &str) -> Result<(), Stop> {
    if out.len() > super::template::TEXT_BYTES_MAX { Err(Stop::TooLong) } else { Ok(()) }
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
pub(super) fn text(value: &Value) -> Result<String, Stop> {
    let mut out = String::new();
    write_text(&mut out, value)?;
    Ok(out)
}

/// Writes `str(value)`. Fails for what prints its address in memory.
pub(super) fn write_text(out: &mut String, value: &Value) -> Result<(), Stop> {
    match value {
        Value::Str(text) | Value::Safe(text) => out.push_str(text),
        Value::Undefined => {}
        other => write_repr(out, other)?,
    }
    Ok(())
}

/// Writes `repr(value)`.
pub(super) fn write_repr(out: &mut String, value: &Value) -> Result<(), Stop> {
    bounded(out)?;
    match value {
        Value::Undefined => out.push_str("Undefined"),
        Value::None => out.push_str("None"),
        Value::Bool(flag) => out.push_str(if *flag { "True" } else { "False" }),
        Value::Int(number) => push(out, number),
        Value::Float(number) => push_float(out, *number, ["nan", "inf", "-inf"]),
        Value::Str(text) => write_quoted(out, text),
        Value::Safe(text) => {
            out.push_str("Markup(");
            write_quoted(out, text);
            out.push(')');
        }
        Value::List(seq) => write_items(out, "[", &seq.items, "]")?,
        Value::Tuple(seq) => {
            let close = if seq.items.len() == 1 { ",)" } else { ")" };
            write_items(out, "(", &seq.items, close)?;
        }
        Value::Dict(dict) => write_dict(out, dict)?,
        Value::Range(start, stop, 1) => push(out, format_args!("range({start}, {stop})")),
        Value::Range(start, stop, step) => {
            push(out, format_args!("range({start}, {stop}, {step})"));
        }
        Value::View(view, dict) => write_view(out, *view, dict)?,
        other => {
            return Err(Stop::Failed(format!("the text of a {} is not known", other.type_name())));
        }
    }
    Ok(())
}

fn push(out: &mut String, told: impl std::fmt::Display) {
    // Writing to a string cannot fail.
    let _ = write!(out, "{told}");
}

fn write_items(out: &mut String, open: &str, items: &[Value], close: &str) -> Result<(), Stop> {
    out.push_str(open);
    for (at, item) in items.iter().enumerate() {
        if at > 0 {
            out.push_str(", ");
        }
        write_repr(out, item)?;
    }
    out.push_str(close);
    Ok(())
}

fn write_dict(out: &mut String, dict: &Dict) -> Result<(), Stop> {
    out.push('{');
    for (at, (key, item)) in dict.entries.iter().enumerate() {
        if at > 0 {
            out.push_str(", ");
        }
        write_repr(out, key)?;
        out.push_str(": ");
        write_repr(out, item)?;
    }
    out.push('}');
    Ok(())
}

fn write_view(out: &mut String, view: View, dict: &Dict) -> Result<(), Stop> {
    let entries = dict.entries.iter();
    match view {
        View::Keys => {
            let keys: Vec<Value> = entries.map(|(key, _)| key.clone()).collect();
            write_items(out, "dict_keys([", &keys, "])")
        }
        View::Values => {
            let values: Vec<Value> = entries.map(|(_, value)| value.clone()).collect();
            write_items(out, "dict_values([", &values, "])")
        }
        View::Items => {
            out.push_str("dict_items([");
            for (at, (key, value)) in entries.enumerate() {
                out.push_str(if at > 0 { ", " } else { "" });
                write_items(out, "(", &[key.clone(), value.clone()], ")")?;
            }
            out.push_str("])");
            Ok(())
        }
    }
}

/// Writes `repr` of a string.
pub(super) fn write_quoted(out: &mut String, text: &str) {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    out.push(quote);
    for c in text.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if c == quote => {
                out.push('\\');
                out.push(c);
            }
            c if is_printable(c) => out.push(c),
            c => match u32::from(c) {
                code @ 0..=0xff => push(out, format_args!("\\x{code:02x}")),
                code @ 0x100..=0xffff => push(out, format_args!("\\u{code:04x}")),
                code => push(out, format_args!("\\U{code:08x}")),
            },
        }
    }
    out.push(quote);
}

/// `str.isprintable` of one character, except that code points not yet assigned count as printable:
/// that would need the whole Unicode table for text that no template prints this way.
pub(super) fn is_printable(c: char) -> bool {
    let other_space = c != ' ' && c.is_whitespace();
    let format = matches!(u32::from(c),
        0xad | 0x600..=0x605 | 0x61c | 0x6dd | 0x70f | 0x890..=0x891 | 0x8e2 | 0x180e | 0x200b..=0x200f
        | 0x202a..=0x202e | 0x2060..=0x206f | 0xfeff | 0xfff0..=0xfffb | 0x110bd | 0x110cd
        | 0x13430..=0x1343f | 0x1bca0..=0x1bca3 | 0x1d173..=0x1d17a | 0xe0000..=0xe007f);
    let private = matches!(u32::from(c), 0xe000..=0xf8ff | 0xf0000..=0x10ffff);
    !(c.is_control() || other_space || format || private)
}

// === values of a request ===

/// Deepest nesting of a request's JSON: serde_json reads no more.
pub(super) const JSON_DEPTH_MAX: u16 = 128;

/// A JSON object's entries as templates see them.
pub(super) fn entries(map: &serde_json::Map<String, Json>) -> Vec<(Value, Value)> {
    map.iter().map(|(key, item)| (Value::from(key.as_str()), from_json(item))).collect()
}

/// A JSON value as templates see it.
pub(super) fn from_json(json: &Json) -> Value {
    match json {
        Json::Null => Value::None,
        Json::Bool(flag) => Value::Bool(*flag),
        Json::String(text) => Value::from(text.as_str()),
        Json::Array(items) => Value::from(items.iter().map(from_json).collect::<Vec<_>>()),
        Json::Object(map) => {
            Value::object(map.iter().map(|(key, item)| (key.as_str(), from_json(item))))
        }
        Json::Number(number) => match (number.as_i64(), number.as_u64(), number.as_f64()) {
            (Some(whole), _, _) => Value::Int(whole.into()),
            (None, Some(whole), _) => Value::Int(whole.into()),
            (None, None, float) => float.map_or(Value::None, Value::Float),
        },
    }
}

// === numbers ===

/// Writes a float as Python does; `odd` are its words for not-a-number and the infinities.
fn push_float(out: &mut String, float: f64, odd: [&str; 3]) {
    let [nan, plus, minus] = odd;
    match float {
        float if float.is_nan() => out.push_str(nan),
        float if float.is_infinite() => out.push_str(if float > 0.0 { plus } else { minus }),
        float => out.push_str(&float_text(float)),
    }
}

/// `repr` of a finite float: shortest digits that read back, an exponent below 1e-4 and from 1e16.
pub(super) fn float_text(float: f64) -> String {
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

    /// `json.dumps(value)`. Fails for what JSON cannot hold.
    pub(super) fn dump(&self, value: &Value) -> Result<String, Stop> {
        let mut out = String::new();
        self.write(&mut out, value, 0)?;
        Ok(out)
    }

    fn write(&self, out: &mut String, value: &Value, depth: usize) -> Result<(), Stop> {
        bounded(out)?;
        match value {
            Value::None => out.push_str("null"),
            Value::Bool(flag) => out.push_str(if *flag { "true" } else { "false" }),
            Value::Int(number) => push(out, number),
            Value::Float(number) => push_float(out, *number, ["NaN", "Infinity", "-Infinity"]),
            Value::Str(text) | Value::Safe(text) => self.write_string(out, text),
            Value::List(seq) | Value::Tuple(seq) => {
                if seq.items.is_empty() {
                    out.push_str("[]");
                    return Ok(());
                }
                out.push('[');
                for (at, item) in seq.items.iter().enumerate() {
                    self.write_gap(out, at, depth + 1);
                    self.write(out, item, depth + 1)?;
                }
                self.write_line(out, depth);
                out.push(']');
            }
            Value::Dict(dict) => self.write_map(out, dict, depth)?,
            other => {
                let told = format!("Object of type {} is not JSON serializable", other.type_name());
                return Err(Stop::Failed(told));
            }
        }
        Ok(())
    }

    fn write_map(&self, out: &mut String, dict: &Dict, depth: usize) -> Result<(), Stop> {
        let mut entries: Vec<&(Value, Value)> = dict.entries.iter().collect();
        if entries.is_empty() {
            out.push_str("{}");
            return Ok(());
        }
        if self.sort_keys {
            if !entries.iter().all(|(key, _)| key.as_str().is_some()) {
                return Err(Stop::Failed("keys of several types cannot be sorted".into()));
            }
            entries.sort_by(|(one, _), (two, _)| one.as_str().cmp(&two.as_str()));
        }
        out.push('{');
        for (at, (key, item)) in entries.into_iter().enumerate() {
            self.write_gap(out, at, depth + 1);
            match key {
                Value::Str(text) | Value::Safe(text) => self.write_string(out, text),
                // Numbers, booleans and None become the text they would have as values.
                Value::None | Value::Bool(_) | Value::Int(_) | Value::Float(_) => {
                    out.push('"');
                    self.write(out, key, depth + 1)?;
                    out.push('"');
                }
                other => {
                    let told = format!("keys must be str, not {}", other.type_name());
                    return Err(Stop::Failed(told));
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
            assert_eq!(text(&Value::Float(float)).unwrap(), told);
        }
    }

    #[test]
    fn containers_print_as_python_literals() {
        let value = from_json(&json!({"a": [1, true, null, "it's"], "b": "x\u{1f}\n"}));
        assert_eq!(text(&value).unwrap(), r#"{'a': [1, True, None, "it's"], 'b': 'x\x1f\n'}"#);
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
