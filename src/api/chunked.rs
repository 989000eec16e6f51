//! The chunked transfer coding (RFC 9112, section 7.1), followed strictly and without buffering data.

/// Longest chunk-size line, extensions included.
const LINE_MAX: usize = 256;
/// Longest trailer section.
const TRAILER_MAX: usize = 4096;

/// What the bytes at the front are. The number says how many.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Piece {
    /// Content.
    Data(usize),
    /// Sizes, line ends, trailers.
    Frame(usize),
    /// The last bytes of the body.
    Over(usize),
}

impl Piece {
    /// How many bytes.
    pub const fn len(self) -> usize {
        match self {
            Self::Data(count) | Self::Frame(count) | Self::Over(count) => count,
        }
    }

    /// True for no bytes at all.
    pub const fn is_empty(self) -> bool {
        self.len() == 0
    }
}

#[derive(Clone, Copy, Debug, Default)]
enum Next {
    #[default]
    Size,
    Data(u64),
    AfterData,
    Trailer,
}

/// Follows one chunked body.
#[derive(Debug, Default)]
pub struct Chunked {
    next: Next,
    /// The part of a size line or of the trailers that has come.
    line: Vec<u8>,
    trailer_bytes: usize,
}

impl Chunked {
    /// Says what the next bytes are. Call it again with those behind them.
    ///
    /// # Errors
    /// The coding is broken; the text says how. Nothing behind it can be trusted.
    pub fn follow(&mut self, bytes: &[u8]) -> Result<Piece, &'static str> {
        if let Next::Data(left) = &mut self.next {
            let here = (bytes.len() as u64).min(*left);
            *left -= here;
            if *left == 0 {
                self.next = Next::AfterData;
            }
            return Ok(Piece::Data(usize::try_from(here).unwrap_or(usize::MAX)));
        }
        let end = memchr::memchr(b'\n', bytes);
        let taken = end.map_or(bytes.len(), |at| at + 1);
        self.line.extend_from_slice(bytes.get(..taken).unwrap_or_default());
        if matches!(self.next, Next::Trailer) {
            self.trailer_bytes += taken;
        }
        if self.line.len() > LINE_MAX && !matches!(self.next, Next::Trailer)
            || self.trailer_bytes > TRAILER_MAX
        {
            return Err("A chunk's size line or trailer is too long.");
        }
        if end.is_none() {
            return Ok(Piece::Frame(taken));
        }
        let over = self.line_is_whole()?;
        self.line.clear();
        Ok(if over { Piece::Over(taken) } else { Piece::Frame(taken) })
    }

    /// `true`: that was the last line of the body.
    fn line_is_whole(&mut self) -> Result<bool, &'static str> {
        let Some(whole) = self.line.strip_suffix(b"\r\n") else {
            return Err("Lines must end with CR LF; a bare LF is refused.");
        };
        match self.next {
            Next::Size => {
                let size = size(whole).ok_or("A chunk's size is not a hexadecimal number.")?;
                self.next = if size == 0 { Next::Trailer } else { Next::Data(size) };
            }
            Next::AfterData if whole.is_empty() => self.next = Next::Size,
            Next::AfterData => return Err("A chunk is longer than its size."),
            Next::Trailer if whole.is_empty() => return Ok(true),
            // Trailers are read past and merged into nothing.
            Next::Trailer | Next::Data(_) => {}
        }
        Ok(false)
    }
}

fn size(line: &[u8]) -> Option<u64> {
    let digits = line.split(|byte| *byte == b';').next()?.trim_ascii_end();
    let text = std::str::from_utf8(digits).ok()?;
    let hex = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    u64::from_str_radix(text, 16).ok().filter(|_| hex)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The content of a body that comes in these pieces, and what follows it.
    fn decode(pieces: &[&[u8]]) -> Result<(Vec<u8>, Option<Vec<u8>>), &'static str> {
        let mut chunked = Chunked::default();
        let mut data = Vec::new();
        let mut rest: Option<Vec<u8>> = None;
        for piece in pieces {
            let mut bytes = *piece;
            while !bytes.is_empty() {
                if let Some(rest) = &mut rest {
                    rest.extend_from_slice(bytes);
                    break;
                }
                let piece = chunked.follow(bytes)?;
                let (front, behind) = bytes.split_at(piece.len());
                bytes = behind;
                match piece {
                    Piece::Data(_) => data.extend_from_slice(front),
                    Piece::Frame(_) => {}
                    Piece::Over(_) => rest = Some(Vec::new()),
                }
            }
        }
        Ok((data, rest))
    }

    #[test]
    fn content_is_found_between_sizes_extensions_and_trailers() {
        let body = b"3;x=1\r\nabc\r\n02\r\nde\r\n0\r\nT: 1\r\n\r\nnext";
        assert_eq!(decode(&[body]), Ok((b"abcde".to_vec(), Some(b"next".to_vec()))));
        assert_eq!(decode(&[b"3\r\nab"]), Ok((b"ab".to_vec(), None)));
    }

    #[test]
    fn broken_codings_are_refused() {
        let long = format!("3;{}", "x".repeat(LINE_MAX));
        let trailers = format!("0\r\n{}", "T: 1\r\n".repeat(TRAILER_MAX / 4));
        for body in [
            "x\r\n",
            "3\nabc",
            "3\r\nabcd\r\n",
            "\r\n",
            "-1\r\n",
            "1 1\r\n",
            "11111111111111111\r\n",
            &long,
            &trailers,
        ] {
            assert!(decode(&[body.as_bytes()]).is_err(), "{body:?}");
        }
    }

    proptest! {
        /// However a body is cut, the same content comes out.
        #[test]
        fn cuts_do_not_matter(chunks in prop::collection::vec("[a-z]{1,20}", 0..5), cuts in prop::collection::vec(0usize..120, 0..6)) {
            let mut body: String = chunks.iter().map(|chunk| format!("{:x}\r\n{chunk}\r\n", chunk.len())).collect();
            body.push_str("0\r\n\r\n");
            let bytes = body.as_bytes();
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(bytes.len())).collect();
            cuts.extend([0, bytes.len()]);
            cuts.sort_unstable();
            let pieces: Vec<&[u8]> = cuts.windows(2).map(|pair| &bytes[pair[0]..pair[1]]).collect();
            prop_assert_eq!(decode(&pieces), Ok((chunks.concat().into_bytes(), Some(Vec::new()))));
        }
    }
}
