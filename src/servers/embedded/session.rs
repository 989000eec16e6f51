//! One call, from its body to its last byte, on a thread of its own.
//!
//! Between any two tokens it looks whether the caller is still there, and stops if not.

use super::{
    Model, Place,
    ask::{self, Ask, Embed, Rejected},
    llama::Cache,
    sample::{self, Sampler},
    say::{self, Choice, End, Frame, Said, Usage},
    text::Text,
};
use crate::{
    ids::RequestId,
    servers::{Answer, AnswerBody, Call, CallError, Route},
};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, StatusCode, header::CONTENT_TYPE};
use serde_json::{Map, Value};
use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::atomic::Ordering,
    time::UNIX_EPOCH,
};
use tokio::sync::{mpsc, oneshot};

/// Tokens read at once. The caller is looked for between two such chunks.
const CHUNK: usize = 64;
/// Pieces of a stream that wait to be read; the model then waits too.
const PIECES_MAX: usize = 16;

/// Where a call's answer goes.
pub(super) type Reply = oneshot::Sender<Result<Answer, CallError>>;

/// Why a call ended without its whole answer.
enum Failure {
    /// Nobody waits any more.
    Left,
    /// The body was at fault.
    Rejected(Rejected),
    /// We were at fault.
    Fault(String),
}

impl From<Rejected> for Failure {
    fn from(rejected: Rejected) -> Self {
        Self::Rejected(rejected)
    }
}

impl From<candle_core::Error> for Failure {
    fn from(error: candle_core::Error) -> Self {
        Self::Fault(error.to_string())
    }
}

/// The one who waits for the answer.
struct Caller {
    /// Until the head was given.
    reply: Option<Reply>,
    /// Once the head of a stream was given.
    stream: Option<mpsc::Sender<Result<Bytes, CallError>>>,
    /// Given back before the last byte goes out, so that a caller who reacts to it finds the place free.
    place: Option<Place>,
}

/// Answers one call. Never panics, whatever the model does.
pub(super) fn serve(model: &Model, call: &Call, reply: Reply, place: Place) {
    let caller = Caller { reply: Some(reply), stream: None, place: Some(place) };
    conclude(caller, &call.request_id, |caller| answer(model, call, caller));
}

/// Does the work and gives the caller its outcome, whatever that is.
fn conclude(
    mut caller: Caller,
    request_id: &RequestId,
    work: impl FnOnce(&mut Caller) -> Result<Option<Value>, Failure>,
) {
    // Safe to go on after a panic: the model is never changed, and the caller only grows less.
    let outcome = catch_unwind(AssertUnwindSafe(|| work(&mut caller)))
        .unwrap_or_else(|_| Err(Failure::Fault("the model failed".to_owned())));
    let (status, body) = match outcome {
        Ok(Some(whole)) => (StatusCode::OK, whole),
        Ok(None) => return caller.end(say::DONE),
        Err(Failure::Left) => return,
        Err(Failure::Rejected(rejected)) => (StatusCode::BAD_REQUEST, rejected.to_json()),
        Err(Failure::Fault(message)) => {
            tracing::error!(request = %request_id, error = %message, "embedded model failed");
            (StatusCode::INTERNAL_SERVER_ERROR, say::fault(&message))
        }
    };
    caller.finish(status, &body);
}

/// The whole answer, or `None` when it was streamed.
fn answer(model: &Model, call: &Call, caller: &mut Caller) -> Result<Option<Value>, Failure> {
    let body = ask::object(&call.body)?;
    if call.route == Route::Embeddings {
        return embed(model, &body, caller).map(Some);
    }
    let ask = Ask::read(model, call.route, &body)?;
    let chat = call.route == Route::Chat;
    let frame = Frame {
        chat,
        id: format!("{}-{}", if chat { "chatcmpl" } else { "cmpl" }, call.request_id),
        model: model.name.to_string(),
        created: UNIX_EPOCH.elapsed().map_or(0, |age| age.as_secs()),
    };
    if ask.stream {
        caller.open()?;
    }
    let mut usage = Usage::default();
    let mut choices = Vec::new();
    for prompt in &ask.prompts {
        let (scores, cache) = read(model, prompt, caller)?;
        usage.read += prompt.len();
        for _ in 0..ask.choices {
            let mut writer = Writer::new(model, &ask, &frame, choices.len());
            let room = model.llama.shape().window - prompt.len();
            writer.write(scores.clone(), cache.clone(), ask.output_max.min(room), caller)?;
            usage.made += writer.made;
            choices.push(writer.choice);
        }
    }
    if !ask.stream {
        return Ok(Some(frame.whole(&choices, usage, &model.files)));
    }
    if ask.usage {
        caller.send(frame.bill(usage))?;
    }
    Ok(None)
}

