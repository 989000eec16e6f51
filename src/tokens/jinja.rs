//! The names that chat templates may call: filters, tests, functions and string methods as jinja2 has
//! them in transformers, where the engine's own differ.

use super::python::{self, Dumps};
use minijinja::{
    Environment, Error, ErrorKind, State, Value,
    value::{Kwargs, Tuple, ValueKind, from_args},
};
use std::fmt;

/// Widest text that padding may make, characters.
const WIDTH_MAX: usize = 4096;

/// The text that a template gave to `raise_exception`, carried as an error's source so that it can be
/// told from the engine's own errors.
#[derive(Debug)]
pub(super) struct Raised(pub(super) String);

impl fmt::Display for Raised {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Raised {}

/// Adds all of it to an environment.
pub(super) fn install(environment: &mut Environment<'static>) {
    environment.set_formatter(|out, _state, value| Ok(python::write_text(out, value)?));
    environment.set_unknown_method_callback(method);
    environment.add_filter("tojson", tojson);
    environment.add_filter("fromjson", fromjson);
    environment.add_filter("from_json", fromjson);
    environment.add_filter("indent", indent);
    environment.add_filter("trim", trim);
    environment.add_filter("string", |value: &Value| python::text(value));
    environment.add_filter("join", join);
    environment.add_filter("length", length);
    environment.add_filter("count", length);
    environment.add_filter("default", default);
    environment.add_filter("d", default);
    environment.add_filter("items", items);
    environment.add_filter("replace", replace);
    environment.add_filter("escape", escape);
    environment.add_filter("e", escape);
    environment.add_filter("center", |value: &Value, width: Option<usize>| {
        center(&python::text(value), width.unwrap_or(80), ' ')
    });
    environment.add_test("iterable", is_iterable);
    environment.add_test("sequence", |value: &Value| {
        is_iterable(value) && !matches!(value.kind(), ValueKind::Iterable)
    });
    environment.add_test("number", python::is_number);
    environment.add_test("float", python::is_float);
    environment.add_test("callable", |value: &Value| {
        matches!(value.kind(), ValueKind::Plain) && !python::is_float(value)
    });
    environment.add_function("raise_exception", |message: &Value| -> Result<Value, Error> {
        let raised = Raised(python::text(message));
        Err(Error::new(ErrorKind::InvalidOperation, "raised by the template").with_source(raised))
    });
    environment.add_function("dict", dict);
}

// === filters ===

fn tojson(value: &Value, ascii: Option<bool>, args: Kwargs) -> Result<Value, Error> {
    let indent = match args.get::<Option<Value>>("indent")? {
        Some(width) if width.as_str().is_some() => width.as_str().map(str::to_owned),
        Some(width) if !width.is_none() && !width.is_undefined() => {
            Some(" ".repeat(usize::try_from(width)?.min(64)))
        }
        _ => None,
    };
    let mut dumps = Dumps::new(indent);
    if let Some(separators) = args.get::<Option<Vec<String>>>("separators")?
        && let [item, key] = separators.as_slice()
    {
        dumps.separators = (item.clone(), key.clone());
    }
    dumps.ensure_ascii = args.get::<Option<bool>>("ensure_ascii")?.or(ascii).unwrap_or(false);
    dumps.sort_keys = args.get::<Option<bool>>("sort_keys")?.unwrap_or(false);
    args.assert_all_used()?;
    Ok(Value::from(dumps.dump(value)?))
}

fn fromjson(text: &str) -> Result<Value, Error> {
    let parsed: serde_json::Value = serde_json::from_str(text).map_err(|error| {
        Error::new(ErrorKind::InvalidOperation, "text is not JSON").with_source(error)
    })?;
    Ok(python::from_json(&parsed))
}

fn indent(
    value: &Value,
    width: Option<Value>,
    first: Option<bool>,
    blank: Option<bool>,
    args: Kwargs,
) -> Result<String, Error> {
    let width = match width {
        Some(width) => Some(width),
        None => args.get::<Option<Value>>("width")?,
    };
    let first = first.or(args.get("first")?).unwrap_or(false);
    let blank = blank.or(args.get("blank")?).unwrap_or(false);
    args.assert_all_used()?;
    let step = match width {
        Some(width) if width.as_str().is_some() => python::text(&width),
        Some(width) => " ".repeat(usize::try_from(width)?.min(256)),
        None => " ".repeat(4),
    };
    let text = python::text(value) + "\n";
    let mut out = String::with_capacity(text.len() * 2);
    for (at, line) in python::lines(&text, false).into_iter().enumerate() {
        if at > 0 {
            out.push('\n');
        }
        if (at == 0 && first) || (at > 0 && (blank || !line.is_empty())) {
            out.push_str(&step);
        }
        out.push_str(line);
    }
    Ok(out)
}

fn trim(value: &Value, chars: Option<Value>) -> String {
    strip(&python::text(value), chars.as_ref().and_then(Value::as_str), true, true).to_owned()
}

fn join(
    value: &Value,
    joiner: Option<Value>,
    attribute: Option<Value>,
    args: Kwargs,
) -> Result<String, Error> {
    let joiner = match joiner {
        Some(joiner) => Some(joiner),
        None => args.get::<Option<Value>>("d")?,
    };
    let attribute = match attribute {
        Some(attribute) => Some(attribute),
        None => args.get::<Option<Value>>("attribute")?,
    };
    args.assert_all_used()?;
    let joiner = joiner.as_ref().map(python::text).unwrap_or_default();
    let mut out = String::new();
    for (at, item) in value.try_iter()?.checked().enumerate() {
        if at > 0 {
            out.push_str(&joiner);
        }
        let item = item?;
        match &attribute {
            Some(key) => python::write_text(&mut out, &item.get_item(key)?)?,
            None => python::write_text(&mut out, &item)?,
        }
    }
    Ok(out)
}

fn length(value: &Value) -> Result<usize, Error> {
    if value.is_undefined() {
        return Ok(0);
    }
    value.len().ok_or_else(|| {
        Error::new(ErrorKind::InvalidOperation, format!("{} has no length", value.kind()))
    })
}

fn default(
    value: &Value,
    other: Option<Value>,
    falsy: Option<Value>,
    args: Kwargs,
) -> Result<Value, Error> {
    let other = match other {
        Some(other) => Some(other),
        None => args.get::<Option<Value>>("default_value")?,
    };
    let falsy = match falsy {
        Some(falsy) => Some(falsy),
        None => args.get::<Option<Value>>("boolean")?,
    };
    args.assert_all_used()?;
    let lacking =
        value.is_undefined() || (falsy.is_some_and(|falsy| falsy.is_true()) && !value.is_true());
    Ok(if lacking { other.unwrap_or_else(|| Value::from("")) } else { value.clone() })
}

fn items(value: &Value) -> Result<Value, Error> {
    match value.kind() {
        ValueKind::Undefined => Ok(Value::from(Vec::<Value>::new())),
        ValueKind::Map => Ok(python::pairs(value)
            .into_iter()
            .map(|(key, item)| Value::from(Tuple::from([key, item])))
            .collect()),
        _ => {
            Err(Error::new(ErrorKind::InvalidOperation, "Can only get item pairs from a mapping."))
        }
    }
}

fn replace(value: &Value, old: &Value, new: &Value, count: Option<usize>) -> String {
    let (text, old, new) = (python::text(value), python::text(old), python::text(new));
    match count {
        Some(count) => text.replacen(&old, &new, count),
        None => text.replace(&old, &new),
    }
}

fn escape(value: &Value) -> String {
    let mut out = String::new();
    for c in python::text(value).chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '\'' => out.push_str("&#39;"),
            '"' => out.push_str("&#34;"),
            c => out.push(c),
        }
    }
    out
}

