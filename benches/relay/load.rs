//! The load: keep-alive connections that send one request after another, and streams held open.
//!
//! One thread, nothing parsed that need not be: the generator shares its core with the model server, and
//! whatever it spends there slows both for every contender alike.

use berthd::{
    api::Route,
    pipeline::count::Counter,
    snapshot::ServerKind,
    tokens::{ModelFiles, Profile},
    units::Tokens,
};
use std::{
    path::Path,
    sync::{Arc, OnceLock},
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::JoinSet,
    time::{Instant, timeout},
};

/// Nothing here takes longer than this, unless something is broken.
const LIMIT: Duration = Duration::from_secs(60);

/// Where a contender listens, and the key it wants.
#[derive(Clone, Debug)]
pub struct Door {
    /// Port on 127.0.0.1.
    pub port: u16,
    /// API key.
    pub key: Option<String>,
}

/// What is asked.
#[derive(Clone, Copy, Debug)]
pub struct Ask {
    /// Output tokens.
    pub tokens: u32,
    /// Streamed.
    pub stream: bool,
}

/// About 200 tokens of chat.
pub fn request(door: &Door, ask: Ask) -> Vec<u8> {
    let system = "You are a careful assistant. Answer in plain words, give the reason first and the result \
                  after it, and say so when you do not know.";
    let user = "Our build machine has two GPUs and sixty-four cores. Since yesterday the nightly job takes \
                forty minutes instead of twenty-five, although nothing in the repository changed. The load on \
                the cores looks the same as before, the disks are quiet, and the job's own log shows that \
                compiling takes as long as ever while the tests take twice as long. One of the GPUs reports a \
                lower clock than the other one. Where would you look first, what would you measure, and what \
                would tell you that you were wrong? Please keep it to a short list that a colleague who does \
                not know this machine could follow step by step without asking me anything in between.";
    let messages = format!(
        r#"[{{"role":"system","content":"{system}"}},{{"role":"user","content":"{user}"}}]"#
    );
    let body = format!(
        r#"{{"model":"simulated","messages":{messages},"max_tokens":{},"temperature":0.7,"stream":{},"berthd_simulate":{{"input_tokens":{}}}}}"#,
        ask.tokens,
        ask.stream,
        input_tokens(&messages)
    );
    let key =
        door.key.as_ref().map_or_else(String::new, |k| format!("Authorization: Bearer {k}\r\n"));
    format!(
        "POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:{}\r\nContent-Type: application/json\r\n{key}Content-Length: {}\r\n\r\n{body}",
        door.port,
        body.len()
    )
    .into_bytes()
}

/// What the shipped model's files make of it, for the server to agree with: a daemon whose counts are
/// contradicted would not go on counting by them.
fn input_tokens(messages: &str) -> u64 {
    static TOKENS: OnceLock<u64> = OnceLock::new();
    *TOKENS.get_or_init(|| {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/demo-chat");
        let body = format!(r#"{{"messages":{messages}}}"#);
        let count = ModelFiles::load(&folder).map(|files| {
            let counter = Counter::new(Arc::new(files), Profile::of(ServerKind::OpenAi));
            counter.count_body(Route::Chat, body.as_bytes())
        });
        count.ok().and_then(Result::ok).map_or(200, Tokens::get)
    })
}

/// One keep-alive connection.
pub struct Caller {
    stream: TcpStream,
    request: Vec<u8>,
    buffer: Vec<u8>,
}

/// How an answer's body ends.
enum Length {
    Known(usize),
    Chunked,
}

impl Caller {
    /// Connects.
    pub async fn connect(door: &Door, ask: Ask) -> Result<Self, String> {
        let stream =
            TcpStream::connect(("127.0.0.1", door.port)).await.map_err(|e| e.to_string())?;
        stream.set_nodelay(true).map_err(|e| e.to_string())?;
        Ok(Self { stream, request: request(door, ask), buffer: Vec::with_capacity(64 * 1024) })
    }

    /// Sends the request and reads the answer to its last byte. Gives the number of events in it.
    pub async fn call(&mut self) -> Result<usize, String> {
        timeout(LIMIT, self.exchange()).await.map_err(|_| "no answer in time".to_owned())?
    }

    async fn exchange(&mut self) -> Result<usize, String> {
        let (head, length) = self.open().await?;
        match length {
            Length::Known(length) => {
                while self.buffer.len() < head + length {
                    self.read().await?;
                }
                Ok(0)
            }
            Length::Chunked => {
                let mut events = count_events(&self.buffer);
                while !self.buffer.ends_with(b"0\r\n\r\n") {
                    // An event may lie across two reads: its end is counted where it is complete.
                    let keep = self.buffer.len().min(8);
                    self.buffer.drain(..self.buffer.len() - keep);
                    let before = count_events(&self.buffer);
                    self.read().await?;
                    events += count_events(&self.buffer) - before;
                }
                Ok(events)
            }
        }
    }

    /// Sends the request and reads the head, and whatever came with it. Gives the head's length.
    async fn open(&mut self) -> Result<(usize, Length), String> {
        self.buffer.clear();
        self.stream.write_all(&self.request).await.map_err(|e| e.to_string())?;
        let head = loop {
            self.read().await?;
            if let Some(at) = self.buffer.windows(4).position(|bytes| bytes == b"\r\n\r\n") {
                break at + 4;
            }
        };
        let text = String::from_utf8_lossy(self.buffer.get(..head).unwrap_or_default());
        if !text.starts_with("HTTP/1.1 200") {
            return Err(text.lines().next().unwrap_or_default().to_owned());
        }
        let length = text.lines().find_map(|line| {
            let (name, value) = line.split_once(':')?;
            name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse().ok())?
        });
        Ok((head, length.map_or(Length::Chunked, Length::Known)))
    }

    async fn read(&mut self) -> Result<(), String> {
        match self.stream.read_buf(&mut self.buffer).await {
            Ok(0) => Err("closed".to_owned()),
            Ok(_) => Ok(()),
            Err(error) => Err(error.to_string()),
        }
    }

    /// Opens a stream and waits for its first content.
    pub async fn begin(&mut self) -> Result<(), String> {
        let begin = async {
            self.open().await?;
            while !self.buffer.windows(5).any(|bytes| bytes == b"word0") {
                self.read().await?;
            }
            Ok(())
        };
        timeout(LIMIT, begin).await.map_err(|_| "no content in time".to_owned())?
    }
}

