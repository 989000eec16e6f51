//! Who calls: API keys to tenants.

use crate::{
    config::{KeyDigest, Tenant},
    error::{Reason, Refusal},
};
use http::{HeaderMap, HeaderValue, header::AUTHORIZATION};
use sha2::{Digest, Sha256};
use std::{collections::HashMap, sync::Arc};
use subtle::ConstantTimeEq;

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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::Tier;

    fn tenant(name: &str, key: &str, tier: Tier) -> Tenant {
        Tenant { keys: vec![digest(key.as_bytes())], tier, ..Tenant::example(name) }
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
}
