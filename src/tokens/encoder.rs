//! A tokenizer file by itself: text in, ids out. For models that read text otherwise than a chat server does.

use super::{CountError, LoadError, engine::Engine};
use std::{fmt, path::Path};

/// A loaded `tokenizer.json`. Shared by reference; every method may be called from any thread.
pub struct Encoder {
    engine: Engine,
    before: Vec<u32>,
    after: Vec<u32>,
}

impl fmt::Debug for Encoder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (before, after) = (&self.before, &self.after);
        f.debug_struct("Encoder")
            .field("before", before)
            .field("after", after)
            .finish_non_exhaustive()
    }
}

impl Encoder {
    /// Reads a tokenizer file.
    ///
    /// # Errors
    /// It is not there, or no tokenizer.
    pub fn load(path: &Path) -> Result<Self, LoadError> {
        let unreadable = |why: String| LoadError::Unreadable(path.to_owned(), why);
        if !path.exists() {
            return Err(LoadError::Missing(path.to_owned()));
        }
        let bytes = std::fs::read(path).map_err(|error| unreadable(error.to_string()))?;
        let file = serde_json::from_slice(&bytes).map_err(|error| unreadable(error.to_string()))?;
        let engine = Engine::load(file).map_err(unreadable)?;
        let (before, after) = around(&engine).map_err(|error| unreadable(error.to_string()))?;
        Ok(Self { engine, before, after })
    }

    /// The ids of a text, without special tokens around it, given to `read`, which must not encode itself.
    ///
    /// # Errors
    /// The library failed over this text.
    pub fn with_ids<T>(&self, text: &str, read: impl FnOnce(&[u32]) -> T) -> Result<T, CountError> {
        self.engine.with_ids(text, false, read)
    }

    /// Special tokens that the file puts in front of a text.
    pub fn before(&self) -> &[u32] {
        &self.before
    }

    /// Special tokens that the file puts behind a text.
    pub fn after(&self) -> &[u32] {
        &self.after
    }
}

/// What the file puts around a text: found by encoding one with and without.
fn around(engine: &Engine) -> Result<(Vec<u32>, Vec<u32>), CountError> {
    let bare = engine.with_ids("a", false, <[u32]>::to_vec)?;
    let whole = engine.with_ids("a", true, <[u32]>::to_vec)?;
    let at = whole.windows(bare.len().max(1)).position(|part| part == bare).unwrap_or(0);
    let (before, rest) = whole.split_at_checked(at).unwrap_or_default();
    let after = rest.get(bare.len()..).unwrap_or_default();
    Ok((before.to_vec(), after.to_vec()))
}
