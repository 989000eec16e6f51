//! The pooled client to one HTTP model server.
//!
//! A connection goes back to the pool only after a complete answer, and leaves it only if its socket is
//! silent: bytes that nobody asked for must never answer the next caller.

use super::{
    Answer, AnswerBody, Call, CallError,
    exchange::{self, Exchange, Head},
};
use ::http::{HeaderMap, HeaderValue, StatusCode, header::CONTENT_TYPE};
use bytes::{BufMut, Bytes, BytesMut};
use std::{
    collections::VecDeque,
    fmt,
    future::poll_fn,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::{net::TcpStream, time::Instant};

/// Python servers close idle connections after 5 s; reusing one at that very moment would lose a
/// request that cannot be sent again. So ours are younger.
const IDLE_AGE_MAX: Duration = Duration::from_secs(4);

/// A connection rests this long before it is used again. What a server sends behind an answer, unasked,
/// comes within this; read after the next request it would pass for its answer.
const REST: Duration = Duration::from_millis(1);

/// Limits of one server's client.
#[derive(Clone, Copy, Debug)]
pub struct ClientLimits {
    /// A connection must be made within this.
    pub connect: Duration,
    /// Idle connections kept.
    pub idle_max: usize,
    /// Keep a connection that carried a stream. Not where the server closes behind streams without
    /// saying so before, as llama.cpp does: its close could cross the next request, which may not be
    /// sent twice.
    pub keep_after_stream: bool,
}

/// One server's connections.
pub struct Client {
    address: (String, u16),
    prefix: String,
    /// The headers of every request, as they stand on the wire.
    headers: Vec<u8>,
    limits: ClientLimits,
    pool: Arc<Pool>,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The headers hold the server's API key.
        f.debug_struct("Client").field("address", &self.address).finish_non_exhaustive()
    }
}

impl Client {
    /// Host and port of the server.
    pub fn address(&self) -> (&str, u16) {
        (&self.address.0, self.address.1)
    }

    /// A client for `host:port`; `prefix` stands in front of every path. An API key that cannot be a
    /// header value is left out; the configuration refuses such keys before.
    pub fn new(
        host: String,
        port: u16,
        prefix: String,
        api_key: Option<String>,
        limits: ClientLimits,
    ) -> Self {
        let agent = concat!("berthd/", env!("CARGO_PKG_VERSION"));
        let mut headers = format!("host: {host}:{port}\r\nuser-agent: {agent}\r\n").into_bytes();
        headers.extend_from_slice(b"accept: application/json, text/event-stream\r\n");
        if let Some(key) = api_key
            && let Ok(value) = HeaderValue::from_str(&format!("Bearer {key}"))
        {
            headers.extend_from_slice(b"authorization: ");
            headers.extend_from_slice(value.as_bytes());
            headers.extend_from_slice(b"\r\n");
        }
        let pool = Arc::new(Pool { idle: Mutex::new(VecDeque::new()), max: limits.idle_max });
        // The resolver wants an IPv6 address without its brackets.
        let dial = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        Self { address: (dial, port), prefix, headers, limits, pool }
    }

    /// Sends one call and waits for the head of the answer. Dropping the future closes the connection.
    pub async fn send(&self, call: Call) -> Result<Answer, CallError> {
        let head = self.head("POST", call.route.path(), &call.body, Some(call.request_id.as_str()));
        let (Head { status, headers }, exchange) = self.exchange(&head, &call.body).await?;
        Ok(Answer { status, headers, body: AnswerBody::Wire(Box::new(exchange)) })
    }

    /// Reads a small page. `limit` covers everything.
    pub async fn get(
        &self,
        path: &str,
        limit: Duration,
        max_bytes: usize,
    ) -> Result<(StatusCode, Bytes), CallError> {
        self.whole("GET", path, Bytes::new(), limit, max_bytes).await
    }

    /// Posts JSON and reads a small answer. `limit` covers everything.
    pub async fn post(
        &self,
        path: &str,
        body: Bytes,
        limit: Duration,
        max_bytes: usize,
    ) -> Result<(StatusCode, Bytes), CallError> {
        self.whole("POST", path, body, limit, max_bytes).await
    }

