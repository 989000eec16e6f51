//! JSON as callers send it: checked whole for duplicate keys, then opened one level at a time.
//!
//! What is not understood is kept as the caller's own bytes, so unknown fields reach the server
//! untouched. Since no object names a key twice, the server cannot read another value than we did.

use super::fields::clip;
use crate::error::{Reason, Refusal};
use serde::{
    Deserialize, Deserializer,
    de::{DeserializeSeed, Error as _, MapAccess, SeqAccess, Visitor},
};
use serde_json::value::RawValue;
use std::{borrow::Cow, collections::HashSet, fmt};

/// One level of a JSON object: keys in the caller's order, values as raw text.
#[derive(Debug, Default)]
pub struct Object<'a>(pub Vec<(Cow<'a, str>, &'a RawValue)>);

impl<'a> Object<'a> {
    /// The value under `key`; JSON `null` counts as absent, as OpenAI's own API treats it.
    pub fn get(&self, key: &str) -> Option<&'a RawValue> {
        self.0
            .iter()
            .find(|(name, _)| name == key)
            .map(|(_, value)| *value)
            .filter(|v| v.get() != "null")
    }
}

impl<'de> Deserialize<'de> for Object<'de> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Level;
        impl<'de> Visitor<'de> for Level {
            type Value = Object<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a JSON object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Object<'de>, A::Error> {
                let mut fields = Vec::with_capacity(8);
                while let Some(Key(key)) = map.next_key()? {
                    fields.push((key, map.next_value::<&'de RawValue>()?));
                }
                Ok(Object(fields))
            }
        }
        from.deserialize_map(Level)
    }
}

/// A key, borrowed where it holds no escapes.
#[derive(PartialEq, Eq, Hash)]
struct Key<'a>(Cow<'a, str>);

impl<'de> Deserialize<'de> for Key<'de> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Text;
        impl<'de> Visitor<'de> for Text {
            type Value = Key<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a key")
            }

            fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Key<'de>, E> {
                Ok(Key(Cow::Borrowed(text)))
            }

            fn visit_str<E>(self, text: &str) -> Result<Key<'de>, E> {
                Ok(Key(Cow::Owned(text.to_owned())))
            }
        }
        from.deserialize_str(Text)
    }
}

/// Marks our own error inside serde's, so that duplicates are told apart from bad syntax.
const DUPLICATE: &str = "duplicate key";

/// Walks a whole document and fails on a key that stands twice in one object.
struct Unique;

impl<'de> DeserializeSeed<'de> for Unique {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<(), D::Error> {
        from.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Unique {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }

    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        Ok(())
    }

    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }

    fn visit_str<E>(self, _: &str) -> Result<(), E> {
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        while seq.next_element_seed(Unique)?.is_some() {}
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        // Few keys are compared one by one; many go into a set, so that no object costs n^2.
        const FEW: usize = 16;
        let mut few: Vec<Key<'de>> = Vec::new();
        let mut many: HashSet<Key<'de>> = HashSet::new();
        while let Some(key) = map.next_key::<Key<'de>>()? {
            let twice = if few.len() < FEW {
                few.contains(&key)
            } else {
                few.contains(&key) || many.contains(&key)
            };
            if twice {
                return Err(A::Error::custom(format_args!("{DUPLICATE} \"{}\"", clip(&key.0))));
            }
            map.next_value_seed(Unique)?;
            if few.len() < FEW {
                few.push(key);
            } else {
                many.insert(key);
            }
        }
        Ok(())
    }
}

/// Opens a request body: UTF-8, JSON, one object, no key twice at any depth (to 128 levels).
pub fn open(body: &[u8]) -> Result<Object<'_>, Refusal> {
    let text = std::str::from_utf8(body).map_err(|error| {
        let at = error.valid_up_to();
        Refusal::new(
            Reason::InvalidUtf8,
            format!("The body is not valid UTF-8 (byte {at}). Send JSON encoded as UTF-8."),
        )
    })?;
    let mut reader = serde_json::Deserializer::from_str(text);
    Unique.deserialize(&mut reader).and_then(|()| reader.end()).map_err(|error| refuse(&error))?;
    serde_json::from_str(text).map_err(|error| {
        let what = "The body must be one JSON object with the request's fields";
        // The error quotes what stands there instead.
        let error = clip(&error.to_string());
        Refusal::new(Reason::InvalidType, format!("{what} ({error})."))
    })
}

fn refuse(error: &serde_json::Error) -> Refusal {
    let text = error.to_string();
    if text.contains(DUPLICATE) {
        let what = format!("The body holds a {text}. Send each key once.");
        return Refusal::new(Reason::DuplicateKey, what);
    }
    let what = format!("The body is not valid JSON: {text}. Check quotes, commas and brackets.");
    Refusal::new(Reason::MalformedJson, what)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reason(body: &[u8]) -> Reason {
        open(body).unwrap_err().reason
    }

    #[test]
    fn broken_documents_are_refused_each_for_its_own_reason() {
        assert_eq!(reason(b"{\"a\":\xff}"), Reason::InvalidUtf8);
        assert_eq!(reason(b"{\"a\":1,}"), Reason::MalformedJson);
        assert_eq!(reason(b"{\"a\":1} x"), Reason::MalformedJson);
        assert_eq!(reason(b"[1]"), Reason::InvalidType);
        assert_eq!(reason(b"{\"a\":\"\\ud800\"}"), Reason::MalformedJson);
        assert_eq!(reason("[".repeat(400).as_bytes()), Reason::MalformedJson);
    }

    #[test]
    fn duplicate_keys_are_found_at_any_depth_and_through_escapes() {
        assert_eq!(reason(b"{\"a\":1,\"a\":2}"), Reason::DuplicateKey);
        assert_eq!(reason(b"{\"m\":[{\"x\":{\"r\":1,\"\\u0072\":2}}]}"), Reason::DuplicateKey);
        let many: Vec<String> = (0..40).map(|i| format!("\"k{i}\":0")).collect();
        let body = format!("{{{},\"k30\":1}}", many.join(","));
        assert_eq!(reason(body.as_bytes()), Reason::DuplicateKey);
        let body = format!("{{{},\"k3\":1}}", many.join(","));
        assert_eq!(reason(body.as_bytes()), Reason::DuplicateKey);
    }

    #[test]
    fn long_keys_and_values_are_not_echoed_whole() {
        let long = "k".repeat(5000);
        let twice = format!("{{\"{long}\":1,\"{long}\":2}}");
        for body in [twice, format!("\"{long}\"")] {
            assert!(open(body.as_bytes()).unwrap_err().message.len() < 300, "{body}");
        }
    }

    #[test]
    fn values_keep_the_callers_bytes() {
        let open =
            open(b"{\"big\":123456789012345678901234567890, \"f\": 1.50, \"n\":null}").unwrap();
        assert_eq!(open.get("big").unwrap().get(), "123456789012345678901234567890");
        assert_eq!(open.get("f").unwrap().get(), "1.50");
        assert!(open.get("n").is_none());
    }
}