// === tests and functions ===

fn is_iterable(value: &Value) -> bool {
    matches!(
        value.kind(),
        ValueKind::Undefined
            | ValueKind::String
            | ValueKind::Seq
            | ValueKind::Map
            | ValueKind::Iterable
    )
}

/// `dict(mapping_or_pairs, **more)`.
fn dict(first: Option<Value>, more: Kwargs) -> Result<Value, Error> {
    let mut entries = match &first {
        Some(map) if map.kind() == ValueKind::Map => python::pairs(map),
        Some(list) => {
            let mut entries = Vec::new();
            for pair in list.try_iter()?.checked() {
                let pair = pair?;
                entries.push((pair.get_item_by_index(0)?, pair.get_item_by_index(1)?));
            }
            entries
        }
        None => Vec::new(),
    };
    for name in more.args() {
        entries.push((Value::from(name), more.peek::<Value>(name)?));
    }
    Ok(Value::from_pairs(entries))
}

// === methods ===

/// Methods that Python strings and dicts have; what is not here is left to the engine's companion crate.
fn method(state: &mut State, value: &Value, name: &str, args: &[Value]) -> Result<Value, Error> {
    let found = match value.kind() {
        ValueKind::String => string_method(value.as_str().unwrap_or_default(), name, args)?,
        ValueKind::Map => match name {
            "copy" => Some(Value::from_pairs(python::pairs(value))),
            "items" => Some(items(value)?),
            _ => None,
        },
        ValueKind::Seq => match name {
            "copy" => Some(value.clone()),
            "index" => {
                let (wanted,): (&Value,) = from_args(args)?;
                let at = value.try_iter()?.position(|item| item == *wanted);
                let missing = || Error::new(ErrorKind::InvalidOperation, "item is not in list");
                Some(Value::from(at.ok_or_else(missing)?))
            }
            _ => None,
        },
        _ => None,
    };
    match found {
        Some(found) => Ok(found),
        None => minijinja_contrib::pycompat::unknown_method_callback(state, value, name, args),
    }
}

