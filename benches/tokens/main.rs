//! What counting costs: first counts, conversations that grew, and hostile inputs.
//!
//! `cargo bench --bench tokens -- [--model-dir DIR]... [--corpus FILE] [--rounds N]
//! [--only unseen|grown|hostile] [--json FILE]`. Everything is measured
//! in one run, in rounds that take turns, as CPU time of the measuring thread, so that other work on the
//! machine hardly shows. `--model-dir` takes a model folder or a GGUF file of real size; without it the
//! demo model's small vocabulary serves.

#![expect(
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::string_slice,
    reason = "a bench fails by panicking"
)]

mod grown;
mod hostile;
mod text;
mod unseen;

use std::{path::PathBuf, time::Duration};

/// What to measure and how often.
pub struct Options {
    /// Model folders or GGUF files.
    pub models: Vec<PathBuf>,
    /// Rounds; the median counts.
    pub rounds: usize,
    /// Text to count; without it the project's own.
    pub corpus: Option<PathBuf>,
    /// The only part to run.
    pub only: Option<String>,
    /// Where figures go as JSON.
    pub json: Option<PathBuf>,
}

impl Options {
    fn read() -> Self {
        let mut options =
            Self { models: Vec::new(), rounds: 7, corpus: None, only: None, json: None };
        let mut args = std::env::args().skip(1);
        while let Some(arg) = args.next() {
            let mut value = || args.next().unwrap_or_else(|| panic!("{arg} needs a value"));
            match arg.as_str() {
                "--model-dir" => options.models.push(value().into()),
                "--rounds" => options.rounds = value().parse().expect("a number of rounds"),
                "--corpus" => options.corpus = Some(value().into()),
                "--only" => options.only = Some(value()),
                "--json" => options.json = Some(value().into()),
                // Cargo's own.
                "--bench" => {}
                other => panic!("{other} is not known; see the top of benches/tokens/main.rs"),
            }
        }
        if options.models.is_empty() {
            let demo = concat!(env!("CARGO_MANIFEST_DIR"), "/models/demo-chat");
            options.models.push(demo.into());
        }
        options
    }
}

/// CPU time of this thread.
pub fn cpu() -> Duration {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    let nanos = u32::try_from(now.tv_nsec).unwrap_or(0);
    Duration::new(u64::try_from(now.tv_sec).unwrap_or(0), nanos)
}

/// CPU time of one call.
pub fn timed<T>(run: impl FnOnce() -> T) -> (Duration, T) {
    let start = cpu();
    let result = run();
    (cpu().saturating_sub(start), result)
}

/// The middle of some figures.
pub fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures[figures.len() / 2]
}

fn main() {
    let options = Options::read();
    let mut figures = serde_json::Map::new();
    for model in &options.models {
        println!("# {}", model.display());
        let mut of_model = serde_json::Map::new();
        let wanted = |part: &str| options.only.as_deref().is_none_or(|only| only == part);
        if wanted("unseen") {
            of_model.insert("unseen".into(), unseen::measure(model, &options));
        }
        if wanted("grown") {
            of_model.insert("grown".into(), grown::measure(model, &options));
        }
        if wanted("hostile") {
            of_model.insert("hostile".into(), hostile::measure(model));
        }
        figures.insert(model.display().to_string(), of_model.into());
    }
    if let Some(path) = &options.json {
        let text = serde_json::to_string_pretty(&figures).expect("figures are plain");
        std::fs::write(path, text).expect("the file for figures can be written");
    }
}
