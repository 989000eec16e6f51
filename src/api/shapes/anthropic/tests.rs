//! What the servers' own code makes of the same requests, run once and written down here.

use super::*;
use crate::api::shapes::{InlineSystem, NoTrials};
use serde_json::json;

/// A template that takes system messages in one way, and knows some efforts.
struct Template(InlineSystem, &'static [&'static str]);

impl Trials for Template {
    fn inline_system(&self) -> Option<InlineSystem> {
        Some(self.0)
    }

    fn with_effort(&self, effort: &str) -> Option<Option<String>> {
        let known = self.1.contains(&effort);
        Some(Some(if known { effort.to_owned() } else { "any".to_owned() }))
    }
}

const PRINTS: Template = Template(InlineSystem::Printed, &["none"]);
const REFUSES: Template = Template(InlineSystem::Refused, &["none"]);

fn turned(kind: ServerKind, trials: &dyn Trials, body: &Value) -> Result<Value, Unfit> {
    to_chat(kind, body.as_object().unwrap(), trials).map(Value::Object)
}

fn weather() -> Value {
    json!({
        "model": "m",
        "system": [
            {"type": "text", "text": "x-anthropic-billing-header: cch=a1b2c;x"},
            {"type": "text", "text": "Be"}, {"type": "text", "text": " brief."}],
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "Weather?"}]},
            {"role": "assistant", "content": [
                {"type": "text", "text": "I look."},
                {"type": "tool_use", "id": "t1", "name": "weather", "input": {"city": "Z"}}]},
            {"role": "user", "content": [
                {"type": "text", "text": "before"},
                {"type": "tool_result", "tool_use_id": "t1", "content": [
                    {"type": "text", "text": "3"}, {"type": "text", "text": "rain"}]},
                {"type": "text", "text": "after"}, {"type": "text", "text": ""}]},
            {"role": "system", "content": "Hurry."}],
        "tools": [{"name": "weather", "input_schema": {"properties": {}}}],
    })
}

fn called() -> Value {
    let function = json!({"name": "weather", "arguments": "{\"city\":\"Z\"}"});
    json!([{"id": "t1", "type": "function", "function": function}])
}

#[test]
fn vllm_puts_results_first_and_systems_where_the_template_takes_them() {
    let tool = json!({"name": "weather", "description": null,
        "parameters": {"properties": {}, "type": "object"}});
    let mut messages = vec![
        json!({"role": "system", "content": "Be brief."}),
        json!({"role": "user", "content": "Weather?"}),
        json!({"role": "assistant", "tool_calls": called(), "content": "I look."}),
        json!({"role": "tool", "tool_call_id": "t1", "content": "3\nrain"}),
        json!({"role": "user", "content": [
            {"type": "text", "text": "before"}, {"type": "text", "text": "after"}]}),
        json!({"role": "system", "content": "Hurry."}),
    ];
    let wanted = |messages: &[Value]| json!({"messages": messages, "tools": [{"type": "function", "function": tool}], "model": "m"});
    let kept = turned(ServerKind::Vllm, &PRINTS, &weather()).unwrap();
    assert_eq!(kept, wanted(&messages));
    messages.pop();
    messages[0] = json!({"role": "system", "content": "Be brief.Hurry."});
    let merged = turned(ServerKind::Vllm, &REFUSES, &weather()).unwrap();
    assert_eq!(merged, wanted(&messages));
    let blind = turned(ServerKind::Vllm, &NoTrials, &weather());
    assert!(matches!(blind, Err(Unfit::Unknown(_))), "the template decides");
}

#[test]
fn sglang_keeps_the_order_and_the_header() {
    let tool = json!({"name": "weather", "description": "",
        "parameters": {"properties": {}, "type": "object"}, "strict": false});
    let text = |text: &str| json!({"type": "text", "text": text});
    let header = "x-anthropic-billing-header: cch=a1b2c;x\nBe\n brief.";
    let mut messages = vec![
        json!({"role": "system", "content": header}),
        json!({"role": "user", "content": "Weather?"}),
        json!({"role": "assistant", "tool_calls": called(), "content": "I look."}),
        json!({"role": "user", "content": "before"}),
        json!({"role": "tool", "tool_call_id": "t1", "content": [text("3"), text("rain")]}),
        json!({"role": "user", "content": [text("after"), text("")]}),
        json!({"role": "system", "content": "Hurry."}),
    ];
    let wanted = |messages: &[Value]| {
        json!({"messages": messages, "tools": [{"type": "function", "function": tool}],
            "tool_choice": "auto", "model": "m"})
    };
    let kept = turned(ServerKind::Sglang, &PRINTS, &weather()).unwrap();
    assert_eq!(kept, wanted(&messages));
    messages.pop();
    messages[0] = json!({"role": "system", "content": format!("{header}\nHurry.")});
    for shy in [InlineSystem::Refused, InlineSystem::Dropped] {
        let merged = turned(ServerKind::Sglang, &Template(shy, &[]), &weather()).unwrap();
        assert_eq!(merged, wanted(&messages));
    }
}

#[test]
fn llama_cpp_puts_results_last_and_blanks_the_stamp() {
    let text = |text: &str| json!({"type": "text", "text": text});
    let wanted = json!([
        {"role": "system", "content": "x-anthropic-billing-header: cch=fffff;xBe brief."},
        {"role": "user", "content": [text("Weather?")]},
        {"role": "assistant", "content": [text("I look.")], "tool_calls": called()},
        {"role": "user", "content": [text("before"), text("after"), text("")]},
        {"role": "tool", "tool_call_id": "t1", "content": "3rain"},
        {"role": "system", "content": "Hurry."},
    ]);
    let chat = turned(ServerKind::LlamaCpp, &NoTrials, &weather()).unwrap();
    assert_eq!(chat["messages"], wanted);
    let tool = json!({"name": "weather", "description": "", "parameters": {"properties": {}}});
    assert_eq!(chat["tools"], json!([{"type": "function", "function": tool}]));
}

