//! The options of `berthd replay`, as the command line has them.

use super::{
    plan::{Flood, Plan, PolicyName, ReplayError},
    policy::baselines::Baseline,
    trace,
};
use crate::{ids::Tier, simulate::ProfileName, units::Tokens};
use clap::{Args, ValueEnum, builder::PossibleValue};
use std::path::PathBuf;

/// A trace of requests, replayed against simulated servers
#[derive(Args, Clone, Debug)]
pub struct ReplayOptions {
    /// The trace: CSV with arrival_ms,input_tokens,output_tokens,prefix_blocks, gzipped or not
    #[arg(value_name = "TRACE")]
    pub trace: PathBuf,
    /// Which server each one plays
    #[arg(long, value_enum, default_value = "8b-h200")]
    pub profile: ProfileName,
    /// How many servers there are, 1 to 64
    #[arg(long, value_name = "SERVERS", default_value_t = 8)]
    pub servers: usize,
    /// Play the trace this many times as fast: more load
    #[arg(long, value_name = "FACTOR", default_value_t = 1.0, allow_negative_numbers = true)]
    pub speed: f64,
    /// Who decides, separated by commas; each plays the same requests
    #[arg(long, value_enum, value_delimiter = ',', value_name = "NAMES", default_value = "berthd")]
    pub policy: Vec<PolicyChoice>,
    /// Decides all chance; above 1 each request comes up to 50 ms later than in the trace
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..))]
    pub seed: u64,
    /// Leave out what comes later, in seconds as played [default: the whole trace]
    #[arg(long, value_name = "SECONDS", allow_negative_numbers = true)]
    pub max_seconds: Option<f64>,
    /// Deal the requests to so many tenants by chance
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub tenants: usize,
    /// Let a second tenant send this many times the trace's mean request rate for a while
    #[arg(long, value_name = "FACTOR", allow_negative_numbers = true)]
    pub flood: Option<f64>,
    /// How long the flood lasts
    #[arg(
        long,
        value_name = "SECONDS",
        default_value_t = 60.0,
        requires = "flood",
        allow_negative_numbers = true
    )]
    pub flood_seconds: f64,
    /// When the flood begins, seconds from the first request
    #[arg(
        long,
        value_name = "SECONDS",
        default_value_t = 60.0,
        requires = "flood",
        allow_negative_numbers = true
    )]
    pub flood_start: f64,
    /// Tier of the trace's own tenants, a flood's victims: interactive, standard or batch
    #[arg(long, value_name = "TIER", default_value = "standard", value_parser = tier)]
    pub tier_victim: Tier,
    /// Let servers, too, take requests in the order of their tiers
    #[arg(long)]
    pub server_priority: bool,
    /// Let refused callers come back once when they are told to, give or take this share of the time told
    #[arg(long, value_name = "SHARE", allow_negative_numbers = true)]
    pub returns: Option<f64>,
    /// Let berthd start from costs that are wrong by this factor; it learns the true ones
    #[arg(long, value_name = "FACTOR", default_value_t = 1.0, allow_negative_numbers = true)]
    pub costs_off: f64,
    /// Deal the answers' lengths anew by chance, so that nothing can predict them
    #[arg(long)]
    pub shuffle_outputs: bool,
    /// Places in the queue of berthd and of the other policies that have one; the daemon has 1024 unless configured
    #[arg(long, value_name = "REQUESTS", default_value_t = 1500)]
    pub queue_max: usize,
    /// KV cache of each server, in tokens [default: the profile's]
    #[arg(long, value_name = "TOKENS")]
    pub kv_tokens: Option<u64>,
    /// Most tokens one step computes, at least --max-running [default: the profile's]
    #[arg(long, value_name = "TOKENS")]
    pub chunk_tokens: Option<u64>,
    /// Most sequences in the batch of a server [default: the profile's]
    #[arg(long, value_name = "SEQUENCES")]
    pub max_running: Option<usize>,
}

/// What can be named as a policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PolicyChoice {
    /// All of them, berthd first.
    All,
    /// One.
    One(PolicyName),
}

fn tier(text: &str) -> Result<Tier, String> {
    let known = Tier::parse(text).filter(|tier| *tier != Tier::System);
    known.ok_or_else(|| "choose interactive, standard or batch".to_owned())
}

// === impl PolicyChoice ===

impl PolicyChoice {
    const fn of(which: Baseline) -> Self {
        Self::One(PolicyName::Baseline(which))
    }

    /// The policies that these name, each once, in the order named.
    fn named(choices: &[Self]) -> Vec<PolicyName> {
        let mut policies = Vec::new();
        let mut add = |policy| {
            if !policies.contains(&policy) {
                policies.push(policy);
            }
        };
        for choice in choices {
            match choice {
                Self::All => PolicyName::all().into_iter().for_each(&mut add),
                Self::One(policy) => add(*policy),
            }
        }
        policies
    }
}

