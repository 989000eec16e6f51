//! Decisions as people read them.

use super::{Table, sentence, span, text, whole};
use serde_json::Value;
use std::fmt::Write;

fn seconds(value: &Value, key: &str) -> Option<f64> {
    value.get(key).and_then(Value::as_f64)
}

fn time(seconds: Option<f64>) -> String {
    match seconds {
        None => "-".to_owned(),
        Some(seconds) if seconds.abs() < 1.0 => format!("{:.0} ms", seconds * 1000.0),
        Some(seconds) => format!("{seconds:.2} s"),
    }
}

/// What became of a request, in one line.
fn outcome(decision: &Value) -> String {
    let verdict = decision.get("verdict").unwrap_or(&Value::Null);
    let waited = time(seconds(verdict, "waited_s"));
    match text(verdict, "what") {
        "placed" => format!("placed on {} after {waited}", text(verdict, "server")),
        "refused" => format!("refused after {waited}: {}", text(verdict, "why")),
        _ => format!("waits: {}", text(verdict, "why")),
    }
}

/// The newest decisions.
pub fn list(decisions: &[Value]) -> String {
    if decisions.is_empty() {
        return "Nothing was decided since start.\n".to_owned();
    }
    let mut table = Table::new(&["AGO", "REQUEST", "TENANT", "TIER", "MODEL", "INPUT", "WHAT"]);
    for decision in decisions {
        table.row([
            span(seconds(decision, "age_s").unwrap_or(0.0)),
            text(decision, "request").to_owned(),
            text(decision, "tenant").to_owned(),
            text(decision, "tier").to_owned(),
            text(decision, "model").to_owned(),
            super::show(whole(decision, "/input_tokens")),
            outcome(decision),
        ]);
    }
    let mut out = String::new();
    table.write(&mut out);
    out
}

/// What screening said of a request and its answer.
fn screening(value: &Value, out: &mut String) {
    for (key, what) in [("input", "screened"), ("answer", "answer")] {
        let Some(said) = value.get(key) else { continue };
        let action = text(said, "action");
        let why = match said.get("label").and_then(Value::as_str) {
            Some(label) => format!("{label} ({})", text(said, "kind")),
            None => "nothing found".to_owned(),
        };
        let _ = write!(out, "{what:<11} {}, {}", sentence(action), sentence(&why));
        for (key, name) in [("score", "score"), ("quality", "quality")] {
            if let Some(score) = seconds(said, key) {
                let _ = write!(out, ", {name} {score:.3}");
            }
        }
        if let Some(failure) = said.get("failure").and_then(Value::as_str) {
            let _ = write!(out, "; a classifier did not speak: {}", sentence(failure));
        }
        out.push('\n');
    }
}

