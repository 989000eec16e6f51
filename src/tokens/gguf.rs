//! Reads the header of a GGUF file: the one file that llama.cpp and Ollama keep of a model.
//!
//! Only the metadata is read, never the tensors. The file may be cut or hostile: every length is checked
//! before anything is reserved for it, and what is kept stays in proportion to what was read.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, BufReader, Read},
    path::Path,
};

/// Most bytes of metadata; the largest vocabularies in circulation take about 20 MB.
const HEADER_BYTES_MAX: u64 = 128 << 20;

/// Most metadata entries; files in circulation have some fifty.
const ENTRIES_MAX: u64 = 1 << 16;

/// Most elements of all arrays that are kept, together: a text takes about 50 bytes of memory.
const ELEMENTS_MAX: u64 = 4 << 20;

/// Longest key, bytes.
const KEY_BYTES_MAX: u64 = 1 << 10;

/// Longest text, bytes. A chat template takes up to about 50 kB.
const TEXT_BYTES_MAX: u64 = 8 << 20;

/// Texts up to this length are reserved at once; longer ones grow as they are read.
const RESERVED_BYTES: u64 = 4 << 10;

/// Why a file is not readable as GGUF.
#[derive(Debug, thiserror::Error)]
pub(super) enum HeaderError {
    /// Not this kind of file, or one of a form that we do not know.
    #[error("{0}")]
    Form(String),
    /// The file ends inside its header.
    #[error("the file ends inside its header")]
    Cut,
    /// A length in the file is beyond what a real file has.
    #[error("{0} is beyond every limit")]
    TooLarge(&'static str),
    /// The file could not be read.
    #[error("{0}")]
    Io(io::Error),
}

/// The metadata that matters for counting; other entries are checked and left out.
#[derive(Debug)]
pub(super) struct Header {
    entries: BTreeMap<String, Entry>,
}

#[derive(Debug)]
enum Entry {
    Integer(i64),
    Float(f64),
    Flag(bool),
    Text(String),
    Texts(Vec<String>),
    Integers(Vec<i64>),
    Floats(Vec<f32>),
}

// === impl Header ===

impl Header {
    /// Reads the header of a file.
    pub(super) fn read(path: &Path) -> Result<Self, HeaderError> {
        Self::of(BufReader::new(File::open(path).map_err(HeaderError::Io)?))
    }

    /// Reads a header from any source of bytes.
    pub(super) fn of(inner: impl Read) -> Result<Self, HeaderError> {
        let mut source =
            Source { inner, bytes_left: HEADER_BYTES_MAX, elements_left: ELEMENTS_MAX };
        if source.array()? != *b"GGUF" {
            return Err(HeaderError::Form("not a GGUF file".into()));
        }
        match source.u32()? {
            2 | 3 => {}
            1 => return Err(HeaderError::Form("GGUF version 1 is not supported".into())),
            other if other.swap_bytes() <= 3 => {
                return Err(HeaderError::Form("a big-endian GGUF file".into()));
            }
            other => return Err(HeaderError::Form(format!("GGUF version {other} is not known"))),
        }
        let _tensors = source.u64()?;
        let count = source.u64()?;
        if count > ENTRIES_MAX {
            return Err(HeaderError::TooLarge("the number of metadata entries"));
        }
        let mut entries = BTreeMap::new();
        for _ in 0..count {
            let key = source.text(KEY_BYTES_MAX)?;
            let kind = source.u32()?;
            if !is_wanted(&key) {
                source.skip_value(kind)?;
            } else if let Some(entry) = source.value(kind)? {
                entries.insert(key, entry);
            }
        }
        Ok(Self { entries })
    }

    /// Memory that is reserved for what was kept, bytes.
    #[cfg(test)]
    pub(super) fn bytes_kept(&self) -> usize {
        let of = |entry: &Entry| match entry {
            Entry::Text(text) => text.capacity(),
            Entry::Texts(list) => {
                let texts: usize = list.iter().map(String::capacity).sum();
                texts + list.capacity() * size_of::<String>()
            }
            Entry::Integers(list) => list.capacity() * size_of::<i64>(),
            Entry::Floats(list) => list.capacity() * size_of::<f32>(),
            _ => 0,
        };
        self.entries.values().map(of).sum()
    }

    /// A text.
    pub(super) fn text(&self, key: &str) -> Option<&str> {
        match self.entries.get(key)? {
            Entry::Text(text) => Some(text),
            _ => None,
        }
    }

