//! One request and its answer on one connection.
//!
//! There is no task and no library object behind an exchange: it is the socket, what has been read
//! ahead, and where in the body we are. Dropping it closes the socket in the same instant. While a
//! stream is silent it holds no buffer, so thousands of them cost little.

use super::{CallError, http::Pool};
use crate::api::chunked::{Chunked, Piece};
use ::http::{
    HeaderMap, HeaderName, HeaderValue, StatusCode,
    header::{CONNECTION, CONTENT_LENGTH, TRANSFER_ENCODING},
};
use bytes::{Buf, Bytes, BytesMut};
use std::{
    cell::RefCell,
    fmt,
    future::poll_fn,
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};
use tokio::{
    io::{AsyncRead, AsyncWriteExt, ReadBuf},
    net::{
        TcpStream,
        tcp::{ReadHalf, WriteHalf},
    },
};

/// Largest head of an answer.
const HEAD_MAX: usize = 64 * 1024;
/// Most headers of an answer.
const HEADERS_MAX: usize = 128;
/// Read from a socket at once. Also bounds what piles up here before a slow caller.
const READ_MAX: usize = 16 * 1024;

thread_local! {
    /// Every read goes here first and is copied out at its own size. So a token of two hundred bytes
    /// holds two hundred, and a silent stream none.
    static SCRATCH: RefCell<Box<[u8; READ_MAX]>> = RefCell::new(Box::new([0; READ_MAX]));
}

/// The head of an answer.
#[derive(Debug)]
pub(super) struct Head {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
}

/// Where in the body we are.
#[derive(Debug)]
enum Left {
    /// So many bytes to come.
    Bytes(u64),
    /// As the chunked coding says.
    Chunks(Box<Chunked>),
    /// Everything until the connection ends.
    ToTheEnd,
    /// Nothing.
    Nothing,
}

/// The body of an answer, together with the connection that carries it.
pub struct Exchange {
    stream: Option<TcpStream>,
    /// Read, but not handed on.
    ahead: Bytes,
    left: Left,
    /// The connection may carry another request after this one.
    reuse: bool,
    pool: Arc<Pool>,
}

impl fmt::Debug for Exchange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Exchange").field("left", &self.left).finish_non_exhaustive()
    }
}

fn broken(what: impl fmt::Display) -> CallError {
    CallError::Broken(what.to_string())
}

/// Sends a request and reads the head of its answer. Dropping the future closes the connection.
pub(super) async fn begin(
    mut stream: TcpStream,
    head: &[u8],
    body: &Bytes,
    pool: &Arc<Pool>,
) -> Result<(Head, Exchange), CallError> {
    let (mut reading, mut writing) = stream.split();
    let mut sent = false;
    let mut ahead = BytesMut::new();
    let answer = {
        let write = send(&mut writing, head, body);
        let read = read_head(&mut reading, &mut ahead);
        let (mut write, mut read) = (std::pin::pin!(write), std::pin::pin!(read));
        loop {
            tokio::select! {
                // A server may answer, and close, before it has read everything.
                done = &mut read => break done,
                // A server that stopped reading may have said why: that is what is waited for.
                written = &mut write, if !sent => {
                    sent = true;
                    if let Err(error) = written {
                        break read.await.map_err(|_| broken(error));
                    }
                }
            }
        }
    }?;
    let left = body_of(&answer)?;
    let closes = answer.closes || matches!(left, Left::ToTheEnd) || !sent;
    let exchange = Exchange {
        stream: Some(stream),
        ahead: ahead.freeze(),
        left,
        reuse: !closes,
        pool: Arc::clone(pool),
    };
    Ok((answer.head, exchange))
}

async fn send(to: &mut WriteHalf<'_>, head: &[u8], body: &Bytes) -> io::Result<()> {
    // Both in one system call and without copying the body into place.
    let mut both = head.chain(body.clone());
    to.write_all_buf(&mut both).await
}

struct Answered {
    head: Head,
    closes: bool,
}

async fn read_head(from: &mut ReadHalf<'_>, ahead: &mut BytesMut) -> Result<Answered, CallError> {
    loop {
        if let Some(answered) = parse_head(ahead)? {
            // 100 Continue and its kin are not the answer.
            if !answered.head.status.is_informational() {
                return Ok(answered);
            }
            continue;
        }
        if ahead.len() > HEAD_MAX {
            return Err(broken("the answer's head is larger than 64 KiB"));
        }
        let read = poll_fn(|cx| poll_read(Pin::new(&mut *from), cx)).await.map_err(broken)?;
        if read.is_empty() {
            return Err(broken("connection closed before the answer"));
        }
        ahead.extend_from_slice(&read);
    }
}

/// Takes a whole head off the front.
fn parse_head(ahead: &mut BytesMut) -> Result<Option<Answered>, CallError> {
    if ahead.is_empty() {
        return Ok(None);
    }
    let mut slots = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut parsed = httparse::Response::new(&mut slots);
    let length = match parsed.parse(ahead) {
        Ok(httparse::Status::Complete(length)) => length,
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(error) => return Err(broken(format_args!("the answer is not HTTP: {error}"))),
    };
    let status = parsed.code.and_then(|code| StatusCode::from_u16(code).ok());
    let status = status.ok_or_else(|| broken("the answer has no status"))?;
    let mut headers = HeaderMap::with_capacity(parsed.headers.len());
    for header in parsed.headers.iter() {
        let name = HeaderName::from_bytes(header.name.as_bytes()).map_err(broken)?;
        let value = HeaderValue::from_bytes(header.value).map_err(broken)?;
        headers.append(name, value);
    }
    let says = |word: &str| {
        let values = headers.get_all(CONNECTION).iter().filter_map(|value| value.to_str().ok());
        values.flat_map(|value| value.split(',')).any(|one| one.trim().eq_ignore_ascii_case(word))
    };
    let closes = says("close") || (parsed.version == Some(0) && !says("keep-alive"));
    ahead.advance(length);
    Ok(Some(Answered { head: Head { status, headers }, closes }))
}

