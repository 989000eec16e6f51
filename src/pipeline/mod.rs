//! What happens to a request, in one straight line: authenticate, parse, count, admit, queue, place,
//! relay, settle.

pub mod answer;
pub mod auth;
pub mod count;
pub mod deliver;
pub mod dispatch;
pub mod flow;
pub mod framing;
pub mod listen;
pub mod models;
pub mod record;
pub mod relay;
pub mod trial;
pub mod watch;
pub mod whole;

use crate::{
    admit::Admission,
    api::{FieldLimits, Request, Route, outgoing, refuse},
    config::{Settings, Tenant},
    error::{Reason, Refusal},
    ids::{ModelName, RequestId},
    schedule::catalog::Entry,
    units::Tokens,
};
use answer::{Reply, read_body};
use arc_swap::ArcSwap;
use bytes::Bytes;
use count::{Counted, Counters, Source};
use dispatch::{Ask, Dispatch};
use http::{HeaderMap, Method, Request as HttpRequest, Response};
use record::{Books, Record};
use relay::Job;
use std::{
    net::SocketAddr,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tokio::time::Instant;
use watch::Wishes;

/// Everything a request meets on its way.
pub struct Broker {
    /// What a reload replaces as one.
    pub live: ArcSwap<Live>,
    /// Queue and servers.
    pub dispatch: Arc<Dispatch>,
    /// Metrics, ledger, recent refusals.
    pub books: Arc<Books>,
    /// Set once, when the daemon stops: new requests are refused.
    pub stopping: AtomicBool,
    /// Where callers really connect, once that is known (the configured port may be 0).
    pub data: OnceLock<SocketAddr>,
}

/// What a reload replaces as one.
pub struct Live {
    /// The settings.
    pub settings: Settings,
    /// Who has which key.
    pub keys: auth::Keys,
    /// Rates.
    pub admission: Admission,
    /// Token counters.
    pub counters: Counters,
}

impl Broker {
    /// A broker without servers.
    pub fn new(live: Live) -> Arc<Self> {
        let dispatch = Dispatch::new(&live.settings);
        Arc::new(Self {
            live: ArcSwap::from_pointee(live),
            dispatch,
            books: Arc::new(Books::default()),
            stopping: AtomicBool::new(false),
            data: OnceLock::new(),
        })
    }

    /// Answers one request. Never fails: what goes wrong becomes the answer.
    ///
    /// Dropping the future, or the body of its answer, ends the request at once and gives back
    /// everything it holds.
    pub async fn handle<B>(self: &Arc<Self>, request: HttpRequest<B>) -> Response<Reply>
    where
        B: http_body::Body<Data = Bytes> + Unpin,
    {
        let id = RequestId::fresh();
        let (head, mut body) = request.into_parts();
        let route = match find(&head.method, head.uri.path()) {
            Ok(Target::Generate(route)) => route,
            Ok(Target::Models(one)) => return self.models(&id, &head.headers, one.as_deref()),
            Err(refusal) => {
                Record::begin(Arc::clone(&self.books), id.clone(), "none").refused(&refusal);
                return answer::refused(&refusal, &id);
            }
        };
        let mut record = Record::begin(Arc::clone(&self.books), id.clone(), route.as_str());
        match self.prepare(route, &head.headers, &mut body, &mut record).await {
            Ok((job, ask)) => deliver::deliver(self, job, ask, record).await,
            Err(refusal) => {
                record.refused(&refusal);
                answer::discard(&mut body).await;
                answer::refused(&refusal, &id)
            }
        }
    }

    /// Everything before the queue. The cheap gates stand first, so that neither parsing nor counting
    /// can be used to burn the host's CPU.
    async fn prepare<B>(
        &self,
        route: Route,
        headers: &HeaderMap,
        body: &mut B,
        record: &mut Record,
    ) -> Result<(Job, Ask), Refusal>
    where
        B: http_body::Body<Data = Bytes> + Unpin,
    {
        let live = self.live.load_full();
        let settings = &live.settings;
        // authenticate
        let tenant = self.authenticate(&live, headers, record)?;
        let tier = auth::tier(headers, &tenant)?;
        record.tier = Some(tier);
        let deadline = auth::deadline(headers)?;
        // parse
        answer::check_media(headers)?;
        let body = read_body(body, headers, &settings.limits, settings.listen.body_limit).await?;
        let limits = FieldLimits { choices_max: settings.limits.choices_max };
        let request = Request::parse(route, &body, limits)?;
        let entry = self.authorise(&tenant, &request.model)?;
        record.model = Some(entry.model.clone());
        // count
        let outgoing = outgoing::body(&request, entry.model.as_str());
        let counter = live.counters.get(&entry.model);
        let server = if counter.is_none() { self.dispatch.counter_for(&entry.model) } else { None };
        let counted = count::count(counter, server, &request, &body, &outgoing).await?;
        record.counted = Some(counted);
        let window = entry
            .context_window
            .or_else(|| counter.and_then(|counter| counter.files().context_window()));
        check_window(&request, counted, window)?;
        // admit
        let expected = self.expected_output(&request, &entry.model, counted, window);
        let estimate = counted.tokens.plus(expected);
        record.reservation =
            Some(live.admission.reserve(&tenant.name, estimate, Instant::now())?);
        // what the queue, the placement and the relay need
        let patience = deadline.unwrap_or(settings.queue.wait_max);
        let ask = Ask {
            model: entry.model.clone(),
            tenant: tenant.name.clone(),
            tier,
            tokens: estimate,
            tried: Vec::new(),
            deadline: record.started() + patience,
            arrival: None,
        };
        let mut relay = settings.relay.clone();
        if let Some(deadline) = deadline {
            relay.first_token_limit = relay.first_token_limit.min(deadline);
        }
        let job = Job {
            route,
            stream: request.stream,
            body: outgoing,
            relay,
            limits: settings.limits.clone(),
            wishes: wishes(&request, &entry, counted, counter.cloned()),
        };
        Ok((job, ask))
    }

    fn authenticate(
        &self,
        live: &Live,
        headers: &HeaderMap,
        record: &mut Record,
    ) -> Result<Arc<Tenant>, Refusal> {
        if self.stopping.load(Ordering::Relaxed) {
            let text = "This daemon is stopping. Retry, which will reach its successor.";
            return Err(Refusal::new(Reason::Draining, text).retry_after(Duration::from_secs(1)));
        }
        let tenant = live.keys.find(headers)?;
        record.tenant = Some(tenant.name.clone());
        live.admission.knock(&tenant.name, Instant::now())?;
        Ok(tenant)
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

    /// What the answer is expected to take: the model's running mean for each choice, never more than
    /// the caller allows or the window leaves.
    fn expected_output(
        &self,
        request: &Request<'_>,
        model: &ModelName,
        counted: Counted,
        window: Option<Tokens>,
    ) -> Tokens {
        if request.route == Route::Embeddings {
            return Tokens::ZERO;
        }
        let mean = self.dispatch.expected_output(model);
        let mut one = request.max_tokens.map_or(mean, |most| most.min(mean));
        if let Some(window) = window {
            one = one.min(window.less(counted.tokens));
        }
        let answers = u64::from(request.choices).saturating_mul(u64::from(request.prompts));
        Tokens(one.get().saturating_mul(answers.max(1)))
    }
}

fn may_use(tenant: &Tenant, asked: &ModelName, entry: &Entry) -> bool {
    tenant.models.is_empty()
        || tenant.models.contains(asked)
        || tenant.models.contains(&entry.model)
}

/// Refuses at once what can never fit, with both numbers.
fn check_window(
    request: &Request<'_>,
    counted: Counted,
    window: Option<Tokens>,
) -> Result<(), Refusal> {
    let Some(window) = window else { return Ok(()) };
    // Several prompts in one request are each its own sequence; their sum says nothing.
    if request.prompts > 1 {
        return Ok(());
    }
    // An estimate may be far off in either direction: only what is beyond doubt is refused by it.
    let input = match counted.source {
        Source::Estimate => Tokens(counted.tokens.get() / 4),
        Source::Exact | Source::Server => counted.tokens,
    };
    let output =
        request.max_tokens.unwrap_or(Tokens(u64::from(request.route != Route::Embeddings)));
    if input.plus(output) <= window {
        return Ok(());
    }
    let param = match request.route {
        Route::Chat => "messages",
        Route::Completions => "prompt",
        Route::Embeddings => "input",
    };
    let about = if counted.source == Source::Estimate { "about " } else { "" };
    let asked = match request.max_tokens {
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

fn wishes(
    request: &Request<'_>,
    entry: &Entry,
    counted: Counted,
    counter: Option<Arc<count::Counter>>,
) -> Wishes {
    let choices = u64::from(request.choices).saturating_mul(u64::from(request.prompts));
    Wishes {
        alias: (request.model != entry.model).then(|| request.model.to_string()),
        include_usage: request.include_usage,
        max_tokens: request.max_tokens,
        choices: usize::try_from(choices).unwrap_or(usize::MAX).min(CHOICES_MAX),
        prompt: counted.tokens,
        exact: counted.source != Source::Estimate,
        counter,
    }
}

/// Choices of one answer that are tracked: `n` times the prompts of a completions request.
const CHOICES_MAX: usize = 16 * 1024;

/// Where a request goes.
enum Target {
    Generate(Route),
    Models(Option<String>),
}

fn find(method: &Method, path: &str) -> Result<Target, Refusal> {
    let (target, allowed) = match path {
        "/v1/chat/completions" => (Target::Generate(Route::Chat), Method::POST),
        "/v1/completions" => (Target::Generate(Route::Completions), Method::POST),
        "/v1/embeddings" => (Target::Generate(Route::Embeddings), Method::POST),
        "/v1/models" => (Target::Models(None), Method::GET),
        path => match path.strip_prefix("/v1/models/").filter(|name| !name.is_empty()) {
            Some(name) => (Target::Models(Some(models::decoded(name))), Method::GET),
            None => {
                let path: String = path.chars().take(100).collect();
                let text = format!(
                    "There is nothing at {path}. Try /v1/chat/completions, /v1/completions, /v1/embeddings or /v1/models."
                );
                return Err(Refusal::new(Reason::UnknownPath, text));
            }
        },
    };
    if *method == allowed {
        return Ok(target);
    }
    let text = format!("{path} takes {allowed}, not {method}.");
    Err(Refusal::new(Reason::MethodNotAllowed, text).allow(allowed.as_str().to_owned()))
}

/// The id header of an answer.
fn id_header(headers: &mut HeaderMap, id: &RequestId) {
    if let Ok(value) = http::HeaderValue::from_str(id.as_str()) {
        headers.insert(refuse::REQUEST_ID, value);
    }
}
