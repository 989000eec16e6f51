//! Server-sent events: cutting a stream into whole events without copying or changing a byte.
//!
//! The event grammar is that of the HTML standard (Server-sent events, 9.2.6): lines end with LF, CR or
//! CRLF, an empty line ends an event, a line that starts with a colon is a comment.

use bytes::{Buf, Bytes, BytesMut};
use memchr::memchr2;
use std::borrow::Cow;

/// A stream sent something longer than we are willing to hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooLong;

/// Cuts a byte stream into events.
#[derive(Debug)]
pub struct Splitter {
    held: Bytes,
    /// Where the search goes on.
    scan: usize,
    /// Where the line that is being searched begins.
    line: usize,
    max: usize,
    /// Nothing has been cut off yet: a byte order mark may stand here, and means nothing.
    fresh: bool,
}

impl Splitter {
    /// A splitter that holds at most `max` bytes of an unfinished event.
    pub const fn new(max: usize) -> Self {
        Self { held: Bytes::new(), scan: 0, line: 0, max, fresh: true }
    }

    /// Adds what came from the server.
    pub fn push(&mut self, piece: Bytes) {
        if self.held.is_empty() {
            self.held = piece;
            return;
        }
        // Growing in place keeps a long event that comes byte by byte linear in cost.
        let mut grown = std::mem::take(&mut self.held).try_into_mut().unwrap_or_else(|shared| {
            let mut copy = BytesMut::with_capacity((shared.len() + piece.len()) * 2);
            copy.extend_from_slice(&shared);
            copy
        });
        grown.extend_from_slice(&piece);
        self.held = grown.freeze();
    }

    /// The next whole event with the empty line that ends it, byte for byte as it came.
    pub fn next_event(&mut self) -> Result<Option<Event>, TooLong> {
        if self.fresh && !self.held.is_empty() {
            const MARK: &[u8] = b"\xef\xbb\xbf";
            if self.held.len() < MARK.len() && MARK.starts_with(&self.held) {
                return Ok(None);
            }
            if self.held.starts_with(MARK) {
                self.held.advance(MARK.len());
            }
            self.fresh = false;
        }
        while let Some(found) =
            self.held.get(self.scan..).and_then(|rest| memchr2(b'\n', b'\r', rest))
        {
            let at = self.scan + found;
            let mut after = at + 1;
            if self.held.get(at) == Some(&b'\r') {
                match self.held.get(after) {
                    Some(b'\n') => after += 1,
                    Some(_) => {}
                    // The line feed of a CRLF may still be on its way.
                    None => break,
                }
            }
            let empty = at == self.line;
            self.scan = after;
            self.line = after;
            if empty {
                let raw = self.held.split_to(after);
                self.scan = 0;
                self.line = 0;
                return Ok(Some(Event { raw }));
            }
        }
        if self.held.len() > self.max {
            return Err(TooLong);
        }
        if self.held.get(self.scan..).is_some_and(|rest| memchr2(b'\n', b'\r', rest).is_none()) {
            self.scan = self.held.len();
        }
        Ok(None)
    }

    /// What is left when the stream has ended: an event without its empty line, or nothing.
    pub fn rest(&mut self) -> Option<Event> {
        self.scan = 0;
        self.line = 0;
        let raw = std::mem::take(&mut self.held);
        (!raw.iter().all(|byte| matches!(byte, b'\n' | b'\r'))).then_some(Event { raw })
    }
}

/// One event as it came.
#[derive(Clone, Debug)]
pub struct Event {
    /// The bytes, with the empty line.
    pub raw: Bytes,
}

impl Event {
    /// The event's data: its `data` lines, joined with line feeds. `None` for comments and events
    /// without data.
    pub fn data(&self) -> Option<Cow<'_, [u8]>> {
        let mut data: Option<Cow<'_, [u8]>> = None;
        let mut rest: &[u8] = &self.raw;
        while !rest.is_empty() {
            let end = memchr2(b'\n', b'\r', rest).unwrap_or(rest.len());
            let (line, after) = rest.split_at_checked(end).unwrap_or((rest, b""));
            rest = after.get(1..).unwrap_or_default();
            let Some(value) = line.strip_prefix(b"data") else { continue };
            let value = match value.strip_prefix(b":") {
                Some(value) => value.strip_prefix(b" ").unwrap_or(value),
                None if value.is_empty() => value,
                None => continue,
            };
            data = Some(match data {
                None => Cow::Borrowed(value),
                Some(before) => {
                    let mut joined = before.into_owned();
                    joined.push(b'\n');
                    joined.extend_from_slice(value);
                    Cow::Owned(joined)
                }
            });
        }
        data
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn events(pieces: &[&[u8]], max: usize) -> Result<Vec<Vec<u8>>, TooLong> {
        let mut splitter = Splitter::new(max);
        let mut out = Vec::new();
        for piece in pieces {
            splitter.push(Bytes::copy_from_slice(piece));
            while let Some(event) = splitter.next_event()? {
                out.push(event.raw.to_vec());
            }
        }
        out.extend(splitter.rest().map(|event| event.raw.to_vec()));
        Ok(out)
    }

    #[test]
    fn all_three_line_ends_end_events() {
        let text = b"data: a\n\ndata: b\r\n\r\n: note\r\rdata: c\n\r\ndata: d";
        let found = events(&[text], 100).unwrap();
        let want: [&[u8]; 5] =
            [b"data: a\n\n", b"data: b\r\n\r\n", b": note\r\r", b"data: c\n\r\n", b"data: d"];
        assert_eq!(found, want);
    }

    #[test]
    fn data_lines_are_joined_and_comments_have_none() {
        let event = |raw: &'static [u8]| Event { raw: Bytes::from_static(raw) };
        assert_eq!(event(b"data: a\ndata:b\nevent: x\n\n").data().unwrap().as_ref(), b"a\nb");
        assert!(event(b": hello\n\n").data().is_none());
        assert!(event(b"database: 1\n\n").data().is_none());
    }

    #[test]
    fn a_byte_order_mark_at_the_start_means_nothing() {
        let want: [&[u8]; 1] = [b"data: a\n\n"];
        assert_eq!(events(&[b"\xef\xbb\xbfdata: a\n\n"], 100).unwrap(), want);
        assert_eq!(events(&[b"\xef", b"\xbb\xbfdata: a\n\n"], 100).unwrap(), want);
        assert_eq!(events(&[b"data: a\n\n\xef\xbb\xbf"], 100).unwrap().len(), 2);
    }

    #[test]
    fn an_endless_event_is_given_up() {
        assert_eq!(events(&[&[b'x'; 64], &[b'x'; 64]], 100), Err(TooLong));
    }

    proptest! {
        /// However a stream is cut into pieces, the same events come out and no byte is lost.
        #[test]
        fn cuts_do_not_matter(text in "[ab:\n\r]{0,60}", cuts in prop::collection::vec(0usize..60, 0..8)) {
            let bytes = text.as_bytes();
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(bytes.len())).collect();
            cuts.push(0);
            cuts.push(bytes.len());
            cuts.sort_unstable();
            let pieces: Vec<&[u8]> = cuts.windows(2).map(|pair| &bytes[pair[0]..pair[1]]).collect();
            let whole = events(&[bytes], 1000).unwrap();
            prop_assert_eq!(&events(&pieces, 1000).unwrap(), &whole);
            let joined: Vec<u8> = whole.concat();
            prop_assert!(bytes.starts_with(&joined));
            prop_assert!(bytes[joined.len()..].iter().all(|b| matches!(b, b'\n' | b'\r')));
        }
    }
}
