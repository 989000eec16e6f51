//! The filters on lists, dicts and what else can be walked.

use super::{
    Stop, access,
    args::{self, Args},
    checks, filters,
    format::escape,
    ops::{self, Operator},
    value::{Seq, Value, View},
};
use crate::tokens::{python, template::TEXT_BYTES_MAX};
use std::cmp::Ordering;

/// `value|name(args)`
pub(super) fn apply(name: &str, value: &Value, args: Args) -> Result<Value, Stop> {
    match name {
        "join" => join(value, args),
        "items" => {
            args.places::<0>(0)?;
            match value {
                Value::Undefined => Value::once(Vec::new()),
                Value::Dict(dict) => Value::once(walked(&Value::View(View::Items, dict.clone()))?),
                _ => Err(Stop::failed("Can only get item pairs from a mapping.")),
            }
        }
        "list" => args.places::<0>(0).and_then(|_| Value::list(walked(value)?)),
        "first" => {
            args.places::<0>(0)?;
            match value {
                Value::Once(once) => Ok(once.next().unwrap_or(Value::Undefined)),
                Value::List(seq) => Ok(seq.items.first().cloned().unwrap_or(Value::Undefined)),
                other => Ok(walked(other)?.into_iter().next().unwrap_or(Value::Undefined)),
            }
        }
        "last" => {
            args.places::<0>(0)?;
            reversible(value)?;
            Ok(walked(value)?.pop().unwrap_or(Value::Undefined))
        }
        "reverse" => {
            args.places::<0>(0)?;
            match value {
                Value::Str(_) | Value::Safe(_) => access::slice(value, [None, None, Some(-1)]),
                other => {
                    let mut items = walked(other)?;
                    items.reverse();
                    // What cannot be walked backwards is made a list of.
                    if reversible(other).is_ok() { Value::once(items) } else { Value::list(items) }
                }
            }
        }
        "map" => map(value, args),
        "select" | "reject" | "selectattr" | "rejectattr" => select(name, value, args),
        "sort" => {
            let [reverse, case, attribute] =
                args.bind(["reverse", "case_sensitive", "attribute"], 0)?;
            let keys = Keys::several(attribute.as_ref(), args::flag(case.as_ref(), false))?;
            let sorted = sorted(walked(value)?, &keys, args::flag(reverse.as_ref(), false))?;
            Value::list(sorted.into_iter().map(|(_, item)| item).collect())
        }
        "dictsort" => dict_sort(value, args),
        "unique" => {
            let [case, attribute] = args.bind(["case_sensitive", "attribute"], 0)?;
            let keys = Keys::one(attribute.as_ref(), args::flag(case.as_ref(), false))?;
            let mut seen: Vec<Value> = Vec::new();
            let mut kept = Vec::new();
            for item in walked(value)? {
                let key = keys.of(&item)?;
                if matches!(key, Value::List(_) | Value::Dict(_)) {
                    return Err(Stop::failed("unhashable type"));
                }
                if !seen.iter().any(|other| ops::same(other, &key)) {
                    // Each is compared with all before it.
                    if seen.len() >= 256 {
                        return Err(Stop::Fuel);
                    }
                    seen.push(key);
                    kept.push(item);
                }
            }
            Value::once(kept)
        }
        "min" | "max" => {
            let [case, attribute] = args.bind(["case_sensitive", "attribute"], 0)?;
            let keys = Keys::one(attribute.as_ref(), args::flag(case.as_ref(), false))?;
            let wanted = if name == "min" { Ordering::Less } else { Ordering::Greater };
            let mut best: Option<(Value, Value)> = None;
            for item in walked(value)? {
                let key = keys.of(&item)?;
                let better = match &best {
                    None => true,
                    Some((other, _)) => ops::order(&key, other)? == Some(wanted),
                };
                if better {
                    best = Some((key, item));
                }
            }
            Ok(best.map_or(Value::Undefined, |(_, item)| item))
        }
        "sum" => {
            let [attribute, start] = args.bind(["attribute", "start"], 0)?;
            let path = path(attribute.as_ref())?;
            let mut sum = start.unwrap_or(Value::Int(0));
            if sum.as_str().is_some() {
                return Err(Stop::failed("sum() can't sum strings"));
            }
            for item in walked(value)? {
                sum = ops::calculate(Operator::Add, &sum, &follow(&item, &path, None)?)?;
            }
            Ok(sum)
        }
        "groupby" => group_by(value, args),
        "batch" => {
            let [count, fill] = args.bind(["linecount", "fill_with"], 1)?;
            let count = args::whole(count.as_ref())?.and_then(|count| usize::try_from(count).ok());
            let count = count.filter(|count| (1..1 << 20).contains(count));
            let count = count.ok_or_else(|| Stop::failed("needs a count"))?;
            let items = walked(value)?;
            let filled = fill.as_ref().is_some_and(|fill| !matches!(fill, Value::None));
            if filled && count > items.len().max(1024) {
                return Err(Stop::Fuel);
            }
            let mut rows = Vec::new();
            for row in items.chunks(count) {
                let mut row = row.to_vec();
                if let Some(fill) = fill.as_ref().filter(|fill| !matches!(fill, Value::None)) {
                    row.resize(count, fill.clone());
                }
                rows.push(Value::list(row)?);
            }
            Value::once(rows)
        }
        "slice" => slice(value, args),
        "attr" => {
            let [wanted] = args.bind(["name"], 1)?;
            match access::attribute(value, args::text(wanted.as_ref())?) {
                access::Attribute::Missing if !value.is_undefined() => Ok(Value::Undefined),
                _ => access::get_attribute(value, args::text(wanted.as_ref())?),
            }
        }
        "xmlattr" => {
            let [space] = args.bind(["autospace"], 0)?;
            xml_attributes(value, args::flag(space.as_ref(), true))
        }
        _ => Err(Stop::failed(if filters::is_known(name) {
            format!("the filter '{name}' is not here")
        } else {
            format!("No filter named '{name}'.")
        })),
    }
}

