//! The methods of strings, lists and dicts that templates may call.

use super::{
    Stop, access,
    args::{self, Args},
    chars,
    format::{self, Fields, WIDTH_MAX},
    ops,
    value::{Dict, Value, View},
};
use crate::tokens::{
    python::{self, is_space},
    template::TEXT_BYTES_MAX,
};
use std::sync::Arc;

/// `value.name(args)`
pub(super) fn call(value: &Value, name: &str, args: Args) -> Result<Value, Stop> {
    match value {
        Value::Str(text) | Value::Safe(text) => string(value, text, name, args),
        Value::Dict(dict) => of_dict(dict, name, args),
        Value::List(seq) | Value::Tuple(seq) => match name {
            "copy" => args.places::<0>(0).map(|_| value.clone()),
            "count" => {
                let [item] = args.places(1)?;
                let item = item.unwrap_or(Value::None);
                Ok(Value::count(seq.items.iter().filter(|other| ops::same(other, &item)).count()))
            }
            "index" => {
                let [item, start, stop] = args.places(1)?;
                let item = item.unwrap_or(Value::None);
                let length = seq.items.len();
                let from = bound(args::whole(start.as_ref())?, length, 0);
                let to = bound(args::whole(stop.as_ref())?, length, length);
                let mut places = seq.items.iter().enumerate().take(to).skip(from);
                let found = places.find(|(_, other)| ops::same(other, &item));
                found
                    .map(|(at, _)| Value::count(at))
                    .ok_or_else(|| Stop::failed("item is not in list"))
            }
            _ => unknown(value, name),
        },
        _ => unknown(value, name),
    }
}

fn unknown(value: &Value, name: &str) -> Result<Value, Stop> {
    Err(Stop::failed(format!("the method {name} of a {} is not known", value.type_name())))
}

/// An index as slices take it.
fn bound(at: Option<i128>, length: usize, otherwise: usize) -> usize {
    match at {
        None => otherwise,
        Some(at) if at < 0 => usize::try_from(at + length as i128).unwrap_or(0),
        Some(at) => usize::try_from(at).unwrap_or(usize::MAX).min(length),
    }
}

fn of_dict(dict: &Arc<Dict>, name: &str, args: Args) -> Result<Value, Stop> {
    match name {
        "get" => {
            let [key, other] = args.places(1)?;
            let found = dict.find(&key.unwrap_or(Value::None))?.cloned();
            Ok(found.or(other).unwrap_or(Value::None))
        }
        "items" => args.places::<0>(0).map(|_| Value::View(View::Items, dict.clone())),
        "keys" => args.places::<0>(0).map(|_| Value::View(View::Keys, dict.clone())),
        "values" => args.places::<0>(0).map(|_| Value::View(View::Values, dict.clone())),
        "copy" => args.places::<0>(0).map(|_| Value::Dict(dict.clone())),
        _ => Err(Stop::failed(format!("the method {name} of a dict is not known"))),
    }
}

