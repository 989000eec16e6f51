//! Token counts against the reference library's, request by request.
//!
//! The cases are made by `scripts/make_count_fixtures.py`; every id counts, not only their number.

#![expect(clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use berthd::{
    snapshot::ServerKind,
    tokens::{CountError, ModelFiles, Profile},
    units::Tokens,
};
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

const FAMILIES: [&str; 6] = ["chatml", "header", "inst", "turn", "think", "sections"];

fn folder(family: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/counts").join(family)
}

fn load(family: &str) -> ModelFiles {
    ModelFiles::load(&folder(family)).unwrap_or_else(|error| panic!("{family}: {error}"))
}

fn cases() -> Vec<Value> {
    let text =
        std::fs::read_to_string(folder("cases.jsonl")).expect("the cases are in the repository");
    text.lines().map(|line| serde_json::from_str(line).expect("every line is JSON")).collect()
}

fn hex(bytes: impl AsRef<[u8]>) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn ids_hex(ids: &[u32]) -> String {
    hex(ids.iter().flat_map(|id| id.to_le_bytes()).collect::<Vec<_>>())
}

/// What is wrong with one case; empty if nothing is.
fn complaint(files: &ModelFiles, case: &Value) -> Option<String> {
    let expected = (case["tokens"].as_u64(), case["ids_sha256"].as_str().map(str::to_owned));
    let told = |ids: &[u32]| (Some(ids.len() as u64), Some(ids_hex(ids)));
    if let Some(text) = case["text"].as_str() {
        let ids = files.text_ids(text, true).map_err(|error| error.to_string());
        return match ids {
            Ok(ids) if told(&ids) == expected => None,
            Ok(ids) => Some(format!("text {text:?}: {} ids, not {}", ids.len(), case["tokens"])),
            Err(error) => Some(error),
        };
    }
    let body = case["request"].as_object().expect("a case is a text or a request");
    let profile = Profile::reference();
    let text = files.chat_text(&profile, body);
    if let Some(raised) = case["raises"].as_str() {
        return (text != Err(CountError::Template(raised.to_owned())))
            .then(|| format!("should be refused with {raised:?}: {text:?}"));
    }
    match (text, files.chat_ids(&profile, body)) {
        (Ok(text), _) if Some(hex(&text).as_str()) != case["text_sha256"].as_str() => {
            Some(format!("another text for {}: {text:?}", case["request"]))
        }
        (Ok(_), Ok(ids)) if told(&ids) == expected => {
            let count = files.count_chat(&profile, body);
            (count != Ok(Tokens(ids.len() as u64)))
                .then(|| format!("ids and count differ: {count:?}"))
        }
        (Ok(_), Ok(ids)) => {
            Some(format!("{} ids, not {}: {}", ids.len(), case["tokens"], case["request"]))
        }
        (text, ids) => Some(format!("{text:?} {ids:?}: {}", case["request"])),
    }
}

#[test]
fn counts_equal_the_reference_librarys() {
    let loaded: BTreeMap<&str, ModelFiles> = FAMILIES.map(|family| (family, load(family))).into();
    let mut tried: BTreeMap<String, (usize, usize)> = BTreeMap::new();
    let mut complaints = Vec::new();
    for case in cases() {
        let family = case["family"].as_str().expect("every case names its family").to_owned();
        let found = complaint(&loaded[family.as_str()], &case);
        let (right, all) = tried.entry(family.clone()).or_default();
        *all += 1;
        *right += usize::from(found.is_none());
        complaints.extend(found.map(|found| format!("{family}: {found}")));
    }
    let (right, all) = tried.values().fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1));
    println!("{right} of {all} counts are exact: {tried:?}");
    assert!(all >= 240, "only {all} cases");
    assert!(complaints.is_empty(), "{} wrong:\n{}", complaints.len(), complaints.join("\n"));
}

// === the five traps: each makes a plausible count that is off by one or by dozens ===

fn body(value: Value) -> Map<String, Value> {
    value.as_object().expect("a request is an object").clone()
}

#[test]
fn the_bos_that_the_template_writes_is_not_doubled() {
    let files = load("header");
    let request = body(json!({"messages": [{"role": "user", "content": "hi"}]}));
    let ids = files.chat_ids(&Profile::reference(), &request).unwrap();
    let bos = files.text_ids("", true).unwrap();
    assert_eq!(bos.len(), 1, "this tokenizer puts one token in front of plain text");
    assert_eq!(ids.iter().filter(|id| **id == bos[0]).count(), 1);
    let text = files.chat_text(&Profile::reference(), &request).unwrap();
    assert_eq!(files.count_text(&text, true), Ok(Tokens(ids.len() as u64 + 1)), "the trap exists");
    // llama.cpp cuts the template's and adds its own: the same prompt.
    assert_eq!(files.chat_ids(&Profile::of(ServerKind::LlamaCpp), &request).unwrap(), ids);
}

