//! Finds text that repeats itself with a period, exactly or but for a counter. It sees bytes, in which case,
//! white space and the values of numbers are folded away, and knows no words.
//!
//! It works as compressors do: the place where the newest bytes stood last gives a period to try, and it is kept
//! as long as each next byte agrees with the one a period before.

/// Bytes that are remembered. Longer periods are not seen.
const RING: usize = 2048;
/// Bytes that must agree before a period is tried: the long ones find a loop of which parts are loops.
const LONG: usize = 32;
const SHORT: usize = 8;
/// Places that are remembered for each.
const PLACES: usize = 512;
const BASE: u32 = 0x9E37_79B1;
/// Bytes of a run after which it is not counted any further, so that no sum overflows.
const RUN_MOST: u32 = 1 << 26;
/// Numbers are one byte below this: the remainder of their value.
const NUMBERS: u8 = 0x1F;

/// A repetition that is going on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Repeats {
    /// Bytes, after folding. 0 if there is none.
    pub(super) period: u32,
    /// Bytes that agreed with those a period before.
    pub(super) run: u32,
    /// Of these: letters, signs that are more common in data than in sentences, and numbers with other values.
    pub(super) letters: u32,
    pub(super) data: u32,
    pub(super) changed: u32,
}

impl Repeats {
    /// Bytes from the first period's begin to the end.
    pub(super) fn bytes(self) -> u32 {
        self.run + self.period
    }
}

/// The newest bytes of a stream.
#[derive(Clone, Debug)]
pub(super) struct Loops {
    ring: Box<[u8; RING]>,
    at: usize,
    long: Places,
    short: Places,
    repeats: Repeats,
    longest: u32,
    /// The number that is being read, as its remainder.
    number: Option<u8>,
    /// The last byte was white space.
    blank: bool,
}

/// Where rows of bytes stood last, by a rolling hash of them.
#[derive(Clone, Debug)]
struct Places {
    hash: u32,
    /// `BASE` to the power of the row's length.
    power: u32,
    at: Box<[u16; PLACES]>,
}

impl Places {
    fn new(row: usize) -> Self {
        let power = (0..row).fold(1u32, |power, _| power.wrapping_mul(BASE));
        // As if the ring had been read that is still empty.
        let hash = (0..row).fold(0u32, |hash, _| hash.wrapping_mul(BASE).wrapping_add(digit(0)));
        Self { hash, power, at: Box::new([0; PLACES]) }
    }

    fn roll(&mut self, newest: u8, oldest: u8) {
        let gone = self.power.wrapping_mul(digit(oldest));
        self.hash = self.hash.wrapping_mul(BASE).wrapping_add(digit(newest)).wrapping_sub(gone);
    }

    /// How many bytes ago the same row seems to have stood; notes the newest.
    fn exchange(&mut self, at: usize) -> usize {
        let class = self.hash.wrapping_mul(0x85EB_CA6B) >> 23;
        let Some(place) = self.at.get_mut(class as usize) else { return 0 };
        let ago = (at as u16).wrapping_sub(std::mem::replace(place, at as u16));
        usize::from(ago)
    }
}

fn digit(byte: u8) -> u32 {
    u32::from(class(byte)) + 1
}

/// Numbers are all the same.
fn class(byte: u8) -> u8 {
    if byte < NUMBERS { 0 } else { byte }
}

impl Loops {
    pub(super) fn new() -> Self {
        Self {
            ring: Box::new([0; RING]),
            at: 0,
            long: Places::new(LONG),
            short: Places::new(SHORT),
            repeats: Repeats::default(),
            longest: 0,
            number: None,
            blank: true,
        }
    }

    /// Takes the next byte of the stream.
    pub(super) fn push(&mut self, byte: u8) {
        if byte.is_ascii_digit() {
            let tens = u16::from(self.number.unwrap_or(0)) * 10 + u16::from(byte - b'0');
            self.number = Some((tens % u16::from(NUMBERS)) as u8);
            self.blank = false;
            return;
        }
        if let Some(number) = self.number.take() {
            self.folded(number);
        }
        let blank = byte.is_ascii_whitespace() || byte < NUMBERS + 1;
        if !(blank && self.blank) {
            self.folded(if blank { b' ' } else { byte.to_ascii_lowercase() });
        }
        self.blank = blank;
    }

    fn byte(&self, ago: usize) -> u8 {
        self.ring.get(self.at.wrapping_sub(1 + ago) % RING).copied().unwrap_or_default()
    }