fn string(value: &Value, text: &str, name: &str, args: Args) -> Result<Value, Stop> {
    let safe = matches!(value, Value::Safe(_));
    let like = |text: String| if safe { Value::Safe(text.into()) } else { text.into() };
    // What joins a safe text is escaped before.
    let given = |value: Option<Value>| -> Result<String, Stop> {
        let text = args::text(value.as_ref())?;
        let plain = !safe || matches!(value, Some(Value::Safe(_)));
        Ok(if plain { text.to_owned() } else { format::escape(text) })
    };
    Ok(match name {
        "lower" => args.places::<0>(0).map(|_| like(text.to_lowercase()))?,
        "upper" => args.places::<0>(0).map(|_| like(text.to_uppercase()))?,
        "casefold" => args.places::<0>(0).and_then(|_| Ok(like(chars::folded(text)?)))?,
        "capitalize" => args.places::<0>(0).and_then(|_| Ok(like(chars::capitalized(text)?)))?,
        "title" => args.places::<0>(0).and_then(|_| Ok(like(chars::titled_words(text)?)))?,
        "swapcase" => args.places::<0>(0).and_then(|_| Ok(like(chars::swapped(text)?)))?,
        "strip" | "lstrip" | "rstrip" => {
            let [set] = args.places(0)?;
            let set = match &set {
                None | Some(Value::None) => None,
                Some(set) => Some(args::text(Some(set))?),
            };
            like(strip(text, set, name != "rstrip", name != "lstrip").to_owned())
        }
        "split" | "rsplit" => {
            let [separator, most] = args.bind(["sep", "maxsplit"], 0)?;
            let most = args::whole(most.as_ref())?.unwrap_or(-1);
            let most = usize::try_from(most).unwrap_or(usize::MAX);
            let from_right = name == "rsplit";
            let parts = match &separator {
                None | Some(Value::None) => split_spaces(text, most, from_right),
                Some(separator) => match args::text(Some(separator))? {
                    "" => return Err(Stop::failed("empty separator")),
                    separator => split_at(text, separator, most, from_right),
                },
            };
            Value::list(parts.into_iter().map(|part| like(part.to_owned())).collect())?
        }
        "splitlines" => {
            let [keep] = args.bind(["keepends"], 0)?;
            let lines = python::lines(text, args::flag(keep.as_ref(), false));
            Value::list(lines.into_iter().map(|line| like(line.to_owned())).collect())?
        }
        "join" => {
            let [items] = args.places(1)?;
            like(join(text, &items.unwrap_or(Value::None), safe)?)
        }
        "replace" => {
            let [old, new, count] = args.places(2)?;
            let count = args::whole(count.as_ref())?.unwrap_or(-1);
            like(replaced(text, args::text(old.as_ref())?, &given(new)?, count)?)
        }
        "startswith" | "endswith" => {
            let [wanted, start, stop] = args.places(1)?;
            let inside = between(text, start.as_ref(), stop.as_ref())?;
            let fits = |wanted: &Value| -> Result<bool, Stop> {
                let wanted = args::text(Some(wanted))?;
                Ok(inside.is_some_and(|(inside, _)| {
                    if name == "startswith" {
                        inside.starts_with(wanted)
                    } else {
                        inside.ends_with(wanted)
                    }
                }))
            };
            match &wanted {
                Some(Value::Tuple(seq)) => {
                    let all = seq.items.iter().map(fits).collect::<Result<Vec<bool>, _>>()?;
                    Value::Bool(all.contains(&true))
                }
                Some(wanted) => Value::Bool(fits(wanted)?),
                None => return unknown(value, name),
            }
        }
        "find" | "rfind" | "index" | "rindex" | "count" => {
            let [wanted, start, stop] = args.places(1)?;
            let wanted = args::text(wanted.as_ref())?;
            let inside = between(text, start.as_ref(), stop.as_ref())?;
            search(inside, wanted, name)?
        }
        "removeprefix" | "removesuffix" => {
            let [part] = args.places(1)?;
            let part = args::text(part.as_ref())?;
            let cut = if name == "removeprefix" {
                text.strip_prefix(part)
            } else {
                text.strip_suffix(part)
            };
            like(cut.unwrap_or(text).to_owned())
        }
        "partition" | "rpartition" => {
            let [separator] = args.places(1)?;
            let separator = args::text(separator.as_ref())?;
            if separator.is_empty() {
                return Err(Stop::failed("empty separator"));
            }
            let (found, missing) = match name {
                "partition" => (text.split_once(separator), [text, "", ""]),
                _ => (text.rsplit_once(separator), ["", "", text]),
            };
            let parts = found.map_or(missing, |(head, tail)| [head, separator, tail]);
            Value::tuple(parts.map(|part| like(part.to_owned())).into())?
        }
        "center" | "ljust" | "rjust" => {
            let [width, fill] = args.places(1)?;
            let fill = match &fill {
                None => ' ',
                Some(fill) => one_char(args::text(Some(fill))?)?,
            };
            like(padded(text, name, width_of(width.as_ref())?, fill))
        }
        "zfill" => {
            let [width] = args.places(1)?;
            let signed = text.starts_with(['+', '-']);
            let (sign, digits) = text.split_at(usize::from(signed));
            like(format::padded(sign, digits, '=', '0', width_of(width.as_ref())?))
        }
        "expandtabs" => {
            let [size] = args.bind(["tabsize"], 0)?;
            like(expanded(text, args::whole(size.as_ref())?.unwrap_or(8).clamp(0, 64)))
        }
        "format" => {
            let named = |name: &str| {
                let found = args.named.iter().find(|(known, _)| **known == *name);
                let told = || Stop::failed(format!("KeyError: {name}"));
                found.map(|(_, value)| value.clone()).ok_or_else(told)
            };
            like(format::fill(text, &Fields { list: &args.list, named: &named, escaping: safe })?)
        }
        "format_map" => {
            let [map] = args.places(1)?;
            let named =
                |name: &str| access::get_item(map.as_ref().unwrap_or(&Value::None), &name.into());
            like(format::fill(text, &Fields { list: &[], named: &named, escaping: safe })?)
        }
        _ => return about(text, name, args),
    })
}