/// The items of a value, to be changed.
fn walked(value: &Value) -> Result<Vec<Value>, Stop> {
    access::items(value).map(|seq| seq.items.clone())
}

/// Fails for what `reversed` does not take.
fn reversible(value: &Value) -> Result<(), Stop> {
    match value {
        Value::Once(_) => {
            Err(Stop::failed(format!("'{}' object is not reversible", value.type_name())))
        }
        _ => Ok(()),
    }
}

// === attributes ===

/// The keys of an attribute path: `a.b.0`.
fn path(attribute: Option<&Value>) -> Result<Vec<Value>, Stop> {
    match attribute {
        None | Some(Value::None) => Ok(Vec::new()),
        Some(Value::Str(text) | Value::Safe(text)) => Ok(text
            .split('.')
            .map(|part| match part.parse::<i128>() {
                Ok(number) if part.chars().all(|c| c.is_ascii_digit()) => Value::Int(number),
                _ => part.into(),
            })
            .collect()),
        Some(number) if number.as_int().is_some() => Ok(vec![number.clone()]),
        Some(other) => Err(Stop::failed(format!("{} is no attribute", other.type_name()))),
    }
}

fn follow(item: &Value, path: &[Value], default: Option<&Value>) -> Result<Value, Stop> {
    let mut found = item.clone();
    for part in path {
        found = access::get_item(&found, part)?;
        if let Some(default) = default.filter(|_| found.is_undefined()) {
            found = default.clone();
        }
    }
    Ok(found)
}

/// What items are sorted or told apart by.
struct Keys {
    paths: Vec<Vec<Value>>,
    /// Keys are lists even if there is one: equal parts of lists need no order of their own.
    listed: bool,
    case_sensitive: bool,
    default: Option<Value>,
}

impl Keys {
    fn one(attribute: Option<&Value>, case_sensitive: bool) -> Result<Self, Stop> {
        Ok(Self { paths: vec![path(attribute)?], listed: false, case_sensitive, default: None })
    }

