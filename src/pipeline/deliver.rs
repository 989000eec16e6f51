//! From the queue to the last byte: turns, attempts, the answer's head, and the settling at its end.

use super::{
    Broker,
    answer::{self, Reply},
    attempt::{self, Attempt, Ending},
    device::working::{Told, Working},
    dispatch::{Ask, Decision, Outcome, Placement},
    flow::{First, Flow, Slot},
    id_header,
    record::Record,
    relay::{self, Fault, Job, Watched},
    urgency,
};
use crate::{
    api::refuse,
    energy::{Facts as WorkFacts, Key},
    error::Refusal,
    ids::{RequestId, ServerId},
    units::Tokens,
};
use http::{HeaderMap, HeaderValue, Response, header::CACHE_CONTROL, header::CONTENT_TYPE};
use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::time::Instant;

/// What the answer's headers say about how it came to be.
#[derive(Clone, Debug, Default)]
struct Facts {
    server: Option<ServerId>,
    waited: Duration,
    attempts: u32,
    /// What a whole answer took, where the caller asked for it.
    told: Option<Told>,
    /// What was decided about it, where the caller asked for that.
    decision: Option<Box<Decision>>,
}

/// Times that a request is taken back and placed anew: servers that come back only to hang again must not
/// keep it for ever.
const RECALLS_MAX: u32 = 4;

type SharedFacts = Arc<Mutex<Facts>>;

/// Carries a request to its end.
pub async fn deliver(broker: &Arc<Broker>, job: Job, ask: Ask, record: Record) -> Response<Reply> {
    let mut fixed = HeaderMap::new();
    id_header(&mut fixed, &record.id);
    if let Some(counted) = &record.counted {
        fixed.insert("x-berthd-input-tokens", HeaderValue::from(counted.tokens.get()));
        fixed.insert("x-berthd-token-count", HeaderValue::from_static(counted.source.as_str()));
    }
    if let Some(screened) = &record.screened {
        screened.head(&mut fixed);
    }
    if job.stream {
        stream(broker, job, ask, record, fixed).await
    } else {
        whole(broker, job, ask, record, fixed).await
    }
}

// === whole answers ===

async fn whole(
    broker: &Arc<Broker>,
    job: Job,
    mut ask: Ask,
    mut record: Record,
    fixed: HeaderMap,
) -> Response<Reply> {
    let id = record.id.clone();
    let mut last: Option<Fault> = None;
    loop {
        let mut placement = match turn(broker, &mut ask, &mut record, false).await {
            Ok(placement) => placement,
            Err(refusal) => return refuse_whole(record, &id, last, refusal, fixed),
        };
        match relay::whole(&job, &placement, &mut record).await {
            Ok((body, watched)) => {
                placement.answered(watched.usage.completion);
                placement.report(Outcome::Answered);
                record.stops_working(Some(watched.usage));
                let told = record.told().filter(|_| record.tell_energy);
                let facts = Facts { told, ..facts_of(&record) };
                drop(placement);
                settle(broker, record, watched);
                let json = HeaderValue::from_static("application/json");
                return finish_head(Reply::Whole(Some(body)), fixed, &facts, json);
            }
            Err(fault) => {
                let stop = note(broker, &placement, &fault, &mut ask, &mut record, &job);
                drop(placement);
                if stop {
                    let refusal = fault.refusal.clone();
                    return refuse_whole(record, &id, Some(fault), refusal, fixed);
                }
                last = Some(fault);
            }
        }
    }
}

/// What the caller hears: the last server's failure rather than "no server left".
fn refuse_whole(
    record: Record,
    id: &RequestId,
    last: Option<Fault>,
    refusal: Refusal,
    fixed: HeaderMap,
) -> Response<Reply> {
    let refusal = last.map_or(refusal, |fault| fault.refusal);
    let facts = facts_of(&record);
    record.refused(&refusal);
    let mut response = answer::refused(&refusal, id);
    add_facts(response.headers_mut(), fixed, &facts);
    response
}

// === streams ===

