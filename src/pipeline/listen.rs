//! The callers' door: accepts connections within a bound, serves requests on them, and closes without
//! cutting anybody off.

use super::{
    Broker,
    answer::{self, Reply},
    framing::Violation,
    guard::{Guarded, Patience},
    record::{Books, Record},
};
use crate::{
    api::refuse,
    error::{Reason, Refusal},
    ids::RequestId,
};
use bytes::Bytes;
use http::{Request, Response};
use http_body::{Body, Frame, SizeHint};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use std::{
    convert::Infallible,
    future::{Future, poll_fn},
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore, watch},
    task::JoinSet,
};

/// First and longest pause after the system refused to accept (out of file descriptors, say).
const ACCEPT_PAUSE: (Duration, Duration) = (Duration::from_millis(10), Duration::from_secs(1));
/// After a refusal at the connection's end, what the caller still sends is read this long, so that
/// closing does not erase the refusal on its way.
const LINGER: Duration = Duration::from_secs(1);
/// Read buffer of one connection at most, which also bounds a request's head.
const BUFFER_MAX: usize = 64 * 1024 + 4096;

/// Accepts and serves until `stop` turns true, then lets running requests finish. Dropping the future
/// closes every connection.
pub async fn serve(broker: Arc<Broker>, listener: TcpListener, stop: watch::Receiver<bool>) {
    let settings = broker.live.load_full();
    let permits = Arc::new(Semaphore::new(settings.settings.listen.connections_max));
    let patience = Patience {
        head: settings.settings.listen.head_limit,
        idle: settings.settings.listen.idle_limit,
    };
    drop(settings);
    let mut connections = JoinSet::new();
    let mut stopping = stop.clone();
    loop {
        // Ended connections are forgotten as new ones come, so the set stays as small as the permits.
        while connections.try_join_next().is_some() {}
        let next = tokio::select! {
            next = accept(&listener, &permits) => next,
            () = stopped(&mut stopping) => break,
        };
        let Some((stream, permit)) = next else { break };
        let connection = connection(Arc::clone(&broker), stream, patience, stop.clone(), permit);
        connections.spawn(connection);
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
}

/// Waits until the daemon stops. Whoever would say so being gone means the same.
async fn stopped(stop: &mut watch::Receiver<bool>) {
    let _ = stop.wait_for(|stop| *stop).await.map(drop);
}

async fn accept(
    listener: &TcpListener,
    permits: &Arc<Semaphore>,
) -> Option<(TcpStream, OwnedSemaphorePermit)> {
    let permit = Arc::clone(permits).acquire_owned().await.ok()?;
    let mut pause = ACCEPT_PAUSE.0;
    loop {
        match listener.accept().await {
            Ok((stream, _)) => return Some((stream, permit)),
            Err(error) if is_callers_fault(&error) => {}
            Err(error) => {
                tracing::warn!(%error, "cannot accept connections; trying again");
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(ACCEPT_PAUSE.1);
            }
        }
    }
}

/// The connection broke before it was accepted: nothing is wrong here.
fn is_callers_fault(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionReset, Interrupted};
    matches!(error.kind(), ConnectionAborted | ConnectionReset | Interrupted)
}

/// Counts a connection for as long as it lives.
struct Counted(Arc<Broker>);

impl Counted {
    fn new(broker: &Arc<Broker>) -> Self {
        broker.books.metrics.connection(1);
        Self(Arc::clone(broker))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.books.metrics.connection(-1);
    }
}

