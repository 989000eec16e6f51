//! `berthd screen` and `berthd score`: the daemon's own checks and classifiers over texts from the command line.

mod answers;
mod bench;
mod lines;
mod texts;

use super::{Failure, print};
use crate::{
    config::{self, Screen, ScreenRuntime},
    pipeline::screening::{Models, Screening},
};
use clap::ValueEnum;
use std::{
    io::{IsTerminal, Read},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

/// What both commands take.
#[derive(Debug, clap::Args)]
pub struct Shared {
    /// The text. Without it, and without --file: standard input
    #[arg(value_name = "TEXT", conflicts_with_all = ["file", "jsonl"])]
    text: Option<String>,
    /// Read the text from this file; with --jsonl the lines
    #[arg(long, short, value_name = "FILE")]
    file: Option<PathBuf>,
    /// Read one JSON object a line and print one a line, in order, as fast as the cores allow. A line that cannot
    /// be read gives an error on its line; the exit status is then 65
    #[arg(long)]
    jsonl: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// The folder with our models [default: beside the program, then /usr/share/berthd/models]
    #[arg(long, value_name = "DIR")]
    models: Option<PathBuf>,
    /// Which runtime runs them
    #[arg(long, value_enum, default_value = "auto")]
    runtime: Runs,
    /// The library of ONNX Runtime [default: where packages put it]
    #[arg(long, value_name = "FILE")]
    onnx_library: Option<PathBuf>,
    /// Threads [default: one a core]
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u16).range(1..=256))]
    threads: Option<u16>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Runs {
    /// ONNX Runtime where it is here, else candle
    Auto,
    /// Pure Rust
    Candle,
    /// ONNX Runtime only
    Onnx,
}

/// `berthd screen`
#[derive(Debug, clap::Args)]
pub struct ScreenOptions {
    #[command(flatten)]
    shared: Shared,
    /// Who is taken to speak: user, tool, assistant or system; a line's own `origin` goes first
    #[arg(long, default_value = "user", value_name = "ORIGIN", value_parser = origin)]
    origin: crate::screen::Origin,
    /// Let the second stage look at every text, not only at those of which the first says too little
    #[arg(long, conflicts_with = "first_only")]
    strict: bool,
    /// Let only the first stage look
    #[arg(long)]
    first_only: bool,
    /// A file of pattern rules
    #[arg(long, value_name = "FILE")]
    rules: Option<PathBuf>,
    /// Measure what the models cost on one core, in every runtime that is here
    #[arg(long, conflicts_with_all = ["jsonl", "text", "file"])]
    bench: bool,
}

/// `berthd score`
#[derive(Debug, clap::Args)]
pub struct ScoreOptions {
    #[command(flatten)]
    shared: Shared,
    /// The system prompt that the text must not repeat; a line's own `system` goes first
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,
    /// A string that the text must not hold
    #[arg(long, value_name = "TEXT")]
    canary: Vec<String>,
}

fn origin(text: &str) -> Result<crate::screen::Origin, String> {
    text.parse().map_err(|_| "one of: user, tool, assistant, system".to_owned())
}

/// Longest time for one text.
const LIMIT: Duration = Duration::from_secs(60);
/// The most that one text may have.
const TEXT_MAX: u64 = 256 << 20;
/// Windows of one text: some 100,000 tokens. Those of a longer text are spread over it.
const WINDOWS_MAX: usize = 512;

impl Shared {
    fn cores(&self) -> usize {
        let all = || std::thread::available_parallelism().map_or(1, usize::from);
        self.threads.map_or_else(all, usize::from)
    }

    /// The settings that screen as asked for. `sections` switches on what is needed.
    fn settings(&self, sections: &str) -> Result<Screen, Failure> {
        let loaded = config::parse_text("berthd", sections);
        let loaded = loaded.map_err(Failure::internal)?;
        Ok(Screen {
            models_folder: self.models.clone(),
            runtime: match self.runtime {
                Runs::Auto => ScreenRuntime::Auto,
                Runs::Candle => ScreenRuntime::Candle,
                Runs::Onnx => ScreenRuntime::Onnx,
            },
            onnx_library: self.onnx_library.clone(),
            threads: self.cores(),
            waiting_max: 65_536,
            windows_max: WINDOWS_MAX,
            budget: LIMIT,
            ..loaded.settings.screen
        })
    }

    /// The text that was given, in whatever way.
    fn text(&self) -> Result<String, Failure> {
        let bytes = match (&self.text, &self.file) {
            (Some(text), _) => return Ok(text.clone()),
            (None, Some(file)) => {
                let read = std::fs::read(file);
                read.map_err(|error| {
                    Failure::data(format!("cannot read {}: {error}", file.display()))
                })?
            }
            (None, None) => {
                if std::io::stdin().is_terminal() {
                    eprintln!("Reading the text from the terminal; end it with Ctrl-D.");
                }
                let mut bytes = Vec::new();
                let read = std::io::stdin().take(TEXT_MAX).read_to_end(&mut bytes);
                read.map_err(Failure::internal)?;
                bytes
            }
        };
        String::from_utf8(bytes)
            .map_err(|error| Failure::data(format!("the text is not UTF-8: {error}")))
    }
}

/// Loads what screens, and says what is lacking.
fn load(settings: &Screen) -> Result<Arc<Screening>, Failure> {
    let screening = Screening::load(settings, None)
        .map_err(|error| Failure::configuration(error.to_string()))?;
    lacking(&screening.models)?;
    Ok(Arc::new(screening))
}

fn lacking(models: &Models) -> Result<(), Failure> {
    let Some(absent) = models.absent.first() else { return Ok(()) };
    let (name, why) = (&absent.name, &absent.why);
    Err(Failure::configuration(format!("the model {name} cannot be used: {why}")))
}

/// Screens texts on their way in.
pub fn screen(options: &ScreenOptions) -> Result<(), Failure> {
    if options.bench {
        return bench::run(&options.shared);
    }
    let mut settings = options.shared.settings("[screen.input]\nmode = \"flag\"")?;
    settings.rules.clone_from(&options.rules);
    let texts = texts::Texts::new(load(&settings)?, options);
    run(&options.shared, |line| texts.line(line), |text| texts.one(text))
}

/// Scores answers.
pub fn score(options: &ScoreOptions) -> Result<(), Failure> {
    let mut settings = options.shared.settings("[screen.output]\nwatch = \"observe\"")?;
    settings.canaries.clone_from(&options.canary);
    let answers = answers::Answers::new(load(&settings)?, options);
    run(&options.shared, |line| answers.line(line), |text| answers.one(text))
}

/// What came of one text.
struct Told {
    /// As one line of JSON.
    json: String,
    /// As a person reads it.
    text: String,
    /// The line could not be read.
    broken: bool,
}

fn run(
    shared: &Shared,
    line: impl Fn(&str) -> Told + Sync,
    one: impl Fn(&str) -> Told,
) -> Result<(), Failure> {
    if shared.jsonl {
        return lines::run(shared, line);
    }
    let told = one(&shared.text()?);
    let text = if shared.json { told.json + "\n" } else { told.text };
    print(text.as_bytes())
}