    /// Texts under keys that begin with this, by the rest of the key.
    pub(super) fn texts_below(&self, start: &str) -> impl Iterator<Item = (&str, &str)> {
        self.entries.iter().filter_map(move |(key, entry)| match entry {
            Entry::Text(text) => Some((key.strip_prefix(start)?, text.as_str())),
            _ => None,
        })
    }

    /// A switch.
    pub(super) fn flag(&self, key: &str) -> Option<bool> {
        match self.entries.get(key)? {
            Entry::Flag(flag) => Some(*flag),
            _ => None,
        }
    }

    /// A whole number that is not negative.
    pub(super) fn number(&self, key: &str) -> Option<u64> {
        match self.entries.get(key)? {
            Entry::Integer(number) => u64::try_from(*number).ok(),
            // Some converters write whole numbers as floats.
            Entry::Float(number) if *number >= 0.0 && number.fract() == 0.0 => Some(*number as u64),
            _ => None,
        }
    }

    /// A list of texts; empty if there is none.
    pub(super) fn texts(&self, key: &str) -> &[String] {
        match self.entries.get(key) {
            Some(Entry::Texts(list)) => list,
            _ => &[],
        }
    }

    /// A list of whole numbers; empty if there is none.
    pub(super) fn integers(&self, key: &str) -> &[i64] {
        match self.entries.get(key) {
            Some(Entry::Integers(list)) => list,
            _ => &[],
        }
    }

    /// A list of numbers, whole or not; empty if there is none.
    pub(super) fn floats(&self, key: &str) -> Vec<f32> {
        match self.entries.get(key) {
            Some(Entry::Floats(list)) => list.clone(),
            Some(Entry::Integers(list)) => list.iter().map(|number| *number as f32).collect(),
            _ => Vec::new(),
        }
    }
}

fn is_wanted(key: &str) -> bool {
    key.starts_with("tokenizer.")
        || matches!(key, "general.architecture" | "general.name")
        || key.ends_with(".context_length")
}

// === values ===

/// The types of a value, as the file numbers them.
mod kind {
    pub(super) const U8: u32 = 0;
    pub(super) const I8: u32 = 1;
    pub(super) const U16: u32 = 2;
    pub(super) const I16: u32 = 3;
    pub(super) const U32: u32 = 4;
    pub(super) const I32: u32 = 5;
    pub(super) const F32: u32 = 6;
    pub(super) const BOOL: u32 = 7;
    pub(super) const TEXT: u32 = 8;
    pub(super) const ARRAY: u32 = 9;
    pub(super) const U64: u32 = 10;
    pub(super) const I64: u32 = 11;
    pub(super) const F64: u32 = 12;
}

fn unknown_kind(kind: u32) -> HeaderError {
    HeaderError::Form(format!("metadata of unknown type {kind}"))
}

/// Bytes of one value of a type of fixed size.
fn bytes_of(kind: u32) -> Result<u64, HeaderError> {
    Ok(match kind {
        kind::U8 | kind::I8 | kind::BOOL => 1,
        kind::U16 | kind::I16 => 2,
        kind::U32 | kind::I32 | kind::F32 => 4,
        kind::U64 | kind::I64 | kind::F64 => 8,
        other => return Err(unknown_kind(other)),
    })
}

/// Bytes that come one after another, with what may still be taken of them.
struct Source<R> {
    inner: R,
    bytes_left: u64,
    elements_left: u64,
}

impl<R: Read> Source<R> {
    fn spend(&mut self, length: u64) -> Result<(), HeaderError> {
        let left = self.bytes_left.checked_sub(length);
        self.bytes_left = left.ok_or(HeaderError::TooLarge("the header"))?;
        Ok(())
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], HeaderError> {
        self.spend(N as u64)?;
        let mut bytes = [0; N];
        self.inner.read_exact(&mut bytes).map_err(cut)?;
        Ok(bytes)
    }

    fn u32(&mut self) -> Result<u32, HeaderError> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    fn u64(&mut self) -> Result<u64, HeaderError> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    /// A text with its length in front. Bytes that are no UTF-8 become replacement characters: such a
    /// token cannot be spelled by any text.
    fn text(&mut self, bytes_max: u64) -> Result<String, HeaderError> {
        let length = self.u64()?;
        if length > bytes_max {
            return Err(HeaderError::TooLarge("a text"));
        }
        self.spend(length)?;
        let mut bytes = Vec::with_capacity(length.min(RESERVED_BYTES) as usize);
        let read = (&mut self.inner).take(length).read_to_end(&mut bytes);
        if (read.map_err(HeaderError::Io)? as u64) < length {
            return Err(HeaderError::Cut);
        }
        Ok(String::from_utf8(bytes)
            .unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned()))
    }

