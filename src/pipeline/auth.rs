//! Who calls: API keys to tenants.

use crate::{
    config::{KeyDigest, Tenant},
    error::{Reason, Refusal},
    ids::Tier,
};
use http::{HeaderMap, HeaderValue, header::AUTHORIZATION};
use sha2::{Digest, Sha256};
use std::{collections::HashMap, sync::Arc};
use subtle::ConstantTimeEq;

/// Callers may ask for a less urgent tier with this header.
pub const TIER: HeaderName = "x-berthd-tier";
/// Callers may say with this header how many milliseconds the first content may take.
pub const DEADLINE: HeaderName = "x-berthd-deadline-ms";

/// Where clients of Anthropic's API send their key.
const API_KEY: HeaderName = "x-api-key";

type HeaderName = &'static str;

/// All keys, by the first bytes of their digests.
#[derive(Debug, Default)]
pub struct Keys {
    /// The index reveals nothing: an attacker who times it learns digest bytes of keys that he cannot
    /// choose. The comparison that decides is constant in time.
    by_start: HashMap<[u8; 8], Vec<(KeyDigest, Arc<Tenant>)>>,
}

/// The SHA-256 of an API key, as the configuration holds it.
pub fn digest(key: &[u8]) -> KeyDigest {
    Sha256::digest(key).into()
}

fn start_of(digest: &KeyDigest) -> [u8; 8] {
    let mut start = [0; 8];
    for (to, from) in start.iter_mut().zip(digest) {
        *to = *from;
    }
    start
}

impl Keys {
    /// The keys of these tenants.
    pub fn new(tenants: &[Tenant]) -> Self {
        let mut by_start: HashMap<[u8; 8], Vec<(KeyDigest, Arc<Tenant>)>> = HashMap::new();
        for tenant in tenants {
            let tenant = Arc::new(tenant.clone());
            for key in &tenant.keys {
                by_start.entry(start_of(key)).or_default().push((*key, Arc::clone(&tenant)));
            }
        }
        Self { by_start }
    }

    /// The tenant whose key the headers carry, as `Authorization: Bearer KEY`.
    ///
    /// # Errors
    /// No key, or one that is not known. The key itself appears nowhere.
    pub fn find(&self, headers: &HeaderMap) -> Result<Arc<Tenant>, Refusal> {
        let mut values = headers.get_all(AUTHORIZATION).iter();
        let (first, second) = (values.next(), values.next());
        let key = first.filter(|_| second.is_none()).and_then(bearer).ok_or_else(|| {
            let text = "No API key was sent. Send the header 'Authorization: Bearer YOUR_KEY'.";
            Refusal::new(Reason::MissingKey, text)
        })?;
        self.known(key)
    }

    /// The same for callers of Anthropic's API, whose clients send the key as `x-api-key`. Where both headers
    /// are there, `Authorization` counts.
    ///
    /// # Errors
    /// As [`Keys::find`].
    pub fn find_either(&self, headers: &HeaderMap) -> Result<Arc<Tenant>, Refusal> {
        if headers.contains_key(AUTHORIZATION) {
            return self.find(headers);
        }
        let mut values = headers.get_all(API_KEY).iter();
        let (first, second) = (values.next(), values.next());
        let key = first.filter(|_| second.is_none()).map(|value| value.as_bytes().trim_ascii());
        let key = key.filter(|key| !key.is_empty()).ok_or_else(|| {
            let text = "No API key was sent. Send the header 'x-api-key: YOUR_KEY'.";
            Refusal::new(Reason::MissingKey, text)
        })?;
        self.known(key)
    }

    fn known(&self, key: &[u8]) -> Result<Arc<Tenant>, Refusal> {
        let digest = digest(key);
        let known = self.by_start.get(&start_of(&digest)).into_iter().flatten();
        let mut found = None;
        for (stored, tenant) in known {
            if bool::from(stored.ct_eq(&digest)) {
                found = Some(Arc::clone(tenant));
            }
        }
        found.ok_or_else(|| {
            let text = "This API key is not known here. Check it, or ask the operator for one.";
            Refusal::new(Reason::WrongKey, text)
        })
    }
}

fn bearer(value: &HeaderValue) -> Option<&[u8]> {
    let value = value.as_bytes();
    let (scheme, key) = value.split_at_checked(7)?;
    let key = key.trim_ascii();
    (scheme.eq_ignore_ascii_case(b"bearer ") && !key.is_empty()).then_some(key)
}

/// The tier of a request: what the caller asks for, but never more urgent than the tenant's own.
///
/// # Errors
/// The header names no tier.
pub fn tier(headers: &HeaderMap, tenant: &Tenant) -> Result<Tier, Refusal> {
    let Some(value) = headers.get(TIER) else { return Ok(tenant.tier) };
    let asked = value.to_str().ok().and_then(Tier::parse).ok_or_else(|| {
        let text = "The header X-Berthd-Tier must be one of: system, interactive, standard, batch.";
        Refusal::new(Reason::OutOfRange, text).param("x-berthd-tier")
    })?;
    Ok(asked.max(tenant.tier))
}

