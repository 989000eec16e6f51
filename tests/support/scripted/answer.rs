//! What the scripted server answers: a good answer, bent as the behaviour says.

use super::{Behaviour, HUGE_BYTES, SMUGGLED, TOKENS, Teller};
use serde_json::{Value, json};
use std::{future::pending, io, time::Duration};
use tokio::{io::AsyncWriteExt, net::tcp::OwnedWriteHalf, sync::watch, time::sleep};

/// Pace of [`Behaviour::NeverStops`] and [`Behaviour::TrickleHeaders`].
const TRICKLE: Duration = Duration::from_millis(1);

/// What follows an answer that ended as it should.
pub(super) enum Then {
    KeepAlive,
    Close,
    Reset,
}

/// The request, as far as the answer depends on it.
pub(super) struct Asked {
    chat: bool,
    stream: bool,
    wants_usage: bool,
    model: String,
    prompt: String,
    input: i64,
    limit: usize,
}

/// How a good answer is bent.
struct Bend {
    tokens: usize,
    interval: Duration,
    finish: bool,
    usage: Option<Value>,
    done: bool,
    /// Put in before the token with this number.
    insert: Option<(usize, &'static str)>,
    /// Waited for before the token with this number.
    hold: Option<(usize, watch::Receiver<bool>)>,
    utf8: bool,
}

// === impl Asked ===

impl Asked {
    pub fn new(line: &str, bytes: &[u8], model: &str, count: Option<&Teller>) -> Self {
        let body: Value = serde_json::from_slice(bytes).unwrap_or_default();
        let last = body["messages"].as_array().and_then(|list| list.last());
        let prompt = last.map_or(&body["prompt"], |message| &message["content"]);
        let limit = body["max_completion_tokens"].as_u64().or(body["max_tokens"].as_u64());
        Self {
            chat: line.contains("/chat/"),
            stream: body["stream"] == true,
            wants_usage: body["stream_options"]["include_usage"] == true,
            model: model.to_owned(),
            input: match count {
                Some(count) => count(bytes).unwrap_or_default() as i64,
                None => prompt.as_str().unwrap_or_default().len() as i64,
            },
            prompt: prompt.as_str().unwrap_or_default().to_owned(),
            limit: limit.map_or(usize::MAX, |limit| limit as usize),
        }
    }

    /// Answers; pending for ever where the behaviour stalls.
    pub async fn perform(&self, how: &Behaviour, to: &mut OwnedWriteHalf) -> io::Result<Then> {
        let good = self.good();
        match how {
            Behaviour::Ok { tokens, interval } => {
                let tokens = (*tokens).min(self.limit);
                self.answer(to, &Bend { tokens, interval: *interval, ..self.good_of(tokens) }).await
            }
            Behaviour::RefuseConnection => Ok(Then::Close),
            Behaviour::Status { code, retry_after, body } => {
                let after =
                    retry_after.map(|s| format!("Retry-After: {s}\r\n")).unwrap_or_default();
                let headers = format!("Content-Type: application/json\r\n{after}");
                let error = json!({ "error": {
                    "message": format!("scripted {code}"), "type": "Scripted", "param": null, "code": code
                }});
                let body = if body.is_empty() { error.to_string() } else { body.clone() };
                keep(to.write_all(&with_headers(*code, &headers, &body)).await)
            }
            Behaviour::HangBeforeHead => pending().await,
            Behaviour::HangAfterHead => {
                self.head(to).await?;
                pending().await
            }
            Behaviour::SlowFirstToken(delay) => {
                if self.stream {
                    self.head(to).await?;
                }
                sleep(*delay).await;
                if self.stream { self.events(to, &good).await } else { self.whole(to, &good).await }
            }
            Behaviour::StallMidStream(n) => {
                self.begin(to, *n).await?;
                pending().await
            }
            Behaviour::CutFin(n) => {
                self.begin(to, *n).await?;
                to.shutdown().await?;
                Ok(Then::Close)
            }
            Behaviour::CutRst(n) => {
                self.begin(to, *n).await?;
                Ok(Then::Reset)
            }
            Behaviour::MissingChunkEnd if self.stream => {
                self.head(to).await?;
                self.pieces(to, &good).await?;
                Ok(Then::Close)
            }
            Behaviour::MissingChunkEnd => {
                self.begin(to, TOKENS).await?;
                Ok(Then::Close)
            }
            Behaviour::CleanEndWithoutFinish => {
                self.answer(to, &Bend { finish: false, usage: None, done: false, ..good }).await
            }
            Behaviour::EndEmpty if self.stream => {
                self.head(to).await?;
                keep(to.write_all(b"0\r\n\r\n").await)
            }
            Behaviour::EndEmpty => keep(to.write_all(&response(200, "application/json", "")).await),
            Behaviour::HtmlWith200 => {
                let page = "<!DOCTYPE html><html><body>Sign in to the network</body></html>";
                keep(to.write_all(&response(200, "text/html", page)).await)
            }
            Behaviour::ErrorObjectWith200 => {
                keep(to.write_all(&response(200, "application/json", ERROR)).await)
            }
            Behaviour::ErrorEventFirst => self.error_after(to, 0).await,
            Behaviour::ErrorEventMid(n) => self.error_after(to, *n).await,
            Behaviour::BrokenJson200 => {
                let broken = r#"{"id":"chatcmpl-1","choices":[{"index":0,"mess"#;
                keep(to.write_all(&response(200, "application/json", broken)).await)
            }
            Behaviour::GarbageEvent(n) => {
                self.answer(to, &Bend { insert: Some((*n, "{not json")), ..good }).await
            }
            Behaviour::HugeLine => self.huge(to).await,
            Behaviour::Utf8CutEveryByte => self.answer(to, &Bend { utf8: true, ..good }).await,
            Behaviour::NoUsage => self.answer(to, &Bend { usage: None, ..good }).await,
            Behaviour::NegativeUsage => self.answer(to, &bent_usage(good, -5)).await,
            Behaviour::AbsurdUsage => self.answer(to, &bent_usage(good, i64::MAX)).await,
            Behaviour::Held { after, go } => {
                let hold = Some((*after, go.clone()));
                self.answer(to, &Bend { hold, ..good }).await
            }
            Behaviour::TooLong(n) => self.answer(to, &self.good_of(*n)).await,
            Behaviour::NeverStops => self.endless(to).await,
            Behaviour::Echo { endless } => self.echo(to, *endless).await,
            Behaviour::SecondAnswer => self.twice(to, &good).await,
            Behaviour::NoDone => self.answer(to, &Bend { done: false, ..good }).await,
            Behaviour::TrickleHeaders => {
                to.write_all(b"HTTP/1.1 200 OK\r\nX-Padding: ").await?;
                loop {
                    to.write_all(b"a").await?;
                    sleep(TRICKLE).await;
                }
            }
        }
    }

