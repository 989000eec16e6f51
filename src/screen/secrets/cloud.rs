//! Keys of AWS and Azure, and a Telegram bot's token, which no prefix tells.

use super::{
    alphabet::{ALNUM, Alphabet, BASE32, BASE64, DIGIT, LETTER, LOWER, TOKEN, UPPER, distinct},
    assigned::value_start,
    checks::aws_account,
    detect::Hit,
    kind::Kind,
    view::View,
};
use base64::{Engine, engine::general_purpose::STANDARD};

/// How far behind an AWS word a secret key may be, bytes.
const AWS_NEAR: usize = 96;
/// Characters of an AWS secret key.
const AWS_SECRET: usize = 40;
/// What an Azure client secret is made of.
const AZURE_SECRET: Alphabet = TOKEN.and(Alphabet::of(b"~."));

/// An AWS key id whose prefix of four letters is at `at`.
pub(super) fn aws_key_id(view: &View<'_>, at: usize) -> Option<Hit> {
    let from = at + 4;
    let good = view.starts_word(at)
        && view.run(from, BASE32, 16) == from + 16
        && !view.is(from + 16, ALNUM)
        && distinct(view.slice(from..from + 16)) >= 5
        && aws_account(view.slice(from..from + 16));
    good.then(|| Hit::new(Kind::AwsKeyId, at..from + 16))
}

/// An AWS secret key behind the word that is at `at..end`.
pub(super) fn aws_secret_key(view: &View<'_>, at: usize, end: usize) -> Option<Hit> {
    view.begins_later();
    // `laws` and `draws` are none of them.
    if view.was(at, LETTER) {
        return None;
    }
    let mut from = end;
    while from < end + AWS_NEAR {
        let gap = end + AWS_NEAR - from;
        from = view.run(from, NO_BASE64, gap);
        view.begins(from);
        let to = view.run(from, BASE64, AWS_SECRET + 1);
        if to == from {
            // Past the end, or at a character that is not ASCII.
            view.begins_later();
            from = if view.get(to).is_some() { to + 1 } else { return None };
        } else if to - from == AWS_SECRET && is_aws_secret(view.slice(from..to)) {
            return Some(Hit::new(Kind::AwsSecretKey, from..to));
        } else {
            // What is left of a run that is too long must not look like one of the right length.
            from = view.run(to, BASE64, gap);
            view.begins_later();
        }
    }
    None
}

const NO_BASE64: Alphabet = super::alphabet::GRAPHIC.and(super::alphabet::SPACE).without(BASE64);

/// Random characters change between cases, digits and signs two times out of three; names of things do at
/// their words only.
fn is_aws_secret(key: &[u8]) -> bool {
    let sort = |byte: &u8| (UPPER.has(*byte), LOWER.has(*byte), DIGIT.has(*byte));
    let changes = key.windows(2).filter(|pair| pair.first().map(sort) != pair.last().map(sort));
    let some = |set: Alphabet| key.iter().any(|byte| set.has(*byte));
    changes.count() >= 17 && some(UPPER) && some(LOWER) && some(DIGIT) && distinct(key) >= 16
}

/// The key of an Azure account or bus behind the word that ends at `end`.
pub(super) fn azure_key(view: &View<'_>, end: usize) -> Option<Hit> {
    view.begins_later();
    let (from, _) = value_start(view, end)?;
    view.begins(from);
    let to = view.run(from, BASE64, 88);
    let padded = view.run(to, Alphabet::of(b"="), 3);
    let decoded = STANDARD.decode(view.slice(from..padded)).ok()?;
    // Storage and Cosmos keys have 64 bytes, service bus and event hub keys 32.
    let good = matches!(decoded.len(), 32 | 64) && distinct(&decoded) >= 12;
    good.then(|| Hit::new(Kind::AzureKey, from..padded))
}

/// An Azure application's secret, whose `Q~` is at `at`: three characters and a digit before it, 31 to 34
/// behind.
pub(super) fn azure_client_secret(view: &View<'_>, at: usize) -> Option<Hit> {
    let start = at.checked_sub(4)?;
    view.begins(start);
    let mut end = view.run(at + 2, AZURE_SECRET, 38);
    // A full stop is the sentence's.
    while view.was(end, Alphabet::of(b".")) {
        end -= 1;
    }
    let good = view.run_back(at, AZURE_SECRET, 4) == start
        && view.was(at, DIGIT)
        && !view.was(start, AZURE_SECRET)
        && (31..=34).contains(&(end - at - 2))
        && distinct(view.slice(start..end)) >= 12;
    good.then(|| Hit::new(Kind::AzureClientSecret, start..end))
}

/// A Telegram bot's token, whose `:AA` is at `at`: the bot's number before it, 35 characters behind the
/// colon.
pub(super) fn telegram_token(view: &View<'_>, at: usize) -> Option<Hit> {
    let start = view.run_back(at, DIGIT, 11);
    view.begins(start);
    if !(8..=10).contains(&(at - start)) || view.was(start, ALNUM) {
        return None;
    }
    let end = view.run(at + 1, TOKEN, 36);
    let good = end - at - 1 == 35 && distinct(view.slice(at + 1..end)) >= 12;
    good.then(|| Hit::new(Kind::TelegramToken, start..end))
}
