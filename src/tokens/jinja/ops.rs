//! Python's operators.

use super::{Stop, format, percent, value::Seq, value::Value, work};
use crate::tokens::{python, template::TEXT_BYTES_MAX};
use std::{cmp::Ordering, sync::Arc};

/// Items that repeating a list may make.
const ITEMS_MAX: usize = 1 << 20;

/// Operators with two sides that give a new value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Operator {
    Add,
    Sub,
    Mul,
    Div,
    FloorDiv,
    Mod,
    Pow,
}

/// Operators that compare.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Comparison {
    Eq,
    Ne,
    Lt,
    Le,
    Gt,
    Ge,
    In,
    NotIn,
}

/// Two numbers of one kind.
enum Pair {
    Whole(i128, i128),
    Real(f64, f64),
}

fn pair(left: &Value, right: &Value) -> Option<Pair> {
    match (left, right) {
        (Value::Float(left), Value::Float(right)) => Some(Pair::Real(*left, *right)),
        (Value::Float(left), right) => Some(Pair::Real(*left, right.as_int()? as f64)),
        (left, Value::Float(right)) => Some(Pair::Real(left.as_int()? as f64, *right)),
        (left, right) => Some(Pair::Whole(left.as_int()?, right.as_int()?)),
    }
}

// === arithmetic ===

/// `left op right`
pub(super) fn calculate(op: Operator, left: &Value, right: &Value) -> Result<Value, Stop> {
    if let (Operator::Add, Some(one), Some(two)) = (op, left.as_str(), right.as_str()) {
        if one.len().saturating_add(two.len()) > TEXT_BYTES_MAX {
            return Err(Stop::TooLong);
        }
        return Ok(joined(left, one, right, two));
    }
    if let Some(pair) = pair(left, right) {
        return match pair {
            Pair::Whole(left, right) => whole(op, left, right),
            Pair::Real(left, right) => real(op, left, right).map(Value::Float),
        };
    }
    match (op, left, right) {
        (Operator::Add, Value::List(one), Value::List(two))
        | (Operator::Add, Value::Tuple(one), Value::Tuple(two))
            if one.items.len() + two.items.len() > ITEMS_MAX =>
        {
            Err(Stop::TooLong)
        }
        (Operator::Add, Value::List(one), Value::List(two)) => {
            Value::list(one.items.iter().chain(&two.items).cloned().collect())
        }
        (Operator::Add, Value::Tuple(one), Value::Tuple(two)) => {
            Value::tuple(one.items.iter().chain(&two.items).cloned().collect())
        }
        (Operator::Mul, some, times) | (Operator::Mul, times, some)
            if times.as_int().is_some() && !some.is_undefined() =>
        {
            repeat(some, times.as_int().unwrap_or(0))
        }
        (Operator::Mod, Value::Str(_) | Value::Safe(_), args) => percent::apply(left, args),
        _ => Err(Stop::failed(format!(
            "unsupported operand types for {op:?}: {} and {}",
            left.type_name(),
            right.type_name()
        ))),
    }
}

/// `+` of texts: a safe one escapes the other.
fn joined(left: &Value, one: &str, right: &Value, two: &str) -> Value {
    match (left, right) {
        (Value::Safe(_), Value::Safe(_)) => Value::Safe([one, two].concat().into()),
        (Value::Safe(_), _) => Value::Safe([one, &format::escape(two)].concat().into()),
        (_, Value::Safe(_)) => Value::Safe([&format::escape(one), two].concat().into()),
        _ => Value::Str([one, two].concat().into()),
    }
}

fn repeat(some: &Value, times: i128) -> Result<Value, Stop> {
    let times = usize::try_from(times.max(0)).unwrap_or(usize::MAX);
    let fits = |length: usize, most: usize| {
        if length.checked_mul(times).is_some_and(|all| all <= most) {
            Ok(times)
        } else {
            Err(Stop::TooLong)
        }
    };
    let items = |seq: &Arc<Seq>| -> Result<Vec<Value>, Stop> {
        let times = fits(seq.items.len(), ITEMS_MAX)?;
        Ok(seq.items.iter().cycle().take(seq.items.len() * times).cloned().collect())
    };
    match some {
        Value::Str(text) => Ok(text.repeat(fits(text.len(), TEXT_BYTES_MAX)?).into()),
        Value::Safe(text) => Ok(Value::Safe(text.repeat(fits(text.len(), TEXT_BYTES_MAX)?).into())),
        Value::List(seq) => Value::list(items(seq)?),
        Value::Tuple(seq) => Value::tuple(items(seq)?),
        other => Err(Stop::failed(format!("cannot repeat a {}", other.type_name()))),
    }
}