    fn good(&self) -> Bend {
        self.good_of(TOKENS.min(self.limit))
    }

    fn good_of(&self, tokens: usize) -> Bend {
        let usage = usage(self.input, tokens as i64);
        let interval = Duration::ZERO;
        let usage = (self.wants_usage || !self.stream).then_some(usage);
        Bend {
            tokens,
            interval,
            finish: true,
            usage,
            done: true,
            insert: None,
            hold: None,
            utf8: false,
        }
    }

    async fn answer(&self, to: &mut OwnedWriteHalf, bend: &Bend) -> io::Result<Then> {
        if self.stream {
            self.head(to).await?;
            return self.events(to, bend).await;
        }
        if let Some((_, go)) = &bend.hold {
            released(go).await;
        }
        sleep(bend.interval * bend.tokens as u32).await;
        self.whole(to, bend).await
    }

    /// The head of a stream, or of an answer in one piece of a length that is not said.
    async fn head(&self, to: &mut OwnedWriteHalf) -> io::Result<()> {
        let kind = if self.stream { "text/event-stream" } else { "application/json" };
        let head = format!(
            "HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nTransfer-Encoding: chunked\r\n\r\n"
        );
        to.write_all(head.as_bytes()).await
    }

    /// The head and n tokens; or, in one piece, the first half of the answer.
    async fn begin(&self, to: &mut OwnedWriteHalf, n: usize) -> io::Result<()> {
        if self.stream {
            self.head(to).await?;
            self.role(to).await?;
            for index in 0..n {
                self.event(to, &self.token(&word(&self.prompt, index), None)).await?;
            }
            return Ok(());
        }
        let whole = self.body(&self.good());
        to.write_all(&response(200, "application/json", &whole)[..whole.len() / 2 + 60]).await
    }

    /// The events after the head, and the framing's end.
    async fn events(&self, to: &mut OwnedWriteHalf, bend: &Bend) -> io::Result<Then> {
        self.pieces(to, bend).await?;
        keep(to.write_all(b"0\r\n\r\n").await)
    }

