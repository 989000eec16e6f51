//! Letters that look like others: what a reader takes for a Latin letter and a matcher does not.
//!
//! The pairs were chosen by eye, from what texts are disguised with. They are few on purpose: a letter that
//! only resembles a Latin one is told apart from one that is the same to the eye.
//!
//! Letters are read as Latin word by word, so that genuine Russian or Greek stays what it is:
//! - in a word that has Latin letters, unless more of its letters look like no Latin one;
//! - in a word all of whose letters are the same to the eye as Latin ones, if on its line the nearest word
//!   before it and the nearest behind it are Latin (one of them may be missing, not both). That reads a
//!   Russian "оса" between English words as Latin too, which costs less than to miss a disguise;
//! - drawn letters, where they are half of a word or three of it: phonetic spellings have fewer;
//! - letters upside down, where a word has two that no alphabet uses, and then in all words of its line that
//!   have any. The other letters of such a word are turned too; it still has to be read backwards.

use super::map::Map;
use std::{ops::Range, sync::LazyLock};

/// Words of one line that are looked at together. Longer lines are looked at in parts.
const WORDS_MAX: usize = 512;

/// How a letter resembles a Latin one. It decides where it may be read as that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Look {
    /// Of another script or for phonetics, and the same to the eye.
    Same,
    /// Of another script, and alike: only in a word that has Latin letters too.
    Alike,
    /// A Latin letter drawn otherwise: small capitals, white on a black ground.
    Drawn,
    /// A Latin letter upside down.
    Turned,
    /// A Latin letter upside down, or a letter of some living alphabet: only beside the others.
    TurnedToo,
}

/// Same to the eye. The letters of the first text stand for those of the second.
const SAME: [(&str, &str); 8] = [
    // Cyrillic.
    ("аеорсухіјѕһԁԛԝӏѵАВЕЅІЈКМНОРСТУХԌԚԜҮѴ", "aeopcyxijshdqwlvABESIJKMHOPCTYXGQWYV"),
    // Greek.
    ("οανρυΑΒΕΖΗΙΚΜΝΟΡΤΥΧ", "oavpuABEZHIKMNOPTYX"),
    // Armenian.
    ("օոսհզցյԼՏՍՕ", "onuhqgjLSUO"),
    // Cherokee.
    ("ᎠᎡᎢᎥᎪᎫᎬᎳᎷᎻᎽᏀᏃᏏᏒᏔᏚᏙᏞᏟᏢᏦᏧᏴ", "DRTIAJEWMHYGZBRWSVLCPKDB"),
    // Coptic.
    ("ⲟⲥⲣⲭⲞⲤⲢⲬⲎⲔⲘⲚⲦⲀⲂⲈ", "ocpxOCPXHKMNTABE"),
    // Lisu.
    ("ꓐꓑꓒꓓꓔꓖꓗꓙꓚꓜꓝꓟꓠꓡꓢꓣꓦꓧꓪꓫꓬꓮꓰꓲꓳꓴ", "BPDDTGKJCZFMNLSRVHWXYAEIOU"),
    // Canadian syllabics.
    ("ᗅᗩᗷᑕᗪᖴᕼᒍᒪᗰᑎᑭᖇᔕᑌᐯᗯᘔ", "AABCDFHJLMNPRSUVWZ"),
    // Phonetics.
    ("ɡɑ", "ga"),
];

/// Alike. The letters of the first text stand for those of the second.
const ALIKE: [(&str, &str); 3] = [
    // Cyrillic.
    ("вгиклмнптшщьяёїґєѐѝўқңҝӓӧЁЇГЯИШП", "bruknmhntwwbreireeuykhkaoEIRRNWN"),
    // Greek.
    ("ικτηχγωεσςπβϳάέίόύϊϋώή", "iktnxyweocnbjaeiouiuwn"),
    // Armenian.
    ("աեքւմ", "wtplu"),
];

