//! Joins texts and pieces into the ids of one prompt, from left to right.

use super::{
    CountError,
    piece::{Encoder, Piece},
};

/// One prompt under way. Every id is handed to `sink` once, in order.
pub(super) struct Tally<'a, 'e, S> {
    encoder: &'a mut Encoder<'e>,
    sink: S,
    /// Text behind the last cut, which may still grow.
    open: String,
    /// No cut has been met.
    first: bool,
    /// A special token may have begun that has not ended.
    dangling: bool,
}

/// Why parts cannot be joined: a special token may lie across them. The whole text must be encoded at once.
pub(super) struct Entangled;

impl<'a, 'e, S: FnMut(&[u32])> Tally<'a, 'e, S> {
    pub(super) fn new(encoder: &'a mut Encoder<'e>, sink: S) -> Self {
        Self { encoder, sink, open: String::new(), first: true, dangling: false }
    }

    /// Adds text that has not been looked at.
    pub(super) fn text(&mut self, text: &str) -> Result<Result<(), Entangled>, CountError> {
        if text.is_empty() {
            return Ok(Ok(()));
        }
        if self.dangling {
            return Ok(Err(Entangled));
        }
        let cuts = self.encoder.cuts;
        let mut from = 0;
        for cut in cuts.find(text) {
            self.open.push_str(text.get(from..cut.start).unwrap_or_default());
            self.close()?;
            (self.sink)(&[cut.id]);
            self.first = false;
            from = cut.end;
        }
        self.open.push_str(text.get(from..).unwrap_or_default());
        self.dangling = cuts.may_go_on(text);
        Ok(Ok(()))
    }

    /// Adds what a turn wrote.
    pub(super) fn piece(&mut self, piece: &Piece) -> Result<Result<(), Entangled>, CountError> {
        if piece.length == 0 {
            return Ok(Ok(()));
        }
        if self.dangling {
            return Ok(Err(Entangled));
        }
        self.open.push_str(&piece.left);
        if let Some(middle) = &piece.middle {
            self.close()?;
            (self.sink)(middle);
            self.first = false;
            self.open.push_str(&piece.right);
        }
        self.dangling = piece.may_go_on;
        Ok(Ok(()))
    }

    /// Encodes what is open at the end.
    pub(super) fn end(mut self) -> Result<(), CountError> {
        self.close()
    }

    fn close(&mut self) -> Result<(), CountError> {
        if self.open.is_empty() {
            return Ok(());
        }
        let ids = self.encoder.segment(&self.open, self.first)?;
        (self.sink)(&ids);
        self.open.clear();
        Ok(())
    }
}
