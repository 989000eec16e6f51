//! What a replay found, one report for each policy. The order of the fields is the order in JSON.

use crate::ids::Tier;
use serde::Serialize;

/// What one policy did. Shares are percent of the requests offered in the window unless they say otherwise.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    /// The policy's name.
    pub policy: String,
    /// Requests that came in the window.
    pub offered: u64,
    /// Those whose answer met the objective, percent.
    pub good_pct: f64,
    /// Input and output tokens of those, thousands a second of the window.
    pub good_ktok_s: f64,
    /// Those that were refused for good, percent.
    pub rejected_pct: f64,
    /// Median time to the first token of those answered, seconds; none if none was.
    pub ttft_p50_s: Option<f64>,
    /// The same, 99th percentile.
    pub ttft_p99_s: Option<f64>,
    /// Mean time per output token of an answer, 99th percentile, milliseconds; none if no answer had two tokens.
    pub tpot_p99_ms: Option<f64>,
    /// Sequences that lost their pages and were computed again, in the whole run.
    pub preemptions: u64,
    /// Tokens of placed prompts that a server's cache had, percent of them, in the whole run.
    pub prefix_hit_pct: f64,
    /// Jain's index of the tenants' fair ratios: 1.0 when all came equally near to what was fair.
    pub jain: f64,
    /// Each tenant.
    pub tenants: Vec<TenantReport>,
    /// Requests of the whole run that were neither answered nor refused. Not 0: a fault of the policy.
    pub lost: u64,
    /// Those answered whose first token came too late, percent.
    pub late_pct: f64,
    /// Those answered whose tokens came too slowly, percent.
    pub slow_pct: f64,
    /// Mean time per output token of an answer, median, milliseconds.
    pub tpot_p50_ms: Option<f64>,
    /// Refused callers that came again.
    pub returned: u64,
    /// Those of them that were then answered, percent of them; none if nobody came again.
    pub returned_admitted_pct: Option<f64>,
    /// When they came again, median, seconds from when they came first; no objective counts this time.
    pub returned_after_p50_s: Option<f64>,
    /// The same, 99th percentile.
    pub returned_after_p99_s: Option<f64>,
    /// Admitted requests whose first token came within a quarter of what was predicted, percent of those
    /// with a prediction; none for policies that predict nothing.
    pub predicted_pct: Option<f64>,
    /// The smallest fair ratio.
    pub fair_least: Option<f64>,
    /// What the trace is called.
    pub trace: String,
    /// What the servers are called.
    pub profile: String,
    /// How many there were.
    pub servers: usize,
    /// How many times as fast requests came.
    pub speed: f64,
    /// What decided all chance.
    pub seed: u64,
    /// How long requests counted, seconds.
    pub window_s: f64,
}

/// What became of one tenant's requests. Shares are percent of what it offered in the window.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TenantReport {
    /// Its name.
    pub name: String,
    /// Its tier.
    pub tier: Tier,
    /// Requests that came in the window.
    pub offered: u64,
    /// Those whose answer met the objective, percent.
    pub good_pct: f64,
    /// Those that were refused for good, percent.
    pub rejected_pct: f64,
    /// Median time to the first token of those answered, seconds.
    pub ttft_p50_s: Option<f64>,
    /// The same, 99th percentile.
    pub ttft_p99_s: Option<f64>,
    /// The same when there is no flood; none if there is none anyway, or for the flood itself.
    pub alone_ttft_p99_s: Option<f64>,
    /// Input and output tokens of the requests that were answered to their end.
    pub served_tokens: u64,
    /// What it was due of all that was served, by max-min fairness over what tenants asked for, tokens.
    pub fair_tokens: u64,
    /// Served to fair; none if nothing was due.
    pub fair_ratio: Option<f64>,
}
