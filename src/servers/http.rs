//! The pooled client to one HTTP model server.
//!
//! Each call drives its own connection: there is no task behind it, so dropping an [`Exchange`] closes
//! the socket in the same instant and nothing can outlive the caller. A connection goes back to the
//! pool only after a complete answer, and leaves it only if its socket is silent: bytes that nobody
//! asked for must never answer the next caller.

use super::{Answer, AnswerBody, Call, CallError, wire::Wire};
use ::http::{
    HeaderMap, HeaderValue, Method, Request, StatusCode, Uri,
    header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HOST, USER_AGENT},
};
use bytes::{Bytes, BytesMut};
use http_body::Body;
use http_body_util::Full;
use hyper::{
    body::Incoming,
    client::conn::http1::{Builder, Connection, SendRequest},
};
use hyper_util::rt::TokioIo;
use std::{
    fmt,
    future::{Future, poll_fn},
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
    time::Duration,
};
use tokio::{net::TcpStream, time::Instant};

/// Python servers close idle connections after 5 s; reusing one at that very moment would lose a
/// request that cannot be sent again. So ours are younger.
const IDLE_AGE_MAX: Duration = Duration::from_secs(4);

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
    headers: HeaderMap,
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
    /// A client for `host:port`; `prefix` stands in front of every path. An API key that cannot be a
    /// header value is left out; the configuration refuses such keys before.
    pub fn new(
        host: String,
        port: u16,
        prefix: String,
        api_key: Option<String>,
        limits: ClientLimits,
    ) -> Self {
        let mut headers = HeaderMap::new();
        if let Ok(value) = HeaderValue::from_str(&format!("{host}:{port}")) {
            headers.insert(HOST, value);
        }
        let agent = concat!("berthd/", env!("CARGO_PKG_VERSION"));
        headers.insert(USER_AGENT, HeaderValue::from_static(agent));
        if let Some(key) = api_key
            && let Ok(mut value) = HeaderValue::from_str(&format!("Bearer {key}"))
        {
            value.set_sensitive(true);
            headers.insert(AUTHORIZATION, value);
        }
        let pool = Arc::new(Pool { idle: Mutex::new(Vec::new()), max: limits.idle_max });
        // The resolver wants an IPv6 address without its brackets.
        let dial = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        Self { address: (dial, port), prefix, headers, limits, pool }
    }

    /// Sends one call and waits for the head of the answer. Dropping the future closes the connection.
    pub async fn send(&self, call: Call) -> Result<Answer, CallError> {
        let mut request = self.request(Method::POST, call.route.path(), call.body)?;
        if let Ok(id) = HeaderValue::from_str(call.request_id.as_str()) {
            request.headers_mut().insert("x-request-id", id);
        }
        let (head, exchange) = self.exchange(request).await?;
        Ok(Answer {
            status: head.status,
            headers: head.headers,
            body: AnswerBody::Wire(Box::new(exchange)),
        })
    }

    /// Reads a small page. `limit` covers everything.
    pub async fn get(
        &self,
        path: &str,
        limit: Duration,
        max_bytes: usize,
    ) -> Result<(StatusCode, Bytes), CallError> {
        let request = self.request(Method::GET, path, Bytes::new())?;
        self.whole(request, limit, max_bytes).await
    }

    /// Posts JSON and reads a small answer. `limit` covers everything.
    pub async fn post(
        &self,
        path: &str,
        body: Bytes,
        limit: Duration,
        max_bytes: usize,
    ) -> Result<(StatusCode, Bytes), CallError> {
        let request = self.request(Method::POST, path, body)?;
        self.whole(request, limit, max_bytes).await
    }

    /// Idle connections in the pool now.
    pub fn idle(&self) -> usize {
        self.pool.lock().len()
    }

    fn request(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> Result<Request<Full<Bytes>>, CallError> {
        let target: Uri = if self.prefix.is_empty() {
            path.parse().map_err(|_| CallError::Connect(format!("bad path {path}")))?
        } else {
            let whole = format!("{}{path}", self.prefix);
            whole.parse().map_err(|_| CallError::Connect(format!("bad path {whole}")))?
        };
        let posts = method == Method::POST;
        let mut request = Request::new(Full::new(body));
        *request.method_mut() = method;
        *request.uri_mut() = target;
        *request.headers_mut() = self.headers.clone();
        if posts {
            let json = HeaderValue::from_static("application/json");
            request.headers_mut().insert(CONTENT_TYPE, json);
            let accept = HeaderValue::from_static("application/json, text/event-stream");
            request.headers_mut().insert(ACCEPT, accept);
        }
        Ok(request)
    }

    async fn whole(
        &self,
        request: Request<Full<Bytes>>,
        limit: Duration,
        max_bytes: usize,
    ) -> Result<(StatusCode, Bytes), CallError> {
        let work = async {
            let (head, mut exchange) = self.exchange(request).await?;
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

    async fn exchange(
        &self,
        request: Request<Full<Bytes>>,
    ) -> Result<(::http::response::Parts, Exchange), CallError> {
        let mut link = match self.pool.take() {
            Some(link) => link,
            None => self.connect().await?,
        };
        let mut response = std::pin::pin!(link.sender.send_request(request));
        let connection = &mut link.connection;
        let mut ended: Option<String> = None;
        let response = poll_fn(|cx| {
            if let Poll::Ready(done) = response.as_mut().poll(cx) {
                return Poll::Ready(Some(done));
            }
            if ended.is_some() {
                return Poll::Ready(None);
            }
            if let Poll::Ready(end) = connection.as_mut().poll(cx) {
                ended = Some(end.err().map_or_else(|| "closed".to_owned(), |e| describe(&e)));
            }
            match response.as_mut().poll(cx) {
                Poll::Ready(done) => Poll::Ready(Some(done)),
                Poll::Pending if ended.is_some() => Poll::Ready(None),
                Poll::Pending => Poll::Pending,
            }
        })
        .await;
        let closed = ended.is_some();
        match response {
            Some(Ok(response)) => {
                let (head, body) = response.into_parts();
                let link = Some(link);
                let pool = Arc::clone(&self.pool);
                let reuse = self.limits.keep_after_stream || !is_stream(&head.headers);
                Ok((head, Exchange { link, body, pool, closed, reuse, over: false }))
            }
            Some(Err(error)) => Err(CallError::Broken(describe(&error))),
            None => Err(CallError::Broken(ended.unwrap_or_default())),
        }
    }

    async fn connect(&self) -> Result<Link, CallError> {
        let (host, port) = (self.address.0.as_str(), self.address.1);
        let stream = tokio::time::timeout(self.limits.connect, TcpStream::connect((host, port)))
            .await
            .map_err(|_| CallError::Connect(format!("no answer within {:?}", self.limits.connect)))?
            .map_err(|error| CallError::Connect(error.to_string()))?;
        // Tokens are small; waiting to fill a packet would delay each.
        stream.set_nodelay(true).map_err(|error| CallError::Connect(error.to_string()))?;
        let wire = Wire::new(stream);
        let (sender, connection) = Builder::new()
            .max_buf_size(MAX_READ_BUFFER)
            .handshake(TokioIo::new(wire.clone()))
            .await
            .map_err(|error| CallError::Connect(describe(&error)))?;
        Ok(Link { sender, connection: Box::pin(connection), wire, idle_since: Instant::now() })
    }
}

fn is_stream(headers: &HeaderMap) -> bool {
    let media = headers.get(CONTENT_TYPE).map(HeaderValue::as_bytes).unwrap_or_default();
    media.starts_with(b"text/event-stream")
}

/// Bounds what a fast server can pile up before a slow caller; also the largest response head.
const MAX_READ_BUFFER: usize = 64 * 1024;

fn describe(error: &hyper::Error) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

// === connections ===

type Io = TokioIo<Wire>;

struct Link {
    sender: SendRequest<Full<Bytes>>,
    connection: Pin<Box<Connection<Io, Full<Bytes>>>>,
    wire: Wire,
    idle_since: Instant,
}

struct Pool {
    /// Guards the idle connections, most recently used last. Held for a push or a pop only.
    idle: Mutex<Vec<Link>>,
    max: usize,
}

impl Pool {
    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Link>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self) -> Option<Link> {
        loop {
            let link = self.lock().pop()?;
            if link.idle_since.elapsed() < IDLE_AGE_MAX
                && link.wire.is_silent()
                && link.sender.is_ready()
            {
                return Some(link);
            }
        }
    }

    fn put(&self, mut link: Link) {
        link.idle_since = Instant::now();
        let mut idle = self.lock();
        // The oldest stand first; they go when they are too old or too many.
        let old = idle.iter().take_while(|link| link.idle_since.elapsed() >= IDLE_AGE_MAX).count();
        let surplus = (idle.len() + 1).saturating_sub(self.max);
        let leaving = old.max(surplus).min(idle.len());
        let gone: Vec<Link> = idle.drain(..leaving).collect();
        if self.max > 0 {
            idle.push(link);
        }
        drop(idle);
        // Closing sockets is the kernel's work: not under the lock.
        drop(gone);
    }
}

/// The body of an answer, together with the connection that carries it.
pub struct Exchange {
    link: Option<Link>,
    body: Incoming,
    pool: Arc<Pool>,
    closed: bool,
    /// The connection may carry another request after this one.
    reuse: bool,
    over: bool,
}

impl fmt::Debug for Exchange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Exchange").field("over", &self.over).finish_non_exhaustive()
    }
}

