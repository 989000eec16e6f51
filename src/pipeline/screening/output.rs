//! Answers before the checks and the classifier, while they pass: observed, held back or cut.

use super::{
    Judge, Screening, quality,
    strand::{DEGENERATE, LEAK, Strand},
};
use crate::{
    api::{
        event::{self, Choice, Said},
        stream::Event,
    },
    classify::Owner,
    config::{Action, OnFailure, OutputPolicy, Task, Watch},
    error::{Reason, Refusal},
    screen::{PERSONAL, SECRET, output::leak::Secretive},
};
use bytes::Bytes;
use serde::Serialize;
use std::{borrow::Cow, collections::VecDeque, sync::Arc, time::Duration};
use tokio::time::Instant;

/// How a request's answers are watched.
#[derive(Debug)]
pub struct Plan {
    pub(super) screening: Arc<Screening>,
    pub(super) policy: OutputPolicy,
    pub(super) secretive: Option<Arc<Secretive>>,
    /// New bytes between two looks of the classifier.
    pub(super) step_bytes: usize,
    /// The caller asked for JSON.
    pub(super) json: bool,
    /// Whose turns it takes.
    pub(super) owner: Owner,
}

/// Something that was found in an answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Found {
    /// What it is.
    pub label: Cow<'static, str>,
    /// What exactly; for records, never for callers.
    pub kind: Cow<'static, str>,
    /// How sure, 0 to 1.
    pub score: f32,
}

/// Why an answer does not go on.
#[derive(Clone, Debug, PartialEq)]
pub struct Stopped(pub Found);

/// What came of watching an answer, for its record.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Answered {
    /// The strongest thing that was found.
    pub label: Option<String>,
    /// What exactly.
    pub kind: Option<String>,
    /// What was done about it.
    pub action: Option<Action>,
    /// The quality score, 0 to 1.
    pub quality: Option<f32>,
    /// Why a classifier did not speak.
    pub failure: Option<&'static str>,
}

impl Found {
    pub(super) fn new(
        label: impl Into<Cow<'static, str>>,
        kind: impl Into<Cow<'static, str>>,
        score: f32,
    ) -> Self {
        Self { label: label.into(), kind: kind.into(), score }
    }
}

impl Stopped {
    /// What the caller hears: the class of the reason, not the rule.
    pub fn refusal(&self) -> Refusal {
        match &*self.0.label {
            DEGENERATE => {
                let text = "The answer was stopped because it no longer made sense. Ask again, or differently.";
                Refusal::new(Reason::OutputDegenerate, text)
            }
            UNCHECKED => {
                let text = "The answer could not be checked and was stopped. Retry in a moment.";
                Refusal::new(Reason::ScreenUnavailable, text).retry_after(Duration::from_secs(2))
            }
            _ => {
                let text = "The answer was stopped by the operator's content policy.";
                Refusal::new(Reason::OutputScreened, text)
            }
        }
    }
}

/// The label of answers that no classifier could judge, where the policy lets none of those pass.
const UNCHECKED: &str = "unchecked";

/// Longest time that a whole answer which is only measured waits for its score.
const OBSERVED_MAX: Duration = Duration::from_millis(20);

/// Bytes of a token, about: 48 tokens of lag are some 190 bytes of English.
const TOKEN_BYTES: usize = 4;

impl Plan {
    /// A plan for one request.
    pub fn new(
        screening: Arc<Screening>,
        policy: OutputPolicy,
        secretive: Option<Arc<Secretive>>,
        json: bool,
        owner: Owner,
    ) -> Self {
        // Two looks within the lag: the second is on its way when the first is needed.
        let step_bytes = match policy.watch {
            Watch::Hold => (policy.hold_tokens as usize * TOKEN_BYTES / 2).max(32),
            _ => usize::MAX,
        };
        Self { screening, policy, secretive, step_bytes, json, owner }
    }

    pub(super) fn output(&self) -> Option<&Judge> {
        self.screening.models.output.as_ref()
    }

    /// Everybody who judges answers.
    pub(super) fn judges(&self) -> impl Iterator<Item = &Judge> {
        self.screening.models.of_answers()
    }

    /// Whether a classifier's score counts.
    pub(super) fn counts(&self, judge: &Judge, label: &str, score: f32) -> bool {
        let own = self.policy.thresholds.get(label).map(|bar| *bar as f32);
        let usual = || self.screening.models.bar_of_answer(judge, label);
        // A label of ours without a threshold is a measure, not a finding.
        own.or_else(usual).is_some_and(|bar| score >= bar)
    }

    /// What is done about something that was found.
    fn action(&self, found: &Found) -> Action {
        let named = |key: &str| self.policy.actions.get(key).copied();
        let usual = || match &*found.label {
            LEAK | SECRET | DEGENERATE => Action::Refuse,
            // What a small classifier thinks is a reason to look, and to stop only for who looked.
            "unsafe" | "toxic" => Action::Flag,
            PERSONAL => Action::Shadow,
            "refusal" | "lowq" => Action::Off,
            // What the operator's own model says.
            _ => Action::Flag,
        };
        let wished = named(&found.kind).or_else(|| named(&found.label)).unwrap_or_else(usual);
        match self.policy.watch {
            Watch::Off => Action::Off,
            Watch::Observe => wished.min(Action::Shadow),
            // What has been said cannot be mended in a stream.
            Watch::Hold | Watch::Cut if wished == Action::Sanitise => Action::Refuse,
            Watch::Hold | Watch::Cut => wished,
        }
    }

