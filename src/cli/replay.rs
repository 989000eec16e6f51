//! `berthd replay`: policies compared on a trace, without a server and without waiting.

use super::{Failure, print};
use crate::replay::{self, Progress, ReplayError, ReplayOptions, Report};
use indicatif::{ProgressBar, ProgressStyle};
use std::{
    error::Error,
    fmt::Write,
    io::{self, IsTerminal},
    time::Duration,
};
use tokio::time::Instant;

/// A run that takes longer than this shows how far it is.
const LONG: Duration = Duration::from_secs(1);

/// `berthd replay`
#[derive(Debug, clap::Args)]
pub struct Options {
    #[command(flatten)]
    replay: ReplayOptions,
    /// Print JSON: one object a line for each policy
    #[arg(long)]
    json: bool,
    /// Show no progress bar
    #[arg(long)]
    no_progress: bool,
}

/// How far it is, on a terminal and when it takes long.
struct Bar {
    begun: Instant,
    wanted: bool,
    bar: Option<ProgressBar>,
}

/// Replays a trace and prints what each policy made of it.
///
/// # Errors
/// A value that cannot be, a trace that cannot be read or does not fit.
pub fn run(options: Options) -> Result<(), Failure> {
    let plan = options.replay.plan().map_err(|error| failure(&error))?;
    let mut bar = Bar::new(!options.no_progress && io::stderr().is_terminal());
    let reports = replay::run(&plan, |progress| bar.show(&progress));
    bar.clear();
    let reports = reports.map_err(|error| failure(&error))?;
    let text = if options.json { lines(&reports)? } else { replay::table(&plan, &reports) };
    print(text.as_bytes())
}

fn lines(reports: &[Report]) -> Result<String, Failure> {
    let mut text = String::new();
    for report in reports {
        let line = serde_json::to_string(report).map_err(Failure::internal)?;
        let _ = writeln!(text, "{line}");
    }
    Ok(text)
}

fn failure(error: &ReplayError) -> Failure {
    let mut text = error.to_string();
    if let Some(cause) = error.source() {
        let _ = write!(text, ": {cause}");
    }
    match error {
        ReplayError::Value(_) => Failure::usage(text),
        ReplayError::Trace(_) | ReplayError::Load(_) => Failure::data(text),
    }
}

// === impl Bar ===

impl Bar {
    fn new(wanted: bool) -> Self {
        Self { begun: Instant::now(), wanted, bar: None }
    }

    fn show(&mut self, progress: &Progress) {
        if !self.wanted || (self.bar.is_none() && self.begun.elapsed() < LONG) {
            return;
        }
        let bar = self.bar.get_or_insert_with(|| {
            let style =
                ProgressStyle::with_template("{msg:18} [{wide_bar}] {percent:>3} % {eta:>4}");
            let bar = ProgressBar::new(progress.of as u64);
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
            bar
        });
        bar.set_message(progress.policy.to_string());
        bar.set_position(progress.done as u64);
    }

    fn clear(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}
