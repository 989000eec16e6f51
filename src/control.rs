//! The operators' doors: the Unix socket and the admin listener. HTTP on both, so that `curl` works.
//!
//! They read snapshots and never slow a request: few readers at a time, each with a short limit.

use crate::{
    ids::ServerId,
    metrics,
    pipeline::{Broker, models},
    report::{self, Addresses},
    snapshot::GpuPlane,
};
use bytes::Bytes;
use http::{
    HeaderMap, HeaderValue, Method, Request, Response, StatusCode,
    header::{ACCEPT, ALLOW, CONTENT_TYPE},
};
use http_body_util::Full;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use std::{
    convert::Infallible,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, UnixListener},
    sync::{Semaphore, mpsc, oneshot, watch},
    task::JoinSet,
};

/// Readers at once on each door.
const READERS_MAX: usize = 8;
/// How long one may take, a reload included.
const READER_LIMIT: Duration = Duration::from_secs(30);

/// A wish to read the configuration anew, with the place for the answer: what changed, or every
/// problem that kept it from changing anything.
pub type ReloadWish = oneshot::Sender<Result<String, String>>;

/// What the doors show and do.
pub struct Control {
    broker: Arc<Broker>,
    gpus: watch::Receiver<Arc<GpuPlane>>,
    addresses: Addresses,
    reload: mpsc::Sender<ReloadWish>,
}

/// Which door a request came through. Only the socket, which the file system guards, may change
/// anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Door {
    Socket,
    Admin,
}

impl Control {
    /// The doors of one daemon.
    pub fn new(
        broker: Arc<Broker>,
        gpus: watch::Receiver<Arc<GpuPlane>>,
        addresses: Addresses,
        reload: mpsc::Sender<ReloadWish>,
    ) -> Arc<Self> {
        Arc::new(Self { broker, gpus, addresses, reload })
    }

    /// Serves the Unix socket. Never returns; dropping the future closes its connections.
    pub async fn serve_socket(self: Arc<Self>, listener: UnixListener) {
        let permits = Arc::new(Semaphore::new(READERS_MAX));
        let mut readers = JoinSet::new();
        loop {
            while readers.try_join_next().is_some() {}
            let Ok(permit) = Arc::clone(&permits).acquire_owned().await else { return };
            match listener.accept().await {
                Ok((stream, _)) => {
                    let control = Arc::clone(&self);
                    readers.spawn(async move {
                        let _permit = permit;
                        control.connection(stream, Door::Socket).await;
                    });
                }
                Err(error) => pause("control socket", &error).await,
            }
        }
    }

    /// Serves the admin listener. Never returns; dropping the future closes its connections.
    pub async fn serve_admin(self: Arc<Self>, listener: TcpListener) {
        let permits = Arc::new(Semaphore::new(READERS_MAX));
        let mut readers = JoinSet::new();
        loop {
            while readers.try_join_next().is_some() {}
            let Ok(permit) = Arc::clone(&permits).acquire_owned().await else { return };
            match listener.accept().await {
                Ok((stream, _)) => {
                    let control = Arc::clone(&self);
                    readers.spawn(async move {
                        let _permit = permit;
                        control.connection(stream, Door::Admin).await;
                    });
                }
                Err(error) => pause("admin listener", &error).await,
            }
        }
    }