/// Reads a prompt; gives the scores for what may follow.
fn read(model: &Model, prompt: &[u32], caller: &Caller) -> Result<(Vec<f32>, Cache), Failure> {
    let (mut scores, mut cache) = (Vec::new(), Cache::default());
    for chunk in prompt.chunks(CHUNK) {
        caller.still_there()?;
        scores = model.llama.forward(chunk, &mut cache)?;
    }
    Ok((scores, cache))
}

/// The mean of each input's final hidden states, scaled to length one.
fn embed(model: &Model, body: &Map<String, Value>, caller: &Caller) -> Result<Value, Failure> {
    let embed = Embed::read(model, body)?;
    let width = model.llama.shape().hidden;
    let mut rows = Vec::with_capacity(embed.inputs.len());
    for input in &embed.inputs {
        let (mut sum, mut cache) = (vec![0.0f32; width], Cache::default());
        for chunk in input.chunks(CHUNK) {
            caller.still_there()?;
            for row in model.llama.hidden(chunk, &mut cache)?.chunks_exact(width) {
                super::weights::add(&mut sum, row);
            }
        }
        // The mean's divisor goes out again when the length is made one.
        let length = sum.iter().map(|number| number * number).sum::<f32>().sqrt();
        if !length.is_normal() {
            return Err(Failure::Fault("the hidden states have no direction".to_owned()));
        }
        rows.push(sum.iter().map(|number| number / length).collect());
    }
    let read = embed.inputs.iter().map(Vec::len).sum();
    Ok(say::embeddings(model.name.as_str(), &rows, embed.base64, read))
}

/// Writes one choice.
struct Writer<'a> {
    model: &'a Model,
    ask: &'a Ask,
    frame: &'a Frame,
    index: usize,
    text: Text,
    /// Tokens made, the end mark among them.
    made: usize,
    choice: Choice,
    /// Tokens with odds whose text was not sent yet.
    unsent: Vec<Said>,
    /// Characters of all tokens so far, shown or held back.
    offset: usize,
}

// === impl Writer ===

impl<'a> Writer<'a> {
    fn new(model: &'a Model, ask: &'a Ask, frame: &'a Frame, index: usize) -> Self {
        let end = End { reason: "length", stop: None };
        let choice = Choice { text: String::new(), said: ask.logprobs.map(|_| Vec::new()), end };
        let text = Text::new(&ask.stops);
        Self { model, ask, frame, index, text, made: 0, choice, unsent: Vec::new(), offset: 0 }
    }

    fn write(
        &mut self,
        mut scores: Vec<f32>,
        mut cache: Cache,
        most: usize,
        caller: &Caller,
    ) -> Result<(), Failure> {
        if self.ask.stream && self.frame.chat {
            caller.send(self.frame.opening(self.index))?;
        }
        let seed = self.ask.seed.unwrap_or_else(fresh_seed).wrapping_add(self.index as u64);
        let mut sampler = Sampler::new(self.ask.choosing.clone(), seed);
        loop {
            caller.still_there()?;
            let token =
                sampler.choose(&scores).ok_or(Failure::Fault("no token has a score".to_owned()))?;
            self.made += 1;
            self.model.tokens_made.fetch_add(1, Ordering::Relaxed);
            if self.model.files.eos_ids().contains(&token) {
                self.choice.end.reason = "stop";
                break;
            }
            self.take(token, &scores);
            let shown = self.text.push(&self.model.files.bytes_of(token).unwrap_or_default());
            self.show(&shown, caller)?;
            if self.text.stopped().is_some() || self.made >= most {
                break;
            }
            scores = self.model.llama.forward(&[token], &mut cache)?;
        }
        let rest = self.text.finish();
        self.show(&rest, caller)?;
        if let Some(stop) = self.text.stopped() {
            self.choice.end = End { reason: "stop", stop: Some(stop.to_owned()) };
        }
        if self.ask.stream {
            let logprobs = self.unsent_logprobs();
            caller.send(self.frame.ending(self.index, &self.choice.end, logprobs))?;
        }
        Ok(())
    }

    fn take(&mut self, token: u32, scores: &[f32]) {
        let Some(top) = self.ask.logprobs else { return };
        let said = Said { token, odds: sample::odds(scores, token, top), offset: self.offset };
        let bytes = self.model.files.bytes_of(token).unwrap_or_default();
        self.offset += String::from_utf8_lossy(&bytes).chars().count();
        if self.ask.stream { &mut self.unsent } else { self.choice.said.get_or_insert_default() }
            .push(said);
    }

    fn show(&mut self, text: &str, caller: &Caller) -> Result<(), Failure> {
        if !self.ask.stream {
            self.choice.text.push_str(text);
            return Ok(());
        }
        if text.is_empty() {
            return Ok(());
        }
        let logprobs = self.unsent_logprobs();
        caller.send(self.frame.piece(self.index, text, logprobs))
    }

    fn unsent_logprobs(&mut self) -> Value {
        if self.unsent.is_empty() {
            return Value::Null;
        }
        self.frame.logprobs(&std::mem::take(&mut self.unsent), &self.model.files)
    }
}

