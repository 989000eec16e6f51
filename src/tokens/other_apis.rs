//! What requests of other APIs need of a model's files: pairs of texts, the words of tokens, and trial
//! renders that servers make before they turn such a request into chat.

use super::{CountError, ModelFiles, NEEDLE, messages::Ending, messages::Prepared, whole};
use crate::{api::shapes::InlineSystem, units::Tokens};
use serde_json::{Map, json};

impl ModelFiles {
    /// The number of ids of two texts encoded as one pair, as cross-encoders read a query and a document.
    ///
    /// # Errors
    /// These are not the files of a cross-encoder: there is a chat template, or nothing stands between the
    /// texts of a pair; what a server puts there is then its own affair. Or as [`ModelFiles::count_text`].
    pub fn count_pair(&self, first: &str, second: &str) -> Result<Tokens, CountError> {
        if self.has_template() || self.is_gguf {
            let told =
                "the model has a chat template, so its server scores pairs in a way of its own";
            return Err(CountError::NotAvailable(told.into()));
        }
        let around = self.memo.vocabulary.around_pairs().ok_or_else(|| {
            CountError::NotAvailable(
                "this tokenizer puts nothing between the texts of a pair".into(),
            )
        })?;
        let (first, second) = (self.count_text(first, false)?, self.count_text(second, false)?);
        Ok(first.plus(second).plus(Tokens(around as u64)))
    }

    /// The tokens of these ids as the vocabulary writes them (`Ġhello`, `▁the`, `<|im_end|>`); empty for ids
    /// that it does not have.
    pub fn token_texts(&self, ids: &[u32]) -> Vec<String> {
        self.memo.vocabulary.token_texts(ids)
    }

    /// What the chat template does with a system message behind the first user message. Where there are two
    /// templates, the stricter of them. `None`: there is no template.
    pub fn inline_system(&self) -> Option<InlineSystem> {
        let message = |role: &str, content: &str| json!({"role": role, "content": content});
        let trial = [
            message("system", "t"),
            message("user", "t"),
            message("system", NEEDLE),
            message("user", "t"),
        ];
        let see = |has_tools: bool| {
            let loaded = self.chat.pick(has_tools).ok()?;
            let prepared = Prepared {
                messages: trial.to_vec(),
                tools: None,
                documents: None,
                variables: Map::new(),
                add_generation_prompt: false,
                ending: Ending::Nothing,
            };
            Some(match loaded.template.render(whole(&self.named_tokens, prepared)) {
                Err(_) => InlineSystem::Refused,
                Ok(text) if text.contains(NEEDLE) => InlineSystem::Printed,
                Ok(_) => InlineSystem::Dropped,
            })
        };
        let (plain, tools) = (see(false)?, see(true)?);
        let strictest = [InlineSystem::Refused, InlineSystem::Dropped, InlineSystem::Printed];
        strictest.into_iter().find(|seen| *seen == plain || *seen == tools)
    }

    /// The prompt of one short user message with this `reasoning_effort`; `Some(None)` where the template
    /// refuses it, `None` where there is no template.
    pub fn with_effort(&self, profile: &super::Profile, effort: &str) -> Option<Option<String>> {
        if !self.has_template() {
            return None;
        }
        let body = json!({
            "messages": [{"role": "user", "content": "Hi"}], "reasoning_effort": effort,
        });
        body.as_object().map(|body| self.chat_text(profile, body).ok())
    }
}

/// GPT-2's printable stand-in for a byte: printable Latin-1 stands for itself, the rest follows in order from
/// U+0100.
pub(super) fn stand_in(byte: u8) -> char {
    let itself = |byte: u8| matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    if itself(byte) {
        return char::from(byte);
    }
    let place = (0..byte).filter(|lower| !itself(*lower)).count();
    u32::try_from(place).ok().and_then(|place| char::from_u32(0x100 + place)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stand_ins_are_those_of_byte_level_vocabularies() {
        let word = |bytes: &[u8]| bytes.iter().map(|byte| stand_in(*byte)).collect::<String>();
        assert_eq!(word(b" a\n"), "\u{120}a\u{10a}");
        assert_eq!(word("é".as_bytes()), "\u{c3}\u{a9}");
        assert_eq!(word(&[0xad]), "\u{143}");
    }
}
