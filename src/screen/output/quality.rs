//! How good an answer looks, as one number, from what was seen of it. A rule of thumb to compare answers by, not a
//! judgement of what they say.
//!
//! The score is the product of its parts, each between 0 and 1, where 1 is nothing to complain about:
//!
//! ```text
//! score = toxic · unsafe · refusal · low quality · finish · format · degeneration · repetition · noise · empty
//! ```
//!
//! A classifier's head `p` gives `1 − weight · p`. Repetition falls along a ramp of the share of repeated rows of
//! words, in answers of 64 words and more. Noise is the product of what marks of broken text, control tokens and
//! impossible words leave. The weights are the constants below; none is learned. As a product, no part makes up
//! for another, and a worse part never raises the score.

use super::degenerate::{Degeneration, Facts, Kind};
use serde_json::value::RawValue;

/// What is lost at certainty of each head.
const TOXIC: f32 = 0.8;
const UNSAFE: f32 = 0.9;
const REFUSAL: f32 = 0.4;
const LOW_QUALITY: f32 = 0.7;
/// What is left of answers that ended otherwise than by themselves.
const LENGTH: f32 = 0.7;
const CONTENT_FILTER: f32 = 0.4;
const OTHER: f32 = 0.6;
/// What is left of an answer in another form than the one asked for.
const INVALID: f32 = 0.3;
/// What is left of answers that fell apart.
const LOOP: f32 = 0.15;
const GIBBERISH: f32 = 0.1;
const CONTROL_TOKENS: f32 = 0.4;
const REPLACEMENT: f32 = 0.2;
const ENDLESS: f32 = 0.1;
/// Shares of repeated rows of words at which repetition begins to count and counts all it can, and what is lost
/// then. Tables and code repeat a third of their rows.
const REPEATED_FROM: f32 = 0.5;
const REPEATED_TO: f32 = 0.95;
const REPETITION: f32 = 0.6;
/// Words below which repetition says nothing.
const WORDS_LEAST: u64 = 64;
/// How many of each halve what noise leaves, and what is lost if no word is possible.
const REPLACEMENTS_HALF: f32 = 8.0;
const CONTROL_TOKENS_HALF: f32 = 4.0;
const ODD: f32 = 0.5;
/// What is left of no answer at all.
const EMPTY: f32 = 0.05;

/// What a classifier thinks of the answer, each 0 to 1, the share of certainty. What is no number counts as 0.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Heads {
    /// It insults.
    pub toxic: f32,
    /// It helps to do harm.
    pub unsafe_: f32,
    /// It refuses.
    pub refusal: f32,
    /// It is badly written.
    pub lowq: f32,
}

/// How an answer ended, in the words of the OpenAI API.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Finish {
    /// By itself.
    Stop,
    /// At the most tokens allowed.
    Length,
    /// With calls of tools.
    ToolCalls,
    /// It was filtered.
    ContentFilter,
    /// Otherwise, or nobody said.
    Other,
}

/// Has the answer the form that was asked for?
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FormatCheck {
    /// It has.
    Valid,
    /// It has not.
    Invalid,
}

/// The form that was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Wanted {
    /// Any.
    Any,
    /// One JSON value and nothing else. Whether it fits a schema is not looked at.
    Json,
    /// Arguments of a tool: one JSON object.
    Arguments,
}

/// The parts of a score, each 0 to 1.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Parts {
    /// Of [`Heads::toxic`].
    pub toxic: f32,
    /// Of [`Heads::unsafe_`].
    pub unsafe_: f32,
    /// Of [`Heads::refusal`].
    pub refusal: f32,
    /// Of [`Heads::lowq`].
    pub lowq: f32,
    /// Of how it ended.
    pub finish: f32,
    /// Of its form.
    pub format: f32,
    /// Of what it fell into.
    pub degeneration: f32,
    /// Of rows of words said again.
    pub repetition: f32,
    /// Of marks of broken text, control tokens and impossible words.
    pub noise: f32,
    /// Of there being an answer.
    pub empty: f32,
}

/// How good an answer looks.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Quality {
    /// 0 to 1, the product of the parts.
    pub score: f32,
    /// Why.
    pub parts: Parts,
}

/// Rates an answer. `heads` are a classifier's, if one looked; `format` is [`format_of`] the answer; `empty` says
/// that there is neither text nor a tool's call.
pub fn quality(
    facts: &Facts,
    heads: Option<Heads>,
    finish: Finish,
    format: Option<FormatCheck>,
    degeneration: Option<Degeneration>,
    empty: bool,
) -> Quality {
    let heads = heads.unwrap_or_default();
    let parts = Parts {
        toxic: left(TOXIC, heads.toxic),
        unsafe_: left(UNSAFE, heads.unsafe_),
        refusal: left(REFUSAL, heads.refusal),
        lowq: left(LOW_QUALITY, heads.lowq),
        finish: finish_left(finish),
        format: if format == Some(FormatCheck::Invalid) { INVALID } else { 1.0 },
        degeneration: degeneration.map_or(1.0, |found| kind_left(found.kind)),
        repetition: repetition_left(facts),
        noise: noise_left(facts),
        empty: if empty { EMPTY } else { 1.0 },
    };
    Quality { score: parts.product().clamp(0.0, 1.0), parts }
}

