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

/// The families, and which models' ways theirs are.
const FAMILIES: [(&str, &str); 16] = [
    ("chatml", "ChatML; NFC, padding and truncation in the file"),
    ("header", "Llama 3: tools in the user's turn, BOS twice"),
    ("inst", "Mistral, old: merged turns, SentencePiece, Metaspace `first`"),
    ("brackets", "Mistral, new: sections, call ids, whole words first, date"),
    ("turn", "Gemma: no system role, SentencePiece without a prefix"),
    ("think", "thinking; tokens that only the configuration knows"),
    ("merge", "Qwen 2.5: merged results of tools, single digits"),
    ("query", "Qwen 3: last question, thinking stripped, `safe`"),
    ("bars", "DeepSeek: full-width specials, three patterns"),
    ("trail", "Phi: specials that strip to the right, `%` on text"),
    ("channel", "gpt-oss: channels, types by macros, cased words"),
    ("pieces", "Llama 2: SentencePiece with a prefix by the normalizer"),
    ("records", "Granite: documents, controls, GPT-2's pattern"),
    ("clauses", "Command and GLM: groupby, dictsort, specials that strip"),
    ("sections", "parts by macros; Unigram, NFKC"),
    ("words", "embeddings: WordPiece"),
];

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/counts")
}

fn folder(family: &str) -> PathBuf {
    fixtures().join(family)
}

/// A family's files, at the time that the fixtures were made for.
fn load(family: &str) -> ModelFiles {
    let files =
        ModelFiles::load(&folder(family)).unwrap_or_else(|error| panic!("{family}: {error}"));
    files.with_clock_at("2024-07-06T15:04:05[UTC]".parse().unwrap())
}

fn lines(path: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(path).expect("the fixtures are in the repository");
    text.lines().map(|line| serde_json::from_str(line).expect("every line is JSON")).collect()
}

fn hex(bytes: impl AsRef<[u8]>) -> String {
    Sha256::digest(bytes).iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

/// Number and hash of ids, as the fixtures tell them.
fn told(ids: &[u32]) -> [Value; 2] {
    let bytes: Vec<u8> = ids.iter().flat_map(|id| id.to_le_bytes()).collect();
    [json!(ids.len()), json!(hex(bytes))]
}

/// What is wrong with the count of a plain text, if anything is.
fn text_complaint(files: &ModelFiles, text: &str, expected: &[Value]) -> Option<String> {
    match files.text_ids(text, true) {
        Ok(ids) if told(&ids) == expected => None,
        Ok(ids) => Some(format!("text {text:?}: {} ids, not {}", ids.len(), expected[0])),
        Err(error) => Some(error.to_string()),
    }
}

/// What is wrong with the count of a request, if anything is.
fn complaint(
    files: &ModelFiles,
    profile: &Profile,
    body: &Map<String, Value>,
    expected: &[Value],
) -> Option<String> {
    let text = files.chat_text(profile, body);
    if let Some(raised) = expected[0]["raises"].as_str() {
        return (text != Err(CountError::Template(raised.to_owned())))
            .then(|| format!("should be refused with {raised:?}: {text:?}"));
    }
    if expected[0].is_object() {
        return text.ok().map(|text| format!("should fail with {}: {text:?}", expected[0]));
    }
    let (text, ids) = match (text, files.chat_ids(profile, body)) {
        (Ok(text), Ok(ids)) => (text, ids),
        (text, ids) => return Some(format!("{text:?} {:?}", ids.err())),
    };
    if expected[0] != hex(&text) {
        return Some(format!("another text: {text:?}"));
    }
    if told(&ids) != expected[1..] {
        return Some(format!("{} ids, not {}", ids.len(), expected[1]));
    }
    let count = files.count_chat(profile, body);
    (count != Ok(Tokens(ids.len() as u64))).then(|| format!("ids and count differ: {count:?}"))
}

/// The rules that a case is counted by.
fn profile(kind: &str) -> Profile {
    match kind {
        "vllm" => Profile::of(ServerKind::Vllm),
        "sglang" => Profile::of(ServerKind::Sglang),
        "llama.cpp" => Profile::of(ServerKind::LlamaCpp),
        _ => Profile::reference(),
    }
}

/// One family's right and all: conversations, refusals by template or Python, as servers prepare them, texts.
#[derive(Default)]
struct Tally([(usize, usize); 4]);

#[test]
fn counts_equal_the_reference_librarys() {
    let (requests, texts) =
        (lines(&fixtures().join("requests.jsonl")), lines(&fixtures().join("texts.jsonl")));
    let mut complaints = Vec::new();
    let mut chat_families = 0;
    println!("family     conversations   refusals    servers      texts  in the style of");
    for (family, style) in FAMILIES {
        let files = load(family);
        let Tally(mut tally) = Tally::default();
        for case in lines(&folder(family).join("expected.jsonl")) {
            let case = case.as_array().expect("a case is a list").as_slice();
            let (kind, at) = (case[0].as_str().unwrap(), case[1].as_u64().unwrap() as usize);
            let expected = &case[2..];
            let found = match kind {
                "text" => text_complaint(&files, texts[at].as_str().unwrap(), expected),
                kind => {
                    complaint(&files, &profile(kind), requests[at].as_object().unwrap(), expected)
                }
            };
            let column = match kind {
                "text" => 3,
                "request" => usize::from(expected[0].is_object()),
                _ => 2,
            };
            tally[column].0 += usize::from(found.is_none());
            tally[column].1 += 1;
            complaints.extend(found.map(|found| format!("{family}, {case:?}: {found}")));
        }
        let [chats, refusals, servers, texts] = tally.map(|(right, all)| format!("{right}/{all}"));
        println!("{family:<10} {chats:>13} {refusals:>10} {servers:>10} {texts:>10}  {style}");
        chat_families += usize::from(tally[0].1 >= 60);
    }
    assert!(chat_families >= 10, "only {chat_families} families with 60 conversations");
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

/// Variables of the same name met in one list, and the first was taken.
#[test]
fn a_requests_variables_go_before_special_tokens_but_not_before_its_messages() {
    let files = load("header");
    let request = body(json!({"messages": [{"role": "user", "content": "hi"}],
        "chat_template_kwargs": {"bos_token": "<mine>", "messages": [], "add_generation_prompt": false}}));
    let text = files.chat_text(&Profile::reference(), &request).unwrap();
    assert!(text.starts_with("<mine><|start_header|>"), "{text}");
    assert!(text.contains("hi<|eot|>"), "{text}");
    assert!(text.ends_with("<|start_header|>assistant<|end_header|>\n\n"), "{text}");
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
