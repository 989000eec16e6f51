//! The filters behind `|`: those on text and numbers here, those on lists in [`lists`].

use super::{
    Stop,
    args::{self, Args},
    chars, format, lists, methods, ops, percent,
    value::{Dict, Value},
};
use crate::tokens::python::{self, Dumps};

/// Filters of jinja2 that are here.
const NAMES: [&str; 46] = [
    "abs",
    "attr",
    "batch",
    "capitalize",
    "center",
    "count",
    "d",
    "default",
    "dictsort",
    "e",
    "escape",
    "first",
    "float",
    "forceescape",
    "format",
    "groupby",
    "indent",
    "int",
    "items",
    "join",
    "last",
    "length",
    "list",
    "lower",
    "map",
    "max",
    "min",
    "reject",
    "rejectattr",
    "replace",
    "reverse",
    "round",
    "safe",
    "select",
    "selectattr",
    "slice",
    "sort",
    "string",
    "sum",
    "title",
    "tojson",
    "trim",
    "truncate",
    "unique",
    "upper",
    "wordcount",
];

/// Whether jinja2 has this filter.
pub(super) fn is_known(name: &str) -> bool {
    NAMES.contains(&name)
        || matches!(
            name,
            "filesizeformat"
                | "pprint"
                | "random"
                | "striptags"
                | "urlencode"
                | "urlize"
                | "wordwrap"
                | "xmlattr"
        )
}

/// `value|name(args)`
pub(super) fn apply(name: &str, value: &Value, args: Args) -> Result<Value, Stop> {
    let like = |text: String| {
        if matches!(value, Value::Safe(_)) { Value::Safe(text.into()) } else { text.into() }
    };
    Ok(match name {
        "tojson" => tojson(value, args)?,
        // Not jinja2's; some templates bring them, and the servers that run those have them.
        "fromjson" | "from_json" => from_json(value)?,
        "trim" => {
            let [set] = args.bind(["chars"], 0)?;
            let set = match &set {
                None | Some(Value::None) => None,
                Some(set) => Some(args::text(Some(set))?),
            };
            match value.as_str() {
                Some(text) => like(methods::strip(text, set, true, true).to_owned()),
                None => methods::strip(&python::text(value)?, set, true, true).into(),
            }
        }
        "string" => match value {
            Value::Str(_) | Value::Safe(_) => value.clone(),
            other => python::text(other)?.into(),
        },
        "default" | "d" => {
            let [other, falsy] = args.bind(["default_value", "boolean"], 0)?;
            let lacking =
                value.is_undefined() || (args::flag(falsy.as_ref(), false) && !value.is_true());
            if lacking { other.unwrap_or_else(|| "".into()) } else { value.clone() }
        }
        "length" | "count" => {
            args.places::<0>(0)?;
            let told =
                || Stop::failed(format!("object of type '{}' has no len()", value.type_name()));
            Value::count(value.length().ok_or_else(told)?)
        }
        "upper" => {
            args.places::<0>(0).and_then(|_| Ok(like(python::text(value)?.to_uppercase())))?
        }
        "lower" => {
            args.places::<0>(0).and_then(|_| Ok(like(python::text(value)?.to_lowercase())))?
        }
        "capitalize" => args
            .places::<0>(0)
            .and_then(|_| Ok(like(chars::capitalized(&python::text(value)?)?)))?,
        "title" => args.places::<0>(0).and_then(|_| title(&python::text(value)?))?,
        "safe" => args.places::<0>(0).and_then(|_| Ok(Value::Safe(python::text(value)?.into())))?,
        "escape" | "e" => match value {
            Value::Safe(_) => value.clone(),
            other => Value::Safe(format::escape(&escapable(other)?).into()),
        },
        "forceescape" => Value::Safe(format::escape(&escapable(value)?).into()),
        "replace" => {
            let [old, new, count] = args.bind(["old", "new", "count"], 2)?;
            let text = |value: &Option<Value>| {
                value.as_ref().map(python::text).transpose().map(Option::unwrap_or_default)
            };
            let count = args::whole(count.as_ref())?.unwrap_or(-1);
            methods::replaced(&python::text(value)?, &text(&old)?, &text(&new)?, count)?.into()
        }
        "indent" => indent(value, args)?,
        "center" => {
            let [width] = args.bind(["width"], 0)?;
            let width = args::whole(width.as_ref())?.unwrap_or(80);
            let width = usize::try_from(width.max(0)).unwrap_or(usize::MAX);
            if width > format::WIDTH_MAX {
                return Err(Stop::TooLong);
            }
            like(methods::padded(&python::text(value)?, "center", width, ' '))
        }
        "truncate" => truncate(value, args)?,
        "wordcount" => args.places::<0>(0).and_then(|_| word_count(&python::text(value)?))?,
        "format" => {
            let Args { list, named } = args;
            if !list.is_empty() && !named.is_empty() {
                return Err(Stop::failed("positional and keyword arguments at the same time"));
            }
            let given = if named.is_empty() {
                Value::tuple(list)?
            } else {
                let named = named.into_iter().map(|(name, value)| (Value::Str(name), value));
                Value::Dict(Dict::collect(named.collect())?)
            };
            let text = match value {
                Value::Str(_) | Value::Safe(_) => value.clone(),
                other => python::text(other)?.into(),
            };
            percent::apply(&text, &given)?
        }
        "int" => int(value, args)?,
        "float" => {
            let [other] = args.bind(["default"], 0)?;
            match float_of(value)? {
                Some(number) => Value::Float(number),
                None => other.unwrap_or(Value::Float(0.0)),
            }
        }
        "round" => round(value, args)?,
        "abs" => {
            args.places::<0>(0)?;
            match value {
                Value::Float(number) => Value::Float(number.abs()),
                other => {
                    let negative = other.as_int().is_some_and(|number| number < 0);
                    ops::signed(negative, other)?
                }
            }
        }
        _ => return lists::apply(name, value, args),
    })
}