// === impl Caller ===

impl Caller {
    fn still_there(&self) -> Result<(), Failure> {
        let waits = match (&self.reply, &self.stream) {
            (Some(reply), _) => !reply.is_closed(),
            (None, Some(stream)) => !stream.is_closed(),
            (None, None) => false,
        };
        if waits { Ok(()) } else { Err(Failure::Left) }
    }

    /// Gives the head of a stream.
    fn open(&mut self) -> Result<(), Failure> {
        let (sender, pieces) = mpsc::channel(PIECES_MAX);
        self.stream = Some(sender);
        self.give(StatusCode::OK, "text/event-stream", pieces)
    }

    fn give(
        &mut self,
        status: StatusCode,
        content_type: &'static str,
        pieces: mpsc::Receiver<Result<Bytes, CallError>>,
    ) -> Result<(), Failure> {
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
        let answer = Answer { status, headers, body: AnswerBody::Memory(pieces) };
        let reply = self.reply.take().ok_or(Failure::Left)?;
        reply.send(Ok(answer)).map_err(|_| Failure::Left)
    }

    /// Sends a piece of a stream; waits while the caller is behind.
    fn send(&self, piece: Bytes) -> Result<(), Failure> {
        let stream = self.stream.as_ref().ok_or(Failure::Left)?;
        stream.blocking_send(Ok(piece)).map_err(|_| Failure::Left)
    }

    /// Sends a stream's last piece.
    fn end(&mut self, piece: Bytes) {
        self.place = None;
        // A caller who left needs no last piece.
        let _ = self.send(piece);
    }

    /// Ends the call with this body: as the whole answer, or as an error within a stream.
    fn finish(&mut self, status: StatusCode, body: &Value) {
        if self.stream.is_some() {
            if self.send(say::event(body)).is_ok() {
                self.end(say::DONE);
            }
            return;
        }
        self.place = None;
        let (sender, pieces) = mpsc::channel(1);
        let written = Bytes::from(body.to_string());
        // There is room for one, and a caller who left needs nothing.
        let _ = sender.try_send(Ok(written));
        let _ = self.give(status, "application/json", pieces);
    }
}

/// A seed for a caller who gave none.
fn fresh_seed() -> u64 {
    let mut bytes = [0; 8];
    // Without random numbers every answer is the same, which still is an answer.
    let _ = getrandom::fill(&mut bytes);
    u64::from_le_bytes(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use tokio::sync::Semaphore;

    /// A caller with the only place of `places`, and what it will hear.
    fn caller(places: &Arc<Semaphore>) -> (Caller, oneshot::Receiver<Result<Answer, CallError>>) {
        let (reply, answer) = oneshot::channel();
        let place = Arc::clone(places).try_acquire_owned().ok();
        (Caller { reply: Some(reply), stream: None, place }, answer)
    }

    async fn hear(answer: oneshot::Receiver<Result<Answer, CallError>>) -> (StatusCode, String) {
        let mut answer = answer.await.unwrap().unwrap();
        let mut text = String::new();
        while let Some(piece) = answer.body.next().await {
            text.push_str(std::str::from_utf8(&piece.unwrap()).unwrap());
        }
        (answer.status, text)
    }

    fn conclude_apart(
        caller: Caller,
        work: impl FnOnce(&mut Caller) -> Result<Option<Value>, Failure> + Send + 'static,
    ) {
        std::thread::spawn(move || conclude(caller, &RequestId::fresh(), work)).join().unwrap();
    }

    #[tokio::test]
    async fn a_panic_before_the_head_is_a_500() {
        let places = Arc::new(Semaphore::new(1));
        let (caller, answer) = caller(&places);
        conclude_apart(caller, |_| panic!("weights on fire"));
        let (status, text) = hear(answer).await;
        assert_eq!(status, StatusCode::INTERNAL_SERVER_ERROR);
        let body: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(
            (&body["error"]["type"], places.available_permits()),
            (&"server_error".into(), 1)
        );
        assert!(!text.contains("fire"), "what the panic said is not for callers");
    }

    #[tokio::test]
    async fn a_panic_within_a_stream_is_an_error_event() {
        let places = Arc::new(Semaphore::new(1));
        let (caller, answer) = caller(&places);
        conclude_apart(caller, |caller| {
            caller.open()?;
            caller.send(Bytes::from_static(b"data: 1\n\n"))?;
            panic!("weights on fire");
        });
        let (status, text) = hear(answer).await;
        let events: Vec<_> = text.split_terminator("\n\n").collect();
        assert_eq!(
            (status, events.len(), events[0], events[2]),
            (StatusCode::OK, 3, "data: 1", "data: [DONE]")
        );
        assert!(events[1].starts_with("data: {\"error\""));
        assert_eq!(places.available_permits(), 1);
    }
}
