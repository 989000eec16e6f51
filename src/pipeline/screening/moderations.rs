//! `POST /v1/moderations`: OpenAI's form, over our own classifiers and checks. Texts only; nothing is generated
//! and no server is asked.

use super::{
    super::{BODIES_MAX_KIB, Broker, answer, answer::Reply, id_header, record::Record},
    Screening,
    strand::LEAK,
};
use crate::{
    api::{answer::Usage, fields, json},
    classify::Owner,
    config::SecondStage,
    error::{Reason, Refusal},
    ids::RequestId,
    screen::{Inspected, Origin, PERSONAL, Passage, Place, SECRET},
};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Response, header::CONTENT_TYPE};
use serde_json::{Map, Value, json};
use std::sync::Arc;
use tokio::time::Instant;

/// Texts in one request.
const INPUTS_MAX: usize = 256;

/// OpenAI's categories, and which of our labels measures each. The others are not measured here and are always 0.
const CATEGORIES: [(&str, Option<&str>); 13] = [
    ("harassment", Some("toxic")),
    ("harassment/threatening", None),
    ("hate", None),
    ("hate/threatening", None),
    ("illicit", Some("unsafe")),
    ("illicit/violent", None),
    ("self-harm", None),
    ("self-harm/instructions", None),
    ("self-harm/intent", None),
    ("sexual", None),
    ("sexual/minors", None),
    ("violence", None),
    ("violence/graphic", None),
];

impl Broker {
    /// Answers a request for moderation. Dropping the future ends it.
    pub(in crate::pipeline) async fn moderate<B>(
        self: &Arc<Self>,
        id: &RequestId,
        headers: &HeaderMap,
        body: &mut B,
    ) -> Response<Reply>
    where
        B: http_body::Body<Data = Bytes> + Unpin,
    {
        let mut record = Record::begin(Arc::clone(&self.books), id.clone(), "moderations");
        match self.moderated(id, headers, body, &mut record).await {
            Ok(value) => {
                let mut response = Response::new(Reply::Whole(Some(value.to_string().into())));
                let headers = response.headers_mut();
                headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
                id_header(headers, id);
                record.answered(Usage::default());
                response
            }
            Err(refusal) => {
                record.refused(&refusal);
                answer::discard(body).await;
                answer::refused(&refusal, id)
            }
        }
    }

    async fn moderated<B>(
        self: &Arc<Self>,
        id: &RequestId,
        headers: &HeaderMap,
        body: &mut B,
        record: &mut Record,
    ) -> Result<Value, Refusal>
    where
        B: http_body::Body<Data = Bytes> + Unpin,
    {
        let live = self.live.load_full();
        let tenant = self.authenticate(&live, headers, record)?;
        let owner = Owner::of(tenant.name.as_str());
        answer::check_media(headers)?;
        let (limits, limit) = (&live.settings.limits, live.settings.listen.body_limit);
        let _room = answer::body_room(&self.bodies, BODIES_MAX_KIB, headers, limits, limit).await?;
        let body = answer::read_body(body, headers, limits, limit).await?;
        let texts = inputs(&body)?;
        let screening = &live.screening;
        if let Some(absent) = screening.models.absent.first() {
            tracing::debug!(
                name = absent.name,
                why = absent.why,
                "no moderation without every classifier"
            );
            let text = "A classifier is missing here. Tell the operator, or retry later.";
            return Err(Refusal::new(Reason::ScreenUnavailable, text));
        }
        if screening.models.all().next().is_none() {
            let text = "No classifier is loaded here. The operator switches screening on under [screen.input] and [screen.output].";
            return Err(Refusal::new(Reason::ScreenUnavailable, text));
        }
        let mut results = Vec::with_capacity(texts.len());
        let passage = |text| Passage { origin: Origin::User, text, place: Place::Fixed };
        let passages: Arc<[Passage]> = texts.into_iter().map(passage).collect();
        let inspected = self.inspect(&live, &passages).await?;
        for (passage, inspected) in passages.iter().zip(&inspected) {
            results.push(result(screening, owner, &passage.text, inspected).await?);
        }
        let model = "berthd-screen";
        Ok(json!({ "id": format!("modr-{}", id.as_str()), "model": model, "results": results }))
    }
}

