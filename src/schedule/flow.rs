//! Prefill on its way through one server: how much is owed, and when more may come.
//!
//! A server computes prompts one after another, and each step that does slows everyone's tokens. So prompts
//! are handed to it no faster than it takes them in. What was handed over and is not computed yet is a debt in
//! seconds. The first token of a prompt says that it is computed. Behind a prompt whose steps were longer than
//! the gap between tokens that is aimed at, the server owes a rest, in which it only decodes: so long that the
//! mean gap over both is the one aimed at. The aim follows how many requests are at risk of missing the
//! objective.

use super::{
    cost::{Costs, Learned},
    rules::Rules,
};
use crate::units::Tokens;
use std::{collections::VecDeque, time::Duration};
use tokio::time::Instant;

/// Bounds of the gap that is aimed at, over the objective. Far above it nothing rests.
const AIM: (f64, f64) = (0.3, 4.0);
/// Share of the running requests that may be at risk before the aim is lowered.
const RISK_MAX: f64 = 0.12;
/// By how much one correction lowers the aim at most,
const LOWERS: f64 = 0.1;
/// and by how much it raises it.
const RAISES: f64 = 0.05;
/// First tokens after which a server's costs are known.
const KNOWN: u64 = 8;
/// Later prompts whose first tokens come before one is taken to be done.
const PASSED_MAX: u32 = 3;
/// Without a prompt for this long a server is tried again, whatever is thought of it.
const UNTRIED: Duration = Duration::from_secs(10);
/// Corrections with the aim as low as it may be after which that is given up for a while.
const FLOOR_MAX: u32 = 20;
/// That while.
const IN_VAIN: Duration = Duration::from_secs(60);
/// Least time between two corrections of the aim.
const CORRECTED_EVERY: Duration = Duration::from_millis(450);
/// A rest is never longer than so many times the prompt before it.
const REST_MAX: f64 = 2.0;
/// A prompt that should be computed and is not: what is left of it is taken to be this share of itself,
const LATE_LEAST: f64 = 0.1;
/// or this share of the time that it is late, whichever is more.
const LATE_GROWS: f64 = 0.5;

/// The prefill of one server.
#[derive(Clone, Debug)]
pub struct Flow {
    learned: Learned,
    known: bool,
    /// It computes one prompt after another, so that what is owed says when the next one can be.
    serial: bool,
    /// Not computed yet, in the order in which they were handed over.
    line: VecDeque<Prefill>,
    /// What those behind the first one take, seconds.
    behind_s: f64,
    /// When the first one of the line began to be computed.
    begun: Option<Instant>,
    /// Rest that is owed once the line is empty, seconds, and since when it is taken.
    rest_s: f64,
    rests: Option<Instant>,
    /// The gap between tokens that is aimed at, over the objective.
    aim: f64,
    corrected: Option<Instant>,
    /// Corrections in a row that found the aim as low as it may be.
    at_floor: u32,
    /// Until then the aim stays high: lowering it did not help.
    in_vain_until: Option<Instant>,
    /// When a prompt was last handed over.
    sent_at: Option<Instant>,
}

/// A prompt on its way to a server.
#[derive(Clone, Copy, Debug)]
pub struct Prompt {
    /// A number that no other running request on the server has.
    pub seat: u64,
    /// Its tokens.
    pub input: Tokens,
    /// Those of them that are taken to be in the server's cache.
    pub cached: Tokens,
    /// A step in which the server only decodes, seconds.
    pub quiet_s: f64,
    /// Its first token will be told.
    pub watched: bool,
}

#[derive(Clone, Copy, Debug)]
struct Prefill {
    prompt: Prompt,
    asked_s: f64,
    /// Later ones whose first token came before its own.
    passed: u32,
}

impl Flow {
    /// Nothing owed.
    pub fn new(rules: &Rules) -> Self {
        Self {
            learned: Learned::new(rules.costs),
            known: rules.costs_known,
            serial: true,
            line: VecDeque::new(),
            behind_s: 0.0,
            begun: None,
            rest_s: 0.0,
            rests: None,
            aim: 1.0,
            corrected: None,
            at_floor: 0,
            in_vain_until: None,
            sent_at: None,
        }
    }

    /// What work costs here; until it is known, what all servers start from: one that was asked first must not look
    /// better or worse than the others for it.
    pub const fn costs(&self) -> &Costs {
        if self.is_known() { self.learned.costs() } else { self.learned.start() }
    }