fn string_method(text: &str, name: &str, args: &[Value]) -> Result<Option<Value>, Error> {
    Ok(Some(match name {
        "strip" | "lstrip" | "rstrip" => {
            let (chars,): (Option<Value>,) = from_args(args)?;
            let chars = chars.as_ref().and_then(Value::as_str);
            Value::from(strip(text, chars, name != "rstrip", name != "lstrip"))
        }
        "split" | "rsplit" => {
            let (separator, most, named): (Option<Value>, Option<i64>, Kwargs) = from_args(args)?;
            let separator = separator.or(named.get("sep")?);
            let most = most.or(named.get("maxsplit")?).unwrap_or(-1);
            let most = usize::try_from(most).unwrap_or(usize::MAX);
            let parts = match separator.as_ref().and_then(Value::as_str) {
                Some("") => return Err(Error::new(ErrorKind::InvalidOperation, "empty separator")),
                Some(separator) => split_at(text, separator, most, name == "rsplit"),
                None => split_spaces(text, most, name == "rsplit"),
            };
            parts.into_iter().map(Value::from).collect()
        }
        "splitlines" => {
            let (keep, named): (Option<bool>, Kwargs) = from_args(args)?;
            let keep = keep.or(named.get("keepends")?).unwrap_or(false);
            python::lines(text, keep).into_iter().map(Value::from).collect()
        }
        "isspace" => Value::from(!text.is_empty() && text.chars().all(python::is_space)),
        "join" => {
            let (items,): (&Value,) = from_args(args)?;
            Value::from(join(
                items,
                Some(Value::from(text)),
                None,
                Kwargs::from_iter(Vec::<(String, Value)>::new()),
            )?)
        }
        "removeprefix" => {
            let (prefix,): (&str,) = from_args(args)?;
            Value::from(text.strip_prefix(prefix).unwrap_or(text))
        }
        "removesuffix" => {
            let (suffix,): (&str,) = from_args(args)?;
            Value::from(text.strip_suffix(suffix).unwrap_or(text))
        }
        "partition" | "rpartition" => {
            let (separator,): (&str,) = from_args(args)?;
            let (found, missing) = match name {
                "partition" => (text.split_once(separator), [text, "", ""]),
                _ => (text.rsplit_once(separator), ["", "", text]),
            };
            let parts = found.map_or(missing, |(head, tail)| [head, separator, tail]);
            Value::from(Tuple::from(parts.map(Value::from)))
        }
        "index" | "rindex" => {
            let (wanted,): (&str,) = from_args(args)?;
            let at = if name == "index" { text.find(wanted) } else { text.rfind(wanted) };
            let missing = || Error::new(ErrorKind::InvalidOperation, "substring not found");
            let (before, _) = text.split_at(at.ok_or_else(missing)?);
            Value::from(before.chars().count())
        }
        "swapcase" => {
            let swapped = text.chars().flat_map(|c| -> Box<dyn Iterator<Item = char>> {
                if c.is_uppercase() {
                    Box::new(c.to_lowercase())
                } else {
                    Box::new(c.to_uppercase())
                }
            });
            Value::from(swapped.collect::<String>())
        }
        "center" => {
            let (width, fill): (usize, Option<char>) = from_args(args)?;
            Value::from(center(text, width, fill.unwrap_or(' ')))
        }
        "zfill" | "ljust" | "rjust" => {
            let (width, fill): (usize, Option<char>) = from_args(args)?;
            let fill = if name == "zfill" { '0' } else { fill.unwrap_or(' ') };
            let lacking = width.min(WIDTH_MAX).saturating_sub(text.chars().count());
            let padding: String = std::iter::repeat_n(fill, lacking).collect();
            Value::from(if name == "ljust" {
                format!("{text}{padding}")
            } else {
                format!("{padding}{text}")
            })
        }
        _ => return Ok(None),
    }))
}

