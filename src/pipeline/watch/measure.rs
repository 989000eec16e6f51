//! How many tokens a piece of an answer is.

use crate::{api::event::Choice, pipeline::count::Counter, units::Tokens};
use serde_json::value::RawValue;
use std::borrow::Cow;

/// Raw JSON text up to this length counts as one token without asking a tokenizer: servers send one
/// token an event, and few tokens are longer.
const ONE_TOKEN_BYTES: usize = 18;
/// Text above this is not given to a tokenizer: that is milliseconds of work, and every stream on the
/// thread would wait.
pub const COUNTED_MAX_BYTES: usize = 64 * 1024;

/// Adds a part to what its choice has said, up to what a tokenizer is given.
pub fn keep_text(text: &mut String, choice: &Choice<'_>) {
    for part in choice.parts() {
        if let Ok(piece) = serde_json::from_str::<Cow<'_, str>>(part.get())
            && text.len() + piece.len() <= COUNTED_MAX_BYTES
        {
            text.push_str(&piece);
        }
    }
}

/// Output tokens in one choice's part of an event, and its bytes. A short part is one token. A longer
/// one is counted by the tokenizer; without one it has [`fewest`].
pub fn output_of(choice: &Choice<'_>, counter: Option<&Counter>) -> (Tokens, u64) {
    let bytes: usize = choice.parts().map(|part| part.get().len()).sum();
    if bytes == 0 {
        return (Tokens::ZERO, 0);
    }
    if bytes <= ONE_TOKEN_BYTES {
        return (Tokens(1), bytes as u64);
    }
    let tokens = choice.parts().fold(Tokens::ZERO, |sum, part| sum.plus(tokens_of(part, counter)));
    (tokens.max(Tokens(1)), bytes as u64)
}

/// Tokens of one part of an answer: by the model's tokenizer where it is here and the text is not too
/// long for these threads, else the [`fewest`] that it can have. Tool calls stay JSON, six bytes a token.
pub fn tokens_of(part: &RawValue, counter: Option<&Counter>) -> Tokens {
    let Ok(text) = serde_json::from_str::<Cow<'_, str>>(part.get()) else {
        return Tokens((part.get().len() as u64).div_ceil(6));
    };
    count_text(&text, counter)
}

/// Tokens of a text of an answer, as [`tokens_of`].
pub fn count_text(text: &str, counter: Option<&Counter>) -> Tokens {
    counter
        .filter(|_| text.len() <= COUNTED_MAX_BYTES)
        .and_then(|counter| counter.output(text))
        .unwrap_or_else(|| Tokens(fewest(text)))
}

/// The fewest tokens that a text is likely to have: one for every six bytes, and a run of white space,
/// of which tokenizers make one token, as one byte. A server that keeps the limit must not be cut, so
/// this errs on the low side; JSON's escapes are undone before, since they can be six bytes a letter.
pub fn fewest(text: &str) -> u64 {
    let mut bytes = 0;
    let mut blank = false;
    for letter in text.chars() {
        bytes += match (blank, letter.is_whitespace()) {
            (true, true) => 0,
            (false, true) => 1,
            (_, false) => letter.len_utf8(),
        };
        blank = letter.is_whitespace();
    }
    if bytes <= ONE_TOKEN_BYTES { 1 } else { (bytes as u64).div_ceil(6) }
}
