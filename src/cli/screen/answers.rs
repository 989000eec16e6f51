//! `berthd score`, answer by answer.

use super::{
    LIMIT, ScoreOptions, Told,
    texts::{broken, wait},
};
use crate::pipeline::screening::{Scored, Screening};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use std::{fmt::Write, sync::Arc};
use tokio::time::Instant;

/// Scores answers.
pub(super) struct Answers {
    screening: Arc<Screening>,
    system: Option<String>,
}

#[derive(Deserialize)]
struct Line {
    #[serde(default)]
    id: Value,
    text: String,
    /// What was asked. The models judge the answer by itself; it is read so that lines may have it.
    #[serde(default, rename = "prompt")]
    _prompt: Option<Value>,
    #[serde(default)]
    system: Option<String>,
    #[serde(default)]
    finish_reason: Option<String>,
}

impl Answers {
    pub(super) fn new(screening: Arc<Screening>, options: &ScoreOptions) -> Self {
        Self { screening, system: options.system.clone() }
    }

    /// One line of JSON.
    pub(super) fn line(&self, line: &str) -> Told {
        match serde_json::from_str::<Line>(line) {
            Ok(read) => {
                let system = read.system.as_deref().or(self.system.as_deref());
                self.tell(read.id, &read.text, system, read.finish_reason.as_deref())
            }
            Err(error) => broken(line, &format!("not {{\"id\", \"text\"}}: {error}")),
        }
    }

    /// One answer.
    pub(super) fn one(&self, text: &str) -> Told {
        self.tell(Value::Null, text, self.system.as_deref(), None)
    }

    fn tell(&self, id: Value, text: &str, system: Option<&str>, finish: Option<&str>) -> Told {
        let scored = self.screening.score(text, system, finish, Instant::now() + LIMIT);
        match wait(scored) {
            Some(Ok(scored)) => told(id, &scored),
            Some(Err(failure)) => broken(&json!({ "id": id }).to_string(), &failure.to_string()),
            None => broken("", "the runtime does not start"),
        }
    }
}

fn told(id: Value, scored: &Scored) -> Told {
    let round = |score: f32| (f64::from(score) * 1e6).round() / 1e6;
    let scores: Map<String, Value> =
        scored.scores.iter().map(|(name, score)| (name.clone(), round(*score).into())).collect();
    let findings: Vec<Value> = scored
        .findings
        .iter()
        .map(|(label, kind)| json!({ "label": label, "kind": kind }))
        .collect();
    let json = json!({
        "id": id, "score": round(scored.quality), "label": scored.label, "scores": scores, "findings": findings
    });
    let mut text = format!("{}: quality {:.3}\n", scored.label, scored.quality);
    // Writing to a string cannot fail.
    for (name, score) in &scored.scores {
        let _ = writeln!(text, "  {name:<11} {score:.3}");
    }
    for (label, kind) in &scored.findings {
        let _ = writeln!(text, "  {label} ({kind})");
    }
    Told { json: json.to_string(), text, broken: false }
}
