//! A whole answer's scores, for those who hold one: the command line, and later whoever must choose between
//! answers.

use super::{Answered, Guard, Plan, Screening};
use crate::{
    classify::Failure,
    config::Watch,
    screen::output::leak::{Secretive, WORDS},
};
use std::sync::Arc;
use tokio::time::Instant;

/// What an answer is worth, and what is wrong with it.
#[derive(Clone, Debug, PartialEq)]
pub struct Scored {
    /// The quality score, 0 to 1.
    pub quality: f32,
    /// The worst thing about it, or `ok`.
    pub label: String,
    /// Probabilities by label; 1 or 0 for what the exact checks say.
    pub scores: Vec<(String, f32)>,
    /// What was found: label and kind.
    pub findings: Vec<(String, String)>,
}

/// Labels from the worst down.
const WORST_FIRST: [&str; 8] =
    ["leak", "secret", "unsafe", "degenerate", "toxic", "personal", "refusal", "lowq"];

impl Screening {
    /// Scores an answer. `system` is the prompt that it must not repeat, `finish` why it ended.
    ///
    /// # Errors
    /// The classifier did not answer.
    pub async fn score(
        self: &Arc<Self>,
        text: &str,
        system: Option<&str>,
        finish: Option<&str>,
        until: Instant,
    ) -> Result<Scored, Failure> {
        let mut policy = self.settings.usual.output.clone();
        policy.watch = Watch::Observe;
        let own: Vec<&str> = system.into_iter().collect();
        let any = !own.is_empty() || !self.settings.canaries.is_empty();
        let secretive = any.then(|| Arc::new(Secretive::new(&own, &self.settings.canaries, WORDS)));
        let plan = Arc::new(Plan::new(Arc::clone(self), policy, secretive, false));
        let mut guard = Guard::new(Arc::clone(&plan), 1);
        let mut heads = Vec::new();
        if let Some(judge) = plan.output() {
            let windows_max = self.settings.windows_max;
            let (scores, _) = judge.judge(&[text], windows_max, until).await?;
            heads = scores;
        }
        let found = guard.exact(text, finish, heads.clone());
        let Answered { quality, .. } = guard.answered();
        let mut scores = Vec::new();
        let mut findings: Vec<(String, String)> = Vec::new();
        for one in found {
            findings.push((one.label.to_string(), one.kind.to_string()));
        }
        if let Some(judge) = plan.output() {
            for (label, score) in judge.model.plan().labels.iter().zip(&heads) {
                scores.push((label.clone(), *score));
                if plan.counts(label, *score) {
                    findings.push((label.clone(), "model".to_owned()));
                }
            }
        }
        let found = |label: &str| findings.iter().any(|(found, _)| found == label);
        for label in ["leak", "secret", "degenerate"] {
            scores.push((label.to_owned(), f32::from(u8::from(found(label)))));
        }
        let worst = WORST_FIRST.iter().find(|label| found(label));
        let label = (*worst.unwrap_or(&"ok")).to_owned();
        Ok(Scored { quality: quality.unwrap_or(0.0), label, scores, findings })
    }
}