/// How the body is framed (RFC 9112, section 6.3). What two readers could frame differently is no
/// answer.
fn body_of(answered: &Answered) -> Result<Left, CallError> {
    let headers = &answered.head.headers;
    let coded = headers.get_all(TRANSFER_ENCODING).iter().count();
    let mut lengths = headers.get_all(CONTENT_LENGTH).iter();
    let (length, second) = (lengths.next(), lengths.next());
    if matches!(answered.head.status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED) {
        return Ok(Left::Nothing);
    }
    if coded > 0 {
        let chunked = headers.get(TRANSFER_ENCODING).map(HeaderValue::as_bytes);
        let plain = chunked.is_some_and(|coding| coding.eq_ignore_ascii_case(b"chunked"));
        if coded > 1 || !plain || length.is_some() {
            return Err(broken("the answer's framing is ambiguous"));
        }
        return Ok(Left::Chunks(Box::default()));
    }
    let Some(length) = length else { return Ok(Left::ToTheEnd) };
    let number = length.to_str().ok().filter(|text| text.bytes().all(|b| b.is_ascii_digit()));
    match (number.and_then(|text| text.parse().ok()), second) {
        (Some(0), None) => Ok(Left::Nothing),
        (Some(length), None) => Ok(Left::Bytes(length)),
        _ => Err(broken("the answer's framing is ambiguous")),
    }
}

/// Reads what is there, at its own size; nothing at the end of the stream.
fn poll_read<R: AsyncRead>(from: Pin<&mut R>, cx: &mut Context<'_>) -> Poll<io::Result<Bytes>> {
    SCRATCH.with_borrow_mut(|scratch| {
        let mut buffer = ReadBuf::new(&mut scratch[..]);
        ready!(from.poll_read(cx, &mut buffer))?;
        Poll::Ready(Ok(Bytes::copy_from_slice(buffer.filled())))
    })
}

impl Exchange {
    /// Says that this connection must not be used again, whatever the server says.
    pub(super) fn forbid_reuse(&mut self) {
        self.reuse = false;
    }

    /// The next piece of the body, `None` at its clean end. After an error or the end, `None`.
    pub fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, CallError>>> {
        loop {
            match self.take_piece() {
                Ok(Some(piece)) => return Poll::Ready(Some(Ok(piece))),
                Ok(None) if matches!(self.left, Left::Nothing) => {
                    self.recycle();
                    return Poll::Ready(None);
                }
                Ok(None) => {}
                Err(what) => return Poll::Ready(Some(Err(self.fail(what)))),
            }
            let Some(stream) = self.stream.as_mut() else { return Poll::Ready(None) };
            match ready!(poll_read(Pin::new(stream), cx)) {
                Ok(read) if !read.is_empty() => self.ahead = read,
                Ok(_) if matches!(self.left, Left::ToTheEnd) => {
                    self.left = Left::Nothing;
                    self.stream = None;
                    return Poll::Ready(None);
                }
                Ok(_) => {
                    return Poll::Ready(Some(Err(self.fail("closed in the middle of the answer"))));
                }
                Err(error) => return Poll::Ready(Some(Err(self.fail(error)))),
            }
        }
    }

    fn fail(&mut self, what: impl fmt::Display) -> CallError {
        self.stream = None;
        self.left = Left::Nothing;
        self.ahead = Bytes::new();
        broken(what)
    }

    /// Content from what was read ahead; `None` when more must be read, or none is left.
    fn take_piece(&mut self) -> Result<Option<Bytes>, &'static str> {
        while !self.ahead.is_empty() {
            match &mut self.left {
                Left::Nothing => return Ok(None),
                Left::ToTheEnd => return Ok(Some(std::mem::take(&mut self.ahead))),
                Left::Bytes(left) => {
                    let here = (self.ahead.len() as u64).min(*left);
                    *left -= here;
                    if *left == 0 {
                        self.left = Left::Nothing;
                    }
                    let here = usize::try_from(here).unwrap_or(usize::MAX);
                    return Ok(Some(self.ahead.split_to(here)));
                }
                Left::Chunks(chunked) => {
                    let piece = chunked.follow(&self.ahead)?;
                    let bytes = self.ahead.split_to(piece.len());
                    match piece {
                        Piece::Data(_) => return Ok(Some(bytes)),
                        Piece::Frame(_) => {}
                        Piece::Over(_) => self.left = Left::Nothing,
                    }
                }
            }
        }
        Ok(None)
    }

    /// The answer is complete: its connection goes back, unless something stands behind the answer
    /// that nobody asked for.
    fn recycle(&mut self) {
        if let Some(stream) = self.stream.take()
            && self.reuse
            && self.ahead.is_empty()
        {
            self.pool.put(stream);
        }
    }
}
