//! The scripted server's endpoints.

use super::{
    Server,
    answer::{Answer, Flight, Pace, Page},
    ask::Ask,
    batch::{Load, Refused},
    wire::{Finish, Shape, Style, error_json},
};
use crate::units::Tokens;
use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::body::Incoming;
use std::{
    error::Error,
    fmt::Write as _,
    sync::{Arc, atomic::Ordering::Relaxed},
};

/// The largest request body read; longer ones get 413.
const BODY_MAX_BYTES: usize = 64 << 20;

/// Numbers in one embedding.
const EMBEDDING_WIDTH: u64 = 8;

/// Texts in one embeddings request.
const EMBEDDINGS_MAX: u64 = 2048;

/// An error answer.
struct Problem {
    status: StatusCode,
    kind: &'static str,
    param: Option<&'static str>,
    message: String,
}

/// Answers one request. Dropping the future aborts what it started.
pub(super) async fn answer(server: Arc<Server>, request: Request<Incoming>) -> Response<Page> {
    let (head, body) = request.into_parts();
    let style = match (&head.method, head.uri.path()) {
        (&Method::GET, "/health") => return page(StatusCode::OK, None, Bytes::new()),
        (&Method::GET, "/version") => return json(r#"{"version":"0.0.0-berthd-simulate"}"#.into()),
        (&Method::GET, "/v1/models") => return json(models(&server)),
        (&Method::GET, "/metrics") => return metrics(&server),
        (&Method::POST, "/v1/chat/completions") => Some(Style::Chat),
        (&Method::POST, "/v1/completions") => Some(Style::Completion),
        (&Method::POST, "/v1/embeddings" | "/tokenize") => None,
        _ => return Problem::not_found().into_response(),
    };
    // Counted before the body is read: who hangs up in the middle of it is an abort too.
    let mut flight = style.map(|_| Flight::new(Arc::clone(&server.stats)));
    let answered = async {
        let body = Limited::new(body, BODY_MAX_BYTES).collect().await?.to_bytes();
        let ask = serde_json::from_slice::<Ask<'_>>(&body)?;
        match style {
            Some(style) => {
                let id = head.headers.get("x-request-id").and_then(|id| id.to_str().ok());
                generate(&server, style, &mut flight, &ask, id).await
            }
            None if head.uri.path() == "/tokenize" => tokenize(&server, &ask),
            None => embed(&server, &ask, &body),
        }
    };
    match answered.await {
        Ok(response) => response,
        Err(problem) => {
            if let Some(flight) = &mut flight {
                flight.refuse();
            }
            problem.into_response()
        }
    }
}

async fn generate(
    server: &Arc<Server>,
    style: Style,
    flight: &mut Option<Flight>,
    ask: &Ask<'_>,
    id: Option<&str>,
) -> Result<Response<Page>, Problem> {
    let (prompt, output, finish) = server.size(style, ask)?;
    let pace = match &server.batch {
        None if server.token_interval.is_zero() => Pace::Free { paused_at: None },
        None => Pace::evenly(server.token_interval),
        Some(batch) => Pace::Batch(batch.submit(prompt, output)?),
    };
    let shape = server.shape(style, id);
    let wants_usage = ask.wants_usage();
    // From here on the answer owns the count.
    let flight = flight.take();
    let answer = Answer { shape, prompt, output, finish, wants_usage, pace, flight };
    if ask.stream.unwrap_or(false) {
        let mut response = Response::new(answer.stream());
        let kind = HeaderValue::from_static("text/event-stream; charset=utf-8");
        response.headers_mut().insert(header::CONTENT_TYPE, kind);
        return Ok(response);
    }
    Ok(json(answer.whole().await))
}

fn tokenize(server: &Server, ask: &Ask<'_>) -> Result<Response<Page>, Problem> {
    server.check_model(ask)?;
    let count = ask.prompt().ok_or_else(|| Problem::bad("no prompt and no messages", None))?;
    let ids: Vec<String> = (0..count.get()).map(|id| id.to_string()).collect();
    Ok(json(Bytes::from(format!(
        r#"{{"count":{count},"max_model_len":{},"tokens":[{}]}}"#,
        server.window,
        ids.join(",")
    ))))
}

/// Small vectors that depend on the whole input and on nothing else.
fn embed(server: &Server, ask: &Ask<'_>, body: &[u8]) -> Result<Response<Page>, Problem> {
    server.check_model(ask)?;
    let (Some(prompt), Some(items)) = (ask.prompt(), ask.input.as_ref().map(|i| i.items)) else {
        return Err(Problem::bad("no input", Some("input")));
    };
    if items == 0 || items > EMBEDDINGS_MAX {
        let message = format!("input must hold 1 to {EMBEDDINGS_MAX} texts");
        return Err(Problem::bad(message, Some("input")));
    }
    let input = serde_json::from_slice::<serde_json::Value>(body)
        .ok()
        .and_then(|mut body| body.get_mut("input").map(serde_json::Value::take))
        .unwrap_or_default();
    let texts = match input {
        serde_json::Value::Array(list) if list.first().is_some_and(|i| !i.is_number()) => list,
        one => vec![one],
    };
    let data: Vec<_> = texts
        .iter()
        .enumerate()
        .map(|(index, text)| {
            serde_json::json!({
                "object": "embedding", "index": index, "embedding": vector(&text.to_string())
            })
        })
        .collect();
    server.stats.prompt.fetch_add(prompt.get(), Relaxed);
    let answer = serde_json::json!({
        "id": "embd-simulate", "object": "list", "created": server.created_s,
        "model": server.model, "data": data,
        "usage": { "prompt_tokens": prompt, "total_tokens": prompt, "completion_tokens": 0 }
    });
    Ok(json(Bytes::from(answer.to_string())))
}

/// A unit vector seeded by the text (FNV-1a, then one multiply-and-mix per number).
fn vector(text: &str) -> Vec<f64> {
    let seed = text
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325, |h: u64, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3));
    let raw: Vec<f64> = (1..=EMBEDDING_WIDTH)
        .map(|place| {
            let mixed = (seed ^ place).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            f64::from((mixed >> 40) as u32) / f64::from(1u32 << 23) - 1.0
        })
        .collect();
    let length = raw.iter().map(|x| x * x).sum::<f64>().sqrt().max(f64::MIN_POSITIVE);
    raw.iter().map(|x| x / length).collect()
}