/// What `escape` escapes: containers have another text then.
fn escapable(value: &Value) -> Result<String, Stop> {
    python::text(value)
}

fn tojson(value: &Value, args: Args) -> Result<Value, Stop> {
    let [ascii, indent, separators, sort] =
        args.bind(["ensure_ascii", "indent", "separators", "sort_keys"], 0)?;
    let indent = match &indent {
        None | Some(Value::None) => None,
        Some(Value::Str(text) | Value::Safe(text)) => Some(text.to_string()),
        Some(width) => {
            let width = args::whole(Some(width))?.unwrap_or(0);
            let width = usize::try_from(width.max(0)).unwrap_or(usize::MAX);
            if width > 256 {
                return Err(Stop::TooLong);
            }
            Some(" ".repeat(width))
        }
    };
    let mut dumps = Dumps::new(indent);
    if let Some(Value::List(seq) | Value::Tuple(seq)) = &separators {
        let [item, key] = seq.items.as_slice() else {
            return Err(Stop::failed("separators are two"));
        };
        let text = |value: &Value| args::text(Some(value)).map(str::to_owned);
        dumps.separators = (text(item)?, text(key)?);
    } else if !matches!(separators, None | Some(Value::None)) {
        return Err(Stop::failed("separators are two"));
    }
    dumps.ensure_ascii = args::flag(ascii.as_ref(), false);
    dumps.sort_keys = args::flag(sort.as_ref(), false);
    Ok(dumps.dump(value)?.into())
}

fn from_json(value: &Value) -> Result<Value, Stop> {
    let parsed: Result<serde_json::Value, _> = serde_json::from_str(args::text(Some(value))?);
    parsed
        .map(|json| python::from_json(&json))
        .map_err(|error| Stop::failed(format!("text is not JSON: {error}")))
}

