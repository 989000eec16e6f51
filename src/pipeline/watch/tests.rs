//! Tests of the watcher.

use super::{measure::fewest, *};
use crate::{
    snapshot::ServerKind,
    tokens::{ModelFiles, Profile},
};

fn wishes() -> Wishes {
    Wishes {
        alias: None,
        include_usage: false,
        max_tokens: None,
        ceiling: None,
        choices: 1,
        wanted: 1,
        prompt: Tokens(10),
        exact: true,
        counter: None,
    }
}

fn event(text: &str) -> Event {
    Event { raw: Bytes::from(format!("data: {text}\n\n")) }
}

fn token(text: &str) -> Event {
    event(&format!(
        r#"{{"id":"x","created":7,"model":"inner","choices":[{{"index":0,"delta":{{"content":"{text}"}}}}]}}"#
    ))
}

const FINISH: &str =
    r#"{"id":"x","model":"inner","choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}"#;
const USAGE: &str =
    r#"{"id":"x","model":"inner","choices":[],"usage":{"prompt_tokens":10,"completion_tokens":2}}"#;
const ROLE: &str = r#"{"choices":[{"index":0,"delta":{"role":"assistant","content":""}}]}"#;

#[test]
fn the_first_content_commits_not_the_role() {
    let mut watcher = Watcher::new(wishes());
    assert!(matches!(watcher.read(&event(ROLE)), Step::Pass(_)));
    assert!(!watcher.committed);
    let piece = token("hi");
    assert_eq!(watcher.read(&piece), Step::Pass(piece.raw.clone()));
    assert!(watcher.committed && watcher.content);
    assert_eq!(watcher.output(), Tokens(1));
}

#[test]
fn only_a_finished_answer_is_done() {
    let mut watcher = Watcher::new(wishes());
    assert_eq!(watcher.read(&event("[DONE]")), Step::Broken(faults::EMPTY));
    watcher.read(&token("hi"));
    assert_eq!(watcher.read(&event("[DONE]")), Step::Broken(faults::UNFINISHED));
    assert_eq!(watcher.end(), Err(faults::UNFINISHED));
    watcher.read(&event(FINISH));
    assert_eq!(watcher.end(), Ok(vec![DONE]));
    assert!(matches!(watcher.read(&event("[DONE]")), Step::Done(last) if last.len() == 1));
}

#[test]
fn an_answer_of_nothing_but_a_finish_is_an_answer() {
    let mut watcher = Watcher::new(wishes());
    watcher.read(&event(FINISH));
    assert!(watcher.committed);
    assert!(watcher.end().is_ok());
}

#[test]
fn usage_is_kept_from_callers_who_did_not_ask() {
    let mut watcher = Watcher::new(wishes());
    watcher.read(&token("a"));
    watcher.read(&event(FINISH));
    assert_eq!(watcher.read(&event(USAGE)), Step::Keep);
    let usage = Usage { prompt: Tokens(10), completion: Tokens(2), cached: Tokens::ZERO };
    assert_eq!(watcher.usage(), (usage, true));
}