    fn folded(&mut self, byte: u8) {
        let (long, short) = (self.byte(LONG - 1), self.byte(SHORT - 1));
        self.long.roll(byte, long);
        self.short.roll(byte, short);
        if let Some(place) = self.ring.get_mut(self.at % RING) {
            *place = byte;
        }
        self.at = self.at.wrapping_add(1);
        let tried = [(LONG, self.long.exchange(self.at)), (SHORT, self.short.exchange(self.at))];
        let then = self.byte(self.repeats.period as usize);
        if self.repeats.period > 0 && class(then) == class(byte) {
            self.repeats.add(byte, then);
            self.longest = self.longest.max(self.repeats.bytes());
            return;
        }
        let agrees = |(row, ago): &(usize, usize)| {
            let within = *ago > 0 && ago + row < RING.min(self.at);
            within && (0..*row).all(|at| class(self.byte(at)) == class(self.byte(at + ago)))
        };
        let found = tried.into_iter().find(agrees);
        self.repeats = Repeats::default();
        if let Some((row, ago)) = found {
            self.repeats.period = ago as u32;
            (0..row).for_each(|at| self.repeats.add(self.byte(at), self.byte(at + ago)));
        }
    }

    /// The repetition that the stream ends with.
    pub(super) fn repeats(&self) -> Repeats {
        self.repeats
    }

    /// Bytes of the longest there was.
    pub(super) fn longest(&self) -> u32 {
        self.longest
    }
}

impl Repeats {
    fn add(&mut self, byte: u8, then: u8) {
        if self.run == RUN_MOST {
            return;
        }
        self.run += 1;
        self.letters += u32::from(byte.is_ascii_alphabetic() || byte >= 0x80);
        self.data += u32::from(byte < NUMBERS || is_data(byte));
        self.changed += u32::from(byte != then);
    }
}

/// Is it a sign that data and code have many of, and sentences few?
pub(super) fn is_data(byte: u8) -> bool {
    matches!(
        byte,
        b'[' | b']'
            | b'{'
            | b'}'
            | b'|'
            | b'<'
            | b'>'
            | b'='
            | b':'
            | b';'
            | b','
            | b'/'
            | b'\\'
            | b'"'
            | b'('
            | b')'
            | b'#'
            | b'*'
            | b'_'
            | b'+'
            | b'&'
            | b'~'
            | b'^'
            | b'%'
            | b'$'
            | b'@'
            | b'`'
            | b'\t'
            | b'0'..=b'9'
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Repeats {
        let mut loops = Loops::new();
        text.bytes().for_each(|byte| loops.push(byte));
        loops.repeats()
    }

    #[test]
    fn a_period_is_found_whatever_its_length() {
        let start = "Something else comes first, and it is not short at all. ";
        for part in ["x", "ab", "la li ", "Sorry, I can't. ", "哈", "今天天气很好，我们去公园。"]
        {
            let repeats = read(&format!("{start}{}", part.repeat(60)));
            assert_eq!(repeats.period as usize, part.len(), "{part}");
            assert!(repeats.bytes() as usize + 40 >= 60 * part.len(), "{part} {repeats:?}");
        }
        for words in [20, 60, 150, 250] {
            let part: String = (0..words)
                .map(|n| format!("{} ", (b'a' + (n * n % 23) as u8) as char))
                .collect::<String>()
                + "end. ";
            let repeats = read(&format!("{start}{}", part.repeat(6)));
            assert_eq!(repeats.period as usize, part.len(), "{words}");
            assert!(repeats.bytes() as usize + 80 >= 6 * part.len(), "{words} {repeats:?}");
        }
        assert_eq!(read(start), Repeats::default());
    }

    #[test]
    fn loops_within_a_loop_do_not_hide_it() {
        let part = format!("{}and then {}\n", "ha ".repeat(15), "ho ".repeat(20));
        let repeats = read(&part.repeat(8));
        assert_eq!(repeats.period as usize, part.len() - 1, "{repeats:?}");
        assert!(repeats.bytes() as usize > 6 * part.len(), "{repeats:?}");
        // Only long rows tell where one is.
        let part = [5, 9, 14].map(|times| "ha ".repeat(times) + "and ").concat();
        assert_eq!(read(&part.repeat(8)).period as usize, part.len());
    }

    #[test]
    fn a_counter_does_not_hide_it_and_is_counted() {
        let text: String = (95..130).map(|n| format!("Step {n}: check the\n  log.\n")).collect();
        let repeats = read(&text);
        assert_eq!(repeats.period as usize, "step #: check the log. ".len());
        let times = repeats.run / repeats.period;
        assert!(
            times >= 30 && repeats.changed >= times && repeats.changed <= times + 1,
            "{repeats:?}"
        );
        let constant = read(&"Level 7 of 12 is full. ".repeat(30));
        assert_eq!(constant.changed, 0);
    }
}
