//! What the servers' own code makes of the same request, run once and written down here.

use super::*;
use crate::api::shapes::{InlineSystem, NoTrials};
use serde_json::json;

struct Template(InlineSystem);

impl Trials for Template {
    fn inline_system(&self) -> Option<InlineSystem> {
        Some(self.0)
    }

    fn with_effort(&self, _: &str) -> Option<Option<String>> {
        None
    }
}

fn turned(kind: ServerKind, trials: &dyn Trials, body: &Value) -> Result<Value, Unfit> {
    to_chat(kind, body.as_object().unwrap(), trials).map(Value::Object)
}

fn weather() -> Value {
    json!({
        "model": "m", "instructions": "Be brief.", "reasoning": {"effort": "low"},
        "input": [
            {"role": "developer", "content": "Hurry."},
            {"role": "user", "content": [{"type": "input_text", "text": "Weather?"}]},
            {"type": "reasoning", "summary": [{"type": "summary_text", "text": "short"}],
                "content": [{"type": "reasoning_text", "text": "long"}]},
            {"type": "message", "role": "assistant", "content": [
                {"type": "output_text", "text": "I look."}, {"type": "output_text", "text": "Now."}]},
            {"type": "function_call", "call_id": "c1", "name": "weather", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "c1", "output": "rain"}],
        "tools": [{"type": "function", "name": "weather", "parameters": {"type": "object"}},
            {"type": "web_search"}],
    })
}

fn calls() -> Value {
    json!([{"id": "c1", "function": {"name": "weather", "arguments": "{}"}, "type": "function"}])
}

fn tools() -> Value {
    let tool = json!({"name": "weather", "description": null, "parameters": {"type": "object"}});
    json!([{"type": "function", "function": tool}])
}

#[test]
fn vllm_joins_one_turn_and_takes_the_first_part() {
    let wanted = json!({
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "developer", "content": "Hurry."},
            {"role": "user", "content": [{"type": "input_text", "text": "Weather?"}]},
            {"role": "assistant", "reasoning": "long", "content": "I look.", "tool_calls": calls()},
            {"role": "tool", "content": "rain", "tool_call_id": "c1"}],
        "tools": tools(), "model": "m", "reasoning_effort": "low"});
    assert_eq!(turned(ServerKind::Vllm, &NoTrials, &weather()), Ok(wanted));
}

#[test]
fn sglang_labels_developers_and_gathers_systems_for_shy_templates() {
    let text = |text: &str| json!({"type": "text", "text": text});
    let rest = [
        json!({"role": "user", "content": [text("Weather?")]}),
        json!({"role": "assistant", "reasoning_content": "short",
            "content": [text("I look."), text("Now.")], "tool_calls": calls()}),
        json!({"role": "tool", "tool_call_id": "c1", "content": "rain"}),
    ];
    let system = |text: &str| json!({"role": "system", "content": text});
    let messages = |trials: &dyn Trials| {
        let mut chat = turned(ServerKind::Sglang, trials, &weather()).unwrap();
        assert_eq!((&chat["tools"], &chat["tool_choice"]), (&tools(), &json!("auto")));
        chat["messages"].take()
    };
    let label = "Developer instructions:\nHurry.";
    let inline: Vec<Value> =
        [system("Be brief."), system(label)].into_iter().chain(rest.clone()).collect();
    assert_eq!(messages(&Template(InlineSystem::Printed)), json!(inline));
    let front = system(&format!("Be brief.\n\n{label}"));
    let gathered: Vec<Value> = std::iter::once(front).chain(rest).collect();
    assert_eq!(messages(&Template(InlineSystem::Dropped)), json!(gathered));
    let blind = turned(ServerKind::Sglang, &NoTrials, &weather());
    assert!(matches!(blind, Err(Unfit::Unknown(_))));
}

