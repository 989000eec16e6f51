//! From bytes to a request that is understood: parsed, authorised, written anew for the server, counted.
//!
//! All of it is CPU work. A usual body takes microseconds and is studied in place; a large one is
//! studied on the compute threads, so that no stream waits behind it.

mod studied;

use super::{
    Broker, Live,
    count::{self, Counted, Counter, Source, Wants},
    may_use,
    relay::Job,
    screening::Plan,
    spelling,
    trust::Shadow,
    urgency::Urgency,
    watch::Wishes,
};
use crate::{
    api::{FieldLimits, Request, Route, fields, outgoing, shapes::Weight},
    classify::Owner,
    config::{self, Action, Tenant, Watch},
    error::{Reason, Refusal},
    ids::{ModelName, RequestId, Tier},
    schedule::{Blocks, catalog::Entry},
    screen::{self, Passage, output::leak::Secretive},
    tokens::{Allowance, CountError, PrefixBlocks},
    units::Tokens,
};
use bytes::Bytes;
use serde_json::value::RawValue;
use std::{num::NonZeroU32, sync::Arc, time::Duration};
use tokio::{sync::OwnedSemaphorePermit, time::Instant};

/// Bodies up to this size are studied in place, if counting them is little work: it takes less than handing
/// them over would.
pub const INLINE_MAX: usize = 128 * 1024;

/// A request that is understood.
#[derive(Debug)]
pub struct Studied {
    /// Which API.
    pub route: Route,
    /// The model behind the name that was asked for.
    pub entry: Entry,
    /// The body for the server.
    pub outgoing: Bytes,
    /// The same with token ids, for servers that take them.
    ids_body: Option<Bytes>,
    /// The caller wants a stream.
    stream: bool,
    include_usage: bool,
    max_tokens: Option<Tokens>,
    prompts: u32,
    /// `n` times prompts.
    answers: u64,
    /// Answers that the caller gets.
    wanted: u64,
    alias: Option<String>,
    /// The model's files, where they are here.
    counter: Option<Arc<Counter>>,
    /// Their count is believed.
    believed: bool,
    /// Our own count, where the model's files are here.
    local: Option<Result<Tokens, CountError>>,
    /// What that took.
    counted_in: Duration,
    /// The server should count the same: no token ids, no field that changes the input behind our back.
    comparable: bool,
    /// Hashes of the prompt's blocks, where the operator wants them and it is counted here.
    prefix: Option<PrefixBlocks>,
    /// Bytes of the input itself, for an estimate.
    text_bytes: usize,
    /// How urgent the body says that it is.
    pub urgency: Urgency,
    /// It asks for filling in: each server builds that prompt itself, and counts only half of it.
    fills_in: bool,
    /// Its texts, where they are screened.
    pub(super) passages: Vec<Passage>,
    /// What its answers must not repeat, where they are watched.
    secretive: Option<Arc<Secretive>>,
    /// The caller asked for JSON.
    json: bool,
}

impl Broker {
    /// Studies a body, on the compute threads if it is large. The body's room is given back with it.
    ///
    /// Dropping the future before a compute thread is free ends it at once. Work that has begun cannot
    /// be called back; it keeps its thread and its room to its end.
    pub(super) async fn study(
        self: &Arc<Self>,
        live: &Arc<Live>,
        tenant: &Arc<Tenant>,
        route: Route,
        (body, room): (Bytes, OwnedSemaphorePermit),
    ) -> Result<Studied, Refusal> {
        if body.len() <= INLINE_MAX
            && let Some(studied) = self.study_here(live, tenant, route, &body, Allowance::Little)
        {
            return studied;
        }
        self.in_turn(room, || {
            let (broker, live, tenant) = (Arc::clone(self), Arc::clone(live), Arc::clone(tenant));
            move || {
                // Moved in, so that it is gone before its room is given back.
                let body = body;
                let studied = broker.study_here(&live, &tenant, route, &body, Allowance::Whole);
                let unfinished = || Err(Refusal::new(Reason::Internal, "counting did not end"));
                studied.unwrap_or_else(unfinished)
            }
        })
        .await
    }

