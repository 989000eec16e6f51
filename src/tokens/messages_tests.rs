//! Messages as each kind of server prepares them.

use super::*;
use crate::snapshot::ServerKind;

fn prepared(kind: ServerKind, body: Value) -> Prepared {
    prepare(&Profile::of(kind), Wants::default(), body.as_object().unwrap()).unwrap()
}

#[test]
fn arguments_are_parsed_and_broken_ones_become_empty() {
    let call = |arguments: Value| json!({"function": {"name": "f", "arguments": arguments}});
    let calls = json!([
        call(json!("{\"a\": 1.0}")),
        call(json!("{broken")),
        call(json!("")),
        call(json!({"b": 2}))
    ]);
    let body = json!({"messages": [{"role": "assistant", "content": null, "tool_calls": calls, "extra": 1}]});
    let message = &prepared(ServerKind::Vllm, body).messages[0];
    let arguments: Vec<_> =
        (0..4).map(|at| &message["tool_calls"][at]["function"]["arguments"]).collect();
    assert_eq!(arguments, [&json!({"a": 1.0}), &json!({}), &json!({}), &json!({"b": 2})]);
    assert_eq!((&message["content"], message.get("extra")), (&json!(""), None));
}

#[test]
fn a_developers_message_joins_the_systems_at_the_front() {
    let body = json!({"messages": [
        {"role": "system", "content": "one"}, {"role": "user", "content": "hi"},
        {"role": "developer", "content": "two"},
    ]});
    let messages = prepared(ServerKind::Vllm, body.clone()).messages;
    assert_eq!(messages[0], json!({"role": "system", "content": "one\n\ntwo"}));
    assert_eq!(messages.len(), 2);
    let messages = prepared(ServerKind::LlamaCpp, body.clone()).messages;
    assert_eq!(messages[2], json!({"role": "system", "content": "two"}), "only renamed");
    assert_eq!(prepared(ServerKind::Sglang, body.clone()).messages[2]["role"], "developer");
}

#[test]
fn a_continued_answer_ends_as_each_server_ends_it() {
    let body = json!({"continue_final_message": true, "add_generation_prompt": false, "messages": [
        {"role": "user", "content": "hi"}, {"role": "assistant", "content": "so far"}]});
    let vllm = prepared(ServerKind::Vllm, body.clone());
    assert_eq!((vllm.ending, vllm.add_generation_prompt), (Ending::Cut, false));
    let sglang = prepared(ServerKind::Sglang, body.clone());
    assert_eq!((sglang.ending, sglang.messages.len()), (Ending::Apart("so far".into()), 1));
    assert!(sglang.add_generation_prompt);
    assert_eq!(prepared(ServerKind::LlamaCpp, body).ending, Ending::Text("so far".into()));
}

#[test]
fn llama_cpp_joins_parts_only_where_the_template_prints_no_lists() {
    let parts = |texts: &[&str]| -> Value {
        texts.iter().map(|text| json!({"type": "text", "text": text})).collect()
    };
    let body = json!({"messages": [
        {"role": "user", "content": parts(&["", "a", "", "b"])}, {"role": "user", "content": "c"},
        {"role": "tool", "content": parts(&["d", "e"])},
        {"role": "assistant", "content": parts(&["f", "g"])}]});
    let contents = |wants| {
        let profile = Profile::of(ServerKind::LlamaCpp);
        let prepared = prepare(&profile, wants, body.as_object().unwrap()).unwrap();
        assert_eq!(prepared.ending, Ending::Text("f\n\ng".into()));
        prepared.messages.iter().map(|message| message["content"].clone()).collect::<Vec<_>>()
    };
    let wants = Wants::default();
    assert_eq!(contents(wants), [json!("a\n\nb"), json!("c"), json!("d\ne")]);
    let both = Wants { prints_lists: true, ..wants };
    let sent = [parts(&["", "a", "", "b"]), json!("c"), parts(&["d", "e"])];
    assert_eq!(contents(both), sent);
    let only_lists = contents(Wants { strings_fail: true, ..both });
    assert_eq!(only_lists, [sent[0].clone(), parts(&["c"]), sent[2].clone()]);
}

#[test]
fn an_empty_answer_to_continue_opens_no_answer() {
    let body = json!({"messages": [
        {"role": "user", "content": "hi"}, {"role": "assistant", "content": ""}]});
    let llama = prepared(ServerKind::LlamaCpp, body);
    assert_eq!((llama.messages.len(), llama.add_generation_prompt), (1, false));
}

/// The real server printed `"description": ""`, and neither `strict` nor keys of the caller's own.
#[test]
fn llama_cpp_writes_three_keys_of_a_tool_and_fills_the_missing() {
    let body = json!({"messages": [{"role": "user", "content": "hi"}], "tools": [
        {"type": "function", "function": {"strict": true, "parameters": {"a": 1}, "name": "f", "x": 2}},
        {"type": "function", "function": {"name": "g"}}]});
    let wanted = json!([
        {"type": "function", "function": {"name": "f", "description": "", "parameters": {"a": 1}}},
        {"type": "function", "function": {"name": "g", "description": "", "parameters": {}}}]);
    let tools = prepared(ServerKind::LlamaCpp, body).tools.unwrap();
    assert_eq!(Value::Array(tools).to_string(), wanted.to_string(), "in this order");
}

/// The real server opens the answer for a list with an empty part: seen as three tokens too few.
#[test]
fn an_answer_begun_with_an_empty_part_is_begun() {
    let begun = |content: Value| {
        let body = json!({"messages": [
            {"role": "user", "content": "hi"}, {"role": "assistant", "content": content}]});
        prepared(ServerKind::LlamaCpp, body).add_generation_prompt
    };
    assert!(begun(json!([{"type": "text", "text": ""}])));
    assert!(!begun(json!([])) && !begun(json!(null)));
    let thought = json!({"messages": [{"role": "user", "content": "hi"},
        {"role": "assistant", "content": "a", "reasoning_content": "hm"}]});
    let profile = Profile::of(ServerKind::LlamaCpp);
    let refused = prepare(&profile, Wants::default(), thought.as_object().unwrap());
    assert!(matches!(refused, Err(CountError::NotAvailable(_))));
}

#[test]
fn the_cut_takes_what_a_trimming_template_would_have_trimmed() {
    assert_eq!(cut(&format!("a: so far {CUT_HERE}<end>")), Ok("a: so far "));
    assert_eq!(cut(&format!("a: so far {}<end>", CUT_HERE.trim_end())), Ok("a: so far"));
    assert!(cut("the template hides the message").is_err());
}

#[test]
fn reasoning_effort_reaches_templates_as_the_server_passes_it() {
    let body = json!({"messages": [{"role": "user", "content": "hi"}], "reasoning_effort": "none"});
    let vllm = prepared(ServerKind::Vllm, body.clone()).variables;
    assert_eq!(Value::Object(vllm), json!({"reasoning_effort": "none", "enable_thinking": false}));
    let llama = prepared(ServerKind::LlamaCpp, body.clone()).variables;
    assert_eq!(llama["enable_thinking"], json!(true), "always defined there");
    let reference = prepare(&Profile::reference(), Wants::default(), body.as_object().unwrap());
    assert!(reference.unwrap().variables.is_empty());
}

#[test]
fn a_body_without_messages_is_refused() {
    for body in [json!({}), json!({"messages": []}), json!({"messages": ["text"]})] {
        let refused = prepare(&Profile::reference(), Wants::default(), body.as_object().unwrap());
        assert_eq!(refused.err(), Some(CountError::NoMessages));
    }
}