/// Drawn otherwise.
const DRAWN: [(&str, &str); 3] = [
    ("ᴀʙᴄᴅᴇꜰɢʜɪᴊᴋʟᴍɴᴏᴘʀꜱᴛᴜᴠᴡʏᴢ", "abcdefghijklmnoprstuvwyz"),
    ("🅐🅑🅒🅓🅔🅕🅖🅗🅘🅙🅚🅛🅜🅝🅞🅟🅠🅡🅢🅣🅤🅥🅦🅧🅨🅩", "abcdefghijklmnopqrstuvwxyz"),
    ("🅰🅱🅲🅳🅴🅵🅶🅷🅸🅹🅺🅻🅼🅽🅾🅿🆀🆁🆂🆃🆄🆅🆆🆇🆈🆉", "abcdefghijklmnopqrstuvwxyz"),
];

/// Upside down.
const TURNED: (&str, &str) = ("ɐɟƃɥᴉɾʞɯɹʇʍʎⱯℲꞀ", "afghijkmrtwyAFL");

/// Upside down, or letters of Turkish, Azerbaijani and several African languages.
const TURNED_TOO: (&str, &str) = ("ɔǝəʌıƎƆ", "ceeviEC");

/// All of them, sorted by the letter.
static TABLE: LazyLock<Vec<(char, Look, char)>> = LazyLock::new(|| {
    let mut table = Vec::new();
    let mut add = |look, (these, those): (&'static str, &'static str)| {
        table.extend(these.chars().zip(those.chars()).map(|(this, that)| (this, look, that)));
    };
    SAME.into_iter().for_each(|pair| add(Look::Same, pair));
    ALIKE.into_iter().for_each(|pair| add(Look::Alike, pair));
    DRAWN.into_iter().for_each(|pair| add(Look::Drawn, pair));
    add(Look::Turned, TURNED);
    add(Look::TurnedToo, TURNED_TOO);
    table.sort_unstable_by_key(|(letter, ..)| *letter);
    table
});

/// The Latin letter that this one resembles, and how. `None` for all others, and for Latin ones.
pub(super) fn look(letter: char) -> Option<(Look, char)> {
    // Nothing between these looks like Latin: they are most of what is written in other scripts.
    if letter < '\u{131}' || ('\u{2e80}'..='\u{a4cf}').contains(&letter) {
        return None;
    }
    let at = TABLE.binary_search_by_key(&letter, |(this, ..)| *this).ok()?;
    TABLE.get(at).map(|(_, look, latin)| (*look, *latin))
}

/// Whether a letter is Latin, with an accent or without.
pub(super) fn is_latin(letter: char) -> bool {
    match letter {
        'a'..='z' | 'A'..='Z' => true,
        '\u{aa}' | '\u{ba}' | '\u{d7}' | '\u{f7}' => false,
        '\u{c0}'..='\u{2af}' | '\u{1e00}'..='\u{1eff}' => true,
        '\u{1d00}'..='\u{1d25}' | '\u{2c60}'..='\u{2c7f}' | '\u{a720}'..='\u{a7ff}' => true,
        _ => false,
    }
}

/// What an upright letter is when the word that it stands in is upside down.
pub(super) fn turn(letter: char) -> char {
    match letter {
        'n' => 'u',
        'u' => 'n',
        'b' => 'q',
        'q' => 'b',
        'd' => 'p',
        'p' => 'd',
        'M' => 'W',
        'W' => 'M',
        other => other,
    }
}

/// A text that was made Latin.
pub(super) struct Latin {
    pub(super) text: String,
    pub(super) map: Map,
    /// Letters that were changed.
    pub(super) letters: u32,
}