#[test]
fn tools_are_written_with_pythons_spacing() {
    let files = load("chatml");
    let tool = json!({"type": "function", "function": {"name": "f", "parameters": {"a": [1, 2], "b": "é<&>'"}}});
    let request = body(json!({"messages": [{"role": "user", "content": "hi"}], "tools": [tool]}));
    let text = files.chat_text(&Profile::reference(), &request).unwrap();
    let written = "{\"type\": \"function\", \"function\": {\"name\": \"f\", \"parameters\": {\"a\": [1, 2], \"b\": \"é<&>'\"}}}";
    assert!(text.contains(written), "{text}");
}

#[test]
fn arguments_in_the_history_are_written_with_pythons_spacing() {
    let files = load("chatml");
    let call = json!({"type": "function", "function": {"name": "f", "arguments": "{\"a\":[1,2],\"b\":null}"}});
    let request = body(json!({"messages": [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": null, "tool_calls": [call]},
        {"role": "tool", "content": "done"},
    ]}));
    // vLLM parses the text first, so the template writes it anew; the library hands it on as sent.
    let vllm = files.chat_text(&Profile::of(ServerKind::Vllm), &request).unwrap();
    assert!(vllm.contains("\"arguments\": {\"a\": [1, 2], \"b\": null}}"), "{vllm}");
    let reference = files.chat_text(&Profile::reference(), &request).unwrap();
    assert!(reference.contains("\"arguments\": {\"a\":[1,2],\"b\":null}}"), "{reference}");
}

#[test]
fn trimming_takes_a_unit_separator_for_a_space() {
    let files = load("turn");
    let count = |text: &str| {
        let request = body(json!({"messages": [{"role": "user", "content": text}]}));
        files.count_chat(&Profile::reference(), &request).unwrap()
    };
    assert_eq!(count("ends here\u{1f}"), count("ends here"));
    assert!(count("ends\u{1f}here") > count("endshere"), "inside, it is text");
}

#[test]
fn small_floats_are_written_with_an_exponent() {
    let files = load("header");
    let call = json!({"type": "function", "function": {"name": "f", "arguments": {"a": 1e-6, "b": 1e16, "c": 2.0}}});
    let request = body(json!({"messages": [
        {"role": "user", "content": "hi"}, {"role": "assistant", "content": "", "tool_calls": [call]},
    ]}));
    let text = files.chat_text(&Profile::reference(), &request).unwrap();
    assert!(text.contains("{\"a\": 1e-06, \"b\": 1e+16, \"c\": 2.0}"), "{text}");
}

// === what servers do beside the library ===

