//! First counts: text that was not seen before, beside both tokenizer libraries.

use crate::{Options, median, text::Source, timed};
use berthd::tokens::{Allowance, ModelFiles, Profile};
use serde_json::{Value, json};
use std::path::Path;
use tokenizers::pipeline::{EncodeOptions, Override, PipelineToken};

/// Measures and prints.
pub fn measure(model: &Path, options: &Options) -> Value {
    let files = ModelFiles::load(model).expect("the model's files can be read");
    let file = ModelFiles::tokenizer_json(model).expect("the model has a tokenizer");
    let mut canonical: Value = serde_json::from_str(&file).expect("it is JSON");
    tokenizers::canonicalize_value(&mut canonical).expect("it can be brought up to date");
    let fast = tokenizers::from_json(&canonical.to_string()).ok();
    let stable: tokenizers_classic::Tokenizer = file.parse().expect("the stable line reads it");
    let off = EncodeOptions {
        add_special_tokens: false,
        encode_special_tokens: false,
        padding: Override::Off,
        truncation: Override::Off,
    };
    let profile = Profile::reference();
    let mut source = Source::new(options.corpus.as_deref());
    let mut all = serde_json::Map::new();
    println!("first count, MB/s of one core (median of {} rounds)", options.rounds);
    println!(
        "{:>9} {:>10} {:>10} {:>10} {:>12} {:>12}",
        "tokens", "berthd", "fast", "stable", "berthd/fast", "berthd/stable"
    );
    for tokens in [1_000usize, 8_000, 100_000] {
        let (mut ours, mut theirs, mut olds) = (Vec::new(), Vec::new(), Vec::new());
        let (mut to_fast, mut to_stable) = (Vec::new(), Vec::new());
        let mut ids: Vec<PipelineToken> = Vec::new();
        for round in 0..options.rounds + 1 {
            // The small ones are measured on several texts a round, that the clock's grain does not show.
            let texts: Vec<String> =
                (0..(24_000 / tokens).clamp(1, 24)).map(|_| source.text(tokens * 4)).collect();
            let bodies: Vec<String> = texts
                .iter()
                .map(|text| json!({"messages": [{"role": "user", "content": text}]}).to_string())
                .collect();
            let bytes: usize = texts.iter().map(String::len).sum();
            let opened: Vec<_> = bodies
                .iter()
                .map(|body| berthd::api::json::open(body.as_bytes()).expect("a body"))
                .collect();
            let count = || {
                for fields in &opened {
                    files.count_request(&profile, fields, Allowance::Whole).expect("a count");
                }
            };
            let encode_fast = |ids: &mut Vec<PipelineToken>| {
                for text in &texts {
                    ids.clear();
                    if let Some(fast) = &fast {
                        fast.encode_into(text, &off, ids).expect("ids");
                    }
                }
            };
            let encode_stable = || {
                for text in texts.iter().take(2) {
                    stable.encode_fast(text.as_str(), false).expect("ids");
                }
            };
            let rate =
                |bytes: usize, time: std::time::Duration| bytes as f64 / 1e6 / time.as_secs_f64();
            // Whoever comes second finds the text warm: they take turns.
            let (mine, other) = if round % 2 == 0 {
                let mine = timed(count).0;
                (mine, timed(|| encode_fast(&mut ids)).0)
            } else {
                let other = timed(|| encode_fast(&mut ids)).0;
                (timed(count).0, other)
            };
            let old = timed(encode_stable).0;
            if round == 0 {
                continue;
            }
            let (mine, other) = (rate(bytes, mine), rate(bytes, other));
            let old = rate(texts.iter().take(2).map(String::len).sum(), old);
            ours.push(mine);
            theirs.push(other);
            olds.push(old);
            to_fast.push(mine / other);
            to_stable.push(mine / old);
        }
        let figures = [ours, theirs, olds, to_fast, to_stable].map(median);
        println!(
            "{tokens:>9} {:>10.1} {:>10.1} {:>10.2} {:>12.2} {:>12.1}",
            figures[0], figures[1], figures[2], figures[3], figures[4]
        );
        all.insert(
            tokens.to_string(),
            json!({
                "berthd_mb_s": figures[0], "fast_mb_s": figures[1], "stable_mb_s": figures[2],
                "berthd_to_fast": figures[3], "berthd_to_stable": figures[4],
            }),
        );
    }
    if source.laps() > 0 {
        println!("(the corpus was read {} times over)", source.laps() + 1);
    }
    all.into()
}
