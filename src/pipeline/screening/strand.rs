//! One choice of an answer while it comes: the exact checks, and the window that a classifier sees.

use super::{Judge, Plan, look::Look, output::Found};
use crate::{
    classify::{Failure, strongest},
    screen::{
        PERSONAL, SECRET,
        output::{
            degenerate::{Degeneration, Facts, Limits, Watch},
            leak::Leak,
            quality::{FormatCheck, Wanted, format_of},
        },
        secrets::{self, Class, Finder, Stream},
    },
};
use tokio::time::Instant;

/// The label of a system prompt or canary in an answer.
pub(super) const LEAK: &str = "leak";
/// The label of an answer that goes round in circles or falls apart.
pub(super) const DEGENERATE: &str = "degenerate";

/// Bytes of an answer's end that are kept for the classifier: more than its window in any script.
const RECENT_MAX_BYTES: usize = 1536;
/// The first look comes after so many bytes: most refusals show by then.
const FIRST_STEP_BYTES: usize = 64;
/// New bytes between two looks: about a third of a window.
const STEP_BYTES: usize = 192;
/// Longest answer whose JSON is checked.
const JSON_MAX_BYTES: usize = 1 << 20;
/// Narrow looks at a whole answer.
const NARROW_MAX: usize = 32;
/// Bytes before what is new that a narrow look covers: the sentence that it goes on with.
const NARROW_BYTES: usize = 96;
/// Windows at the end of the text that one look covers.
const WINDOWS_MAX: usize = 4;

fn of_secret(secret: &secrets::Found) -> Found {
    let label = match secret.kind.class() {
        Class::Secret => SECRET,
        Class::Personal => PERSONAL,
    };
    Found::new(label, secret.kind.as_str(), 1.0)
}

/// A text in parts of the narrow look's length, each with the end of the one before.
fn narrow(text: &str) -> impl Iterator<Item = &str> {
    let border = |mut at: usize| {
        while !text.is_char_boundary(at) {
            at += 1;
        }
        at
    };
    let starts = (0..text.len().saturating_sub(NARROW_BYTES).max(1)).step_by(STEP_BYTES);
    starts.filter_map(move |start| {
        let end = (start + STEP_BYTES + NARROW_BYTES).min(text.len());
        text.get(border(start)..border(end))
    })
}

/// What is known of one choice.
pub(super) struct Strand {
    /// Bytes of text so far.
    pub bytes: usize,
    recent: String,
    leak: Option<Leak>,
    /// `None` once the choice has ended.
    secrets: Option<Stream>,
    watch: Watch,
    degeneration: Option<Degeneration>,
    /// Text up to here was shown to the classifier.
    shown: usize,
    /// Text up to here was judged, or needs no judging.
    pub judged: usize,
    pending: Option<(usize, Look)>,
    /// The strongest score of each label of our output model.
    pub heads: Vec<f32>,
    /// Why there is no score.
    pub failure: Option<Failure>,
    /// Why the choice ended, as the server says it.
    pub finish: Option<String>,
    /// All of the text, where it must be JSON and is not longer than anybody's JSON.
    whole: Option<String>,
}

impl Strand {
    pub(super) fn new(plan: &Plan) -> Self {
        Self {
            bytes: 0,
            recent: String::new(),
            leak: plan.secretive.clone().map(Leak::new),
            secrets: Some(Stream::new(Finder::shared())),
            watch: Watch::new(Limits::default()),
            degeneration: None,
            shown: 0,
            judged: 0,
            pending: None,
            heads: Vec::new(),
            failure: None,
            finish: None,
            whole: plan.json.then(String::new),
        }
    }

    /// Takes new text through the exact checks.
    pub(super) fn push(&mut self, text: &str) -> Vec<Found> {
        let mut found = Vec::new();
        self.bytes += text.len();
        self.recent.push_str(text);
        if let Some(whole) = &mut self.whole {
            whole.push_str(text);
            self.whole.take_if(|whole| whole.len() > JSON_MAX_BYTES);
        }
        if self.recent.len() > 2 * RECENT_MAX_BYTES {
            let mut from = self.recent.len() - RECENT_MAX_BYTES;
            while !self.recent.is_char_boundary(from) {
                from += 1;
            }
            self.recent.drain(..from);
        }
        if let Some(leak) = self.leak.as_mut().and_then(|leak| leak.push(text)) {
            found.push(Found::new(LEAK, leak.how.as_str(), 1.0));
        }
        let secrets = self.secrets.as_mut().map(|secrets| secrets.push(text));
        found.extend(secrets.unwrap_or_default().iter().map(of_secret));
        if let Some(degeneration) = self.watch.push(text)
            && self.degeneration.is_none()
        {
            found.push(Found::new(DEGENERATE, degeneration.kind.as_str(), 1.0));
            self.degeneration = Some(degeneration);
        }
        found
    }

