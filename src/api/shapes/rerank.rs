//! Rerank and score requests: a query with each of its documents, as pairs that a cross-encoder reads.
//!
//! Forms: `query` and `documents` (texts, or objects with `text`, as Cohere's and Jina's clients send them),
//! `query` and `texts`, `text_1` and `text_2`, `queries` and `documents` or `items`, `data_1` and `data_2`. One text on the first side pairs with each on the second.

use super::{Unfit, missing, present, unknown, wrong, wrong_type};
use crate::{error::Reason, ids::ServerKind};
use serde_json::{Map, Value};

/// The names that the two sides go by.
const SIDES: [(&str, &str); 6] = [
    ("query", "documents"),
    ("query", "texts"),
    ("text_1", "text_2"),
    ("queries", "documents"),
    ("queries", "items"),
    ("data_1", "data_2"),
];

/// Pairs in one request.
pub const PAIRS_MAX: usize = 2048;

/// The pairs of a request, in order.
///
/// # Errors
/// [`Unfit`]: a side is missing or of the wrong type, the sides do not fit each other, or the server cuts or
/// wraps the texts.
pub fn pairs(kind: ServerKind, body: &Map<String, Value>) -> Result<Vec<(String, String)>, Unfit> {
    if kind == ServerKind::LlamaCpp {
        return Err(unknown("llama.cpp puts pairs together by flags of the vocabulary"));
    }
    const SHAPING: [&str; 7] = [
        "chat_template_kwargs",
        "instruction",
        "instruct",
        "max_tokens_per_doc",
        "max_tokens_per_query",
        "max_chunks_per_doc",
        "truncate_prompt_tokens",
    ];
    let shaping =
        |field: &&&str| present(body, field).is_some_and(|value| value.as_i64() != Some(0));
    if let Some(field) = SHAPING.iter().find(shaping) {
        return Err(unknown(format!("'{field}' changes the texts on the server")));
    }
    let named = |field: &str| present(body, field).is_some();
    let both = SIDES.into_iter().find(|(first, second)| named(first) && named(second));
    let either =
        || SIDES.into_iter().find(|(first, _)| named(first)).unwrap_or(("query", "documents"));
    let (first, second) = both.unwrap_or_else(either);
    let one = first == "query";
    let (lefts, rights) = (texts(body, first, one)?, texts(body, second, false)?);
    if rights.len().max(lefts.len()) > PAIRS_MAX {
        let told = format!("'{second}' holds more than {PAIRS_MAX} texts. Send fewer at once.");
        return Err(wrong(Reason::OutOfRange, second, told));
    }
    if lefts.len() == 1 {
        let left = lefts.into_iter().next().unwrap_or_default();
        return Ok(rights.into_iter().map(|right| (left.clone(), right)).collect());
    }
    if lefts.len() != rights.len() {
        let told =
            format!("'{first}' and '{second}' must be of the same length, or '{first}' one text.");
        return Err(wrong(Reason::OutOfRange, second, told));
    }
    Ok(lefts.into_iter().zip(rights).collect())
}

/// The texts of one side.
fn texts(body: &Map<String, Value>, field: &str, one: bool) -> Result<Vec<String>, Unfit> {
    let value =
        present(body, field).ok_or_else(|| missing(field, "Send a text or a list of texts."))?;
    let text = |value: &Value| -> Result<String, Unfit> {
        match value {
            Value::String(text) => Ok(text.clone()),
            Value::Object(object) => match (object.get("text"), object.contains_key("content")) {
                (Some(Value::String(text)), _) => Ok(text.clone()),
                (_, true) => Err(unknown(format!("parts in '{field}' are not known here"))),
                _ => Err(wrong_type(field, "texts, or objects with a text")),
            },
            _ => Err(wrong_type(field, "a text or a list of texts")),
        }
    };
    match value {
        Value::Array(_) if one => Err(wrong_type(field, "a text")),
        Value::Array(items) if items.is_empty() => Err(wrong(
            Reason::OutOfRange,
            field,
            format!("'{field}' is empty. Send at least one text."),
        )),
        Value::Array(items) => items.iter().map(text).collect(),
        value => text(value).map(|text| vec![text]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pairs_of(body: Value) -> Result<Vec<(String, String)>, Unfit> {
        pairs(ServerKind::Vllm, body.as_object().unwrap())
    }

    fn owned(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        pairs.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect()
    }

    #[test]
    fn a_query_pairs_with_each_document() {
        let wanted = owned(&[("q", "a"), ("q", "b")]);
        assert_eq!(
            pairs_of(json!({"query": "q", "documents": ["a", {"text": "b"}]})),
            Ok(wanted.clone())
        );
        assert_eq!(pairs_of(json!({"text_1": "q", "text_2": ["a", "b"]})), Ok(wanted.clone()));
        assert_eq!(pairs_of(json!({"text_1": ["q", "q"], "text_2": ["a", "b"]})), Ok(wanted));
        assert_eq!(pairs_of(json!({"text_1": "q", "text_2": "a"})), Ok(owned(&[("q", "a")])));
        assert_eq!(pairs_of(json!({"queries": "q", "items": ["a"]})), Ok(owned(&[("q", "a")])));
        assert_eq!(pairs_of(json!({"query": "q", "texts": ["a"]})), Ok(owned(&[("q", "a")])));
    }

    #[test]
    fn what_does_not_pair_names_its_field() {
        let cases = [
            (json!({"query": "q"}), Reason::MissingField, "documents"),
            (json!({"documents": ["a"]}), Reason::MissingField, "query"),
            (json!({"query": ["q"], "documents": ["a"]}), Reason::InvalidType, "query"),
            (json!({"query": "q", "documents": []}), Reason::OutOfRange, "documents"),
            (json!({"query": "q", "documents": [1]}), Reason::InvalidType, "documents"),
            (json!({"text_1": ["a", "b"], "text_2": ["c"]}), Reason::OutOfRange, "text_2"),
            (
                json!({"query": "q", "documents": vec!["a"; PAIRS_MAX + 1]}),
                Reason::OutOfRange,
                "documents",
            ),
        ];
        for (body, reason, param) in cases {
            let Err(Unfit::Wrong(refusal)) = pairs_of(body.clone()) else { panic!("{body}") };
            assert_eq!((refusal.reason, refusal.param.as_deref()), (reason, Some(param)), "{body}");
        }
    }

    #[test]
    fn texts_that_the_server_cuts_are_not_counted_here() {
        let cut = json!({"query": "q", "documents": ["a"], "max_tokens_per_doc": 5});
        assert!(matches!(pairs_of(cut), Err(Unfit::Unknown(_))));
        let whole = json!({"query": "q", "documents": ["a"], "max_tokens_per_doc": 0});
        assert!(pairs_of(whole).is_ok());
    }
}
