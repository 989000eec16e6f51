//! One look of everybody who judges answers at some texts: asked together, heard one by one.

use super::{Judge, Plan};
use crate::classify::{Asked, Failure};
use tokio::time::Instant;

/// What a classifier said: raw outputs of every window.
type Rows = Result<Vec<Vec<f32>>, Failure>;

enum Part {
    Asked(Asked),
    Said(Rows),
}

/// Texts before the classifiers of answers, in the order of [`Plan::judges`].
pub(super) struct Look(Vec<Part>);

impl Look {
    /// Hands the texts to all of them. Who cannot take them has said so at once.
    pub(super) fn ask(plan: &Plan, texts: &[&str], windows_max: usize) -> Self {
        let ask = |judge: &Judge| match judge.ask(plan.owner, texts, windows_max) {
            Ok((asked, _)) => Part::Asked(asked),
            Err(failure) => Part::Said(Err(failure)),
        };
        Self(plan.judges().map(ask).collect())
    }

    /// Hears who has answered. Whether that is all of them.
    pub(super) fn hear(&mut self) -> bool {
        let mut all = true;
        for part in &mut self.0 {
            let Part::Asked(asked) = part else { continue };
            match asked.try_rows() {
                Some(rows) => *part = Part::Said(rows),
                None => all = false,
            }
        }
        all
    }

    /// Waits for all of them until then. Dropping the future loses no word.
    pub(super) async fn wait(&mut self, until: Instant) {
        for part in &mut self.0 {
            let Part::Asked(asked) = part else { continue };
            let rows = tokio::time::timeout_at(until, asked.wait()).await;
            *part = Part::Said(rows.unwrap_or(Err(Failure::Late)));
        }
    }

    /// What each of them said; who has not is late.
    pub(super) fn said(self) -> impl Iterator<Item = Rows> {
        self.0.into_iter().map(|part| match part {
            Part::Said(rows) => rows,
            Part::Asked(_) => Err(Failure::Late),
        })
    }
}
