//! The part of the status table that tells of screening.

use super::{Table, list, sentence, show, shown, text, whole};
use serde_json::Value;
use std::fmt::Write;

/// Screening, where anything is screened; what needs a person stands on top as well.
pub(super) fn write(report: &Value, out: &mut String) {
    let Some(told) = report.get("screening") else { return };
    let models = list(told, "models");
    if models.is_empty() && text(told, "input") == "off" && text(told, "output") == "off" {
        return;
    }
    let _ = writeln!(
        out,
        "\nSCREENING  requests: {}, answers: {}, {} policies, {} rules",
        shown(text(told, "input")),
        shown(text(told, "output")),
        show(whole(told, "/policies")),
        show(whole(told, "/rules")),
    );
    let mut table = Table::new(&["CLASSIFIER", "STATE", "RUNTIME", "TEXTS", "WAITING", "FAILURES"]);
    for model in models {
        let state = match model.get("why").and_then(Value::as_str) {
            Some(why) if text(model, "state") == "absent" => format!("ABSENT: {why}"),
            _ => text(model, "state").to_owned(),
        };
        table.row([
            text(model, "name").to_owned(),
            state,
            text(model, "runtime").to_owned(),
            show(whole(model, "/texts")),
            show(whole(model, "/waiting")),
            show(whole(model, "/failures")),
        ]);
    }
    table.write(out);
}

/// Classifiers that need a person.
pub(super) fn troubles(report: &Value) -> Vec<String> {
    let models = report.get("screening").map_or(&[] as &[Value], |told| list(told, "models"));
    let troubled = models.iter().filter(|model| text(model, "state") != "ready");
    let tell = |model: &Value| {
        let (name, state) = (shown(text(model, "name")), text(model, "state").to_uppercase());
        format!("classifier {name}: {}: {}", shown(&state), sentence(text(model, "why")))
    };
    troubled.map(tell).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn an_absent_classifier_stands_on_top_and_silence_where_nothing_is_screened() {
        let told = |state: &str| {
            json!({"screening": {"input": "flag", "output": "off", "policies": 1, "rules": 0, "models": [
                {"name": "injection-a", "state": state, "runtime": "onnx", "texts": 3, "waiting": 0,
                 "failures": 1, "why": "no file"}]}})
        };
        assert_eq!(troubles(&told("absent")), ["classifier injection-a: ABSENT: no file"]);
        assert_eq!(troubles(&told("ready")), Vec::<String>::new());
        let mut out = String::new();
        write(&told("absent"), &mut out);
        assert!(
            out.contains("SCREENING  requests: flag, answers: off, 1 policies, 0 rules"),
            "{out}"
        );
        assert!(out.contains("ABSENT: no file"), "{out}");
        let mut out = String::new();
        write(&json!({"screening": {"input": "off", "output": "off", "models": []}}), &mut out);
        assert_eq!(out, "");
    }
}