/// Methods that answer with yes or no.
fn about(text: &str, name: &str, args: Args) -> Result<Value, Stop> {
    args.places::<0>(0)?;
    Ok(Value::Bool(match name {
        "isalpha" => chars::all(text, chars::is_alpha)?,
        "isalnum" => chars::all(text, chars::is_alnum)?,
        "isdigit" | "isdecimal" => chars::all(text, |c| chars::is_digit(c, false))?,
        "isnumeric" => chars::all(text, |c| chars::is_digit(c, true))?,
        "isspace" => !text.is_empty() && text.chars().all(is_space),
        "isascii" => text.is_ascii(),
        "islower" => chars::is_case(text, false),
        "isupper" => chars::is_case(text, true),
        "istitle" => chars::is_title(text),
        "isprintable" => text.chars().all(python::is_printable),
        "isidentifier" if text.is_ascii() => {
            text.starts_with(|c: char| c == '_' || c.is_ascii_alphabetic())
                && text.chars().all(|c| c == '_' || c.is_ascii_alphanumeric())
        }
        _ => return Err(Stop::failed(format!("the method {name} of a string is not known"))),
    }))
}

/// `separator.join(items)`; a safe one escapes what is not safe, a plain one wants strings.
fn join(separator: &str, items: &Value, safe: bool) -> Result<String, Stop> {
    let mut out = String::new();
    for (at, item) in access::items(items)?.items.iter().enumerate() {
        if at > 0 {
            out.push_str(separator);
        }
        if out.len() > TEXT_BYTES_MAX {
            return Err(Stop::TooLong);
        }
        match item {
            Value::Str(text) if safe => out.push_str(&format::escape(text)),
            Value::Str(text) | Value::Safe(text) => out.push_str(text),
            other if safe => out.push_str(&format::escape(&python::text(other)?)),
            other => {
                let told = format!("sequence item {at}: expected str, {} found", other.type_name());
                return Err(Stop::Failed(told));
            }
        }
    }
    Ok(out)
}

/// `text.replace(old, new, count)`
pub(super) fn replaced(text: &str, old: &str, new: &str, count: i128) -> Result<String, Stop> {
    let places = || match old {
        "" => python::char_count(text).saturating_add(1),
        old => text.matches(old).count(),
    };
    let longer = text.len().saturating_mul(new.len().max(1)) > TEXT_BYTES_MAX;
    if longer && places().saturating_mul(new.len()).saturating_add(text.len()) > TEXT_BYTES_MAX {
        return Err(Stop::TooLong);
    }
    Ok(match usize::try_from(count) {
        Ok(count) => text.replacen(old, new, count),
        Err(_) => text.replace(old, new),
    })
}

