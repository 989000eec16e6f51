//! The two ends of a request on the wire: its bounded body, and the body of its answer.

use super::flow::Begun;
use crate::{
    api::refuse,
    config::Limits,
    error::{Reason, Refusal},
    ids::RequestId,
};
use bytes::{Bytes, BytesMut};
use http::{
    HeaderMap, Response,
    header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE},
};
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt;
use std::{
    convert::Infallible,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// The body of an answer.
#[derive(Debug)]
pub enum Reply {
    /// All of it.
    Whole(Option<Bytes>),
    /// As it comes.
    Stream(Box<Begun>),
}

impl Body for Reply {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        match &mut *self {
            Self::Whole(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Self::Stream(flow) => Pin::new(flow.as_mut()).poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self, Self::Whole(None))
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, Bytes::len) as u64),
            Self::Stream(_) => SizeHint::default(),
        }
    }
}

/// The answer to a refused request.
pub fn refused(refusal: &Refusal, id: &RequestId) -> Response<Reply> {
    refused_in(refuse::Form::OpenAi, refusal, id)
}

/// The same in the form of another API.
pub fn refused_in(form: refuse::Form, refusal: &Refusal, id: &RequestId) -> Response<Reply> {
    refuse::response_in(form, refusal, id).map(|body| Reply::Whole(Some(body)))
}

/// Only plain JSON is read. A missing media type is forgiven; a wrong one is not, since it means that
/// the caller's library did something else than its author thought.
pub fn check_media(headers: &HeaderMap) -> Result<(), Refusal> {
    if let Some(value) = headers.get(CONTENT_TYPE) {
        let media = value.to_str().unwrap_or_default().split(';').next().unwrap_or_default().trim();
        if !media.eq_ignore_ascii_case("application/json") {
            let text = "The body must be JSON: send 'Content-Type: application/json'.";
            return Err(Refusal::new(Reason::UnsupportedMediaType, text));
        }
    }
    match headers.get(CONTENT_ENCODING).map(http::HeaderValue::as_bytes) {
        None | Some(b"identity") => Ok(()),
        Some(_) => {
            let text =
                "Compressed bodies are not read here. Send the JSON without Content-Encoding.";
            Err(Refusal::new(Reason::UnsupportedMediaType, text))
        }
    }
}

/// How much of a body that is too large is read on, so that the caller who is still sending it hears
/// why instead of seeing the connection reset.
const SURPLUS_MAX: usize = 64 << 20;
/// And for how long.
const SURPLUS_LIMIT: Duration = Duration::from_secs(5);

/// Takes room for a body before a byte of it is read, `all_kib` at most. What does not say its length
/// takes the most that one may have. The room is held for as long as the body is.
///
/// # Errors
/// No room came within `limit`.
pub async fn body_room(
    bodies: &Arc<Semaphore>,
    all_kib: usize,
    headers: &HeaderMap,
    limits: &Limits,
    limit: Duration,
) -> Result<OwnedSemaphorePermit, Refusal> {
    let max = limits.body_max.get();
    let kib = match announced(headers) {
        // It will be refused, and nothing of it is kept.
        Some(length) if length > max => 0,
        length => usize::try_from(length.unwrap_or(max).div_ceil(1024)).unwrap_or(all_kib),
    };
    let kib = u32::try_from(kib.min(all_kib)).unwrap_or(u32::MAX);
    match tokio::time::timeout(limit, Arc::clone(bodies).acquire_many_owned(kib)).await {
        Ok(Ok(room)) => Ok(room),
        Ok(Err(_)) | Err(_) => {
            let text = "Too many large requests come in at once. Retry in a moment.";
            Err(Refusal::new(Reason::QueueFull, text).retry_after(Duration::from_secs(1)))
        }
    }
}

fn announced(headers: &HeaderMap) -> Option<u64> {
    headers.get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok())
}

/// Reads a body within its bounds of size and time.
///
/// # Errors
/// Too large, too slow, or broken off.
pub async fn read_body<B>(
    body: &mut B,
    headers: &HeaderMap,
    limits: &Limits,
    limit: Duration,
) -> Result<Bytes, Refusal>
where
    B: Body<Data = Bytes> + Unpin,
{
    let max = usize::try_from(limits.body_max.get()).unwrap_or(usize::MAX);
    let announced = announced(headers).map(|length| usize::try_from(length).unwrap_or(usize::MAX));
    let whole = async {
        // What is announced as too large is not gathered first.
        if announced.is_some_and(|length| length > max) {
            return Ok(None);
        }
        read(body, max, announced.unwrap_or(0)).await
    };
    match tokio::time::timeout(limit, whole).await {
        Ok(Ok(Some(bytes))) => Ok(bytes),
        Ok(Ok(None)) => {
            let rest = skip(body, SURPLUS_MAX);
            // Whatever comes of it, the answer is the same.
            let _ = tokio::time::timeout(SURPLUS_LIMIT, rest).await;
            let text = format!(
                "The body is larger than {} MiB, the most this daemon takes. Send less, or ask the operator to raise limits.body_max_mib.",
                limits.body_max.get() >> 20
            );
            Err(Refusal::new(Reason::BodyTooLarge, text))
        }
        Ok(Err(())) => {
            let text = "The connection broke while the body was coming.";
            Err(Refusal::new(Reason::BadFraming, text))
        }
        Err(_) => {
            let text = format!("The body did not come within {:.0} s.", limit.as_secs_f64());
            Err(Refusal::new(Reason::BodyTimeout, text))
        }
    }
}

