//! `berthd tokens`: counts a chat request from standard input, with the code that the daemon counts with.

use super::{Failure, print};
use crate::{
    api::{FieldLimits, Request, Route, outgoing},
    config::{self, Place, Settings},
    ids::{ModelName, ServerKind},
    pipeline::count::{Counter, Counters, Source, count},
    servers::{ModelServer, http::ClientLimits, remote::Remote},
    tokens::{Allowance, ModelFiles, Profile},
};
use bytes::Bytes;
use std::{io::Read, path::PathBuf, sync::Arc};

/// `berthd tokens`
#[derive(Debug, clap::Args)]
pub struct Options {
    /// The configuration file, for the model's folder and servers.
    #[arg(long, short, default_value = super::CONFIG, value_name = "FILE")]
    config: PathBuf,
    /// Count with this model folder instead (tokenizer.json and chat template) or this GGUF file, without a
    /// configuration.
    #[arg(long, value_name = "FOLDER", conflicts_with = "config")]
    folder: Option<PathBuf>,
    /// The kind of server whose way of rendering is followed, with --folder.
    #[arg(long, default_value = "openai", value_name = "KIND", value_parser = parse_kind)]
    kind: ServerKind,
    /// Model to count for, instead of the one that the request names.
    #[arg(long, short)]
    model: Option<String>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

fn parse_kind(text: &str) -> Result<ServerKind, String> {
    ServerKind::parse(text).ok_or_else(|| {
        let kinds: Vec<&str> = ServerKind::ALL.iter().map(|kind| kind.as_str()).collect();
        format!("one of: {}", kinds.join(", "))
    })
}

/// Counts and prints.
pub fn run(options: &Options) -> Result<(), Failure> {
    let mut body = Vec::new();
    std::io::stdin().read_to_end(&mut body).map_err(Failure::internal)?;
    let body = with_model(body, options)?;
    let route = route_of(&body);
    let request = Request::parse(route, &body, FieldLimits { choices_max: 128 })
        .map_err(|refusal| Failure::usage(refusal.message))?;
    let (counter, server) = sources(options, &request.model)?;
    let outgoing = outgoing::body(&request, request.model.as_str());
    let local =
        counter.as_ref().map(|counter| counter.count(route, &request.fields, Allowance::Whole));
    let counted = super::one_thread()?
        .block_on(count(
            local.as_ref().map(|local| (local, true)),
            server,
            route,
            body.len(),
            &outgoing,
        ))
        .map_err(|refusal| Failure::usage(refusal.message))?;
    let how = match counted.source {
        Source::Exact => "exact: rendered and tokenised with the model's own files",
        Source::Server => "server: counted by the model server's own endpoint",
        Source::Estimate => {
            "estimate: no model files here and no counting endpoint; one token per four bytes"
        }
    };
    let text = if options.json {
        let value = serde_json::json!({
            "model": request.model,
            "input_tokens": counted.tokens,
            "source": counted.source.as_str(),
            "fingerprint": counter.as_ref().map(|counter| counter.files().fingerprint()),
        });
        format!("{value}\n")
    } else {
        format!("{} input tokens ({how})\n", counted.tokens)
    };
    print(text.as_bytes())
}

/// The request with the model it is counted for: `--model`, its own, or with a folder simply that one.
fn with_model(body: Vec<u8>, options: &Options) -> Result<Bytes, Failure> {
    let forced = options.model.clone();
    let fallback = options.folder.is_some().then(|| "model".to_owned());
    if forced.is_none() && fallback.is_none() {
        return Ok(body.into());
    }
    let mut value: serde_json::Value = serde_json::from_slice(&body)
        .map_err(|error| Failure::usage(format!("standard input is not JSON: {error}")))?;
    if let Some(object) = value.as_object_mut() {
        let named = object.get("model").is_some_and(serde_json::Value::is_string);
        match (forced, fallback) {
            (Some(model), _) => drop(object.insert("model".to_owned(), model.into())),
            (None, Some(model)) if !named => drop(object.insert("model".to_owned(), model.into())),
            _ => {}
        }
    }
    Ok(value.to_string().into())
}

/// Chat, unless the request has the field of another route.
fn route_of(body: &[u8]) -> Route {
    let value: serde_json::Value = serde_json::from_slice(body).unwrap_or_default();
    match (value.get("prompt"), value.get("input")) {
        (Some(_), _) => Route::Completions,
        (_, Some(_)) => Route::Embeddings,
        _ => Route::Chat,
    }
}

type Sources = (Option<Arc<Counter>>, Option<Arc<dyn ModelServer>>);

fn sources(options: &Options, asked: &ModelName) -> Result<Sources, Failure> {
    if let Some(folder) = &options.folder {
        let files = ModelFiles::load(folder).map_err(|error| {
            Failure::usage(format!("{} cannot be used: {error}", folder.display()))
        })?;
        let profile = Profile::with_files(options.kind, &files);
        let counter = Counter::new(Arc::new(files), profile);
        return Ok((Some(Arc::new(counter)), None));
    }
    let loaded = config::load(&options.config).map_err(|problems| {
        Failure::configuration(format!(
            "{} cannot be used:\n{problems}Name a model folder with --folder to count without a configuration.",
            options.config.display()
        ))
    })?;
    let settings = loaded.settings;
    let model = real_name(&settings, asked);
    let (counters, problems) = Counters::load(&settings);
    for (name, problem) in problems.iter().filter(|(name, _)| *name == model) {
        eprintln!("berthd: {name}: {problem}");
    }
    let counter = counters.get(&model).cloned();
    let server = if counter.is_some() { None } else { server_of(&settings, &model) };
    Ok((counter, server))
}

fn real_name(settings: &Settings, asked: &ModelName) -> ModelName {
    let aliased = settings.models.iter().find(|model| model.aliases.contains(asked));
    aliased.map_or_else(|| asked.clone(), |model| model.name.clone())
}

/// A configured server that could count: one that names the model, else one that takes what it lists.
fn server_of(settings: &Settings, model: &ModelName) -> Option<Arc<dyn ModelServer>> {
    let remote = |server: &&config::Server| matches!(server.place, Place::Http { .. });
    let servers = || settings.servers.iter().filter(remote);
    let server = servers()
        .find(|server| server.models.contains(model))
        .or_else(|| servers().find(|server| server.models.is_empty()))?;
    let limits = ClientLimits {
        connect: settings.relay.connect_limit,
        idle_max: 0,
        keep_after_stream: false,
    };
    let remote = Remote::new(server, settings.probe.limit, limits)?;
    Some(Arc::new(remote))
}
