//! The tests behind `is`.

use super::{
    Stop,
    args::Args,
    chars, ops,
    ops::{Comparison, Operator},
    value::Value,
};
use crate::tokens::python;
use std::sync::Arc;

/// `value is name(args)`
pub(super) fn check(name: &str, value: &Value, args: Args) -> Result<bool, Stop> {
    let compared = |op: Comparison, args: Args| {
        let [other] = args.places(1)?;
        ops::compare(op, value, &other.unwrap_or(Value::None))
    };
    match name {
        "eq" | "equalto" | "==" => return compared(Comparison::Eq, args),
        "ne" | "!=" => return compared(Comparison::Ne, args),
        "lt" | "lessthan" | "<" => return compared(Comparison::Lt, args),
        "le" | "<=" => return compared(Comparison::Le, args),
        "gt" | "greaterthan" | ">" => return compared(Comparison::Gt, args),
        "ge" | ">=" => return compared(Comparison::Ge, args),
        "in" => return compared(Comparison::In, args),
        "sameas" => {
            let [other] = args.bind(["other"], 1)?;
            return same_object(value, &other.unwrap_or(Value::None));
        }
        "divisibleby" => {
            let [by] = args.bind(["num"], 1)?;
            let rest = ops::calculate(Operator::Mod, value, &by.unwrap_or(Value::None))?;
            return Ok(ops::same(&rest, &Value::Int(0)));
        }
        _ => {}
    }
    args.places::<0>(0)?;
    Ok(match name {
        "defined" => !value.is_undefined(),
        "undefined" => value.is_undefined(),
        "none" => matches!(value, Value::None),
        "boolean" => matches!(value, Value::Bool(_)),
        "true" => matches!(value, Value::Bool(true)),
        "false" => matches!(value, Value::Bool(false)),
        "integer" => matches!(value, Value::Int(_)),
        "float" => matches!(value, Value::Float(_)),
        "number" => matches!(value, Value::Int(_) | Value::Float(_) | Value::Bool(_)),
        "string" => value.as_str().is_some(),
        "mapping" => matches!(value, Value::Dict(_)),
        "iterable" => !matches!(
            value,
            Value::None
                | Value::Bool(_)
                | Value::Int(_)
                | Value::Float(_)
                | Value::Method(_)
                | Value::Global(_)
                | Value::Macro(_)
                | Value::Namespace(_)
        ),
        // What has a length and items by place or key.
        "sequence" => matches!(
            value,
            Value::Str(_)
                | Value::Safe(_)
                | Value::List(_)
                | Value::Tuple(_)
                | Value::Dict(_)
                | Value::Range(..)
                | Value::Undefined
        ),
        "callable" => matches!(
            value,
            Value::Method(_)
                | Value::Global(_)
                | Value::Macro(_)
                | Value::Loop(_)
                | Value::Undefined
        ),
        "escaped" => matches!(value, Value::Safe(_)),
        "odd" | "even" => {
            let rest = ops::calculate(Operator::Mod, value, &Value::Int(2))?;
            ops::same(&rest, &Value::Int(i128::from(name == "odd")))
        }
        "lower" => chars::is_case(&python::text(value)?, false),
        "upper" => chars::is_case(&python::text(value)?, true),
        "filter" => super::filters::is_known(value.as_str().unwrap_or_default()),
        "test" => is_known(value.as_str().unwrap_or_default()),
        other => return Err(Stop::failed(format!("No test named '{other}'"))),
    })
}

fn is_known(name: &str) -> bool {
    const NAMES: [&str; 37] = [
        "odd",
        "even",
        "divisibleby",
        "defined",
        "undefined",
        "filter",
        "test",
        "none",
        "boolean",
        "false",
        "true",
        "integer",
        "float",
        "lower",
        "upper",
        "string",
        "mapping",
        "number",
        "sequence",
        "iterable",
        "callable",
        "sameas",
        "escaped",
        "in",
        "==",
        "eq",
        "equalto",
        "!=",
        "ne",
        ">",
        "gt",
        "greaterthan",
        "ge",
        ">=",
        "<",
        "lt",
        "lessthan",
    ];
    NAMES.contains(&name) || matches!(name, "<=" | "le")
}

/// `value is other`, where it does not hang on how Python keeps its objects.
fn same_object(value: &Value, other: &Value) -> Result<bool, Stop> {
    Ok(match (value, other) {
        (Value::None, Value::None) => true,
        (Value::Bool(one), Value::Bool(two)) => one == two,
        (Value::List(one), Value::List(two)) => Arc::ptr_eq(one, two),
        (Value::Dict(one), Value::Dict(two)) => Arc::ptr_eq(one, two),
        (one, two) if std::mem::discriminant(one) != std::mem::discriminant(two) => false,
        _ => return Err(Stop::failed("whether these are one object is not known")),
    })
}