impl Parts {
    fn product(&self) -> f32 {
        let heads = self.toxic * self.unsafe_ * self.refusal * self.lowq;
        let form = self.finish * self.format * self.empty;
        heads * form * self.degeneration * self.repetition * self.noise
    }
}

/// What a complaint of so much certainty leaves.
fn left(weight: f32, certainty: f32) -> f32 {
    let certainty = if certainty.is_nan() { 0.0 } else { certainty.clamp(0.0, 1.0) };
    1.0 - weight * certainty
}

fn finish_left(finish: Finish) -> f32 {
    match finish {
        Finish::Stop | Finish::ToolCalls => 1.0,
        Finish::Length => LENGTH,
        Finish::ContentFilter => CONTENT_FILTER,
        Finish::Other => OTHER,
    }
}

fn kind_left(kind: Kind) -> f32 {
    match kind {
        Kind::Loop => LOOP,
        Kind::Gibberish => GIBBERISH,
        Kind::ControlTokens => CONTROL_TOKENS,
        Kind::Replacement => REPLACEMENT,
        Kind::Endless => ENDLESS,
    }
}

fn repetition_left(facts: &Facts) -> f32 {
    if facts.words < WORDS_LEAST {
        return 1.0;
    }
    left(REPETITION, (facts.repeated_share - REPEATED_FROM) / (REPEATED_TO - REPEATED_FROM))
}

fn noise_left(facts: &Facts) -> f32 {
    let halved = |count: u32, half: f32| half / (half + count as f32);
    halved(facts.replacement, REPLACEMENTS_HALF)
        * halved(facts.control_tokens, CONTROL_TOKENS_HALF)
        * left(ODD, facts.odd_share)
}

/// Whether an answer, or a tool's arguments, have the form that was asked for; none if any will do. Fences
/// around JSON are no JSON, and neither is nothing.
pub fn format_of(text: &str, wanted: Wanted) -> Option<FormatCheck> {
    let valid = match wanted {
        Wanted::Any => return None,
        Wanted::Json => is_json(text),
        Wanted::Arguments => text.trim_start().starts_with('{') && is_json(text),
    };
    Some(if valid { FormatCheck::Valid } else { FormatCheck::Invalid })
}

/// Reads without building anything, however deep it is.
fn is_json(text: &str) -> bool {
    serde_json::from_str::<&RawValue>(text).is_ok()
}

#[cfg(test)]
mod tests {
    use super::super::degenerate::{Limits, Watch};
    use super::*;
    use proptest::prelude::*;

    fn rate(facts: &Facts) -> f32 {
        quality(facts, None, Finish::Stop, None, None, false).score
    }

    fn facts_of(text: &str) -> Facts {
        let mut watch = Watch::new(Limits::default());
        watch.push(text);
        watch.facts()
    }

    #[test]
    fn each_complaint_costs_what_it_should() {
        let fine =
            Facts { words: 200, repeated_share: 0.1, distinct_share: 0.6, ..Facts::default() };
        assert_eq!(rate(&fine), 1.0);
        let with = |heads| quality(&fine, Some(heads), Finish::Stop, None, None, false).score;
        let near = |a: f32, b: f32| assert!((a - b).abs() < 1e-5, "{a} {b}");
        near(with(Heads { toxic: 1.0, ..Heads::default() }), 0.2);
        near(with(Heads { unsafe_: 0.5, ..Heads::default() }), 0.55);
        near(with(Heads { refusal: 1.0, lowq: 1.0, ..Heads::default() }), 0.18);
        near(with(Heads { toxic: f32::NAN, unsafe_: -3.0, ..Heads::default() }), 1.0);
        let ended = |finish| quality(&fine, None, finish, None, None, false).score;
        near(ended(Finish::Length), 0.7);
        near(ended(Finish::ToolCalls), 1.0);
        let found = Some(Degeneration { kind: Kind::Loop, at: 3 });
        let worst = quality(&fine, None, Finish::Other, Some(FormatCheck::Invalid), found, true);
        near(worst.score, 0.6 * 0.3 * 0.15 * 0.05);
        near(worst.parts.degeneration, LOOP);
        near(rate(&Facts { replacement: 8, ..fine }), 0.5);
        near(rate(&Facts { control_tokens: 4, odd_share: 1.0, ..fine }), 0.25);
        near(rate(&Facts { repeated_share: 1.0, ..fine }), 0.4);
        near(rate(&Facts { repeated_share: 1.0, words: 63, ..fine }), 1.0);
    }