async fn stream(
    broker: &Arc<Broker>,
    job: Job,
    ask: Ask,
    record: Record,
    fixed: HeaderMap,
) -> Response<Reply> {
    let id = record.id.clone();
    let heartbeat = job.relay.heartbeat;
    let slot = Slot::default();
    let facts = SharedFacts::default();
    let work = run(Arc::clone(broker), job, ask, record, slot.clone(), Arc::clone(&facts));
    let explain = {
        let id = id.clone();
        move |refusal: &Refusal| refuse::event(refusal, &id)
    };
    let mut flow = Flow::new(Box::pin(work), slot, heartbeat, Box::new(explain));
    let body = match flow.first().await {
        First::Piece(piece) => flow.begin_with(piece),
        // The head goes out so that nothing on the way gives up on a silent connection. It commits
        // nothing: the next candidate may still answer.
        First::Silence => flow.begin(),
        First::End(end) => {
            let refusal = end.err().unwrap_or_else(|| {
                Refusal::new(crate::error::Reason::Internal, "The answer ended before it began.")
            });
            let mut response = answer::refused(&refusal, &id);
            let facts = facts.lock().unwrap_or_else(PoisonError::into_inner).clone();
            add_facts(response.headers_mut(), fixed, &facts);
            return response;
        }
    };
    let facts = facts.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let media = HeaderValue::from_static("text/event-stream; charset=utf-8");
    let mut response = finish_head(Reply::Stream(Box::new(body)), fixed, &facts, media);
    let headers = response.headers_mut();
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    // Proxies that buffer would hold tokens back.
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    response
}

/// The work inside a streamed answer's body. All guards live in here and end with it.
async fn run(
    broker: Arc<Broker>,
    job: Job,
    mut ask: Ask,
    mut record: Record,
    slot: Slot,
    facts: SharedFacts,
) -> Result<(), Refusal> {
    let gaps = broker.books.metrics.gaps(&ask.request.model);
    let mut last: Option<Fault> = None;
    loop {
        let mut placement = match turn(&broker, &mut ask, &mut record, true).await {
            Ok(placement) => placement,
            Err(refusal) => {
                let refusal = last.map_or(refusal, |fault| fault.refusal);
                *facts.lock().unwrap_or_else(PoisonError::into_inner) = facts_of(&record);
                record.refused(&refusal);
                return Err(refusal);
            }
        };
        *facts.lock().unwrap_or_else(PoisonError::into_inner) = facts_of(&record);
        let ending = Attempt::new(&job, &slot, &mut record, gaps.clone()).run(&placement).await;
        match ending {
            Ending::Whole(watched, tail) => {
                placement.answered(watched.usage.completion);
                placement.report(Outcome::Answered);
                drop(placement);
                // In the same turn in which the last piece was given, so before any caller sees it:
                // many hang up on `[DONE]`, and what comes after it may never run.
                settle(&broker, record, watched);
                if let Some(tail) = tail {
                    attempt::drain(tail).await;
                }
                return Ok(());
            }
            Ending::Torn(fault) => {
                note(&broker, &placement, &fault, &mut ask, &mut record, &job);
                drop(placement);
                record.refused(&fault.refusal);
                return Err(fault.refusal);
            }
            Ending::Again(fault) => {
                let stop = note(&broker, &placement, &fault, &mut ask, &mut record, &job);
                drop(placement);
                let late = job.content_by.is_some_and(|by| by <= Instant::now());
                if stop || late {
                    record.refused(&fault.refusal);
                    return Err(fault.refusal);
                }
                last = Some(fault);
            }
        }
    }
}

// === what both share ===

async fn turn(
    broker: &Arc<Broker>,
    ask: &mut Ask,
    record: &mut Record,
    stream: bool,
) -> Result<Placement, Refusal> {
    let since = Instant::now();
    let placement = broker.dispatch.turn(ask).await;
    let waited = since.elapsed();
    record.waited += waited;
    if record.tell_decision {
        record.decision = broker.dispatch.explain(record.id.as_str()).map(Box::new);
    }
    let placement = placement?;
    broker.books.metrics.waited(ask.request.tier, waited);
    record.attempts += 1;
    // Until it is known better: a caller who leaves now leaves a server at work.
    record.had += 1;
    record.server = Some(placement.id().clone());
    let working = Working::begin(&broker.works, || work_of(ask, record, &placement, stream));
    record.works(working);
    Ok(placement)
}

/// What the meter must know of an attempt.
fn work_of(ask: &Ask, record: &Record, placement: &Placement, stream: bool) -> WorkFacts {
    let key = Key {
        server: placement.id().clone(),
        model: ask.request.model.clone(),
        tenant: ask.request.tenant.clone(),
        tier: ask.request.tier,
    };
    let input = record.counted.as_ref().map_or(Tokens::ZERO, |counted| counted.tokens);
    WorkFacts { key, input, output: ask.request.output, stream }
}

