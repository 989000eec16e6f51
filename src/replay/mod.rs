//! `berthd replay`: a trace of requests, the daemon's rules or others, and played servers, in simulated time.
//!
//! The servers are those of `simulate` (their clock alone, without sockets), the rules are the daemon's own.
//! Given the same plan every run ends the same. Nothing here does I/O but reading the trace.

mod chance;
pub mod fair;
pub mod load;
mod measure;
mod options;
mod plan;
pub mod policy;
mod report;
mod table;
pub mod trace;
pub mod world;

pub use measure::TPOT_MAX_S;
pub use options::{PolicyChoice, ReplayOptions};
pub use plan::{Flood, Plan, PolicyName, ReplayError};
pub use report::{Report, TenantReport};
pub use table::table;

use crate::schedule::{Costs, Rules};
use chance::{Chance, Draw};
use load::Load;
use measure::Played;
use policy::{
    Ours, OursSetup, Policy,
    baselines::{self, BaselineSetup},
};
use trace::BLOCK_TOKENS;
use world::Setup;

/// What a prompt costs in any case, where our rules start, seconds.
const PROMPT_S: f64 = 0.02;
/// Progress is told so many times in all.
const TOLD: usize = 500;

/// How far a replay is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Who decides now.
    pub policy: PolicyName,
    /// Requests that have ended, of all runs.
    pub done: usize,
    /// Requests of all runs.
    pub of: usize,
}

/// Replays the trace once for each policy, and with a flood once more without it. `progress` hears how far it
/// is. One report for each policy, in the plan's order.
///
/// # Errors
/// A value that cannot be, or a trace that does not fit the plan.
pub fn run(plan: &Plan, mut progress: impl FnMut(Progress)) -> Result<Vec<Report>, ReplayError> {
    plan.check()?;
    let load = Load::of(plan)?;
    let alone = load.alone();
    let each = load.arrivals.len() + alone.as_ref().map_or(0, |alone| alone.arrivals.len());
    let of = each * plan.policies.len();
    let mut before = 0;
    let mut reports = Vec::new();
    for policy in plan.policies.iter().copied() {
        let mut one = |load: &Load| {
            let mut told = 0;
            let tell = |ended: usize| {
                if ended - told > of / TOLD {
                    told = ended;
                    progress(Progress { policy, done: before + ended, of });
                }
            };
            let played = play(plan, policy, load, tell);
            before += load.arrivals.len();
            progress(Progress { policy, done: before, of });
            played
        };
        let played = one(&load);
        let without = alone.as_ref().map(|alone| (alone, one(alone)));
        let without = without.as_ref().map(|(load, played)| (*load, played));
        reports.push(measure::report(plan, policy.to_string(), (&load, &played), without));
    }
    Ok(reports)
}

fn play(plan: &Plan, policy: PolicyName, load: &Load, tell: impl FnMut(usize)) -> Played {
    let setup = Setup {
        profile: plan.server(),
        servers: plan.servers,
        server_priority: plan.server_priority,
        returns: plan.returns,
        block_tokens: BLOCK_TOKENS,
    };
    let mut policy: Box<dyn Policy> = match policy {
        PolicyName::Berthd => Box::new(ours(plan, load)),
        PolicyName::Baseline(which) => {
            let setup = BaselineSetup {
                servers: plan.servers,
                kv_tokens: plan.profile.kv.get(),
                block_tokens: BLOCK_TOKENS,
                seed: plan.seed,
                queue_max: plan.queue_max,
            };
            baselines::make(which, &setup)
        }
    };
    let mut chance = Chance::new(plan.seed, Draw::Returns);
    let (fates, done) = world::run(&setup, &load.arrivals, &mut *policy, || chance.unit(), tell);
    Played { fates, done }
}

/// The daemon's rules, which start from the servers' true costs times what the plan says.
fn ours(plan: &Plan, load: &Load) -> Ours {
    let server = plan.server();
    let costs = Costs {
        prompt_s: PROMPT_S,
        token_s: server.token_s,
        attention_s: server.attention_s,
        step_s: server.weights_s + server.fix_s,
        context_s: server.context_s,
    };
    let rules =
        Rules { costs: costs.times(plan.costs_off), chunk: server.chunk, ..Rules::default() };
    let setup = OursSetup {
        rules,
        queue_max: plan.queue_max,
        tiers: load.tenants.iter().map(|tenant| tenant.tier).collect(),
        servers: plan.servers,
        kv: server.kv,
        max_running: u32::try_from(server.max_running).unwrap_or(u32::MAX),
        block_tokens: u32::try_from(BLOCK_TOKENS).unwrap_or(u32::MAX),
    };
    Ours::new(setup, load.arrivals.len())
}

#[cfg(test)]
mod tests;