#[test]
fn earlier_thinking_goes_where_each_server_puts_it() {
    let body = json!({"messages": [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": [
            {"type": "thinking", "thinking": "a", "signature": "s"},
            {"type": "redacted_thinking", "data": "zz"},
            {"type": "thinking", "thinking": "b", "signature": "s"}]}]});
    let last = |kind| turned(kind, &NoTrials, &body).unwrap()["messages"][1].clone();
    assert_eq!(last(ServerKind::Vllm), json!({"role": "assistant", "reasoning": "ab"}));
    let llama = json!({"role": "assistant", "content": "", "reasoning_content": "ab"});
    assert_eq!(last(ServerKind::LlamaCpp), llama);
    let sglang = turned(ServerKind::Sglang, &NoTrials, &body);
    assert!(matches!(sglang, Err(Unfit::Unknown(_))), "its flags decide");
}

#[test]
fn disabled_thinking_is_the_least_effort_that_the_template_tells_apart() {
    let asked = |trials: &dyn Trials, thinking: Value, effort: Value| {
        let body = json!({"messages": [{"role": "user", "content": "hi"}],
            "thinking": thinking, "output_config": {"effort": effort}});
        turned(ServerKind::Vllm, trials, &body).unwrap().get("reasoning_effort").cloned()
    };
    let off = || json!({"type": "disabled"});
    assert_eq!(asked(&PRINTS, off(), json!("high")), Some(json!("none")));
    let ignores = Template(InlineSystem::Printed, &[]);
    assert_eq!(asked(&ignores, off(), json!(null)), Some(json!("low")));
    let on = json!({"type": "enabled", "budget_tokens": 2000});
    assert_eq!(asked(&NoTrials, on, json!("high")), Some(json!("high")));
    let sglang = json!({"messages": [{"role": "user", "content": "hi"}], "thinking": off()});
    assert!(matches!(turned(ServerKind::Sglang, &PRINTS, &sglang), Err(Unfit::Unknown(_))));
}

#[test]
fn blocks_that_a_server_refuses_or_hides_are_not_guessed_at() {
    let with = |block: Value| json!({"messages": [{"role": "user", "content": [block]}]});
    let document = with(json!({"type": "document", "source": {"type": "text", "data": "x"}}));
    for kind in [ServerKind::Vllm, ServerKind::Sglang] {
        assert!(matches!(turned(kind, &PRINTS, &document), Err(Unfit::Unknown(_))));
    }
    let dropped = turned(ServerKind::LlamaCpp, &PRINTS, &document).unwrap();
    assert_eq!(dropped["messages"], json!([]), "it passes over what it does not know");
    let novel = with(json!({"type": "hologram"}));
    for kind in ServerKind::ALL {
        assert!(matches!(turned(kind, &PRINTS, &novel), Err(Unfit::Unknown(_))));
    }
    let image = with(json!({"type": "image", "source":
        {"type": "base64", "media_type": "image/png", "data": "AAAA"}}));
    let url = json!({"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}});
    for kind in ServerKind::ALL {
        let chat = turned(kind, &PRINTS, &image).unwrap();
        assert_eq!(chat["messages"][0]["content"], json!([url]), "{kind:?}");
    }
}

#[test]
fn what_is_wrong_names_its_place() {
    let user = |content: Value| json!({"messages": [{"role": "user", "content": content}]});
    let cases = [
        (json!({}), Reason::MissingField, "messages"),
        (json!({"messages": []}), Reason::OutOfRange, "messages"),
        (json!({"messages": "hi"}), Reason::InvalidType, "messages"),
        (json!({"messages": [1]}), Reason::InvalidType, "messages"),
        (json!({"messages": [{"content": "hi"}]}), Reason::MissingField, "messages[0].role"),
        (
            json!({"messages": [{"role": "tool", "content": "hi"}]}),
            Reason::OutOfRange,
            "messages[0].role",
        ),
        (json!({"messages": [{"role": "user"}]}), Reason::MissingField, "messages[0].content"),
        (user(json!(5)), Reason::InvalidType, "messages[0].content"),
        (user(json!(["x"])), Reason::InvalidType, "messages[0].content[0]"),
        (user(json!([{"text": "x"}])), Reason::MissingField, "messages[0].content[0].type"),
        (
            user(json!([{"type": "text", "text": 1}])),
            Reason::InvalidType,
            "messages[0].content[0].text",
        ),
        (
            user(json!([{"type": "tool_result", "content": [{"type": "text"}]}])),
            Reason::InvalidType,
            "messages[0].content[0].content[0].text",
        ),
        (
            json!({"messages": [{"role": "user", "content": "x"}], "system": 5}),
            Reason::InvalidType,
            "system",
        ),
        (
            json!({"messages": [{"role": "user", "content": "x"}], "tools": [{"input_schema": {}}]}),
            Reason::MissingField,
            "tools[0].name",
        ),
    ];
    for (body, reason, param) in cases {
        for kind in ServerKind::ALL {
            let Err(Unfit::Wrong(refusal)) = turned(kind, &PRINTS, &body) else { panic!("{body}") };
            assert_eq!((refusal.reason, refusal.param.as_deref()), (reason, Some(param)), "{body}");
        }
    }
}