/// How long the caller would wait for the first content, if it says so.
///
/// # Errors
/// The header is not a number of milliseconds from 1 to 3,600,000.
pub fn deadline(headers: &HeaderMap) -> Result<Option<std::time::Duration>, Refusal> {
    let Some(value) = headers.get(DEADLINE) else { return Ok(None) };
    let millis = value.to_str().ok().and_then(|text| text.parse::<u64>().ok());
    match millis {
        Some(millis @ 1..=3_600_000) => Ok(Some(std::time::Duration::from_millis(millis))),
        _ => {
            let text = "The header X-Berthd-Deadline-Ms must be a whole number from 1 to 3600000.";
            Err(Refusal::new(Reason::OutOfRange, text).param("x-berthd-deadline-ms"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::Tokens;

    fn tenant(name: &str, key: &str, tier: Tier) -> Tenant {
        Tenant {
            name: name.into(),
            keys: vec![digest(key.as_bytes())],
            tier,
            models: Vec::new(),
            requests_per_minute: 0,
            tokens_per_minute: Tokens(0),
        }
    }

    fn with(name: &'static str, value: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(name, HeaderValue::from_str(value).unwrap());
        headers
    }

    #[test]
    fn keys_find_their_tenants_and_nobody_elses() {
        let keys = Keys::new(&[
            tenant("a", "sk-one", Tier::Standard),
            tenant("b", "sk-two", Tier::Standard),
        ]);
        let find =
            |value: &str| keys.find(&with("authorization", value)).map(|t| t.name.to_string());
        assert_eq!(find("Bearer sk-one").unwrap(), "a");
        assert_eq!(find("bearer  sk-two ").unwrap(), "b");
        assert_eq!(find("Bearer sk-on").unwrap_err().reason, Reason::WrongKey);
        assert_eq!(find("Bearer ").unwrap_err().reason, Reason::MissingKey);
        assert_eq!(find("Basic sk-one").unwrap_err().reason, Reason::MissingKey);
        assert_eq!(keys.find(&HeaderMap::new()).unwrap_err().reason, Reason::MissingKey);
        let mut two = with("authorization", "Bearer sk-one");
        two.append("authorization", HeaderValue::from_static("Bearer sk-two"));
        assert_eq!(keys.find(&two).unwrap_err().reason, Reason::MissingKey);
        let refusal = find("Bearer sk-secret").unwrap_err();
        assert!(!refusal.message.contains("sk-secret"));
    }

    #[test]
    fn anthropics_clients_may_send_their_key_in_their_own_header() {
        let keys = Keys::new(&[
            tenant("a", "sk-one", Tier::Standard),
            tenant("b", "sk-two", Tier::Standard),
        ]);
        let find = |headers: &HeaderMap| keys.find_either(headers).map(|t| t.name.to_string());
        assert_eq!(find(&with(API_KEY, "sk-one")).unwrap(), "a");
        assert_eq!(find(&with("authorization", "Bearer sk-one")).unwrap(), "a");
        assert_eq!(find(&with(API_KEY, " ")).unwrap_err().reason, Reason::MissingKey);
        assert_eq!(find(&HeaderMap::new()).unwrap_err().reason, Reason::MissingKey);
        assert_eq!(find(&with(API_KEY, "sk-no")).unwrap_err().reason, Reason::WrongKey);
        let mut two = with(API_KEY, "sk-one");
        two.append(API_KEY, HeaderValue::from_static("sk-two"));
        assert_eq!(find(&two).unwrap_err().reason, Reason::MissingKey);
        let mut both = with(API_KEY, "sk-one");
        both.insert(AUTHORIZATION, HeaderValue::from_static("Bearer sk-two"));
        assert_eq!(find(&both).unwrap(), "b");
        let only_theirs = keys.find(&with(API_KEY, "sk-one")).unwrap_err();
        assert_eq!(only_theirs.reason, Reason::MissingKey, "elsewhere the header means nothing");
    }

    #[test]
    fn a_caller_may_step_back_but_not_forward() {
        let standard = tenant("a", "k", Tier::Standard);
        assert_eq!(tier(&with(TIER, "batch"), &standard).unwrap(), Tier::Batch);
        assert_eq!(tier(&with(TIER, "system"), &standard).unwrap(), Tier::Standard);
        assert_eq!(tier(&with(TIER, "soon"), &standard).unwrap_err().reason, Reason::OutOfRange);
    }

    #[test]
    fn deadlines_are_bounded() {
        assert_eq!(deadline(&with(DEADLINE, "250")).unwrap().unwrap().as_millis(), 250);
        assert!(deadline(&with(DEADLINE, "0")).is_err());
        assert!(deadline(&with(DEADLINE, "-1")).is_err());
        assert!(deadline(&with(DEADLINE, "99999999999999999999")).is_err());
    }
}