impl Exchange {
    /// The next piece of the body, `None` at its clean end. After an error or the end, `None`.
    pub fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, CallError>>> {
        if self.over {
            return Poll::Ready(None);
        }
        loop {
            if let Poll::Ready(ready) = self.poll_body(cx) {
                return Poll::Ready(ready);
            }
            // The body waits for the connection: let it read, then look once more.
            let Some(link) = self.link.as_mut().filter(|_| !self.closed) else {
                return Poll::Pending;
            };
            let progressed = link.connection.as_mut().poll(cx);
            if progressed.is_ready() {
                self.closed = true;
                continue;
            }
            return self.poll_body(cx);
        }
    }

    fn poll_body(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, CallError>>> {
        loop {
            match Pin::new(&mut self.body).poll_frame(cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Some(Ok(frame))) => {
                    // Trailers are not merged into anything: dropped.
                    if let Ok(data) = frame.into_data()
                        && !data.is_empty()
                    {
                        return Poll::Ready(Some(Ok(data)));
                    }
                }
                Poll::Ready(Some(Err(error))) => {
                    self.over = true;
                    self.link = None;
                    return Poll::Ready(Some(Err(CallError::Broken(describe(&error)))));
                }
                Poll::Ready(None) => {
                    self.over = true;
                    self.recycle(cx);
                    return Poll::Ready(None);
                }
            }
        }
    }

    fn recycle(&mut self, cx: &mut Context<'_>) {
        let Some(mut link) = self.link.take().filter(|_| self.reuse) else { return };
        // One more turn lets the connection see that its answer is complete.
        if !self.closed && link.connection.as_mut().poll(cx).is_pending() && link.sender.is_ready()
        {
            self.pool.put(link);
        }
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

    async fn get(client: &Client) -> Result<(StatusCode, Bytes), CallError> {
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
    async fn a_request_that_a_server_had_is_never_sent_again() {
        let (client, seen, _task) = server(1, "application/json", false).await;
        get(&client).await.unwrap();
        assert!(matches!(get(&client).await, Err(CallError::Broken(_))));
        assert_eq!(counts(&seen), [1, 2]);
    }
}