impl ValueEnum for PolicyChoice {
    fn value_variants<'a>() -> &'a [Self] {
        const CHOICES: [PolicyChoice; 12] = [
            PolicyChoice::One(PolicyName::Berthd),
            PolicyChoice::All,
            PolicyChoice::of(Baseline::RoundRobin),
            PolicyChoice::of(Baseline::LeastConnections),
            PolicyChoice::of(Baseline::PowerOfTwo),
            PolicyChoice::of(Baseline::PrefixHash),
            PolicyChoice::of(Baseline::Sglang),
            PolicyChoice::of(Baseline::Dynamo),
            PolicyChoice::of(Baseline::Gie),
            PolicyChoice::of(Baseline::Lmetric),
            PolicyChoice::of(Baseline::GieQueue),
            PolicyChoice::of(Baseline::Slots),
        ];
        &CHOICES
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        match self {
            Self::All => Some(PossibleValue::new("all").help("berthd, then all others")),
            Self::One(PolicyName::Berthd) => {
                Some(PossibleValue::new("berthd").help("The daemon's own rules"))
            }
            Self::One(PolicyName::Baseline(which)) => which.to_possible_value(),
        }
    }
}

// === impl ReplayOptions ===

impl ReplayOptions {
    /// What is to be replayed; reads the trace.
    ///
    /// # Errors
    /// A value that cannot be, or a trace that cannot be read.
    pub fn plan(&self) -> Result<Plan, ReplayError> {
        let name = self.trace.file_name().unwrap_or(self.trace.as_os_str()).to_string_lossy();
        let mut plan = Plan::new(&name, Vec::new(), self.profile)?;
        let profile = &mut plan.profile;
        profile.kv = self.kv_tokens.map_or(profile.kv, Tokens);
        profile.chunk = self.chunk_tokens.map_or(profile.chunk, Tokens);
        profile.max_running = self.max_running.unwrap_or(profile.max_running);
        plan.servers = self.servers;
        plan.speed = self.speed;
        plan.policies = PolicyChoice::named(&self.policy);
        plan.seed = self.seed;
        plan.max_s = self.max_seconds;
        plan.tenants = self.tenants;
        plan.tier = self.tier_victim;
        let (start_s, seconds) = (self.flood_start, self.flood_seconds);
        plan.flood = self.flood.map(|factor| Flood { factor, start_s, seconds });
        plan.server_priority = self.server_priority;
        plan.returns = self.returns;
        plan.costs_off = self.costs_off;
        plan.shuffle_outputs = self.shuffle_outputs;
        plan.queue_max = self.queue_max;
        plan.check()?;
        plan.rows = trace::read(&self.trace)?;
        Ok(plan)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        options: ReplayOptions,
    }

    fn parse(line: &str) -> Result<ReplayOptions, String> {
        let words = std::iter::once("replay").chain(line.split_whitespace());
        Line::try_parse_from(words).map(|line| line.options).map_err(|error| error.to_string())
    }

    #[test]
    fn policies_are_named_once_each_and_all_means_all() {
        let named = |line: &str| {
            let policies = PolicyChoice::named(&parse(line).unwrap().policy);
            policies.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(named("t"), "berthd");
        assert_eq!(named("t --policy sglang,berthd,sglang"), "sglang berthd");
        let all = "berthd round-robin least-connections power-of-two prefix-hash sglang dynamo gie lmetric \
                   gie-queue slots";
        assert_eq!(named("t --policy all,berthd"), all);
    }

    #[test]
    fn an_unknown_policy_is_answered_with_the_choices() {
        let error = parse("t --policy berthd,best").unwrap_err();
        assert!(error.contains("'best'") && error.contains("berthd, all, round-robin"), "{error}");
        assert!(PolicyChoice::value_variants().len() == Baseline::ALL.len() + 2);
    }

    #[test]
    fn values_are_checked_before_the_trace_is_read() {
        let told = |line: &str| parse(line).unwrap().plan().unwrap_err().to_string();
        assert_eq!(told("nowhere --servers 0"), "--servers 0: choose 1 to 64");
        assert!(told("nowhere --speed -1").starts_with("--speed -1: "));
        assert!(told("nowhere --profile instant").starts_with("--profile instant: "));
        assert_eq!(told("nowhere"), "nowhere cannot be read");
        assert!(parse("t --tier-victim system").unwrap_err().contains("choose interactive"));
        assert!(parse("t --seed 0").is_err());
        for alone in ["--flood-seconds 9", "--flood-start 9"] {
            assert!(parse(&format!("t {alone}")).unwrap_err().contains("--flood <FACTOR>"));
            assert!(parse(&format!("t --flood 2 {alone}")).is_ok());
        }
    }
}