    fn skip(&mut self, length: u64) -> Result<(), HeaderError> {
        self.spend(length)?;
        let skipped = io::copy(&mut (&mut self.inner).take(length), &mut io::sink());
        if skipped.map_err(HeaderError::Io)? < length { Err(HeaderError::Cut) } else { Ok(()) }
    }

    fn skip_value(&mut self, kind: u32) -> Result<(), HeaderError> {
        match kind {
            kind::TEXT => {
                let length = self.u64()?;
                self.skip(length)
            }
            kind::ARRAY => {
                let (kind, count) = (self.u32()?, self.u64()?);
                if kind != kind::TEXT {
                    let length = bytes_of(kind)?.checked_mul(count);
                    return self.skip(length.ok_or(HeaderError::TooLarge("an array"))?);
                }
                // Ends at the latest when the bytes run out: each text spends at least eight.
                for _ in 0..count {
                    self.skip_value(kind::TEXT)?;
                }
                Ok(())
            }
            fixed => self.skip(bytes_of(fixed)?),
        }
    }

    /// A value; `None` for arrays of a type that no vocabulary uses.
    fn value(&mut self, kind: u32) -> Result<Option<Entry>, HeaderError> {
        Ok(Some(match kind {
            kind::TEXT => Entry::Text(self.text(TEXT_BYTES_MAX)?),
            kind::BOOL => Entry::Flag(self.array::<1>()? != [0]),
            kind::F32 | kind::F64 => Entry::Float(self.float(kind)?),
            kind::ARRAY => return self.list(),
            other => Entry::Integer(self.integer(other)?),
        }))
    }

    fn list(&mut self) -> Result<Option<Entry>, HeaderError> {
        let (kind, count) = (self.u32()?, self.u64()?);
        let left = self.elements_left.checked_sub(count);
        self.elements_left = left.ok_or(HeaderError::TooLarge("an array"))?;
        // Nothing is reserved by the count alone: lists grow with what the file really holds.
        let range = 0..count;
        Ok(Some(match kind {
            kind::TEXT => Entry::Texts(range.map(|_| self.text(TEXT_BYTES_MAX)).grow()?),
            kind::F32 | kind::F64 => {
                Entry::Floats(range.map(|_| Ok(self.float(kind)? as f32)).grow()?)
            }
            kind::BOOL => {
                self.skip(count)?;
                return Ok(None);
            }
            kind => Entry::Integers(range.map(|_| self.integer(kind)).grow()?),
        }))
    }

    fn float(&mut self, kind: u32) -> Result<f64, HeaderError> {
        Ok(match kind {
            kind::F32 => f32::from_le_bytes(self.array()?).into(),
            kind::F64 => f64::from_le_bytes(self.array()?),
            other => return Err(unknown_kind(other)),
        })
    }

    fn integer(&mut self, kind: u32) -> Result<i64, HeaderError> {
        Ok(match kind {
            kind::U8 => u8::from_le_bytes(self.array()?).into(),
            kind::I8 => i8::from_le_bytes(self.array()?).into(),
            kind::U16 => u16::from_le_bytes(self.array()?).into(),
            kind::I16 => i16::from_le_bytes(self.array()?).into(),
            kind::U32 => u32::from_le_bytes(self.array()?).into(),
            kind::I32 => i32::from_le_bytes(self.array()?).into(),
            kind::U64 => i64::try_from(u64::from_le_bytes(self.array()?)).unwrap_or(i64::MAX),
            kind::I64 => i64::from_le_bytes(self.array()?),
            other => return Err(unknown_kind(other)),
        })
    }
}

fn cut(error: io::Error) -> HeaderError {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => HeaderError::Cut,
        _ => HeaderError::Io(error),
    }
}

/// Collects without trusting the iterator's size, which comes from the file.
trait Grow<T> {
    fn grow(self) -> Result<Vec<T>, HeaderError>;
}

impl<T, I: Iterator<Item = Result<T, HeaderError>>> Grow<T> for I {
    fn grow(self) -> Result<Vec<T>, HeaderError> {
        let mut list = Vec::new();
        for item in self {
            list.push(item?);
        }
        Ok(list)
    }
}
