//! Reads a publisher's batches: which blocks an engine says it stored, removed or cleared.
//!
//! vLLM and SGLang send the same shapes, which have grown over the years. A batch is `[time, [events], rank]` or
//! a map with `events`; an event is a map with `type`, or (older) an array that begins with it. Fields and
//! types of events that are not known are passed over. Must not know what our own hashes are.

use super::msgpack::{Entered, Items, Malformed, Reader, Value};
use crate::snapshot::BLOCK_TOKENS_MAX;
use std::num::NonZeroU32;

/// Where the blocks are that we follow; what names no medium means this one.
const GPU: &[u8] = b"GPU";

/// Fields of an event in array form, behind its type.
const STORED_FIELDS: [&[u8]; 10] = [
    b"block_hashes",
    b"parent_block_hash",
    b"token_ids",
    b"block_size",
    b"lora_id",
    b"medium",
    b"lora_name",
    b"extra_keys",
    b"group_idx",
    b"kv_cache_spec_kind",
];
const REMOVED_FIELDS: [&[u8]; 3] = [b"block_hashes", b"medium", b"group_idx"];

/// Kinds of layers whose cache a whole prefix needs. Those of other kinds (sliding windows, state spaces) drop
/// blocks that a prefix can do without.
const WHOLE_KINDS: [&[u8]; 3] = [b"full_attention", b"mla_attention", b"sink_full_attention"];

/// An engine's own hash of a block: a number of 64 bits, or the first 16 bytes of a longer one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct EngineHash(pub(super) u128);

impl EngineHash {
    /// `None` for what is no hash.
    pub(super) fn of(value: Value<'_>) -> Option<Self> {
        match value {
            Value::Unsigned(number) => Some(Self(number.into())),
            // The same 64 bits, whether the engine takes them for signed or not.
            Value::Negative(number) => Some(Self(number.cast_unsigned().into())),
            Value::Bytes(bytes) | Value::Text(bytes) if !bytes.is_empty() => {
                let bytes = bytes.get(..16).unwrap_or(bytes);
                let number = bytes.iter().fold(0, |sum: u128, byte| (sum << 8) | u128::from(*byte));
                Some(Self(number))
            }
            _ => None,
        }
    }
}

/// One event.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Event<'a> {
    /// Blocks are on the GPU now.
    Stored(Stored<'a>),
    /// Blocks are no longer on the GPU.
    Removed {
        /// Engine's hashes.
        hashes: Items<'a>,
        /// Which group of layers lost them.
        group: u64,
    },
    /// The engine emptied its cache.
    Cleared,
    /// It is about a cache that prompts of ours do not meet: another medium, an adapter, a salt.
    Apart,
    /// Its type is not known.
    Unknown,
    /// Its fields are not what they should be. `removal`: blocks may be gone that we think are there.
    Unreadable {
        /// It tells of blocks that are gone.
        removal: bool,
    },
}

/// Blocks that an engine stored.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Stored<'a> {
    /// Engine's hashes, one a block, in order.
    pub(super) hashes: Items<'a>,
    /// The block before the first; `None` at a prompt's beginning.
    pub(super) parent: Option<EngineHash>,
    /// As many as the blocks hold together.
    pub(super) tokens: Items<'a>,
    /// At most [`BLOCK_TOKENS_MAX`].
    pub(super) block_tokens: NonZeroU32,
    /// What else each block's hash is made of, where the engine tells it.
    pub(super) extra: Option<Items<'a>>,
    /// Which group of layers holds them.
    pub(super) group: u64,
}

/// The events of one message, in order.
pub(super) struct Batch<'a> {
    reader: Reader<'a>,
    left: u32,
}

impl<'a> Batch<'a> {
    /// Looks for the events of a payload.
    pub(super) fn open(payload: &'a [u8]) -> Result<Self, Malformed> {
        let mut reader = Reader::new(payload);
        let found = match reader.enter()? {
            Entered::List(count) if count >= 2 => reader.skip(1).map(|()| true)?,
            Entered::List(_) => false,
            Entered::Map(pairs) => find(&mut reader, pairs, b"events")?,
        };
        match reader.enter() {
            Ok(Entered::List(left)) if found => Ok(Self { reader, left }),
            Ok(_) => Err(Malformed::Kind),
            Err(_) if !found => Err(Malformed::Kind),
            Err(error) => Err(error),
        }
    }
}

/// Goes on to the value of a key of a map.
fn find(reader: &mut Reader<'_>, pairs: u32, key: &[u8]) -> Result<bool, Malformed> {
    for _ in 0..pairs {
        if reader.value()? == Value::Text(key) {
            return Ok(true);
        }
        reader.skip(1)?;
    }
    Ok(false)
}

impl<'a> Iterator for Batch<'a> {
    type Item = Result<Event<'a>, Malformed>;

    /// Nothing can be read behind an error.
    fn next(&mut self) -> Option<Self::Item> {
        self.left = self.left.checked_sub(1)?;
        let event = event(&mut self.reader);
        if event.is_err() {
            self.left = 0;
        }
        Some(event)
    }
}

