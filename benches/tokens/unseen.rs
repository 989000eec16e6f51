//! First counts: text that was not seen before, beside both tokenizer libraries.
//!
//! `text` is a text alone, what the libraries are given too; `chat` a request with one message of that length,
//! its JSON opened, its template rendered.

use crate::{Options, median, text::Source, timed};
use berthd::tokens::{Allowance, ModelFiles, Profile};
use serde_json::{Value, json};
use std::{path::Path, time::Duration};
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
        "{:>9} {:>10} {:>10} {:>10} {:>10} {:>10} {:>10} {:>12}",
        "tokens", "text", "chat", "fast", "stable", "text/fast", "chat/fast", "text/stable"
    );
    let rate = |bytes: usize, time: Duration| bytes as f64 / 1e6 / time.as_secs_f64();
    for tokens in [1_000usize, 8_000, 100_000] {
        let mut figures: [Vec<f64>; 7] = Default::default();
        let mut ids: Vec<PipelineToken> = Vec::new();
        for round in 0..=options.rounds {
            // The small ones are measured on several texts a round, that the clock's grain does not show.
            let number = (24_000 / tokens).clamp(1, 24);
            let texts: Vec<String> = (0..number).map(|_| source.text(tokens * 4)).collect();
            let bytes: usize = texts.iter().map(String::len).sum();
            // Chats are of other texts: an engine remembers words, and these are to be new.
            let bodies: Vec<String> = (0..number)
                .map(
                    |_| json!({"messages": [{"role": "user", "content": source.text(tokens * 4)}]}),
                )
                .map(|body| body.to_string())
                .collect();
            let opened: Vec<_> = bodies
                .iter()
                .map(|body| berthd::api::json::open(body.as_bytes()).expect("a body"))
                .collect();
            let count_texts = || {
                for text in &texts {
                    files.count_text(text, false).expect("a count");
                }
            };
            let count_chats = || {
                for fields in &opened {
                    files.count_request(&profile, fields, Allowance::Whole).expect("a count");
                }
            };
            let mut encode_fast = || {
                for text in &texts {
                    ids.clear();
                    if let Some(fast) = &fast {
                        fast.encode_into(text, &off, &mut ids).expect("ids");
                    }
                }
            };
            // They take turns at being the first to touch the text.
            let (ours, theirs) = if round % 2 == 0 {
                let ours = timed(count_texts).0;
                (ours, timed(&mut encode_fast).0)
            } else {
                let theirs = timed(&mut encode_fast).0;
                (timed(count_texts).0, theirs)
            };
            let chats = timed(count_chats).0;
            let few = texts.get(..2.min(number)).unwrap_or_default();
            let old = timed(|| {
                few.iter().for_each(|text| drop(stable.encode_fast(text.as_str(), false)));
            });
            // The first round warms the code, not the text.
            if round == 0 {
                continue;
            }
            let (ours, theirs, chats) =
                (rate(bytes, ours), rate(bytes, theirs), rate(bytes, chats));
            let old = rate(few.iter().map(String::len).sum(), old.0);
            let round = [ours, chats, theirs, old, ours / theirs, chats / theirs, ours / old];
            figures.iter_mut().zip(round).for_each(|(all, figure)| all.push(figure));
        }
        let [ours, chats, theirs, old, to_fast, chat_to_fast, to_stable] = figures.map(median);
        println!(
            "{tokens:>9} {ours:>10.1} {chats:>10.1} {theirs:>10.1} {old:>10.2} {to_fast:>10.2} {chat_to_fast:>10.2} {to_stable:>12.1}"
        );
        let figures = json!({
            "text_mb_s": ours, "chat_mb_s": chats, "fast_mb_s": theirs, "stable_mb_s": old,
            "text_to_fast": to_fast, "chat_to_fast": chat_to_fast, "text_to_stable": to_stable,
        });
        all.insert(tokens.to_string(), figures);
    }
    if source.laps() > 0 {
        println!("(the corpus was read {} times over)", source.laps() + 1);
    }
    all.into()
}