    /// Does CPU work on the compute threads. It is made when one of them is free; the room of the body that
    /// it works on is given back behind it.
    pub(super) async fn in_turn<T: Send + 'static, W>(
        &self,
        room: OwnedSemaphorePermit,
        make: impl FnOnce() -> W,
    ) -> Result<T, Refusal>
    where
        W: FnOnce() -> Result<T, Refusal> + Send + 'static,
    {
        // The pool's own queue has no bound and nobody can leave it, so it is never used as one.
        let turn = Arc::clone(&self.compute).acquire_owned().await;
        let turn = turn.map_err(|error| Refusal::new(Reason::Internal, error.to_string()))?;
        let work = make();
        let held = move || {
            let _held = (turn, room);
            work()
        };
        tokio::task::spawn_blocking(held)
            .await
            .unwrap_or_else(|error| Err(Refusal::new(Reason::Internal, error.to_string())))
    }

    /// `None` if it is more work than allowed.
    fn study_here(
        &self,
        live: &Live,
        tenant: &Tenant,
        route: Route,
        body: &Bytes,
        allowance: Allowance,
    ) -> Option<Result<Studied, Refusal>> {
        match self.understand(live, tenant, route, body, allowance) {
            Ok(Studied { local: Some(Err(CountError::Deferred)), .. }) => None,
            studied => Some(studied),
        }
    }

    fn understand(
        &self,
        live: &Live,
        tenant: &Tenant,
        route: Route,
        body: &Bytes,
        allowance: Allowance,
    ) -> Result<Studied, Refusal> {
        let limits = FieldLimits { choices_max: live.settings.limits.choices_max };
        let mut request = Request::parse(route, body, limits)?;
        let entry = self.authorise(tenant, &request.model)?;
        let counter = self.counter_of(live, &entry.model);
        let believed =
            counter.as_ref().is_some_and(|counter| self.trust.believes(&entry.model, counter));
        let urgency = Urgency::of_body(&request.fields)?;
        let fills_in = fills_in(&request);
        let begun = Instant::now();
        let checked = spelling::check(counter.as_deref(), route, &request.fields, allowance)?;
        let deferred = checked.is_none();
        let mended = checked.unwrap_or_default();
        spelling::replace(&mut request.fields, &mended);
        let outgoing = outgoing::body(&request, entry.model.as_str());
        let wants = Wants {
            // What was mended is text that the caller did not write: it goes out as text. So does what a
            // server counts otherwise.
            ids: mended.is_empty()
                && believed
                && live.settings.servers.iter().any(|server| server.send_token_ids)
                && self.dispatch.takes_ids(&entry.model, route),
            block_tokens: self.block_tokens(live, &entry),
        };
        let read = counter.as_ref().map(|counter| {
            if deferred {
                return Err(CountError::Deferred);
            }
            if fills_in {
                return Err(CountError::NotAvailable("'suffix' asks for filling in".to_owned()));
            }
            counter.read(route, &request.fields, allowance, wants)
        });
        // Words around images are counted once more, whole: not here if there are many.
        const AROUND_MAX: usize = 8 * 1024;
        let read = match read {
            Some(Err(_)) if allowance == Allowance::Little && body.len() > AROUND_MAX => {
                Some(Err(CountError::Deferred))
            }
            read => read,
        };
        let (local, prefix, ids) = match read {
            Some(Ok(read)) => (Some(Ok(read.tokens)), read.prefix, read.ids),
            Some(Err(error)) => (Some(Err(error)), None, None),
            None => (None, None, None),
        };
        let model = entry.model.as_str();
        let ids_body = ids.map(|ids| outgoing::body_with_ids(&request, model, &ids));
        let counted_in = begun.elapsed();
        let text_bytes = match (&counter, &local) {
            (_, Some(Ok(_))) if believed => 0,
            (_, Some(Err(CountError::Deferred))) => 0,
            (Some(counter), Some(Err(_))) if route == Route::Chat => {
                let chat = serde_json::from_slice(body).ok();
                chat.and_then(|chat| counter.around_images(&chat))
                    .unwrap_or_else(|| text_bytes(&request))
            }
            _ => text_bytes(&request),
        };
        let policy = live.settings.screen.policy(&tenant.name, &entry.model);
        let reads = policy.input.mode != Action::Off;
        let watches = policy.output.watch != Watch::Off && route != Route::Embeddings;
        let passages = if reads || watches { screen::passages(&request) } else { Vec::new() };
        let secretive = watches.then(|| live.screening.secretive(&passages));
        Ok(Studied {
            passages,
            secretive: secretive.flatten(),
            json: wants_json(&request),
            route,
            outgoing,
            ids_body,
            stream: request.stream,
            include_usage: request.include_usage,
            max_tokens: request.max_tokens,
            prompts: request.prompts,
            answers: u64::from(request.choices).saturating_mul(u64::from(request.prompts)).max(1),
            wanted: u64::from(request.n).saturating_mul(u64::from(request.prompts)).max(1),
            alias: (request.model != entry.model).then(|| request.model.to_string()),
            counter,
            believed,
            local,
            counted_in,
            comparable: is_comparable(&request),
            prefix,
            text_bytes,
            urgency,
            fills_in,
            entry,
        })
    }

    /// The size of the blocks to hash, if any.
    fn block_tokens(&self, live: &Live, entry: &Entry) -> Option<NonZeroU32> {
        /// vLLM's own default.
        const USUAL: NonZeroU32 = NonZeroU32::MIN.saturating_add(15);
        let told = || self.dispatch.block_tokens(&entry.model).and_then(NonZeroU32::new);
        let wanted = live.settings.tokens.prefix_blocks || live.settings.schedule.prefix;
        wanted.then(|| told().unwrap_or(USUAL))
    }

    pub(super) fn authorise(&self, tenant: &Tenant, model: &ModelName) -> Result<Entry, Refusal> {
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

    /// The input count: ours where the files are here and believed, else the server's, else an estimate.
    pub(super) async fn count(&self, studied: &Studied) -> Result<Counted, Refusal> {
        let (model, route) = (&studied.entry.model, studied.route);
        let local = studied.local.as_ref().map(|local| (local, studied.believed));
        let server = match local {
            Some((Ok(_), true)) => None,
            _ if studied.fills_in => None,
            _ => self.trust.who_counts(model, self.dispatch.usable_of(model)),
        };
        let begun = Instant::now();
        let counted =
            count::count(local, server, route, studied.text_bytes, &studied.outgoing).await?;
        let took = studied.counted_in + begun.elapsed();
        self.books.metrics.counted(counted.source.as_str(), took);
        Ok(counted)
    }
}