fn count_events(bytes: &[u8]) -> usize {
    memchr::memmem::find_iter(bytes, b"}\n\n").count()
}

/// One caller, one request after another. Gives each request's time in microseconds.
pub async fn latencies(door: &Door, ask: Ask, count: usize) -> Result<Vec<f64>, String> {
    let mut caller = Caller::connect(door, ask).await?;
    let mut times = Vec::with_capacity(count);
    for _ in 0..count {
        let since = Instant::now();
        caller.call().await?;
        times.push(since.elapsed().as_secs_f64() * 1e6);
    }
    Ok(times)
}

/// What a time of full load came to.
#[derive(Clone, Copy, Debug, Default)]
pub struct Done {
    /// Requests answered.
    pub requests: usize,
    /// Events in them.
    pub events: usize,
    /// How long it took.
    pub took_s: f64,
}

/// Several callers at once for a while.
pub async fn full(door: &Door, ask: Ask, callers: usize, time: Duration) -> Result<Done, String> {
    let mut tasks = JoinSet::new();
    let since = Instant::now();
    for _ in 0..callers {
        let door = door.clone();
        tasks.spawn(async move {
            let mut caller = Caller::connect(&door, ask).await?;
            let mut done = Done::default();
            while since.elapsed() < time {
                done.events += caller.call().await?;
                done.requests += 1;
            }
            Ok::<_, String>(done)
        });
    }
    let mut all = Done::default();
    while let Some(done) = tasks.join_next().await {
        let done = done.map_err(|e| e.to_string())??;
        all.requests += done.requests;
        all.events += done.events;
    }
    all.took_s = since.elapsed().as_secs_f64();
    Ok(all)
}

/// Opens streams and holds them open, each behind its first content.
pub async fn hold(door: &Door, ask: Ask, count: usize) -> Result<Vec<Caller>, String> {
    let mut held = Vec::with_capacity(count);
    while held.len() < count {
        let mut tasks = JoinSet::new();
        for _ in 0..(count - held.len()).min(50) {
            let door = door.clone();
            tasks.spawn(async move {
                let mut caller = Caller::connect(&door, ask).await?;
                caller.begin().await?;
                // The generator's own memory is not measured, but the machine has only so much.
                caller.buffer = Vec::new();
                Ok::<_, String>(caller)
            });
        }
        while let Some(caller) = tasks.join_next().await {
            held.push(caller.map_err(|e| e.to_string())??);
        }
    }
    Ok(held)
}

/// Time until a request is answered, asked again and again from `since`.
pub async fn first_answer(door: &Door, since: Instant) -> Result<Duration, String> {
    let ask = Ask { tokens: 1, stream: false };
    let mut last = String::new();
    while since.elapsed() < LIMIT {
        let attempt = async { Caller::connect(door, ask).await?.call().await };
        match attempt.await {
            Ok(_) => return Ok(since.elapsed()),
            Err(error) => last = error,
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    Err(format!("never answered: {last}"))
}
