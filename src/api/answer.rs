//! Token usage as servers report it, and whether it can be believed.

use crate::units::Tokens;
use serde::Deserialize;

/// Token counts of one answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Input tokens.
    pub prompt: Tokens,
    /// Output tokens.
    pub completion: Tokens,
    /// Input tokens that the server took from its prefix cache.
    pub cached: Tokens,
}

impl Usage {
    /// Input and output together.
    pub const fn total(self) -> Tokens {
        self.prompt.plus(self.completion)
    }

    /// OpenAI's JSON form.
    pub fn json(self) -> String {
        format!(
            "{{\"prompt_tokens\":{},\"completion_tokens\":{},\"total_tokens\":{}}}",
            self.prompt,
            self.completion,
            self.total()
        )
    }
}

#[derive(Deserialize)]
struct Raw {
    #[serde(default)]
    prompt_tokens: Option<i64>,
    #[serde(default)]
    completion_tokens: Option<i64>,
    #[serde(default)]
    prompt_tokens_details: Option<Details>,
}

#[derive(Deserialize)]
struct Details {
    #[serde(default)]
    cached_tokens: Option<i64>,
}

/// What is known about an answer without asking the server.
#[derive(Clone, Copy, Debug)]
pub struct Expected {
    /// Our count of the input.
    pub prompt: Tokens,
    /// Our count of the output.
    pub completion: Tokens,
    /// Bytes of output text.
    pub bytes: u64,
    /// True when our input count is exact rather than an estimate.
    pub exact: bool,
    /// How many prompts and choices share this usage.
    pub answers: u64,
}

/// Reads a usage object. `None` when it is absent, broken, negative, or so far from what passed
/// through our hands that it cannot be true: more output tokens than bytes came and than eight times
/// our own count (a server counts special tokens and pieces that never became text, but not that
/// many), or an input that differs from an exact count by half and more than 64 tokens.
pub fn believable(text: Option<&str>, expected: Expected) -> Option<Usage> {
    let raw: Raw = serde_json::from_str(text?).ok()?;
    let prompt = Tokens(u64::try_from(raw.prompt_tokens?).ok()?);
    // Embedding servers leave the completion count out.
    let completion = Tokens(u64::try_from(raw.completion_tokens.unwrap_or(0)).ok()?);
    let cached = raw.prompt_tokens_details.and_then(|details| details.cached_tokens).unwrap_or(0);
    let cached = Tokens(u64::try_from(cached).unwrap_or(0).min(prompt.get()));
    let ours = expected.completion.get();
    let answers = expected.answers.max(1);
    let most = ours.saturating_mul(8).max(expected.bytes);
    if completion.get() > most.saturating_add(answers.saturating_mul(64)) {
        return None;
    }
    // Output was seen, so none cannot be right.
    if completion == Tokens::ZERO && ours > 0 {
        return None;
    }
    let differs = prompt.get().abs_diff(expected.prompt.get());
    let slack = if expected.exact { 64 } else { 4096 };
    if differs > slack && differs > expected.prompt.get() / 2 {
        return None;
    }
    Some(Usage { prompt, completion, cached })
}

/// The input as a server says it counted it, before anybody asks whether the rest of its usage is true.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ToldInput {
    prompt: Tokens,
    cached: Tokens,
}

impl ToldInput {
    /// Reads it out of a usage object. `None` when there is no such number, or it is negative.
    pub fn read(text: Option<&str>) -> Option<Self> {
        let raw: Raw = serde_json::from_str(text?).ok()?;
        let prompt = Tokens(u64::try_from(raw.prompt_tokens?).ok()?);
        let cached = raw.prompt_tokens_details.and_then(|details| details.cached_tokens);
        Some(Self { prompt, cached: Tokens(u64::try_from(cached.unwrap_or(0)).unwrap_or(0)) })
    }

    /// As the count of an input that we count as `ours`, in a body of so many bytes. `None` where it cannot
    /// be one: no input is empty, and a token is a byte at least, but for what a template adds. A server may
    /// tell only what it did not find in its cache; then what it found is added.
    pub fn as_count_of(self, ours: Tokens, body_bytes: usize) -> Option<Tokens> {
        let whole = self.prompt.plus(self.cached);
        if whole == ours {
            return Some(ours);
        }
        let most = (body_bytes as u64).saturating_add(TEMPLATE_MAX_TOKENS);
        (self.prompt > Tokens::ZERO && self.prompt.get() <= most).then_some(self.prompt)
    }
}

/// More than any chat template adds of its own.
pub const TEMPLATE_MAX_TOKENS: u64 = 16 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_input_count_is_compared_only_where_it_can_be_true() {
        let told = |text| ToldInput::read(Some(text));
        let count = |text| told(text).and_then(|told| told.as_count_of(Tokens(20), 100));
        assert_eq!(count(r#"{"prompt_tokens":20}"#), Some(Tokens(20)));
        assert_eq!(count(r#"{"prompt_tokens":23,"completion_tokens":-1}"#), Some(Tokens(23)));
        let cached = r#"{"prompt_tokens":4,"prompt_tokens_details":{"cached_tokens":16}}"#;
        assert_eq!(count(cached), Some(Tokens(20)), "what was cached was left out");
        let cached = r#"{"prompt_tokens":22,"prompt_tokens_details":{"cached_tokens":16}}"#;
        assert_eq!(count(cached), Some(Tokens(22)));
        for never in [r#"{"prompt_tokens":0}"#, r#"{"prompt_tokens":16485}"#, "{}", "null"] {
            assert_eq!(count(never), None, "{never}");
        }
        assert_eq!(told(r#"{"prompt_tokens":-20}"#), None);
        assert_eq!(ToldInput::read(None), None);
    }

    #[test]
    fn absurd_usage_is_not_believed() {
        let ours = Expected {
            prompt: Tokens(20),
            completion: Tokens(5),
            bytes: 20,
            exact: true,
            answers: 1,
        };
        let good = r#"{"prompt_tokens":20,"completion_tokens":6,"total_tokens":26,"prompt_tokens_details":{"cached_tokens":16}}"#;
        let usage = Usage { prompt: Tokens(20), completion: Tokens(6), cached: Tokens(16) };
        assert_eq!(believable(Some(good), ours), Some(usage));
        for bad in [
            None,
            Some("null"),
            Some("{}"),
            Some(r#"{"prompt_tokens":-1,"completion_tokens":5}"#),
            Some(r#"{"prompt_tokens":20,"completion_tokens":-5}"#),
            Some(r#"{"prompt_tokens":20,"completion_tokens":999999}"#),
            Some(r#"{"prompt_tokens":20,"completion_tokens":0}"#),
            Some(r#"{"prompt_tokens":1000000,"completion_tokens":5}"#),
            Some(r#"{"prompt_tokens":"20","completion_tokens":5}"#),
            Some(r#"{"prompt_tokens":20.5,"completion_tokens":5}"#),
        ] {
            assert_eq!(believable(bad, ours), None, "{bad:?}");
        }
    }

    #[test]
    fn an_estimate_is_corrected_by_the_server() {
        let ours = Expected {
            prompt: Tokens(20),
            completion: Tokens(5),
            bytes: 20,
            exact: false,
            answers: 1,
        };
        let far = r#"{"prompt_tokens":900,"completion_tokens":5}"#;
        assert_eq!(believable(Some(far), ours).unwrap().prompt, Tokens(900));
    }
}
