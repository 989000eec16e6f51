//! An HTTP client that hides nothing: it keeps every byte, and tells how a body ended.

use serde_json::Value;
use std::{io, net::SocketAddr, time::Duration};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

/// Longer than any step on loopback takes; reached only by a test that fails.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// How a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// With FIN.
    Closed,
    /// With RST.
    Reset,
}

/// A response as it came over the wire.
#[derive(Clone, Debug)]
pub struct Reply {
    /// Status code.
    pub status: u16,
    /// Status line and headers, as sent.
    pub head: String,
    /// The body with the chunked framing taken off.
    pub body: Vec<u8>,
    /// The framing's end was there: the last chunk, or all of Content-Length.
    pub whole: bool,
    /// Bytes that came after the framing's end.
    pub rest: Vec<u8>,
    /// How the connection ended.
    pub ended: Ended,
}

/// Sends a POST with `Connection: close` and reads to the end of the connection.
pub async fn post(to: SocketAddr, path: &str, body: &Value) -> Reply {
    let (bytes, ended) = read_all(&mut open_post(to, path, body).await).await;
    Reply::parse(&bytes, ended)
}

/// Sends a GET with `Connection: close` and reads to the end of the connection.
pub async fn get(to: SocketAddr, path: &str) -> Reply {
    let mut stream = TcpStream::connect(to).await.unwrap();
    let head = format!("GET {path} HTTP/1.1\r\nHost: {to}\r\nConnection: close\r\n\r\n");
    stream.write_all(head.as_bytes()).await.unwrap();
    let (bytes, ended) = read_all(&mut stream).await;
    Reply::parse(&bytes, ended)
}

/// Sends a POST and leaves the answer unread on the connection.
pub async fn open_post(to: SocketAddr, path: &str, body: &Value) -> TcpStream {
    let mut stream = TcpStream::connect(to).await.unwrap();
    send_post(&mut stream, path, body, "close").await;
    stream
}

/// Sends a POST on an open connection.
pub async fn send_post(stream: &mut TcpStream, path: &str, body: &Value, connection: &str) {
    let body = body.to_string();
    let request = format!(
        "POST {path} HTTP/1.1\r\nHost: test\r\nContent-Type: application/json\r\n\
         Connection: {connection}\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(request.as_bytes()).await.unwrap();
}

/// Reads until `mark` has come; the bytes so far.
pub async fn read_until(stream: &mut TcpStream, mark: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut piece = [0; 4096];
    while !contains(&bytes, mark) {
        let n = timeout(PATIENCE, stream.read(&mut piece)).await.expect("in time").unwrap();
        assert!(n > 0, "ended before {mark:?}: {}", String::from_utf8_lossy(&bytes));
        bytes.extend_from_slice(&piece[..n]);
    }
    bytes
}

/// Reads to the end of the connection.
pub async fn read_all(stream: &mut TcpStream) -> (Vec<u8>, Ended) {
    let mut bytes = Vec::new();
    let ended = match timeout(PATIENCE, stream.read_to_end(&mut bytes)).await.expect("in time") {
        Ok(_) => Ended::Closed,
        Err(error) if error.kind() == io::ErrorKind::ConnectionReset => Ended::Reset,
        Err(error) => panic!("reading failed: {error}"),
    };
    (bytes, ended)
}

/// Whether `text` is somewhere in `bytes`.
pub fn contains(bytes: &[u8], text: &str) -> bool {
    bytes.windows(text.len()).any(|window| window == text.as_bytes())
}

// === impl Reply ===

impl Reply {
    /// Takes the framing off what one connection brought.
    pub fn parse(bytes: &[u8], ended: Ended) -> Self {
        let split = bytes.windows(4).position(|w| w == b"\r\n\r\n").expect("a whole head");
        let head = String::from_utf8(bytes[..split].to_vec()).unwrap();
        let after = &bytes[split + 4..];
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        let lower = head.to_ascii_lowercase();
        let length = lower.split("content-length: ").nth(1).and_then(|l| l.lines().next());
        let (body, used, whole) = match length {
            Some(length) => {
                let length: usize = length.trim().parse().unwrap();
                let body = after[..after.len().min(length)].to_vec();
                (body, after.len().min(length), after.len() >= length)
            }
            None => dechunk(after),
        };
        Self { status, head, body, whole, rest: after[used..].to_vec(), ended }
    }

    /// The body as JSON.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }

    /// A header's value; an empty text where there is none.
    pub fn header(&self, name: &str) -> &str {
        let lines = self.head.lines().skip(1).filter_map(|line| line.split_once(':'));
        let mut found = lines.filter(|(key, _)| key.eq_ignore_ascii_case(name));
        found.next().map_or("", |(_, value)| value.trim())
    }

    /// Every complete event and comment.
    fn blocks(&self) -> impl Iterator<Item = &str> {
        let text = std::str::from_utf8(&self.body).expect("events are text");
        let whole = text.rfind("\n\n").map_or("", |end| &text[..end]);
        whole.split("\n\n").filter(|block| !block.is_empty())
    }

    /// The data of every complete event.
    pub fn events(&self) -> Vec<String> {
        self.blocks()
            .filter(|block| !block.starts_with(':'))
            .map(|block| block.strip_prefix("data: ").expect("a data line").to_owned())
            .collect()
    }

    /// How many comments came.
    pub fn comments(&self) -> usize {
        self.blocks().filter(|block| block.starts_with(':')).count()
    }

    /// The events that are JSON.
    pub fn chunks(&self) -> Vec<Value> {
        self.events().iter().filter_map(|event| serde_json::from_str(event).ok()).collect()
    }

    /// All text the events bring, chat or completion.
    pub fn text(&self) -> String {
        let text = |chunk: &Value| {
            let choice = &chunk["choices"][0];
            let text = choice["delta"]["content"].as_str().or(choice["text"].as_str());
            text.map(str::to_owned)
        };
        self.chunks().iter().filter_map(text).collect()
    }

    /// The finish reason, when one came.
    pub fn finish(&self) -> Option<String> {
        let reason =
            |chunk: &Value| chunk["choices"][0]["finish_reason"].as_str().map(str::to_owned);
        self.chunks().iter().find_map(reason)
    }

    /// The usage of the last event that has one.
    pub fn usage(&self) -> Option<Value> {
        self.chunks().iter().rev().map(|chunk| chunk["usage"].clone()).find(Value::is_object)
    }

    /// The stream said that it is done.
    pub fn done(&self) -> bool {
        self.events().last().is_some_and(|event| event == "[DONE]")
    }
}

/// The data, how many bytes it took, and whether the last chunk was there.
fn dechunk(bytes: &[u8]) -> (Vec<u8>, usize, bool) {
    let (mut data, mut at) = (Vec::new(), 0);
    loop {
        let Some(line) = bytes[at..].windows(2).position(|w| w == b"\r\n") else {
            return (data, at, false);
        };
        let size = std::str::from_utf8(&bytes[at..at + line]).unwrap();
        let size = usize::from_str_radix(size, 16).expect("a chunk size");
        let start = at + line + 2;
        if size == 0 {
            return (data, (start + 2).min(bytes.len()), bytes.len() >= start + 2);
        }
        data.extend_from_slice(&bytes[start..bytes.len().min(start + size)]);
        if bytes.len() < start + size + 2 {
            return (data, bytes.len(), false);
        }
        at = start + size + 2;
    }
}