    /// The choice has ended: what only its end makes certain.
    pub(super) fn end(&mut self) -> Vec<Found> {
        let secrets = self.secrets.take().map(Stream::finish);
        secrets.unwrap_or_default().iter().map(of_secret).collect()
    }

    /// The end of the text that may be the beginning of something, in bytes.
    pub(super) fn unsure(&self) -> usize {
        let leak = self.leak.as_ref().map_or(0, Leak::held);
        leak.max(self.secrets.as_ref().map_or(0, Stream::held))
    }

    /// Shows the classifier what is new, if there is enough of it or `now`.
    pub(super) fn show(&mut self, plan: &Plan, now: bool) {
        let step = if self.shown == 0 { FIRST_STEP_BYTES } else { plan.step_bytes.min(STEP_BYTES) };
        let new = self.bytes - self.shown;
        if self.pending.is_some() || new == 0 || !(now || new >= step) {
            return;
        }
        if plan.judges().next().is_none() {
            self.judged = self.bytes;
            return;
        }
        // A look covers all that is new and a window before it, so that nothing falls between two looks; and once
        // more only what is new, since a sentence counts for little in a window that is full of others.
        let mut texts = vec![self.end_of(new + RECENT_MAX_BYTES / 3)];
        texts.extend(narrow(self.end_of(new + NARROW_BYTES)));
        self.pending = Some((self.bytes, Look::ask(plan, &texts, WINDOWS_MAX)));
        self.shown = self.bytes;
    }

    /// Has the classifier judge a text that is here as a whole, in wide windows and in narrow ones.
    pub(super) async fn judge_whole(
        &mut self,
        plan: &Plan,
        text: &str,
        until: Instant,
    ) -> Vec<Found> {
        let mut texts = vec![text];
        texts.extend(narrow(text).take(NARROW_MAX));
        let mut look = Look::ask(plan, &texts, plan.screening.settings.windows_max);
        look.wait(until).await;
        self.take(plan, self.bytes, look)
    }

    /// The last so many bytes of the text, or all that is kept of it.
    fn end_of(&self, bytes: usize) -> &str {
        let mut from = self.recent.len().saturating_sub(bytes);
        while !self.recent.is_char_boundary(from) {
            from += 1;
        }
        self.recent.get(from..).unwrap_or_default()
    }

    /// Takes the classifiers' word, if all of it is here.
    pub(super) fn hear(&mut self, plan: &Plan) -> Vec<Found> {
        match self.pending.take_if(|(_, look)| look.hear()) {
            Some((end, look)) => self.take(plan, end, look),
            None => Vec::new(),
        }
    }

    /// Waits for the classifiers' word until then. Dropping the future loses no word.
    pub(super) async fn wait(&mut self, plan: &Plan, until: Instant) -> Vec<Found> {
        let Some((_, look)) = &mut self.pending else { return Vec::new() };
        look.wait(until).await;
        match self.pending.take() {
            Some((end, look)) => self.take(plan, end, look),
            None => Vec::new(),
        }
    }

    fn take(&mut self, plan: &Plan, end: usize, look: Look) -> Vec<Found> {
        self.judged = self.judged.max(end);
        let mut found = Vec::new();
        for (judge, rows) in plan.judges().zip(look.said()) {
            match rows.and_then(|rows| strongest(judge.model.plan(), &rows)) {
                Ok(scores) => self.scored(plan, judge, &scores, &mut found),
                Err(failure) => {
                    // What could not be judged goes by the policy for failures.
                    self.failure = Some(failure);
                    (self.shown, self.judged) = (self.bytes, self.bytes);
                }
            }
        }
        found
    }

    fn scored(&mut self, plan: &Plan, judge: &Judge, scores: &[f32], found: &mut Vec<Found>) {
        let models = &plan.screening.models;
        if models.is_ours(judge) {
            self.heads.resize(scores.len(), 0.0);
            for (best, score) in self.heads.iter_mut().zip(scores) {
                *best = best.max(*score);
            }
        }
        for (label, score) in judge.model.plan().labels.iter().zip(scores) {
            if plan.counts(judge, label, *score) {
                found.push(Found::new(label.clone(), models.kind_of(judge), *score));
            }
        }
    }

    /// Whether the classifiers have been asked and have not been heard.
    pub(super) const fn is_pending(&self) -> bool {
        self.pending.is_some()
    }

    /// What the exact checks know of the text, for the quality score.
    pub(super) fn facts(&self) -> Facts {
        self.watch.facts()
    }

    /// Whether the text is the JSON that was asked for; `None` where none was.
    pub(super) fn format(&self) -> Option<FormatCheck> {
        format_of(self.whole.as_deref()?, Wanted::Json)
    }

    /// How the text fell apart, if it did.
    pub(super) const fn degeneration(&self) -> Option<Degeneration> {
        self.degeneration
    }
}
