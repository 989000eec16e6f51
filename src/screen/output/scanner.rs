//! Follows one stream of letters and tells when it has said enough of what it must not. It knows nothing of
//! how the letters came about.

use super::{
    fold::weight,
    patterns::newer,
    secretive::{How, Secretive},
    shingles::Window,
};

/// What was said, and where it began.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Said {
    pub(super) how: How,
    pub(super) from: usize,
    pub(super) canary: Option<usize>,
}

/// One stream of letters.
#[derive(Clone, Debug)]
pub(super) struct Scanner {
    window: Window,
    /// Units in a row of which each window is in the index, 0 if the newest is not.
    run: u32,
    /// Where that row began.
    from: usize,
    how: How,
    /// The newest four letters.
    end: u64,
}

impl Scanner {
    pub(super) fn new(secret: &Secretive) -> Self {
        Self { window: Window::new(secret.window), run: 0, from: 0, how: How::Plain, end: 0 }
    }

    /// Takes the letter that began at byte `start`. Has it said enough now? Patterns are looked for if `whole`.
    pub(super) fn push(
        &mut self,
        code: u16,
        start: usize,
        secret: &Secretive,
        whole: bool,
    ) -> bool {
        self.window.push(code, start);
        self.end = newer(self.end, code);
        let known = self.window.full().and_then(|hash| secret.table.find(hash));
        match known {
            Some(kind) if self.run == 0 => {
                self.run = self.window.weight();
                self.from = self.window.start_of(self.window.len());
                self.how = How::of_kind(kind);
            }
            Some(kind) => {
                self.run = self.run.saturating_add(weight(code));
                self.how = How::of_kind(kind);
            }
            None => self.run = 0,
        }
        self.run >= secret.enough
            || (whole && secret.patterns.met(self.end, &self.window).is_some())
    }

    /// What has been said, when enough has.
    pub(super) fn said(&self, secret: &Secretive) -> Option<Said> {
        if self.run >= secret.enough {
            return Some(Said { how: self.how, from: self.from, canary: None });
        }
        let pattern = secret.patterns.met(self.end, &self.window)?;
        let from = self.window.start_of(pattern.len());
        Some(Said { how: pattern.how, from, canary: pattern.canary })
    }

    /// Where the row of known windows began that the stream ends with.
    pub(super) fn running(&self) -> Option<usize> {
        (self.run > 0).then_some(self.from)
    }

    /// Where the pattern began that the stream ends with the start of.
    pub(super) fn begun(&self, secret: &Secretive) -> Option<usize> {
        let letters = secret.patterns.begun(&self.window);
        (letters > 0).then(|| self.window.start_of(letters))
    }
}
