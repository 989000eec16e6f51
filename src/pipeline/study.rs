//! From bytes to a request that is understood: parsed, authorised, written anew for the server, counted.
//!
//! All of it is CPU work. A usual body takes microseconds and is studied in place; a large one is
//! studied on the compute threads, so that no stream waits behind it.

use super::{
    Broker, Live,
    count::{self, Counted, Counter, Source},
    may_use,
    relay::Job,
    watch::Wishes,
};
use crate::{
    api::{FieldLimits, Request, Route, outgoing},
    config::{self, Tenant},
    error::{Reason, Refusal},
    ids::ModelName,
    schedule::catalog::Entry,
    tokens::CountError,
    units::Tokens,
};
use bytes::Bytes;
use std::sync::Arc;

/// Bodies up to this size are studied in place: it takes less than handing them over would.
const INLINE_MAX: usize = 32 * 1024;
/// Choices of one answer that are tracked: `n` times the prompts of a completions request.
const CHOICES_MAX: usize = 16 * 1024;

/// A request that is understood.
#[derive(Debug)]
pub struct Studied {
    /// Which API.
    pub route: Route,
    /// The model behind the name that was asked for.
    pub entry: Entry,
    /// The body for the server.
    pub outgoing: Bytes,
    /// The caller wants a stream.
    stream: bool,
    include_usage: bool,
    max_tokens: Option<Tokens>,
    prompts: u32,
    /// `n` times prompts.
    answers: u64,
    alias: Option<String>,
    counter: Option<Arc<Counter>>,
    /// Our own count, where the model's files are here.
    local: Option<Result<Tokens, CountError>>,
    body_bytes: usize,
}

impl Broker {
    /// Studies a body, on the compute threads if it is large.
    pub(super) async fn study(
        self: &Arc<Self>,
        live: &Arc<Live>,
        tenant: &Arc<Tenant>,
        route: Route,
        body: Bytes,
    ) -> Result<Studied, Refusal> {
        if body.len() <= INLINE_MAX {
            return self.study_here(live, tenant, route, &body);
        }
        let (broker, live, tenant) = (Arc::clone(self), Arc::clone(live), Arc::clone(tenant));
        let work = move || broker.study_here(&live, &tenant, route, &body);
        tokio::task::spawn_blocking(work)
            .await
            .unwrap_or_else(|error| Err(Refusal::new(Reason::Internal, error.to_string())))
    }

    fn study_here(
        &self,
        live: &Live,
        tenant: &Tenant,
        route: Route,
        body: &Bytes,
    ) -> Result<Studied, Refusal> {
        let limits = FieldLimits { choices_max: live.settings.limits.choices_max };
        let request = Request::parse(route, body, limits)?;
        let entry = self.authorise(tenant, &request.model)?;
        let outgoing = outgoing::body(&request, entry.model.as_str());
        let counter = live.counters.get(&entry.model).cloned();
        let local = counter.as_ref().map(|counter| counter.count(route, body));
        Ok(Studied {
            route,
            outgoing,
            stream: request.stream,
            include_usage: request.include_usage,
            max_tokens: request.max_tokens,
            prompts: request.prompts,
            answers: u64::from(request.choices).saturating_mul(u64::from(request.prompts)).max(1),
            alias: (request.model != entry.model).then(|| request.model.to_string()),
            counter,
            local,
            body_bytes: body.len(),
            entry,
        })
    }

    fn authorise(&self, tenant: &Tenant, model: &ModelName) -> Result<Entry, Refusal> {
        let catalog = self.dispatch.catalog();
        let Some(entry) = catalog.find(model) else {
            let asked: String = model.as_str().chars().take(100).collect();
            let allowed =
                |name: &ModelName| catalog.find(name).is_some_and(|e| may_use(tenant, name, e));
            let hint = match catalog.nearest(model.as_str()).filter(|near| allowed(near)) {
                Some(near) => format!("Did you mean '{near}'?"),
                None => "GET /v1/models lists what there is.".to_owned(),
            };
            let text = format!("The model '{asked}' does not exist here. {hint}");
            return Err(Refusal::new(Reason::UnknownModel, text).param("model"));
        };
        if !may_use(tenant, model, entry) {
            let text = format!("This API key may not use the model '{model}'.");
            return Err(Refusal::new(Reason::ModelNotAllowed, text).param("model"));
        }
        Ok(entry.clone())
    }

