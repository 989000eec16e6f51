//! Functions that every template has.

use super::{
    Stop, access,
    args::{self, Args},
    value::{Dict, Global, Value},
};
use crate::tokens::python;

/// Most items `range` may make, as in jinja2's sandbox.
const RANGE_MAX: usize = 100_000;

/// The function of this name.
pub(super) fn named(name: &str) -> Option<Global> {
    Some(match name {
        "range" => Global::Range,
        "dict" => Global::Dict,
        "namespace" => Global::Namespace,
        "raise_exception" => Global::RaiseException,
        "strftime_now" => Global::StrftimeNow,
        "joiner" => Global::Joiner,
        "cycler" => Global::Cycler,
        "lipsum" => Global::Lipsum,
        _ => return None,
    })
}

/// `range(...)`
pub(super) fn range(given: Args) -> Result<Value, Stop> {
    let [first, second, step] = given.places(1)?;
    let number = |value: &Option<Value>| -> Result<i128, Stop> {
        let value = value.as_ref().and_then(Value::as_int);
        value.ok_or_else(|| Stop::failed("range needs integers"))
    };
    let (start, stop) = match &second {
        None => (0, number(&first)?),
        second => (number(&first)?, number(second)?),
    };
    let step = if step.is_some() { number(&step)? } else { 1 };
    if step == 0 {
        return Err(Stop::failed("range() arg 3 must not be zero"));
    }
    let far = |number: i128| number.unsigned_abs() > 1 << 100;
    if far(start) || far(stop) || far(step) {
        return Err(Stop::failed("range out of range"));
    }
    let made = Value::Range(start, stop, step);
    match made.length() {
        Some(length) if length <= RANGE_MAX => Ok(made),
        _ => Err(Stop::failed("Range too big.")),
    }
}

/// `dict(mapping_or_pairs, **more)`: the pairs.
pub(super) fn pairs(given: Args) -> Result<Vec<(Value, Value)>, Stop> {
    let Args { mut list, named } = given;
    if list.len() > 1 {
        return Err(Stop::failed("dict expected at most 1 argument"));
    }
    let mut found = match list.pop() {
        None => Vec::new(),
        Some(Value::Dict(dict)) => dict.entries.clone(),
        Some(pairs) => {
            let mut found = Vec::new();
            for pair in &access::items(&pairs)?.items {
                let pair = access::items(pair)?;
                let [key, value] = pair.items.as_slice() else {
                    return Err(Stop::failed("dictionary update sequence needs pairs"));
                };
                found.push((key.clone(), value.clone()));
            }
            found
        }
    };
    found.extend(named.into_iter().map(|(name, value)| (Value::Str(name), value)));
    Ok(found)
}

/// `dict(...)`
pub(super) fn dict(given: Args) -> Result<Value, Stop> {
    pairs(given).and_then(Dict::collect).map(Value::Dict)
}

/// `raise_exception(message)`
pub(super) fn raise(given: Args) -> Result<Value, Stop> {
    let [message] = given.bind(["message"], 1)?;
    Err(Stop::Raised(python::text(&message.unwrap_or(Value::None))?))
}

/// `strftime_now(format)`
pub(super) fn strftime(given: Args, now: &jiff::Zoned) -> Result<Value, Stop> {
    let [format] = given.bind(["format"], 1)?;
    let format = args::text(format.as_ref())?;
    known_directives(format)?;
    jiff::fmt::strtime::format(format, now)
        .map(Value::from)
        .map_err(|error| Stop::failed(format!("bad date format: {error}")))
}

/// Lets only those directives pass that read the same in C's library, which Python asks.
fn known_directives(format: &str) -> Result<(), Stop> {
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            continue;
        }
        let mut directive = chars.next();
        if directive == Some('-') {
            directive = chars.next();
        }
        if !directive.is_some_and(|c| "aAbBdeFHIjmMpSTuUwWyYzDGhnRtV%".contains(c)) {
            return Err(Stop::failed("this date format is not known"));
        }
    }
    Ok(())
}