    async fn connection<S>(self: Arc<Self>, stream: S, door: Door)
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let service = service_fn(|request: Request<Incoming>| {
            let control = Arc::clone(&self);
            async move { Ok::<_, Infallible>(control.answer(&request, door).await) }
        });
        // One answer each: a reader that keeps its connection would keep others out.
        let serve =
            http1::Builder::new().keep_alive(false).serve_connection(TokioIo::new(stream), service);
        // A reader who leaves early is no news.
        let _ = tokio::time::timeout(READER_LIMIT, serve).await;
    }

    async fn answer(&self, request: &Request<Incoming>, door: Door) -> Response<Full<Bytes>> {
        let path = request.uri().path();
        let reads = request.method() == Method::GET || request.method() == Method::HEAD;
        match path {
            "/status" if reads => self.status(),
            "/metrics" if reads => self.metrics(request.headers()),
            "/healthz" if reads => self.health(),
            "/status" | "/metrics" | "/healthz" => wrong_method("GET"),
            _ if door == Door::Admin => {
                text(StatusCode::NOT_FOUND, "Here are /metrics, /status and /healthz.\n")
            }
            _ if request.method() != Method::POST => match path {
                "/reload" => wrong_method("POST"),
                _ if path.starts_with("/drain/") || path.starts_with("/undrain/") => {
                    wrong_method("POST")
                }
                _ => text(
                    StatusCode::NOT_FOUND,
                    "Here are GET /status, /metrics, /healthz and POST /drain/SERVER, /undrain/SERVER, /reload.\n",
                ),
            },
            "/reload" => self.reload().await,
            _ => match (path.strip_prefix("/drain/"), path.strip_prefix("/undrain/")) {
                (Some(server), _) => self.drain(server, true),
                (_, Some(server)) => self.drain(server, false),
                _ => text(
                    StatusCode::NOT_FOUND,
                    "Here are POST /drain/SERVER, /undrain/SERVER, /reload.\n",
                ),
            },
        }
    }

    fn status(&self) -> Response<Full<Bytes>> {
        let gpus = Arc::clone(&self.gpus.borrow());
        match serde_json::to_vec(&report::status(&self.broker, &gpus, &self.addresses)) {
            Ok(body) => typed(StatusCode::OK, "application/json", body),
            Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, &format!("{error}\n")),
        }
    }

    /// In the format that the reader asks for, as Prometheus does; older text for everybody else.
    fn metrics(&self, headers: &HeaderMap) -> Response<Full<Bytes>> {
        let gpus = Arc::clone(&self.gpus.borrow());
        let dispatch = &self.broker.dispatch;
        let page = self.broker.books.metrics.page(&dispatch.waiting(), &dispatch.servers(), &gpus);
        let accept = headers.get(ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or_default();
        if accept.contains("application/openmetrics-text") {
            let media = "application/openmetrics-text; version=1.0.0; charset=utf-8";
            return typed(StatusCode::OK, media, page.into_bytes());
        }
        let media = "text/plain; version=0.0.4; charset=utf-8";
        typed(StatusCode::OK, media, metrics::older_text(&page).into_bytes())
    }

    fn health(&self) -> Response<Full<Bytes>> {
        if self.broker.stopping.load(Ordering::Relaxed) {
            return text(StatusCode::SERVICE_UNAVAILABLE, "stopping\n");
        }
        text(StatusCode::OK, "ok\n")
    }

    fn drain(&self, server: &str, drained: bool) -> Response<Full<Bytes>> {
        let id = ServerId::from(models::decoded(server));
        let known = self.broker.dispatch.set_drained(&id, drained);
        if !known {
            let servers = self.broker.dispatch.servers();
            let names: Vec<&str> = servers.iter().map(|view| view.state.id.as_str()).collect();
            let what = format!("There is no server '{id}'. Servers: {}.\n", names.join(", "));
            return text(StatusCode::NOT_FOUND, &what);
        }
        tracing::info!(server = id.as_str(), drained, "an operator changed a server");
        let what = if drained {
            format!("Server '{id}' takes nothing new; what runs there may finish.\n")
        } else {
            format!("Server '{id}' takes requests again.\n")
        };
        text(StatusCode::OK, &what)
    }

    async fn reload(&self) -> Response<Full<Bytes>> {
        let (give, take) = oneshot::channel();
        if self.reload.send(give).await.is_err() {
            return text(StatusCode::SERVICE_UNAVAILABLE, "The daemon is stopping.\n");
        }
        match take.await {
            Ok(Ok(what)) => text(StatusCode::OK, &format!("{what}\n")),
            Ok(Err(problems)) => text(
                StatusCode::UNPROCESSABLE_ENTITY,
                &format!("Nothing was changed.\n{problems}\n"),
            ),
            Err(_) => text(StatusCode::SERVICE_UNAVAILABLE, "The daemon is stopping.\n"),
        }
    }
}

/// Out of file descriptors, most likely: a moment's pause instead of a busy loop.
async fn pause(door: &str, error: &std::io::Error) {
    tracing::warn!(%error, door, "cannot accept; trying again");
    tokio::time::sleep(Duration::from_millis(200)).await;
}

fn wrong_method(right: &'static str) -> Response<Full<Bytes>> {
    let mut response = text(StatusCode::METHOD_NOT_ALLOWED, &format!("This takes {right}.\n"));
    response.headers_mut().insert(ALLOW, HeaderValue::from_static(right));
    response
}

fn text(status: StatusCode, text: &str) -> Response<Full<Bytes>> {
    typed(status, "text/plain; charset=utf-8", text.as_bytes().to_vec())
}

fn typed(status: StatusCode, media: &'static str, body: Vec<u8>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(media));
    response
}