fn whole(op: Operator, left: i128, right: i128) -> Result<Value, Stop> {
    let zero = || Stop::failed("division by zero");
    let result = match op {
        Operator::Add => left.checked_add(right),
        Operator::Sub => left.checked_sub(right),
        Operator::Mul => left.checked_mul(right),
        Operator::Div if right == 0 => return Err(zero()),
        // Past 2^53 Python rounds once, we would round thrice.
        Operator::Div if left.unsigned_abs().max(right.unsigned_abs()) > 1 << 53 => None,
        Operator::Div => return Ok(Value::Float(left as f64 / right as f64)),
        Operator::FloorDiv | Operator::Mod if right == 0 => return Err(zero()),
        Operator::FloorDiv => left.checked_div_euclid(right).map(|_| floor_div(left, right)),
        Operator::Mod => left
            .checked_rem(right)
            .map(|rest| if rest != 0 && (rest < 0) != (right < 0) { rest + right } else { rest }),
        Operator::Pow if right < 0 && left == 0 => return Err(zero()),
        Operator::Pow if right < 0 => {
            return Ok(Value::Float((left as f64).powf(right as f64)));
        }
        Operator::Pow => u32::try_from(right).ok().and_then(|power| left.checked_pow(power)),
    };
    result.map(Value::Int).ok_or_else(|| Stop::failed("a number out of range"))
}

fn floor_div(left: i128, right: i128) -> i128 {
    let (quotient, rest) = (left / right, left % right);
    if rest != 0 && (rest < 0) != (right < 0) { quotient - 1 } else { quotient }
}

fn real(op: Operator, left: f64, right: f64) -> Result<f64, Stop> {
    let divides = matches!(op, Operator::Div | Operator::FloorDiv | Operator::Mod);
    if divides && right == 0.0 {
        return Err(Stop::failed("float division by zero"));
    }
    Ok(match op {
        Operator::Add => left + right,
        Operator::Sub => left - right,
        Operator::Mul => left * right,
        Operator::Div => left / right,
        Operator::FloorDiv => floor_div_rem(left, right).0,
        Operator::Mod => floor_div_rem(left, right).1,
        Operator::Pow => {
            let power = left.powf(right);
            let odd = (left == 0.0 && right < 0.0)
                || (power.is_nan() && !left.is_nan() && !right.is_nan())
                || (power.is_infinite() && left.is_finite() && right.is_finite());
            if odd {
                return Err(Stop::failed("power out of range"));
            }
            power
        }
    })
}

/// Python's `float_divmod`.
fn floor_div_rem(left: f64, right: f64) -> (f64, f64) {
    let mut rest = left % right;
    let mut quotient = (left - rest) / right;
    if rest != 0.0 {
        if (right < 0.0) != (rest < 0.0) {
            rest += right;
            quotient -= 1.0;
        }
    } else {
        rest = 0.0f64.copysign(right);
    }
    let floored = if quotient == 0.0 {
        0.0f64.copysign(left / right)
    } else {
        let floored = quotient.floor();
        if quotient - floored > 0.5 { floored + 1.0 } else { floored }
    };
    (floored, rest)
}

/// `-value` or `+value`
pub(super) fn signed(negative: bool, value: &Value) -> Result<Value, Stop> {
    match value {
        Value::Float(number) => Ok(Value::Float(if negative { -number } else { *number })),
        other => {
            let number = other
                .as_int()
                .and_then(|number| if negative { number.checked_neg() } else { Some(number) });
            let told =
                || Stop::failed(format!("bad operand for unary sign: {}", other.type_name()));
            number.map(Value::Int).ok_or_else(told)
        }
    }
}

// === comparing ===

