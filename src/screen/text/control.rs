//! Finds what chat templates write between turns: control tokens, and names of roles where a line begins.
//!
//! Whoever can put them into a document that a model reads can make it look like more turns than there are.
//! Tokens are hardly ever meant otherwise. Roles are: minutes of a meeting begin their lines so.

use aho_corasick::{AhoCorasick, AhoCorasickKind, MatchKind};
use std::{ops::Range, sync::LazyLock};

/// Results of each kind that are given, the first ones.
pub const CONTROLS_MAX: usize = 128;

/// Bytes of the word inside `<|word|>`.
const WORD_MAX: usize = 48;
/// Bytes of a line that are looked at.
const LINE_MAX: usize = 160;
/// Letters of decoration before a role's name.
const FRAME_MAX: usize = 16;

/// What was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ControlKind {
    /// A token that a template writes.
    Token,
    /// The name of a role, or of its text, where a line begins: weak evidence alone.
    Role,
}

/// A control token or a role in a text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Control {
    /// Which of them.
    pub kind: ControlKind,
    /// Where it stands, bytes.
    pub span: Range<usize>,
    /// A token as it is spelled where it is known, else as the text spells it; a role in small letters.
    pub name: String,
}

/// Tokens that are not written between bars, by the templates that write them.
const TOKENS: [&str; 30] = [
    // Llama 2, Mistral.
    "[INST]",
    "[/INST]",
    "<<SYS>>",
    "<</SYS>>",
    "[SYSTEM_PROMPT]",
    "[/SYSTEM_PROMPT]",
    "[AVAILABLE_TOOLS]",
    "[/AVAILABLE_TOOLS]",
    "[TOOL_CALLS]",
    "[TOOL_RESULTS]",
    "[/TOOL_RESULTS]",
    "[TOOL_CONTENT]",
    "[MODEL_SETTINGS]",
    "[/MODEL_SETTINGS]",
    // Gemma.
    "<start_of_turn>",
    "<end_of_turn>",
    "<start_function_call>",
    "<end_function_call>",
    "<bos>",
    "<eos>",
    // Qwen, Hermes.
    "<tool_call>",
    "</tool_call>",
    "<tool_response>",
    "</tool_response>",
    // GLM.
    "[gMASK]",
    "<sop>",
    // MiniMax, and sentences elsewhere.
    "<beginning_of_sentence>",
    "<end_of_sentence>",
    "]~b]",
    "[e~[",
];

/// Tokens only next to others: also what is struck through in HTML.
const STROKES: [&str; 2] = ["<s>", "</s>"];
/// Beginnings of all others.
const OPENERS: [&str; 3] = ["<|", "<｜", "[|"];
/// Their ends.
const CLOSERS: [&str; 3] = ["|>", "｜>", "|]"];

/// Words between bars that are tokens even with spaces around them, and in brackets.
const WORDS: [&str; 16] = [
    "system",
    "developer",
    "user",
    "assistant",
    "tool",
    "end",
    "endofturn",
    "im_start",
    "im_end",
    "im_sep",
    "endoftext",
    "begin_of_text",
    "start_header_id",
    "end_header_id",
    "eot_id",
    "channel",
];

/// Names that need a colon, or a frame around them.
const ROLES: [&str; 44] = [
    "system",
    "system prompt",
    "system message",
    "system instruction",
    "system instructions",
    "system override",
    "system note",
    "developer",
    "developer message",
    "developer prompt",
    "developer instructions",
    "user",
    "user message",
    "user prompt",
    "human",
    "assistant",
    "assistant message",
    "ai",
    "ai assistant",
    "new instruction",
    "new instructions",
    "new system prompt",
    "instruction",
    "instructions",
    "response",
    "input",
    "système",
    "utilisateur",
    "sistema",
    "usuario",
    "usuário",
    "utente",
    "asistente",
    "assistente",
    "benutzer",
    "assistent",
    "система",
    "пользователь",
    "ассистент",
    "系统",
    "系統",
    "用户",
    "助手",
    "システム",
];

/// Roles that a frame makes plain, with no colon.
const FRAMED: [&str; 7] = [
    "system",
    "system prompt",
    "system message",
    "system instructions",
    "developer",
    "developer message",
    "assistant",
];