    fn budget(&self) -> Duration {
        self.screening.settings.budget
    }
}

/// An event that waits for the checks.
struct Held {
    raw: Bytes,
    /// How long each choice's text was with it.
    ends: Vec<usize>,
    since: Instant,
}

/// Watches one answer.
pub struct Guard {
    plan: Arc<Plan>,
    strands: Vec<Strand>,
    held: VecDeque<Held>,
    answered: Answered,
}

impl Guard {
    /// A guard at the beginning of an answer.
    pub fn new(plan: Arc<Plan>, choices: usize) -> Self {
        let strands = (0..choices.max(1)).map(|_| Strand::new(&plan)).collect();
        Self { plan, strands, held: VecDeque::new(), answered: Answered::default() }
    }

    /// Books what was found. `Err`: the answer ends here.
    fn note(&mut self, found: Vec<Found>) -> Result<(), Stopped> {
        for found in found {
            let action = self.plan.action(&found);
            if action == Action::Off {
                continue;
            }
            if self.answered.action.is_none_or(|before| action > before) {
                self.answered.action = Some(action);
                self.answered.label = Some(found.label.to_string());
                self.answered.kind = Some(found.kind.to_string());
            }
            if action == Action::Refuse {
                return Err(Stopped(found));
            }
        }
        Ok(())
    }

    /// Takes an event on its way to the caller. Gives what may go on now, byte for byte as it came.
    ///
    /// # Errors
    /// Something was found that ends the answer; what is held back is gone.
    pub async fn pass(&mut self, event: &Event, raw: Bytes) -> Result<Vec<Bytes>, Stopped> {
        self.read(event)?;
        if self.plan.policy.watch != Watch::Hold {
            self.hear()?;
            return Ok(vec![raw]);
        }
        let ends = self.strands.iter().map(|strand| strand.bytes).collect();
        self.held.push_back(Held { raw, ends, since: Instant::now() });
        self.hear()?;
        if self.lag_bytes() > self.plan.policy.hold_tokens as usize * TOKEN_BYTES {
            self.judge_all().await?;
        }
        Ok(self.free())
    }

    /// When something that is held back has waited long enough to be judged, however little it is. What only waits
    /// to become certain goes on with the text behind it.
    pub fn due(&self) -> Option<Instant> {
        let unjudged = self.strands.iter().any(|strand| strand.judged < strand.bytes);
        let first = self.held.front().filter(|_| unjudged);
        first.map(|held| held.since + self.plan.policy.hold)
    }

    /// Judges what has waited long enough, and lets go of it.
    ///
    /// # Errors
    /// As [`Guard::pass`].
    pub async fn overdue(&mut self) -> Result<Vec<Bytes>, Stopped> {
        self.judge_all().await?;
        Ok(self.free())
    }

    /// The answer is whole: judges what is left of it and lets go of what is held back.
    ///
    /// # Errors
    /// As [`Guard::pass`].
    pub async fn finish(&mut self) -> Result<Vec<Bytes>, Stopped> {
        if self.plan.policy.watch == Watch::Observe {
            self.show(true);
            self.hear()?;
        } else {
            // Whether it ends well is part of the answer.
            self.judge_all().await?;
        }
        Ok(self.held.drain(..).map(|held| held.raw).collect())
    }

    /// Judges texts that are here as a whole, all of them within one budget.
    ///
    /// # Errors
    /// Something was found that ends the answer.
    pub async fn whole(
        &mut self,
        texts: &[(usize, String, Option<String>)],
    ) -> Result<(), Stopped> {
        let plan = Arc::clone(&self.plan);
        let budget = match plan.policy.watch {
            // An answer that is only measured waits no longer than anybody would notice.
            Watch::Observe => plan.budget().min(OBSERVED_MAX),
            _ => plan.budget(),
        };
        let until = Instant::now() + budget;
        for (index, text, finish) in texts {
            let Some(strand) = self.strands.get_mut(*index) else { continue };
            strand.finish.clone_from(finish);
            let mut found = strand.push(text);
            found.extend(strand.end());
            found.extend(strand.judge_whole(&plan, text, until).await);
            self.note(found)?;
        }
        self.unchecked()
    }

    /// Takes a whole text whose scores are known through the exact checks. Gives everything that they found.
    pub(super) fn exact(
        &mut self,
        text: &str,
        finish: Option<&str>,
        heads: Vec<f32>,
    ) -> Vec<Found> {
        let Some(strand) = self.strands.first_mut() else { return Vec::new() };
        strand.finish = Some(finish.unwrap_or("stop").to_owned());
        strand.heads = heads;
        let mut found = strand.push(text);
        found.extend(strand.end());
        found
    }

