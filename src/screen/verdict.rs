//! From what was found to what is done: the policy's own rules, and nothing else.

use super::Origin;
use crate::config::{Action, InputPolicy, Sensitivity};
use std::{borrow::Cow, ops::Range};

/// The label of prompt injection and jailbreaks, by models and rules.
pub const INJECTION: &str = "injection";
/// The label of chat-control tokens and role markers in content.
pub const CONTROL: &str = "control_token";
/// The label of text that people do not see.
pub const HIDDEN: &str = "hidden_text";
/// The label of keys, tokens and passwords.
pub const SECRET: &str = "secret";
/// The label of numbers and addresses of people.
pub const PERSONAL: &str = "personal";

/// One thing that was found in one text.
#[derive(Clone, Debug, PartialEq)]
pub struct Finding {
    /// What it is.
    pub label: Cow<'static, str>,
    /// What exactly: the rule, the kind of secret, the model. For records, never for callers.
    pub kind: Cow<'static, str>,
    /// How sure, 0 to 1.
    pub score: f32,
    /// Who speaks.
    pub origin: Origin,
    /// Which of the request's texts.
    pub passage: usize,
    /// Where in it, in bytes; `None`: somewhere.
    pub span: Option<Range<usize>>,
    /// A rule of the operator's found it.
    pub by_rule: bool,
    /// What that rule asks for.
    pub asks: Option<Action>,
}

/// What is done, and why.
#[derive(Clone, Debug, PartialEq)]
pub struct Verdict {
    /// What is done.
    pub action: Action,
    /// What would have been done if the mode were no ceiling: what a stricter mode would change.
    pub wished: Action,
    /// The label that decided; `None` where nothing was found.
    pub label: Option<Cow<'static, str>>,
    /// How sure that was.
    pub score: f32,
    /// What is taken out, where something is: passage and span.
    pub remove: Vec<Finding>,
}

/// A bar for the strongest of so many windows. One in a hundred of single windows may be above the usual bar, one in
/// a thousand above the sure one; a long text has many chances. So for ten windows the sure bar holds, for a hundred
/// one as much above that, on the scale of logits.
/// A text of a few letters (a name, an address) is like nothing that models learned from: for it, too, the sure bar
/// holds.
pub fn bar_of_text(usual: f32, sure: f32, windows: usize, bytes: usize) -> f32 {
    if bytes < FEW_BYTES {
        return usual.max(sure);
    }
    let logit = |share: f32| {
        let share = share.clamp(1e-6, 1.0 - 1e-6);
        (share / (1.0 - share)).ln()
    };
    let decade = (logit(sure) - logit(usual)).max(0.0);
    let raised = logit(usual) + decade * (windows.max(1) as f32).log10();
    1.0 / (1.0 + (-raised).exp())
}

/// The probability above which a model's word counts, by where the text comes from.
pub fn bar(policy: &InputPolicy, label: &str, origin: Origin, usual: f32, sure: f32) -> f32 {
    let own = |map: &std::collections::BTreeMap<String, f64>, key: &str| {
        map.get(key).map(|bar| *bar as f32)
    };
    if label == INJECTION
        && let Some(bar) = own(&policy.origins, origin.as_str())
    {
        return bar;
    }
    if let Some(bar) = own(&policy.thresholds, label) {
        return bar;
    }
    match (origin, policy.sensitivity) {
        // What the operator and the model itself wrote gives orders by its nature.
        (Origin::System | Origin::Assistant, _) | (_, Sensitivity::Sure) => sure,
        (Origin::User | Origin::Tool, Sensitivity::Usual) => usual,
    }
}

/// Texts shorter than this say too little.
const FEW_BYTES: usize = 20;

/// Scores of rules below this only tell, where no threshold of the label says otherwise.
const RULE_MIN: f32 = 0.5;

/// What is done about something without the operator's word.
fn usual(label: &str) -> Action {
    match label {
        // Hidden text by itself is odd, not wrong; what it says is judged like the rest.
        HIDDEN => Action::Flag,
        // A caller who pastes a key is best served by its not reaching the model.
        SECRET => Action::Sanitise,
        PERSONAL => Action::Shadow,
        _ => Action::Refuse,
    }
}

/// What a finding asks for under a policy, before the mode's ceiling.
fn wished(policy: &InputPolicy, finding: &Finding) -> Action {
    let named = |key: &str| policy.actions.get(key).copied();
    // A rule that is not sure of itself tells, and does no more.
    let least = policy.thresholds.get(&*finding.label).map_or(RULE_MIN, |bar| *bar as f32);
    if finding.by_rule && finding.score < least {
        return named(&finding.kind).unwrap_or(Action::Flag);
    }
    named(&finding.kind)
        .or_else(|| named(&finding.label))
        .or(finding.asks)
        .unwrap_or_else(|| usual(&finding.label))
}

