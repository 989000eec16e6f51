//! A whole answer's scores, for those who hold one: the command line, and later whoever must choose between
//! answers.

use super::{Answered, Guard, Plan, Screening, judge::add};
use crate::{
    classify::{Failure, Owner},
    config::Watch,
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
        let secretive = self.secretive_of(&own);
        let plan = Arc::new(Plan::new(Arc::clone(self), policy, secretive, false, Owner::NOBODY));
        let mut guard = Guard::new(Arc::clone(&plan), 1);
        let (mut said, mut heads) = (Vec::new(), Vec::new());
        for judge in plan.judges() {
            let (scores, _) =
                judge.judge(plan.owner, &[text], self.settings.windows_max, until).await?;
            if self.models.is_ours(judge) {
                heads.clone_from(&scores);
            }
            said.push((judge, scores));
        }
        let found = guard.exact(text, finish, heads);
        let Answered { quality, .. } = guard.answered();
        let mut scores = Vec::new();
        let mut findings: Vec<(String, String)> = Vec::new();
        for one in found {
            findings.push((one.label.to_string(), one.kind.to_string()));
        }
        for (judge, heads) in said {
            for (label, score) in judge.model.plan().labels.iter().zip(heads) {
                if plan.counts(judge, label, score) {
                    findings.push((label.clone(), self.models.kind_of(judge)));
                }
                add(&mut scores, label, score);
            }
        }
        let found = |label: &str| findings.iter().any(|(found, _)| found == label);
        for label in ["leak", "secret", "degenerate"] {
            scores.push((label.to_owned(), f32::from(u8::from(found(label)))));
        }
        let known = WORST_FIRST.into_iter().find(|label| found(label));
        // A label that only the operator's own model has.
        let other = findings.first().map(|(label, _)| label.as_str());
        let label = known.or(other).unwrap_or("ok").to_owned();
        Ok(Scored { quality: quality.unwrap_or(0.0), label, scores, findings })
    }
}
