//! Tokens that their makers gave a prefix: one row each.

use super::{
    alphabet::{ALNUM, Alphabet, BASE64, DIGIT, HEX, LETTER, LOWER, TOKEN, UPPER, distinct},
    checks::crc_in_base_62,
    detect::Hit,
    kind::Kind,
    view::View,
};

/// One form of token.
pub(super) struct Spec {
    /// How it starts, in this case.
    pub prefix: &'static str,
    /// What it is.
    pub kind: Kind,
    /// What its body is made of. The body ends where others come.
    alphabet: Alphabet,
    /// Fewest and most characters of the body.
    length: (usize, usize),
    /// What else must hold of the body.
    check: fn(&[u8]) -> bool,
}

const fn spec(
    prefix: &'static str,
    kind: Kind,
    alphabet: Alphabet,
    length: (usize, usize),
    check: fn(&[u8]) -> bool,
) -> Spec {
    Spec { prefix, kind, alphabet, length, check }
}

/// Base 62 with dashes.
const DASHED: Alphabet = ALNUM.and(Alphabet::of(b"-"));
/// A token in parts.
const PARTS: Alphabet = TOKEN.and(Alphabet::of(b"."));
/// Bech32's characters, as age writes them.
const BECH32: Alphabet = UPPER.and(DIGIT).without(Alphabet::of(b"1BIO"));

/// All forms.
pub(super) static SPECS: &[Spec] = &[
    spec("AIza", Kind::GoogleApiKey, TOKEN, (35, 35), mixed),
    spec("GOCSPX-", Kind::GoogleClientSecret, TOKEN, (28, 28), mixed),
    // A checksum stands at the end of these; the longer refresh tokens have one that nobody described.
    spec("ghp_", Kind::GithubToken, ALNUM, (36, 36), crc_in_base_62),
    spec("gho_", Kind::GithubToken, ALNUM, (36, 36), crc_in_base_62),
    spec("ghu_", Kind::GithubToken, ALNUM, (36, 36), crc_in_base_62),
    spec("ghs_", Kind::GithubToken, ALNUM, (36, 36), crc_in_base_62),
    spec("ghr_", Kind::GithubToken, ALNUM, (36, 36), crc_in_base_62),
    spec("ghr_", Kind::GithubToken, ALNUM, (76, 76), mixed),
    // Application id, and a JSON web token.
    spec("ghs_", Kind::GithubToken, PARTS, (64, 2048), is_stateless),
    spec("github_pat_", Kind::GithubToken, TOKEN, (82, 82), is_fine_grained),
    spec("glpat-", Kind::GitlabToken, PARTS, (20, 300), mixed),
    spec("gldt-", Kind::GitlabToken, TOKEN, (20, 64), mixed),
    spec("glrt-", Kind::GitlabToken, PARTS, (20, 300), mixed),
    spec("glptt-", Kind::GitlabToken, TOKEN, (40, 40), mixed),
    spec("xoxb-", Kind::SlackToken, DASHED, (20, 255), mixed),
    spec("xoxp-", Kind::SlackToken, DASHED, (20, 255), mixed),
    spec("xoxa-", Kind::SlackToken, DASHED, (20, 255), mixed),
    spec("xoxr-", Kind::SlackToken, DASHED, (20, 255), mixed),
    spec("xoxs-", Kind::SlackToken, DASHED, (20, 255), mixed),
    spec("xoxo-", Kind::SlackToken, DASHED, (20, 255), mixed),
    spec("xoxc-", Kind::SlackToken, DASHED, (20, 255), mixed),
    spec("xoxe.xoxp-", Kind::SlackToken, DASHED, (20, 255), mixed),
    spec("xoxe-", Kind::SlackToken, DASHED, (20, 255), mixed),
    spec("xapp-", Kind::SlackToken, DASHED, (40, 255), mixed),
    spec("hooks.slack.com/services/", Kind::SlackToken, BASE64, (30, 80), is_hook),
    spec("sk_live_", Kind::StripeKey, ALNUM, (16, 247), mixed),
    spec("rk_live_", Kind::StripeKey, ALNUM, (16, 247), mixed),
    spec("whsec_", Kind::StripeKey, BASE64, (32, 64), mixed),
    spec("sk-", Kind::OpenaiKey, ALNUM, (32, 64), mixed),
    spec("sk-proj-", Kind::OpenaiKey, TOKEN, (40, 256), mixed),
    spec("sk-svcacct-", Kind::OpenaiKey, TOKEN, (40, 256), mixed),
    spec("sk-admin-", Kind::OpenaiKey, TOKEN, (40, 256), mixed),
    spec("sk-ant-", Kind::AnthropicKey, TOKEN, (32, 256), mixed),
    spec("sk-or-v1-", Kind::ProviderKey, HEX, (64, 64), mixed),
    spec("hf_", Kind::HuggingfaceToken, ALNUM, (34, 40), both_cases),
    spec("api_org_", Kind::HuggingfaceToken, ALNUM, (34, 40), both_cases),
    spec("gsk_", Kind::ProviderKey, ALNUM, (48, 64), mixed),
    spec("xai-", Kind::ProviderKey, ALNUM, (70, 96), mixed),
    spec("nvapi-", Kind::ProviderKey, TOKEN, (60, 80), mixed),
    spec("r8_", Kind::ProviderKey, ALNUM, (36, 40), mixed),
    spec("pplx-", Kind::ProviderKey, ALNUM, (40, 64), mixed),
    spec("npm_", Kind::NpmToken, ALNUM, (36, 36), crc_in_base_62),
    // The serialised macaroon's version and the head of its place: pypi.org or test.pypi.org.
    spec("pypi-AgE", Kind::PypiToken, TOKEN, (50, 2048), mixed),
    spec("SK", Kind::TwilioKey, HEX, (32, 32), is_low_hex),
    spec("SG.", Kind::SendgridKey, PARTS, (66, 66), is_sendgrid),
    spec("AGE-SECRET-KEY-1", Kind::PrivateKey, BECH32, (58, 58), mixed),
];

