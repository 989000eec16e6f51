//! Texts before the classifiers: which stages look at them, and what they say together.

use super::{Models, Screening, memo::key_of_forms, parts};
use crate::{
    classify::{Asked, Failure, Model, Owner, Pool, strongest},
    config::{SecondStage, Task},
    screen::{Scores, join},
};
use std::sync::Arc;
use tokio::time::Instant;

/// A classifier with its threads.
#[derive(Debug)]
pub struct Judge {
    /// Its name.
    pub name: String,
    /// What it judges.
    pub task: Task,
    /// Its files.
    pub model: Arc<Model>,
    /// Its threads.
    pub pool: Pool,
}

/// What the classifiers say of a text.
#[derive(Clone, Debug, Default)]
pub struct Judged {
    /// Their scores.
    pub scores: Scores,
    /// Why there are fewer scores than there should be.
    pub failure: Option<Failure>,
    /// The text was longer than classifiers look at.
    pub incomplete: bool,
    /// It was in the first stage's grey zone.
    pub grey: bool,
    /// It was judged before.
    pub remembered: bool,
}

impl Judge {
    /// A classifier with its threads.
    pub fn new(name: &str, task: Task, model: Arc<Model>, pool: Pool) -> Self {
        Self { name: name.to_owned(), task, model, pool }
    }

    /// Hands texts over, all at once.
    ///
    /// # Errors
    /// [`Failure`], at once.
    pub fn ask(
        &self,
        owner: Owner,
        texts: &[&str],
        windows_max: usize,
    ) -> Result<(Asked, bool), Failure> {
        let mut windows = Vec::new();
        let mut incomplete = false;
        for text in texts {
            let cut = self.model.cut(text, windows_max)?;
            incomplete |= cut.incomplete;
            windows.extend(cut.windows);
        }
        Ok((self.pool.ask(owner, windows)?, incomplete))
    }

    /// Raw outputs of every window of the texts, in order, and how many windows each text has.
    async fn rows(
        &self,
        owner: Owner,
        texts: &[&str],
        windows_max: usize,
        until: Instant,
    ) -> Result<(Vec<Vec<f32>>, Vec<usize>, bool), Failure> {
        let (mut windows, mut counts, mut incomplete) = (Vec::new(), Vec::new(), false);
        for text in texts {
            let cut = self.model.cut(text, windows_max)?;
            incomplete |= cut.incomplete;
            counts.push(cut.windows.len());
            windows.extend(cut.windows);
        }
        let rows = self.pool.ask(owner, windows)?.rows(until).await?;
        Ok((rows, counts, incomplete))
    }

    /// The strongest probability of each of its labels over all texts.
    ///
    /// # Errors
    /// [`Failure`].
    pub async fn judge(
        &self,
        owner: Owner,
        texts: &[&str],
        windows_max: usize,
        until: Instant,
    ) -> Result<(Vec<f32>, bool), Failure> {
        let (asked, incomplete) = self.ask(owner, texts, windows_max)?;
        let rows = asked.rows(until).await?;
        Ok((strongest(self.model.plan(), &rows)?, incomplete))
    }
}

impl Screening {
    /// Judges the forms of one text on its way in. What fails is told, and the rest is used.
    pub async fn judge_input(
        &self,
        owner: Owner,
        forms: &[&str],
        stage: SecondStage,
        until: Instant,
    ) -> Judged {
        let key = key_of_forms(forms, stage as u8);
        if let Some(scores) = key.and_then(|key| self.models.memo.get(key)) {
            return Judged { scores, remembered: true, ..Judged::default() };
        }
        let most = self.settings.windows_max;
        let judged = self.models.judge_input(owner, forms, (stage, most), until).await;
        if let (Some(key), None) = (key, &judged.failure) {
            self.models.memo.keep(key, judged.scores.clone());
        }
        judged
    }
}

impl Models {
    async fn judge_input(
        &self,
        owner: Owner,
        forms: &[&str],
        (stage, windows_max): (SecondStage, usize),
        until: Instant,
    ) -> Judged {
        let mut judged = Judged::default();
        let note = |judged: &mut Judged, said: Result<(Vec<f32>, bool), Failure>| match said {
            Ok((scores, incomplete)) => {
                judged.incomplete |= incomplete;
                scores
            }
            Err(failure) => {
                judged.failure.get_or_insert(failure);
                Vec::new()
            }
        };
        // Those that do not wait for the first stage's word are asked before it is heard.
        let brought = self.brought.iter().filter(|judge| judge.task == Task::Input);
        let brought: Vec<_> =
            brought.map(|judge| (judge, judge.ask(owner, forms, windows_max))).collect();
        let mut suspect = Vec::new();
        if let Some(first) = &self.first {
            match first.rows(owner, forms, windows_max, until).await {
                Ok((rows, counts, incomplete)) => {
                    judged.scores.windows = rows.len();
                    suspect = parts::strongest(first.model.plan(), forms, &rows, &counts);
                    let said = strongest(first.model.plan(), &rows).map(|best| (best, incomplete));
                    judged.scores.first = note(&mut judged, said).first().copied();
                }
                Err(failure) => judged.failure = Some(failure),
            }
        }
        let thresholds = self.first.as_ref().map(|first| first.model.thresholds());
        let band = thresholds.and_then(|thresholds| thresholds.band);
        judged.grey = match (judged.scores.first, band) {
            (Some(score), Some(band)) => (band.low..=band.high).contains(&score),
            // Whom the first did not judge, the second must.
            (None, _) => true,
            (Some(_), None) => false,
        };
        let wanted = stage == SecondStage::Always || (stage == SecondStage::Grey && judged.grey);
        if let (true, Some(second)) = (wanted, &self.second) {
            // Of a long text the second stage looks at what the first found odd, unless it is to look at all.
            let whole = stage == SecondStage::Always || suspect.is_empty();
            let texts = if whole { forms } else { suspect.as_slice() };
            let said = second.judge(owner, texts, windows_max.div_ceil(4), until).await;
            judged.scores.second = note(&mut judged, said).first().copied();
        }
        let weight = thresholds.map_or(1.0, |thresholds| thresholds.weight);
        judged.scores.injection = join(judged.scores.first, judged.scores.second, weight);
        for (judge, asked) in brought {
            let said = match asked {
                Ok((asked, incomplete)) => match asked.rows(until).await {
                    Ok(rows) => strongest(judge.model.plan(), &rows).map(|best| (best, incomplete)),
                    Err(failure) => Err(failure),
                },
                Err(failure) => Err(failure),
            };
            let scores = note(&mut judged, said);
            for (label, score) in judge.model.plan().labels.iter().zip(scores) {
                add(&mut judged.scores.others, label, score);
            }
        }
        judged
    }
}

/// Adds a model's word: of the same label's words the strongest counts.
pub(super) fn add(scores: &mut Vec<(String, f32)>, label: &str, score: f32) {
    match scores.iter_mut().find(|(known, _)| known == label) {
        Some((_, before)) => *before = before.max(score),
        None => scores.push((label.to_owned(), score)),
    }
}