    /// The input count: ours where the files are here, else the server's, else an estimate.
    pub(super) async fn count(&self, studied: &Studied) -> Result<Counted, Refusal> {
        let server = match &studied.local {
            Some(Ok(_)) => None,
            _ => self.dispatch.counter_for(&studied.entry.model),
        };
        let local = studied.local.as_ref();
        count::count(local, server, studied.route, studied.body_bytes, &studied.outgoing).await
    }
}

impl Studied {
    /// Refuses at once what can never fit, with both numbers. Gives the context window, if it is known.
    pub(super) fn check_window(&self, counted: Counted) -> Result<Option<Tokens>, Refusal> {
        let of_files =
            || self.counter.as_ref().and_then(|counter| counter.files().context_window());
        let Some(window) = self.entry.context_window.or_else(of_files) else { return Ok(None) };
        // Several prompts in one request are each its own sequence; their sum says nothing.
        if self.prompts > 1 {
            return Ok(Some(window));
        }
        // An estimate may be far off in either direction: only what is beyond doubt is refused by it.
        let input = match counted.source {
            Source::Estimate => Tokens(counted.tokens.get() / 4),
            Source::Exact | Source::Server => counted.tokens,
        };
        let least = Tokens(u64::from(self.route != Route::Embeddings));
        if input.plus(self.max_tokens.unwrap_or(least)) <= window {
            return Ok(Some(window));
        }
        let param = match self.route {
            Route::Chat => "messages",
            Route::Completions => "prompt",
            Route::Embeddings => "input",
        };
        let about = if counted.source == Source::Estimate { "about " } else { "" };
        let asked = match self.max_tokens {
            Some(most) => {
                format!(" and {most} more are asked for, {} in all", counted.tokens.plus(most))
            }
            None => String::new(),
        };
        let text = format!(
            "This model's maximum context length is {window} tokens. The input has {about}{} tokens{asked}. Shorten the input or lower max_tokens.",
            counted.tokens
        );
        Err(Refusal::new(Reason::ContextTooLong, text).param(param))
    }

    /// Sequences that it runs at once on a server.
    pub(super) fn sequences(&self) -> u32 {
        u32::try_from(self.answers).unwrap_or(u32::MAX)
    }

    /// What the answers are expected to take: the model's running mean for each, never more than the
    /// caller allows or the window leaves.
    pub(super) fn expected_output(
        &self,
        counted: Counted,
        window: Option<Tokens>,
        mean: Tokens,
    ) -> Tokens {
        if self.route == Route::Embeddings {
            return Tokens::ZERO;
        }
        let wanted = self.max_tokens.map_or(mean, |most| most.min(mean));
        let one = window.map_or(wanted, |window| wanted.min(window.less(counted.tokens)));
        Tokens(one.get().saturating_mul(self.answers))
    }

    /// What the relay needs.
    pub(super) fn job(self, relay: config::Relay, limits: config::Limits, counted: Counted) -> Job {
        let wishes = Wishes {
            alias: self.alias,
            include_usage: self.include_usage,
            max_tokens: self.max_tokens,
            choices: usize::try_from(self.answers).unwrap_or(usize::MAX).min(CHOICES_MAX),
            prompt: counted.tokens,
            exact: counted.source != Source::Estimate,
            counter: self.counter,
        };
        Job {
            route: self.route,
            stream: self.stream,
            body: self.outgoing,
            relay,
            content_by: None,
            limits,
            wishes,
        }
    }
}