/// Words begin behind dashes, spaces and opening brackets; the rest is lowered.
fn title(text: &str) -> Result<Value, Stop> {
    let parts = |c: char| python::is_space(c) || "-({[<".contains(c);
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while !rest.is_empty() {
        let run = rest.find(|c| !parts(c)).unwrap_or(rest.len());
        let (gap, after) = rest.split_at(run);
        out.push_str(gap);
        let end = after.find(parts).unwrap_or(after.len());
        let (word, tail) = after.split_at(end);
        let mut letters = word.chars();
        out.extend(letters.next().into_iter().flat_map(char::to_uppercase));
        out.push_str(&letters.as_str().to_lowercase());
        rest = tail;
    }
    Ok(out.into())
}

fn indent(value: &Value, args: Args) -> Result<Value, Stop> {
    let [width, first, blank] = args.bind(["width", "first", "blank"], 0)?;
    let text = args::text(Some(value))?;
    let safe = matches!(value, Value::Safe(_));
    let step = match &width {
        Some(Value::Str(text)) if safe => format::escape(text),
        Some(Value::Str(text) | Value::Safe(text)) => text.to_string(),
        width => {
            let width = args::whole(width.as_ref())?.unwrap_or(4);
            " ".repeat(usize::try_from(width.clamp(0, 256)).unwrap_or(0))
        }
    };
    let blank = args::flag(blank.as_ref(), false);
    let text = format!("{text}\n");
    let mut out = String::with_capacity(text.len() * 2);
    for (at, line) in python::lines(&text, false).into_iter().enumerate() {
        if at > 0 {
            out.push('\n');
            if blank || !line.is_empty() {
                out.push_str(&step);
            }
        } else if args::flag(first.as_ref(), false) {
            out.push_str(&step);
        }
        out.push_str(line);
    }
    Ok(if safe { Value::Safe(out.into()) } else { out.into() })
}

fn truncate(value: &Value, args: Args) -> Result<Value, Stop> {
    let [length, kill, end, leeway] = args.bind(["length", "killwords", "end", "leeway"], 0)?;
    let Value::Str(text) = value else {
        return Err(Stop::failed("only plain text is truncated here"));
    };
    let whole = |value: &Option<Value>, otherwise: i128| -> Result<usize, Stop> {
        let number = args::whole(value.as_ref())?.unwrap_or(otherwise);
        usize::try_from(number).map_err(|_| Stop::failed("expected a length"))
    };
    let (length, leeway) = (whole(&length, 255)?, whole(&leeway, 5)?);
    let end = match &end {
        None => "...",
        end => args::text(end.as_ref())?,
    };
    let kept = length.checked_sub(python::char_count(end));
    let kept = kept.ok_or_else(|| Stop::failed("expected a longer length"))?;
    if python::char_count(text) <= length.saturating_add(leeway) {
        return Ok(value.clone());
    }
    let cut: String = text.chars().take(kept).collect();
    let cut = match cut.rsplit_once(' ') {
        Some((words, _)) if !args::flag(kill.as_ref(), false) => words.to_owned(),
        _ => cut,
    };
    Ok((cut + end).into())
}

fn word_count(text: &str) -> Result<Value, Stop> {
    let (mut words, mut inside) = (0, false);
    for c in text.chars() {
        let is_word = c == '_' || chars::is_alnum(c)?;
        words += usize::from(is_word && !inside);
        inside = is_word;
    }
    Ok(Value::count(words))
}

/// A number that Python's `int` reads from text; digits may have single low bars between them.
fn int_of(text: &str, base: u32) -> Result<Option<i128>, Stop> {
    let text = methods::strip(text, None, true, true);
    if !text.is_ascii() {
        // Python reads the digits of other scripts too.
        return if text.chars().any(|c| !c.is_ascii() && c.is_numeric()) {
            Err(Stop::failed("digits of other scripts are not known"))
        } else {
            Ok(None)
        };
    }
    let digits = text.strip_prefix(['+', '-']).unwrap_or(text);
    let lower = digits.to_ascii_lowercase();
    let prefix = match base {
        16 => "0x",
        8 => "0o",
        2 => "0b",
        _ => "",
    };
    let digits = lower.strip_prefix(prefix).unwrap_or(&lower);
    let bars = digits.starts_with('_') || digits.ends_with('_') || digits.contains("__");
    if bars || digits.is_empty() || !digits.chars().all(|c| c == '_' || c.is_digit(base)) {
        return Ok(None);
    }
    let number = i128::from_str_radix(&digits.replace('_', ""), base);
    let number = number.map_err(|_| Stop::failed("a number out of range"))?;
    Ok(Some(if text.starts_with('-') { -number } else { number }))
}

