//! What comes: the trace's requests as they are played, and a flood beside them.

use super::{
    chance::{Chance, Draw},
    plan::{Flood, Plan, ReplayError},
    trace::Row,
    world::Arrival,
};
use crate::{ids::Tier, simulate::clock::Profile, units::Tokens};
use std::sync::Arc;

/// First tokens may come this late whatever the prompt, seconds.
pub const TTFT_BASE_S: f64 = 2.0;
/// How many times the prompt's prefill they may come later than that.
pub const TTFT_PREFILLS: f64 = 2.0;
/// Requests of a trace come up to so much later when the seed is above 1, seconds.
const JITTER_S: f64 = 0.05;
/// Arrivals are played so long after a flood, seconds.
const AFTER_S: f64 = 30.0;
/// The same when refused callers come back.
const AFTER_WITH_RETURNS_S: f64 = 300.0;
/// Requests that are played at most.
const ARRIVALS_MAX: f64 = 5_000_000.0;
/// Longest time that is played, seconds: a year.
const SPAN_MAX_S: f64 = 31_536_000.0;
/// Most tokens of a prompt, and of an answer.
const TOKENS_MAX: u64 = 10_000_000;

/// Whose requests they are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tenant {
    /// What it is called in reports.
    pub name: String,
    /// Its tier.
    pub tier: Tier,
    /// It is the flood.
    pub floods: bool,
}

/// Everything that comes.
#[derive(Clone, Debug)]
pub struct Load {
    /// Requests, in the order in which they come.
    pub arrivals: Vec<Arrival>,
    /// The tenants that they are of.
    pub tenants: Vec<Tenant>,
    /// Requests that come from the first to the second of these count, seconds.
    pub window: (f64, f64),
}

// === impl Load ===

impl Load {
    /// What a plan lets come.
    ///
    /// # Errors
    /// The trace is not one for it.
    pub fn of(plan: &Plan) -> Result<Self, ReplayError> {
        let profile = plan.server();
        let mut arrivals = own(plan, &profile)?;
        let first = arrivals.first().map_or(0.0, |arrival| arrival.at_s);
        let last = arrivals.last().map_or(0.0, |arrival| arrival.at_s);
        let mut window = (first, last);
        if let Some(flood) = &plan.flood {
            window = (flood.start_s, flood.start_s + flood.seconds);
            if last < window.1 {
                return Err(too_short(flood, last));
            }
            let rate = arrivals.len() as f64 / (last - first);
            flooded(plan, flood, rate, &mut arrivals)?;
            let after = if plan.returns.is_some() { AFTER_WITH_RETURNS_S } else { AFTER_S };
            arrivals.retain(|arrival| arrival.at_s < window.1 + after);
            sort(&mut arrivals);
        }
        Ok(Self { arrivals, tenants: tenants(plan), window })
    }

    /// The same without the flood; none if there is no flood.
    pub fn alone(&self) -> Option<Self> {
        let floods =
            |arrival: &Arrival| self.tenants.get(arrival.tenant).is_some_and(|of| of.floods);
        self.tenants.iter().any(|tenant| tenant.floods).then(|| {
            let arrivals =
                self.arrivals.iter().filter(|arrival| !floods(arrival)).cloned().collect();
            Self { arrivals, tenants: self.tenants.clone(), window: self.window }
        })
    }

    /// Does it count?
    pub fn counts(&self, arrival: &Arrival) -> bool {
        (self.window.0..=self.window.1).contains(&arrival.at_s)
    }

    /// How long requests count, seconds, at least 1.
    pub fn window_s(&self) -> f64 {
        (self.window.1 - self.window.0).max(1.0)
    }
}

fn arrival(row: &Row, at_s: f64, tenant: usize, profile: &Profile) -> Arrival {
    Arrival {
        at_s,
        input: row.input,
        output: row.output,
        blocks: Arc::clone(&row.blocks),
        tenant,
        ttft_s: TTFT_BASE_S + TTFT_PREFILLS * profile.prefill_s(Tokens(row.input)),
    }
}

fn sort(arrivals: &mut [Arrival]) {
    arrivals.sort_by(|a, b| a.at_s.total_cmp(&b.at_s));
}

