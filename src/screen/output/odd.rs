//! Looks for text that no language has: words of letters that never stand together, and letters of many scripts
//! within the same words. Words that exist but make no sense together are not its business.
//!
//! Both are levels that each finding raises and all else lowers, so that only a dense stretch counts.

use unicode_normalization::char::decompose_canonical;

/// What a word that no language has adds, what another takes away, and what is too much: at 60 in 100 such
/// words that is after some 160 words. In texts of 27 languages they are at most 1 in 200; in text turned by half
/// the alphabet, which callers ask for, 36 in 100, which never adds up.
const ODD_WORD: u32 = 11;
const WORD: u32 = 9;
const WORDS_MOST: u32 = 480;
/// Different ones among them, lest it be one name of a function over and over; at most 64 are told apart.
const WORDS_DIFFERENT: u32 = 16;
/// Letters between two changes of script within words that make up for one, and what is too much: two dozen more
/// than that.
const LETTERS: u32 = 24;
const CHANGES_MOST: u32 = 24 * LETTERS;
/// Scripts that must take part.
const SCRIPTS_LEAST: u32 = 3;
/// Shortest word that is judged, and the most consonants in a row that words have.
const WORD_LEAST: u32 = 4;
const CONSONANTS_MOST: u32 = 5;
/// For each letter those that (nearly) never follow it: in less than 1 in 2,500 words of running text in each of
/// 27 languages written in Latin letters, accents aside. Computed from the lists of words and their frequencies
/// of the Python package wordfreq.
const NEVER: [u32; 26] = [
    0x0, 0x818020, 0xC08068, 0x810000, 0x0, 0xE19406, 0x810004, 0x818020, 0x0, 0x810000, 0x818060,
    0x800000, 0xC10000, 0x800000, 0x0, 0x810002, 0x3EF_FFFF, 0x0, 0x800000, 0x10000, 0x10000,
    0xC11000, 0xE11262, 0x3E7_3EEA, 0x810000, 0x810020,
];

/// The word that is being read, and the levels.
#[derive(Clone, Debug, Default)]
pub(super) struct Odd {
    word: Latin,
    script: u8,
    words: u32,
    /// A bit for each class of words that raised the level.
    kinds: u64,
    changes: u32,
    /// A bit for each script that took part in a change.
    scripts: u64,
    judged: u64,
    odd: u64,
}

/// A word of Latin letters.
#[derive(Clone, Copy, Debug, Default)]
struct Latin {
    len: u32,
    hash: u32,
    /// The last letter, from 0; none behind a letter that has no plain one.
    last: Option<u8>,
    vowels: u32,
    consonants: u32,
    odd: bool,
    /// It began after a space and has no capitals but the first: not a name in code.
    plain: bool,
    /// The character before lets a word begin.
    may_begin: bool,
}

impl Odd {
    pub(super) fn new() -> Self {
        Self { word: Latin { may_begin: true, ..Latin::default() }, ..Self::default() }
    }

    /// Takes the next character.
    pub(super) fn push(&mut self, ch: char) {
        let script = script(ch);
        if script > 0 {
            self.changes = self.changes.saturating_sub(1);
            if differ(script, self.script) {
                self.changes = (self.changes + LETTERS).min(2 * CHANGES_MOST);
                self.scripts |= (1 << script) | (1 << self.script);
            }
            if self.changes == 0 {
                self.scripts = 0;
            }
        }
        self.script = script;
        if script == LATIN {
            self.word.letter(ch);
        } else {
            self.end(ch);
        }
    }

    fn end(&mut self, ch: char) {
        let word = self.word;
        let may_begin =
            ch.is_whitespace() || matches!(ch, '"' | '\'' | '(' | '“' | '‘' | '«' | '„');
        self.word = Latin { may_begin, ..Latin::default() };
        let ends = may_begin || matches!(ch, '.' | ',' | ';' | '!' | '?' | ')' | '”' | '’' | '»');
        if word.len < WORD_LEAST || !word.plain || !ends {
            return;
        }
        self.judged += 1;
        if word.odd || (word.vowels == 0 && word.len > WORD_LEAST) {
            self.odd += 1;
            self.words = (self.words + ODD_WORD).min(2 * WORDS_MOST);
            self.kinds |= 1 << (word.hash.wrapping_mul(0x85EB_CA6B) >> 26);
        } else {
            self.words = self.words.saturating_sub(WORD);
        }
        if self.words == 0 {
            self.kinds = 0;
        }
    }

