//! What berthd adds to a call, beside nginx and two other gateways, all before the same scripted server.
//!
//! Load and server run on the first core, the gateway under test on the second. Rounds are interleaved,
//! so that a slow minute of the machine falls on all alike; the median of the rounds counts.
//!
//! `cargo build --release && cargo bench --bench relay -- [--berthd FILE] [--rounds N] [--only NAMES] [--json FILE]`
#![expect(clippy::print_stdout, reason = "the table is what this program is for")]

mod contenders;
mod load;
mod procs;
mod report;

use contenders::Contender;
use load::{Ask, Door};
use procs::Tree;
use report::{Figures, median, share};
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    time::Duration,
};
use tokio::time::Instant;

/// Load and server; the gateway.
const CORES: (usize, usize) = (0, 1);
/// Requests of one round, one at a time.
const LATENCIES: usize = 3000;
/// Callers at once, and for how long.
const CALLERS: usize = 16;
const FULL: Duration = Duration::from_secs(2);
/// Streams at once as fast as they go, and their tokens.
const STREAMS: usize = 8;
const STREAM_TOKENS: u32 = 1000;
/// Streams with a token every 10 ms.
const PACED: usize = 64;
const PACED_TOKENS: u32 = 200;
/// Streams held open.
const HELD: usize = 2000;
/// Starts of each gateway.
const STARTS: usize = 3;

const SMALL: Ask = Ask { tokens: 8, stream: false };

struct Options {
    berthd: String,
    rounds: usize,
    only: Option<Vec<String>>,
    json: Option<PathBuf>,
}

fn options() -> Result<Options, String> {
    let mut options = Options {
        berthd: env!("CARGO_BIN_EXE_berthd").to_owned(),
        rounds: 5,
        only: None,
        json: None,
    };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        // Cargo adds this one.
        if word == "--bench" {
            continue;
        }
        let value = words.next().ok_or_else(|| format!("{word} needs a value"))?;
        match word.as_str() {
            "--berthd" => options.berthd = value,
            "--rounds" => options.rounds = value.parse().map_err(|_| "--rounds N".to_owned())?,
            "--only" => options.only = Some(value.split(',').map(str::to_owned).collect()),
            "--json" => options.json = Some(value.into()),
            _ => return Err(format!("unknown option {word}")),
        }
    }
    Ok(options)
}

fn main() -> Result<(), String> {
    let options = options()?;
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    if cores < 2 {
        println!("SKIPPED: the relay bench needs two cores, this machine gives {cores}.");
        return Ok(());
    }
    procs::pin(CORES.0)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(|e| e.to_string())?.block_on(run(options))
}

async fn run(options: Options) -> Result<(), String> {
    let folder = tempfile::tempdir().map_err(|e| e.to_string())?;
    let mut figures: BTreeMap<usize, Figures> = BTreeMap::new();
    let wanted = |contender: &Contender| {
        let name = contender.name;
        options.only.as_ref().is_none_or(|only| only.iter().any(|wish| wish == name))
    };
    let bench = |server: u16, first: u16| -> Result<Vec<(usize, Contender)>, String> {
        let all = contenders::all(&options.berthd, server, first, folder.path())?;
        Ok(all.into_iter().enumerate().filter(|(_, contender)| wanted(contender)).collect())
    };
    println!("berthd: {}", options.berthd);
    let direct = speed(&options, &folder, &bench(21_000, 21_100)?, &mut figures).await?;
    paced(&options, &folder, &bench(22_000, 22_100)?, &mut figures).await?;
    idle(&options, &folder, &bench(23_000, 23_100)?, &mut figures).await?;
    let figures: Vec<Figures> = figures.into_values().collect();
    println!("\n{}", report::table(&figures, &direct));
    if let Some(path) = options.json {
        let text = format!("{:#}\n", report::json(&figures, &direct));
        std::fs::write(path, text).map_err(|e| e.to_string())?;
    }
    Ok(())
}

/// The scripted server, on the load's core.
async fn server(
    options: &Options,
    folder: &tempfile::TempDir,
    port: u16,
    interval_us: u32,
) -> Result<Tree, String> {
    let listen = format!("127.0.0.1:{port}");
    let interval = interval_us.to_string();
    let command: Vec<String> = [
        &*options.berthd,
        "simulate",
        "--profile",
        "instant",
        "--listen",
        &listen,
        "--token-interval-us",
        &interval,
    ]
    .map(str::to_owned)
    .to_vec();
    let tree = Tree::start(CORES.0, &command, &log(folder.path(), port))?;
    load::first_answer(&Door { port, key: None }, Instant::now()).await?;
    Ok(tree)
}

fn log(folder: &Path, port: u16) -> PathBuf {
    folder.join(format!("simulate-{port}.log"))
}

type Running<'a> = Vec<(usize, &'a Contender, Tree)>;

async fn start_all(contenders: &[(usize, Contender)]) -> Running<'_> {
    let mut running = Vec::new();
    for (index, contender) in contenders {
        let started = async {
            let tree = contender.start(CORES.1)?;
            load::first_answer(&contender.door, Instant::now()).await?;
            Ok::<_, String>(tree)
        };
        match started.await {
            Ok(tree) => running.push((*index, contender, tree)),
            Err(error) => eprintln!("SKIPPED: {}: {error}", contender.name),
        }
    }
    running
}

