//! A small HTTP client for the commands: over the daemon's Unix socket, or to its data listener.

use super::Failure;
use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::{body::Incoming, client::conn::http1};
use hyper_util::rt::TokioIo;
use std::{future::Future, io, path::Path, time::Duration};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::UnixStream,
};

/// How long an operator waits for an answer; a reload loads models.
const LIMIT: Duration = Duration::from_secs(30);

/// Asks the daemon behind a Unix socket.
pub async fn ask(
    socket: &Path,
    method: Method,
    path: &str,
) -> Result<(StatusCode, Bytes), Failure> {
    let stream = UnixStream::connect(socket).await.map_err(|error| unreachable(socket, &error))?;
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header("host", "berthd")
        .body(Full::new(Bytes::new()))
        .map_err(Failure::internal)?;
    let work = async {
        exchange(stream, request, async |response| {
            let status = response.status();
            let body = response.into_body().collect().await.map_err(Failure::internal)?;
            Ok((status, body.to_bytes()))
        })
        .await
    };
    tokio::time::timeout(LIMIT, work).await.unwrap_or_else(|_| {
        let text = format!("the daemon behind {} does not answer", socket.display());
        Err(Failure::unavailable(text))
    })
}

fn unreachable(socket: &Path, error: &io::Error) -> Failure {
    let socket = socket.display();
    match error.kind() {
        io::ErrorKind::NotFound => Failure::unavailable(format!(
            "there is no socket at {socket}. Is berthd running ('systemctl status berthd')? Is this its listen.socket (--socket)?"
        )),
        io::ErrorKind::ConnectionRefused => Failure::unavailable(format!(
            "nobody answers on {socket}: berthd ended without cleaning up. Start it again ('systemctl start berthd')."
        )),
        io::ErrorKind::PermissionDenied => Failure::permission(format!(
            "no permission to use {socket}. Join the group berthd, or use sudo."
        )),
        _ => Failure::unavailable(format!("cannot use {socket}: {error}")),
    }
}

/// Sends one request on a connection and lets `read` have the answer while the connection is driven.
pub async fn exchange<S, T, F>(
    stream: S,
    request: Request<Full<Bytes>>,
    read: impl FnOnce(Response<Incoming>) -> F,
) -> Result<T, Failure>
where
    S: AsyncRead + AsyncWrite + Unpin,
    F: Future<Output = Result<T, Failure>>,
{
    let (mut sender, connection) =
        http1::handshake(TokioIo::new(stream)).await.map_err(Failure::internal)?;
    let mut connection = std::pin::pin!(connection);
    let work = async {
        let response = sender.send_request(request).await.map_err(Failure::internal)?;
        read(response).await
    };
    let mut work = std::pin::pin!(work);
    tokio::select! {
        biased; // The answer may be complete in the moment in which the connection ends.
        done = &mut work => done,
        _ = &mut connection => work.await,
    }
}
