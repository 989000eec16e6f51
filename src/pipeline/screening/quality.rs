//! The quality score of an answer: what the watcher of a choice knows, in the rules' own form.

use super::strand::Strand;
use crate::screen::output::quality::{Finish, Heads, quality};

/// The quality of one choice, 0 to 1.
pub(super) fn of(strand: &Strand, labels: &[String]) -> f32 {
    let head = |name: &str| {
        let at = labels.iter().position(|label| label == name)?;
        strand.heads.get(at).copied()
    };
    let heads = head("refusal").map(|refusal| Heads {
        toxic: head("toxic").unwrap_or(0.0),
        unsafe_: head("unsafe").unwrap_or(0.0),
        refusal,
        lowq: head("lowq").unwrap_or(0.0),
    });
    let finish = finish_of(strand.finish.as_deref());
    let empty = strand.bytes == 0;
    quality(&strand.facts(), heads, finish, strand.format(), strand.degeneration(), empty).score
}

/// Why an answer ended, from the API's word for it.
pub(super) fn finish_of(said: Option<&str>) -> Finish {
    match said {
        Some("stop") => Finish::Stop,
        Some("length") => Finish::Length,
        Some("tool_calls" | "function_call") => Finish::ToolCalls,
        Some("content_filter") => Finish::ContentFilter,
        _ => Finish::Other,
    }
}