/// Latency, CPU per request and CPU per token at full speed. Gives the direct call's figures.
async fn speed(
    options: &Options,
    folder: &tempfile::TempDir,
    contenders: &[(usize, Contender)],
    figures: &mut BTreeMap<usize, Figures>,
) -> Result<Figures, String> {
    let port = 21_000;
    let _server = server(options, folder, port, 0).await?;
    let mut running = start_all(contenders).await;
    let straight = Door { port, key: None };
    let mut direct: Vec<Round> = Vec::new();
    let mut rounds: BTreeMap<usize, Vec<Round>> = BTreeMap::new();
    for number in 1..=options.rounds {
        direct.push(round(&straight, None).await?);
        for (index, contender, tree) in &mut running {
            match round(&contender.door, Some(tree)).await {
                Ok(round) => {
                    eprintln!("round {number} {}: {round:?}", contender.name);
                    rounds.entry(*index).or_default().push(round);
                }
                Err(error) => eprintln!("{}: a round failed: {error}", contender.name),
            }
        }
    }
    for (index, contender, _) in &running {
        let rounds = rounds.remove(index).unwrap_or_default();
        figures.insert(*index, summary(contender.name, &rounds));
    }
    Ok(summary("direct", &direct))
}

#[derive(Clone, Copy, Debug)]
struct Round {
    p50_us: f64,
    p99_us: f64,
    per_s: f64,
    request_us: f64,
    token_us: f64,
}

async fn round(door: &Door, tree: Option<&Tree>) -> Result<Round, String> {
    // The first answers of a round warm caches and connections.
    load::latencies(door, SMALL, LATENCIES / 10).await?;
    let mut times = load::latencies(door, SMALL, LATENCIES).await?;
    let cpu = || tree.map_or(Duration::ZERO, Tree::cpu);
    let before = cpu();
    let small = load::full(door, SMALL, CALLERS, FULL).await?;
    let between = cpu();
    let ask = Ask { tokens: STREAM_TOKENS, stream: true };
    let streamed = load::full(door, ask, STREAMS, FULL).await?;
    let after = cpu();
    let each = |cpu: Duration, count: usize| cpu.as_secs_f64() * 1e6 / count.max(1) as f64;
    Ok(Round {
        p50_us: share(&mut times, 0.5),
        p99_us: share(&mut times, 0.99),
        per_s: small.requests as f64 / small.took_s,
        request_us: each(between - before, small.requests),
        token_us: each(after - between, streamed.events),
    })
}

fn summary(name: &str, rounds: &[Round]) -> Figures {
    let of = |get: fn(&Round) -> f64| median(rounds.iter().map(get).collect());
    Figures {
        name: name.to_owned(),
        p50_us: of(|round| round.p50_us),
        p99_us: of(|round| round.p99_us),
        per_s: of(|round| round.per_s),
        request_us: of(|round| round.request_us),
        token_us: of(|round| round.token_us),
        ..Figures::default()
    }
}

/// CPU per token where tokens come one by one, as they do from a real server.
async fn paced(
    options: &Options,
    folder: &tempfile::TempDir,
    contenders: &[(usize, Contender)],
    figures: &mut BTreeMap<usize, Figures>,
) -> Result<(), String> {
    let _server = server(options, folder, 22_000, 10_000).await?;
    let running = start_all(contenders).await;
    let ask = Ask { tokens: PACED_TOKENS, stream: true };
    let mut rounds: BTreeMap<usize, Vec<f64>> = BTreeMap::new();
    for _ in 0..options.rounds.min(3) {
        for (index, contender, tree) in &running {
            let before = tree.cpu();
            match load::full(&contender.door, ask, PACED, Duration::from_secs(1)).await {
                Ok(done) => {
                    let cpu = (tree.cpu() - before).as_secs_f64() * 1e6;
                    rounds.entry(*index).or_default().push(cpu / done.events.max(1) as f64);
                }
                Err(error) => eprintln!("{}: a paced round failed: {error}", contender.name),
            }
        }
    }
    for (index, rounds) in rounds {
        figures.entry(index).or_default().paced_us = median(rounds);
    }
    Ok(())
}

/// Start time, memory when idle, and memory per open stream.
async fn idle(
    options: &Options,
    folder: &tempfile::TempDir,
    contenders: &[(usize, Contender)],
    figures: &mut BTreeMap<usize, Figures>,
) -> Result<(), String> {
    // The first content comes at once, the next one when all is measured.
    let _server = server(options, folder, 23_000, 60_000_000).await?;
    for (index, contender) in contenders {
        let (mut starts, mut idle, mut stream) = (Vec::new(), Vec::new(), None);
        for number in 1..=STARTS {
            let since = Instant::now();
            let tree = contender.start(CORES.1)?;
            let Ok(start) = load::first_answer(&contender.door, since).await else { break };
            starts.push(start.as_secs_f64());
            idle.push(tree.rss_kib() as f64 / 1024.0);
            if number == STARTS {
                stream = memory(contender, &tree).await;
            }
        }
        let figures = figures.entry(*index).or_default();
        figures.start_s = median(starts);
        figures.idle_mib = median(idle);
        figures.stream_kib = stream;
    }
    Ok(())
}

async fn memory(contender: &Contender, tree: &Tree) -> Option<f64> {
    let before = tree.rss_kib();
    let ask = Ask { tokens: 100, stream: true };
    match load::hold(&contender.door, ask, HELD).await {
        Ok(held) => {
            let grown = tree.rss_kib().saturating_sub(before);
            drop(held);
            Some(grown as f64 / HELD as f64)
        }
        Err(error) => {
            eprintln!("{}: streams were not held: {error}", contender.name);
            None
        }
    }
}