fn int(value: &Value, args: Args) -> Result<Value, Stop> {
    let [other, base] = args.bind(["default", "base"], 0)?;
    let base = args::whole(base.as_ref())?.unwrap_or(10);
    let base = u32::try_from(base).ok().filter(|base| (2..=36).contains(base));
    let base = base.ok_or_else(|| Stop::failed("this base is not known"))?;
    let whole = match value {
        Value::Str(text) | Value::Safe(text) => int_of(text, base)?,
        other => other.as_int(),
    };
    if let Some(whole) = whole {
        return Ok(Value::Int(whole));
    }
    let from_float = match float_of(value)? {
        Some(number) if number.is_infinite() && matches!(value, Value::Float(_)) => {
            return Err(Stop::failed("cannot convert float infinity to integer"));
        }
        Some(number) if number.is_finite() => {
            if number.abs() >= 1e38 {
                return Err(Stop::failed("a number out of range"));
            }
            Some(Value::Int(number.trunc() as i128))
        }
        _ => None,
    };
    Ok(from_float.or(other).unwrap_or(Value::Int(0)))
}

/// What Python's `float` makes of a value.
fn float_of(value: &Value) -> Result<Option<f64>, Stop> {
    match value {
        Value::Undefined => Err(Stop::failed("undefined is no number")),
        Value::Float(number) => Ok(Some(*number)),
        Value::Str(text) | Value::Safe(text) => {
            let text = methods::strip(text, None, true, true);
            if text.chars().any(|c| !c.is_ascii() && c.is_numeric()) {
                return Err(Stop::failed("digits of other scripts are not known"));
            }
            // Rust reads the same forms, but for low bars between digits.
            let bars = text.split('_').collect::<Vec<_>>();
            let digit = |c: Option<char>| c.is_some_and(|c| c.is_ascii_digit());
            let between = bars.windows(2).all(|two| match two {
                [one, two] => digit(one.chars().next_back()) && digit(two.chars().next()),
                _ => false,
            });
            Ok(if between { bars.concat().parse().ok() } else { None })
        }
        other => Ok(other.as_int().map(|number| number as f64)),
    }
}

fn round(value: &Value, args: Args) -> Result<Value, Stop> {
    let [precision, method] = args.bind(["precision", "method"], 0)?;
    let precision = args::whole(precision.as_ref())?.unwrap_or(0);
    let method = match &method {
        None => "common",
        method => args::text(method.as_ref())?,
    };
    let bad = || Stop::failed("this rounding is not known");
    let places = usize::try_from(precision).ok().filter(|places| *places <= 22).ok_or_else(bad)?;
    let number = match (value, method) {
        (Value::Int(_), "common") => return Ok(value.clone()),
        (Value::Bool(flag), "common") => return Ok(Value::Int(i128::from(*flag))),
        (Value::Float(number), _) => *number,
        (other, _) => other.as_int().ok_or_else(bad)? as f64,
    };
    if !number.is_finite() {
        return Err(bad());
    }
    let power = 10f64.powi(places as i32);
    match method {
        // Both round the exact decimal value, halves to even.
        "common" => format!("{number:.places$}").parse().map(Value::Float).map_err(|_| bad()),
        "ceil" => Ok(Value::Float((number * power).ceil() / power)),
        "floor" => Ok(Value::Float((number * power).floor() / power)),
        _ => Err(bad()),
    }
}
