//! Counts that were put together from remembered parts, against whole texts encoded at once.
//!
//! `BERTHD_PROPERTY_CASES` sets how many random conversations each family gets; best with `--release`.

#![expect(clippy::expect_used, reason = "a test fails by panicking")]

use berthd::{
    api::json,
    tokens::{Allowance, BlockRule, CountError, ModelFiles, Profile},
};
use serde_json::{Map, Value, json as value};
use std::{
    num::NonZeroU32,
    path::{Path, PathBuf},
};

/// Conversations for each family unless the environment says otherwise.
const CASES: usize = 400;

/// Every folder of the fixtures that has a tokenizer and a template.
fn families() -> Vec<(String, PathBuf)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/counts");
    let entries = std::fs::read_dir(folder).expect("the fixtures are in the repository");
    let mut found: Vec<(String, PathBuf)> = entries
        .map(|entry| entry.expect("a readable folder").path())
        .filter(|path| path.join("tokenizer.json").exists())
        .map(|path| (path.file_name().expect("a name").to_string_lossy().into_owned(), path))
        .collect();
    found.sort();
    found
}

/// xorshift64: the same conversations at every run.
struct Dice(u64);

impl Dice {
    fn below(&mut self, most: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 >> 20).expect("64 bits") % most
    }

    fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.below(from.len())]
    }
}

const WORDS: [&str; 44] = [
    "Hello",
    " world",
    "\n",
    "\n\n",
    " ",
    "  ",
    "\t",
    "\r\n",
    "é",
    "e\u{301}",
    "👍🏽",
    "\u{200d}",
    "今日は",
    "한국어",
    "שלום",
    "1234567",
    " 3.14",
    "'s",
    "don't",
    "<",
    "|>",
    "<|im_",
    "end|>",
    "<|im_end|>",
    "<|im_start|>",
    "<s>",
    "</s>",
    "[INST]",
    "[/INST]",
    "<think>",
    "</think>",
    "<end_of_turn>",
    "<start_of_turn>",
    "<|eot_id|>",
    "<tool_response>",
    "x",
    "\u{a0}",
    "\u{1f}",
    "\u{2028}",
    "▁",
    "ﬁ",
    "The quick brown fox",
    "{\"a\": 1}",
    "...",
];

fn text(dice: &mut Dice) -> String {
    (0..dice.below(7)).map(|_| *dice.pick(&WORDS)).collect()
}

fn content(dice: &mut Dice) -> Value {
    match dice.below(12) {
        1 => value!([{"type": "text", "text": text(dice)}]),
        2 => value!([{"type": "text", "text": text(dice)}, {"type": "text", "text": text(dice)}]),
        _ => text(dice).into(),
    }
}

fn assistant(dice: &mut Dice, number: usize) -> Value {
    let mut message = value!({"role": "assistant", "content": content(dice)});
    if dice.below(30) == 0 {
        message["content"] = Value::Null;
    }
    if dice.below(5) == 0 {
        let calls: Vec<Value> = (0..=dice.below(2))
            .map(|at| {
                value!({"id": format!("call{number:03}{at:02}"), "type": "function", "function":
                    {"name": "look", "arguments": {"for": text(dice), "n": dice.below(9), "deep": {"x": [1.5, null, true]}}}})
            })
            .collect();
        message["tool_calls"] = calls.into();
    }
    if dice.below(6) == 0 {
        message["reasoning_content"] = text(dice).into();
    }
    message
}

fn conversation(dice: &mut Dice) -> Vec<Value> {
    let mut messages = Vec::new();
    match dice.below(8) {
        0..=2 => messages.push(value!({"role": "system", "content": content(dice)})),
        3 if dice.below(5) == 0 => {
            messages.push(value!({"role": "developer", "content": text(dice)}))
        }
        _ => {}
    }
    for number in 0..=dice.below(6) {
        // Now and then one speaks twice, or out of turn.
        let role = if dice.below(60) == 0 { "system" } else { "user" };
        messages.push(value!({"role": role, "content": content(dice)}));
        if dice.below(50) == 0 {
            continue;
        }
        let answer = assistant(dice, number);
        let calls = answer["tool_calls"].as_array().map_or(0, Vec::len);
        messages.push(answer);
        for at in 0..calls {
            messages.push(value!({"role": "tool", "name": "look", "content": content(dice),
                "tool_call_id": format!("call{number:03}{at:02}")}));
        }
    }
    messages
}

