//! The step `screen`: a request's texts before the checks, the classifiers and the policy.

use super::{
    super::{Broker, Live, answer, study::Studied},
    Judged, Screening,
};
use crate::{
    api::Route,
    classify::{Failure, Owner},
    config::{Action, InputPolicy, OnFailure, Task, Tenant},
    error::{Reason, Refusal},
    pipeline::record::Record,
    screen::{
        Finding, INJECTION, Inspected, Passage, Place, Verdict, bar, bar_of_text, decide,
        rewritten, without,
    },
};
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue};
use serde::Serialize;
use std::{borrow::Cow, sync::Arc, time::Duration};
use tokio::time::Instant;

/// A caller asks with it for weaker screening of a request, where its tenant may.
pub const OVERRIDE: HeaderName = HeaderName::from_static("x-berthd-screen");
/// A caller who asks with it is told the verdict on its request.
pub const TELL: HeaderName = HeaderName::from_static("x-berthd-verdict");
/// The verdict in an answer's head.
const VERDICT: HeaderName = HeaderName::from_static("x-berthd-screened");

/// Texts up to this many bytes are checked in place: it takes less than handing them over would.
const INLINE_MAX_BYTES: usize = 8 * 1024;

/// What came of a request's screening, for its record and its caller.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Screened {
    /// What was done.
    pub action: Option<Action>,
    /// The label that decided.
    pub label: Option<String>,
    /// How sure, 0 to 1: the deciding score, or the strongest where nothing was found.
    pub score: f32,
    /// Which rule, kind or model, for records only.
    pub kind: Option<String>,
    /// The policy's name.
    pub policy: String,
    /// Why a classifier did not speak.
    pub failure: Option<&'static str>,
    /// How long it took.
    #[serde(skip)]
    pub took: Duration,
    /// The caller asked for it.
    #[serde(skip)]
    pub tell: bool,
}

impl Screened {
    /// The head of the answer: where the text was flagged, or the caller asked. Names no rule.
    pub fn head(&self, headers: &mut HeaderMap) {
        let Some(action) = self.action else { return };
        if !self.tell && action < Action::Flag {
            return;
        }
        let label = self.label.as_deref().unwrap_or("none");
        let done = match (action, &self.label) {
            // Somebody looked, and there was nothing to do.
            (Action::Off, None) => "pass",
            (action, _) => action.as_str(),
        };
        let mut text = format!("action={done}; label={label}");
        if self.tell {
            match self.failure {
                Some(failure) => text.push_str(&format!("; unjudged={failure}")),
                None => text.push_str(&format!("; score={:.3}", self.score)),
            }
        }
        if let Ok(value) = HeaderValue::from_str(&text) {
            headers.insert(VERDICT, value);
        }
    }
}

/// What a caller says of its screening.
struct Asked {
    weaker: Option<Action>,
    tell: bool,
}

fn asked(headers: &HeaderMap) -> Result<Asked, Refusal> {
    let wrong = |text: &'static str, param: &'static str| {
        Err(Refusal::new(Reason::OutOfRange, text).param(param))
    };
    let weaker = match headers.get(OVERRIDE).map(|value| value.to_str().unwrap_or_default()) {
        None => None,
        Some(name) => match Action::of(name) {
            Some(action) => Some(action),
            None => {
                let text =
                    "The header X-Berthd-Screen must be off, shadow, flag, sanitise or refuse.";
                return wrong(text, "x-berthd-screen");
            }
        },
    };
    let tell = match headers.get(TELL).map(HeaderValue::as_bytes) {
        None | Some(b"no") => false,
        Some(b"yes") => true,
        Some(_) => {
            return wrong("The header X-Berthd-Verdict must be yes or no.", "x-berthd-verdict");
        }
    };
    Ok(Asked { weaker, tell })
}

/// The policy for a request: its tenant's, made weaker where the caller asks and may.
///
/// # Errors
/// A header says something else than it may, or the tenant may not ask.
pub(in crate::pipeline) fn policy_of(
    live: &Live,
    tenant: &Tenant,
    studied: &Studied,
    headers: &HeaderMap,
) -> Result<(InputPolicy, String, bool), Refusal> {
    let policy = live.settings.screen.policy(&tenant.name, &studied.entry.model);
    let mut input = policy.input.clone();
    let asked = asked(headers)?;
    if let Some(weaker) = asked.weaker.filter(|weaker| *weaker < input.mode) {
        if !tenant.screen_override {
            let text = "This API key may not ask for weaker screening. Leave X-Berthd-Screen out.";
            return Err(Refusal::new(Reason::ScreenOverride, text).param("x-berthd-screen"));
        }
        input.mode = weaker;
    }
    Ok((input, policy.name.clone(), asked.tell))
}

