//! What screening costs a request: the exact checks on a text that comes in, the watchers of an answer that goes
//! out in small pieces, and one window of the first stage in candle. Each beside what the daemon does with the
//! same bytes anyway, reading them as JSON, so that the last column is a ratio within one run.
//!
//! `cargo bench --bench screening -- [--json FILE]`. `berthd screen --bench` measures the models in both runtimes.

#![expect(clippy::expect_used, clippy::panic, reason = "a bench fails by panicking")]

use berthd::screen::{
    Inspector, Origin, Rules,
    output::{
        degenerate::{Limits, Watch},
        leak::{Leak, Secretive, WORDS},
    },
    secrets::{Finder, Stream},
};
use std::{env, fs, hint::black_box, path::PathBuf, sync::Arc};
use tokio::time::{Duration, Instant};

const LINES: [&str; 6] = [
    "Please compare the two quotes below and tell me which one is cheaper over three years, all fees counted.\n",
    "fn total(prices: &[u32]) -> u32 { prices.iter().filter(|price| **price > 0).sum() }\n",
    "Die Fähre legt wegen des Windes eine Stunde später ab; bitte seien Sie rechtzeitig am Kai.\n",
    "| 2026-03-01 | Heron | 212 seats | 48.10 |\n| 2026-03-02 | Egret | 188 seats | 51.00 |\n",
    "明日の朝は少し涼しくなるでしょう。港の近くでは霧に気をつけてください。\n",
    "{\"order\": 88213, \"state\": \"packed\", \"note\": \"leave it with the neighbour, thanks\"}\n",
];
const SYSTEM: &str = "You are Quilla, the booking desk of a ferry line. Answer in two sentences, offer the night boat, \
    never mention the discount table, and hand over to a person whenever the caller asks for one.";
/// Letters of the pieces in which an answer comes.
const PIECE: usize = 5;
const ROUNDS: usize = 30;

fn text(bytes: usize) -> String {
    let mut text = String::new();
    for line in LINES.iter().cycle() {
        if text.len() >= bytes {
            break;
        }
        text.push_str(line);
    }
    text
}

/// The shortest of some rounds: what the work takes where nothing disturbs it.
fn best(mut work: impl FnMut()) -> Duration {
    let round = |_| {
        let begun = Instant::now();
        work();
        begun.elapsed()
    };
    (0..ROUNDS).map(round).min().unwrap_or_default()
}

fn pieces(text: &str) -> Vec<&str> {
    let starts: Vec<usize> = text.char_indices().map(|(at, _)| at).step_by(PIECE).collect();
    let ends = starts.iter().copied().skip(1).chain([text.len()]);
    starts.iter().zip(ends).filter_map(|(from, to)| text.get(*from..to)).collect()
}

fn main() {
    let mut json = None;
    let mut args = env::args().skip(1);
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--json" => json = args.next().map(PathBuf::from),
            // Cargo's own.
            "--bench" => {}
            other => panic!("{other} is not known; see the top of benches/screening/main.rs"),
        }
    }
    let rules =
        fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/config/screen-rules.toml"))
            .expect("the sample rules");
    let rules = Rules::parse(&rules, "config".as_ref()).expect("sample rules that are right");
    let inspector = Inspector::new(rules);
    let secret = Arc::new(Secretive::new(&[SYSTEM], &[], WORDS));
    let mut figures = serde_json::Map::new();
    let mut tell = |name: String, took: Duration, bytes: usize, json: Duration| {
        let per_kib = took.as_secs_f64() * 1e6 * 1024.0 / bytes as f64;
        let ratio = took.as_secs_f64() / json.as_secs_f64().max(1e-12);
        println!(
            "{name:34} {:9.1} us  {per_kib:7.2} us/KiB  {ratio:6.1} x reading it as JSON",
            took.as_secs_f64() * 1e6
        );
        figures.insert(name, serde_json::json!({"us": took.as_secs_f64() * 1e6, "us_per_kib": per_kib, "ratio": ratio}));
    };
    for bytes in [200, 2_000, 20_000, 200_000] {
        let text = text(bytes);
        let body = serde_json::json!({"messages": [{"role": "user", "content": text}]}).to_string();
        let parse = best(|| {
            black_box(serde_json::from_str::<serde_json::Value>(black_box(&body))).expect("JSON");
        });
        let took = best(|| {
            black_box(inspector.inspect(0, Origin::User, black_box(&text)));
        });
        tell(format!("input, exact checks, {} B", text.len()), took, text.len(), parse);
        let cut = pieces(&text);
        let took = best(|| {
            let mut leak = Leak::new(Arc::clone(&secret));
            for piece in &cut {
                black_box(leak.push(piece));
            }
        });
        tell(format!("answer, leak, {} B", text.len()), took, text.len(), parse);
        let took = best(|| {
            let mut secrets = Stream::new(Finder::shared());
            for piece in &cut {
                black_box(secrets.push(piece));
            }
            black_box(secrets.finish());
        });
        tell(format!("answer, secrets, {} B", text.len()), took, text.len(), parse);
        let took = best(|| {
            let mut watch = Watch::new(Limits::default());
            for piece in &cut {
                black_box(watch.push(piece));
            }
        });
        tell(format!("answer, degeneration, {} B", text.len()), took, text.len(), parse);
    }
    #[cfg(feature = "candle")]
    {
        use berthd::classify::{Model, Runtime, Spec};
        let folder = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/models/injection-a"));
        let spec = Spec { folder, runtime: Runtime::Candle, ..Spec::default() };
        let model = Model::load(&spec, Err("not asked for")).expect("the shipped model");
        let mut classifier = model.classifier().expect("candle");
        let text = text(800);
        let parse = best(|| {
            black_box(serde_json::to_string(black_box(&text))).expect("JSON");
        });
        let took = best(|| {
            black_box(model.score(&mut *classifier, black_box(&text), 1)).expect("a score");
        });
        tell("first stage, candle, one window".to_owned(), took, text.len(), parse);
    }
    if let Some(path) = json {
        let text = serde_json::to_string_pretty(&figures).expect("figures are plain");
        fs::write(path, text).expect("the file for figures can be written");
    }
}