/// Looks for a token whose prefix is at `at`.
pub(super) fn detect(view: &View<'_>, at: usize, spec: &Spec) -> Option<Hit> {
    if !view.starts_word(at) {
        return None;
    }
    let from = at + spec.prefix.len();
    let (least, most) = spec.length;
    // One more than may be, to see one that is too long.
    let mut end = view.run(from, spec.alphabet, most + 1);
    // A full stop is the sentence's.
    while end > from && view.was(end, Alphabet::of(b".")) {
        end -= 1;
    }
    let body = view.slice(from..end);
    let good = (least..=most).contains(&body.len()) && distinct(body) >= 8 && (spec.check)(body);
    good.then(|| Hit::new(spec.kind, at..end))
}

/// Letters and digits: what random text of some length always is and words are not.
fn mixed(body: &[u8]) -> bool {
    body.iter().any(|byte| DIGIT.has(*byte)) && body.iter().any(|byte| LETTER.has(*byte))
}

fn both_cases(body: &[u8]) -> bool {
    body.iter().any(|byte| UPPER.has(*byte)) && body.iter().any(|byte| LOWER.has(*byte))
}

fn is_low_hex(body: &[u8]) -> bool {
    mixed(body) && !body.iter().any(|byte| UPPER.has(*byte))
}

/// `APPID_header.payload.signature`.
fn is_stateless(body: &[u8]) -> bool {
    let dots = body.iter().filter(|byte| **byte == b'.').count();
    body.first().is_some_and(|byte| DIGIT.has(*byte)) && dots == 2 && both_cases(body)
}

/// An id of 22 characters, and a secret of 59.
fn is_fine_grained(body: &[u8]) -> bool {
    let is_part = |part: &[u8]| part.iter().all(|byte| ALNUM.has(*byte));
    match body.split_at_checked(22) {
        Some((id, [b'_', secret @ ..])) => is_part(id) && is_part(secret) && mixed(secret),
        _ => false,
    }
}

/// Workspace, application and secret.
fn is_hook(body: &[u8]) -> bool {
    let mut parts = body.split(|byte| *byte == b'/');
    let mut next = || parts.next().unwrap_or_default();
    let (workspace, application, secret) = (next(), next(), next());
    workspace.starts_with(b"T")
        && application.starts_with(b"B")
        && (20..=32).contains(&secret.len())
}

/// 22 characters and 43, with a dot between.
fn is_sendgrid(body: &[u8]) -> bool {
    body.get(22) == Some(&b'.') && body.iter().filter(|byte| **byte == b'.').count() == 1
}
