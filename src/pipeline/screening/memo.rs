//! What was worked out before: scores of texts, since each turn of a conversation sends the turns before it again,
//! and the indexes of system prompts, since an application sends the same one with each request.

use crate::{
    screen::{Scores, output::leak::Secretive},
    tokens::key_of_texts,
};
use quick_cache::sync::Cache;
use std::{fmt, sync::Arc};

/// Texts remembered. One takes about 150 bytes.
const TEXTS_KEPT: usize = 16 * 1024;
/// Longer texts than this many bytes are worth a place; shorter ones are judged as fast as they are found.
const LEAST_BYTES: usize = 64;
/// Indexes of system prompts remembered. One takes at most 1.2 MiB, usually a hundredth of that.
const PROMPTS_KEPT: usize = 64;

/// Values found by the texts that they were worked out from.
pub(super) struct Memo<T>(Cache<u128, T>);

impl<T> fmt::Debug for Memo<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Memo").finish_non_exhaustive()
    }
}

impl Default for Memo<Scores> {
    fn default() -> Self {
        Self(Cache::new(TEXTS_KEPT))
    }
}

impl Default for Memo<Arc<Secretive>> {
    fn default() -> Self {
        Self(Cache::new(PROMPTS_KEPT))
    }
}

impl<T: Clone> Memo<T> {
    pub(super) fn get(&self, key: u128) -> Option<T> {
        self.0.get(&key)
    }

    pub(super) fn keep(&self, key: u128, value: T) {
        self.0.insert(key, value);
    }
}

/// The key of a text's forms that are worth remembering, by how they are judged.
pub(super) fn key_of_forms(forms: &[&str], how: u8) -> Option<u128> {
    let bytes: usize = forms.iter().map(|form| form.len()).sum();
    (bytes >= LEAST_BYTES).then(|| key_of_texts(how, forms.iter().copied()))
}

/// The key of a request's system prompts.
pub(super) fn key_of_prompts(prompts: &[&str]) -> u128 {
    key_of_texts(0, prompts.iter().copied())
}