#[test]
fn servers_prepare_the_same_request_differently() {
    let files = load("chatml");
    let parts = json!([{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]);
    let request = body(json!({"messages": [
        {"role": "developer", "content": "Rules."}, {"role": "user", "content": parts},
        {"role": "assistant", "content": "So far"},
    ]}));
    let text = |kind| files.chat_text(&Profile::of(kind), &request).unwrap();
    let vllm = text(ServerKind::Vllm);
    assert!(
        vllm.starts_with(
            "<|im_start|>system\nRules.<|im_end|>\n<|im_start|>user\none\ntwo<|im_end|>"
        ),
        "{vllm}"
    );
    assert!(
        vllm.ends_with("<|im_start|>assistant\nSo far<|im_end|>\n<|im_start|>assistant\n"),
        "{vllm}"
    );
    let sglang = text(ServerKind::Sglang);
    assert!(sglang.contains("<|im_start|>user\none two<|im_end|>"), "{sglang}");
    assert!(
        sglang.ends_with("<|im_start|>user\nSo far<|im_end|>\n<|im_start|>assistant\n"),
        "{sglang}"
    );
    let llama = text(ServerKind::LlamaCpp);
    assert!(llama.ends_with("<|im_start|>assistant\nSo far"), "prefilled by default: {llama}");
}

#[test]
fn tool_choice_and_tool_keys_follow_the_server() {
    let files = load("chatml");
    let tool = |name: &str| json!({"type": "function", "function": {"parameters": {}, "name": name, "other": 1}});
    let request = |choice: Value| {
        body(json!({"messages": [{"role": "user", "content": "hi"}],
            "tools": [tool("first"), tool("second")], "tool_choice": choice}))
    };
    let text = |kind, choice| files.chat_text(&Profile::of(kind), &request(choice)).unwrap();
    let vllm = text(ServerKind::Vllm, json!("none"));
    assert!(
        vllm.contains("{\"name\": \"first\", \"description\": null, \"parameters\": {}}"),
        "{vllm}"
    );
    assert!(!text(ServerKind::Sglang, json!("none")).contains("first"));
    let named =
        text(ServerKind::Sglang, json!({"type": "function", "function": {"name": "second"}}));
    assert!(
        named.contains("{\"parameters\": {}, \"name\": \"second\", \"description\": null}"),
        "{named}"
    );
    assert!(!named.contains("first"));
}

#[test]
fn list_content_reaches_only_templates_that_walk_it() {
    let profile = Profile::of(ServerKind::Vllm);
    let request = body(json!({"messages": [{"role": "user", "content": [
        {"type": "text", "text": " one "}, {"type": "text", "text": " two "}]}]}));
    // This template trims each part, so a joined string would keep the spaces inside.
    let walked = load("turn").chat_text(&profile, &request).unwrap();
    assert!(walked.contains("onetwo"), "{walked}");
    let joined = load("inst").chat_text(&profile, &request).unwrap();
    assert!(joined.contains(" one \n two "), "{joined}");
    let image = body(json!({"messages": [{"role": "user", "content": [
        {"type": "image_url", "image_url": {"url": "data:,"}}]}]}));
    let refused = load("turn").count_chat(&profile, &image);
    assert!(matches!(refused, Err(CountError::NotAvailable(_))), "{refused:?}");
}

#[test]
fn template_variables_come_from_the_operator_and_then_the_request() {
    let files = load("think");
    let operator = BTreeMap::from([("enable_thinking".to_owned(), json!(false))]);
    let profile = Profile::of(ServerKind::Vllm).with_variables(operator);
    let text = |request: Value| files.chat_text(&profile, &body(request)).unwrap();
    let messages = json!([{"role": "user", "content": "hi"}]);
    assert!(text(json!({"messages": messages})).ends_with("<think>\n\n</think>\n\n"));
    let asked = json!({"messages": messages, "chat_template_kwargs": {"enable_thinking": true}});
    assert!(text(asked).ends_with("<think>\n"));
}

// === the rest of a model folder ===

#[test]
fn a_folder_tells_its_end_tokens_window_and_fingerprint() {
    let header = load("header");
    assert_eq!(header.eos_ids().len(), 2, "generation_config.json lists two");
    assert_eq!(header.context_window(), Some(Tokens(4096)));
    assert!(header.has_template());
    assert_eq!(header.fingerprint().len(), 16);
    assert_eq!(header.fingerprint(), load("header").fingerprint());
    assert_ne!(header.fingerprint(), load("chatml").fingerprint());
}

#[test]
fn bytes_of_tokens_join_to_the_text() {
    let text = "Hello, wörld! 今日は 👍🏽\n\tlet x = 1;";
    for family in ["chatml", "header", "think", "turn"] {
        let files = load(family);
        let ids = files.text_ids(text, false).unwrap();
        let bytes: Vec<u8> = ids.iter().filter_map(|id| files.bytes_of(*id)).flatten().collect();
        assert_eq!(String::from_utf8_lossy(&bytes), text, "{family}");
        assert!(
            files.eos_ids().iter().any(|id| files.bytes_of(*id).is_none()),
            "specials have no text"
        );
    }
}

#[test]
fn a_folder_without_a_template_counts_text_but_no_chat() {
    let from = folder("header");
    let bare = tempfile::tempdir().unwrap();
    std::fs::copy(from.join("tokenizer.json"), bare.path().join("tokenizer.json")).unwrap();
    let files = ModelFiles::load(bare.path()).unwrap();
    assert!(!files.has_template());
    assert!(files.count_text("some text", true).unwrap() > Tokens(1));
    let request = body(json!({"messages": [{"role": "user", "content": "hi"}]}));
    let refused = files.count_chat(&Profile::reference(), &request);
    assert!(matches!(refused, Err(CountError::NotAvailable(_))), "{refused:?}");
    assert!(ModelFiles::load(&bare.path().join("nowhere")).is_err());
}

#[test]
fn text_out_of_proportion_is_refused() {
    let files = load("header");
    let refused = files.count_text(&"a ".repeat(20 << 20), false);
    assert!(matches!(refused, Err(CountError::TooCostly(_))), "{refused:?}");
}