fn request(dice: &mut Dice, messages: &[Value]) -> Map<String, Value> {
    let mut body = Map::new();
    body.insert("messages".into(), messages.into());
    if dice.below(4) == 0 {
        let tool = value!({"type": "function", "function": {"name": "look", "description": text(dice),
            "parameters": {"type": "object", "properties": {"for": {"type": "string"}}, "required": ["for"]}}});
        body.insert("tools".into(), value!([tool]));
    }
    if dice.below(5) == 0 {
        let thinking = dice.below(2) == 0;
        body.insert("chat_template_kwargs".into(), value!({"enable_thinking": thinking}));
    }
    if dice.below(8) == 0 {
        body.insert("add_generation_prompt".into(), false.into());
    }
    body
}

/// What is wrong with one request, counted in parts and as a whole.
fn complaint(files: &ModelFiles, body: Map<String, Value>) -> Option<String> {
    let profile = Profile::reference();
    let whole = files.chat_text(&profile, &body).and_then(|text| files.text_ids(&text, false));
    let text = Value::Object(body).to_string();
    let fields = json::open(text.as_bytes()).expect("a request is an object");
    let parts = files.request_ids(&profile, &fields, Allowance::Whole);
    let same = match (&parts, &whole) {
        (Err(CountError::Template(one)), Err(CountError::Template(other))) => one == other,
        (Err(_), Err(_)) => true,
        (one, other) => one == other,
    };
    (!same).then(|| {
        let told =
            |ids: &Result<Vec<u32>, CountError>| ids.as_ref().map(Vec::len).map_err(Clone::clone);
        format!("{:?} in parts, {:?} whole: {text}", told(&parts), told(&whole))
    })
}

#[test]
fn remembered_parts_add_up_to_the_whole() {
    let cases = std::env::var("BERTHD_PROPERTY_CASES").ok().and_then(|text| text.parse().ok());
    let cases: usize = cases.unwrap_or(CASES);
    let mut dice = Dice(0x0dd_ba11);
    for (family, folder) in families() {
        let files = ModelFiles::load(&folder).unwrap_or_else(|error| panic!("{family}: {error}"));
        if !files.has_template() {
            continue;
        }
        let mut done = 0;
        let mut refused = 0;
        while done < cases {
            let messages = conversation(&mut dice);
            // It grows turn by turn, as callers send it; the parts of its beginning are remembered.
            let shortest = dice.below(messages.len()) + 1;
            for length in shortest..=messages.len() {
                let body = request(&mut dice, &messages[..length]);
                refused += usize::from(files.chat_text(&Profile::reference(), &body).is_err());
                if let Some(found) = complaint(&files, body) {
                    panic!("{family}: {found}");
                }
                done += 1;
            }
        }
        let used = files.cache_use();
        println!(
            "{family}: {done} conversations equal ({refused} of them refused alike), {} parts remembered, {} new",
            used.hits, used.misses
        );
        assert!(used.hits > 0, "{family}: remembering never helped");
        assert!(used.bytes <= berthd::tokens::CACHE_BYTES);
    }
}

/// The hashes are those of the whole prompt's ids, whatever was remembered of it.
#[test]
fn blocks_come_out_of_the_same_pass() {
    let rule =
        BlockRule { block_tokens: NonZeroU32::new(8).expect("not zero"), adapter: "", salt: "" };
    let mut dice = Dice(0xb10c);
    let mut hashed = 0;
    for (family, folder) in families() {
        let files = ModelFiles::load(&folder).unwrap_or_else(|error| panic!("{family}: {error}"));
        let profile = Profile::reference();
        for _ in 0..20 {
            let messages = conversation(&mut dice);
            for length in 1..=messages.len() {
                let body = request(&mut dice, &messages[..length]);
                let Ok(ids) = files.chat_ids(&profile, &body) else { continue };
                let text = Value::Object(body).to_string();
                let fields = json::open(text.as_bytes()).expect("valid JSON");
                let counted = files.count_blocks(&profile, &fields, Allowance::Whole, &rule);
                let (tokens, blocks) = counted.unwrap_or_else(|error| panic!("{family}: {error}"));
                assert_eq!(tokens.get(), ids.len() as u64, "{family}: {text}");
                assert_eq!(blocks, rule.blocks(&ids), "{family}: {text}");
                hashed += blocks.hashes.len();
            }
        }
    }
    assert!(hashed > 1000, "{hashed}");
}