impl Broker {
    /// Screens a request's texts. Gives the request as it may go on: changed, where something was taken out.
    ///
    /// Dropping the future ends it; what classifiers have begun runs to its end for nobody.
    pub(in crate::pipeline) async fn screen(
        self: &Arc<Self>,
        live: &Arc<Live>,
        tenant: &Arc<Tenant>,
        (route, headers, body): (Route, &HeaderMap, &Bytes),
        mut studied: Studied,
        record: &mut Record,
    ) -> Result<Studied, Refusal> {
        let (policy, name, tell) = policy_of(live, tenant, &studied, headers)?;
        if policy.mode == Action::Off {
            if headers.contains_key(OVERRIDE) {
                // Whoever looks for it later sees that nobody looked.
                let kind = Some("override".to_owned());
                record.screened = Some(Screened {
                    action: Some(Action::Off),
                    kind,
                    policy: name,
                    ..Screened::default()
                });
            }
            return Ok(studied);
        }
        let begun = Instant::now();
        let until = begun + live.settings.screen.budget;
        let passages: Arc<[Passage]> = std::mem::take(&mut studied.passages).into();
        let inspected = self.inspect(live, &passages).await?;
        let owner = Owner::of(tenant.name.as_str());
        let judged = judge(&live.screening, owner, &policy, &inspected, until).await;
        let findings = findings(&live.screening, &policy, &passages, &inspected, &judged);
        let verdict = decide(&policy, &findings);
        let failure = judged.iter().find_map(|judged| judged.failure.as_ref());
        let screened = Screened {
            action: Some(verdict.action),
            label: verdict.label.as_deref().map(str::to_owned),
            score: strongest(&verdict, &judged),
            kind: deciding(&findings, &verdict),
            policy: name,
            failure: failure.map(Failure::as_str),
            took: begun.elapsed(),
            tell,
        };
        self.books.metrics.screened(&screened, verdict.wished, &judged);
        record.screened = Some(screened);
        closed(live, &policy, failure)?;
        match verdict.action {
            Action::Off | Action::Shadow | Action::Flag => Ok(studied),
            Action::Sanitise => {
                let new =
                    self.without_findings(live, tenant, route, body, &passages, &verdict).await;
                if let (Err(_), Some(screened)) = (&new, &mut record.screened) {
                    screened.action = Some(Action::Refuse);
                }
                new
            }
            Action::Refuse => Err(refused()),
        }
    }

    pub(super) async fn inspect(
        &self,
        live: &Arc<Live>,
        passages: &Arc<[Passage]>,
    ) -> Result<Vec<Inspected>, Refusal> {
        let bytes: usize = passages.iter().map(|passage| passage.text.len()).sum();
        if bytes <= INLINE_MAX_BYTES {
            return Ok(inspect_all(&live.screening, passages));
        }
        let room = Arc::clone(&self.bodies).acquire_many_owned(0).await;
        let room = room.map_err(|error| Refusal::new(Reason::Internal, error.to_string()))?;
        let (screening, passages) = (Arc::clone(&live.screening), Arc::clone(passages));
        self.in_turn(room, move || move || Ok(inspect_all(&screening, &passages))).await
    }