fn models(server: &Server) -> Bytes {
    Bytes::from(format!(
        r#"{{"object":"list","data":[{{"id":{0},"object":"model","created":{1},"owned_by":"berthd","root":{0},"parent":null,"max_model_len":{2}}}]}}"#,
        server.model_json, server.created_s, server.window
    ))
}

/// vLLM's metric names with its labels.
fn metrics(server: &Server) -> Response<Page> {
    let stats = &server.stats;
    let load = server.batch.as_ref().map_or_else(
        || Load {
            running: usize::try_from(stats.running()).unwrap_or(usize::MAX),
            waiting: 0,
            used: Tokens::ZERO,
            capacity: server.kv,
            preemptions: 0,
        },
        |batch| batch.load(),
    );
    let labels = format!(r#"engine="0",model_name={}"#, server.model_json);
    let mut out = String::with_capacity(2048);
    let mut family = |name: &str, kind: &str, samples: &[(&str, String)]| {
        // Writing to a String cannot fail.
        let _ = writeln!(out, "# TYPE {name} {kind}");
        for (more, value) in samples {
            let _ = writeln!(out, "{name}{{{labels}{more}}} {value}");
        }
    };
    let mut gauge = |name: &str, value: String| family(name, "gauge", &[("", value)]);
    gauge("vllm:num_requests_running", load.running.to_string());
    gauge("vllm:num_requests_waiting", load.waiting.to_string());
    gauge("vllm:kv_cache_usage_perc", load.used.share_of(load.capacity).to_string());
    let mut counter = |name: &str, value: u64| family(name, "counter", &[("", value.to_string())]);
    counter("vllm:num_preemptions_total", load.preemptions);
    counter("vllm:prompt_tokens_total", stats.prompt().get());
    counter("vllm:generation_tokens_total", stats.generated().get());
    family(
        "vllm:request_success_total",
        "counter",
        &[
            (r#",finished_reason="stop""#, stats.stopped().to_string()),
            (
                r#",finished_reason="length""#,
                stats.finished().saturating_sub(stats.stopped()).to_string(),
            ),
            (r#",finished_reason="abort""#, stats.aborted().to_string()),
        ],
    );
    let cache = format!(
        r#",block_size="16",num_gpu_blocks="{}",kv_cache_size_tokens="{}""#,
        load.capacity.get() / super::clock::PAGE_TOKENS,
        load.capacity
    );
    family("vllm:cache_config_info", "gauge", &[(&cache, "1.0".to_owned())]);
    page(StatusCode::OK, Some("text/plain; version=0.0.4; charset=utf-8"), Bytes::from(out))
}

fn json(body: Bytes) -> Response<Page> {
    page(StatusCode::OK, Some("application/json"), body)
}

fn page(status: StatusCode, kind: Option<&'static str>, body: Bytes) -> Response<Page> {
    let mut response = Response::new(Page::Whole(Some(body)));
    *response.status_mut() = status;
    if let Some(kind) = kind {
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    }
    response
}

// === impl Server ===

impl Server {
    /// How long prompt and answer are, and why the answer ends.
    fn size(&self, style: Style, ask: &Ask<'_>) -> Result<(Tokens, Tokens, Finish), Problem> {
        self.check_model(ask)?;
        let Some(prompt) = ask.prompt() else {
            return Err(Problem::bad("no prompt and no messages", Some("messages")));
        };
        if ask.n.is_some_and(|n| n != 1) {
            return Err(Problem::bad("this server answers n = 1 only", Some("n")));
        }
        if style == Style::Completion && ask.has_many_prompts() {
            return Err(Problem::bad("this server takes one prompt a request", Some("prompt")));
        }
        let limit = ask.limit();
        if limit.is_some_and(|limit| limit == Tokens::ZERO || limit > self.window) {
            let message = format!("max_tokens must be 1 to {}", self.window);
            return Err(Problem::bad(message, Some("max_tokens")));
        }
        let room = self.window.less(prompt);
        if room == Tokens::ZERO {
            let message = format!(
                "This model's maximum context length is {} tokens. However, your request has {prompt} \
                 input tokens.",
                self.window
            );
            return Err(Problem::bad(message, Some("input_tokens")));
        }
        let stop = match (ask.wish(), limit) {
            (Some(wish), _) => Some(wish.max(Tokens(1))),
            (None, Some(_)) => None,
            (None, None) => Some(self.output),
        };
        let limit = limit.unwrap_or(room).min(room);
        Ok(match stop {
            Some(stop) if stop <= limit => (prompt, stop, Finish::Stop),
            _ => (prompt, limit, Finish::Length),
        })
    }

    fn check_model(&self, ask: &Ask<'_>) -> Result<(), Problem> {
        match &ask.model {
            Some(model) if *model != self.model => Err(Problem {
                status: StatusCode::NOT_FOUND,
                kind: "NotFoundError",
                param: Some("model"),
                message: format!("The model `{model}` does not exist."),
            }),
            _ => Ok(()),
        }
    }

    /// The bytes around an answer's words: its own in a batch, shared ones when every microsecond counts.
    fn shape(&self, style: Style, id: Option<&str>) -> Arc<Shape> {
        if self.batch.is_none() {
            return match style {
                Style::Chat => Arc::clone(&self.chat),
                Style::Completion => Arc::clone(&self.completion),
            };
        }
        let made;
        let id = match id.filter(|id| id.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')) {
            Some(id) => id,
            None => {
                made = format!("simulate-{}", self.stats.requests());
                &made
            }
        };
        Arc::new(Shape::new(style, self.words, id, super::unix_now_s(), &self.model_json))
    }
}

// === impl Problem ===

impl Problem {
    fn bad(message: impl Into<String>, param: Option<&'static str>) -> Self {
        let (status, kind) = (StatusCode::BAD_REQUEST, "BadRequestError");
        Self { status, kind, param, message: message.into() }
    }

    fn not_found() -> Self {
        let (status, kind) = (StatusCode::NOT_FOUND, "NotFoundError");
        Self { status, kind, param: None, message: "Not Found".to_owned() }
    }

    fn too_large() -> Self {
        let message = format!("a request body is at most {BODY_MAX_BYTES} bytes");
        let status = StatusCode::PAYLOAD_TOO_LARGE;
        Self { status, kind: "BadRequestError", param: None, message }
    }

    fn into_response(self) -> Response<Page> {
        let body = error_json(&self.message, self.kind, self.param, self.status.as_u16());
        page(self.status, Some("application/json"), body)
    }
}

impl From<serde_json::Error> for Problem {
    fn from(error: serde_json::Error) -> Self {
        Self::bad(error.to_string(), None)
    }
}

/// What a limited body fails with.
impl From<Box<dyn Error + Send + Sync>> for Problem {
    fn from(error: Box<dyn Error + Send + Sync>) -> Self {
        if error.is::<LengthLimitError>() {
            return Self::too_large();
        }
        Self::bad(error.to_string(), None)
    }
}

impl From<Refused> for Problem {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::TooLong(why) => Self::bad(why.to_string(), Some("max_tokens")),
            Refused::LineFull => Self {
                status: StatusCode::SERVICE_UNAVAILABLE,
                kind: "Service Unavailable",
                param: None,
                message: "too many requests in the line".to_owned(),
            },
        }
    }
}
