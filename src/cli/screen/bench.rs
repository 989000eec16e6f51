//! `berthd screen --bench`: what the models cost on one core, in every runtime that is here.

use super::{Failure, Shared, print};
use crate::{
    classify::{Classifier, Library, Model, Runtime, Spec},
    pipeline::screening::own_folder,
};
use rustix::time::{ClockId, clock_gettime};
use std::{fmt::Write, path::Path, time::Duration};

/// Lengths that are measured, tokens.
const LENGTHS: [usize; 4] = [128, 256, 512, 2048];
/// Each length is measured for at least so long.
const LEAST: Duration = Duration::from_millis(600);
/// And so often.
const ROUNDS_MIN: usize = 12;

/// Words of a text that measures no special case.
const WORDS: &str = "The harbour master writes the berth plan for the week, checks the tide table and calls the \
    pilots; ships that carry fresh fruit go first, then those whose cranes are booked. ";

/// Measures and prints.
pub(super) fn run(shared: &Shared) -> Result<(), Failure> {
    let folder = shared.models.clone().or_else(own_folder);
    let folder = folder
        .ok_or_else(|| Failure::usage("the models' folder was not found; name it with --models"))?;
    let library = Library::find(shared.onnx_library.as_deref()).map_err(|error| error.to_string());
    let mut rows = Vec::new();
    for name in ["injection-a", "injection-b", "output"] {
        for runtime in [Runtime::Onnx, Runtime::Candle] {
            let library = library.as_ref().map_err(String::as_str);
            rows.push(measure(&folder, name, runtime, library));
        }
    }
    let text = match shared.json {
        true => serde_json::Value::from_iter(rows.iter().map(Row::json)).to_string() + "\n",
        false => table(&rows),
    };
    print(text.as_bytes())
}

struct Row {
    model: &'static str,
    runtime: Runtime,
    measured: Result<Measured, String>,
}

struct Measured {
    /// CPU milliseconds, the median, for each length.
    millis: Vec<f64>,
    /// Memory that the model took, bytes.
    memory: u64,
}

fn measure(
    folder: &Path,
    model: &'static str,
    runtime: Runtime,
    library: Result<&Library, &str>,
) -> Row {
    let before = resident();
    let spec = Spec { folder: folder.join(model), runtime, ..Spec::default() };
    let loaded = Model::load(&spec, library).map_err(|error| error.to_string());
    let measured = loaded.and_then(|loaded| {
        let mut classifier = loaded.classifier()?;
        let mut millis = Vec::new();
        for length in LENGTHS {
            millis.push(median(&loaded, &mut *classifier, length)?);
        }
        Ok(Measured { millis, memory: resident().saturating_sub(before) })
    });
    Row { model, runtime, measured }
}

/// The median CPU time of scoring a text of so many tokens, milliseconds, its cutting included.
fn median(model: &Model, classifier: &mut dyn Classifier, tokens: usize) -> Result<f64, String> {
    let text = of_length(model, tokens)?;
    let mut times = Vec::new();
    let mut all = Duration::ZERO;
    while all < LEAST || times.len() < ROUNDS_MIN {
        let begun = cpu();
        let scored = model.score(classifier, &text, usize::MAX);
        scored.map_err(|failure| failure.to_string())?;
        let took = cpu().saturating_sub(begun);
        all += took;
        times.push(took);
    }
    times.sort_unstable();
    Ok(times.get(times.len() / 2).map_or(0.0, Duration::as_secs_f64) * 1e3)
}

/// A text that fills so many tokens of the model's, special ones counted, to within a word below.
fn of_length(model: &Model, tokens: usize) -> Result<String, String> {
    let mut text = String::new();
    let room = tokens.saturating_sub(model.special_tokens());
    for word in WORDS.split_inclusive(' ').cycle() {
        let longer = format!("{text}{word}");
        if model.tokens(&longer).map_err(|failure| failure.to_string())? > room {
            break;
        }
        text = longer;
    }
    Ok(text)
}

fn cpu() -> Duration {
    let now = clock_gettime(ClockId::ThreadCPUTime);
    let (seconds, nanos) = (u64::try_from(now.tv_sec), u32::try_from(now.tv_nsec));
    Duration::new(seconds.unwrap_or(0), nanos.unwrap_or(0))
}

/// Memory of this process, bytes.
fn resident() -> u64 {
    let text = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    kib.unwrap_or(0) << 10
}

impl Row {
    fn json(&self) -> serde_json::Value {
        let (model, runtime) = (self.model, self.runtime.as_str());
        match &self.measured {
            Err(why) => serde_json::json!({ "model": model, "runtime": runtime, "absent": why }),
            Ok(measured) => {
                let times = LENGTHS.iter().zip(&measured.millis);
                let times: serde_json::Map<_, _> =
                    times.map(|(length, millis)| (length.to_string(), (*millis).into())).collect();
                serde_json::json!({
                    "model": model, "runtime": runtime, "cpu_ms_by_tokens": times, "memory_bytes": measured.memory
                })
            }
        }
    }
}

fn table(rows: &[Row]) -> String {
    let mut text = String::from(
        "CPU milliseconds on one core, tokenisation included, median\n\n  model        runtime     128      256      512    2,048 tokens   memory\n",
    );
    // Writing to a string cannot fail.
    for row in rows {
        let _ = write!(text, "  {:<12} {:<7}", row.model, row.runtime.as_str());
        match &row.measured {
            Err(why) => {
                let _ = writeln!(text, "  absent: {why}");
            }
            Ok(measured) => {
                for millis in &measured.millis {
                    let _ = write!(text, " {millis:>8.2}");
                }
                let _ =
                    writeln!(text, "      {:>5.0} MiB", measured.memory as f64 / (1 << 20) as f64);
            }
        }
    }
    text
}