    async fn pieces(&self, to: &mut OwnedWriteHalf, bend: &Bend) -> io::Result<()> {
        self.role(to).await?;
        for index in 0..bend.tokens {
            if let Some((_, go)) = bend.hold.as_ref().filter(|(at, _)| *at == index) {
                released(go).await;
            }
            if let Some((_, data)) = bend.insert.filter(|(at, _)| *at == index) {
                self.event(to, data).await?;
            }
            if bend.utf8 {
                let event = self.token(&utf8_word(&self.prompt, index), None);
                for byte in format!("data: {event}\n\n").bytes() {
                    to.write_all(&[b'1', b'\r', b'\n', byte, b'\r', b'\n']).await?;
                    tokio::task::yield_now().await;
                }
            } else {
                self.event(to, &self.token(&word(&self.prompt, index), None)).await?;
            }
            if !bend.interval.is_zero() {
                sleep(bend.interval).await;
            }
        }
        if bend.finish {
            self.event(to, &self.token("", Some(self.finish(bend.tokens)))).await?;
        }
        if let Some(usage) = &bend.usage {
            let mut chunk = self.chunk(json!([]));
            chunk["usage"] = usage.clone();
            self.event(to, &chunk.to_string()).await?;
        }
        if bend.done { self.event(to, "[DONE]").await } else { Ok(()) }
    }

    async fn role(&self, to: &mut OwnedWriteHalf) -> io::Result<()> {
        if !self.chat {
            return Ok(());
        }
        let delta = json!({ "role": "assistant", "content": "" });
        let choice = json!({ "index": 0, "delta": delta, "finish_reason": null });
        self.event(to, &self.chunk(json!([choice])).to_string()).await
    }

    async fn event(&self, to: &mut OwnedWriteHalf, data: &str) -> io::Result<()> {
        let event = format!("data: {data}\n\n");
        to.write_all(format!("{:x}\r\n{event}\r\n", event.len()).as_bytes()).await
    }

    fn token(&self, text: &str, finish: Option<&str>) -> String {
        let choice = if self.chat {
            json!({ "index": 0, "delta": { "content": text }, "finish_reason": finish })
        } else {
            json!({ "index": 0, "text": text, "finish_reason": finish })
        };
        self.chunk(json!([choice])).to_string()
    }

    fn chunk(&self, choices: Value) -> Value {
        let (id, object) = match self.chat {
            true => ("chatcmpl-scripted", "chat.completion.chunk"),
            false => ("cmpl-scripted", "text_completion"),
        };
        json!({
            "id": id, "object": object, "created": 1, "model": self.model, "choices": choices
        })
    }

    fn finish(&self, tokens: usize) -> &'static str {
        if tokens == self.limit { "length" } else { "stop" }
    }

    fn body(&self, bend: &Bend) -> String {
        let text = match bend.utf8 {
            true => (0..bend.tokens).map(|index| utf8_word(&self.prompt, index)).collect(),
            false => expected_text(&self.prompt, bend.tokens),
        };
        let finish = bend.finish.then(|| self.finish(bend.tokens));
        let choice = if self.chat {
            let message = json!({ "role": "assistant", "content": text });
            json!({ "index": 0, "message": message, "finish_reason": finish })
        } else {
            json!({ "index": 0, "text": text, "finish_reason": finish })
        };
        let mut body = self.chunk(json!([choice]));
        if self.chat {
            body["object"] = json!("chat.completion");
        }
        if let Some(usage) = &bend.usage {
            body["usage"] = usage.clone();
        }
        body.to_string()
    }

    async fn whole(&self, to: &mut OwnedWriteHalf, bend: &Bend) -> io::Result<Then> {
        keep(to.write_all(&response(200, "application/json", &self.body(bend))).await)
    }

    async fn error_after(&self, to: &mut OwnedWriteHalf, n: usize) -> io::Result<Then> {
        if !self.stream {
            return keep(to.write_all(&response(200, "application/json", ERROR)).await);
        }
        self.head(to).await?;
        if n > 0 {
            self.role(to).await?;
        }
        for index in 0..n {
            self.event(to, &self.token(&word(&self.prompt, index), None)).await?;
        }
        self.event(to, ERROR).await?;
        self.event(to, "[DONE]").await?;
        keep(to.write_all(b"0\r\n\r\n").await)
    }

    async fn huge(&self, to: &mut OwnedWriteHalf) -> io::Result<Then> {
        let text = "x".repeat(HUGE_BYTES);
        if !self.stream {
            return keep(
                to.write_all(&response(200, "application/json", &self.token(&text, None))).await,
            );
        }
        self.head(to).await?;
        self.event(to, &self.token(&text, None)).await?;
        self.events(to, &Bend { tokens: 0, ..self.good() }).await
    }

    async fn endless(&self, to: &mut OwnedWriteHalf) -> io::Result<Then> {
        self.head(to).await?;
        for index in 0.. {
            self.event(to, &self.token(&word(&self.prompt, index), None)).await?;
            sleep(TRICKLE).await;
        }
        Ok(Then::Close)
    }