    #[test]
    fn answers_are_rated_as_people_would() {
        let good = facts_of(
            "The tide turns about every six hours, because the earth turns below two hills of water. ",
        );
        let mut cases = vec![good];
        cases.push(facts_of("Fine.<|im_end|>"));
        cases.push(facts_of(&"Round and round it goes, and nobody knows. ".repeat(20)));
        let scores: Vec<f32> = cases.iter().map(rate).collect();
        assert!(scores.is_sorted_by(|a, b| a > b), "{scores:?}");
        let table: String = (0..80).map(|n| format!("| row {n} | value {} |\n", n * n)).collect();
        assert!(rate(&facts_of(&table)) > 0.95);
    }

    #[test]
    fn json_is_checked_as_a_whole() {
        let cases = [
            ("{\"a\": [1, 2.5e3, null]}", true, true),
            (" \n{}\n ", true, true),
            ("[1]", true, false),
            ("\"text\"", true, false),
            ("", false, false),
            ("{\"a\": 1", false, false),
            ("{\"a\": 1} and so on", false, false),
            ("```json\n{}\n```", false, false),
            ("{'a': 1}", false, false),
            ("{\"a\": 01}", false, false),
        ];
        for (text, json, arguments) in cases {
            let check = |valid| Some(if valid { FormatCheck::Valid } else { FormatCheck::Invalid });
            assert_eq!(format_of(text, Wanted::Json), check(json), "{text}");
            assert_eq!(format_of(text, Wanted::Arguments), check(arguments), "{text}");
            assert_eq!(format_of(text, Wanted::Any), None);
        }
        let deep = "[".repeat(100_000);
        assert_eq!(format_of(&deep, Wanted::Json), Some(FormatCheck::Invalid));
        assert!(format_of(&(deep + &"]".repeat(100_000)), Wanted::Json).is_some());
    }

    /// All that goes into a score.
    #[derive(Clone, Copy, Debug)]
    struct Case {
        facts: Facts,
        heads: Heads,
        finish: Finish,
        format: FormatCheck,
        kind: Option<Kind>,
        empty: bool,
    }

    impl Case {
        fn score(self) -> f32 {
            let found = self.kind.map(|kind| Degeneration { kind, at: 0 });
            let Self { facts, heads, finish, format, empty, .. } = self;
            quality(&facts, Some(heads), finish, Some(format), found, empty).score
        }

        /// The same with one part worse.
        fn worse(mut self, part: usize, by: f32) -> Self {
            let (facts, heads) = (&mut self.facts, &mut self.heads);
            match part {
                0 => heads.toxic += by,
                1 => heads.unsafe_ += by,
                2 => heads.refusal += by,
                3 => heads.lowq += by,
                4 => facts.repeated_share += by,
                5 => facts.odd_share += by,
                6 => facts.replacement += (by * 20.0) as u32,
                7 => facts.control_tokens += (by * 20.0) as u32,
                8 => self.format = FormatCheck::Invalid,
                9 => self.empty = true,
                10 if self.kind.is_none() => self.kind = Some(Kind::Endless),
                _ if self.finish == Finish::Stop => self.finish = Finish::Length,
                _ => {}
            }
            self
        }
    }

    fn cases() -> impl Strategy<Value = Case> {
        let share = || prop_oneof![4 => 0.0f32..=1.0, 1 => Just(f32::NAN), 1 => -2.0f32..3.0];
        let facts = (0u64..200, share(), 0u32..40, 0u32..40, share()).prop_map(
            |(words, repeated_share, replacement, control_tokens, odd_share)| Facts {
                words,
                repeated_share,
                replacement,
                control_tokens,
                odd_share,
                ..Facts::default()
            },
        );
        let heads = (share(), share(), share(), share())
            .prop_map(|(toxic, unsafe_, refusal, lowq)| Heads { toxic, unsafe_, refusal, lowq });
        let finishes =
            [Finish::Stop, Finish::Length, Finish::ToolCalls, Finish::ContentFilter, Finish::Other];
        let kinds = [None, Some(Kind::Loop), Some(Kind::Gibberish), Some(Kind::ControlTokens)];
        let rest = (
            prop::sample::select(finishes.to_vec()),
            prop::sample::select(kinds.to_vec()),
            any::<(bool, bool)>(),
        );
        (facts, heads, rest).prop_map(|(facts, heads, (finish, kind, (valid, empty)))| Case {
            facts,
            heads,
            finish,
            format: if valid { FormatCheck::Valid } else { FormatCheck::Invalid },
            kind,
            empty,
        })
    }

    proptest! {
        #[test]
        fn what_is_worse_never_scores_higher(case in cases(), part in 0usize..12, by in 0.0f32..1.0) {
            let (score, worse) = (case.score(), case.worse(part, by).score());
            prop_assert!((0.0..=1.0).contains(&score), "{score}");
            prop_assert!(worse <= score, "{score} {worse}");
        }
    }
}