    /// A request's head. `path` and `id` are our own words, never a caller's.
    fn head(&self, method: &str, path: &str, body: &Bytes, id: Option<&str>) -> BytesMut {
        let mut head = BytesMut::with_capacity(self.headers.len() + path.len() + 160);
        for part in [method, " ", &self.prefix, path, " HTTP/1.1\r\n"] {
            head.put_slice(part.as_bytes());
        }
        head.put_slice(&self.headers);
        if let Some(id) = id {
            for part in ["x-request-id: ", id, "\r\n"] {
                head.put_slice(part.as_bytes());
            }
        }
        if method == "POST" {
            head.put_slice(b"content-type: application/json\r\ncontent-length: ");
            head.put_slice(body.len().to_string().as_bytes());
            head.put_slice(b"\r\n");
        }
        head.put_slice(b"\r\n");
        head
    }

    async fn whole(
        &self,
        method: &str,
        path: &str,
        body: Bytes,
        limit: Duration,
        max_bytes: usize,
    ) -> Result<(StatusCode, Bytes), CallError> {
        let work = async {
            let head = self.head(method, path, &body, None);
            let (head, mut exchange) = self.exchange(&head, &body).await?;
            let mut page = BytesMut::new();
            while let Some(piece) = poll_fn(|cx| exchange.poll_next(cx)).await {
                let piece = piece?;
                if page.len() + piece.len() > max_bytes {
                    return Err(CallError::Broken(format!("answer larger than {max_bytes} bytes")));
                }
                page.extend_from_slice(&piece);
            }
            Ok((head.status, page.freeze()))
        };
        tokio::time::timeout(limit, work)
            .await
            .unwrap_or_else(|_| Err(CallError::Broken(format!("no answer within {limit:?}"))))
    }

    async fn exchange(&self, head: &[u8], body: &Bytes) -> Result<(Head, Exchange), CallError> {
        let stream = match self.pool.take() {
            Some(stream) => stream,
            None => self.connect().await?,
        };
        let (head, mut exchange) = exchange::begin(stream, head, body, &self.pool).await?;
        if !self.limits.keep_after_stream && is_stream(&head.headers) {
            exchange.forbid_reuse();
        }
        Ok((head, exchange))
    }

    async fn connect(&self) -> Result<TcpStream, CallError> {
        let (host, port) = (self.address.0.as_str(), self.address.1);
        let stream = tokio::time::timeout(self.limits.connect, TcpStream::connect((host, port)))
            .await
            .map_err(|_| CallError::Connect(format!("no answer within {:?}", self.limits.connect)))?
            .map_err(|error| CallError::Connect(error.to_string()))?;
        // Tokens are small; waiting to fill a packet would delay each.
        stream.set_nodelay(true).map_err(|error| CallError::Connect(error.to_string()))?;
        Ok(stream)
    }
}

fn is_stream(headers: &HeaderMap) -> bool {
    let media = headers.get(CONTENT_TYPE).map(HeaderValue::as_bytes).unwrap_or_default();
    media.starts_with(b"text/event-stream")
}

// === the pool ===

struct Idle {
    stream: TcpStream,
    since: Instant,
}

impl Idle {
    /// An idle HTTP/1 socket has nothing to read. Bytes are an answer nobody asked for, the end of
    /// stream is a closed connection; both make it useless. Asked of the kernel itself, since the
    /// runtime's idea of readiness may be older than the bytes.
    fn is_silent(&self) -> bool {
        use rustix::net::{RecvFlags, recv};
        let mut byte = [0u8; 1];
        let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
        matches!(recv(&self.stream, &mut byte[..], flags), Err(rustix::io::Errno::AGAIN))
    }
}

/// The idle connections of one client.
pub(super) struct Pool {
    /// Guards them, the one that has rested longest first. Held for a push or a pop only.
    idle: Mutex<VecDeque<Idle>>,
    max: usize,
}