    /// Is it no text any more?
    pub(super) fn is_gibberish(&self) -> bool {
        let mixed = self.changes >= CHANGES_MOST && self.scripts.count_ones() >= SCRIPTS_LEAST;
        mixed || (self.words >= WORDS_MOST && self.kinds.count_ones() >= WORDS_DIFFERENT)
    }

    /// Share of words that no language has, among those that could be judged.
    pub(super) fn share(&self) -> f32 {
        if self.judged == 0 { 0.0 } else { (self.odd as f64 / self.judged as f64) as f32 }
    }
}

impl Latin {
    fn letter(&mut self, ch: char) {
        if self.len == 0 {
            self.plain = self.may_begin;
        } else {
            self.plain &= !ch.is_uppercase();
        }
        self.len = self.len.saturating_add(1);
        self.hash = (self.hash ^ u32::from(ch)).wrapping_mul(0x9E37_79B1).rotate_left(9);
        let letter =
            u8::try_from(plain(ch)).ok().filter(u8::is_ascii_lowercase).map(|at| at - b'a');
        if let (Some(last), Some(letter)) = (self.last, letter) {
            let never = NEVER.get(usize::from(last)).copied().unwrap_or(0);
            self.odd |= never & (1 << letter) != 0;
        }
        self.last = letter;
        // A letter of its own may be a vowel.
        if letter.is_none_or(|letter| b"aeiouy".contains(&(letter + b'a'))) {
            self.vowels = self.vowels.saturating_add(1);
            self.consonants = 0;
        } else {
            self.consonants = self.consonants.saturating_add(1);
            self.odd |= self.consonants > CONSONANTS_MOST;
        }
    }
}

/// The lower case letter without its accents.
fn plain(ch: char) -> char {
    let mut first = None;
    if !ch.is_ascii() {
        decompose_canonical(ch, |part| first = first.or(Some(part)));
    }
    first.unwrap_or(ch).to_ascii_lowercase()
}

const LATIN: u8 = 1;
const GREEK: u8 = 2;
const CYRILLIC: u8 = 3;
const ARMENIAN: u8 = 4;
const HEBREW: u8 = 5;
const GEORGIAN: u8 = 20;

/// The number of a letter's script, from 1; 0 for what is no letter, or of a rare script. Ideographs and kana
/// are one, and each script of India has its own.
fn script(ch: char) -> u8 {
    match ch {
        'a'..='z' | 'A'..='Z' => LATIN,
        '\0'..='\u{BF}' | '×' | '÷' => 0,
        '\u{C0}'..='\u{24F}' | '\u{1E00}'..='\u{1EFF}' => LATIN,
        '\u{370}'..='\u{3FF}' | '\u{1F00}'..='\u{1FFF}' => GREEK,
        '\u{400}'..='\u{52F}' => CYRILLIC,
        '\u{531}'..='\u{58F}' => ARMENIAN,
        '\u{590}'..='\u{5FF}' => HEBREW,
        '\u{600}'..='\u{6FF}' | '\u{750}'..='\u{77F}' => 6,
        '\u{900}'..='\u{DFF}' => 7 + ((u32::from(ch) - 0x900) / 0x80) as u8,
        '\u{E00}'..='\u{EFF}' => 17,
        '\u{F00}'..='\u{FFF}' => 18,
        '\u{1000}'..='\u{109F}' => 19,
        '\u{10A0}'..='\u{10FF}' => GEORGIAN,
        '\u{1100}'..='\u{11FF}' | '\u{AC00}'..='\u{D7AF}' => 21,
        '\u{1200}'..='\u{137F}' => 22,
        '\u{1780}'..='\u{17FF}' => 23,
        '\u{3041}'..='\u{30FF}' | '\u{3400}'..='\u{9FFF}' => 24,
        _ => 0,
    }
}