#[test]
fn absurd_and_absent_usage_become_our_count() {
    let ask = Wishes { include_usage: true, ..wishes() };
    let mut watcher = Watcher::new(ask.clone());
    watcher.read(&token("a"));
    watcher.read(&event(FINISH));
    let absurd = r#"{"choices":[],"usage":{"prompt_tokens":-3,"completion_tokens":900000}}"#;
    let Step::Pass(raw) = watcher.read(&event(absurd)) else { panic!("kept") };
    let text = std::str::from_utf8(&raw).unwrap();
    assert!(
        text.contains(r#""prompt_tokens":10,"completion_tokens":1,"total_tokens":11"#),
        "{text}"
    );

    let mut watcher = Watcher::new(ask);
    watcher.read(&token("a"));
    watcher.read(&event(FINISH));
    let Step::Done(last) = watcher.read(&event("[DONE]")) else { panic!("not done") };
    assert_eq!(last.len(), 2);
    let text = std::str::from_utf8(&last[0]).unwrap();
    assert!(
        text.contains(r#""completion_tokens":1"#) && text.contains(r#""choices":[]"#),
        "{text}"
    );
}

#[test]
fn max_tokens_holds_when_the_server_ignores_it() {
    let ask = Wishes {
        max_tokens: Some(Tokens(3)),
        alias: Some("mine".into()),
        include_usage: true,
        ..wishes()
    };
    let mut watcher = Watcher::new(ask);
    for _ in 0..3 {
        assert!(matches!(watcher.read(&token("a")), Step::Pass(_)));
    }
    let Step::Cut(last) = watcher.read(&token("b")) else { panic!("not cut") };
    let text: String = last.iter().map(|raw| String::from_utf8_lossy(raw)).collect();
    assert!(text.contains(r#""finish_reason":"length""#), "{text}");
    assert!(text.contains(r#""id":"x""#) && text.contains(r#""model":"mine""#), "{text}");
    assert!(!text.contains("inner") && !text.contains(r#""b""#), "{text}");
    assert!(text.contains(r#""completion_tokens":3"#), "{text}");
    assert!(text.ends_with("data: [DONE]\n\n"), "{text}");
    assert_eq!(watcher.output(), Tokens(3));
}

/// Deep indentation is one token of many bytes; so is a word that is written in JSON escapes.
#[test]
fn long_pieces_of_one_token_do_not_use_up_the_limit() {
    for piece in [" ".repeat(64), "\\u6f22\\u5b57\\u6587".to_owned(), "\\n".repeat(20)] {
        let mut watcher = Watcher::new(Wishes { max_tokens: Some(Tokens(20)), ..wishes() });
        for _ in 0..20 {
            assert!(matches!(watcher.read(&token(&piece)), Step::Pass(_)), "{piece}");
        }
        assert_eq!(watcher.output(), Tokens(20), "{piece}");
    }
    assert_eq!(fewest("several ordinary words of a text"), 6);
}

/// A server can put megabytes into one event; the stream's thread must not tokenize them.
#[test]
fn only_text_of_a_usual_size_is_given_to_the_tokenizer() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/counts/chatml");
    let files = ModelFiles::load(std::path::Path::new(folder)).unwrap();
    let counter = Counter::new(Arc::new(files), Profile::of(ServerKind::Vllm));
    let count = |text: &str| count_text(text, Some(&counter)).get();
    let usual = "a b c ".repeat(1000);
    assert_eq!(Some(Tokens(count(&usual))), counter.output(&usual));
    assert_ne!(count(&usual), fewest(&usual));
    let long = "a b c ".repeat(COUNTED_MAX_BYTES / 6 + 1);
    assert_eq!(count(&long), fewest(&long));
}

#[test]
fn less_than_a_token_an_event_is_no_reason_to_cut() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("models/demo-chat");
    let files = Arc::new(crate::tokens::ModelFiles::load(&folder).unwrap());
    let profile = crate::tokens::Profile::of(crate::ids::ServerKind::Vllm);
    let counter = Arc::new(Counter::new(files, profile));
    let words = "The daemon counts tokens. ".repeat(4);
    let tokens = counter.output(&words).unwrap();
    let limit = Some(tokens);
    let ask = Wishes { max_tokens: limit, counter: Some(Arc::clone(&counter)), ..wishes() };
    let mut watcher = Watcher::new(ask.clone());
    for letter in words.chars() {
        assert!(matches!(watcher.read(&token(&letter.to_string())), Step::Pass(_)));
    }
    // But a server that ignores the limit is cut at it, however it cuts its pieces.
    let mut passed = String::new();
    let mut watcher = Watcher::new(ask);
    for letter in words.repeat(3).chars() {
        match watcher.read(&token(&letter.to_string())) {
            Step::Pass(_) => passed.push(letter),
            Step::Cut(_) => break,
            other => panic!("{other:?}"),
        }
    }
    let got = counter.output(&passed).unwrap();
    assert!(got >= tokens && got.get() <= tokens.get() + 2, "{got} of {tokens}");
}

#[test]
fn fewer_choices_than_asked_are_no_whole_answer() {
    let mut watcher = Watcher::new(Wishes { choices: 2, wanted: 2, ..wishes() });
    watcher.read(&token("a"));
    watcher.read(&event(FINISH));
    assert_eq!(watcher.read(&event("[DONE]")), Step::Broken(faults::UNFINISHED));
}

#[test]
fn a_server_that_stops_exactly_at_the_limit_is_left_alone() {
    let mut watcher = Watcher::new(Wishes { max_tokens: Some(Tokens(2)), ..wishes() });
    let done = r#"{"choices":[{"index":0,"delta":{"content":"b"},"finish_reason":"length"}]}"#;
    assert!(matches!(watcher.read(&token("a")), Step::Pass(_)));
    assert!(matches!(watcher.read(&event(done)), Step::Pass(_)));
    assert!(matches!(watcher.read(&event("[DONE]")), Step::Done(_)));
}

/// "Never stop" without `max_tokens` ends where the model's window does.
#[test]
fn the_window_is_the_limit_of_callers_who_set_none() {
    let mut watcher = Watcher::new(Wishes { ceiling: Some(Tokens(3)), ..wishes() });
    for _ in 0..3 {
        assert!(matches!(watcher.read(&token("a")), Step::Pass(_)));
    }
    let Step::Cut(last) = watcher.read(&token("b")) else { panic!("not cut") };
    assert!(String::from_utf8_lossy(&last[0]).contains(r#""finish_reason":"length""#));

    let both = Wishes { max_tokens: Some(Tokens(9)), ceiling: Some(Tokens(3)), ..wishes() };
    assert_eq!(both.limit(), Some(Tokens(9)));
}

fn two() -> Watcher {
    Watcher::new(Wishes { choices: 2, max_tokens: Some(Tokens(1)), ..wishes() })
}

fn part(index: u32, text: &str, finish: &str) -> String {
    format!(r#"{{"index":{index},"delta":{{"content":"{text}"}},"finish_reason":{finish}}}"#)
}

fn parts(parts: &[String]) -> Event {
    event(&format!(r#"{{"choices":[{}]}}"#, parts.join(",")))
}

/// Choice 1 begins when choice 0 is over; what choice 0 says after its end is dropped.
#[test]
fn choices_that_come_one_after_another_are_all_heard() {
    let mut watcher = two();
    watcher.read(&parts(&[part(0, "a", "null")]));
    let Step::Pass(end) = watcher.read(&parts(&[part(0, "b", "null")])) else { panic!("?") };
    assert!(String::from_utf8_lossy(&end).contains("length"));
    assert_eq!(watcher.read(&parts(&[part(0, "c", "null")])), Step::Keep);
    assert_eq!(watcher.read(&parts(&[part(0, "", "\"stop\"")])), Step::Keep);
    let last = parts(&[part(1, "d", "\"stop\"")]);
    assert_eq!(watcher.read(&last), Step::Pass(last.raw.clone()));
    assert!(matches!(watcher.read(&event("[DONE]")), Step::Done(_)));
    assert_eq!(watcher.output(), Tokens(2));
}

#[test]
fn a_cut_choice_takes_nothing_of_its_neighbour_along() {
    let mut watcher = two();
    watcher.read(&parts(&[part(0, "a", "null")]));
    let both = parts(&[part(0, "b", "null"), part(1, "c", "null")]);
    let Step::Pass(raw) = watcher.read(&both) else { panic!("not passed") };
    let data = Event { raw }.data().unwrap().into_owned();
    let value: serde_json::Value = serde_json::from_slice(&data).unwrap();
    assert_eq!(value["choices"][0]["finish_reason"], "length");
    assert_eq!(value["choices"][1]["delta"]["content"], "c");
    let again = parts(&[part(0, "b", "null"), part(1, "", "\"stop\"")]);
    let Step::Cut(last) = watcher.read(&again) else { panic!("not over") };
    let text: String = last.iter().map(|raw| String::from_utf8_lossy(raw)).collect();
    assert!(text.contains("stop") && !text.contains(r#""index":0"#), "{text}");
}

/// With `best_of` above `n` some choices never come.
#[test]
fn a_choice_without_end_is_not_listened_to_for_ever() {
    let mut watcher = two();
    let endless = (0..10_000).map(|_| watcher.read(&parts(&[part(0, "a", "null")])));
    assert!(endless.into_iter().any(|step| matches!(step, Step::Cut(_))));
}

/// A server that went on after the cut counts what nobody got.
#[test]
fn what_came_after_a_cut_is_not_charged() {
    let mut watcher = two();
    watcher.read(&parts(&[part(1, "d", "\"stop\"")]));
    let dropped = (0..20).map(|_| watcher.read(&parts(&[part(0, "a", "null")]))).count();
    assert_eq!(dropped, 20);
    let usage = r#"{"choices":[],"usage":{"prompt_tokens":12,"completion_tokens":21}}"#;
    watcher.read(&event(usage));
    let (usage, from_server) = watcher.usage();
    assert_eq!((usage.prompt, usage.completion), (Tokens(12), Tokens(2)));
    assert!(!from_server);
}

#[test]
fn events_of_several_lines_are_corrected_too() {
    let ask = Wishes { alias: Some("mine".into()), include_usage: true, ..wishes() };
    let mut watcher = Watcher::new(ask);
    watcher.read(&token("a"));
    let raw = Bytes::from_static(
        b"data: {\"model\":\"inner\",\ndata: \"choices\":[],\ndata: \"usage\":{\"prompt_tokens\":-1}}\n\n",
    );
    let Step::Pass(raw) = watcher.read(&Event { raw }) else { panic!("kept") };
    let text = std::str::from_utf8(&raw).unwrap();
    assert!(text.starts_with("data: {\"model\":\"mine\", \"choices\":[], \"usage\":"), "{text}");
    assert!(text.contains("\"prompt_tokens\":10") && text.ends_with("}\n\n"), "{text}");
    assert_eq!(text.lines().count(), 2);
}

#[test]
fn several_choices_end_one_by_one() {
    let mut watcher = Watcher::new(Wishes { choices: 2, max_tokens: Some(Tokens(1)), ..wishes() });
    let piece = |index: u32, rest: &str| {
        event(&format!(r#"{{"choices":[{{"index":{index},"delta":{{"content":"a"}}{rest}}}]}}"#))
    };
    watcher.read(&piece(0, ""));
    watcher.read(&piece(1, ""));
    assert!(matches!(watcher.read(&piece(0, "")), Step::Pass(_)));
    assert!(matches!(watcher.read(&piece(1, "")), Step::Cut(_)));
    assert_eq!(watcher.read(&piece(2, "")), Step::Broken(faults::GARBAGE));
}

#[test]
fn aliases_replace_the_servers_name_and_nothing_else() {
    let mut watcher = Watcher::new(Wishes { alias: Some("mine".into()), ..wishes() });
    let Step::Pass(raw) = watcher.read(&token("the inner life")) else { panic!("kept") };
    let text = std::str::from_utf8(&raw).unwrap();
    assert_eq!(text.replace("\"mine\"", "\"inner\"").as_bytes(), &token("the inner life").raw[..]);
    assert!(text.contains("the inner life"));
}
