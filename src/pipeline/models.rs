//! `GET /v1/models`: what a caller may ask for.

use super::{Broker, answer, answer::Reply, id_header, may_use};
use crate::{
    error::{Reason, Refusal},
    ids::{ModelName, RequestId},
    pipeline::record::Record,
    schedule::catalog::Entry,
};
use http::{HeaderMap, HeaderValue, Response, header::CONTENT_TYPE};
use serde::Serialize;
use std::sync::Arc;

#[derive(Serialize)]
struct Card<'a> {
    id: &'a str,
    object: &'static str,
    created: u64,
    owned_by: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_model_len: Option<u64>,
}

#[derive(Serialize)]
struct List<'a> {
    object: &'static str,
    data: Vec<Card<'a>>,
}

fn card<'a>(name: &'a ModelName, entry: &Entry) -> Card<'a> {
    Card {
        id: name.as_str(),
        object: "model",
        created: 0,
        owned_by: "berthd",
        max_model_len: entry.context_window.map(crate::units::Tokens::get),
    }
}

impl Broker {
    /// All models the key may use, or one of them.
    pub(super) fn models(
        &self,
        id: &RequestId,
        headers: &HeaderMap,
        one: Option<&str>,
    ) -> Response<Reply> {
        let mut record = Record::begin(Arc::clone(&self.books), id.clone(), "models");
        match self.list(headers, one, &mut record) {
            Ok(body) => {
                let mut response = Response::new(Reply::Whole(Some(body.into())));
                let json = HeaderValue::from_static("application/json");
                response.headers_mut().insert(CONTENT_TYPE, json);
                id_header(response.headers_mut(), id);
                record.answered(crate::api::answer::Usage::default());
                response
            }
            Err(refusal) => {
                record.refused(&refusal);
                answer::refused(&refusal, id)
            }
        }
    }

    fn list(
        &self,
        headers: &HeaderMap,
        one: Option<&str>,
        record: &mut Record,
    ) -> Result<String, Refusal> {
        let live = self.live.load_full();
        let tenant = self.authenticate(&live, headers, record)?;
        let catalog = self.dispatch.catalog();
        let text = match one {
            Some(name) => {
                let name = ModelName::from(name);
                // A model that exists but is not allowed looks like one that does not exist.
                let entry = catalog.find(&name).filter(|entry| may_use(&tenant, &name, entry));
                let entry = entry.ok_or_else(|| {
                    let asked: String = name.as_str().chars().take(100).collect();
                    let text = format!(
                        "The model '{asked}' does not exist here. GET /v1/models lists what there is."
                    );
                    Refusal::new(Reason::UnknownModel, text).param("model")
                })?;
                serde_json::to_string(&card(&name, entry))
            }
            None => {
                let allowed = catalog.iter().filter(|(name, entry)| may_use(&tenant, name, entry));
                let data = allowed.map(|(name, entry)| card(name, entry)).collect();
                serde_json::to_string(&List { object: "list", data })
            }
        };
        text.map_err(|error| Refusal::new(Reason::Internal, error.to_string()))
    }
}

/// A path segment without its percent signs. Model names hold slashes, which clients escape or not.
pub(crate) fn decoded(text: &str) -> String {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        let mut ahead = bytes.clone();
        let pair = (ahead.next().and_then(hex), ahead.next().and_then(hex));
        match (byte, pair) {
            (b'%', (Some(high), Some(low))) => {
                out.push(high << 4 | low);
                bytes = ahead;
            }
            _ => out.push(byte),
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

fn hex(byte: u8) -> Option<u8> {
    char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn path_segments_are_decoded() {
        assert_eq!(decoded("meta-llama%2FLlama-3"), "meta-llama/Llama-3");
        assert_eq!(decoded("a/b%zz%4"), "a/b%zz%4");
        assert_eq!(decoded("%e2%82%ac"), "€");
    }
}
