//! Reading single request fields, each with its own error.

use super::json::Object;
use crate::error::{Reason, Refusal};
use serde_json::value::RawValue;

/// The beginning of a caller's key or value, as long as error texts show it.
pub fn clip(text: &str) -> String {
    text.chars().take(100).collect()
}

fn wrong_type(field: &str, want: &str, value: &RawValue) -> Refusal {
    let got: String = value.get().chars().take(40).collect();
    let text = format!("'{field}' must be {want}, not {got}.");
    Refusal::new(Reason::InvalidType, text).param(field.to_owned())
}

/// A whole number between `low` and `high`.
pub fn whole(from: &Object<'_>, field: &str, low: i64, high: i64) -> Result<Option<i64>, Refusal> {
    let Some(value) = from.get(field) else { return Ok(None) };
    let number: serde_json::Number = serde_json::from_str(value.get())
        .map_err(|_| wrong_type(field, "a whole number", value))?;
    let Some(number) = number.as_i64() else {
        // 1e3 and 2.0 are not whole numbers in the API's sense; 2^63 and above are out of range.
        if number.is_u64() {
            return Err(out_of_range(field, &format!("{low} to {high}"), value));
        }
        return Err(wrong_type(field, "a whole number", value));
    };
    if number < low || number > high {
        return Err(out_of_range(field, &format!("{low} to {high}"), value));
    }
    Ok(Some(number))
}

/// A number between `low` and `high`.
pub fn number(from: &Object<'_>, field: &str, low: f64, high: f64) -> Result<Option<f64>, Refusal> {
    let Some(value) = from.get(field) else { return Ok(None) };
    let number: f64 =
        serde_json::from_str(value.get()).map_err(|_| wrong_type(field, "a number", value))?;
    if !(low..=high).contains(&number) {
        return Err(out_of_range(field, &format!("{low} to {high}"), value));
    }
    Ok(Some(number))
}

/// True or false.
pub fn flag(from: &Object<'_>, field: &str) -> Result<Option<bool>, Refusal> {
    let Some(value) = from.get(field) else { return Ok(None) };
    match value.get() {
        "true" => Ok(Some(true)),
        "false" => Ok(Some(false)),
        _ => Err(wrong_type(field, "true or false", value)),
    }
}

/// A text.
pub fn text(from: &Object<'_>, field: &str) -> Result<Option<String>, Refusal> {
    let Some(value) = from.get(field) else { return Ok(None) };
    serde_json::from_str(value.get()).map(Some).map_err(|_| wrong_type(field, "a string", value))
}

/// One level of an object.
pub fn object<'a>(from: &Object<'a>, field: &str) -> Result<Option<Object<'a>>, Refusal> {
    let Some(value) = from.get(field) else { return Ok(None) };
    serde_json::from_str(value.get()).map(Some).map_err(|_| wrong_type(field, "an object", value))
}

/// A list of objects, each opened one level.
pub fn objects<'a>(from: &Object<'a>, field: &str) -> Result<Option<Vec<Object<'a>>>, Refusal> {
    let Some(value) = from.get(field) else { return Ok(None) };
    let want = "a list of objects";
    serde_json::from_str(value.get()).map(Some).map_err(|_| wrong_type(field, want, value))
}

/// Refuses a value outside what is allowed.
pub fn out_of_range(field: &str, allowed: &str, value: &RawValue) -> Refusal {
    let got: String = value.get().chars().take(40).collect();
    let text = format!("'{field}' is {got}; allowed is {allowed}.");
    Refusal::new(Reason::OutOfRange, text).param(field.to_owned())
}

/// Refuses a request that lacks a field.
pub fn missing(field: &'static str, remedy: &str) -> Refusal {
    let text = format!("'{field}' is missing. {remedy}");
    Refusal::new(Reason::MissingField, text).param(field)
}