    /// The request anew, from a body without what was found: it is counted as it goes out.
    async fn without_findings(
        self: &Arc<Self>,
        live: &Arc<Live>,
        tenant: &Arc<Tenant>,
        route: Route,
        body: &Bytes,
        passages: &[Passage],
        verdict: &Verdict,
    ) -> Result<Studied, Refusal> {
        let mut changes: Vec<(Place, Cow<'_, str>)> = Vec::new();
        for (index, passage) in passages.iter().enumerate() {
            let own: Vec<&Finding> =
                verdict.remove.iter().filter(|finding| finding.passage == index).collect();
            if !own.is_empty() {
                changes.push((passage.place.clone(), without(&passage.text, &own).into()));
            }
        }
        // What stands where nothing can be written must not pass as if it had been taken out.
        let new = rewritten(body, &changes).ok_or_else(refused)?;
        let settings = &live.settings;
        let mut length = HeaderMap::new();
        length.insert(http::header::CONTENT_LENGTH, HeaderValue::from(new.len()));
        let (all, limit) = (super::super::BODIES_MAX_KIB, settings.listen.body_limit);
        let room = answer::body_room(&self.bodies, all, &length, &settings.limits, limit).await?;
        self.study(live, tenant, route, (new.into(), room)).await
    }
}

fn inspect_all(screening: &Screening, passages: &[Passage]) -> Vec<Inspected> {
    let inspect = |(index, passage): (usize, &Passage)| {
        screening.inspector.inspect(index, passage.origin, &passage.text)
    };
    passages.iter().enumerate().map(inspect).collect()
}

/// All texts before the classifiers. The first of them that fails for want of time leaves none for the others.
async fn judge(
    screening: &Screening,
    owner: Owner,
    policy: &InputPolicy,
    inspected: &[Inspected],
    until: Instant,
) -> Vec<Judged> {
    let mut judged = Vec::with_capacity(inspected.len());
    for one in inspected {
        let forms: Vec<&str> = one.forms.iter().map(String::as_str).collect();
        judged.push(screening.judge_input(owner, &forms, policy.second_stage, until).await);
    }
    judged
}

/// What the checks and the classifiers found, in one list.
fn findings(
    screening: &Screening,
    policy: &InputPolicy,
    passages: &[Passage],
    inspected: &[Inspected],
    judged: &[Judged],
) -> Vec<Finding> {
    let mut all: Vec<Finding> = inspected.iter().flat_map(|one| one.findings.clone()).collect();
    for (index, (passage, judged)) in passages.iter().zip(judged).enumerate() {
        let scores = &judged.scores;
        let own = scores
            .injection
            .map(|score| (INJECTION, score, screening.models.bars(policy.second_stage)));
        let others = scores
            .others
            .iter()
            .map(|(label, score)| (label.as_str(), *score, screening.models.bars_of(label)));
        for (label, score, bars) in own.into_iter().chain(others) {
            let usual = bar_of_text(bars.usual, bars.sure, scores.windows, passage.text.len());
            let sure = bars.sure.max(usual);
            if score >= bar(policy, label, passage.origin, usual, sure) {
                all.push(Finding {
                    label: label.to_owned().into(),
                    kind: Cow::Borrowed("model"),
                    score,
                    origin: passage.origin,
                    passage: index,
                    span: None,
                    by_rule: false,
                    asks: None,
                });
            }
        }
    }
    all
}

/// The deciding score; where nothing was found, the highest that a classifier gave.
fn strongest(verdict: &Verdict, judged: &[Judged]) -> f32 {
    match verdict.label {
        Some(_) => verdict.score,
        None => judged.iter().filter_map(|one| one.scores.injection).fold(0.0, f32::max),
    }
}

fn deciding(findings: &[Finding], verdict: &Verdict) -> Option<String> {
    let label = verdict.label.as_ref()?;
    let own = findings.iter().filter(|finding| finding.label == *label);
    let best = own.max_by(|one, other| one.score.total_cmp(&other.score));
    best.map(|finding| finding.kind.to_string())
}

/// Where a classifier did not speak and the operator wants no request without its word.
fn closed(live: &Live, policy: &InputPolicy, failure: Option<&Failure>) -> Result<(), Refusal> {
    let absent = live.screening.models.lacks(Task::Input);
    let enforced = policy.mode >= Action::Sanitise;
    if (failure.is_none() && !absent)
        || !enforced
        || live.settings.screen.on_failure == OnFailure::Open
    {
        return Ok(());
    }
    let text = "The content of this request cannot be checked at the moment. Retry in a moment.";
    Err(Refusal::new(Reason::ScreenUnavailable, text).retry_after(Duration::from_secs(2)))
}

/// What the caller hears: that it was refused, not by which rule.
fn refused() -> Refusal {
    let text = "This request was refused by the operator's content policy. Change its content; the same content will be refused again.";
    Refusal::new(Reason::InputScreened, text)
}
