//! `berthd quickstart`: the whole daemon on loopback, one real request through it, and what to try next.

use super::{Failure, client, keys, serve, table};
use crate::{
    api::event::{self, Said},
    api::stream::Splitter,
    config,
    daemon::Daemon,
    log,
    pipeline::Broker,
    snapshot::{GpuPlane, ServerKind},
    systemd::{Listeners, Notifier},
};
use bytes::Bytes;
use http::{HeaderMap, Request};
use http_body_util::{BodyExt, Full};
use std::{
    io::Write,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use tokio::{net::TcpStream, sync::watch, time::Instant};

/// `berthd quickstart`
#[derive(Debug, clap::Args)]
pub struct Options {
    /// Exit after the first answer instead of serving on.
    #[arg(long)]
    once: bool,
    /// Where callers connect. Port 0 takes any free port.
    #[arg(long, value_name = "ADDRESS", default_value_t = config::defaults::DATA)]
    listen: SocketAddr,
    /// Where metrics are read. Port 0 takes any free port.
    #[arg(long, value_name = "ADDRESS", default_value_t = config::defaults::ADMIN)]
    admin: SocketAddr,
    /// The control socket for `berthd status` [default: a fresh path in the temporary folder].
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
    /// Folder of the embedded model [default: the demo model that comes with berthd].
    #[arg(long, value_name = "FOLDER")]
    model_folder: Option<PathBuf>,
    /// What to ask.
    #[arg(long, default_value = "What is berthd?")]
    ask: String,
    /// Use only the embedded model, even if model servers run on this host.
    #[arg(long)]
    embedded: bool,
}

/// How long the first server may take to be ready.
const READY_LIMIT: Duration = Duration::from_secs(20);
/// How long the driver may take to answer before we go on without it.
const GPU_LIMIT: Duration = Duration::from_secs(3);

/// Starts, asks, shows, serves.
pub fn run(options: Options) -> Result<(), Failure> {
    let key = keys::fresh()?;
    let socket = options.socket.clone().unwrap_or_else(|| {
        std::env::temp_dir().join(format!("berthd-quickstart-{}.sock", std::process::id()))
    });
    let text = settings_text(&options, &key, &socket)?;
    let loaded = config::parse_text("quickstart", &text)
        .map_err(|problems| Failure::internal(problems.to_string()))?;
    log::start(&loaded.settings.log);
    serve::raise_open_files(loaded.settings.listen.connections_max);
    let settings = loaded.settings;
    serve::run_on(serve::runtime(&settings)?, async move {
        let started = Instant::now();
        let reread = Box::new(|| Err("quickstart has no configuration file".to_owned()));
        let daemon = Daemon::build(settings, Listeners::default(), Notifier::default(), reread)
            .await
            .map_err(|error| explain(serve::start_failure(error), &options))?;
        let at = daemon.data_address().map_err(Failure::internal)?;
        let admin = daemon.admin_address().map_err(Failure::internal)?;
        let broker = daemon.broker();
        let gpus = daemon.gpus();
        let (hangups, stop) = serve::signals()?;
        // Ends the daemon after the first answer with --once, and when the tour fails.
        let (over, tour_over) = tokio::sync::oneshot::channel::<()>();
        let once = options.once;
        let tour = async move {
            let result = tour(&options, &broker, gpus, &key, at, admin, &socket, started).await;
            if once || result.is_err() {
                // The daemon may have ended first.
                let _ = over.send(());
            }
            result
        };
        let stop = async {
            tokio::select! {
                () = stop => {}
                // A sender dropped without a word means: go on serving.
                Ok(()) = tour_over => {}
            }
        };
        let (served, toured) = tokio::join!(daemon.run(stop, hangups, || ()), tour);
        toured?;
        served.map_err(Failure::internal)
    })
}

fn explain(mut failure: Failure, options: &Options) -> Failure {
    if failure.message.contains("cannot listen") {
        failure.message.push_str(&format!(
            "\nIs another berthd running? Choose free addresses, for example --listen 127.0.0.1:0 --admin 127.0.0.1:0 (now: {}, {}).",
            options.listen, options.admin
        ));
    }
    failure
}

fn settings_text(options: &Options, key: &str, socket: &Path) -> Result<String, Failure> {
    let folder = match &options.model_folder {
        Some(folder) => folder.clone(),
        None => demo_model()?,
    };
    let folder = folder.canonicalize().map_err(|error| {
        Failure::usage(format!("the model folder {} cannot be used: {error}", folder.display()))
    })?;
    let socket = std::path::absolute(socket).map_err(Failure::internal)?;
    // TOML's basic strings are JSON's, as far as paths and addresses go.
    let quote = |text: String| serde_json::to_string(&text).map_err(Failure::internal);
    Ok(format!(
        "[listen]\ndata = {}\nadmin = {}\nsocket = {}\ndrain_limit_s = 5\n\
         [log]\nlevel = \"error\"\n[probe]\ndiscover = {}\n\
         [[tenants]]\nname = \"quickstart\"\ntier = \"interactive\"\nkeys_sha256 = [\"{}\"]\n\
         [[servers]]\nname = \"embedded\"\nkind = \"embedded\"\nfolder = {}\n",
        quote(options.listen.to_string())?,
        quote(options.admin.to_string())?,
        quote(socket.display().to_string())?,
        !options.embedded,
        keys::digest_hex(key),
        quote(folder.display().to_string())?,
    ))
}

/// The demo model: beside the source, beside the program, or where packages put it.
fn demo_model() -> Result<PathBuf, Failure> {
    const PLACE: &str = "models/demo-chat";
    let mut places = vec![PathBuf::from(PLACE)];
    if let Ok(program) = std::env::current_exe() {
        places.extend(program.ancestors().skip(1).map(|folder| folder.join(PLACE)));
    }
    places.push(PathBuf::from("/usr/share/berthd").join(PLACE));
    let found = places.into_iter().find(|place| place.join("config.json").is_file());
    found.ok_or_else(|| {
        Failure::usage(
            "the demo model (models/demo-chat) was not found. Run this from berthd's source folder, or name a model with --model-folder.",
        )
    })
}

#[expect(clippy::too_many_arguments, reason = "one call, and each is a different thing to show")]
async fn tour(
    options: &Options,
    broker: &Arc<Broker>,
    mut gpus: watch::Receiver<Arc<GpuPlane>>,
    key: &str,
    at: SocketAddr,
    admin: SocketAddr,
    socket: &Path,
    started: Instant,
) -> Result<(), Failure> {
    say(&format!("berthd {} on this machine\n\n", env!("CARGO_PKG_VERSION")))?;
    show_gpus(&mut gpus).await?;
    let model = show_servers(broker).await?;
    say(&format!(
        "Ready    in {:.2} s, callers at http://{at}\n\nAsking   {model}: {}\n\n",
        started.elapsed().as_secs_f64(),
        options.ask
    ))?;
    ask(options, key, at, &model).await?;
    if options.once {
        return Ok(());
    }
    let shown = socket.display();
    say(&format!(
        "\nTry next (this key is thrown away when the quickstart ends):\n\n  \
         curl http://{at}/v1/chat/completions -H 'Authorization: Bearer {key}' \\\n    \
         -H 'Content-Type: application/json' \\\n    \
         -d '{{\"model\": \"{model}\", \"stream\": true, \"messages\": [{{\"role\": \"user\", \"content\": \"Tell me a story about a harbour\"}}]}}'\n\n  \
         pip install openai && python3 - <<'EOF'\n  \
         from openai import OpenAI\n  \
         client = OpenAI(base_url=\"http://{at}/v1\", api_key=\"{key}\")\n  \
         print(client.chat.completions.create(model=\"{model}\", messages=[{{\"role\": \"user\", \"content\": \"Who are you?\"}}]).choices[0].message.content)\n  \
         EOF\n\n  \
         berthd status --socket {shown}\n  \
         curl http://{admin}/metrics\n\nServing until Ctrl-C.\n"
    ))
}

async fn show_gpus(gpus: &mut watch::Receiver<Arc<GpuPlane>>) -> Result<(), Failure> {
    // No answer in time is an answer too: the driver hangs, and the daemon does not.
    let read = gpus.wait_for(|plane| !matches!(**plane, GpuPlane::Off));
    let plane = match tokio::time::timeout(GPU_LIMIT, read).await {
        Ok(Ok(plane)) => Arc::clone(&plane),
        _ => return say("GPUs     the driver does not answer\n"),
    };
    match &*plane {
        GpuPlane::Off => say("GPUs     not read\n"),
        GpuPlane::NoDriver(why) => say(&format!("GPUs     {why}\n")),
        GpuPlane::Driver(driver) => {
            for gpu in &driver.gpus {
                let memory =
                    gpu.memory_total.map_or_else(|| "-".to_owned(), crate::units::Bytes::human);
                say(&format!("GPU {}    {}, {memory}, {}\n", gpu.index, gpu.name, gpu.id))?;
            }
            say(&format!("Driver   {}\n", driver.driver_version))
        }
    }
}

/// Shows the servers, and chooses a model: a discovered server's before the embedded one's.
async fn show_servers(broker: &Arc<Broker>) -> Result<String, Failure> {
    let give_up = Instant::now() + READY_LIMIT;
    // A server that runs on this host is found within a moment; one that is not there never.
    let settle = Instant::now() + Duration::from_millis(800);
    loop {
        let servers = broker.dispatch.servers();
        let ready =
            servers.iter().filter(|server| server.usable && !server.state.models.is_empty());
        let best = ready.min_by_key(|server| server.state.kind == ServerKind::Embedded);
        let found = best
            .filter(|server| server.state.kind != ServerKind::Embedded || Instant::now() >= settle);
        if let Some(best) = found {
            for server in &servers {
                let models: Vec<&str> =
                    server.state.models.iter().map(|model| model.name.as_str()).collect();
                say(&format!(
                    "Server   {} ({}, {}): {}\n",
                    server.state.id,
                    server.state.kind.as_str(),
                    server.state.health.as_str(),
                    models.join(", ")
                ))?;
            }
            if best.state.kind == ServerKind::Embedded {
                say(
                    "         no model server answers on the default ports: the embedded demo model does\n",
                )?;
            }
            return Ok(best.state.models.first().map(|m| m.name.to_string()).unwrap_or_default());
        }
        if Instant::now() > give_up {
            let states: Vec<String> = servers
                .iter()
                .map(|server| format!("{}: {:?}", server.state.id, server.state.health))
                .collect();
            return Err(Failure::unavailable(format!(
                "no server became ready: {}",
                states.join("; ")
            )));
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn ask(options: &Options, key: &str, at: SocketAddr, model: &str) -> Result<(), Failure> {
    let body = serde_json::json!({
        "model": model,
        "stream": true,
        "stream_options": {"include_usage": true},
        "temperature": 0,
        "messages": [{"role": "user", "content": options.ask}],
    });
    let request = Request::builder()
        .method("POST")
        .uri("/v1/chat/completions")
        .header("host", at.to_string())
        .header("authorization", format!("Bearer {key}"))
        .header("content-type", "application/json")
        .body(Full::new(Bytes::from(body.to_string())))
        .map_err(Failure::internal)?;
    let stream = TcpStream::connect(at).await.map_err(Failure::internal)?;
    let sent = Instant::now();
    client::exchange(stream, request, async |response| {
        let (head, mut body) = response.into_parts();
        if !head.status.is_success() {
            let body = body.collect().await.map_err(Failure::internal)?.to_bytes();
            return Err(Failure::internal(String::from_utf8_lossy(&body)));
        }
        let mut splitter = Splitter::new(1 << 20);
        let mut told = Told::default();
        while let Some(frame) = body.frame().await {
            let Ok(data) = frame.map_err(Failure::internal)?.into_data() else { continue };
            splitter.push(data);
            while let Ok(Some(event)) = splitter.next_event() {
                if let Some(data) = event.data() {
                    told.hear(&data, sent)?;
                }
            }
        }
        told.sum_up(&head.headers, sent)
    })
    .await
}

/// What the answer said so far.
#[derive(Default)]
struct Told {
    first: Option<Instant>,
    last: Option<Instant>,
    output_tokens: u64,
    pieces: u64,
    fault: Option<String>,
}

impl Told {
    fn hear(&mut self, data: &[u8], _sent: Instant) -> Result<(), Failure> {
        let Said::Chunk(chunk) = event::read(data) else { return Ok(()) };
        if let Some(fault) = chunk.fault() {
            self.fault = Some(fault.get().to_owned());
        }
        for part in chunk.choices.iter().flatten().flat_map(event::Choice::parts) {
            let piece: String = serde_json::from_str(part.get()).unwrap_or_default();
            let now = Instant::now();
            self.first.get_or_insert(now);
            self.last = Some(now);
            self.pieces += 1;
            say(&piece)?;
        }
        let usage = chunk
            .usage
            .and_then(|usage| serde_json::from_str::<serde_json::Value>(usage.get()).ok());
        if let Some(count) = usage.and_then(|usage| usage.get("completion_tokens")?.as_u64()) {
            self.output_tokens = count;
        }
        Ok(())
    }

    fn sum_up(&self, headers: &HeaderMap, sent: Instant) -> Result<(), Failure> {
        if let Some(fault) = &self.fault {
            return Err(Failure::internal(format!("the answer broke off: {fault}")));
        }
        let (Some(first), Some(last)) = (self.first, self.last) else {
            return Err(Failure::internal("the answer was empty"));
        };
        let header =
            |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or("-");
        let decode = (last - first).as_secs_f64();
        let rate = if decode > 0.0 { (self.pieces.saturating_sub(1)) as f64 / decode } else { 0.0 };
        say(&format!(
            "\n\n{} input tokens ({}), {} output tokens; queue wait {} ms, TTFT {:.1} ms, {rate:.0} tokens/s, {} in all; answered by {}\n",
            header("x-berthd-input-tokens"),
            header("x-berthd-token-count"),
            self.output_tokens,
            header("x-berthd-queue-wait-ms"),
            (first - sent).as_secs_f64() * 1e3,
            millis(sent.elapsed()),
            header("x-berthd-server"),
        ))
    }
}

fn millis(span: Duration) -> String {
    if span < Duration::from_secs(10) {
        format!("{} ms", span.as_millis())
    } else {
        table::span(span.as_secs_f64())
    }
}

/// Prints at once: an answer is shown as it arrives.
fn say(text: &str) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(Failure::internal(error))
        }
        _ => Ok(()),
    }
}
