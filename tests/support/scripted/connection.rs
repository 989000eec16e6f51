//! One connection: requests in, answers out, and an eye on the peer.

use super::{
    Behaviour, Says, Script,
    answer::{Asked, Then, response},
    hits::{Hits, Open, Seen},
};
use crate::support::raw::contains;
use serde_json::json;
use std::{io, sync::Arc};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, tcp::OwnedReadHalf},
    sync::watch,
    task::JoinSet,
};

/// Takes connections for ever.
pub(super) async fn accept(
    listener: TcpListener,
    script: Arc<Script>,
    (behaves, says): (watch::Receiver<Behaviour>, watch::Receiver<Says>),
    hits: Arc<Hits>,
) {
    // Dropped with this task, and its connections with it.
    let mut connections = JoinSet::new();
    loop {
        let Ok((stream, _)) = listener.accept().await else { return };
        while connections.try_join_next().is_some() {}
        let (script, hits) = (Arc::clone(&script), Arc::clone(&hits));
        let (behaves, says) = (behaves.clone(), says.clone());
        connections.spawn(async move {
            // A peer that leaves is recorded where it is noticed.
            let _ = connection(stream, &script, (&behaves, &says), &hits).await;
        });
    }
}

async fn connection(
    stream: TcpStream,
    script: &Script,
    (behaves, says): (&watch::Receiver<Behaviour>, &watch::Receiver<Says>),
    hits: &Hits,
) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let (mut read, mut write) = stream.into_split();
    let mut buffer = Vec::new();
    while let Some(request) = read_request(&mut read, &mut buffer).await? {
        let closes = contains(request.head.to_ascii_lowercase().as_bytes(), "connection: close");
        let line = request.head.lines().next().unwrap_or_default().to_owned();
        let says = says.borrow().clone();
        if !line.starts_with("POST /v1/") || line.contains("/render ") {
            write.write_all(&fixed_page(&line, &request.body, script, &says)).await?;
        } else {
            let asked = Asked::new(&line, &request.body, &script.model, says.usage.as_ref());
            let open = Open::new(hits, request);
            let behaviour = behaves.borrow().clone();
            let then = tokio::select! {
                // In order: an answer that is complete is not an abort, even if the peer left with it.
                biased;
                then = asked.perform(&behaviour, &mut write) => then,
                error = closed(&mut read, &mut buffer) => Err(error),
            };
            match then {
                Ok(Then::KeepAlive) => open.finished(),
                Ok(Then::Close) => {
                    open.finished();
                    return Ok(());
                }
                Ok(Then::Reset) => {
                    open.finished();
                    let stream: &TcpStream = write.as_ref();
                    stream.set_zero_linger()?;
                    // Dropped the usual way, the write half would send a FIN before the RST.
                    write.forget();
                    return Ok(());
                }
                Err(error) => {
                    open.aborted();
                    return Err(error);
                }
            }
        }
        if closes {
            return Ok(());
        }
    }
    Ok(())
}

/// Ends when the peer has closed; keeps what it sent meanwhile.
async fn closed(read: &mut OwnedReadHalf, buffer: &mut Vec<u8>) -> io::Error {
    loop {
        match read.read_buf(buffer).await {
            Ok(0) => return io::ErrorKind::UnexpectedEof.into(),
            Ok(_) => {}
            Err(error) => return error,
        }
    }
}

/// Reads one request; `None` when the peer closed between two.
async fn read_request(read: &mut OwnedReadHalf, buffer: &mut Vec<u8>) -> io::Result<Option<Seen>> {
    let split = loop {
        if let Some(at) = buffer.windows(4).position(|w| w == b"\r\n\r\n") {
            break at + 4;
        }
        if read.read_buf(buffer).await? == 0 {
            return Ok(None);
        }
    };
    let head = String::from_utf8_lossy(&buffer[..split]).into_owned();
    buffer.drain(..split);
    let lower = head.to_ascii_lowercase();
    if lower.contains("transfer-encoding: chunked") {
        let mut body = Vec::new();
        loop {
            let line = take_line(read, buffer).await?;
            let size = usize::from_str_radix(line.trim(), 16).map_err(io::Error::other)?;
            body.extend(take(read, buffer, size).await?);
            take_line(read, buffer).await?;
            if size == 0 {
                return Ok(Some(Seen { head, body }));
            }
        }
    }
    let length = lower.lines().find_map(|line| line.strip_prefix("content-length:"));
    let length = length.and_then(|length| length.trim().parse().ok()).unwrap_or(0);
    let body = take(read, buffer, length).await?;
    Ok(Some(Seen { head, body }))
}

async fn take(read: &mut OwnedReadHalf, buffer: &mut Vec<u8>, size: usize) -> io::Result<Vec<u8>> {
    while buffer.len() < size {
        if read.read_buf(buffer).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
    Ok(buffer.drain(..size).collect())
}

async fn take_line(read: &mut OwnedReadHalf, buffer: &mut Vec<u8>) -> io::Result<String> {
    let size = loop {
        if let Some(at) = buffer.iter().position(|byte| *byte == b'\n') {
            break at + 1;
        }
        if read.read_buf(buffer).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    };
    Ok(String::from_utf8_lossy(&take(read, buffer, size).await?).into_owned())
}

/// Pages that never misbehave.
fn fixed_page(line: &str, body: &[u8], script: &Script, says: &Says) -> Vec<u8> {
    let model = &script.model;
    let path = line.split(' ').nth(1).unwrap_or_default();
    if let Some((_, page)) = says.pages.iter().find(|(known, _)| *known == path) {
        return response(200, "application/json", page);
    }
    match (path, script.kv_tokens) {
        ("/health", _) if says.down => response(503, "text/plain", ""),
        ("/tokenize", _) if says.endpoint.is_some() => {
            match says.endpoint.as_ref().and_then(|count| count(body)) {
                Some(count) => {
                    response(200, "application/json", &json!({ "count": count }).to_string())
                }
                None => response(400, "application/json", r#"{"error":{"message":"refused"}}"#),
            }
        }
        ("/health", _) => response(200, "text/plain", ""),
        ("/version", _) => response(200, "application/json", r#"{"version":"0.0.0-scripted"}"#),
        ("/v1/models", _) => {
            let root = &says.root;
            let card =
                json!({ "id": model, "object": "model", "max_model_len": 32_768, "root": root });
            let body = json!({ "object": "list", "data": [card] }).to_string();
            response(200, "application/json", &body)
        }
        ("/metrics", Some(kv)) => {
            let labels = format!("engine=\"0\",model_name=\"{model}\"");
            let body = format!(
                "vllm:num_requests_running{{{labels}}} 0.0\nvllm:num_requests_waiting{{{labels}}} 0.0\n\
                 vllm:kv_cache_usage_perc{{{labels}}} 0.0\nvllm:cache_config_info{{{labels},\
                 block_size=\"16\",num_gpu_blocks=\"{}\",kv_cache_size_tokens=\"{kv}\"}} 1.0\n",
                kv / 16
            );
            response(200, "text/plain; version=0.0.4", &body)
        }
        _ => response(404, "application/json", r#"{"error":{"message":"Not Found"}}"#),
    }
}