/// One decision, whole.
pub fn one(decision: &Value) -> String {
    let mut out = String::new();
    if decision.get("verdict").is_none() {
        let request = decision.pointer("/screening/request").unwrap_or(&Value::Null);
        let _ = writeln!(
            out,
            "{}: it never asked for a turn",
            sentence(request.as_str().unwrap_or("-"))
        );
        screening(decision.get("screening").unwrap_or(&Value::Null), &mut out);
        return out;
    }
    let name = |key: &str| sentence(text(decision, key));
    let age = span(seconds(decision, "age_s").unwrap_or(0.0));
    let _ = writeln!(
        out,
        "{}, {age} ago: model {}, tenant {}, tier {}",
        name("request"),
        name("model"),
        name("tenant"),
        name("tier")
    );
    let tokens = |pointer: &str| super::show(whole(decision, pointer));
    let strict = decision.get("strict").and_then(Value::as_bool).unwrap_or(false);
    let what = if strict { "for its first token" } else { "for its turn" };
    let _ = writeln!(
        out,
        "asked for   {} input tokens ({} blocks to look up), {} output tokens expected; {} {what}",
        tokens("/input_tokens"),
        tokens("/prefix_blocks"),
        tokens("/expected_output_tokens"),
        time(seconds(decision, "deadline_s")),
    );
    if let Some(outlook) = decision.get("outlook").filter(|outlook| outlook.is_object()) {
        let _ = writeln!(
            out,
            "expected    {} before it, a wait of {}, first token after {}",
            super::show(whole(outlook, "/ahead")),
            time(seconds(outlook, "wait_s")),
            time(seconds(outlook, "ttft_s")),
        );
    }
    let _ = writeln!(out, "outcome     {}", sentence(&outcome(decision)));
    let verdict = decision.get("verdict").unwrap_or(&Value::Null);
    if text(verdict, "what") == "placed" {
        let _ = writeln!(out, "why there   {}", sentence(text(verdict, "why")));
        if verdict.get("waited_for").is_some_and(Value::is_string) {
            let _ = writeln!(out, "why so late {}", sentence(text(verdict, "waited_for")));
        }
        if let Some(earlier @ 1..) = whole(verdict, "/earlier") {
            let _ = writeln!(out, "before      {earlier} other turns, which came to nothing");
        }
    }
    if let Some(said) = decision.get("screening") {
        screening(said, &mut out);
    }
    out.push_str("\nSERVERS  as they were when it came; the least cost takes it\n");
    let head = ["SERVER", "COST", "OWED", "PREFILL", "CACHED", "PLACED OF", "TAKES IT"];
    let mut table = Table::new(&head);
    for server in super::list(decision, "considered") {
        let bar = text(server, "bar");
        let kv = super::show(whole(server, "/kv_tokens"));
        table.row([
            text(server, "server").to_owned(),
            time(seconds(server, "cost_s")),
            time(seconds(server, "debt_s")),
            time(seconds(server, "prefill_s")),
            super::show(whole(server, "/cached_tokens")),
            format!("{} of {kv}", super::show(whole(server, "/placed_tokens"))),
            if bar.is_empty() || bar == "-" { "yes".to_owned() } else { format!("no: {bar}") },
        ]);
    }
    table.write(&mut out);
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_decision_is_told_with_its_servers_and_its_reason() {
        let decision = json!({
            "request": "req_1", "tenant": "a", "model": "m", "tier": "standard", "age_s": 3.0,
            "input_tokens": 1200, "expected_output_tokens": 200, "prefix_blocks": 75,
            "deadline_s": 2.0, "strict": true,
            "outlook": {"wait_s": 0.25, "ttft_s": 0.5, "ahead": 3},
            "considered": [
                {"server": "v0", "bar": null, "cost_s": 0.4, "debt_s": 0.1, "prefill_s": 0.2,
                 "cached_tokens": 640, "placed_tokens": 5000, "kv_tokens": 400000},
                {"server": "v1", "bar": "full", "cost_s": 0.9, "debt_s": 0.0, "prefill_s": 0.5,
                 "cached_tokens": 0, "placed_tokens": 399000, "kv_tokens": 400000}],
            "screening": {"request": "req_1",
                "input": {"action": "flag", "label": "injection", "kind": "model", "score": 0.97},
                "answer": {"quality": 0.5}},
            "verdict": {"what": "placed", "server": "v0", "why": "least expected cost", "waited_s": 0.3,
                        "waited_for": "others go before it", "earlier": 1}});
        let text = one(&decision);
        for part in [
            "req_1, 3 s ago: model m, tenant a, tier standard",
            "1200 input tokens (75 blocks to look up), 200 output tokens expected; 2.00 s for its first token",
            "3 before it, a wait of 250 ms, first token after 500 ms",
            "placed on v0 after 300 ms",
            "why there   least expected cost",
            "why so late others go before it",
            "before      1 other turns",
            "screened    flag, injection (model), score 0.970",
            "answer      -, nothing found, quality 0.500",
            "640     5000 of 400000    yes",
            "no: full",
        ] {
            assert!(text.contains(part), "{part}\n{text}");
        }
        let listed = list(&[decision]);
        assert!(listed.contains("req_1") && listed.contains("placed on v0"), "{listed}");
        assert!(list(&[]).contains("Nothing"));
    }

    #[test]
    fn what_was_refused_for_its_content_never_had_a_turn() {
        let text = one(&json!({"screening": {"request": "req_2",
            "input": {"action": "refuse", "label": "injection", "kind": "override-en", "score": 0.9}}}));
        assert!(text.contains("req_2: it never asked for a turn"), "{text}");
        assert!(text.contains("refuse, injection (override-en)"), "{text}");
    }
}
