//! Reading the OpenAI body of a call into what the model must do.
//!
//! A field that would change the answer and that this server cannot honour is refused, never ignored.

use super::{Model, sample::Choosing};
use crate::servers::Route;
use serde_json::{Map, Value};

/// Prompts or inputs in one call.
const INPUTS_MAX: usize = 256;
/// Output tokens of a call that gives no maximum.
const OUTPUT_UNSAID: usize = 256;

/// A call to generate text.
#[derive(Debug)]
pub(super) struct Ask {
    /// Token ids of each prompt; a chat has one.
    pub(super) prompts: Vec<Vec<u32>>,
    /// Answers to each prompt.
    pub(super) choices: usize,
    /// Most output tokens of an answer, before the window cuts it.
    pub(super) output_max: usize,
    pub(super) choosing: Choosing,
    pub(super) seed: Option<u64>,
    pub(super) stops: Vec<String>,
    pub(super) stream: bool,
    /// A stream ends with a usage chunk.
    pub(super) usage: bool,
    /// Log probabilities are wanted, with this many likeliest tokens at each place.
    pub(super) logprobs: Option<usize>,
}

/// A call to embed texts.
#[derive(Debug)]
pub(super) struct Embed {
    pub(super) inputs: Vec<Vec<u32>>,
    pub(super) base64: bool,
}

/// Why a body was refused: the caller's to mend.
#[derive(Debug, PartialEq)]
pub(super) struct Rejected {
    pub(super) message: String,
    pub(super) param: Option<&'static str>,
    pub(super) code: Option<&'static str>,
}

// === impl Rejected ===

impl Rejected {
    fn field(param: &'static str, message: impl Into<String>) -> Self {
        Self { message: message.into(), param: Some(param), code: None }
    }

    fn unsupported(param: &'static str) -> Self {
        let message =
            format!("the embedded model does not support this value of `{param}`; leave it out");
        Self { message, param: Some(param), code: Some("unsupported_value") }
    }
}

/// The body as a JSON object.
pub(super) fn object(body: &[u8]) -> Result<Map<String, Value>, Rejected> {
    serde_json::from_slice(body).map_err(|error| Rejected {
        message: format!("the body is not a JSON object: {error}"),
        param: None,
        code: None,
    })
}

/// Token ids of everything the model would read for this body, in order.
pub(super) fn inputs(
    model: &Model,
    route: Route,
    body: &Map<String, Value>,
) -> Result<Vec<Vec<u32>>, Rejected> {
    let param = match route {
        Route::Chat => {
            let ids = model.files.chat_ids(&model.profile, body);
            return Ok(vec![ids.map_err(|error| Rejected::field("messages", error.to_string()))?]);
        }
        Route::Completions => "prompt",
        Route::Embeddings => "input",
    };
    let given =
        body.get(param).ok_or_else(|| Rejected::field(param, format!("`{param}` is missing")))?;
    let bare = [given.clone()];
    let list = match given {
        // Numbers alone are one input that is tokens already.
        Value::Array(list) if !list.iter().all(Value::is_number) => list.as_slice(),
        _ => &bare,
    };
    if list.len() > INPUTS_MAX {
        return Err(Rejected::field(
            param,
            format!("`{param}` has more than {INPUTS_MAX} entries"),
        ));
    }
    list.iter().map(|one| input(model, one, param)).collect()
}

fn input(model: &Model, one: &Value, param: &'static str) -> Result<Vec<u32>, Rejected> {
    let ids: Option<Vec<u32>> = match one {
        Value::String(text) => {
            let ids = model.files.text_ids(text, true);
            Some(ids.map_err(|error| Rejected::field(param, error.to_string()))?)
        }
        Value::Array(ids) => {
            ids.iter().map(|id| id.as_u64().and_then(|id| u32::try_from(id).ok())).collect()
        }
        _ => None,
    };
    let ids =
        ids.ok_or_else(|| Rejected::field(param, format!("`{param}` must be text or token ids")))?;
    let vocabulary = model.llama.shape().vocabulary;
    if ids.iter().any(|&id| id as usize >= vocabulary) {
        return Err(Rejected::field(param, format!("token ids must be below {vocabulary}")));
    }
    Ok(ids)
}

