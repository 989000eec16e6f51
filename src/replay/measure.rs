//! What became of the requests, in figures.
//!
//! An answer is good when its first token came within [`TTFT_BASE_S`] and [`TTFT_PREFILLS`] times the prompt's
//! prefill on an idle server without cache, and its tokens took [`TPOT_MAX_S`] or less each in the mean. For a caller
//! that was refused and came back time runs from when it came back.
//!
//! [`TTFT_BASE_S`]: super::load::TTFT_BASE_S
//! [`TTFT_PREFILLS`]: super::load::TTFT_PREFILLS

use super::{
    fair::{Claim, jain, max_min},
    load::Load,
    plan::Plan,
    report::{Report, TenantReport},
    world::{Arrival, Done, Fate},
};

/// Time that a token may take in the mean of its answer, seconds.
pub const TPOT_MAX_S: f64 = 0.1;
/// A prediction is right within this share of the true time.
const PREDICTED_WITHIN: f64 = 0.25;

/// How a run ended.
#[derive(Clone, Debug)]
pub(super) struct Played {
    /// What became of each request.
    pub fates: Vec<Fate>,
    /// What the servers did.
    pub done: Done,
}

/// Counts and times of some requests.
#[derive(Clone, Debug, Default)]
struct Tally {
    offered: u64,
    good: u64,
    good_tokens: u64,
    refused: u64,
    late: u64,
    slow: u64,
    returned: u64,
    admitted: u64,
    predictions: u64,
    predicted: u64,
    asked_tokens: u64,
    served_tokens: u64,
    /// Seconds, of each: to the first token, per token, and until a refused caller came back.
    ttft: Vec<f64>,
    tpot: Vec<f64>,
    away: Vec<f64>,
}

/// The value below which this share of them lies, the nearest one that occurs; sorts them.
fn percentile(values: &mut [f64], share: f64) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let last = values.len().checked_sub(1)?;
    values.get((last as f64 * share).round() as usize).copied()
}

fn percent(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { rounded(100.0 * part as f64 / whole as f64) }
}

/// More digits than four say nothing, and make tables and files wide.
fn rounded(value: f64) -> f64 {
    (value * 1e4).round() / 1e4
}

// === impl Tally ===

impl Tally {
    /// Of the requests that count and are this tenant's, or anybody's.
    fn of(load: &Load, played: &Played, tenant: Option<usize>) -> Self {
        let mut tally = Self::default();
        for (arrival, fate) in load.arrivals.iter().zip(&played.fates) {
            if load.counts(arrival) && tenant.is_none_or(|tenant| tenant == arrival.tenant) {
                tally.add(arrival, fate);
            }
        }
        tally
    }

    fn add(&mut self, arrival: &Arrival, fate: &Fate) {
        let tokens = arrival.input + arrival.output;
        self.offered += 1;
        self.asked_tokens += tokens;
        let refused = fate.refused_s.is_some();
        if let Some(back) = fate.back_s {
            self.returned += 1;
            self.away.push(back - arrival.at_s);
            self.admitted += u64::from(!refused);
        }
        if refused {
            self.refused += 1;
            return;
        }
        let (Some(first), Some(last)) = (fate.first_s, fate.last_s) else { return };
        self.served_tokens += tokens;
        if let Some((expected, from)) = fate.promised {
            let took = first - from;
            self.predictions += 1;
            self.predicted += u64::from((expected - took).abs() <= PREDICTED_WITHIN * took);
        }
        let ttft = first - fate.back_s.unwrap_or(arrival.at_s);
        let mut slow = false;
        if arrival.output > 1 {
            let tpot = (last - first) / (arrival.output - 1) as f64;
            slow = tpot > TPOT_MAX_S;
            self.tpot.push(tpot);
        }
        let late = ttft > arrival.ttft_s;
        self.ttft.push(ttft);
        self.late += u64::from(late);
        self.slow += u64::from(slow);
        if !late && !slow {
            self.good += 1;
            self.good_tokens += tokens;
        }
    }

    fn ttft_s(&mut self, share: f64) -> Option<f64> {
        percentile(&mut self.ttft, share).map(rounded)
    }

    fn away_s(&mut self, share: f64) -> Option<f64> {
        percentile(&mut self.away, share).map(rounded)
    }

