//! How urgent a request is: what its caller says in headers or in the body's `metadata`, within what its tenant
//! may.

use crate::{
    api::json::Object,
    config::Tenant,
    error::{Reason, Refusal},
    ids::Tier,
};
use http::{HeaderMap, HeaderName};
use serde_json::Value;
use std::time::Duration;

/// How urgent a caller says its request is.
pub const TIER: HeaderName = HeaderName::from_static("x-berthd-tier");
/// How long the caller waits for the first content, milliseconds.
pub const DEADLINE: HeaderName = HeaderName::from_static("x-berthd-deadline-ms");
/// How often the official clients tried before: they come again as they were told.
const RETRY_COUNT: &str = "x-stainless-retry-count";
/// A caller who asks with it is told what was decided about the request.
pub const EXPLAIN: HeaderName = HeaderName::from_static("x-berthd-explain");
/// Where the body may say the same.
const METADATA: &str = "metadata";
const METADATA_TIER: &str = "berthd_tier";
const METADATA_DEADLINE: &str = "berthd_deadline_ms";
/// Longest deadline, milliseconds.
const DEADLINE_MAX_MS: u64 = 3_600_000;

/// What a caller says of its urgency.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Urgency {
    /// The tier that it asks for.
    pub tier: Option<Tier>,
    /// How long it waits for the first content.
    pub deadline: Option<Duration>,
}

impl Urgency {
    /// What the headers say.
    ///
    /// # Errors
    /// A header says something else than it may.
    pub fn of_headers(headers: &HeaderMap) -> Result<Self, Refusal> {
        let text =
            |name: &HeaderName| headers.get(name).map(|value| value.to_str().unwrap_or_default());
        let tier =
            text(&TIER).map(|said| tier_of(said, "The header X-Berthd-Tier", "x-berthd-tier"));
        let deadline = text(&DEADLINE).map(|said| {
            deadline_of(said, "The header X-Berthd-Deadline-Ms", "x-berthd-deadline-ms")
        });
        Ok(Self { tier: tier.transpose()?, deadline: deadline.transpose()? })
    }

    /// What the body says: `metadata.berthd_tier` and `metadata.berthd_deadline_ms`.
    ///
    /// # Errors
    /// A key says something else than it may.
    pub fn of_body(fields: &Object<'_>) -> Result<Self, Refusal> {
        let Some(metadata) = fields.get(METADATA) else { return Ok(Self::default()) };
        // Most have metadata of their own only.
        if !metadata.get().contains("berthd_") {
            return Ok(Self::default());
        }
        let Ok(Value::Object(said)) = serde_json::from_str(metadata.get()) else {
            return Ok(Self::default());
        };
        let text = |key: &str| {
            said.get(key).filter(|value| !value.is_null()).map(|value| match value {
                Value::String(text) => text.clone(),
                other => other.to_string(),
            })
        };
        let tier = text(METADATA_TIER)
            .map(|said| tier_of(&said, "metadata.berthd_tier", "metadata.berthd_tier"));
        let deadline = text(METADATA_DEADLINE).map(|said| {
            deadline_of(&said, "metadata.berthd_deadline_ms", "metadata.berthd_deadline_ms")
        });
        Ok(Self { tier: tier.transpose()?, deadline: deadline.transpose()? })
    }

    /// The same, with what else was said where this says nothing.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        Self { tier: self.tier.or(other.tier), deadline: self.deadline.or(other.deadline) }
    }

    /// The tier that it gets: what was asked for, but never more urgent than the tenant's own.
    pub fn tier_for(self, tenant: &Tenant) -> Tier {
        self.tier.map_or(tenant.tier, |asked| asked.max(tenant.tier))
    }
}

fn tier_of(said: &str, what: &str, param: &'static str) -> Result<Tier, Refusal> {
    Tier::parse(said).ok_or_else(|| {
        let text = format!("{what} must be one of: system, interactive, standard, batch.");
        Refusal::new(Reason::OutOfRange, text).param(param)
    })
}

