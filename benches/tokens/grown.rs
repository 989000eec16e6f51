//! A conversation of 40 turns and 8,000 tokens that grew by one turn.

use crate::{Options, median, text::Source, timed};
use berthd::tokens::{Allowance, ModelFiles, Profile};
use serde_json::{Value, json};
use std::path::Path;
use tokenizers::pipeline::{EncodeOptions, Override, PipelineToken};

/// A turn is a question and its answer: 81 messages with the question that is asked now.
const TURNS: usize = 40;

/// Measures and prints.
pub fn measure(model: &Path, options: &Options) -> Value {
    let file = ModelFiles::tokenizer_json(model).expect("the model has a tokenizer");
    let mut canonical: Value = serde_json::from_str(&file).expect("it is JSON");
    tokenizers::canonicalize_value(&mut canonical).expect("it can be brought up to date");
    let fast = tokenizers::from_json(&canonical.to_string()).ok();
    let off = EncodeOptions {
        add_special_tokens: false,
        encode_special_tokens: false,
        padding: Override::Off,
        truncation: Override::Off,
    };
    let files = ModelFiles::load(model).expect("the model's files can be read");
    let profile = Profile::reference();
    let mut source = Source::new(options.corpus.as_deref());
    let (mut whole, mut grown, mut ratios, mut tokens) = (vec![], vec![], vec![], 0);
    let (mut parse, mut again, mut warmed) = (vec![], vec![], vec![]);
    for _ in 0..options.rounds.max(3) * 5 {
        let mut messages = Vec::new();
        for _ in 0..TURNS {
            messages.push(json!({"role": "user", "content": source.text(8_000 * 4 / TURNS / 2)}));
            messages
                .push(json!({"role": "assistant", "content": source.text(8_000 * 4 / TURNS / 2)}));
        }
        let body = |messages: &[Value]| json!({"model": "m", "messages": messages}).to_string();
        // What was counted when the last question came.
        let before = body(&messages[..messages.len() - 1]);
        let fields = berthd::api::json::open(before.as_bytes()).expect("a body");
        files.count_request(&profile, &fields, Allowance::Whole).expect("a count");
        messages.push(json!({"role": "user", "content": source.text(400)}));
        let after = body(&messages);
        let (parsed, fields) = timed(|| berthd::api::json::open(after.as_bytes()).expect("a body"));
        let (time, count) =
            timed(|| files.count_request(&profile, &fields, Allowance::Whole).expect("a count"));
        let (same, _) =
            timed(|| files.count_request(&profile, &fields, Allowance::Whole).expect("a count"));
        let text = files
            .chat_text(
                &profile,
                serde_json::from_str::<Value>(&after)
                    .expect("JSON")
                    .as_object()
                    .expect("an object"),
            )
            .expect("a prompt");
        let mut ids: Vec<PipelineToken> = Vec::with_capacity(1 << 16);
        let mut encode = || {
            ids.clear();
            fast.as_ref().map(|fast| fast.encode_into(&text, &off, &mut ids).expect("ids"))
        };
        let (other, _) = timed(&mut encode);
        let (warm, _) = timed(&mut encode);
        warmed.push(warm.as_nanos() as f64 / 1e3);
        assert_eq!(count.get(), ids.len() as u64, "the same number of tokens");
        tokens = ids.len();
        let micros = |time: std::time::Duration| time.as_nanos() as f64 / 1e3;
        parse.push(micros(parsed));
        again.push(micros(same));
        grown.push(micros(time));
        whole.push(micros(other));
        ratios.push(micros(other) / micros(time));
    }
    let [grown, whole, ratio, parse, again, warmed] =
        [grown, whole, ratios, parse, again, warmed].map(median);
    println!("a conversation of {TURNS} turns, {tokens} tokens, that grew by one turn");
    println!("  counted in {grown:.1} us, rendering included; again unchanged {again:.1} us");
    println!(
        "  the fast line encodes the whole text in {whole:.1} us: {ratio:.1} times as long (the same text a second time: {warmed:.1} us)"
    );
    println!("  (checking and opening the body's JSON, which every request pays: {parse:.1} us)");
    json!({"grown_us": grown, "fast_whole_us": whole, "ratio": ratio, "again_us": again, "tokens": tokens, "json_us": parse})
}
