//! `berthd tokens`: counts requests from standard input, with the code that the daemon counts with.

mod answer;
mod lines;
mod share;
mod sources;

use super::{Failure, print};
use crate::{
    api::shapes::{self, Shape},
    error::{Reason, Refusal},
    ids::{ModelName, ServerKind},
    pipeline::shapes::Shaped,
};
use answer::{Answer, Wanted};
use serde_json::{Map, Value};
use sources::Sources;
use std::{io::Read, path::PathBuf};
use tokio::{runtime::Runtime, time::Instant};

/// `berthd tokens`
#[derive(Debug, clap::Args)]
pub struct Options {
    /// The configuration file, for the models' folders and servers.
    #[arg(long, short, default_value = super::CONFIG, value_name = "FILE")]
    config: PathBuf,
    /// Count with this model folder instead (tokenizer.json and chat template) or this GGUF file, without a
    /// configuration.
    #[arg(long, alias = "folder", value_name = "DIR", conflicts_with = "config")]
    model_dir: Option<PathBuf>,
    /// The kind of server whose way of preparing requests is followed, with --model-dir: vllm, sglang,
    /// llamacpp, openai or embedded.
    #[arg(long, alias = "kind", default_value = "openai", value_name = "KIND", value_parser = parse_kind)]
    server_kind: ServerKind,
    /// Model to count for, instead of the one that the request names.
    #[arg(long, short)]
    model: Option<String>,
    /// What API the request is written for: auto (told from its fields), chat, completions, embeddings,
    /// messages (Anthropic), responses (OpenAI) or rerank.
    #[arg(long, default_value = "auto", value_name = "SHAPE", value_parser = parse_shape)]
    shape: Choice,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    /// Read one request a line and print one JSON answer a line, in order, as they come. A line that cannot
    /// be counted gives an error on its line; the exit status is then 65.
    #[arg(long)]
    jsonl: bool,
    /// Show the prompt as it is encoded too.
    #[arg(long)]
    render: bool,
    /// Show what each message adds to the prompt too.
    #[arg(long)]
    messages: bool,
    /// Show the token ids too.
    #[arg(long)]
    ids: bool,
}

/// The shape that was asked for; `None`: told from the fields.
#[derive(Clone, Copy, Debug)]
struct Choice(Option<Shape>);

/// The most that one request may have: more than any daemon takes.
const REQUEST_MAX: u64 = 256 << 20;

fn parse_kind(text: &str) -> Result<ServerKind, String> {
    let text = if text == "llamacpp" { "llama.cpp" } else { text };
    ServerKind::parse(text).ok_or_else(|| {
        let kinds: Vec<&str> = ServerKind::ALL.iter().map(|kind| kind.as_str()).collect();
        format!("one of: {}", kinds.join(", "))
    })
}

fn parse_shape(text: &str) -> Result<Choice, String> {
    if text == "auto" {
        return Ok(Choice(None));
    }
    Shape::parse(text).map(|shape| Choice(Some(shape))).ok_or_else(|| {
        let shapes: Vec<&str> = Shape::ALL.iter().map(|shape| shape.as_str()).collect();
        format!("auto, or one of: {}", shapes.join(", "))
    })
}

/// Counts and prints.
pub fn run(options: &Options) -> Result<(), Failure> {
    let runtime = super::one_thread()?;
    if options.jsonl {
        let sources = Sources::open(options, None)?;
        return lines::run(|line| count(options, &sources, &runtime, line));
    }
    let mut body = Vec::new();
    std::io::stdin().take(REQUEST_MAX).read_to_end(&mut body).map_err(Failure::internal)?;
    // Before the files are loaded: a broken request is told at once.
    let request = opened(options, &body).map_err(|refusal| Failure::usage(refusal.message))?;
    let sources = Sources::open(options, request.get("model").and_then(Value::as_str))?;
    let answer = count(options, &sources, &runtime, &body);
    let answer = answer.map_err(|refusal| Failure::usage(refusal.message))?;
    let text = if options.json { answer.json() + "\n" } else { answer.text() };
    print(text.as_bytes())
}

/// Counts one request.
fn count(
    options: &Options,
    sources: &Sources,
    runtime: &Runtime,
    body: &[u8],
) -> Result<Answer, Refusal> {
    let began = Instant::now();
    let body = opened(options, body)?;
    let asked = body.get("model").and_then(Value::as_str).filter(|name| !name.is_empty());
    let asked = ModelName::from(asked.ok_or_else(|| {
        let text = "'model' is missing. Name the model in the request, or with --model.";
        Refusal::new(Reason::MissingField, text).param("model")
    })?);
    let shape = options.shape.0.unwrap_or_else(|| shapes::detect(&body));
    let source = sources.of(&asked);
    let counter = source.counter.as_deref();
    let judged = counter.map(|counter| (counter, true));
    let shaped = Shaped::of(shape, source.kind, source.model.as_str(), judged, &body)?;
    let told = runtime.block_on(shaped.count(source.server))?;
    let took = began.elapsed();
    let wanted = Wanted { prompt: options.render, messages: options.messages, ids: options.ids };
    let answer = Answer::new(&source.model, shape, told, took);
    Ok(answer.with_counter(counter).with(wanted, counter, &shaped))
}

/// The request with the model it is counted for: `--model`, its own, or with a folder simply that one.
fn opened(options: &Options, body: &[u8]) -> Result<Map<String, Value>, Refusal> {
    let mut request = shapes::open(body)?;
    let named = request.get("model").is_some_and(Value::is_string);
    let fallback = options.model_dir.is_some() && !named;
    if let Some(model) = options.model.as_deref().or(fallback.then_some("model")) {
        request.insert("model".to_owned(), model.into());
    }
    Ok(request)
}
