//! `berthd gpus`: every reading of every card, who holds its memory, and what is wrong with it; from the daemon,
//! or from the driver itself.

use super::{Failure, client, one_thread, operate::Socket, print, table};
use crate::{config, gpu, report};
use http::Method;
use serde_json::Value;
use std::{path::PathBuf, time::Duration};

/// `berthd gpus`
#[derive(Debug, clap::Args)]
pub struct Options {
    #[command(flatten)]
    socket: Socket,
    /// Print JSON instead of text; with --watch, one object a line.
    #[arg(long)]
    json: bool,
    /// Print again every so many seconds, until stopped.
    #[arg(long, short, value_name = "SECONDS", num_args = 0..=1, default_missing_value = "1", require_equals = true)]
    watch: Option<f64>,
    /// Ask the driver itself, without a daemon: the readings alone.
    #[arg(long, conflicts_with_all = ["clear", "socket"])]
    direct: bool,
    /// The NVML library that --direct asks [default: the one that the system finds]
    #[arg(long, value_name = "FILE", requires = "direct")]
    nvml_library: Option<PathBuf>,
    /// Declare a card mended, by its UUID: what is held against it is forgotten.
    #[arg(long, value_name = "UUID", conflicts_with_all = ["watch", "json"])]
    clear: Option<String>,
}

/// Least time between two pages.
const WATCH_LEAST_S: f64 = 0.1;
/// Most time between two pages.
const WATCH_MOST_S: f64 = 86_400.0;

/// Cursor to the corner, and everything from there on away.
const CLEAR: &str = "\u{1b}[H\u{1b}[J";

/// Shows the GPUs, once or again and again, or declares one mended.
///
/// # Errors
/// The daemon does not answer, or does not know the card.
pub fn run(options: &Options) -> Result<(), Failure> {
    if let Some(gpu) = &options.clear {
        let path = format!("/gpus/clear/{}", super::operate::escaped_name(gpu));
        return super::operate::post(&options.socket, &path);
    }
    let runtime = one_thread()?;
    let Some(seconds) = options.watch else {
        return show(&runtime.block_on(ask(options))?, options, false);
    };
    if !(WATCH_LEAST_S..=WATCH_MOST_S).contains(&seconds) {
        let text = format!("--watch={seconds}: choose {WATCH_LEAST_S} to {WATCH_MOST_S} seconds");
        return Err(Failure::usage(text));
    }
    runtime.block_on(async {
        let mut pages = tokio::time::interval(Duration::from_secs_f64(seconds));
        loop {
            pages.tick().await;
            show(&ask(options).await?, options, true)?;
        }
    })
}

async fn ask(options: &Options) -> Result<Value, Failure> {
    if options.direct {
        // In place: there is nothing else for this process to do, and a driver that hangs is what it shows.
        let plane = gpu::read_once(options.nvml_library.clone());
        let readings = report::gpus::readings(&plane, &config::Gpu::default());
        return serde_json::to_value(&readings).map_err(Failure::internal);
    }
    let socket = &options.socket.socket;
    let (status, body) = client::ask(socket, Method::GET, "/gpus").await?;
    if !status.is_success() {
        return Err(Failure::internal(String::from_utf8_lossy(&body)));
    }
    serde_json::from_slice(&body).map_err(Failure::internal)
}

fn show(gpus: &Value, options: &Options, again: bool) -> Result<(), Failure> {
    let page = match (options.json, again) {
        (true, true) => format!("{gpus}\n"),
        (true, false) => {
            format!("{}\n", serde_json::to_string_pretty(gpus).map_err(Failure::internal)?)
        }
        (false, true) => format!("{CLEAR}{}", table::gpus(gpus)),
        (false, false) => table::gpus(gpus),
    };
    print(page.as_bytes())
}