    async fn echo(&self, to: &mut OwnedWriteHalf, endless: bool) -> io::Result<Then> {
        let mut parts = self.prompt.splitn(3, '|');
        let mut number = || parts.next().and_then(|part| part.parse().ok()).unwrap_or(0_usize);
        let (letters, bytes) = (number().max(1), number());
        let text: Vec<char> = parts.next().unwrap_or_default().chars().collect();
        let pieces: Vec<String> = text.chunks(letters).map(|part| part.iter().collect()).collect();
        let bend = self.good_of(pieces.len());
        if !self.stream {
            let mut body: Value = serde_json::from_str(&self.body(&bend)).unwrap_or_default();
            let text = pieces.concat();
            match self.chat {
                true => body["choices"][0]["message"]["content"] = text.into(),
                false => body["choices"][0]["text"] = text.into(),
            }
            return keep(to.write_all(&response(200, "application/json", &body.to_string())).await);
        }
        self.head(to).await?;
        self.role(to).await?;
        loop {
            for piece in &pieces {
                let event = format!("data: {}\n\n", self.token(piece, None));
                for part in event.as_bytes().chunks(if bytes == 0 { event.len() } else { bytes }) {
                    let mut chunk = format!("{:x}\r\n", part.len()).into_bytes();
                    chunk.extend_from_slice(part);
                    chunk.extend_from_slice(b"\r\n");
                    to.write_all(&chunk).await?;
                }
                tokio::task::yield_now().await;
            }
            if !endless {
                break;
            }
        }
        self.event(to, &self.token("", Some("stop"))).await?;
        if let Some(usage) = &bend.usage {
            let mut chunk = self.chunk(json!([]));
            chunk["usage"] = usage.clone();
            self.event(to, &chunk.to_string()).await?;
        }
        self.event(to, "[DONE]").await?;
        keep(to.write_all(b"0\r\n\r\n").await)
    }

    async fn twice(&self, to: &mut OwnedWriteHalf, bend: &Bend) -> io::Result<Then> {
        let first = Bend { done: false, ..self.good_of(bend.tokens) };
        let second = response(200, "application/json", &format!(r#"{{"id":"{SMUGGLED}"}}"#));
        if !self.stream {
            let both = [response(200, "application/json", &self.body(&first)), second].concat();
            return keep(to.write_all(&both).await);
        }
        self.head(to).await?;
        self.pieces(to, &first).await?;
        // The end of the first and the second in one write, so that one read can bring both.
        let end = b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n";
        keep(to.write_all(&[&end[..], &second].concat()).await)
    }
}

const ERROR: &str = r#"{"error":{"message":"scripted failure","type":"InternalServerError","param":null,"code":500}}"#;

/// Waits for the word; whoever would give it being gone means the same.
async fn released(go: &watch::Receiver<bool>) {
    let _ = go.clone().wait_for(|go| *go).await;
}

fn keep(written: io::Result<()>) -> io::Result<Then> {
    written.map(|()| Then::KeepAlive)
}

fn usage(prompt: i64, output: i64) -> Value {
    json!({
        "prompt_tokens": prompt, "completion_tokens": output,
        "total_tokens": prompt.saturating_add(output)
    })
}

fn bent_usage(good: Bend, tokens: i64) -> Bend {
    let usage = good.usage.is_some().then(|| usage(tokens, tokens));
    Bend { usage, ..good }
}

/// The text of a good answer: it depends on the prompt, so a test can tell whose answer it is.
/// `prompt` is the last message's text, or the prompt of a completion.
pub fn expected_text(prompt: &str, tokens: usize) -> String {
    (0..tokens).map(|index| word(prompt, index)).collect()
}

/// The text of [`Behaviour::Utf8CutEveryByte`].
pub fn expected_utf8(prompt: &str) -> String {
    (0..TOKENS).map(|index| utf8_word(prompt, index)).collect()
}

fn word(prompt: &str, index: usize) -> String {
    let sum = prompt.bytes().fold(7u32, |sum, byte| sum.wrapping_mul(31) ^ u32::from(byte));
    format!("{sum:08x}-{index} ")
}

fn utf8_word(prompt: &str, index: usize) -> String {
    format!("é漢🙂{}", word(prompt, index))
}

/// An answer of a known length.
pub(super) fn response(code: u16, kind: &str, body: &str) -> Vec<u8> {
    with_headers(code, &format!("Content-Type: {kind}\r\n"), body)
}

fn with_headers(code: u16, headers: &str, body: &str) -> Vec<u8> {
    let length = body.len();
    format!("HTTP/1.1 {code} Scripted\r\n{headers}Content-Length: {length}\r\n\r\n{body}")
        .into_bytes()
}