impl Pool {
    fn lock(&self) -> MutexGuard<'_, VecDeque<Idle>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self) -> Option<TcpStream> {
        loop {
            let idle = {
                let mut all = self.lock();
                // If the first has not rested, none has.
                if all.front()?.since.elapsed() < REST {
                    return None;
                }
                all.pop_front()?
            };
            if idle.since.elapsed() < IDLE_AGE_MAX && idle.is_silent() {
                return Some(idle.stream);
            }
        }
    }

    pub(super) fn put(&self, stream: TcpStream) {
        let mut idle = self.lock();
        // The oldest stand first; they go when they are too old or too many.
        let old = idle.iter().take_while(|idle| idle.since.elapsed() >= IDLE_AGE_MAX).count();
        let surplus = (idle.len() + 1).saturating_sub(self.max);
        let leaving = old.max(surplus).min(idle.len());
        let gone: Vec<Idle> = idle.drain(..leaving).collect();
        if self.max > 0 {
            idle.push_back(Idle { stream, since: Instant::now() });
        }
        drop(idle);
        // Closing sockets is the kernel's work: not under the lock.
        drop(gone);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use tokio::{
        io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
        net::TcpListener,
        task::JoinSet,
    };

    /// A server that answers so many requests on each connection, and ends it at the next one. Counts
    /// connections and requests.
    async fn server(
        answers: usize,
        media: &'static str,
        keep_after_stream: bool,
    ) -> (Client, Arc<[AtomicUsize; 2]>, JoinSet<()>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let seen = Arc::new([AtomicUsize::new(0), AtomicUsize::new(0)]);
        let counts = Arc::clone(&seen);
        let mut task = JoinSet::new();
        task.spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                counts[0].fetch_add(1, Ordering::Relaxed);
                let mut stream = BufReader::new(stream);
                for turn in 0..=answers {
                    let mut line = String::from("-");
                    while !line.trim().is_empty() {
                        line.clear();
                        stream.read_line(&mut line).await.unwrap();
                    }
                    if line.is_empty() {
                        break;
                    }
                    counts[1].fetch_add(1, Ordering::Relaxed);
                    if turn < answers {
                        let head = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n";
                        let answer = format!("{head}content-type: {media}\r\n\r\nhi");
                        stream.write_all(answer.as_bytes()).await.unwrap();
                    }
                }
            }
        });
        let limits =
            ClientLimits { connect: Duration::from_secs(2), idle_max: 4, keep_after_stream };
        let client = Client::new("127.0.0.1".into(), port, String::new(), None, limits);
        (client, seen, task)
    }

    /// Asks once every connection in the pool has rested.
    async fn get(client: &Client) -> Result<(StatusCode, Bytes), CallError> {
        tokio::time::sleep(REST * 2).await;
        client.get("/", Duration::from_secs(5), 100).await
    }

    fn counts(seen: &[AtomicUsize; 2]) -> [usize; 2] {
        [seen[0].load(Ordering::Relaxed), seen[1].load(Ordering::Relaxed)]
    }

    #[tokio::test]
    async fn connections_are_reused() {
        let (client, seen, _task) = server(3, "application/json", false).await;
        for _ in 0..3 {
            assert_eq!(get(&client).await.unwrap().1, "hi");
        }
        assert_eq!(counts(&seen), [1, 3]);
    }

    #[tokio::test]
    async fn a_connection_that_carried_a_stream_is_kept_only_where_that_is_safe() {
        // One answer a connection, then a close that crosses the next request.
        let (client, seen, _task) = server(1, "text/event-stream", false).await;
        for _ in 0..3 {
            assert_eq!(get(&client).await.unwrap().1, "hi");
        }
        assert_eq!(counts(&seen), [3, 3]);
        let (client, seen, _task) = server(3, "text/event-stream", true).await;
        for _ in 0..3 {
            assert_eq!(get(&client).await.unwrap().1, "hi");
        }
        assert_eq!(counts(&seen), [1, 3]);
    }

    #[tokio::test]
    async fn a_connection_that_has_not_rested_is_not_used() {
        let (client, seen, _task) = server(3, "application/json", false).await;
        get(&client).await.unwrap();
        tokio::time::pause();
        assert_eq!(client.pool.lock().len(), 1);
        assert!(client.pool.take().is_none());
        tokio::time::advance(REST).await;
        assert!(client.pool.take().is_some());
        assert_eq!(counts(&seen), [1, 1]);
    }

    #[tokio::test]
    async fn a_request_that_a_server_had_is_never_sent_again() {
        let (client, seen, _task) = server(1, "application/json", false).await;
        get(&client).await.unwrap();
        assert!(matches!(get(&client).await, Err(CallError::Broken(_))));
        assert_eq!(counts(&seen), [1, 2]);
    }
}
