//! `berthd screen`, text by text.

use super::{LIMIT, ScreenOptions, Told};
use crate::{
    classify::Owner,
    config::SecondStage,
    pipeline::screening::{Judged, Screening},
    screen::{Finding, INJECTION, Origin, bar_of_text},
};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use std::{fmt::Write, sync::Arc};
use tokio::{runtime::Runtime, time::Instant};

/// Screens texts.
pub(super) struct Texts {
    screening: Arc<Screening>,
    stage: SecondStage,
    origin: Origin,
}

#[derive(Deserialize)]
struct Line {
    #[serde(default)]
    id: Value,
    text: String,
    origin: Option<String>,
}

thread_local! {
    /// Each thread waits for its own text.
    static RUNTIME: Option<Runtime> =
        tokio::runtime::Builder::new_current_thread().enable_all().build().ok();
}

/// Waits for a future on this thread.
pub(super) fn wait<T>(work: impl Future<Output = T>) -> Option<T> {
    RUNTIME.with(|runtime| runtime.as_ref().map(|runtime| runtime.block_on(work)))
}

/// A line that could not be read.
pub(super) fn broken(line: &str, why: &str) -> Told {
    let id = serde_json::from_str::<Value>(line).ok();
    let id = id.and_then(|value| value.get("id").cloned()).unwrap_or(Value::Null);
    let json = json!({ "id": id, "error": why }).to_string();
    Told { text: format!("{why}\n"), json, broken: true }
}

impl Texts {
    pub(super) fn new(screening: Arc<Screening>, options: &ScreenOptions) -> Self {
        let stage = match (options.strict, options.first_only) {
            (true, _) => SecondStage::Always,
            (_, true) => SecondStage::Never,
            _ => SecondStage::Grey,
        };
        Self { screening, stage, origin: options.origin }
    }

    /// One line of JSON.
    pub(super) fn line(&self, line: &str) -> Told {
        let read: Line = match serde_json::from_str(line) {
            Ok(read) => read,
            Err(error) => return broken(line, &format!("not {{\"id\", \"text\"}}: {error}")),
        };
        match read.origin.as_deref().map(str::parse).transpose() {
            Ok(origin) => self.tell(read.id, &read.text, origin.unwrap_or(self.origin)),
            Err(_) => broken(line, "origin must be user, tool, assistant or system"),
        }
    }

    /// One text.
    pub(super) fn one(&self, text: &str) -> Told {
        self.tell(Value::Null, text, self.origin)
    }

    fn tell(&self, id: Value, text: &str, origin: Origin) -> Told {
        let begun = Instant::now();
        let inspected = self.screening.inspector.inspect(0, origin, text);
        let forms: Vec<&str> = inspected.forms.iter().map(String::as_str).collect();
        let judged = self.screening.judge_input(Owner::NOBODY, &forms, self.stage, begun + LIMIT);
        let Some(judged) = wait(judged) else { return broken("", "the runtime does not start") };
        if let (Some(failure), None) = (&judged.failure, judged.scores.injection) {
            return broken(&json!({ "id": id }).to_string(), &failure.to_string());
        }
        let score = judged.scores.injection.unwrap_or(0.0);
        let bars = self.screening.models.bars(self.stage);
        let usual = bar_of_text(bars.usual, bars.sure, judged.scores.windows, text.len());
        let rules = inspected.findings.iter().filter(|finding| finding.by_rule);
        let by_rule = rules.map(|finding| finding.score).any(|score| score >= 0.5);
        let label = if by_rule || score >= usual { INJECTION } else { "benign" };
        let json = json(id, label, &judged, &inspected.findings, inspected.forms.len());
        let text = plain(label, &judged, &inspected.findings, usual);
        Told { json, text, broken: false }
    }
}

fn rounded(score: f32) -> Value {
    // Enough digits to rank by, and no more.
    let score = (f64::from(score) * 1e6).round() / 1e6;
    Value::from(score)
}

fn json(id: Value, label: &str, judged: &Judged, findings: &[Finding], forms: usize) -> String {
    let scores = &judged.scores;
    let mut all = Map::new();
    for (name, score) in
        [("injection", scores.injection), ("first", scores.first), ("second", scores.second)]
    {
        if let Some(score) = score {
            all.insert(name.to_owned(), rounded(score));
        }
    }
    for (name, score) in &scores.others {
        all.insert(name.clone(), rounded(*score));
    }
    let findings: Vec<Value> = findings
        .iter()
        .map(|finding| {
            let span = finding.span.as_ref().map(|span| [span.start, span.end]);
            json!({ "label": finding.label, "kind": finding.kind, "score": rounded(finding.score), "span": span })
        })
        .collect();
    let score = rounded(scores.injection.unwrap_or(0.0));
    let mut told = Map::new();
    told.insert("id".to_owned(), id);
    told.insert("score".to_owned(), score);
    told.insert("label".to_owned(), label.into());
    told.insert("scores".to_owned(), all.into());
    told.insert("findings".to_owned(), findings.into());
    if forms > 1 {
        told.insert("decoded".to_owned(), (forms - 1).into());
    }
    if let Some(failure) = &judged.failure {
        told.insert("failure".to_owned(), failure.as_str().into());
    }
    Value::from(told).to_string()
}

fn plain(label: &str, judged: &Judged, findings: &[Finding], bar: f32) -> String {
    let scores = &judged.scores;
    let shown = |score: Option<f32>| {
        score.map_or_else(|| "not asked".to_owned(), |score| format!("{score:.3}"))
    };
    let mut text = format!(
        "{label}: {:.3} (counts from {bar:.3})\n  first stage   {}\n  second stage  {}\n",
        scores.injection.unwrap_or(0.0),
        shown(scores.first),
        shown(scores.second),
    );
    // Writing to a string cannot fail.
    for (name, score) in &scores.others {
        let _ = writeln!(text, "  {name:<13} {score:.3}");
    }
    for finding in findings {
        let place = finding.span.as_ref().map(|span| format!(" at {}..{}", span.start, span.end));
        let _ =
            writeln!(text, "  {} ({}){}", finding.label, finding.kind, place.unwrap_or_default());
    }
    text
}