/// Whether the server should count this input as we do. Token ids prove nothing, and what stands behind the
/// text to fill in is put around it by the server.
fn is_comparable(request: &Request<'_>) -> bool {
    let text = |field: &str| request.fields.get(field).is_none_or(|v| v.get().starts_with('"'));
    request.prompts == 1
        && request.choices == 1
        && text("prompt")
        && text("input")
        && request.fields.get("suffix").is_none()
}

/// Whether the answer is to be JSON.
fn wants_json(request: &Request<'_>) -> bool {
    let format = fields::object(&request.fields, "response_format").ok().flatten();
    let kind = format.and_then(|format| fields::text(&format, "type").ok().flatten());
    kind.is_some_and(|kind| kind.starts_with("json"))
}

/// Whether a completions request has text behind the gap that it asks to fill.
fn fills_in(request: &Request<'_>) -> bool {
    let suffix = request.fields.get("suffix").map(RawValue::get);
    request.route == Route::Completions && suffix.is_some_and(|suffix| suffix != "\"\"")
}

/// Bytes of what a tokenizer would see: messages and tools, prompts or inputs. Images and sounds in
/// content parts are not text, however many bytes they have; an image counts what one is estimated at.
fn text_bytes(request: &Request<'_>) -> usize {
    let size = |field: &str| request.fields.get(field).map_or(0, |value| value.get().len());
    let media = || -> Weight {
        let messages = fields::objects(&request.fields, "messages").ok().flatten();
        let messages = messages.into_iter().flatten();
        let parts =
            messages.filter_map(|message| fields::objects(&message, "content").ok().flatten());
        let mut media = Weight::default();
        for part in parts.flatten().filter(|part| part.get("text").is_none()) {
            media.text_bytes += part.0.iter().map(|(_, value)| value.get().len()).sum::<usize>();
            media.images += u64::from(part.0.iter().any(|(key, _)| key.starts_with("image")));
        }
        media
    };
    match request.route {
        Route::Chat => {
            let (all, media) = (size("messages") + size("tools") + size("functions"), media());
            let text_bytes = all.saturating_sub(media.text_bytes);
            Weight { text_bytes, images: media.images }.bytes()
        }
        Route::Completions => size("prompt") + size("suffix"),
        Route::Embeddings => size("input"),
    }
}

#[cfg(test)]
mod tests;