    fn tpot_ms(&mut self, share: f64) -> Option<f64> {
        percentile(&mut self.tpot, share).map(|s| rounded(1e3 * s))
    }
}

/// Requests that were forgotten.
fn lost(played: &Played) -> u64 {
    let ended = |fate: &&Fate| fate.last_s.is_none() && fate.refused_s.is_none();
    played.fates.iter().filter(ended).count() as u64
}

/// Prompt tokens of what was sent to servers.
fn placed_tokens(load: &Load, played: &Played) -> u64 {
    let both = load.arrivals.iter().zip(&played.fates);
    both.filter(|(_, fate)| fate.placed_s.is_some()).map(|(arrival, _)| arrival.input).sum()
}

/// Each tenant's part, and the fair ratios of those that were due something.
fn tenants(
    load: &Load,
    played: &Played,
    alone: Option<(&Load, &Played)>,
) -> (Vec<TenantReport>, Vec<f64>) {
    let mut tallies: Vec<Tally> =
        (0..load.tenants.len()).map(|at| Tally::of(load, played, Some(at))).collect();
    // Nobody has paid for more than another here.
    let claim = |tally: &Tally| Claim { demand: tally.asked_tokens as f64, weight: 1.0 };
    let claims: Vec<Claim> = tallies.iter().map(claim).collect();
    let served: u64 = tallies.iter().map(|tally| tally.served_tokens).sum();
    let fair = max_min(&claims, served as f64);
    let mut ratios = Vec::new();
    let mut reports = Vec::new();
    for (at, ((tenant, tally), fair)) in load.tenants.iter().zip(&mut tallies).zip(fair).enumerate()
    {
        let ratio = (fair > 0.0).then(|| tally.served_tokens as f64 / fair);
        ratios.extend(ratio);
        let alone = alone.filter(|_| !tenant.floods);
        reports.push(TenantReport {
            name: tenant.name.clone(),
            tier: tenant.tier,
            offered: tally.offered,
            good_pct: percent(tally.good, tally.offered),
            rejected_pct: percent(tally.refused, tally.offered),
            ttft_p50_s: tally.ttft_s(0.5),
            ttft_p99_s: tally.ttft_s(0.99),
            alone_ttft_p99_s: alone
                .and_then(|(load, played)| Tally::of(load, played, Some(at)).ttft_s(0.99)),
            served_tokens: tally.served_tokens,
            fair_tokens: fair.round() as u64,
            fair_ratio: ratio.map(rounded),
        });
    }
    (reports, ratios)
}