/// Decides what becomes of a request's texts.
pub fn decide(policy: &InputPolicy, findings: &[Finding]) -> Verdict {
    let mut verdict = Verdict {
        action: Action::Off,
        wished: Action::Off,
        label: None,
        score: 0.0,
        remove: Vec::new(),
    };
    for finding in findings {
        let wished = wished(policy, finding);
        if wished == Action::Off {
            continue;
        }
        verdict.wished = verdict.wished.max(wished);
        let mut action = wished.min(policy.mode);
        if action == Action::Sanitise && !can_remove(finding) {
            // What cannot be taken out must not pass as if it had been.
            action = Action::Refuse;
        }
        if action == Action::Sanitise {
            verdict.remove.push(finding.clone());
        }
        if (action, finding.score) > (verdict.action, verdict.score) || verdict.label.is_none() {
            verdict.label = Some(finding.label.clone());
            verdict.score = finding.score;
        }
        verdict.action = verdict.action.max(action);
    }
    verdict
}

/// Whether something can be taken out and leave a request that still makes sense.
fn can_remove(finding: &Finding) -> bool {
    // A whole text of third parties can go; a user's own cannot.
    finding.span.is_some() || finding.origin == Origin::Tool
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config;

    fn policy(text: &str) -> InputPolicy {
        let text = format!("[screen.input]\n{text}");
        config::parse_text("test", &text).unwrap().settings.screen.usual.input
    }

    fn found(
        label: &'static str,
        kind: &'static str,
        origin: Origin,
        span: Option<Range<usize>>,
    ) -> Finding {
        Finding {
            label: label.into(),
            kind: kind.into(),
            score: 0.9,
            origin,
            passage: 0,
            span,
            by_rule: false,
            asks: None,
        }
    }

    #[test]
    fn the_mode_is_the_ceiling() {
        let all = [
            found(INJECTION, "model", Origin::User, None),
            found(SECRET, "jwt", Origin::User, Some(0..3)),
        ];
        for (mode, action, removed) in [
            ("off", Action::Off, 0),
            ("shadow", Action::Shadow, 0),
            ("flag", Action::Flag, 0),
            ("sanitise", Action::Refuse, 1),
            ("refuse", Action::Refuse, 1),
        ] {
            let verdict = decide(&policy(&format!("mode = \"{mode}\"")), &all);
            assert_eq!((verdict.action, verdict.remove.len()), (action, removed), "{mode}");
            assert_eq!(verdict.wished, Action::Refuse);
            assert_eq!(verdict.label.as_deref(), Some(INJECTION), "{mode}");
        }
        assert_eq!(decide(&policy("mode = \"refuse\""), &[]).action, Action::Off);
    }

    #[test]
    fn kinds_win_over_labels_and_labels_over_rules() {
        let policy = policy(
            "mode = \"refuse\"\nactions = { jwt = \"refuse\", secret = \"flag\", leak = \"off\" }",
        );
        let decided = |finding: Finding| decide(&policy, &[finding]).action;
        assert_eq!(decided(found(SECRET, "jwt", Origin::User, None)), Action::Refuse);
        assert_eq!(decided(found(SECRET, "aws_key", Origin::User, None)), Action::Flag);
        assert_eq!(decided(found("leak", "r", Origin::User, None)), Action::Off);
        let rule = Finding { asks: Some(Action::Flag), ..found("policy", "r", Origin::User, None) };
        assert_eq!(decided(rule), Action::Flag);
    }

    #[test]
    fn a_rule_that_is_not_sure_only_tells() {
        let plain = policy("mode = \"refuse\"");
        let rule =
            |score| Finding { by_rule: true, score, ..found("injection", "r", Origin::User, None) };
        assert_eq!(decide(&plain, &[rule(0.3)]).action, Action::Flag);
        assert_eq!(decide(&plain, &[rule(0.6)]).action, Action::Refuse);
        let strict = policy("mode = \"refuse\"\nthresholds = { injection = 0.2 }");
        assert_eq!(decide(&strict, &[rule(0.3)]).action, Action::Refuse);
    }

    #[test]
    fn many_windows_raise_the_bar() {
        let of = |windows| bar_of_text(0.9, 0.98, windows, 100);
        assert!((of(1) - 0.9).abs() < 1e-4 && (of(0) - 0.9).abs() < 1e-4);
        assert!((of(10) - 0.98).abs() < 1e-4);
        assert!(of(100) > 0.99 && of(100) < 1.0);
        assert!((bar_of_text(0.5, 0.5, 1000, 100) - 0.5).abs() < 1e-6);
        assert_eq!(bar_of_text(0.9, 0.98, 1, 15), 0.98);
    }

    #[test]
    fn what_cannot_be_taken_out_is_refused() {
        let policy = policy("mode = \"sanitise\"");
        let of = |origin, span| decide(&policy, &[found(INJECTION, "model", origin, span)]).action;
        assert_eq!(of(Origin::User, None), Action::Refuse);
        assert_eq!(of(Origin::Tool, None), Action::Sanitise);
        assert_eq!(of(Origin::User, Some(3..9)), Action::Sanitise);
    }

    #[test]
    fn bars_go_by_origin() {
        let policy = policy("origins = { tool = 0.3 }\nthresholds = { injection = 0.8 }");
        let of = |origin| bar(&policy, INJECTION, origin, 0.5, 0.95);
        assert_eq!((of(Origin::Tool), of(Origin::User)), (0.3, 0.8));
        let plain = super::tests::policy("mode = \"flag\"");
        let of = |origin| bar(&plain, INJECTION, origin, 0.5, 0.95);
        assert_eq!((of(Origin::User), of(Origin::System)), (0.5, 0.95));
    }
}
