//! Answers in OpenAI form, whole or as server-sent events, as vLLM writes them.

use super::{ask::Rejected, sample::Odds};
use crate::tokens::ModelFiles;
use bytes::Bytes;
use serde_json::{Map, Value, json};

/// The last event of every stream.
pub(super) const DONE: Bytes = Bytes::from_static(b"data: [DONE]\n\n");

/// What all pieces of one answer share.
#[derive(Debug)]
pub(super) struct Frame {
    pub(super) chat: bool,
    pub(super) id: String,
    pub(super) model: String,
    /// Seconds since 1970.
    pub(super) created: u64,
}

/// How an answer ended: `finish_reason`, and the stop string if it was one.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct End {
    pub(super) reason: &'static str,
    pub(super) stop: Option<String>,
}

/// Tokens read and made.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Usage {
    pub(super) read: usize,
    pub(super) made: usize,
}

/// One token with its odds, ready to be written.
#[derive(Clone, Debug)]
pub(super) struct Said {
    pub(super) token: u32,
    pub(super) odds: Odds,
    /// Characters of the answer before this token.
    pub(super) offset: usize,
}

/// One answer of several.
#[derive(Debug)]
pub(super) struct Choice {
    pub(super) text: String,
    pub(super) said: Option<Vec<Said>>,
    pub(super) end: End,
}

// === impl Frame ===

impl Frame {
    /// A stream's first piece for a chat choice.
    pub(super) fn opening(&self, index: usize) -> Bytes {
        let delta = json!({"role": "assistant", "content": ""});
        self.event(
            json!([{"index": index, "delta": delta, "logprobs": null, "finish_reason": null}]),
            None,
        )
    }

    /// A piece of text.
    pub(super) fn piece(&self, index: usize, text: &str, logprobs: Value) -> Bytes {
        let choice = match self.chat {
            true => json!({"index": index, "delta": {"content": text}, "logprobs": logprobs,
                           "finish_reason": null}),
            false => {
                json!({"index": index, "text": text, "logprobs": logprobs, "finish_reason": null})
            }
        };
        self.event(json!([choice]), None)
    }

    /// A choice's last piece.
    pub(super) fn ending(&self, index: usize, end: &End, logprobs: Value) -> Bytes {
        let mut choice = match self.chat {
            true => json!({"index": index, "delta": {"content": ""}}),
            false => json!({"index": index, "text": ""}),
        };
        if let Some(choice) = choice.as_object_mut() {
            choice.insert("logprobs".into(), logprobs);
            choice.insert("finish_reason".into(), end.reason.into());
            choice.insert("stop_reason".into(), json!(end.stop));
        }
        self.event(json!([choice]), None)
    }

    /// The usage piece after all choices.
    pub(super) fn bill(&self, usage: Usage) -> Bytes {
        self.event(json!([]), Some(usage))
    }

    /// The whole answer.
    pub(super) fn whole(&self, choices: &[Choice], usage: Usage, files: &ModelFiles) -> Value {
        let choices: Vec<Value> = choices
            .iter()
            .enumerate()
            .map(|(index, choice)| {
                let logprobs =
                    choice.said.as_ref().map_or(Value::Null, |said| self.logprobs(said, files));
                let (reason, stop) = (choice.end.reason, &choice.end.stop);
                match self.chat {
                    true => json!({"index": index,
                        "message": {"role": "assistant", "content": choice.text},
                        "logprobs": logprobs, "finish_reason": reason, "stop_reason": stop}),
                    false => json!({"index": index, "text": choice.text, "logprobs": logprobs,
                        "finish_reason": reason, "stop_reason": stop}),
                }
            })
            .collect();
        let object = if self.chat { "chat.completion" } else { "text_completion" };
        json!({"id": self.id, "object": object, "created": self.created, "model": self.model,
               "choices": choices, "usage": usage.to_json()})
    }

