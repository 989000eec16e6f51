//! Counting turn by turn, against counting whole.

use super::*;
use crate::api::json;
use serde_json::json as value;
use std::path::Path;

const FAMILIES: [&str; 15] = [
    "chatml", "header", "inst", "brackets", "turn", "think", "merge", "query", "bars", "trail",
    "channel", "pieces", "records", "clauses", "sections",
];

fn load(family: &str) -> ModelFiles {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/counts").join(family);
    ModelFiles::load(&folder).unwrap()
}

fn both(
    files: &ModelFiles,
    body: &Value,
) -> (Result<Vec<u32>, CountError>, Result<Vec<u32>, CountError>) {
    let profile = Profile::reference();
    let text = body.to_string();
    let fields = json::open(text.as_bytes()).unwrap();
    (
        files.request_ids(&profile, &fields, Allowance::Whole),
        files
            .chat_text(&profile, body.as_object().unwrap())
            .and_then(|text| files.text_ids(&text, false)),
    )
}

#[test]
fn every_family_is_proven() {
    for family in FAMILIES {
        let files = load(family);
        assert!(files.chat.pick(false).unwrap().template.remembers(), "{family}");
    }
}

#[test]
fn a_conversation_that_grew_misses_only_its_new_turn() {
    for family in FAMILIES {
        let files = load(family);
        let mut messages = vec![];
        for number in 0..40 {
            messages.push(value!({"role": "user", "content": format!("Question {number}?")}));
            messages.push(value!({"role": "assistant", "content": format!("Answer {number}.")}));
        }
        messages.push(value!({"role": "user", "content": "And?"}));
        let (quick, whole) = both(&files, &value!({"messages": messages}));
        assert_eq!(quick, whole, "{family}");
        let before = files.cache_use();
        messages.push(value!({"role": "assistant", "content": "More."}));
        messages.push(value!({"role": "user", "content": "Then?"}));
        let (quick, whole) = both(&files, &value!({"messages": messages}));
        assert_eq!(quick, whole, "{family}");
        let missed = files.cache_use().misses - before.misses;
        println!("{family}: {missed} misses");
        assert!(missed <= 12, "{family}: {missed} misses");
    }
}