async fn connection(
    broker: Arc<Broker>,
    stream: TcpStream,
    patience: Patience,
    mut stop: watch::Receiver<bool>,
    permit: OwnedSemaphorePermit,
) {
    let _permit = permit;
    let _counted = Counted::new(&broker);
    // Tokens are small; waiting to fill a packet would delay each.
    if stream.set_nodelay(true).is_err() {
        return;
    }
    let busy = Arc::new(AtomicUsize::new(0));
    let books = Arc::clone(&broker.books);
    let service = service_fn({
        let busy = Arc::clone(&busy);
        move |request: Request<Incoming>| {
            let broker = Arc::clone(&broker);
            let busy = Busy::new(&busy);
            Box::pin(async move {
                let response = unpanicked(broker, request).await;
                Ok::<_, Infallible>(response.map(|reply| Answering { reply, _busy: busy }))
            })
        }
    });
    let guarded = Guarded::new(stream, patience, Arc::clone(&busy));
    let mut http = http1::Builder::new();
    http.max_buf_size(BUFFER_MAX);
    let mut connection = http.serve_connection(TokioIo::new(guarded), service);
    let result = tokio::select! {
        result = poll_fn(|cx| connection.poll_without_shutdown(cx)) => result,
        () = stopped(&mut stop) => {
            Pin::new(&mut connection).graceful_shutdown();
            poll_fn(|cx| connection.poll_without_shutdown(cx)).await
        }
    };
    let answering = busy.load(Ordering::Relaxed) > 0;
    let guarded = connection.into_parts().io.into_inner();
    let answering = answering && guarded.has_answered();
    let (mut stream, violation) = guarded.into_parts();
    match (result, violation) {
        // In the middle of an answer there is no place for another. Between two requests the library
        // takes the guard's error for an orderly end, so its own result says nothing here.
        (_, Some(violation)) if !answering => refuse_framing(&mut stream, violation, books).await,
        (Ok(()), _) => drop(stream.shutdown().await),
        (Err(_), _) => {}
    }
}

/// Says what was wrong, then closes.
async fn refuse_framing(stream: &mut TcpStream, violation: Violation, books: Arc<Books>) {
    let reason = match violation {
        Violation::SlowHead => Reason::BodyTimeout,
        Violation::Rule(_) | Violation::LargeHead => Reason::BadFraming,
    };
    let id = RequestId::fresh();
    let refusal = Refusal::new(reason, violation.text());
    // Attacks should show: one line and one count, like any other refused request.
    Record::begin(books, id.clone(), "none").refused(&refusal);
    let body = refuse::body(&refusal, &id);
    let status = refuse::status(&refusal);
    let mut text = format!(
        "HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n{}: {id}\r\n\r\n",
        body.len(),
        refuse::REQUEST_ID,
    )
    .into_bytes();
    text.extend_from_slice(&body);
    let goodbye = async {
        stream.write_all(&text).await?;
        stream.shutdown().await?;
        let mut rest = [0u8; 4096];
        while stream.read(&mut rest).await? > 0 {}
        io::Result::Ok(())
    };
    // The connection is over either way.
    let _ = tokio::time::timeout(LINGER, goodbye).await;
}

/// One request being answered.
struct Busy(Arc<AtomicUsize>);

impl Busy {
    fn new(count: &Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(count))
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The body of an answer, which keeps its connection busy until its last byte.
struct Answering {
    reply: Reply,
    _busy: Busy,
}

impl Body for Answering {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Pin::new(&mut self.reply).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.reply.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.reply.size_hint()
    }
}

/// Handles a request; a panic in it costs this request and no other.
async fn unpanicked(broker: Arc<Broker>, request: Request<Incoming>) -> Response<Reply> {
    // Made here, so that the answer after a panic has the id that the log has.
    let id = RequestId::fresh();
    let mut work = std::pin::pin!(broker.handle_as(id.clone(), request));
    let done = poll_fn(|cx| match catch_unwind(AssertUnwindSafe(|| work.as_mut().poll(cx))) {
        Ok(poll) => poll.map(Some),
        Err(_) => Poll::Ready(None),
    })
    .await;
    done.unwrap_or_else(|| {
        tracing::error!(id = id.as_str(), "a request ended by a fault of this daemon");
        let text =
            "A fault of this daemon ended the request. Please report it with the request id.";
        answer::refused(&Refusal::new(Reason::Internal, text), &id)
    })
}