/// The texts of a request: one, a list, or parts with text.
fn inputs(body: &[u8]) -> Result<Vec<String>, Refusal> {
    let fields = json::open(body)?;
    let input = fields.get("input");
    let input = input.ok_or_else(|| fields::missing("input", "Send a text or a list of texts."))?;
    let wrong = || {
        let text = "'input' must be a text, a list of texts, or a list of parts with text.";
        Refusal::new(Reason::InvalidType, text).param("input")
    };
    let value: Value = serde_json::from_str(input.get()).map_err(|_| wrong())?;
    let texts = match value {
        Value::String(text) => vec![text],
        Value::Array(list) => {
            let text = |item: Value| match item {
                Value::String(text) => Ok(text),
                Value::Object(part) => match part.get("text").and_then(Value::as_str) {
                    Some(text) => Ok(text.to_owned()),
                    None => Err(wrong()),
                },
                _ => Err(wrong()),
            };
            list.into_iter().take(INPUTS_MAX + 1).map(text).collect::<Result<_, _>>()?
        }
        _ => return Err(wrong()),
    };
    if texts.is_empty() || texts.len() > INPUTS_MAX {
        let text = format!("'input' has {} texts; allowed is 1 to {INPUTS_MAX}.", texts.len());
        return Err(Refusal::new(Reason::OutOfRange, text).param("input"));
    }
    Ok(texts)
}

async fn result(
    screening: &Screening,
    owner: Owner,
    text: &str,
    inspected: &Inspected,
) -> Result<Value, Refusal> {
    let usual = &screening.settings.usual.input;
    let until = Instant::now() + screening.settings.budget;
    let forms: Vec<&str> = inspected.forms.iter().map(String::as_str).collect();
    let judged = screening.judge_input(owner, &forms, SecondStage::Grey, until).await;
    let mut scores: Vec<(String, f32, bool)> = Vec::new();
    if let Some(score) = judged.scores.injection {
        let bar = screening.models.bars(SecondStage::Grey).usual;
        let bar = usual.thresholds.get("injection").map_or(bar, |bar| *bar as f32);
        scores.push(("prompt_injection".to_owned(), score, score >= bar));
    }
    for judge in screening.models.of_answers() {
        let said = judge.judge(owner, &[text], screening.settings.windows_max, until).await;
        let (heads, _) = said.map_err(|failure| unavailable(&failure))?;
        for (label, score) in judge.model.plan().labels.iter().zip(heads) {
            let bar = screening.models.bar_of_answer(judge, label);
            let is = bar.is_some_and(|bar| score >= bar);
            match scores.iter_mut().find(|(known, ..)| known == label) {
                Some((_, best, any)) => (*best, *any) = (best.max(score), *any || is),
                None => scores.push((label.clone(), score, is)),
            }
        }
    }
    if let Some(failure) = &judged.failure {
        return Err(unavailable(failure));
    }
    for finding in &inspected.findings {
        if [SECRET, PERSONAL, LEAK].contains(&&*finding.label) {
            scores.push((finding.label.to_string(), finding.score, true));
        }
    }
    let (mut categories, mut numbers) = (Map::new(), Map::new());
    for (category, label) in CATEGORIES {
        let own = scores.iter().find(|(name, ..)| Some(name.as_str()) == label);
        categories.insert(category.to_owned(), own.is_some_and(|(_, _, is)| *is).into());
        numbers.insert(category.to_owned(), own.map_or(0.0, |(_, score, _)| *score).into());
    }
    // Ours, beside those that clients know.
    for (label, score, is) in scores.iter().filter(|(name, ..)| name != "refusal" && name != "lowq")
    {
        if CATEGORIES.iter().all(|(_, known)| *known != Some(label)) {
            categories.insert(label.clone(), (*is).into());
            numbers.insert(label.clone(), (*score).into());
        }
    }
    let flagged = categories.values().any(|is| *is == Value::Bool(true));
    Ok(json!({ "flagged": flagged, "categories": categories, "category_scores": numbers }))
}

fn unavailable(failure: &crate::classify::Failure) -> Refusal {
    let text = format!("The classifiers did not answer: {failure}. Retry in a moment.");
    Refusal::new(Reason::ScreenUnavailable, text).retry_after(std::time::Duration::from_secs(2))
}
