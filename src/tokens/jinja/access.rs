//! Attributes, items, slices, and walking: what `.`, `[]` and `for` find in a value.

use super::{
    Stop,
    value::{Seq, Value, View},
};
use std::sync::Arc;

/// What Python's `getattr` finds, before any item is looked for.
pub(super) enum Attribute {
    /// A method that templates may call.
    Method(&'static str),
    /// One that the sandbox hides: it changes its value, or is a part of Python's own.
    Hidden,
    /// No attribute of this name.
    Missing,
}

const STRING: &[&str] = &[
    "capitalize",
    "casefold",
    "center",
    "count",
    "encode",
    "endswith",
    "expandtabs",
    "find",
    "format",
    "format_map",
    "index",
    "isalnum",
    "isalpha",
    "isascii",
    "isdecimal",
    "isdigit",
    "isidentifier",
    "islower",
    "isnumeric",
    "isprintable",
    "isspace",
    "istitle",
    "isupper",
    "join",
    "ljust",
    "lower",
    "lstrip",
    "maketrans",
    "partition",
    "removeprefix",
    "removesuffix",
    "replace",
    "rfind",
    "rindex",
    "rjust",
    "rpartition",
    "rsplit",
    "rstrip",
    "split",
    "splitlines",
    "startswith",
    "strip",
    "swapcase",
    "title",
    "translate",
    "upper",
    "zfill",
];
const SAFE: &[&str] = &["escape", "striptags", "unescape"];
const SEQUENCE: &[&str] = &["count", "index"];
const LIST: &[&str] = &["copy"];
const LIST_HIDDEN: &[&str] =
    &["append", "clear", "extend", "insert", "pop", "remove", "reverse", "sort"];
const DICT: &[&str] = &["copy", "fromkeys", "get", "items", "keys", "values"];
const DICT_HIDDEN: &[&str] = &["clear", "pop", "popitem", "setdefault", "update"];
const NUMBER: &[&str] = &[
    "as_integer_ratio",
    "bit_count",
    "bit_length",
    "conjugate",
    "denominator",
    "from_bytes",
    "fromhex",
    "hex",
    "imag",
    "is_integer",
    "numerator",
    "real",
    "to_bytes",
];
const VIEW: &[&str] = &["isdisjoint", "mapping"];
const RANGE: &[&str] = &["start", "step", "stop"];
/// What generators and macros have.
const OF_FUNCTIONS: &[&str] = &[
    "arguments",
    "caller",
    "catch_kwargs",
    "catch_varargs",
    "close",
    "explicit_caller",
    "gi_code",
    "gi_frame",
    "gi_running",
    "gi_suspended",
    "gi_yieldfrom",
    "name",
    "send",
    "throw",
];
/// What every Python object has.
const OBJECT: &[&str] = &[
    "__add__",
    "__class__",
    "__contains__",
    "__delattr__",
    "__dir__",
    "__doc__",
    "__eq__",
    "__format__",
    "__ge__",
    "__getattribute__",
    "__getitem__",
    "__getstate__",
    "__gt__",
    "__hash__",
    "__init__",
    "__init_subclass__",
    "__iter__",
    "__le__",
    "__len__",
    "__lt__",
    "__mod__",
    "__mul__",
    "__ne__",
    "__new__",
    "__reduce__",
    "__reduce_ex__",
    "__repr__",
    "__setattr__",
    "__sizeof__",
    "__str__",
    "__subclasshook__",
];

/// Looks an attribute up as Python and its sandbox do.
pub(super) fn attribute(value: &Value, name: &str) -> Attribute {
    let (open, more, hidden): (&[&'static str], &[&'static str], &[&'static str]) = match value {
        Value::Str(_) => (STRING, &[], &[]),
        Value::Safe(_) => (STRING, SAFE, &[]),
        Value::List(_) => (SEQUENCE, LIST, LIST_HIDDEN),
        Value::Tuple(_) => (SEQUENCE, &[], &[]),
        Value::Dict(_) => (DICT, &[], DICT_HIDDEN),
        Value::Int(_) | Value::Bool(_) | Value::Float(_) => (NUMBER, &[], &[]),
        Value::View(..) => (VIEW, &[], &[]),
        Value::Range(..) => (SEQUENCE, RANGE, &[]),
        _ => (&[], &[], &[]),
    };
    match open.iter().chain(more).find(|known| **known == name) {
        Some(known) => Attribute::Method(known),
        None if hidden.contains(&name) || OBJECT.contains(&name) => Attribute::Hidden,
        None => Attribute::Missing,
    }
}

/// `value.name`, for all but namespaces and loops.
pub(super) fn get_attribute(value: &Value, name: &str) -> Result<Value, Stop> {
    match value {
        Value::Undefined => Err(Stop::failed(format!("undefined has no attribute {name}"))),
        Value::Tuple(seq) if seq.is_group && matches!(name, "grouper" | "list") => {
            Ok(seq.items.get(usize::from(name == "list")).cloned().unwrap_or(Value::Undefined))
        }
        // What these have of their own is not here; of other names they have none.
        Value::Macro(_) | Value::Once(_) if !OF_FUNCTIONS.contains(&name) => Ok(Value::Undefined),
        Value::Macro(_)
        | Value::Once(_)
        | Value::Global(_)
        | Value::Namespace(_)
        | Value::Loop(_) => {
            Err(Stop::failed(format!("attribute {name} of a {} is not known", value.type_name())))
        }
        Value::Int(_) | Value::Bool(_) | Value::Float(_) | Value::Range(..) => {
            match attribute(value, name) {
                Attribute::Method("is_integer") | Attribute::Missing => Ok(Value::Undefined),
                _ => Err(Stop::failed(format!("attribute {name} of a number is not known"))),
            }
        }
        _ => match attribute(value, name) {
            Attribute::Method(known) => Ok(Value::Method(Arc::new((value.clone(), known)))),
            Attribute::Hidden => Ok(Value::Undefined),
            Attribute::Missing => match value {
                Value::Dict(dict) => Ok(dict.get(name).cloned().unwrap_or(Value::Undefined)),
                _ => Ok(Value::Undefined),
            },
        },
    }
}

/// `value[key]`, for all but namespaces and loops.
pub(super) fn get_item(value: &Value, key: &Value) -> Result<Value, Stop> {
    let found = match value {
        Value::Undefined => return Err(Stop::failed("undefined has no items")),
        Value::Macro(_) => match key.as_str() {
            Some(name) => return get_attribute(value, name),
            None => None,
        },
        Value::Namespace(_) | Value::Loop(_) => {
            return Err(Stop::failed(format!("items of a {} are not known", value.type_name())));
        }
        Value::Tuple(seq) if seq.is_group && key.as_str().is_some() => {
            return get_attribute(value, key.as_str().unwrap_or_default());
        }
        Value::Dict(dict) => match key {
            // Python raises for what cannot be a key, and jinja2 takes that for a missing one.
            Value::List(_) | Value::Dict(_) => None,
            key => dict.find(key)?.cloned(),
        },
        Value::Str(text) => {
            char_at(text, key).map(|c| Value::from(c.encode_utf8(&mut [0; 4]) as &str))
        }
        Value::Safe(text) => {
            char_at(text, key).map(|c| Value::Safe((c.encode_utf8(&mut [0; 4]) as &str).into()))
        }
        Value::List(seq) | Value::Tuple(seq) => {
            place(key, seq.items.len()).and_then(|at| seq.items.get(at)).cloned()
        }
        Value::Range(start, _, step) => {
            place(key, value.length().unwrap_or(0)).map(|at| Value::Int(start + step * at as i128))
        }
        _ => None,
    };
    match (found, key.as_str()) {
        (Some(found), _) => Ok(found),
        (None, None) => Ok(Value::Undefined),
        (None, Some(name)) => match (attribute(value, name), value) {
            (Attribute::Method(known), Value::Str(_) | Value::Safe(_) | Value::List(_))
            | (Attribute::Method(known), Value::Tuple(_) | Value::Dict(_) | Value::View(..)) => {
                Ok(Value::Method(Arc::new((value.clone(), known))))
            }
            (Attribute::Method(_), _) => {
                Err(Stop::failed(format!("attribute {name} is not known")))
            }
            _ => Ok(Value::Undefined),
        },
    }
}

/// Where an index points to among so many items.
fn place(key: &Value, length: usize) -> Option<usize> {
    let at = key.as_int()?;
    let at = if at < 0 { at + length as i128 } else { at };
    usize::try_from(at).ok().filter(|at| *at < length)
}

fn char_at(text: &str, key: &Value) -> Option<char> {
    if text.is_ascii() {
        return text.as_bytes().get(place(key, text.len())?).map(|byte| char::from(*byte));
    }
    let at = key.as_int()?;
    if at >= 0 {
        text.chars().nth(usize::try_from(at).ok()?)
    } else {
        text.chars().rev().nth(usize::try_from(-(at + 1)).ok()?)
    }
}

// === slices ===

/// `value[start:stop:step]`
pub(super) fn slice(value: &Value, [start, stop, step]: [Option<i128>; 3]) -> Result<Value, Stop> {
    let step = step.unwrap_or(1);
    if step == 0 {
        return Err(Stop::failed("slice step cannot be zero"));
    }
    let told = || Stop::failed(format!("a {} cannot be sliced", value.type_name()));
    let length = value.length().ok_or_else(told)?;
    let bounds = Bounds::of(start, stop, step, length as i128);
    match value {
        Value::Undefined => Err(Stop::failed("undefined has no items")),
        Value::Str(text) => Ok(cut(text, &bounds).into()),
        Value::Safe(text) => Ok(Value::Safe(cut(text, &bounds).into())),
        Value::List(seq) => Value::list(bounds.pick(&seq.items)),
        Value::Tuple(seq) => Value::tuple(bounds.pick(&seq.items)),
        Value::Range(first, _, pace) => {
            let at = |place: i128| pace.checked_mul(place)?.checked_add(*first);
            let made = (at(bounds.start), at(bounds.stop), pace.checked_mul(bounds.step));
            let (Some(start), Some(stop), Some(step)) = made else {
                return Err(Stop::failed("a number out of range"));
            };
            Ok(Value::Range(start, stop, step))
        }
        _ => Err(told()),
    }
}

/// A slice over known items.
struct Bounds {
    start: i128,
    stop: i128,
    step: i128,
}

impl Bounds {
    /// Python's `slice.indices`.
    fn of(start: Option<i128>, stop: Option<i128>, step: i128, length: i128) -> Self {
        let (low, high) = if step < 0 { (-1, length - 1) } else { (0, length) };
        let fit = |at: i128| {
            let at = if at < 0 { at.saturating_add(length) } else { at };
            at.clamp(low, high)
        };
        let (first, last) = if step < 0 { (high, low) } else { (low, high) };
        Self { start: start.map_or(first, fit), stop: stop.map_or(last, fit), step }
    }

    fn places(&self) -> impl Iterator<Item = usize> {
        let (start, stop, step) = (self.start, self.stop, self.step);
        let goes_on = move |at: &i128| if step > 0 { *at < stop } else { *at > stop };
        std::iter::successors(Some(start), move |at| at.checked_add(step))
            .take_while(goes_on)
            .filter_map(|at| usize::try_from(at).ok())
    }

    fn pick(&self, items: &[Value]) -> Vec<Value> {
        self.places().filter_map(|at| items.get(at)).cloned().collect()
    }
}

fn cut(text: &str, bounds: &Bounds) -> String {
    if bounds.step == 1 {
        let skip = usize::try_from(bounds.start).unwrap_or(0);
        let take = usize::try_from(bounds.stop - bounds.start).unwrap_or(0);
        if text.is_ascii() {
            return text.get(skip..skip + take).unwrap_or_default().to_owned();
        }
        return text.chars().skip(skip).take(take).collect();
    }
    let chars: Vec<char> = text.chars().collect();
    bounds.places().filter_map(|at| chars.get(at)).collect()
}

// === walking ===

/// All items that a loop over the value would see. What can be walked once is walked.
pub(super) fn items(value: &Value) -> Result<Arc<Seq>, Stop> {
    let owned = match value {
        Value::List(seq) | Value::Tuple(seq) => return Ok(seq.clone()),
        Value::Undefined => Vec::new(),
        Value::Str(text) => {
            text.chars().map(|c| Value::from(c.encode_utf8(&mut [0; 4]) as &str)).collect()
        }
        Value::Dict(dict) | Value::View(View::Keys, dict) => {
            dict.entries.iter().map(|(key, _)| key.clone()).collect()
        }
        Value::View(View::Values, dict) => {
            dict.entries.iter().map(|(_, value)| value.clone()).collect()
        }
        Value::View(View::Items, dict) => {
            let pairs = dict.entries.iter();
            let pair =
                |(key, value): &(Value, Value)| Value::tuple(vec![key.clone(), value.clone()]);
            pairs.map(pair).collect::<Result<_, _>>()?
        }
        Value::Range(start, _, step) => (0..value.length().unwrap_or(0))
            .map(|at| Value::Int(start + step * at as i128))
            .collect(),
        Value::Once(once) => once.rest(),
        Value::Safe(text) => {
            // Python gives plain text here.
            text.chars().map(|c| Value::from(c.encode_utf8(&mut [0; 4]) as &str)).collect()
        }
        other => {
            return Err(Stop::failed(format!("'{}' object is not iterable", other.type_name())));
        }
    };
    Seq::new(owned)
}