/// Do two letters side by side have scripts that no language mixes within words? Latin names stand without
/// spaces in most scripts, but not in those that are written like Latin. Greek letters are often signs.
fn differ(one: u8, other: u8) -> bool {
    let like_latin = |script| matches!(script, CYRILLIC | ARMENIAN | HEBREW | GEORGIAN);
    if one == 0 || other == 0 || one == other || one == GREEK || other == GREEK {
        return false;
    }
    let latin = one == LATIN || other == LATIN;
    !latin || like_latin(one) || like_latin(other)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> (bool, f32) {
        let mut odd = Odd::new();
        let mut ever = false;
        text.chars().for_each(|ch| {
            odd.push(ch);
            ever |= odd.is_gibberish();
        });
        (ever, odd.share())
    }

    fn letters(seed: u32) -> impl FnMut(u32) -> char {
        let mut state = seed;
        move |from| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (b'a' + ((state >> 16) % from) as u8) as char
        }
    }

    #[test]
    fn words_of_any_letters_are_gibberish() {
        let mut next = letters(7);
        let text: String = (0..2000).map(|at| if at % 7 == 6 { ' ' } else { next(26) }).collect();
        let (gibberish, share) = read(&text);
        assert!(gibberish && share > 0.4, "{share}");
        // In code and in blobs they are not.
        assert!(!read(&text.replace(' ', "_")).0);
        assert!(!read(&text.to_uppercase()).0);
    }

    #[test]
    fn scripts_within_words_are_gibberish() {
        let salad = "ertниявा내ใหุстрой한ность הםקוב ინგულиенแบบ tionσεις ანტიของной مشрад ";
        assert!(read(&salad.repeat(6)).0);
    }

    #[test]
    fn languages_are_not() {
        let texts = [
            "Wstrząsnęło nim bezwzględnie źdźbło trawy, chrząszcz brzmi w trzcinie w Szczebrzeszynie.",
            "Strč prst skrz krk. Čtvrtek, zmrzlina, vlk, scvrkls, čtvrtsmršť.",
            "Selbstverständlich ist die Rechtschreibung der Schifffahrt schwierig: Angstschweiß und Strumpfhosen.",
            "Nghiêng nghiêng, những người Việt Nam được nghỉ; không thương lượng.",
            "Llanfairpwllgwyngyll: mae'n bwysig bod cwm, hwn, tŷ a thrwy'r flwyddyn.",
            "使用GPU加速训练，α粒子和β射线，Яндекс公司的API，日本語のテスト、한국어도 있다.",
            "GPUは速い。Linuxのカーネル、Rust言語、ПК、ΔT、Wi-Fi対応。",
            "sqrt 0.25 0.5 and sqrt 0.5 0.7",
            "في الGPU وال API العربية والLinux نظام",
            "Hello, привет, γειά, שלום, مرحبا, नमस्ते, สวัสดี, 你好, こんにちは, 안녕하세요, გამარჯობა, բարև, ሰላም",
        ];
        for text in texts {
            assert!(!read(&format!("{text} ").repeat(60)).0, "{text}");
        }
        let said = "When the water had gone down, people came back to their houses and looked at what was \
            left of them. Some had lost everything; others found their chairs standing where they had left them, \
            only covered with mud. Nobody talked much that afternoon, because there was nothing that could have \
            been said which everyone did not know already. ";
        let turned: String = said
            .chars()
            .map(|ch| match ch {
                'a'..='m' | 'A'..='M' => (ch as u8 + 13) as char,
                'n'..='z' | 'N'..='Z' => (ch as u8 - 13) as char,
                _ => ch,
            })
            .collect();
        let (gibberish, share) = read(&turned.repeat(20));
        assert!(!gibberish && share > 0.2, "{share}");
    }
}