fn event<'a>(reader: &mut Reader<'a>) -> Result<Event<'a>, Malformed> {
    let mut fields = Fields::default();
    match reader.enter()? {
        Entered::Map(pairs) => {
            for _ in 0..pairs {
                let (key, value) = (reader.value()?, reader.value()?);
                match key {
                    Value::Text(b"type") => fields.kind = Some(value),
                    Value::Text(name) => fields.set(name, value),
                    _ => {}
                }
            }
        }
        Entered::List(0) => return Ok(Event::Unknown),
        Entered::List(count) => {
            let kind = reader.value()?;
            fields.kind = Some(kind);
            let names: &[&[u8]] = match kind {
                Value::Text(b"BlockStored") => &STORED_FIELDS,
                Value::Text(b"BlockRemoved") => &REMOVED_FIELDS,
                _ => &[],
            };
            let mut names = names.iter();
            for _ in 1..count {
                let value = reader.value()?;
                if let Some(name) = names.next() {
                    fields.set(name, value);
                }
            }
        }
    }
    Ok(match fields.kind {
        Some(Value::Text(b"BlockStored")) => fields.stored(),
        Some(Value::Text(b"BlockRemoved")) => fields.removed(),
        Some(Value::Text(b"AllBlocksCleared")) => Event::Cleared,
        _ => Event::Unknown,
    })
}

/// What was found in one event.
#[derive(Default)]
struct Fields<'a> {
    kind: Option<Value<'a>>,
    hashes: Option<Value<'a>>,
    parent: Option<Value<'a>>,
    tokens: Option<Value<'a>>,
    block_size: Option<Value<'a>>,
    extra: Option<Value<'a>>,
    group: Option<Value<'a>>,
    /// Something says that it is about another cache.
    apart: bool,
    /// It is not about the GPU.
    elsewhere: bool,
}

impl<'a> Fields<'a> {
    fn set(&mut self, name: &[u8], value: Value<'a>) {
        let field = match name {
            b"block_hashes" => &mut self.hashes,
            b"parent_block_hash" => &mut self.parent,
            b"token_ids" => &mut self.tokens,
            b"block_size" => &mut self.block_size,
            b"extra_keys" => &mut self.extra,
            b"group_idx" => &mut self.group,
            b"lora_id" | b"lora_name" | b"cache_salt" => {
                self.apart |= is_set(value);
                return;
            }
            b"kv_cache_spec_kind" => {
                let whole = |word: &[u8]| WHOLE_KINDS.contains(&word);
                self.apart |= matches!(value, Value::Text(word) if !whole(word));
                return;
            }
            b"medium" => {
                self.elsewhere = match value {
                    Value::Text(word) => !word.eq_ignore_ascii_case(GPU),
                    other => is_set(other),
                };
                return;
            }
            _ => return,
        };
        // What is nothing is as good as absent.
        *field = Some(value).filter(|value| *value != Value::Nil);
    }

    fn stored(self) -> Event<'a> {
        if self.apart || self.elsewhere {
            return Event::Apart;
        }
        self.read_stored().map_or(Event::Unreadable { removal: false }, Event::Stored)
    }

    fn read_stored(&self) -> Option<Stored<'a>> {
        let (hashes, tokens) = (list(self.hashes)?, list(self.tokens)?);
        let block_tokens = match self.block_size? {
            Value::Unsigned(size) if size <= BLOCK_TOKENS_MAX.into() => u32::try_from(size).ok()?,
            _ => return None,
        };
        let block_tokens = NonZeroU32::new(block_tokens)?;
        if hashes.left().checked_mul(block_tokens.get())? != tokens.left() {
            return None;
        }
        let parent = match self.parent {
            None => None,
            Some(value) => Some(EngineHash::of(value)?),
        };
        let extra = match self.extra {
            None => None,
            Some(value) => Some(list(Some(value))?),
        };
        Some(Stored { hashes, parent, tokens, block_tokens, extra, group: group(self.group)? })
    }

    fn removed(self) -> Event<'a> {
        if self.elsewhere {
            return Event::Apart;
        }
        match (list(self.hashes), group(self.group)) {
            (Some(hashes), Some(group)) => Event::Removed { hashes, group },
            _ => Event::Unreadable { removal: true },
        }
    }
}

/// Without a number there is one group only.
fn group(value: Option<Value<'_>>) -> Option<u64> {
    match value {
        None => Some(0),
        Some(Value::Unsigned(group)) => Some(group),
        Some(_) => None,
    }
}

const fn list(value: Option<Value<'_>>) -> Option<Items<'_>> {
    match value {
        Some(Value::List(items)) => Some(items),
        _ => None,
    }
}

/// Does a field say anything? Engines number adapters from 1.
pub(super) const fn is_set(value: Value<'_>) -> bool {
    match value {
        Value::Nil | Value::Flag(false) | Value::Unsigned(0) => false,
        Value::Text(bytes) | Value::Bytes(bytes) => !bytes.is_empty(),
        Value::List(items) => items.left() > 0,
        _ => true,
    }
}

#[cfg(test)]
#[path = "decode_tests.rs"]
pub(super) mod tests;