    /// Says whether it computes one prompt after another. What stands for several engines does not.
    pub const fn set_serial(&mut self, serial: bool) {
        self.serial = serial;
    }

    /// First tokens that taught it.
    pub const fn seen(&self) -> u64 {
        self.learned.seen()
    }

    /// It is serial, and enough first tokens were seen to go by what work costs here. Before, nothing waits or is refused for it.
    pub const fn is_known(&self) -> bool {
        self.serial && (self.known || self.seen() >= KNOWN)
    }

    /// The gap between tokens that is aimed at, over the objective, 0.3 to 4.0.
    pub const fn aim(&self) -> f64 {
        self.aim
    }

    /// Prompts that are not computed yet.
    pub fn waiting(&self) -> u32 {
        u32::try_from(self.line.len()).unwrap_or(u32::MAX)
    }

    /// Prefill and rest that are owed, seconds.
    pub fn debt_s(&self, now: Instant) -> f64 {
        self.first_s(now) + self.behind_s.max(0.0) + self.rest_left_s(now)
    }

    /// When no more than `debt_s` will be owed, if nothing is heard until then; `None` if only a first token
    /// can tell.
    pub fn falls_to(&self, debt_s: f64, now: Instant) -> Option<Instant> {
        let over = self.debt_s(now) - debt_s;
        if over <= 0.0 {
            return Some(now);
        }
        // Behind the first one nothing is known to be over before a first token says so.
        let drains = match self.line.front() {
            Some(first) => self.first_s(now) - LATE_LEAST * first.asked_s,
            None => self.rest_left_s(now),
        };
        (over <= drains).then(|| now + Duration::try_from_secs_f64(over).unwrap_or_default())
    }

    /// What work costs here may have changed: it is learned quickly again.
    pub fn doubt(&mut self) {
        self.learned.doubt();
    }

    /// A prompt is handed over.
    pub fn sent(&mut self, prompt: Prompt, now: Instant) {
        self.pass(now);
        let mut asked_s = self.costs().prefill_s(prompt.input, prompt.cached);
        if self.line.is_empty() {
            self.rest_s = self.rest_left_s(now);
            self.rests = None;
            self.begun = Some(now);
        } else {
            // What each prompt takes, however short, those behind one another take together. As far as is known.
            if self.is_known() {
                asked_s -= self.costs().prompt_s;
            }
            self.behind_s += asked_s;
        }
        self.sent_at = Some(now);
        self.line.push_back(Prefill { prompt, asked_s, passed: 0 });
    }

    /// Its first token came. `others`: some requests are decoding beside it.
    pub fn first_token(&mut self, seat: u64, others: bool, rules: &Rules, now: Instant) {
        self.pass(now);
        let Some(at) = self.position(seat) else { return };
        let Some(prefill) = self.line.get(at).copied() else { return };
        // Only who was first the whole time says how long it took.
        if let (0, Some(begun)) = (at, self.begun) {
            let took = now.saturating_duration_since(begun).as_secs_f64();
            self.learned.observe(prefill.prompt.input, prefill.prompt.cached, took);
        }
        // A rest is for those who decode meanwhile, and what it should be is known only once costs are.
        if others && self.is_known() {
            self.rest_s += prefill.rest_s(self.aim, rules);
        }
        self.leave(at, now);
        self.pass_over(at, now);
    }

    /// Those before it are computed, too, or will not say so for long: once some have passed one, it keeps nobody
    /// from coming.
    fn pass_over(&mut self, at: usize, now: Instant) {
        for prefill in self.line.iter_mut().take(at) {
            prefill.passed += 1;
        }
        while let Some(at) = self.line.iter().position(|prefill| prefill.passed >= PASSED_MAX) {
            self.leave(at, now);
        }
    }

    /// Nothing runs there any more: nobody needs a rest.
    pub fn idles(&mut self) {
        self.rest_s = 0.0;
    }

    /// It was given nothing for so long that what is thought of it may be wrong.
    pub fn is_untried(&self, now: Instant) -> bool {
        self.sent_at.is_none_or(|at| now.saturating_duration_since(at) >= UNTRIED)
    }

    /// Share of a prompt that is computed, as far as time tells, 0.0 to 1.0.
    pub fn computed(&self, seat: u64, now: Instant) -> f64 {
        match (self.position(seat), self.line.front(), self.begun) {
            (None, ..) => 1.0,
            (Some(0), Some(first), Some(begun)) if first.asked_s > 0.0 => {
                let passed = now.saturating_duration_since(begun).as_secs_f64();
                (passed / first.asked_s).clamp(0.0, 1.0)
            }
            _ => 0.0,
        }
    }