    fn several(attribute: Option<&Value>, case_sensitive: bool) -> Result<Self, Stop> {
        let paths = match attribute.and_then(Value::as_str) {
            Some(text) => {
                text.split(',').map(|one| path(Some(&one.into()))).collect::<Result<_, _>>()?
            }
            None => vec![path(attribute)?],
        };
        Ok(Self { paths, listed: true, case_sensitive, default: None })
    }

    fn of(&self, item: &Value) -> Result<Value, Stop> {
        let mut keys = Vec::with_capacity(self.paths.len());
        for path in &self.paths {
            let key = follow(item, path, self.default.as_ref())?;
            keys.push(if self.case_sensitive { key } else { without_case(key) });
        }
        match keys.pop() {
            Some(only) if !self.listed => Ok(only),
            last => {
                keys.extend(last);
                Value::list(keys)
            }
        }
    }
}

fn without_case(value: Value) -> Value {
    match value.as_str() {
        Some(text) => text.to_lowercase().into(),
        None => value,
    }
}

/// Items with their keys, in the order of the keys.
fn sorted(items: Vec<Value>, keys: &Keys, reverse: bool) -> Result<Vec<(Value, Value)>, Stop> {
    let mut keyed = Vec::with_capacity(items.len());
    for item in items {
        keyed.push((keys.of(&item)?, item));
    }
    let mut failure = None;
    keyed.sort_by(|(one, _), (two, _)| {
        let order = match ops::order(one, two) {
            Ok(Some(order)) => order,
            Ok(None) => {
                failure.get_or_insert_with(|| Stop::failed("not-a-number cannot be sorted"));
                Ordering::Equal
            }
            Err(stop) => {
                failure.get_or_insert(stop);
                Ordering::Equal
            }
        };
        if reverse { order.reverse() } else { order }
    });
    failure.map_or(Ok(keyed), Err)
}

// === one function for each of the longer filters ===

fn join(value: &Value, args: Args) -> Result<Value, Stop> {
    let [joiner, attribute] = args.bind(["d", "attribute"], 0)?;
    let joiner = joiner.as_ref().map(python::text).transpose()?.unwrap_or_default();
    let path = path(attribute.as_ref())?;
    let mut out = String::new();
    for (at, item) in access::items(value)?.items.iter().enumerate() {
        if at > 0 {
            out.push_str(&joiner);
        }
        python::write_text(&mut out, &follow(item, &path, None)?)?;
        if out.len() > TEXT_BYTES_MAX {
            return Err(Stop::TooLong);
        }
    }
    Ok(out.into())
}

fn map(value: &Value, mut args: Args) -> Result<Value, Stop> {
    if !value.is_true() {
        return Value::once(Vec::new());
    }
    let mut made = Vec::new();
    if args.list.is_empty()
        && let Some(attribute) = args.take("attribute")
    {
        let default = args.take("default").filter(|default| !matches!(default, Value::None));
        args.places::<0>(0)?;
        let path = path(Some(&attribute))?;
        for item in walked(value)? {
            made.push(follow(&item, &path, default.as_ref())?);
        }
        return Value::once(made);
    }
    if args.list.is_empty() {
        return Err(Stop::failed("map requires a filter argument"));
    }
    let name = args.list.remove(0);
    let name = args::text(Some(&name))?;
    for item in walked(value)? {
        made.push(filters::apply(name, &item, args.clone())?);
    }
    Value::once(made)
}

fn select(name: &str, value: &Value, mut args: Args) -> Result<Value, Stop> {
    if !value.is_true() {
        return Value::once(Vec::new());
    }
    let mut path_of = Vec::new();
    if name.ends_with("attr") {
        if args.list.is_empty() {
            return Err(Stop::failed("Missing parameter for attribute name"));
        }
        path_of = path(Some(&args.list.remove(0)))?;
    }
    let test = if args.list.is_empty() { None } else { Some(args.list.remove(0)) };
    let wanted = name.starts_with("select");
    let mut kept = Vec::new();
    for item in walked(value)? {
        let found = follow(&item, &path_of, None)?;
        let holds = match &test {
            Some(test) => checks::check(args::text(Some(test))?, &found, args.clone())?,
            None => found.is_true(),
        };
        if holds == wanted {
            kept.push(item);
        }
    }
    Value::once(kept)
}