/// Reads letters as Latin ones where they are meant so. `None` if there are none.
pub(super) fn latinize(text: &str) -> Option<Latin> {
    let mut letters = text.char_indices().filter(|(_, letter)| look(*letter).is_some());
    let (first, _) = letters.next()?;
    // Words on the same line decide about it.
    let line = text.get(..first)?.rfind('\n').map_or(0, |at| at + 1);
    let mut latin = Latin { text: String::new(), map: Map::default(), letters: 0 };
    let mut words = Vec::new();
    let mut word: Option<Word> = None;
    let mut written = 0;
    for (at, letter) in text.get(line..)?.char_indices() {
        let at = line + at;
        if is_word(letter) {
            word.get_or_insert_with(|| Word::at(at)).add(letter);
            continue;
        }
        words.extend(word.take().map(|word| word.until(at)));
        if letter == '\n' || words.len() >= WORDS_MAX {
            written = latin.read(text, written, &words);
            words.clear();
        }
    }
    words.extend(word.map(|word| word.until(text.len())));
    written = latin.read(text, written, &words);
    latin.copy(text, written..text.len());
    (latin.letters > 0).then_some(latin)
}

impl Latin {
    /// Writes the words that are not what they seem, with what stands before them; gives how far.
    fn read(&mut self, text: &str, mut written: usize, words: &[Word]) -> usize {
        // The nearest word behind each that tells what it is.
        let mut behind = None;
        let mut ways: Vec<_> = words
            .iter()
            .rev()
            .map(|word| {
                let way = word.way();
                let next = behind;
                behind = if way.tells() { Some(way) } else { behind };
                (way, next)
            })
            .collect();
        let turned = ways.iter().any(|(way, _)| *way == Way::Turned);
        let mut before: Option<Way> = None;
        for word in words {
            let Some((mut way, behind)) = ways.pop() else { break };
            if turned && word.turned > 0 {
                way = Way::Turned;
            } else if way == Way::ByNeighbours {
                let any = before.is_some() || behind.is_some();
                let latin = any && [before, behind].into_iter().flatten().all(Way::is_latin);
                way = if latin { Way::Borrowed } else { Way::Other };
            } else if way.tells() {
                before = Some(way);
            }
            if matches!(way, Way::Borrowed | Way::Drawn | Way::Turned) {
                self.copy(text, written..word.span.start);
                self.rewrite(text.get(word.span.clone()).unwrap_or_default(), way);
                written = word.span.end;
            }
        }
        written
    }

    fn copy(&mut self, text: &str, span: Range<usize>) {
        let text = text.get(span).unwrap_or_default();
        self.text.push_str(text);
        self.map.copy(text.len());
    }

    fn rewrite(&mut self, word: &str, way: Way) {
        let mut bare = false;
        for letter in word.chars() {
            let new = match (way, look(letter)) {
                (Way::Turned, Some((_, new))) => Some(new),
                (Way::Drawn | Way::Borrowed, Some((Look::Drawn, new))) => Some(new),
                (Way::Borrowed, Some((Look::Same | Look::Alike, new))) => Some(new),
                _ => None,
            };
            self.letters = self.letters.saturating_add(u32::from(new.is_some()));
            // A mark on a borrowed letter goes with the disguise.
            let new = match new {
                None if bare && is_mark(letter) => {
                    self.map.unit(letter.len_utf8(), 0);
                    continue;
                }
                None if way == Way::Turned => Some(turn(letter)),
                new => new,
            };
            bare = new.is_some_and(|new| new != letter);
            let new = new.unwrap_or(letter);
            self.text.push(new);
            if new == letter {
                self.map.copy(letter.len_utf8());
            } else {
                self.map.unit(letter.len_utf8(), new.len_utf8());
            }
        }
    }
}

/// How a word is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// As it is: Latin.
    Latin,
    /// As it is: of another script.
    Other,
    /// It has no letters.
    Nothing,
    /// As the words around it.
    ByNeighbours,
    Borrowed,
    Drawn,
    Turned,
}

impl Way {
    /// Whether it tells what the words around it are.
    fn tells(self) -> bool {
        !matches!(self, Self::Nothing | Self::ByNeighbours)
    }

    fn is_latin(self) -> bool {
        self.tells() && self != Self::Other
    }
}