    /// Whether a prompt is not computed yet, as far as is known.
    pub fn waits_for(&mut self, seat: u64, now: Instant) -> bool {
        self.pass(now);
        self.position(seat).is_some()
    }

    /// It is gone, whether or not its first token came.
    pub fn gone(&mut self, seat: u64, now: Instant) {
        self.pass(now);
        if let Some(at) = self.position(seat) {
            self.leave(at, now);
        }
    }

    /// Corrects the aim. `risk`: share of the running requests whose tokens come slower than the objective, or
    /// are about to.
    pub fn correct(&mut self, risk: f64, now: Instant) {
        self.pass(now);
        let since = self.corrected.map(|at| now.saturating_duration_since(at));
        if since.is_some_and(|since| since < CORRECTED_EVERY) {
            return;
        }
        self.corrected = Some(now);
        if self.in_vain_until.is_some_and(|until| now < until) {
            return;
        }
        let over = risk / RISK_MAX - 1.0;
        let factor = if over > 0.0 { 1.0 - LOWERS * over.min(1.0) } else { 1.0 + RAISES };
        self.aim = (self.aim * factor).clamp(AIM.0, AIM.1);
        self.at_floor = if self.aim <= AIM.0 { self.at_floor + 1 } else { 0 };
        // Here tokens come too slowly whatever prompts do: holding those back helps nobody.
        if self.at_floor >= FLOOR_MAX {
            self.at_floor = 0;
            self.aim = AIM.1;
            self.in_vain_until = Some(now + IN_VAIN);
        }
    }

    fn position(&self, seat: u64) -> Option<usize> {
        self.line.iter().position(|prefill| prefill.prompt.seat == seat)
    }

    /// What is left of the prompt that is computed now.
    fn first_s(&self, now: Instant) -> f64 {
        let (Some(first), Some(begun)) = (self.line.front(), self.begun) else { return 0.0 };
        let passed = now.saturating_duration_since(begun).as_secs_f64();
        let left = first.asked_s - passed;
        left.max((LATE_GROWS * -left).max(LATE_LEAST * first.asked_s))
    }

    fn rest_left_s(&self, now: Instant) -> f64 {
        let taken = self.rests.map_or(Duration::ZERO, |since| now.saturating_duration_since(since));
        (self.rest_s - taken.as_secs_f64()).max(0.0)
    }

    /// Those whose first token nobody sees are over when their time is.
    fn pass(&mut self, now: Instant) {
        while let (Some(first), Some(begun)) = (self.line.front(), self.begun) {
            let asked = Duration::try_from_secs_f64(first.asked_s);
            let over = asked.map_or(now, |asked| begun + asked);
            if first.prompt.watched || over > now {
                return;
            }
            self.leave(0, over);
        }
    }

    fn leave(&mut self, at: usize, now: Instant) {
        let Some(gone) = self.line.remove(at) else { return };
        if at > 0 {
            self.behind_s -= gone.asked_s;
            return;
        }
        match self.line.front() {
            Some(next) => {
                self.behind_s -= next.asked_s;
                self.begun = Some(now);
            }
            None => {
                self.behind_s = 0.0;
                self.begun = None;
                self.rests = Some(now);
            }
        }
    }
}