/// The trace's own requests.
fn own(plan: &Plan, profile: &Profile) -> Result<Vec<Arrival>, ReplayError> {
    let mut whose = Chance::new(plan.seed, Draw::Tenants);
    let mut later = Chance::new(plan.seed, Draw::Jitter);
    let end = plan.max_s.unwrap_or(f64::INFINITY);
    let mut arrivals = Vec::new();
    for row in plan.rows.iter().take_while(|row| row.at_s / plan.speed < end) {
        let at_s = row.at_s / plan.speed;
        if at_s > SPAN_MAX_S {
            let text = format!(
                "{} lasts more than a year at this speed; raise --speed, or cut it with --max-seconds",
                plan.trace
            );
            return Err(ReplayError::Load(text));
        }
        if row.input.max(row.output) > TOKENS_MAX {
            let text = format!(
                "{} has a request of {} input and {} output tokens; at most {TOKENS_MAX} of each can be played",
                plan.trace, row.input, row.output
            );
            return Err(ReplayError::Load(text));
        }
        let jitter = if plan.seed > 1 { JITTER_S * later.unit() } else { 0.0 };
        arrivals.push(arrival(row, at_s + jitter, whose.below(plan.tenants), profile));
    }
    if arrivals.is_empty() {
        return Err(ReplayError::Load(format!("{} has no requests to play", plan.trace)));
    }
    sort(&mut arrivals);
    if plan.shuffle_outputs {
        shuffle_outputs(&mut arrivals, &mut Chance::new(plan.seed, Draw::Outputs));
    }
    Ok(arrivals)
}

/// Fisher and Yates.
fn shuffle_outputs(arrivals: &mut [Arrival], chance: &mut Chance) {
    let mut outputs: Vec<u64> = arrivals.iter().map(|arrival| arrival.output).collect();
    for at in (1..outputs.len()).rev() {
        outputs.swap(at, chance.below(at + 1));
    }
    for (arrival, output) in arrivals.iter_mut().zip(outputs) {
        arrival.output = output;
    }
}

/// Adds the flood's requests: evenly spaced, each as large as any of the trace's, with nothing in common.
fn flooded(
    plan: &Plan,
    flood: &Flood,
    rate: f64,
    arrivals: &mut Vec<Arrival>,
) -> Result<(), ReplayError> {
    let count = (rate * flood.factor * flood.seconds).round();
    if count + arrivals.len() as f64 > ARRIVALS_MAX {
        let text = format!(
            "--flood {} makes {count} requests, and more than {ARRIVALS_MAX} in all cannot be played; choose \
             a smaller one",
            flood.factor
        );
        return Err(ReplayError::Load(text));
    }
    let mut sizes = Chance::new(plan.seed, Draw::Flood);
    let trace = arrivals.len();
    for number in 0..count as usize {
        let at_s = flood.start_s + flood.seconds * number as f64 / count;
        let Some(like) = arrivals.get(sizes.below(trace)) else { continue };
        let blocks = Arc::from([]);
        arrivals.push(Arrival { at_s, tenant: plan.tenants, blocks, ..like.clone() });
    }
    Ok(())
}

fn too_short(flood: &Flood, last: f64) -> ReplayError {
    let Flood { start_s, seconds, .. } = flood;
    ReplayError::Load(format!(
        "requests come for {last:.0} s only, and the flood is to last from second {start_s} to {}; lower \
         --speed, raise --max-seconds, or change --flood-start and --flood-seconds",
        start_s + seconds
    ))
}