fn deadline_of(said: &str, what: &str, param: &'static str) -> Result<Duration, Refusal> {
    match said.parse::<u64>() {
        Ok(millis @ 1..=DEADLINE_MAX_MS) => Ok(Duration::from_millis(millis)),
        _ => {
            let text = format!("{what} must be a whole number from 1 to {DEADLINE_MAX_MS}.");
            Err(Refusal::new(Reason::OutOfRange, text).param(param))
        }
    }
}

/// Whether a client says that it was refused before and comes again.
pub fn returned(headers: &HeaderMap) -> bool {
    let count = headers.get(RETRY_COUNT).and_then(|value| value.to_str().ok());
    count.and_then(|count| count.parse::<u32>().ok()).is_some_and(|count| count > 0)
}

/// Whether the caller wants to know what was decided.
///
/// # Errors
/// The header says neither yes nor no.
pub fn wants_explanation(headers: &HeaderMap) -> Result<bool, Refusal> {
    match headers.get(EXPLAIN).map(http::HeaderValue::as_bytes) {
        None | Some(b"no") => Ok(false),
        Some(b"yes") => Ok(true),
        Some(_) => {
            let text = "The header X-Berthd-Explain must be yes or no.";
            Err(Refusal::new(Reason::OutOfRange, text).param("x-berthd-explain"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::{FieldLimits, Request, Route};
    use bytes::Bytes;
    use http::HeaderValue;

    fn with(name: &'static str, value: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(name, HeaderValue::from_str(value).unwrap());
        headers
    }

    fn tenant(tier: Tier) -> Tenant {
        Tenant { tier, ..Tenant::example("a") }
    }

    fn body(metadata: &str) -> Result<Urgency, Refusal> {
        let text = format!(
            r#"{{"model":"m","messages":[{{"role":"user","content":"x"}}],"metadata":{metadata}}}"#
        );
        let body = Bytes::from(text);
        let limits = FieldLimits { choices_max: 1 };
        Urgency::of_body(&Request::parse(Route::Chat, &body, limits).unwrap().fields)
    }

    #[test]
    fn a_caller_may_step_back_but_not_forward() {
        let standard = tenant(Tier::Standard);
        let of = |value: &str| Urgency::of_headers(&with("x-berthd-tier", value));
        assert_eq!(of("batch").unwrap().tier_for(&standard), Tier::Batch);
        assert_eq!(of("system").unwrap().tier_for(&standard), Tier::Standard);
        assert_eq!(Urgency::default().tier_for(&standard), Tier::Standard);
        assert_eq!(of("soon").unwrap_err().reason, Reason::OutOfRange);
    }

    #[test]
    fn deadlines_are_bounded() {
        let of = |value: &str| Urgency::of_headers(&with("x-berthd-deadline-ms", value));
        assert_eq!(of("250").unwrap().deadline, Some(Duration::from_millis(250)));
        for wrong in ["0", "-1", "99999999999999999999", "1.5", ""] {
            assert!(of(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn the_body_says_the_same_and_the_headers_go_first() {
        let said = body(r#"{"berthd_tier":"batch","berthd_deadline_ms":"900"}"#).unwrap();
        assert_eq!(said.tier, Some(Tier::Batch));
        assert_eq!(said.deadline, Some(Duration::from_millis(900)));
        assert_eq!(body(r#"{"berthd_deadline_ms":900}"#).unwrap().deadline, said.deadline);
        let header = Urgency { tier: Some(Tier::Standard), deadline: None };
        assert_eq!(header.or(said).tier, Some(Tier::Standard));
        assert_eq!(header.or(said).deadline, said.deadline);
        for nothing in
            [r#"{"order":"berthd"}"#, "null", r#"{"berthd_x":1}"#, r#"{"berthd_tier":null}"#]
        {
            assert_eq!(body(nothing).unwrap(), Urgency::default(), "{nothing}");
        }
        let wrong = body(r#"{"berthd_tier":"now"}"#).unwrap_err();
        assert_eq!(wrong.param.as_deref(), Some("metadata.berthd_tier"));
    }

    #[test]
    fn clients_that_come_again_say_so() {
        assert!(returned(&with("x-stainless-retry-count", "1")));
        assert!(!returned(&with("x-stainless-retry-count", "0")));
        assert!(!returned(&with("x-stainless-retry-count", "many")));
        assert!(!returned(&HeaderMap::new()));
    }
}
