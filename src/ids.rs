//! Names of things: tenants, models, servers, GPUs and requests.
//!
//! Each is its own type, so that a server's name can never be passed where a model's is meant.

use serde::{Serialize, Serializer};
use std::{borrow::Borrow, cell::RefCell, fmt, sync::Arc};

macro_rules! name {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(Arc<str>);

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
                to.serialize_str(&self.0)
            }
        }

        impl $name {
            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl From<&str> for $name {
            fn from(text: &str) -> Self {
                Self(text.into())
            }
        }

        impl From<String> for $name {
            fn from(text: String) -> Self {
                Self(text.into())
            }
        }

        impl Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

name! {
    /// Who pays: the owner of one or more API keys.
    TenantId
}
name! {
    /// What a caller asks for, as callers write it.
    ModelName
}
name! {
    /// One running model server process, as the operator named it (or as it was discovered).
    ServerId
}
name! {
    /// One GPU or MIG instance: the UUID that NVML reports. Never an index, which may change on reboot.
    GpuId
}

/// One request, unique across restarts: `req_` and 96 random bits in hex.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct RequestId(Arc<str>);

impl Serialize for RequestId {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&self.0)
    }
}

/// Random bytes, asked from the system for many ids at once.
struct Random {
    bytes: [u8; 12 * 64],
    used: usize,
}

thread_local! {
    static RANDOM: RefCell<Random> = const { RefCell::new(Random { bytes: [0; 12 * 64], used: 12 * 64 }) };
}

impl Random {
    fn next(&mut self) -> [u8; 12] {
        if let Some(fresh) = self.bytes.get(self.used..).and_then(<[u8]>::first_chunk) {
            self.used += fresh.len();
            return *fresh;
        }
        let mut fresh = [0; 12];
        if getrandom::fill(&mut self.bytes).is_ok() {
            fresh = self.bytes.first_chunk().copied().unwrap_or_default();
            self.used = fresh.len();
        } else {
            let nanos = std::time::UNIX_EPOCH.elapsed().map(|age| age.as_nanos()).unwrap_or(0);
            for (to, from) in fresh.iter_mut().zip(nanos.to_le_bytes()) {
                *to = from;
            }
        }
        fresh
    }
}

impl RequestId {
    /// A fresh id. Falls back to the clock if the system's random source fails,
    /// since an id is for finding a request again, not for security.
    pub fn fresh() -> Self {
        const HEX: [char; 16] =
            ['0', '1', '2', '3', '4', '5', '6', '7', '8', '9', 'a', 'b', 'c', 'd', 'e', 'f'];
        let random = RANDOM.with_borrow_mut(Random::next);
        let mut text = String::with_capacity(28);
        text.push_str("req_");
        for byte in random {
            for nibble in [byte >> 4, byte & 15] {
                text.push(HEX.get(usize::from(nibble)).copied().unwrap_or('0'));
            }
        }
        Self(text.into())
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// How urgent a request is. Earlier tiers go first (strictly); the order of the variants is the order
/// of service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Tier {
    /// The operator's own traffic: probes and control.
    System,
    /// A person waits for the answer.
    Interactive,
    /// The default.
    Standard,
    /// Nobody waits.
    Batch,
}

impl Tier {
    /// All tiers, most urgent first.
    pub const ALL: [Self; 4] = [Self::System, Self::Interactive, Self::Standard, Self::Batch];

    /// The tier's name in configuration, headers and metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::System => "system",
            Self::Interactive => "interactive",
            Self::Standard => "standard",
            Self::Batch => "batch",
        }
    }

    /// The tier with this name, if there is one.
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|tier| tier.as_str() == text)
    }
}

impl fmt::Display for Tier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// Which program a server is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ServerKind {
    /// vLLM.
    Vllm,
    /// SGLang.
    Sglang,
    /// llama.cpp's `llama-server`.
    #[serde(rename = "llama.cpp")]
    LlamaCpp,
    /// Ollama.
    Ollama,
    /// Anything that speaks the OpenAI API and tells nothing about its load.
    #[serde(rename = "openai")]
    OpenAi,
    /// The small model that runs inside this process.
    Embedded,
}

impl ServerKind {
    /// Every kind.
    pub const ALL: [Self; 6] =
        [Self::Vllm, Self::Sglang, Self::LlamaCpp, Self::Ollama, Self::OpenAi, Self::Embedded];

    /// The kind's name in configuration, status and metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Vllm => "vllm",
            Self::Sglang => "sglang",
            Self::LlamaCpp => "llama.cpp",
            Self::Ollama => "ollama",
            Self::OpenAi => "openai",
            Self::Embedded => "embedded",
        }
    }

    /// The kind with this name.
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn request_ids_are_unique_and_well_formed() {
        let (one, two) = (RequestId::fresh(), RequestId::fresh());
        assert_ne!(one, two);
        assert_eq!(one.as_str().len(), 28);
        assert!(one.as_str().starts_with("req_"));
    }

    #[test]
    fn tiers_order_from_urgent_to_patient() {
        assert!(Tier::System < Tier::Batch);
        for tier in Tier::ALL {
            assert_eq!(Tier::parse(tier.as_str()), Some(tier));
        }
        assert_eq!(Tier::parse("INTERACTIVE"), None);
    }
}