/// `left == right`
pub(super) fn same(left: &Value, right: &Value) -> bool {
    if !work::done(1) {
        return false;
    }
    match (left, right) {
        (Value::List(one), Value::List(two)) | (Value::Tuple(one), Value::Tuple(two))
            if Arc::ptr_eq(one, two) =>
        {
            true
        }
        (Value::Undefined, Value::Undefined) | (Value::None, Value::None) => true,
        (Value::List(one), Value::List(two)) | (Value::Tuple(one), Value::Tuple(two)) => {
            one.items.len() == two.items.len()
                && one.items.iter().zip(&two.items).all(|(one, two)| same(one, two))
        }
        (Value::Dict(one), Value::Dict(two)) => {
            one.entries.len() == two.entries.len()
                && one.entries.iter().all(
                    |(key, value)| matches!(two.find(key), Ok(Some(other)) if same(value, other)),
                )
        }
        (Value::Range(..), Value::Range(..)) => {
            super::access::items(left).ok().map(|seq| texts(&seq))
                == super::access::items(right).ok().map(|seq| texts(&seq))
        }
        (Value::Macro(one), Value::Macro(two))
        | (Value::Namespace(one), Value::Namespace(two))
        | (Value::Loop(one), Value::Loop(two)) => one == two,
        (Value::Global(one), Value::Global(two)) => one == two,
        (Value::Once(one), Value::Once(two)) => Arc::ptr_eq(one, two),
        _ => match (left.as_str(), right.as_str()) {
            (Some(one), Some(two)) => one == two,
            (None, None) => match pair(left, right) {
                Some(Pair::Whole(one, two)) => one == two,
                Some(Pair::Real(one, two)) => one == two,
                None => false,
            },
            _ => false,
        },
    }
}

fn texts(seq: &Seq) -> Vec<Option<i128>> {
    seq.items.iter().map(Value::as_int).collect()
}

/// Which comes first in Python's order; an error where Python knows none. `None` where not-a-number is in
/// play.
pub(super) fn order(left: &Value, right: &Value) -> Result<Option<Ordering>, Stop> {
    if let (Some(one), Some(two)) = (left.as_str(), right.as_str()) {
        return Ok(Some(one.cmp(two)));
    }
    match pair(left, right) {
        Some(Pair::Whole(one, two)) => return Ok(Some(one.cmp(&two))),
        Some(Pair::Real(one, two)) => return Ok(one.partial_cmp(&two)),
        None => {}
    }
    match (left, right) {
        (Value::List(one), Value::List(two)) | (Value::Tuple(one), Value::Tuple(two)) => {
            let differ = one.items.iter().zip(&two.items).find(|(one, two)| !same(one, two));
            match differ {
                Some((one, two)) => order(one, two),
                None => Ok(Some(one.items.len().cmp(&two.items.len()))),
            }
        }
        _ => Err(Stop::failed(format!(
            "cannot order {} and {}",
            left.type_name(),
            right.type_name()
        ))),
    }
}

/// `left op right`
pub(super) fn compare(op: Comparison, left: &Value, right: &Value) -> Result<bool, Stop> {
    Ok(match op {
        Comparison::Eq => same(left, right),
        Comparison::Ne => !same(left, right),
        Comparison::Lt => order(left, right)? == Some(Ordering::Less),
        Comparison::Gt => order(left, right)? == Some(Ordering::Greater),
        Comparison::Le => order(left, right)?.is_some_and(Ordering::is_le),
        Comparison::Ge => order(left, right)?.is_some_and(Ordering::is_ge),
        Comparison::In => contains(right, left)?,
        Comparison::NotIn => !contains(right, left)?,
    })
}

/// `item in container`
fn contains(container: &Value, item: &Value) -> Result<bool, Stop> {
    match container {
        Value::Str(text) | Value::Safe(text) => match item.as_str() {
            Some(part) => Ok(text.contains(part)),
            None => Err(Stop::failed(format!(
                "'in <string>' requires string as left operand, not {}",
                item.type_name()
            ))),
        },
        Value::Dict(dict) => dict.find(item).map(|found| found.is_some()),
        Value::Once(once) => {
            while let Some(next) = once.next() {
                if same(&next, item) {
                    return Ok(true);
                }
            }
            Ok(false)
        }
        other => Ok(super::access::items(other)?.items.iter().any(|next| same(next, item))),
    }
}

/// `str(left) + str(right)` and so on.
pub(super) fn concatenated(parts: &[Value]) -> Result<Value, Stop> {
    let mut out = String::new();
    for part in parts {
        python::write_text(&mut out, part)?;
        if out.len() > TEXT_BYTES_MAX {
            return Err(Stop::TooLong);
        }
    }
    Ok(out.into())
}
