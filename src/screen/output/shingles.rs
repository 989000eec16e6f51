//! Windows of some words' length over a stream of letters, each told by a rolling hash, and the set of those
//! that a text has. It knows neither what the text is nor where the letters come from.
//!
//! A window is the shortest row of letters, up to the newest, that weighs at least so much. It depends on the
//! letters alone, so that the same words have the same windows wherever they stand.

use super::fold::weight;

/// Letters that a window remembers, and so the most that it or an exact pattern can have.
pub(super) const TAIL: usize = 50;
/// Bytes without a letter after which what follows is another text.
const GAP_MAX: usize = 255;
/// Base of the rolling hash, modulo 2^64; any large odd number.
const BASE: u64 = 0x9E37_79B9_7F4A_7C15;
const BASE_INVERSE: u64 = inverse(BASE);
/// Slots that are looked at for a window. More are needed by chance hardly ever, by whoever makes texts up for it
/// always: such windows are left out.
const PROBES: usize = 256;
/// Of an entry: what else is kept beside the fingerprint.
const KIND: u32 = 0b011;
const KNOWN: u32 = 0b100;

/// The number that undoes multiplying by an odd one, by Newton's iteration.
const fn inverse(odd: u64) -> u64 {
    let (mut guess, mut round) = (odd, 0);
    while round < 6 {
        guess = guess.wrapping_mul(2u64.wrapping_sub(odd.wrapping_mul(guess)));
        round += 1;
    }
    guess
}

/// Never 0, so that rows of different lengths differ.
fn digit(code: u16) -> u64 {
    u64::from(code) + 1
}

/// The newest letters of a stream, and the window that ends with them.
#[derive(Clone, Debug)]
pub(super) struct Window {
    codes: [u16; TAIL],
    /// Bytes from the start of the letter before to each one's.
    gaps: [u8; TAIL],
    /// Letters so far; after [`TAIL`] it goes round between that and twice that.
    seen: u32,
    len: u32,
    weight: u32,
    least: u32,
    hash: u64,
    /// `BASE` to the power of `len`.
    power: u64,
    /// Where the newest letter began.
    start: usize,
}

impl Window {
    /// Windows that weigh at least `least` units.
    pub(super) fn new(least: u32) -> Self {
        let (codes, gaps, hash, power) = ([0; TAIL], [0; TAIL], 0, 1);
        Self { codes, gaps, seen: 0, len: 0, weight: 0, least, hash, power, start: 0 }
    }

    /// Takes the letter that begins at byte `start` of the stream.
    pub(super) fn push(&mut self, code: u16, start: usize) {
        let gap = start.saturating_sub(self.start);
        if gap > GAP_MAX {
            *self = Self::new(self.least);
        }
        self.start = start;
        if self.len as usize == TAIL {
            self.drop_oldest();
        }
        let at = slot(self.seen);
        if let (Some(to), Some(bytes)) = (self.codes.get_mut(at), self.gaps.get_mut(at)) {
            (*to, *bytes) = (code, gap.min(GAP_MAX) as u8);
        }
        self.seen = if self.seen + 1 == 2 * TAIL as u32 { TAIL as u32 } else { self.seen + 1 };
        self.hash = self.hash.wrapping_mul(BASE).wrapping_add(digit(code));
        self.power = self.power.wrapping_mul(BASE);
        self.len += 1;
        self.weight += weight(code);
        while self.weight >= self.least + weight(self.oldest()) {
            self.drop_oldest();
        }
    }

    fn oldest(&self) -> u16 {
        self.code(self.len.saturating_sub(1))
    }

    fn drop_oldest(&mut self) {
        let code = self.oldest();
        self.power = self.power.wrapping_mul(BASE_INVERSE);
        self.hash = self.hash.wrapping_sub(digit(code).wrapping_mul(self.power));
        self.weight = self.weight.saturating_sub(weight(code));
        self.len = self.len.saturating_sub(1);
    }

    /// The letter `back` letters before the newest, which is 0.
    fn code(&self, back: u32) -> u16 {
        self.codes.get(slot(self.seen.saturating_sub(1 + back))).copied().unwrap_or_default()
    }

    /// The same, if it is remembered.
    pub(super) fn letter(&self, back: usize) -> Option<u16> {
        (back < TAIL.min(self.seen as usize)).then(|| self.code(back as u32))
    }

    /// Where the last `letters` began.
    pub(super) fn start_of(&self, letters: usize) -> usize {
        let gap = |back| self.gaps.get(slot(self.seen.saturating_sub(1 + back))).copied();
        let before = (letters as u32).saturating_sub(1);
        let gaps = (0..before).map(|back| usize::from(gap(back).unwrap_or_default()));
        self.start.saturating_sub(gaps.sum())
    }

    /// The hash of the window, once there are letters enough for one.
    pub(super) fn full(&self) -> Option<u64> {
        (self.weight >= self.least).then_some(self.hash)
    }

    /// Letters in the window.
    pub(super) fn len(&self) -> usize {
        self.len as usize
    }

    /// Units that the window weighs.
    pub(super) fn weight(&self) -> u32 {
        self.weight
    }
}

/// Where the letter is kept before which `seen` were.
fn slot(seen: u32) -> usize {
    let seen = seen as usize;
    if seen >= TAIL { seen - TAIL } else { seen }
}

/// A set of windows, each with a kind of 0 to 3. It holds 29 bits of a window's hash: one window in some
/// hundred million is taken for another, so that several in a row have to be met.
#[derive(Clone, Debug, Default)]
pub(super) struct Table {
    slots: Box<[u32]>,
    held: usize,
}

