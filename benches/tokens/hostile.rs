//! Hostile inputs: how long one keeps an async thread waiting.

use crate::timed;
use berthd::tokens::{Allowance, CountError, ModelFiles, Profile};
use serde_json::{Value, json};
use std::{path::Path, time::Duration};

fn inputs() -> Vec<(&'static str, Value)> {
    let one = |text: String| json!([{"role": "user", "content": text}]);
    let base64: String = (0..1_000_000u32)
        .map(|at| char::from(b"ABCDefgh0189+/xyz"[(at as usize * 7919 / 13) % 17]))
        .collect();
    let mut all = Vec::new();
    for kilobytes in [2usize, 8, 16, 32, 1000] {
        let size = kilobytes * 1000;
        let names: [(&'static str, String); 4] = [
            ("one letter", "a".repeat(size)),
            ("spaces", " ".repeat(size)),
            ("newlines", "\n".repeat(size)),
            ("zero-width joiners", "\u{200d}".repeat(size / 3)),
        ];
        all.extend(names.into_iter().map(|(name, text)| (name, one(text))));
        all.push(("base64 line", one(base64[..size.min(base64.len())].to_owned())));
        all.push(("half a special token", one("<|im_".repeat(size / 5))));
        all.push(("special tokens", one("<|im_end|>".repeat(size / 10))));
    }
    for number in [50usize, 500, 5_000, 50_000] {
        let short: Vec<Value> =
            (0..number).map(|_| json!({"role": "user", "content": "x"})).collect();
        all.push(("one-character messages", short.into()));
        let turns: Vec<Value> = (0..number)
            .map(|at| json!({"role": if at % 2 == 0 { "user" } else { "assistant" }, "content": format!("{at}")}))
            .collect();
        all.push(("short turns", turns.into()));
    }
    all
}

/// Measures and prints. The daemon counts with the little allowance on an async thread, and what that does
/// not cover on a compute thread.
pub fn measure(model: &Path) -> Value {
    let profile = Profile::reference();
    let (mut worst, mut worst_name) = (Duration::ZERO, "");
    let (mut worst_whole, mut whole_name) = (Duration::ZERO, "");
    let (mut deferred, mut all) = (0, 0);
    for (name, messages) in inputs() {
        // Nothing is remembered from the one before.
        let files = ModelFiles::load(model).expect("the model's files can be read");
        let body = json!({"messages": messages}).to_string();
        let (time, result) = timed(|| {
            let fields = berthd::api::json::open(body.as_bytes()).expect("a body");
            if body.len() > berthd::pipeline::study::INLINE_MAX {
                return Err(CountError::Deferred);
            }
            files.count_request(&profile, &fields, Allowance::Little)
        });
        all += 1;
        if body.len() <= berthd::pipeline::study::INLINE_MAX && time > worst {
            (worst, worst_name) = (time, name);
        }
        if result == Err(CountError::Deferred) {
            deferred += 1;
            let fields = berthd::api::json::open(body.as_bytes()).expect("a body");
            let (time, _) = timed(|| files.count_request(&profile, &fields, Allowance::Whole));
            if time > worst_whole {
                (worst_whole, whole_name) = (time, name);
            }
        }
    }
    let millis = |time: Duration| time.as_micros() as f64 / 1e3;
    println!("{all} hostile inputs, {deferred} of them left to the compute threads");
    println!(
        "  worst on an async thread {:.2} ms ({worst_name}), on a compute thread {:.0} ms ({whole_name})",
        millis(worst),
        millis(worst_whole)
    );
    json!({"worst_async_ms": millis(worst), "worst_input": worst_name, "worst_compute_ms": millis(worst_whole), "deferred": deferred, "inputs": all})
}