impl Prefill {
    /// How long its server should only decode behind it: long steps and short ones shall come to the gap that is
    /// aimed at.
    fn rest_s(&self, aim: f64, rules: &Rules) -> f64 {
        let new = self.prompt.input.less(self.prompt.cached);
        let steps = rules.steps(new);
        let (busy_s, quiet_s) = (self.asked_s / steps, self.prompt.quiet_s);
        let gap_s = rules.token_gap_s * aim;
        let most = REST_MAX * self.asked_s;
        if busy_s <= gap_s {
            return 0.0;
        }
        if gap_s <= quiet_s * 1.05 {
            return most;
        }
        (steps * quiet_s * (busy_s - gap_s) / (gap_s - quiet_s)).min(most)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flow() -> (Flow, Rules, Instant) {
        let costs = Costs { prompt_s: 0.0, token_s: 1e-3, attention_s: 0.0, ..Costs::default() };
        let rules = Rules { costs, costs_known: true, chunk: Tokens(100), ..Rules::default() };
        (Flow::new(&rules), rules, Instant::now())
    }

    fn prompt(seat: u64, input: u64) -> Prompt {
        Prompt { seat, input: Tokens(input), cached: Tokens::ZERO, quiet_s: 0.01, watched: true }
    }

    fn after(start: Instant, ms: u64) -> Instant {
        start + Duration::from_millis(ms)
    }

    #[test]
    fn debt_falls_with_time_and_by_first_tokens() {
        let (mut flow, rules, start) = flow();
        flow.sent(prompt(1, 1000), start);
        flow.sent(prompt(2, 500), start);
        assert!((flow.debt_s(start) - 1.5).abs() < 1e-9);
        assert!((flow.debt_s(after(start, 400)) - 1.1).abs() < 1e-9);
        assert_eq!(flow.falls_to(1.1, start), Some(after(start, 400)));
        assert_eq!(flow.falls_to(0.2, start), None, "only a first token says so");
        // It came sooner than thought: what was left of it is owed no more.
        flow.first_token(1, true, &rules, after(start, 500));
        assert!((flow.debt_s(after(start, 500)) - 0.5).abs() < 0.1);
        flow.gone(2, after(start, 600));
        assert!(flow.debt_s(after(start, 600)) < 1e-9);
        assert_eq!(flow.waiting(), 0);
    }

    /// Once a prompt that took longer than thought counted as nothing, and servers stuck behind one got more.
    #[test]
    fn a_prompt_that_is_late_still_counts() {
        let (mut flow, _, start) = flow();
        flow.sent(prompt(1, 1000), start);
        assert!((flow.debt_s(after(start, 1000)) - 0.1).abs() < 1e-9);
        assert!(
            (flow.debt_s(after(start, 3000)) - 1.0).abs() < 1e-9,
            "half of the time it is late"
        );
    }

    #[test]
    fn a_prompt_whose_first_token_nobody_sees_is_over_in_its_time() {
        let (mut flow, _, start) = flow();
        flow.sent(Prompt { watched: false, ..prompt(1, 1000) }, start);
        flow.sent(prompt(2, 500), start);
        flow.correct(0.0, after(start, 1200));
        assert_eq!(flow.waiting(), 1);
        assert!((flow.debt_s(after(start, 1200)) - 0.3).abs() < 1e-9);
    }

    #[test]
    fn long_steps_are_followed_by_a_rest_that_time_takes_away() {
        let (mut flow, rules, start) = flow();
        let rules = Rules { token_gap_s: 0.05, ..rules };
        // Ten steps of 0.1 s at a gap of 0.05 s with quiet steps of 0.01 s: 12.5 quiet steps make up for it.
        flow.sent(prompt(1, 1000), start);
        let end = after(start, 1000);
        flow.first_token(1, true, &rules, end);
        assert!((flow.debt_s(end) - 0.125).abs() < 1e-6, "{}", flow.debt_s(end));
        assert!((flow.debt_s(after(end, 100)) - 0.025).abs() < 1e-6);
        assert_eq!(flow.falls_to(0.1, end), Some(after(end, 25)));
        assert!(flow.debt_s(after(end, 200)) < 1e-9);
    }

    #[test]
    fn the_aim_falls_while_requests_are_at_risk_and_recovers() {
        let (mut flow, _, start) = flow();
        for round in 1..20 {
            flow.correct(0.5, after(start, 500 * round));
        }
        assert!((flow.aim() - 0.3).abs() < 1e-9, "{}", flow.aim());
        for round in 20..300 {
            flow.correct(0.01, after(start, 500 * round));
        }
        assert!((flow.aim() - 4.0).abs() < 1e-9);
    }

    /// Where tokens always came too slowly, every prompt was followed by a rest that helped nobody, for ever.
    #[test]
    fn an_aim_that_cannot_be_reached_is_given_up_for_a_while() {
        let (mut flow, _, start) = flow();
        let low = (1..2_000u64).filter(|round| {
            flow.correct(1.0, after(start, 500 * round));
            flow.aim() < 1.0
        });
        let low = low.count();
        assert!((200..600).contains(&low), "{low} of 2000 rounds");
    }

    /// One whose first token a server held back once kept everybody from it.
    #[test]
    fn one_that_others_pass_is_taken_to_be_done() {
        let (mut flow, rules, start) = flow();
        for seat in 1..=4 {
            flow.sent(prompt(seat, 100), start);
        }
        for seat in 2..=4 {
            flow.first_token(seat, false, &rules, after(start, 100 * seat));
        }
        assert_eq!(flow.waiting(), 0);
        assert!(flow.debt_s(after(start, 5_000)) < 1e-9, "no rest either, for nobody decodes");
    }
}
