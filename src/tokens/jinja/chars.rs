//! What Python knows of characters, as far as it can be told without its tables; else an error.

use super::Stop;

fn unknown() -> Stop {
    Stop::failed("what Python says of this character is not known here")
}

/// Letters that are certainly in one of the Unicode categories of letters.
fn is_plain_letter(c: char) -> bool {
    matches!(u32::from(c),
        0xc0..=0xd6 | 0xd8..=0xf6 | 0xf8..=0x2af | 0x386 | 0x388..=0x38a | 0x38e..=0x3a1
        | 0x3a3..=0x3f5 | 0x400..=0x481 | 0x48a..=0x52f | 0x5d0..=0x5ea | 0x620..=0x64a
        | 0xe01..=0xe30 | 0x1e00..=0x1eff | 0x3041..=0x3096 | 0x30a1..=0x30fa | 0x4e00..=0x9fa5
        | 0xac00..=0xd7a3)
}

/// Chinese characters that are numbers to Python.
fn may_be_numeric(c: char) -> bool {
    matches!(u32::from(c), 0x3400..=0x4dbf | 0x4e00..=0x9fff | 0xf900..=0xfaff | 0x20000..=0x3ffff)
}

/// `str.isalpha` of one character.
pub(super) fn is_alpha(c: char) -> Result<bool, Stop> {
    match c {
        c if c.is_ascii() => Ok(c.is_ascii_alphabetic()),
        c if is_plain_letter(c) => Ok(true),
        c if !c.is_alphabetic() => Ok(false),
        _ => Err(unknown()),
    }
}

/// `str.isdigit`, `isdecimal` or `isnumeric` of one character.
pub(super) fn is_digit(c: char, numeric: bool) -> Result<bool, Stop> {
    match c {
        c if c.is_ascii() => Ok(c.is_ascii_digit()),
        c if !(c.is_numeric() || numeric && may_be_numeric(c)) => Ok(false),
        _ => Err(unknown()),
    }
}

/// `str.isalnum` of one character.
pub(super) fn is_alnum(c: char) -> Result<bool, Stop> {
    match c {
        c if c.is_ascii() => Ok(c.is_ascii_alphanumeric()),
        c if is_plain_letter(c) || c.is_numeric() => Ok(true),
        c if !c.is_alphanumeric() => Ok(false),
        _ => Err(unknown()),
    }
}

/// Whether all characters of a text that is not empty are of a kind.
pub(super) fn all(text: &str, kind: impl Fn(char) -> Result<bool, Stop>) -> Result<bool, Stop> {
    for c in text.chars() {
        if !kind(c)? {
            return Ok(false);
        }
    }
    Ok(!text.is_empty())
}

/// The title form of a character, which starts words.
fn titled(c: char, out: &mut String) -> Result<(), Stop> {
    match u32::from(c) {
        // Their title forms differ from their upper forms.
        0x1c4..=0x1cc | 0x1f1..=0x1f3 | 0x1f80..=0x1fff => return Err(unknown()),
        0x10d0..=0x10ff => out.push(c),
        0xdf => out.push_str("Ss"),
        _ if c.to_uppercase().count() > 1 => return Err(unknown()),
        _ => out.extend(c.to_uppercase()),
    }
    Ok(())
}

/// `str.capitalize`
pub(super) fn capitalized(text: &str) -> Result<String, Stop> {
    let mut chars = text.chars();
    let mut out = String::with_capacity(text.len());
    if let Some(first) = chars.next() {
        titled(first, &mut out)?;
        // A final sigma looks at what stands before it, so the whole is lowered.
        let lowered = text.to_lowercase();
        let first_lowered = first.to_lowercase().map(char::len_utf8).sum();
        out.push_str(lowered.get(first_lowered..).ok_or_else(unknown)?);
    }
    Ok(out)
}

fn is_cased(c: char) -> bool {
    c.is_lowercase()
        || c.is_uppercase()
        || matches!(c, '\u{1c5}' | '\u{1c8}' | '\u{1cb}' | '\u{1f2}')
}

/// `str.title`
pub(super) fn titled_words(text: &str) -> Result<String, Stop> {
    let mut out = String::with_capacity(text.len());
    let mut in_word = false;
    for c in text.chars() {
        if !in_word {
            titled(c, &mut out)?;
        } else if c == '\u{3a3}' {
            return Err(unknown());
        } else {
            out.extend(c.to_lowercase());
        }
        in_word = is_cased(c);
    }
    Ok(out)
}

/// `str.istitle`
pub(super) fn is_title(text: &str) -> bool {
    let (mut in_word, mut any) = (false, false);
    for c in text.chars() {
        if c.is_uppercase() && in_word || c.is_lowercase() && !in_word {
            return false;
        }
        in_word = is_cased(c);
        any |= in_word;
    }
    any
}

/// `str.islower` or `str.isupper`
pub(super) fn is_case(text: &str, upper: bool) -> bool {
    let wrong = |c: char| if upper { c.is_lowercase() } else { c.is_uppercase() };
    text.chars().any(is_cased) && !text.chars().any(wrong)
}

/// `str.casefold`, where it is the same as lowering.
pub(super) fn folded(text: &str) -> Result<String, Stop> {
    if text.chars().any(|c| {
        !c.is_ascii()
            && is_cased(c)
            && !matches!(u32::from(c), 0xe0..=0xf6 | 0xc0..=0xd6 | 0x410..=0x44f)
    }) {
        return Err(unknown());
    }
    Ok(text.to_lowercase())
}

/// `str.swapcase`
pub(super) fn swapped(text: &str) -> Result<String, Stop> {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\u{3a3}' => return Err(unknown()),
            c if c.is_uppercase() => out.extend(c.to_lowercase()),
            c if c.is_lowercase() => out.extend(c.to_uppercase()),
            c => out.push(c),
        }
    }
    Ok(out)
}