#[test]
fn llama_cpp_keeps_all_parts_and_always_writes_instructions() {
    let text = |text: &str| json!({"type": "text", "text": text});
    let body = json!({"instructions": null, "input": [
        {"type": "message", "role": "user", "content": "Weather?", "status": "completed"},
        {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "long"}]},
        {"type": "function_call", "call_id": "c1", "name": "weather", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c1",
            "output": [{"type": "input_text", "text": "rain"}]},
        {"type": "message", "role": "assistant", "content": [
            {"type": "output_text", "text": "a"}, {"type": "refusal", "refusal": "b"}]}]});
    let wanted = json!([
        {"role": "system", "content": ""},
        {"role": "user", "content": [text("Weather?")]},
        {"role": "assistant", "content": [], "reasoning_content": "long", "tool_calls": calls()},
        {"role": "tool", "content": [text("rain")], "tool_call_id": "c1"},
        {"role": "assistant", "content": [text("a"), {"type": "refusal", "refusal": "b"}]}]);
    let chat = turned(ServerKind::LlamaCpp, &NoTrials, &body).unwrap();
    assert_eq!(chat["messages"], wanted);
}

#[test]
fn an_answer_that_broke_off_is_continued_by_vllm() {
    let with = |status: &str| {
        let body = json!({"input": [{"role": "user", "content": "hi"}, {"type": "message",
            "role": "assistant", "status": status, "content": [{"type": "output_text", "text": "so"}]}]});
        turned(ServerKind::Vllm, &NoTrials, &body).unwrap()
    };
    assert_eq!(with("incomplete")["continue_final_message"], json!(true));
    assert_eq!(with("incomplete")["add_generation_prompt"], json!(false));
    assert!(with("completed").get("continue_final_message").is_none());
}

#[test]
fn what_only_the_server_knows_is_not_counted() {
    let bodies = [
        json!({"input": "hi", "previous_response_id": "resp_1"}),
        json!({"input": "hi", "prompt": {"id": "p"}}),
        json!({"input": [{"type": "reasoning", "summary": [], "encrypted_content": "zz"}]}),
        json!({"input": [{"type": "item_reference", "id": "x"}]}),
        json!({"input": "hi", "tools": [{"type": "custom", "name": "x"}]}),
    ];
    for body in bodies {
        for kind in ServerKind::ALL {
            let unfit = turned(kind, &NoTrials, &body);
            assert!(matches!(unfit, Err(Unfit::Unknown(_))), "{body}: {unfit:?}");
        }
    }
}

#[test]
fn what_is_wrong_names_its_place() {
    let cases = [
        (json!({}), Reason::MissingField, "input"),
        (json!({"input": 5}), Reason::InvalidType, "input"),
        (json!({"input": []}), Reason::OutOfRange, "input"),
        (json!({"input": [{"content": "x"}]}), Reason::InvalidType, "input[0].role"),
        (json!({"input": [{"role": "tool", "content": "x"}]}), Reason::OutOfRange, "input[0].role"),
        (json!({"input": [{"role": "user"}]}), Reason::InvalidType, "input[0].content"),
        (
            json!({"input": [{"type": "function_call", "call_id": "c", "name": "f"}]}),
            Reason::InvalidType,
            "input[0].arguments",
        ),
        (
            json!({"input": [{"type": "function_call_output", "call_id": "c"}]}),
            Reason::InvalidType,
            "input[0].output",
        ),
        (json!({"input": "x", "instructions": 5}), Reason::InvalidType, "instructions"),
        (json!({"input": "x", "tools": [{"name": "f"}]}), Reason::MissingField, "tools[0].type"),
    ];
    for (body, reason, param) in cases {
        for kind in ServerKind::ALL {
            let Err(Unfit::Wrong(refusal)) = turned(kind, &NoTrials, &body) else {
                panic!("{body}")
            };
            assert_eq!((refusal.reason, refusal.param.as_deref()), (reason, Some(param)), "{body}");
        }
    }
}
