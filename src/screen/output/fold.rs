//! What of a character counts when texts are compared by their letters alone. It knows nothing of secrets.
//!
//! Case, accents, width, ligatures, look-alike letters of other scripts, spaces and punctuation are gone
//! afterwards. All is done character by character, so that a stream may be cut anywhere.

use super::twins;
use unicode_normalization::char::{canonical_combining_class, decompose_compatible};

/// Units that a plain letter weighs. Others weigh by how much of a word they are, see [`weight`].
pub(super) const LETTER: u32 = 20;
/// Units that a word weighs: five plain letters.
pub(super) const WORD: u32 = 5 * LETTER;
/// Those outside the basic plane share the codes of the surrogates, which no character has.
const BEYOND: u16 = 0xD800;
/// Stretches an Arabic word and means nothing.
const TATWEEL: char = '\u{640}';

/// Hands on what counts of a character: no code, one, or (for ligatures and the like) some. A code is a lower
/// case letter without its accents, a digit, or one of `@` and `$`, which only some readings take for letters.
pub(super) fn fold(ch: char, mut each: impl FnMut(u16)) {
    match ch {
        'a'..='z' | '0'..='9' | '@' | '$' => each(ch as u16),
        'A'..='Z' => each(ch.to_ascii_lowercase() as u16),
        '\0'..='\u{7f}' => {}
        // Most of the unified ideographs, and nothing to take apart.
        '\u{4e00}'..='\u{9fff}' => each(ch as u16),
        _ => match twins::shown_as(ch) {
            Some(letter) => fold(letter, each),
            None => decompose_compatible(ch, |part| fold_part(part, &mut each)),
        },
    }
}

fn fold_part(part: char, each: &mut impl FnMut(u16)) {
    // Marks of class 0 are vowels in many scripts, the others accents.
    let counts = part.is_alphanumeric() && canonical_combining_class(part) == 0;
    if !counts || part == TATWEEL {
        return;
    }
    for lower in part.to_lowercase() {
        let lower = if lower == 'ς' { 'σ' } else { lower };
        match twins::spelled(lower) {
            Some(letters) => letters.bytes().for_each(|letter| each(u16::from(letter))),
            None if canonical_combining_class(lower) == 0 => each(code(lower)),
            None => {}
        }
    }
}

fn code(ch: char) -> u16 {
    let at = u32::from(ch);
    u16::try_from(at).unwrap_or(BEYOND | (at & 0x7FF) as u16)
}

/// How much of a word a letter is, in units. Languages differ in how many letters a word has: an ideograph is
/// 2.5 letters, so that 8 words are 16 of them; a kana 2; a Thai, Lao, Burmese or Khmer letter 1.25; a part of
/// a Korean syllable 0.8.
pub(super) fn weight(code: u16) -> u32 {
    match code {
        0..=0x0DFF => LETTER,
        0x0E00..=0x0EFF | 0x1000..=0x109F | 0x1780..=0x17FF => LETTER * 5 / 4,
        0x1100..=0x11FF => LETTER * 4 / 5,
        0x3040..=0x30FF => LETTER * 2,
        0x3400..=0x9FFF | 0xD800..=0xDFFF | 0xF900..=0xFAFF => LETTER * 5 / 2,
        _ => LETTER,
    }
}

/// Is it a digit or a sign, and no letter?
pub(super) fn is_figure(code: u16) -> bool {
    matches!(code, 0x30..=0x39 | 0x40 | 0x24)
}

/// Makes those one that can't be told apart on a screen.
pub(super) fn merged(code: u16) -> u16 {
    if code == u16::from(b'l') { u16::from(b'i') } else { code }
}

/// Reads figures as the letters they stand for (`l33t`), and merges.
pub(super) fn leet(code: u16) -> u16 {
    let letter = match u8::try_from(code) {
        Ok(b'0') => b'o',
        Ok(b'1' | b'l') => b'i',
        Ok(b'3') => b'e',
        Ok(b'4' | b'@') => b'a',
        Ok(b'5' | b'$') => b's',
        Ok(b'7') => b't',
        Ok(b'8') => b'b',
        Ok(b'9') => b'g',
        _ => return code,
    };
    u16::from(letter)
}

/// Turns a Latin letter by half the alphabet.
pub(super) fn rot13(code: u16) -> u16 {
    match code {
        0x61..=0x6D => code + 13,
        0x6E..=0x7A => code - 13,
        _ => code,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folded(text: &str) -> String {
        let mut out = Vec::new();
        text.chars().for_each(|ch| fold(ch, |code| out.push(code)));
        String::from_utf16_lossy(&out)
    }

    #[test]
    fn what_looks_or_reads_the_same_folds_to_the_same() {
        let cases = [
            ("Grüße, Ørsted & Łódź!", "grusseorstediodz"),
            ("GRU\u{308}SSE", "grusse"),
            ("ﬁne ½ Ⅷ ①", "fine12viii1"),
            ("Ｆｕｌｌ　Ｗｉｄｔｈ", "fuiiwidth"),
            ("𝐁𝗼𝓵𝕕 Ⓐ 🅱 🄲 🇩", "boidabcd"),
            ("ѕесrеt", "secret"),
            ("z\u{200b}e\u{200d}r\u{fe0f}o", "zero"),
            ("ᴄᴀᴘs", "caps"),
            ("\u{e0074}\u{e0061}\u{e0067}", "tag"),
            ("İstanbul ıstanbul", "istanbuiistanbui"),
            ("ΣΊΣΥΦΟΣ σίσυφος", "σiσuφoσσiσuφoσ"),
            ("محـــمد مُحَمَّد", "محمدمحمد"),
            ("ｶﾞ が", "カか"),
            ("你好，世界。", "你好世界"),
        ];
        for (text, expected) in cases {
            let merged: String = folded(text).replace('l', "i");
            assert_eq!(merged, expected, "{text}");
        }
        assert_eq!(folded("한"), folded("\u{1112}\u{1161}\u{11ab}"));
        assert_eq!(folded("นำ้"), folded("น\u{e4d}า"));
    }

    #[test]
    fn sixteen_ideographs_and_forty_letters_are_eight_words() {
        let weigh = |text: &str| {
            let mut sum = 0;
            text.chars().for_each(|ch| fold(ch, |code| sum += weight(code)));
            sum
        };
        assert_eq!(weigh(&"a".repeat(40)), 8 * WORD);
        assert_eq!(weigh(&"語".repeat(16)), 8 * WORD);
        assert_eq!(weigh(&"\u{2a6a5}".repeat(16)), 8 * WORD);
        assert_eq!(weigh(&"の".repeat(20)), 8 * WORD);
        assert_eq!(weigh(&"ก".repeat(32)), 8 * WORD);
        assert_eq!(weigh(&"한".repeat(50)), 24 * WORD);
    }

    #[test]
    fn figures_read_as_letters() {
        let read = |text: &str| {
            let mut out = Vec::new();
            text.chars().for_each(|ch| fold(ch, |code| out.push(leet(code))));
            String::from_utf16_lossy(&out)
        };
        assert_eq!(read("L33T $p3@k 1S 7h15"), read("leet speak is this"));
        assert!(is_figure(u16::from(b'7')) && !is_figure(u16::from(b'z')));
        let turned: Vec<u16> = "nop".bytes().map(|b| rot13(u16::from(b))).collect();
        assert_eq!(String::from_utf16_lossy(&turned), "abc");
    }
}