    /// Log probabilities in the form of the route.
    pub(super) fn logprobs(&self, said: &[Said], files: &ModelFiles) -> Value {
        if self.chat {
            let content: Vec<Value> = said
                .iter()
                .map(|one| {
                    let top =
                        one.odds.top.iter().map(|&(token, logprob)| entry(files, token, logprob));
                    let mut written = entry(files, one.token, one.odds.logprob);
                    if let Some(written) = written.as_object_mut() {
                        written.insert("top_logprobs".into(), top.collect());
                    }
                    written
                })
                .collect();
            return json!({"content": content});
        }
        let tops = said.iter().map(|one| {
            let likeliest = one.odds.top.iter().copied().chain([(one.token, one.odds.logprob)]);
            likeliest
                .map(|(token, logprob)| (text(files, token), json!(logprob)))
                .collect::<Map<_, _>>()
        });
        json!({
            "text_offset": said.iter().map(|one| one.offset).collect::<Vec<_>>(),
            "token_logprobs": said.iter().map(|one| one.odds.logprob).collect::<Vec<_>>(),
            "tokens": said.iter().map(|one| text(files, one.token)).collect::<Vec<_>>(),
            "top_logprobs": tops.collect::<Vec<_>>(),
        })
    }

    fn event(&self, choices: Value, usage: Option<Usage>) -> Bytes {
        let object = if self.chat { "chat.completion.chunk" } else { "text_completion" };
        let mut chunk = json!({"id": self.id, "object": object, "created": self.created,
                               "model": self.model, "choices": choices});
        if let (Some(usage), Some(chunk)) = (usage, chunk.as_object_mut()) {
            chunk.insert("usage".into(), usage.to_json());
        }
        event(&chunk)
    }
}

// === impl Usage ===

impl Usage {
    fn to_json(self) -> Value {
        json!({"prompt_tokens": self.read, "completion_tokens": self.made,
               "total_tokens": self.read + self.made})
    }
}

// === impl Rejected ===

impl Rejected {
    /// The error body of a refused call.
    pub(super) fn to_json(&self) -> Value {
        json!({"error": {"message": self.message, "type": "invalid_request_error", "param": self.param,
                         "code": self.code}})
    }
}

/// The error body of a fault inside the model.
pub(super) fn fault(message: &str) -> Value {
    json!({"error": {"message": message, "type": "server_error", "param": null, "code": "internal_error"}})
}

/// A server-sent event.
pub(super) fn event(value: &Value) -> Bytes {
    Bytes::from(format!("data: {value}\n\n"))
}

/// The answer to an embeddings call: `rows` as numbers or as base64 of little-endian 32-bit floats.
pub(super) fn embeddings(model: &str, rows: &[Vec<f32>], base64: bool, read: usize) -> Value {
    let data: Vec<Value> = rows
        .iter()
        .enumerate()
        .map(|(index, row)| {
            let row = match base64 {
                true => {
                    json!(to_base64(&row.iter().flat_map(|n| n.to_le_bytes()).collect::<Vec<_>>()))
                }
                false => json!(row),
            };
            json!({"object": "embedding", "index": index, "embedding": row})
        })
        .collect();
    json!({"object": "list", "data": data, "model": model,
           "usage": {"prompt_tokens": read, "total_tokens": read}})
}

fn entry(files: &ModelFiles, token: u32, logprob: f32) -> Value {
    let bytes = files.bytes_of(token);
    json!({"token": text(files, token), "logprob": logprob, "bytes": bytes})
}

fn text(files: &ModelFiles, token: u32) -> String {
    String::from_utf8_lossy(&files.bytes_of(token).unwrap_or_default()).into_owned()
}

fn to_base64(bytes: &[u8]) -> String {
    const SIGNS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for three in bytes.chunks(3) {
        let bits = three
            .iter()
            .chain([&0u8; 2])
            .take(3)
            .fold(0u32, |bits, &byte| bits << 8 | u32::from(byte));
        for place in 0..4 {
            let sign = SIGNS.get((bits >> (18 - 6 * place) & 63) as usize);
            let past_end = place > three.len();
            text.push(if past_end { '=' } else { char::from(sign.copied().unwrap_or(b'=')) });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_is_padded_as_the_standard_shows() {
        for (plain, coded) in
            [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foobar", "Zm9vYmFy")]
        {
            assert_eq!(to_base64(plain.as_bytes()), coded);
        }
        assert_eq!(to_base64(&[0xFB, 0xFF]), "+/8=");
    }
}
