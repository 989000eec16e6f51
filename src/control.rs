//! The operators' doors: the Unix socket and the admin listener. HTTP on both, so that `curl` works.
//!
//! They read snapshots and never slow a request: few readers at a time, each with a short limit.

use crate::{
    ids::{GpuId, ServerId},
    metrics,
    pipeline::{Broker, dispatch::Decision, models, screening::Verdicted},
    report::{self, Addresses},
    snapshot::GpuPlane,
};
use bytes::Bytes;
use http::{
    HeaderMap, HeaderValue, Method, Request, Response, StatusCode,
    header::{ACCEPT, ALLOW, CONTENT_TYPE, HOST},
    uri::Authority,
};
use http_body_util::Full;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use std::{
    convert::Infallible,
    future::poll_fn,
    io,
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
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
/// How long one may take: a copy of what is known is made in milliseconds, and whoever holds a place
/// without using it keeps others out.
const READER_LIMIT: Duration = Duration::from_secs(2);
/// How long one who wants a reload may take: models are loaded meanwhile.
const RELOAD_LIMIT: Duration = Duration::from_secs(30);

/// Where an operator calls a GPU well; its UUID follows.
const CLEAR: &str = "/gpus/clear/";

/// Where decisions are told; a request's id may follow.
const EXPLAIN: &str = "/explain";
/// Decisions that are told where no number is asked for.
const DECISIONS_SHOWN: usize = 20;

/// What is known of one request.
#[derive(Serialize)]
struct Explained {
    #[serde(flatten)]
    decision: Option<Decision>,
    #[serde(skip_serializing_if = "Option::is_none")]
    screening: Option<Verdicted>,
}

/// A wish to read the configuration anew, with the place for the answer: what changed, or every
/// problem that kept it from changing anything.
pub type ReloadWish = oneshot::Sender<Result<String, String>>;

/// What the doors show and do.
pub struct Control {
    broker: Arc<Broker>,
    gpus: watch::Receiver<Arc<GpuPlane>>,
    addresses: Addresses,
    reload: mpsc::Sender<ReloadWish>,
    /// The machine's name, as its kernel has it.
    machine: String,
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
        let machine = std::fs::read_to_string("/proc/sys/kernel/hostname")
            .unwrap_or_default()
            .trim()
            .to_owned();
        Arc::new(Self { broker, gpus, addresses, reload, machine })
    }

    /// Serves the Unix socket. Never returns; dropping the future closes its connections.
    pub async fn serve_socket(self: Arc<Self>, listener: UnixListener) {
        let accept = |cx: &mut Context<'_>| listener.poll_accept(cx).map_ok(|(stream, _)| stream);
        self.serve(accept, Door::Socket).await;
    }

    /// Serves the admin listener. Never returns; dropping the future closes its connections.
    pub async fn serve_admin(self: Arc<Self>, listener: TcpListener) {
        let accept = |cx: &mut Context<'_>| listener.poll_accept(cx).map_ok(|(stream, _)| stream);
        self.serve(accept, Door::Admin).await;
    }

    async fn serve<S>(
        self: Arc<Self>,
        mut accept: impl FnMut(&mut Context<'_>) -> Poll<io::Result<S>>,
        door: Door,
    ) where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let permits = Arc::new(Semaphore::new(READERS_MAX));
        let mut readers = JoinSet::new();
        loop {
            while readers.try_join_next().is_some() {}
            let Ok(permit) = Arc::clone(&permits).acquire_owned().await else { return };
            match poll_fn(&mut accept).await {
                Ok(stream) => {
                    let control = Arc::clone(&self);
                    readers.spawn(async move {
                        let _permit = permit;
                        control.connection(stream, door).await;
                    });
                }
                Err(error) => pause(door, &error).await,
            }
        }
    }

    async fn connection<S>(self: Arc<Self>, stream: S, door: Door)
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let reloads = Arc::new(AtomicBool::new(false));
        let service = service_fn(|request: Request<Incoming>| {
            let (control, reloads) = (Arc::clone(&self), Arc::clone(&reloads));
            let reload = door == Door::Socket && request.uri().path() == "/reload";
            reloads.store(reload, Ordering::Relaxed);
            async move { Ok::<_, Infallible>(control.answer(&request, door).await) }
        });
        // One answer each: a reader that keeps its connection would keep others out.
        let serve =
            http1::Builder::new().keep_alive(false).serve_connection(TokioIo::new(stream), service);
        let mut serve = std::pin::pin!(serve);
        // A reader who leaves early is no news.
        let ended = tokio::time::timeout(READER_LIMIT, &mut serve).await;
        if ended.is_err() && reloads.load(Ordering::Relaxed) {
            let _ = tokio::time::timeout(RELOAD_LIMIT.saturating_sub(READER_LIMIT), serve).await;
        }
    }

    async fn answer(&self, request: &Request<Incoming>, door: Door) -> Response<Full<Bytes>> {
        let path = request.uri().path();
        let reads = request.method() == Method::GET || request.method() == Method::HEAD;
        match path {
            "/status" | "/gpus" | "/metrics" | "/healthz"
                if door == Door::Admin && !self.is_ours(request) =>
            {
                text(
                    StatusCode::FORBIDDEN,
                    "This address is read by IP address, as localhost or by the machine's own name, and by no other name.\n",
                )
            }
            "/status" if reads => self.status(),
            "/gpus" if reads => self.gpus(),
            "/metrics" if reads => self.metrics(request.headers()),
            "/healthz" if reads => self.health(),
            "/status" | "/gpus" | "/metrics" | "/healthz" => wrong_method("GET"),
            // Decisions name tenants and requests: for operators only.
            _ if door == Door::Socket && is_explain(path) => match reads {
                true => self.explain(path, request.uri().query()),
                false => wrong_method("GET"),
            },
            _ if door == Door::Admin => {
                text(StatusCode::NOT_FOUND, "Here are /metrics, /status, /gpus and /healthz.\n")
            }
            _ if request.method() != Method::POST => match path {
                "/reload" => wrong_method("POST"),
                _ if ["/drain/", "/undrain/", CLEAR].iter().any(|own| path.starts_with(own)) => {
                    wrong_method("POST")
                }
                _ => text(
                    StatusCode::NOT_FOUND,
                    "Here are GET /status, /gpus, /explain, /explain/REQUEST, /metrics, /healthz and POST /drain/SERVER, /undrain/SERVER, /gpus/clear/UUID, /reload.\n",
                ),
            },
            "/reload" => self.reload().await,
            _ if path.starts_with(CLEAR) => {
                self.clear(path.strip_prefix(CLEAR).unwrap_or_default()).await
            }
            _ => match (path.strip_prefix("/drain/"), path.strip_prefix("/undrain/")) {
                (Some(server), _) => self.drain(server, true),
                (_, Some(server)) => self.drain(server, false),
                _ => text(
                    StatusCode::NOT_FOUND,
                    "Here are POST /drain/SERVER, /undrain/SERVER, /gpus/clear/UUID, /reload.\n",
                ),
            },
        }
    }

    /// Whether the reader named this machine. A name that somebody else's DNS resolves to our address
    /// lets that somebody's web page read us with its visitor's browser.
    fn is_ours(&self, request: &Request<Incoming>) -> bool {
        let hosts = request.headers().get_all(HOST).iter();
        let mut hosts = hosts.map(|host| host.to_str().unwrap_or("?"));
        let target = request.uri().authority().map(Authority::as_str);
        hosts.all(|host| names_us(host, &self.machine))
            && target.is_none_or(|host| names_us(host, &self.machine))
    }

    fn status(&self) -> Response<Full<Bytes>> {
        let gpus = Arc::clone(&self.gpus.borrow());
        json(&report::status(&self.broker, &gpus, &self.addresses))
    }

    /// What was decided about one request, or about the newest.
    fn explain(&self, path: &str, query: Option<&str>) -> Response<Full<Bytes>> {
        let dispatch = &self.broker.dispatch;
        let Some(request) = path.strip_prefix(EXPLAIN).and_then(|rest| rest.strip_prefix('/'))
        else {
            let last = query.and_then(|query| query.strip_prefix("last="));
            let last = last.and_then(|last| last.parse().ok()).unwrap_or(DECISIONS_SHOWN);
            return json(&dispatch.decisions(last));
        };
        let request = models::decoded(request);
        let screening = self.broker.books.verdicts.of(&request);
        match (dispatch.explain(&request), screening) {
            (Some(decision), screening) => json(&Explained { decision: Some(decision), screening }),
            // It was refused before it asked for a turn.
            (None, Some(screening)) => {
                json(&Explained { decision: None, screening: Some(screening) })
            }
            (None, None) => {
                let id: String = request.chars().take(100).collect();
                let what = format!(
                    "Nothing is known of request '{id}': it never asked for a turn here, or about 2,000 came after it.\n"
                );
                text(StatusCode::NOT_FOUND, &what)
            }
        }
    }

    fn gpus(&self) -> Response<Full<Bytes>> {
        let gpus = Arc::clone(&self.gpus.borrow());
        json(&report::gpus::gpus(&self.broker, &gpus))
    }

    /// In the format that the reader asks for, as Prometheus does; older text for everybody else.
    fn metrics(&self, headers: &HeaderMap) -> Response<Full<Bytes>> {
        let gpus = Arc::clone(&self.gpus.borrow());
        let page = self.broker.metrics_page(&gpus);
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

    /// An operator says that a GPU is well.
    async fn clear(&self, gpu: &str) -> Response<Full<Bytes>> {
        let id = GpuId::from(models::decoded(gpu));
        if self.broker.devices.clear(id.clone()).await {
            let what = format!(
                "GPU {id} counts as well. What is still wrong with it comes back with the next readings.\n"
            );
            return text(StatusCode::OK, &what);
        }
        let known = self.broker.devices.health();
        let names: Vec<&str> = known.iter().map(|health| health.gpu.as_str()).collect();
        let what = format!("There is no GPU {id}. GPUs: {}.\n", names.join(", "));
        text(StatusCode::NOT_FOUND, &what)
    }

    async fn reload(&self) -> Response<Full<Bytes>> {
        let (give, take) = oneshot::channel();
        if self.broker.stopping.load(Ordering::Relaxed) || self.reload.send(give).await.is_err() {
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

fn is_explain(path: &str) -> bool {
    path.strip_prefix(EXPLAIN).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// Is this `Host` (with or without port) an IP address, `localhost` or the machine's name?
fn names_us(host: &str, machine: &str) -> bool {
    let Ok(authority) = host.parse::<Authority>() else { return false };
    let name = authority.host().trim_end_matches('.');
    let ip = name.trim_start_matches('[').trim_end_matches(']');
    ip.parse::<IpAddr>().is_ok()
        || name.eq_ignore_ascii_case("localhost")
        || (!machine.is_empty() && name.eq_ignore_ascii_case(machine))
}

/// Out of file descriptors, most likely: a moment's pause instead of a busy loop.
async fn pause(door: Door, error: &io::Error) {
    tracing::warn!(%error, ?door, "cannot accept; trying again");
    tokio::time::sleep(Duration::from_millis(200)).await;
}

fn wrong_method(right: &'static str) -> Response<Full<Bytes>> {
    let mut response = text(StatusCode::METHOD_NOT_ALLOWED, &format!("This takes {right}.\n"));
    response.headers_mut().insert(ALLOW, HeaderValue::from_static(right));
    response
}

fn json(report: &impl serde::Serialize) -> Response<Full<Bytes>> {
    match serde_json::to_vec(report) {
        Ok(body) => typed(StatusCode::OK, "application/json", body),
        Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, &format!("{error}\n")),
    }
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

#[cfg(test)]
mod tests;