/// Books a failed attempt. `true`: no further one may follow.
fn note(
    broker: &Arc<Broker>,
    placement: &Placement,
    fault: &Fault,
    ask: &mut Ask,
    record: &mut Record,
    job: &Job,
) -> bool {
    record.stops_working(None);
    if !fault.had {
        record.had = record.had.saturating_sub(1);
    }
    if fault.is_preempted() {
        return preempted(placement, ask, record, job);
    }
    let changed = placement.report(fault.outcome);
    let server = placement.id();
    if !matches!(fault.outcome, Outcome::Answered) && fault.cause != "deadline" {
        broker.books.metrics.server_failed(server.as_str(), fault.cause);
        tracing::warn!(
            id = record.id.as_str(),
            server = server.as_str(),
            cause = fault.cause,
            attempt = record.attempts,
            breaker_opened = changed && fault.outcome == Outcome::Failed,
            "the server failed an attempt"
        );
    }
    if fault.is_recall() {
        return recalled(placement, ask, record, job);
    }
    ask.request.tried.push(server.clone());
    ask.request.progress = Arc::default();
    fault.last || record.attempts >= job.relay.attempts_max
}

/// Books a request that was taken back from a server that hung. It was no attempt of its own, and the time
/// there no wait of its own. The server stays open to it: it takes nothing until it has come back.
fn recalled(placement: &Placement, ask: &mut Ask, record: &mut Record, job: &Job) -> bool {
    record.attempts = record.attempts.saturating_sub(1);
    ask.recalls = ask.recalls.saturating_add(1);
    ask.request.progress = Arc::default();
    if job.content_by.is_none() {
        ask.request.due += placement.since().elapsed();
    }
    ask.recalls > RECALLS_MAX
}

/// Books a request that gave its room to somebody more urgent: no attempt of its own, and it waits again where it
/// stood.
fn preempted(placement: &Placement, ask: &mut Ask, record: &mut Record, job: &Job) -> bool {
    record.attempts = record.attempts.saturating_sub(1);
    ask.request.preempted = ask.request.preempted.saturating_add(1);
    ask.request.progress = Arc::default();
    if job.content_by.is_none() {
        ask.request.due += placement.since().elapsed();
    }
    tracing::info!(
        id = record.id.as_str(),
        server = placement.id().as_str(),
        "the request gave its room to a more urgent one"
    );
    false
}

fn settle(broker: &Arc<Broker>, mut record: Record, watched: Watched) {
    broker.compare(&record, &watched);
    if let (Some(model), Some(counted)) = (&record.model, &record.counted) {
        if watched.from_server {
            let metrics = &broker.books.metrics;
            let source = counted.source.as_str();
            metrics.count_checked(model, source, counted.tokens, watched.usage.prompt);
            if counted.tokens != watched.usage.prompt {
                tracing::debug!(
                    id = record.id.as_str(),
                    model = model.as_str(),
                    source,
                    ours = counted.tokens.get(),
                    theirs = watched.usage.prompt.get(),
                    "the server counted another number of input tokens"
                );
            }
        }
        if let Some(tenant) = &record.tenant {
            broker.dispatch.saw_output(tenant, model, watched.usage.completion);
        }
    }
    record.output = watched.usage.completion;
    record.answered(watched.usage);
}

fn facts_of(record: &Record) -> Facts {
    Facts {
        server: record.server.clone(),
        waited: record.waited,
        attempts: record.attempts,
        told: None,
        decision: record.decision.clone(),
    }
}

fn add_facts(headers: &mut HeaderMap, fixed: HeaderMap, facts: &Facts) {
    headers.extend(fixed);
    let decision = facts.decision.as_ref().and_then(|decision| decision.header());
    if let Some(value) = decision {
        headers.insert(urgency::EXPLAIN, value);
    }
    let Some(server) = &facts.server else { return };
    if let Ok(server) = HeaderValue::from_str(server.as_str()) {
        headers.insert("x-berthd-server", server);
    }
    let millis = u64::try_from(facts.waited.as_millis()).unwrap_or(u64::MAX);
    headers.insert("x-berthd-queue-wait-ms", HeaderValue::from(millis));
    headers.insert("x-berthd-attempts", HeaderValue::from(facts.attempts));
    if let Some(told) = &facts.told {
        told.head(headers);
    }
}

fn finish_head(
    body: Reply,
    fixed: HeaderMap,
    facts: &Facts,
    media: HeaderValue,
) -> Response<Reply> {
    let mut response = Response::new(body);
    response.headers_mut().insert(CONTENT_TYPE, media);
    add_facts(response.headers_mut(), fixed, facts);
    response
}