/// How much of a refused request's body is read, and for how long, so that a caller who is still
/// sending it hears the refusal instead of a reset. Little: nobody here is known yet.
const REFUSED_MAX: usize = 1 << 20;
const REFUSED_LIMIT: Duration = Duration::from_millis(500);

/// Reads away what is left of a refused request.
pub async fn discard<B>(body: &mut B)
where
    B: Body<Data = Bytes> + Unpin,
{
    if !body.is_end_stream() {
        // Whatever comes of it, the answer is the same.
        let _ = tokio::time::timeout(REFUSED_LIMIT, skip(body, REFUSED_MAX)).await;
    }
}

/// Reads a body on until more than `left` bytes have come. Each piece goes before the next is asked for:
/// what nobody will read must not add up, over thousands of connections, to memory that others need.
async fn skip<B>(body: &mut B, mut left: usize)
where
    B: Body<Data = Bytes> + Unpin,
{
    while let Some(Ok(frame)) = body.frame().await {
        let Some(rest) = left.checked_sub(frame.data_ref().map_or(0, Bytes::len)) else { return };
        left = rest;
    }
}

/// `None`: more than `max`. A body that came in one piece is not copied.
async fn read<B>(body: &mut B, max: usize, expect: usize) -> Result<Option<Bytes>, ()>
where
    B: Body<Data = Bytes> + Unpin,
{
    let mut first = Bytes::new();
    let mut all = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame.map_err(|_| ())?.into_data() else { continue };
        if first.len().max(all.len()) + data.len() > max {
            return Ok(None);
        }
        if first.is_empty() && all.is_empty() {
            first = data;
        } else {
            if all.is_empty() {
                all.reserve(expect.max(first.len() + data.len()));
                all.extend_from_slice(&first);
            }
            all.extend_from_slice(&data);
        }
    }
    Ok(Some(if all.is_empty() { first } else { all.freeze() }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;
    use std::sync::atomic::{AtomicUsize, Ordering};

    const PIECE: usize = 64 * 1024;

    /// A body without end that knows how many of its bytes are still held by somebody.
    #[derive(Default)]
    struct Endless {
        live: Arc<AtomicUsize>,
        peak: usize,
        sent: usize,
    }

    /// One piece of it.
    struct Held(Vec<u8>, Arc<AtomicUsize>);

    impl AsRef<[u8]> for Held {
        fn as_ref(&self) -> &[u8] {
            &self.0
        }
    }

    impl Drop for Held {
        fn drop(&mut self) {
            self.1.fetch_sub(self.0.len(), Ordering::Relaxed);
        }
    }

    impl Body for Endless {
        type Data = Bytes;
        type Error = Infallible;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
            let live = self.live.fetch_add(PIECE, Ordering::Relaxed) + PIECE;
            self.peak = self.peak.max(live);
            self.sent += PIECE;
            let piece = Held(vec![b'x'; PIECE], Arc::clone(&self.live));
            Poll::Ready(Some(Ok(Frame::data(Bytes::from_owner(piece)))))
        }
    }

    /// What is read only to be thrown away was gathered first: a MiB for each connection without a key.
    #[tokio::test]
    async fn a_refused_body_is_not_gathered() {
        let mut body = Endless::default();
        discard(&mut body).await;
        assert!(body.sent > REFUSED_MAX, "{}", body.sent);
        assert_eq!((body.peak, body.live.load(Ordering::Relaxed)), (PIECE, 0));
    }

    /// The same for a body that is too large: 64 MiB for each.
    #[tokio::test]
    async fn the_surplus_of_a_body_is_not_gathered() {
        let limits = crate::config::parse_text("test", "").unwrap().settings.limits;
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_LENGTH, HeaderValue::from(1_u64 << 40));
        let mut body = Endless::default();
        let read = read_body(&mut body, &headers, &limits, Duration::from_secs(60)).await;
        assert_eq!(read.unwrap_err().reason, Reason::BodyTooLarge);
        assert!(body.sent > SURPLUS_MAX, "{}", body.sent);
        assert_eq!((body.peak, body.live.load(Ordering::Relaxed)), (PIECE, 0));
    }
}