    /// What came of it, with the quality score.
    pub fn answered(&self) -> Answered {
        let failure = self.strands.iter().find_map(|strand| strand.failure.as_ref());
        let labels = self.plan.output().map(|judge| judge.model.plan().labels.as_slice());
        let scores =
            self.strands.iter().map(|strand| quality::of(strand, labels.unwrap_or_default()));
        let quality = scores.reduce(f32::min);
        let failure = failure.map(crate::classify::Failure::as_str);
        Answered { quality, failure, ..self.answered.clone() }
    }

    fn read(&mut self, event: &Event) -> Result<(), Stopped> {
        let Some(data) = event.data() else { return Ok(()) };
        let Said::Chunk(chunk) = event::read(&data) else { return Ok(()) };
        for choice in chunk.choices.as_deref().unwrap_or_default() {
            let index = usize::try_from(choice.index).unwrap_or(usize::MAX);
            let Some(strand) = self.strands.get_mut(index) else { continue };
            if let Some(reason) = choice.finish_reason {
                strand.finish = serde_json::from_str(reason.get()).ok();
            }
            let text = text_of(choice);
            let mut found = if text.is_empty() { Vec::new() } else { strand.push(&text) };
            if strand.finish.is_some() {
                found.extend(strand.end());
            }
            self.note(found)?;
        }
        self.show(false);
        Ok(())
    }

    fn show(&mut self, now: bool) {
        for strand in &mut self.strands {
            strand.show(&self.plan, now || strand.finish.is_some());
        }
    }

    fn hear(&mut self) -> Result<(), Stopped> {
        let plan = Arc::clone(&self.plan);
        let found: Vec<Found> =
            self.strands.iter_mut().flat_map(|strand| strand.hear(&plan)).collect();
        self.note(found)?;
        self.unchecked()
    }

    /// Has everything judged that has come, within the budget.
    async fn judge_all(&mut self) -> Result<(), Stopped> {
        let plan = Arc::clone(&self.plan);
        let until = Instant::now() + plan.budget();
        // What was asked before may leave something that is newer: that is asked for then.
        for _ in 0..2 {
            self.show(true);
            let mut found = Vec::new();
            for strand in self.strands.iter_mut().filter(|strand| strand.is_pending()) {
                found.extend(strand.wait(&plan, until).await);
            }
            self.note(found)?;
        }
        self.unchecked()
    }

    /// Where nothing may pass that no classifier judged.
    fn unchecked(&self) -> Result<(), Stopped> {
        let enforced = matches!(self.plan.policy.watch, Watch::Hold | Watch::Cut);
        let closed = self.plan.screening.settings.on_failure == OnFailure::Closed;
        let lacking = self.plan.screening.models.lacks(Task::Output);
        let failed = self.strands.iter().any(|strand| strand.failure.is_some());
        if enforced && closed && (failed || lacking) {
            return Err(Stopped(Found::new(UNCHECKED, "failure", 1.0)));
        }
        Ok(())
    }

    /// Text that is held back, all choices together.
    fn lag_bytes(&self) -> usize {
        let first = self.held.front();
        let all: usize = self.strands.iter().map(|strand| strand.bytes).sum();
        first.map_or(0, |held| all.saturating_sub(held.ends.iter().sum()))
    }

    /// What may leave: events whose text is judged and is not the beginning of something.
    fn free(&mut self) -> Vec<Bytes> {
        // The lag is bounded, whatever the text may still become.
        let most = self.plan.policy.hold_tokens as usize * TOKEN_BYTES;
        let clear = self.strands.iter().map(|strand| {
            let unsure = strand.unsure().min(most);
            strand.judged.min(strand.bytes.saturating_sub(unsure))
        });
        let clear: Vec<usize> = clear.collect();
        let mut out = Vec::new();
        while let Some(held) = self.held.front()
            && held.ends.iter().zip(&clear).all(|(end, clear)| end <= clear)
        {
            out.extend(self.held.pop_front().map(|held| held.raw));
        }
        out
    }
}

/// What a choice's part of an event says: text, thinking, refusals, arguments of tool calls.
pub(in crate::pipeline) fn text_of(choice: &Choice<'_>) -> String {
    let mut all = String::new();
    for part in choice.parts() {
        match serde_json::from_str::<serde_json::Value>(part.get()) {
            Ok(serde_json::Value::String(text)) => all.push_str(&text),
            Ok(other) => arguments(&other, &mut all),
            Err(_) => {}
        }
    }
    all
}

/// The arguments in tool calls, whatever is around them.
fn arguments(value: &serde_json::Value, all: &mut String) {
    match value {
        serde_json::Value::Array(list) => list.iter().for_each(|one| arguments(one, all)),
        serde_json::Value::Object(fields) => {
            for (name, inner) in fields {
                match inner {
                    serde_json::Value::String(text) if name == "arguments" => all.push_str(text),
                    inner => arguments(inner, all),
                }
            }
        }
        _ => {}
    }
}