/// Every input must leave `room` tokens in the window.
fn fit(
    model: &Model,
    inputs: &[Vec<u32>],
    room: usize,
    param: &'static str,
) -> Result<(), Rejected> {
    let window = model.llama.shape().window;
    for ids in inputs {
        if ids.is_empty() {
            return Err(Rejected::field(param, format!("`{param}` has no tokens")));
        }
        if ids.len() + room > window {
            let message = format!(
                "This model's maximum context length is {window} tokens, but the input has {}",
                ids.len()
            );
            return Err(Rejected {
                message,
                param: Some(param),
                code: Some("context_length_exceeded"),
            });
        }
    }
    Ok(())
}

// === impl Ask ===

impl Ask {
    /// Reads a chat or completions body.
    pub(super) fn read(
        model: &Model,
        route: Route,
        body: &Map<String, Value>,
    ) -> Result<Self, Rejected> {
        refuse_unsupported(body)?;
        let prompts = inputs(model, route, body)?;
        fit(model, &prompts, 1, if route == Route::Chat { "messages" } else { "prompt" })?;
        let options = body.get("stream_options").and_then(|options| options.get("include_usage"));
        let output_max = match whole(body, "max_completion_tokens", 1, u64::from(u32::MAX))? {
            Some(max) => Some(max),
            None => whole(body, "max_tokens", 1, u64::from(u32::MAX))?,
        };
        Ok(Self {
            prompts,
            choices: whole(body, "n", 1, 4)?.unwrap_or(1) as usize,
            output_max: output_max.map_or(OUTPUT_UNSAID, |max| max as usize),
            choosing: choosing(body)?,
            // Negative seeds are seeds too.
            seed: given(body, "seed")
                .and_then(|seed| seed.as_u64().or(seed.as_i64().map(|s| s as u64))),
            stops: stops(body)?,
            stream: flag(body, "stream")?,
            usage: options.and_then(Value::as_bool).unwrap_or(false),
            logprobs: logprobs(route, body)?,
        })
    }
}

// === impl Embed ===

impl Embed {
    /// Reads an embeddings body.
    pub(super) fn read(model: &Model, body: &Map<String, Value>) -> Result<Self, Rejected> {
        if given(body, "dimensions").is_some() {
            return Err(Rejected::unsupported("dimensions"));
        }
        let base64 = match given(body, "encoding_format").map(Value::as_str) {
            None | Some(Some("float")) => false,
            Some(Some("base64")) => true,
            _ => return Err(Rejected::unsupported("encoding_format")),
        };
        let inputs = inputs(model, Route::Embeddings, body)?;
        fit(model, &inputs, 0, "input")?;
        Ok(Self { inputs, base64 })
    }
}

// === fields ===

fn given<'a>(body: &'a Map<String, Value>, key: &str) -> Option<&'a Value> {
    body.get(key).filter(|value| !value.is_null())
}

fn flag(body: &Map<String, Value>, key: &'static str) -> Result<bool, Rejected> {
    match given(body, key) {
        None => Ok(false),
        Some(value) => value
            .as_bool()
            .ok_or_else(|| Rejected::field(key, format!("`{key}` must be a boolean"))),
    }
}

fn whole(
    body: &Map<String, Value>,
    key: &'static str,
    low: u64,
    high: u64,
) -> Result<Option<u64>, Rejected> {
    let Some(value) = given(body, key) else { return Ok(None) };
    match value.as_u64().filter(|n| (low..=high).contains(n)) {
        Some(n) => Ok(Some(n)),
        None => Err(Rejected::field(
            key,
            format!("`{key}` must be a whole number from {low} to {high}"),
        )),
    }
}