/// A word's letters, counted by what they look like.
#[derive(Debug, Default)]
struct Word {
    span: Range<usize>,
    latin: usize,
    other: usize,
    same: usize,
    alike: usize,
    drawn: usize,
    /// Letters upside down, one bit for each kind; the first bit for those that are letters otherwise.
    turned: u64,
}

impl Word {
    fn at(start: usize) -> Self {
        Self { span: start..start, ..Self::default() }
    }

    fn until(mut self, end: usize) -> Self {
        self.span.end = end;
        self
    }

    fn add(&mut self, letter: char) {
        match look(letter) {
            Some((Look::Same, _)) => self.same += 1,
            Some((Look::Alike, _)) => self.alike += 1,
            Some((Look::Drawn, _)) => self.drawn += 1,
            Some((Look::Turned, upright)) => {
                self.latin += 1;
                self.turned |= 2 << (u32::from(upright) % 32);
            }
            Some((Look::TurnedToo, _)) => {
                self.latin += 1;
                self.turned |= 1;
            }
            None if is_latin(letter) => self.latin += 1,
            None if letter.is_alphabetic() => self.other += 1,
            None => {}
        }
    }

    fn way(&self) -> Way {
        let latin = self.latin + self.drawn;
        let (alike, letters) =
            (self.same + self.alike, latin + self.same + self.alike + self.other);
        if (self.turned >> 1).count_ones() >= 2 {
            Way::Turned
        } else if alike > 0 && latin > 0 && self.other <= latin {
            Way::Borrowed
        } else if self.drawn > 0 && (self.drawn * 2 >= letters || self.drawn > 2) {
            Way::Drawn
        } else if letters == 0 {
            Way::Nothing
        } else if self.same == letters {
            Way::ByNeighbours
        } else if self.other + alike > 0 {
            Way::Other
        } else {
            Way::Latin
        }
    }
}

/// Letters, digits and marks.
fn is_word(letter: char) -> bool {
    letter.is_alphanumeric() || is_mark(letter)
}

fn is_mark(letter: char) -> bool {
    ('\u{300}'..='\u{36f}').contains(&letter)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_letter_has_one_ascii_letter() {
        let pairs = SAME.iter().chain(&ALIKE).chain(&DRAWN).chain([&TURNED, &TURNED_TOO]);
        for (these, those) in pairs {
            assert_eq!(these.chars().count(), those.chars().count(), "{these}");
            assert!(those.chars().all(|that| that.is_ascii_alphabetic()), "{those}");
        }
        for pair in TABLE.windows(2) {
            assert!(pair[0].0 < pair[1].0, "{} stands twice", pair[1].0);
        }
        for (letter, ..) in TABLE.iter() {
            assert!(letter.is_alphabetic() && !letter.is_ascii(), "{letter}");
            assert!(look(*letter).is_some(), "{letter} is passed over");
        }
    }

    #[test]
    fn letters_look_like_what_a_reader_sees() {
        let cases = [
            ('о', Some((Look::Same, 'o'))),
            ('Ρ', Some((Look::Same, 'P'))),
            ('ш', Some((Look::Alike, 'w'))),
            ('ɴ', Some((Look::Drawn, 'n'))),
            ('ʇ', Some((Look::Turned, 't'))),
            ('ə', Some((Look::TurnedToo, 'e'))),
            ('ж', None),
            ('λ', None),
            ('o', None),
            ('é', None),
            ('中', None),
        ];
        for (letter, expected) in cases {
            assert_eq!(look(letter), expected, "{letter}");
        }
    }

    #[test]
    fn turning_twice_gives_the_letter_back() {
        for letter in ('a'..='z').chain('A'..='Z') {
            assert_eq!(turn(turn(letter)), letter);
        }
        assert_eq!("uou".chars().map(turn).collect::<String>(), "non");
    }

    #[test]
    fn latin_letters_are_told_from_others() {
        for letter in "azAZéßøłđŒẽɐꜰ".chars() {
            assert!(is_latin(letter), "{letter}");
        }
        for letter in "жλ中1×_ªא".chars() {
            assert!(!is_latin(letter), "{letter}");
        }
    }
}