fn dict_sort(value: &Value, args: Args) -> Result<Value, Stop> {
    let [case, by, reverse] = args.bind(["case_sensitive", "by", "reverse"], 0)?;
    let Value::Dict(dict) = value else {
        return Err(Stop::failed(format!(
            "'{}' object has no attribute 'items'",
            value.type_name()
        )));
    };
    let place = match by.as_ref().map(|by| args::text(Some(by))).transpose()? {
        None | Some("key") => Value::Int(0),
        Some("value") => Value::Int(1),
        _ => return Err(Stop::failed("You can only sort by either \"key\" or \"value\"")),
    };
    let keys = Keys::one(Some(&place), args::flag(case.as_ref(), false))?;
    let items = walked(&Value::View(View::Items, dict.clone()))?;
    let sorted = sorted(items, &keys, args::flag(reverse.as_ref(), false))?;
    Value::list(sorted.into_iter().map(|(_, item)| item).collect())
}

fn group_by(value: &Value, args: Args) -> Result<Value, Stop> {
    let [attribute, default, case] = args.bind(["attribute", "default", "case_sensitive"], 1)?;
    let mut keys = Keys::one(attribute.as_ref(), args::flag(case.as_ref(), false))?;
    keys.default = default.filter(|default| !matches!(default, Value::None));
    let mut groups: Vec<(Value, Vec<Value>)> = Vec::new();
    for (key, item) in sorted(walked(value)?, &keys, false)? {
        match groups.last_mut() {
            Some((last, items)) if ops::same(last, &key) => items.push(item),
            _ => groups.push((key, vec![item])),
        }
    }
    // The key that is shown is the first item's own, with its case.
    keys.case_sensitive = true;
    let mut made = Vec::with_capacity(groups.len());
    for (key, items) in groups {
        let shown = items.first().map_or(Ok(key), |first| keys.of(first))?;
        made.push(Value::Tuple(Seq::group(shown, Value::list(items)?)));
    }
    Value::list(made)
}

fn slice(value: &Value, args: Args) -> Result<Value, Stop> {
    let [slices, fill] = args.bind(["slices", "fill_with"], 1)?;
    let slices = args::whole(slices.as_ref())?.and_then(|slices| usize::try_from(slices).ok());
    let slices = slices.filter(|slices| (1..=4096).contains(slices));
    let slices = slices.ok_or_else(|| Stop::failed("needs a number of slices"))?;
    let items = walked(value)?;
    let (each, more) = (items.len() / slices, items.len() % slices);
    let mut rest = items.as_slice();
    let mut rows = Vec::with_capacity(slices);
    for number in 0..slices {
        let (row, after) = rest.split_at(each + usize::from(number < more));
        let mut row = row.to_vec();
        if let Some(fill) =
            fill.as_ref().filter(|fill| !matches!(fill, Value::None) && number >= more)
        {
            row.push(fill.clone());
        }
        rows.push(Value::list(row)?);
        rest = after;
    }
    Value::once(rows)
}

fn xml_attributes(value: &Value, space: bool) -> Result<Value, Stop> {
    let Value::Dict(dict) = value else {
        return Err(Stop::failed(format!(
            "'{}' object has no attribute 'items'",
            value.type_name()
        )));
    };
    let mut parts = Vec::new();
    for (key, item) in &dict.entries {
        if matches!(item, Value::None | Value::Undefined) {
            continue;
        }
        let name = args::text(Some(key))?;
        if name.contains([' ', '\t', '\n', '\r', '\u{b}', '\u{c}', '/', '>', '=']) {
            return Err(Stop::failed("Invalid character in attribute name"));
        }
        let shown = match item {
            Value::Safe(text) => text.to_string(),
            other => escape(&python::text(other)?),
        };
        parts.push(format!("{}=\"{shown}\"", escape(name)));
    }
    let all = parts.join(" ");
    Ok(if space && !all.is_empty() { format!(" {all}").into() } else { all.into() })
}