fn tenants(plan: &Plan) -> Vec<Tenant> {
    let one = if plan.flood.is_some() { "victim" } else { "tenant" };
    let name =
        |at: usize| if plan.tenants == 1 { one.to_owned() } else { format!("{one}-{}", at + 1) };
    let own = (0..plan.tenants).map(|at| Tenant { name: name(at), tier: plan.tier, floods: false });
    let flood = Tenant { name: "flood".to_owned(), tier: Tier::Standard, floods: true };
    own.chain(plan.flood.map(|_| flood)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simulate::ProfileName;

    /// Two requests a second for so many seconds, each with a block.
    fn plan(seconds: u32) -> Plan {
        let row = |at: u32| Row {
            at_s: f64::from(at) / 2.0,
            input: 600 + u64::from(at),
            output: 10 + u64::from(at),
            blocks: Arc::from([u64::from(at)]),
        };
        let rows = (0..=2 * seconds).map(row).collect();
        Plan::new("t", rows, ProfileName::Small8bH200).unwrap()
    }

    #[test]
    fn seed_one_is_the_trace_as_it_is_and_others_come_a_little_later() {
        let mut plan = plan(100);
        plan.speed = 2.0;
        let load = Load::of(&plan).unwrap();
        assert_eq!((load.arrivals.len(), load.window), (201, (0.0, 50.0)));
        assert_eq!(load.arrivals[10].at_s, 2.5);
        assert!(load.alone().is_none());
        plan.seed = 2;
        let other = Load::of(&plan).unwrap();
        let later = |(a, b): (&Arrival, &Arrival)| b.at_s - a.at_s;
        let late: Vec<f64> = load.arrivals.iter().zip(&other.arrivals).map(later).collect();
        assert!(late.iter().all(|late| (0.0..JITTER_S).contains(late)), "{late:?}");
        assert!(late.iter().any(|late| *late > 0.04));
        plan.max_s = Some(10.0);
        assert_eq!(Load::of(&plan).unwrap().arrivals.len(), 40);
    }

    #[test]
    fn a_flood_is_counted_spaced_evenly_and_has_nothing_in_common() {
        let mut plan = plan(200);
        plan.flood = Some(Flood { factor: 7.0, start_s: 60.0, seconds: 60.0 });
        let load = Load::of(&plan).unwrap();
        let flood: Vec<&Arrival> = load.arrivals.iter().filter(|a| a.tenant == 1).collect();
        // 401 requests in 200 s, times 7, for 60 s.
        assert_eq!(flood.len(), 842);
        assert!(flood.iter().all(|a| a.blocks.is_empty() && load.counts(a)));
        assert_eq!((flood[0].at_s, flood[421].at_s), (60.0, 90.0));
        assert_eq!((load.window, load.window_s()), ((60.0, 120.0), 60.0));
        let alone = load.alone().unwrap();
        assert_eq!(alone.arrivals.len() + flood.len(), load.arrivals.len());
        assert_eq!(alone.arrivals.last().unwrap().at_s, 149.5);
        plan.returns = Some(0.2);
        assert_eq!(Load::of(&plan).unwrap().arrivals.last().unwrap().at_s, 200.0);
        let names: Vec<String> = load.tenants.into_iter().map(|tenant| tenant.name).collect();
        assert_eq!(names, ["victim", "flood"]);
        plan.max_s = Some(90.0);
        let error = Load::of(&plan).unwrap_err().to_string();
        assert!(error.starts_with("requests come for 90 s only"), "{error}");
    }

    #[test]
    fn answers_are_dealt_anew_and_requests_to_tenants_by_seed() {
        let mut plan = plan(100);
        let outputs = |plan: &Plan| -> Vec<u64> {
            Load::of(plan).unwrap().arrivals.iter().map(|arrival| arrival.output).collect()
        };
        let before = outputs(&plan);
        plan.shuffle_outputs = true;
        let mut after = outputs(&plan);
        assert_ne!(before, after);
        assert_eq!(after, outputs(&plan));
        after.sort_unstable();
        assert_eq!(before, after);
        plan.tenants = 4;
        let load = Load::of(&plan).unwrap();
        let of = |tenant| load.arrivals.iter().filter(|a| a.tenant == tenant).count();
        let counts: Vec<usize> = (0..4).map(of).collect();
        assert!(counts.iter().all(|count| (30..70).contains(count)), "{counts:?}");
        assert_eq!((load.tenants.len(), load.tenants[3].name.as_str()), (4, "tenant-4"));
    }

    #[test]
    fn what_cannot_be_played_is_told() {
        let told = |plan: &Plan| Load::of(plan).unwrap_err().to_string();
        let mut slow = plan(10);
        slow.speed = 1e-9;
        assert!(told(&slow).contains("raise --speed"), "{}", told(&slow));
        let mut large = plan(10);
        large.rows[3].output = u64::MAX;
        assert!(told(&large).contains("at most 10000000"), "{}", told(&large));
        let mut many = plan(200);
        many.flood = Some(Flood { factor: 1000.0, start_s: 0.0, seconds: 200.0 });
        many.rows.iter_mut().for_each(|row| row.at_s /= 100.0);
        assert!(told(&many).contains("requests come for 2 s only"), "{}", told(&many));
    }
}
