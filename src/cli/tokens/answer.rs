//! What `berthd tokens` says of one request, as JSON and as text.

use super::share::Share;
use crate::{
    api::shapes::Shape,
    ids::ModelName,
    pipeline::{
        count::{Counter, Source},
        shapes::{Shaped, Told},
    },
};
use serde::Serialize;
use std::{fmt::Write, time::Duration};

/// What is shown beside the count.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Wanted {
    pub(super) prompt: bool,
    pub(super) messages: bool,
    pub(super) ids: bool,
}

/// One answer.
#[derive(Debug, Serialize)]
pub(super) struct Answer {
    model: ModelName,
    shape: &'static str,
    input_tokens: u64,
    source: &'static str,
    /// Why the count is not exact.
    reason: Option<String>,
    fingerprint: Option<String>,
    /// Microseconds from the request's text to its count.
    took_us: u64,
    #[serde(flatten)]
    share: Option<Share>,
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ids: Option<Vec<u32>>,
    /// What was wanted beside the count and is not there.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    missing: Vec<String>,
}

impl Answer {
    pub(super) fn new(model: &ModelName, shape: Shape, told: Told, took: Duration) -> Self {
        Self {
            model: model.clone(),
            shape: shape.as_str(),
            input_tokens: told.counted.tokens.get(),
            source: told.counted.source.as_str(),
            reason: told.reason,
            fingerprint: None,
            took_us: u64::try_from(took.as_micros()).unwrap_or(u64::MAX),
            share: None,
            prompt: None,
            ids: None,
            missing: Vec::new(),
        }
    }

    pub(super) fn with_counter(mut self, counter: Option<&Counter>) -> Self {
        self.fingerprint = counter.map(|counter| counter.files().fingerprint().to_owned());
        self
    }

    /// Adds what is wanted beside the count, as far as it is to be had.
    pub(super) fn with(
        mut self,
        wanted: Wanted,
        counter: Option<&Counter>,
        shaped: &Shaped,
    ) -> Self {
        let both = || -> Result<_, String> {
            let counter = counter.ok_or("the model's files are not on this host")?;
            Ok((counter, shaped.plain.as_ref().map_err(Clone::clone)?))
        };
        let mut missing = Vec::new();
        let mut keep = |what: &str, told: String| missing.push(format!("{what}: {told}"));
        if wanted.prompt {
            let text = both().and_then(|(counter, plain)| {
                counter.plain_text(plain).map_err(|error| error.to_string())
            });
            self.prompt = text.map_err(|told| keep("prompt", told)).ok();
        }
        if wanted.ids {
            let ids = both().and_then(|(counter, plain)| {
                counter.plain_ids(plain).map_err(|error| error.to_string())
            });
            self.ids = ids.map_err(|told| keep("ids", told)).ok();
        }
        if wanted.messages {
            let share = both().and_then(|(counter, plain)| Share::of(counter, plain));
            self.share = share.map_err(|told| keep("messages", told)).ok();
        }
        self.missing = missing;
        self
    }

    /// One line.
    pub(super) fn json(&self) -> String {
        // Writing texts and numbers as JSON cannot fail.
        serde_json::to_string(self).unwrap_or_default()
    }

    /// For people.
    pub(super) fn text(&self) -> String {
        let how = match (self.source, &self.reason) {
            (source, _) if source == Source::Exact.as_str() => {
                "exact: counted with the model's own files".to_owned()
            }
            (source, Some(reason)) => format!("{source}: {reason}"),
            (source, None) => source.to_owned(),
        };
        let mut text = format!("{} input tokens ({how})\n", self.input_tokens);
        if let Some(share) = &self.share {
            share.print(&mut text);
        }
        if let Some(ids) = &self.ids {
            let ids: Vec<String> = ids.iter().map(u32::to_string).collect();
            let _ = writeln!(text, "ids: {}", ids.join(" "));
        }
        for told in &self.missing {
            let _ = writeln!(text, "no {told}");
        }
        if let Some(prompt) = &self.prompt {
            let _ = writeln!(text, "\n{prompt}");
        }
        text
    }
}