fn number(
    body: &Map<String, Value>,
    key: &'static str,
    low: f64,
    high: f64,
    unsaid: f64,
) -> Result<f32, Rejected> {
    let Some(value) = given(body, key) else { return Ok(unsaid as f32) };
    match value.as_f64().filter(|n| (low..=high).contains(n)) {
        Some(n) => Ok(n as f32),
        None => Err(Rejected::field(key, format!("`{key}` must be a number from {low} to {high}"))),
    }
}

fn choosing(body: &Map<String, Value>) -> Result<Choosing, Rejected> {
    let mut bias = Vec::new();
    if let Some(given) = given(body, "logit_bias") {
        let entries = given.as_object().filter(|entries| entries.len() <= 1024);
        for (token, more) in entries.ok_or_else(|| Rejected::unsupported("logit_bias"))? {
            match (token.parse(), more.as_f64()) {
                (Ok(token), Some(more)) => bias.push((token, more as f32)),
                _ => {
                    return Err(Rejected::field(
                        "logit_bias",
                        "`logit_bias` maps token ids to numbers",
                    ));
                }
            }
        }
    }
    // llama.cpp and vLLM write "all tokens" as 0 or -1.
    let all = given(body, "top_k").and_then(Value::as_i64) == Some(-1);
    Ok(Choosing {
        temperature: number(body, "temperature", 0.0, 2.0, 1.0)?,
        top_p: number(body, "top_p", 0.0, 1.0, 1.0)?,
        top_k: if all {
            0
        } else {
            whole(body, "top_k", 0, u64::from(u32::MAX))?.unwrap_or(0) as usize
        },
        presence_penalty: number(body, "presence_penalty", -2.0, 2.0, 0.0)?,
        frequency_penalty: number(body, "frequency_penalty", -2.0, 2.0, 0.0)?,
        bias,
    })
}

fn stops(body: &Map<String, Value>) -> Result<Vec<String>, Rejected> {
    let wrong = || Rejected::field("stop", "`stop` must be a string or up to 4 strings");
    match given(body, "stop") {
        None => Ok(Vec::new()),
        Some(Value::String(stop)) => Ok(vec![stop.clone()]),
        Some(Value::Array(stops)) if stops.len() <= 4 => {
            stops.iter().map(|stop| stop.as_str().map(str::to_owned).ok_or_else(wrong)).collect()
        }
        _ => Err(wrong()),
    }
}

/// Chat says yes or no and how many apart; completions give the number at once.
fn logprobs(route: Route, body: &Map<String, Value>) -> Result<Option<usize>, Rejected> {
    if route == Route::Completions {
        return Ok(whole(body, "logprobs", 0, 5)?.map(|top| top as usize));
    }
    let top = whole(body, "top_logprobs", 0, 20)?;
    match (flag(body, "logprobs")?, top) {
        (true, top) => Ok(Some(top.unwrap_or(0) as usize)),
        (false, None | Some(0)) => Ok(None),
        (false, Some(_)) => {
            Err(Rejected::field("top_logprobs", "`top_logprobs` needs `logprobs: true`"))
        }
    }
}

fn refuse_unsupported(body: &Map<String, Value>) -> Result<(), Rejected> {
    let kind =
        given(body, "response_format").map(|format| format.get("type").and_then(Value::as_str));
    if !matches!(kind, None | Some(Some("text"))) {
        return Err(Rejected::unsupported("response_format"));
    }
    if flag(body, "echo")? {
        return Err(Rejected::unsupported("echo"));
    }
    if given(body, "suffix").is_some_and(|suffix| suffix != "") {
        return Err(Rejected::unsupported("suffix"));
    }
    let choices = given(body, "n").and_then(Value::as_u64).unwrap_or(1);
    if given(body, "best_of").is_some_and(|best| best.as_u64() != Some(choices)) {
        return Err(Rejected::unsupported("best_of"));
    }
    Ok(())
}