/// Names that only headings make roles.
const HEADINGS: [&str; 4] = ["instruction", "instructions", "response", "input"];

/// Words before a framed role that say where it begins or ends.
const EDGES: [&str; 6] = ["begin", "end", "begin of", "end of", "start of", "beginning of"];

static TOKEN_FINDER: LazyLock<Option<AhoCorasick>> = LazyLock::new(|| {
    AhoCorasick::builder()
        .ascii_case_insensitive(true)
        .match_kind(MatchKind::LeftmostLongest)
        .kind(Some(AhoCorasickKind::DFA))
        .build(TOKENS.iter().chain(&STROKES).chain(&OPENERS))
        .ok()
});

/// Finds control tokens and roles, in the order in which they stand: the first [`CONTROLS_MAX`] of each kind.
/// Linear in the length of the text: of each line and behind each opening only so much is looked at.
pub fn find(text: &str) -> Vec<Control> {
    let mut found = tokens(text);
    let roles: Vec<_> = roles(text)
        .filter(|role| !found.iter().any(|token| overlap(&token.span, &role.span)))
        .take(CONTROLS_MAX)
        .collect();
    found.extend(roles);
    found.sort_by_key(|control| control.span.start);
    found
}

fn overlap(one: &Range<usize>, other: &Range<usize>) -> bool {
    one.start < other.end && other.start < one.end
}

/// The start of a text, at most so many bytes of it.
fn start(text: &str, len: usize) -> &str {
    let cut = (0..=len.min(text.len())).rev().find(|cut| text.is_char_boundary(*cut));
    text.get(..cut.unwrap_or(0)).unwrap_or_default()
}

// === tokens ===

fn tokens(text: &str) -> Vec<Control> {
    let mut found: Vec<Control> = Vec::new();
    let Some(finder) = TOKEN_FINDER.as_ref() else { return found };
    // Instructions were seen: what is struck through later ends their answers.
    let mut turns = false;
    for hit in finder.find_iter(text) {
        if found.len() >= CONTROLS_MAX {
            break;
        }
        let number = hit.pattern().as_usize();
        let rest = text.get(hit.end()..).unwrap_or_default();
        let token = |end: usize, name: &str| Control {
            kind: ControlKind::Token,
            span: hit.start()..end,
            name: name.to_owned(),
        };
        if let Some(name) = TOKENS.get(number) {
            turns |= number < 4;
            found.push(token(hit.end(), name));
        } else if let Some(name) = STROKES.get(number - TOKENS.len()) {
            if opens_turn(rest) || (turns && name.starts_with("</")) {
                found.push(token(hit.end(), name));
            }
        } else if let Some(len) = barred(rest, text.get(hit.range()) == Some("[|")) {
            let end = hit.end() + len;
            found.push(token(end, text.get(hit.start()..end).unwrap_or_default()));
        }
    }
    found
}

/// Bytes of a word and the bar that closes it.
fn barred(rest: &str, bracket: bool) -> Option<usize> {
    if !rest.starts_with(|letter: char| letter.is_alphanumeric() || letter == ' ') {
        return None;
    }
    let window = start(rest, WORD_MAX + 4);
    let (at, closer) = CLOSERS
        .iter()
        .filter(|closer| closer.ends_with(']') == bracket)
        .filter_map(|closer| Some((window.find(closer)?, closer)))
        .min_by_key(|(at, _)| *at)?;
    let word = window.get(..at)?;
    let known = WORDS.iter().any(|known| known.eq_ignore_ascii_case(word.trim()));
    let plain = |letter: char| letter.is_alphanumeric() || "_-./:▁".contains(letter);
    let is_word = word.len() > 1 && word.chars().all(plain) && word.contains(char::is_alphabetic);
    (known || (is_word && !bracket)).then_some(at + closer.len())
}

/// Whether a text goes on with what a template writes where a turn begins.
fn opens_turn(rest: &str) -> bool {
    let rest = rest.trim_start();
    let rest = rest.strip_prefix("<s>").unwrap_or(rest).trim_start();
    let window = start(rest, LINE_MAX);
    let tokens = ["[INST]", "<<SYS>>", "[SYSTEM_PROMPT]", "[AVAILABLE_TOOLS]", "<|", "<｜"];
    tokens.iter().any(|token| window.starts_with(token)) || role(window).is_some()
}