/// The part of a text between two character places, and where it begins. `None` where they cross.
fn between<'a>(
    text: &'a str,
    start: Option<&Value>,
    stop: Option<&Value>,
) -> Result<Option<(&'a str, usize)>, Stop> {
    if start.is_none() && stop.is_none() {
        return Ok(Some((text, 0)));
    }
    let length = python::char_count(text);
    let start = args::whole(start)?;
    if start.is_some_and(|start| start > length as i128) {
        return Ok(None);
    }
    let from = bound(start, length, 0);
    let to = bound(args::whole(stop)?, length, length);
    if from > to {
        return Ok(None);
    }
    let byte = |at: usize| text.char_indices().nth(at).map_or(text.len(), |(byte, _)| byte);
    Ok(text.get(byte(from)..byte(to)).map(|inside| (inside, from)))
}

fn search(inside: Option<(&str, usize)>, wanted: &str, name: &str) -> Result<Value, Stop> {
    if name == "count" {
        let found = inside.map_or(0, |(inside, _)| match wanted {
            "" => python::char_count(inside) + 1,
            wanted => inside.matches(wanted).count(),
        });
        return Ok(Value::count(found));
    }
    let found = inside.and_then(|(inside, from)| {
        let at = if name.starts_with('r') { inside.rfind(wanted) } else { inside.find(wanted) }?;
        Some(from + python::char_count(inside.get(..at)?))
    });
    match found {
        Some(at) => Ok(Value::count(at)),
        None if name.ends_with("find") => Ok(Value::Int(-1)),
        None => Err(Stop::failed("substring not found")),
    }
}

fn one_char(text: &str) -> Result<char, Stop> {
    let mut chars = text.chars();
    match (chars.next(), chars.next()) {
        (Some(c), None) => Ok(c),
        _ => Err(Stop::failed("The fill character must be exactly one character long")),
    }
}

fn width_of(width: Option<&Value>) -> Result<usize, Stop> {
    let width = args::whole(width)?.ok_or_else(|| Stop::failed("needs a width"))?;
    let width = usize::try_from(width.max(0)).unwrap_or(usize::MAX);
    if width > WIDTH_MAX { Err(Stop::TooLong) } else { Ok(width) }
}

/// `center`, `ljust` or `rjust`. The odd space of `center` goes to the left if the width is odd too.
pub(super) fn padded(text: &str, name: &str, width: usize, fill: char) -> String {
    let lacking = width.saturating_sub(python::char_count(text));
    let left = match name {
        "ljust" => 0,
        "rjust" => lacking,
        _ => lacking / 2 + (lacking & width & 1),
    };
    let side = |count| std::iter::repeat_n(fill, count);
    side(left).chain(text.chars()).chain(side(lacking - left)).collect()
}

fn expanded(text: &str, size: i128) -> String {
    let mut out = String::new();
    let mut column = 0i128;
    for c in text.chars() {
        match c {
            '\t' if size > 0 => {
                let gap = size - column % size;
                out.extend(std::iter::repeat_n(' ', usize::try_from(gap).unwrap_or(0)));
                column += gap;
            }
            '\t' => {}
            '\n' | '\r' => {
                out.push(c);
                column = 0;
            }
            c => {
                out.push(c);
                column += 1;
            }
        }
    }
    out
}

/// `strip` and its sides, of whitespace or of the characters given.
pub(super) fn strip<'a>(text: &'a str, set: Option<&str>, left: bool, right: bool) -> &'a str {
    let goes = |c: char| set.map_or_else(|| is_space(c), |set| set.contains(c));
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
        let at = if from_right { rest.rfind(is_space) } else { rest.find(is_space) };
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