/// `str.center`, which puts the odd space to the left if the width is odd too.
fn center(text: &str, width: usize, fill: char) -> String {
    let width = width.min(WIDTH_MAX);
    let lacking = width.saturating_sub(text.chars().count());
    let left = lacking / 2 + (lacking & width & 1);
    let side = |count| std::iter::repeat_n(fill, count);
    side(left).chain(text.chars()).chain(side(lacking - left)).collect()
}

fn strip<'a>(text: &'a str, chars: Option<&str>, left: bool, right: bool) -> &'a str {
    let goes = |c: char| chars.map_or_else(|| python::is_space(c), |chars| chars.contains(c));
    let text = if left { text.trim_start_matches(goes) } else { text };
    if right { text.trim_end_matches(goes) } else { text }
}

fn split_at<'a>(text: &'a str, separator: &str, most: usize, from_right: bool) -> Vec<&'a str> {
    if from_right {
        let mut parts: Vec<_> = text.rsplitn(most.saturating_add(1), separator).collect();
        parts.reverse();
        parts
    } else {
        text.splitn(most.saturating_add(1), separator).collect()
    }
}

fn split_spaces(text: &str, most: usize, from_right: bool) -> Vec<&str> {
    let mut parts = Vec::new();
    // Only the side we read from is stripped: what is left when `most` is reached keeps its spaces.
    let mut rest = strip(text, None, !from_right, from_right);
    while parts.len() < most && !rest.is_empty() {
        let at =
            if from_right { rest.rfind(python::is_space) } else { rest.find(python::is_space) };
        let Some(at) = at else { break };
        let (head, tail) = rest.split_at(at);
        let (part, left) = if from_right { (tail, head) } else { (head, tail) };
        parts.push(strip(part, None, true, true));
        rest = strip(left, None, !from_right, from_right);
    }
    if !rest.is_empty() {
        parts.push(rest);
    }
    if from_right {
        parts.reverse();
    }
    parts
}