// === roles ===

fn roles(text: &str) -> impl Iterator<Item = Control> {
    let is_end = |letter| matches!(letter, '\n' | '\r' | '\u{85}' | '\u{2028}' | '\u{2029}');
    let mut at = 0;
    text.split_inclusive(is_end).filter_map(move |line| {
        let from = at;
        at += line.len();
        let (span, name) = role(start(line, LINE_MAX))?;
        let span = from + span.start..from + span.end;
        Some(Control { kind: ControlKind::Role, span, name })
    })
}

/// The role that a line begins with.
fn role(line: &str) -> Option<(Range<usize>, String)> {
    let is_frame = |letter: char| letter.is_whitespace() || "#*_`\"'>-=~[({<|/【".contains(letter);
    let inner = line.trim_start_matches(is_frame);
    let start = line.len() - inner.len();
    let frame = line.get(..start)?.trim_start();
    if !inner.starts_with(char::is_alphabetic) || frame.chars().count() > FRAME_MAX {
        return None;
    }
    let edge = longest(inner, &EDGES).and_then(|(len, _)| Some((len, inner.get(len..)?)));
    let edge = edge.filter(|(_, rest)| rest.starts_with([' ', '_', '-']));
    let skipped = edge.map_or(0, |(len, _)| len + 1);
    let named = inner.get(skipped..)?;
    let (len, name) = longest(named, &ROLES)?;
    let behind = named.get(len..)?;
    if behind.starts_with(|letter: char| letter.is_alphanumeric() || letter == '_') {
        return None;
    }
    let closing = behind.trim_start_matches(|letter: char| " \t*_`\"'>])}|-=~#】".contains(letter));
    let closed = behind.get(..behind.len() - closing.len())?;
    let colon = closing.starts_with([':', '：']);
    let heading = frame.starts_with("##");
    let ends = closing.trim().is_empty();
    let framed = FRAMED.contains(&name) && is_framed(frame, closed);
    let is_role = match HEADINGS.contains(&name) {
        _ if edge.is_some() => {
            FRAMED.contains(&name) && name.contains(' ') && (ends || colon || framed)
        }
        true => heading && (colon || ends),
        false => colon || framed || (heading && ends),
    };
    let colon = if colon { closing.chars().next().map_or(0, char::len_utf8) } else { 0 };
    let end = start + skipped + len + closed.trim_end().len() + colon;
    let from = start - frame.len();
    let edge = inner.get(..skipped)?.to_lowercase();
    is_role.then(|| (from..end, format!("{edge}{name}")))
}

/// Whether what stands around a name closes what it opened.
fn is_framed(frame: &str, closed: &str) -> bool {
    let pairs = [('[', ']'), ('<', '>'), ('{', '}'), ('(', ')'), ('【', '】')];
    let paired = pairs.iter().any(|(open, close)| {
        frame.trim_end_matches('/').ends_with(*open) && closed.starts_with(*close)
    });
    let ruled = |text: &str| ["---", "===", "***", "###"].iter().any(|rule| text.contains(rule));
    paired || (ruled(frame) && ruled(closed))
}

/// The longest of the names that a text begins with, whatever the case; and its bytes in the text.
fn longest<'n>(text: &str, names: &[&'n str]) -> Option<(usize, &'n str)> {
    let first = text.as_bytes().first()?.to_ascii_lowercase();
    names
        .iter()
        // Most lines are passed over here.
        .filter(|name| !first.is_ascii() || name.as_bytes().first() == Some(&first))
        .filter_map(|name| Some((begins(text, name)?, *name)))
        .max_by_key(|(len, _)| *len)
}

/// Bytes of the text that are this name.
fn begins(text: &str, name: &str) -> Option<usize> {
    let mut letters = text.chars();
    for wanted in name.chars() {
        let letter = letters.next()?;
        let is_space = wanted == ' ' && matches!(letter, '_' | '-' | '\t');
        if small(letter) != wanted && !is_space {
            return None;
        }
    }
    Some(text.len() - letters.as_str().len())
}

fn small(letter: char) -> char {
    if letter.is_ascii() {
        letter.to_ascii_lowercase()
    } else {
        letter.to_lowercase().next().unwrap_or(letter)
    }
}

#[cfg(test)]
#[path = "control_tests.rs"]
mod tests;