/// The report of one policy's run, and of the run without the flood if there is one.
pub(super) fn report(
    plan: &Plan,
    policy: String,
    (load, played): (&Load, &Played),
    alone: Option<(&Load, &Played)>,
) -> Report {
    let mut all = Tally::of(load, played, None);
    let (tenants, ratios) = tenants(load, played, alone);
    Report {
        policy,
        offered: all.offered,
        good_pct: percent(all.good, all.offered),
        good_ktok_s: rounded(all.good_tokens as f64 / 1e3 / load.window_s()),
        rejected_pct: percent(all.refused, all.offered),
        ttft_p50_s: all.ttft_s(0.5),
        ttft_p99_s: all.ttft_s(0.99),
        tpot_p99_ms: all.tpot_ms(0.99),
        preemptions: played.done.preemptions,
        prefix_hit_pct: percent(played.done.hits, placed_tokens(load, played)),
        jain: rounded(jain(&ratios)),
        tenants,
        lost: lost(played),
        late_pct: percent(all.late, all.offered),
        slow_pct: percent(all.slow, all.offered),
        tpot_p50_ms: all.tpot_ms(0.5),
        returned: all.returned,
        returned_admitted_pct: (all.returned > 0).then(|| percent(all.admitted, all.returned)),
        returned_after_p50_s: all.away_s(0.5),
        returned_after_p99_s: all.away_s(0.99),
        predicted_pct: (all.predictions > 0).then(|| percent(all.predicted, all.predictions)),
        fair_least: ratios.iter().copied().reduce(f64::min).map(rounded),
        trace: plan.trace.clone(),
        profile: plan.profile_name.clone(),
        servers: plan.servers,
        speed: plan.speed,
        seed: plan.seed,
        window_s: rounded(load.window_s()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ids::Tier, replay::load::Tenant};

    fn arrival(at_s: f64, tenant: usize, output: u64) -> Arrival {
        Arrival { at_s, input: 100, output, blocks: [].into(), tenant, ttft_s: 2.0 }
    }

    fn answered(first: f64, last: f64) -> Fate {
        let placed_s = Some(first - 0.1);
        Fate { placed_s, first_s: Some(first), last_s: Some(last), ..Fate::default() }
    }

    #[test]
    fn good_late_slow_refused_and_lost_are_told_apart() {
        let refused = Fate { refused_s: Some(1.0), refusals: 1, ..Fate::default() };
        let cases = [
            (arrival(0.0, 0, 11), answered(2.0, 3.0)),
            (arrival(0.0, 0, 11), answered(2.1, 3.0)),
            (arrival(0.0, 0, 11), answered(1.0, 2.1)),
            // One token has no time between tokens.
            (arrival(1.0, 0, 1), answered(2.0, 2.0)),
            (arrival(1.0, 0, 11), refused.clone()),
            (arrival(1.0, 0, 11), Fate { back_s: Some(9.0), ..answered(10.0, 11.0) }),
            (arrival(1.0, 0, 11), Fate { back_s: Some(9.0), ..refused }),
            (arrival(1.0, 0, 11), Fate::default()),
        ];
        let mut tally = Tally::default();
        for (arrival, fate) in &cases {
            tally.add(arrival, fate);
        }
        let Tally { offered, good, late, slow, refused, returned, admitted, .. } = tally;
        assert_eq!((offered, good, late, slow, refused), (8, 3, 1, 1, 2));
        assert_eq!((returned, admitted, tally.good_tokens), (2, 1, 111 + 101 + 111));
        assert_eq!(tally.ttft_s(1.0), Some(2.1));
        assert_eq!(tally.ttft_s(0.5), Some(1.0));
        assert_eq!(tally.away_s(0.99), Some(8.0));
        assert_eq!((tally.tpot.len(), tally.tpot_ms(1.0)), (4, Some(110.0)));
        let played = Played { fates: cases.map(|(_, fate)| fate).to_vec(), done: Done::default() };
        assert_eq!(lost(&played), 1);
        assert_eq!(Tally::default().ttft_s(0.99), None);
    }

    #[test]
    fn predictions_hold_within_a_quarter() {
        let mut tally = Tally::default();
        for expected in [0.7, 0.75, 1.25, 1.3] {
            let fate = Fate { promised: Some((expected, 0.5)), ..answered(1.5, 2.0) };
            tally.add(&arrival(0.5, 0, 11), &fate);
        }
        assert_eq!((tally.predictions, tally.predicted), (4, 2));
    }

    #[test]
    fn a_tenant_that_got_half_of_what_was_fair_is_seen() {
        let tenant =
            |name: &str, floods| Tenant { name: name.to_owned(), tier: Tier::Standard, floods };
        // One asks for 400 tokens and gets 200; the other asks for 800 and gets 600. Fair were 400 each.
        let load = Load {
            arrivals: (0..12).map(|at| arrival(0.0, usize::from(at >= 4), 0)).collect(),
            tenants: vec![tenant("victim", false), tenant("flood", true)],
            window: (0.0, 10.0),
        };
        let refused = || Fate { refused_s: Some(0.0), ..Fate::default() };
        let fate = |at| if [0, 1, 4, 5].contains(&at) { refused() } else { answered(1.0, 2.0) };
        let played = Played { fates: (0..12).map(fate).collect(), done: Done::default() };
        let (reports, ratios) = tenants(&load, &played, Some((&load, &played)));
        assert_eq!(ratios, [0.5, 1.5]);
        assert_eq!(reports[0].fair_tokens, 400);
        assert_eq!((reports[0].served_tokens, reports[1].served_tokens), (200, 600));
        assert_eq!((reports[0].alone_ttft_p99_s, reports[1].alone_ttft_p99_s), (Some(1.0), None));
        // (0.5 + 1.5)^2 / (2 x (0.25 + 2.25))
        assert_eq!(jain(&ratios), 0.8);
    }
}