impl Table {
    /// A set with room for so many windows.
    pub(super) fn with_room(windows: usize) -> Self {
        let size = if windows == 0 { 0 } else { windows + windows * 5 / 8 + 1 };
        Self { slots: vec![0; size].into_boxed_slice(), held: 0 }
    }

    /// Windows in the set.
    pub(super) fn len(&self) -> usize {
        self.held
    }

    /// Where the search for a hash begins, and its fingerprint in an entry.
    fn place(&self, hash: u64) -> (usize, u32) {
        let spread = (hash ^ (hash >> 32)).wrapping_mul(0xD6E8_FEB8_6659_FD93);
        let at = ((spread & 0xFFFF_FFFF) * self.slots.len() as u64) >> 32;
        // Never 0, which is an empty slot.
        (at as usize, ((spread >> 32) as u32 | 0b1000) & !(KIND | KNOWN))
    }

    /// The slot that has the hash, or the empty one where it belongs; none where all is full.
    fn slot(&mut self, hash: u64) -> Option<(&mut u32, u32)> {
        let (from, print) = self.place(hash);
        let fits = |entry: &u32| *entry == 0 || entry & !(KIND | KNOWN) == print;
        let (before, behind) = self.slots.split_at_mut_checked(from)?;
        let entry = behind.iter_mut().chain(before).take(PROBES).find(|entry| fits(entry))?;
        Some((entry, print))
    }

    /// Adds a window. One that is there keeps its kind.
    pub(super) fn insert(&mut self, hash: u64, kind: u8) {
        if let Some((entry @ 0, print)) = self.slot(hash) {
            *entry = print | (u32::from(kind) & KIND);
            self.held += 1;
        }
    }

    /// Takes a window out, if it is in.
    pub(super) fn forget(&mut self, hash: u64) {
        if let Some((entry, _)) = self.slot(hash)
            && *entry != 0
        {
            *entry |= KNOWN;
        }
    }

    /// The kind of a window that is in.
    pub(super) fn find(&self, hash: u64) -> Option<u8> {
        let (from, print) = self.place(hash);
        // Most windows are not in, and most of these fall on an empty slot.
        if *self.slots.get(from)? == 0 {
            return None;
        }
        let (before, behind) = self.slots.split_at_checked(from)?;
        let fits = |entry: &&u32| **entry == 0 || **entry & !(KIND | KNOWN) == print;
        let entry = behind.iter().chain(before).take(PROBES).find(fits)?;
        (*entry != 0 && entry & KNOWN == 0).then_some((entry & KIND) as u8)
    }
}

#[cfg(test)]
mod tests {
    use super::super::fold::LETTER;
    use super::*;
    use proptest::prelude::*;

    fn hashes(codes: &[u16], least: u32) -> Vec<Option<u64>> {
        let mut window = Window::new(least);
        codes
            .iter()
            .enumerate()
            .map(|(at, code)| {
                window.push(*code, at);
                window.full()
            })
            .collect()
    }

    #[test]
    fn equal_words_have_equal_windows_wherever_they_stand() {
        let least = 20 * LETTER;
        let words: Vec<u16> = "thequickbrownfox看過長城abcdefghij".encode_utf16().collect();
        let mut longer: Vec<u16> = "xyzandalotmorebefore長".encode_utf16().collect();
        longer.extend(&words);
        let (short, long) = (hashes(&words, least), hashes(&longer, least));
        assert!(short.iter().filter(|hash| hash.is_some()).count() > 10);
        for (a, b) in short.iter().rev().zip(long.iter().rev()).filter(|(a, _)| a.is_some()) {
            assert_eq!(a, b);
        }
    }

    #[test]
    fn a_window_knows_where_its_letters_began() {
        let mut window = Window::new(4 * LETTER);
        for (code, start) in [(1, 0), (2, 10), (3, 11), (4, 200), (5, 201)] {
            window.push(code, start);
        }
        assert_eq!((window.len(), window.start_of(4), window.start_of(1)), (4, 10, 201));
        assert_eq!(
            (window.letter(0), window.letter(4), window.letter(5)),
            (Some(5), Some(1), None)
        );
        // A long stretch without letters ends it.
        window.push(6, 457);
        assert_eq!((window.len(), window.full(), window.letter(1)), (1, None, None));
    }

    #[test]
    fn a_table_tells_what_is_in_it() {
        let mut table = Table::with_room(1000);
        let hash = |n: u64| n.wrapping_mul(BASE);
        (0..1000).for_each(|n| table.insert(hash(n), (n % 4) as u8));
        table.insert(hash(7), 0);
        assert_eq!(table.len(), 1000);
        assert!((0..1000).all(|n| table.find(hash(n)) == Some((n % 4) as u8)));
        assert_eq!((1000..200_000).filter(|n| table.find(hash(*n)).is_some()).count(), 0);
        table.forget(hash(7));
        table.forget(hash(5000));
        assert_eq!((table.find(hash(7)), table.find(hash(8))), (None, Some(0)));
        assert_eq!(Table::default().find(hash(1)), None);
        Table::default().insert(hash(1), 1);
    }

    proptest! {
        #[test]
        fn a_rolling_hash_is_that_of_its_letters(codes in prop::collection::vec(0u16..0xFFFF, 1..200), least in 1u32..800) {
            let mut window = Window::new(least);
            for (at, code) in codes.iter().enumerate() {
                window.push(*code, at);
                let letters = codes.get(at + 1 - window.len()..=at).unwrap();
                let mut fresh = Window::new(60_000);
                letters.iter().enumerate().for_each(|(at, code)| fresh.push(*code, at));
                prop_assert_eq!(fresh.hash, window.hash);
                prop_assert_eq!(letters.iter().map(|code| weight(*code)).sum::<u32>(), window.weight());
            }
        }
    }
}
