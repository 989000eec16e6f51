//! Does an answer say what its system prompt says? Streamed, exact, in any script.
//!
//! Prompt and answer are both reduced to their letters (see `fold.rs`), so that case, accents, spaces,
//! punctuation, formatting and look-alike letters make no difference. A leak is a row of eight words' letters
//! of which each four words stand in the prompt just so. Read besides: figures as letters, rot13, reversed
//! text, escapes, base64 and hexadecimal bytes. Canaries must be met as a whole, in any of these forms.
//!
//! Not found, on principle: what was translated or put in other words, only hinted at, said in fewer words
//! than eight in a row, or in a cipher or code not named above (other rotations, words in reverse order, Morse,
//! decimal codes, a code within a code). Found although harmless: what the prompt itself wants said or quoted, and
//! code that begins as everyone's does; give that to [`Secretive::allowing`].

use super::{
    coded::{Base64, Hex},
    fold::{fold, is_figure, leet, merged},
    reader::Reader,
    scanner::{Said, Scanner},
    shingles::TAIL,
};
use std::{fmt, sync::Arc};

pub use super::secretive::{CANARIES_MAX, How, SAID_MAX, Secretive, WORDS};

/// A leak, in bytes of the stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeakFound {
    /// The form it had.
    pub how: How,
    /// Behind the character with which the evidence was complete.
    pub at: usize,
    /// Where the evidence begins. What everyone says, or the caller said, is not part of it.
    pub from: usize,
    /// The number of the canary that was said; none if it was the prompt.
    pub canary: Option<usize>,
}

/// Follows one answer. Less than 1 KiB, however long the answer.
#[derive(Clone)]
pub struct Leak {
    secret: Arc<Secretive>,
    /// Bytes of the stream so far.
    at: usize,
    reader: Reader,
    /// With figures as letters.
    leet: Scanner,
    /// Without figures. It is kept only while `apart`, else it is as the one above.
    plain: Scanner,
    /// Letters until the two have the same letters again.
    apart: usize,
    /// Where the newest figure stood, plus one; 0 before the first.
    figure: usize,
    base64: (Base64, Scanner),
    hex: (Hex, Scanner),
    found: Option<LeakFound>,
}

/// Nothing of what was said.
impl fmt::Debug for Leak {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("Leak");
        shown.field("at", &self.at).field("found", &self.found).finish_non_exhaustive()
    }
}

impl Leak {
    /// Nothing said yet.
    pub fn new(secret: Arc<Secretive>) -> Self {
        let scanner = Scanner::new(&secret);
        Self {
            secret,
            at: 0,
            reader: Reader::default(),
            leet: scanner.clone(),
            plain: scanner.clone(),
            apart: 0,
            figure: 0,
            base64: (Base64::default(), scanner.clone()),
            hex: (Hex::default(), scanner),
            found: None,
        }
    }

    /// Takes the answer's next piece, cut anywhere. Tells the first leak once, whatever the pieces.
    pub fn push(&mut self, text: &str) -> Option<LeakFound> {
        let from = self.at;
        self.at += text.len();
        if self.found.is_some() || self.secret.is_empty() {
            return None;
        }
        let secret = Arc::clone(&self.secret);
        for (at, ch) in text.char_indices() {
            if let Some(Said { how, from: began, canary }) = self.character(ch, from + at, &secret)
            {
                let at = from + at + ch.len_utf8();
                self.found = Some(LeakFound { how, at, from: began, canary });
                return self.found;
            }
        }
        None
    }

    fn character(&mut self, ch: char, at: usize, secret: &Secretive) -> Option<Said> {
        let mut said = None;
        let mut reader = std::mem::take(&mut self.reader);
        reader.push(ch, at, |ch, start| {
            fold(ch, |code| keep(&mut said, self.letter(code, start, secret), None));
            let (decoder, scanner) = &mut self.base64;
            decoder.push(ch, start, |ch, start| {
                nested(&mut said, scanner, (ch, start), secret, How::Base64);
            });
        });
        self.reader = reader;
        // Escapes are hexadecimal themselves.
        let (decoder, scanner) = &mut self.hex;
        decoder.push(ch, at, |ch, start| nested(&mut said, scanner, (ch, start), secret, How::Hex));
        said
    }

    fn letter(&mut self, code: u16, start: usize, secret: &Secretive) -> Option<Said> {
        if is_figure(code) {
            self.figure = start + 1;
            if self.apart == 0 {
                self.plain = self.leet.clone();
            }
            self.apart = TAIL;
        } else if self.apart > 0 && self.plain.push(merged(code), start, secret, false) {
            return self.plain.said(secret);
        }
        let enough = self.leet.push(leet(code), start, secret, true);
        if self.apart > 0 && !is_figure(code) {
            // A row that began before the figure may still go on in one of them.
            let agree = self.plain.running() == self.leet.running();
            self.apart -= usize::from(self.apart > 1 || agree);
        }
        if !enough {
            return None;
        }
        self.leet.said(secret).map(|read| {
            let broken = self.apart > 0 && self.plain.running().is_none();
            Said { how: as_read(read, broken && self.figure > read.from), ..read }
        })
    }

    /// Bytes at the stream's end that may belong to a leak in the making, for a relay that holds text back
    /// until it is known to be harmless. A row counts from its fourth word (half of [`Secretive::new`]'s
    /// `words`) on and is then counted from its first; a canary from its fourth letter. After a leak: all since
    /// it began.
    pub fn held(&self) -> usize {
        if let Some(found) = self.found {
            return self.at - found.from;
        }
        let plain = (self.apart > 0).then_some(&self.plain);
        let scanners = [&self.leet, &self.base64.1, &self.hex.1];
        let running = scanners.into_iter().chain(plain).filter_map(Scanner::running);
        let begun = self.leet.begun(&self.secret);
        self.at - running.chain(begun).min().unwrap_or(self.at)
    }

    /// The leak, if there was one.
    pub fn found(&self) -> Option<LeakFound> {
        self.found
    }
}

/// Keeps the first that was said, in the form `how` if there is one.
fn keep(said: &mut Option<Said>, next: Option<Said>, how: Option<How>) {
    if said.is_none() {
        *said = next.map(|next| Said { how: how.unwrap_or(next.how), ..next });
    }
}

/// A row read with figures was plain all the same if those are the prompt's own.
fn as_read(said: Said, figures: bool) -> How {
    match said.how {
        How::Plain | How::Leet if said.canary.is_none() && figures => How::Leet,
        How::Leet => How::Plain,
        how => how,
    }
}

/// Takes a decoded character.
fn nested(
    said: &mut Option<Said>,
    scanner: &mut Scanner,
    (ch, start): (char, usize),
    secret: &Secretive,
    how: How,
) {
    fold(ch, |code| {
        if scanner.push(leet(code), start, secret, true) {
            keep(said, scanner.said(secret), Some(how));
        }
    });
}
