//! What happens to a request, in one straight line: authenticate, parse, count, screen, admit, queue, place,
//! relay, settle.

pub mod alarm;
pub mod answer;
pub mod attempt;
pub mod auth;
pub mod count;
pub mod deliver;
pub mod device;
pub mod dispatch;
pub mod flow;
pub mod framing;
pub mod guard;
pub mod listen;
pub mod models;
pub mod record;
pub mod relay;
pub mod screening;
pub mod shapes;
mod spelling;
pub mod study;
pub mod tokenize;
pub mod trial;
pub mod trust;
pub mod urgency;
pub mod watch;
pub mod whole;

use crate::{
    admit::Admission,
    api::{Route, refuse},
    config::{Settings, Tenant},
    energy::{Prices, Works},
    error::{Reason, Refusal},
    ids::{ModelName, RequestId},
    schedule::{Blocks, Request, catalog::Entry},
    snapshot::GpuPlane,
};
use answer::{Reply, read_body};
use arc_swap::ArcSwap;
use bytes::Bytes;
use count::{Counters, Source};
use dispatch::{Ask, Dispatch};
use http::{HeaderMap, Method, Request as HttpRequest, Response};
use record::{Books, Record};
use relay::Job;
use screening::Screening;
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tokio::{sync::Semaphore, time::Instant};
use urgency::Urgency;

/// Everything a request meets on its way.
pub struct Broker {
    /// What a reload replaces as one.
    pub live: ArcSwap<Live>,
    /// Queue and servers.
    pub dispatch: Arc<Dispatch>,
    /// What our own token counts are worth.
    pub trust: trust::Trust,
    /// What is known about the GPUs beyond their readings.
    pub devices: device::Devices,
    /// Requests at work, for the meter.
    pub works: Arc<Works>,
    /// Metrics, ledger, recent refusals.
    pub books: Arc<Books>,
    /// Set once, when the daemon stops: new requests are refused.
    pub stopping: AtomicBool,
    /// One permit for each compute thread, taken before work is handed to them: who waits for one can
    /// still leave, and what is never handed over is never done for nobody.
    pub compute: Arc<Semaphore>,
    /// Memory for the bodies that are read or studied, one permit for each KiB.
    pub bodies: Arc<Semaphore>,
}

/// Memory for all bodies that are read or studied. Sixteen of the largest, by default; those that were
/// studied wait in the queue, which has its own bounds.
const BODIES_MAX_KIB: usize = 256 << 10;

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
    /// Classifiers, rules and policies.
    pub screening: Arc<Screening>,
}

impl Live {
    /// What these settings make where there was nothing before, without classifiers and rules.
    pub fn new(settings: Settings, counters: Counters) -> Self {
        Self {
            keys: auth::Keys::new(&settings.tenants),
            admission: Admission::new(&settings.tenants, None, Instant::now()),
            screening: Arc::new(Screening::off(&settings.screen)),
            settings,
            counters,
        }
    }
}

impl Broker {
    /// A broker without servers.
    pub fn new(live: Live) -> Arc<Self> {
        let dispatch = Dispatch::new(&live.settings);
        let compute = Arc::new(Semaphore::new(live.settings.threads.compute.max(1)));
        Arc::new(Self {
            live: ArcSwap::from_pointee(live),
            dispatch,
            trust: trust::Trust::default(),
            devices: device::Devices::default(),
            works: Arc::default(),
            books: Arc::new(Books::default()),
            stopping: AtomicBool::new(false),
            compute,
            bodies: Arc::new(Semaphore::new(BODIES_MAX_KIB)),
        })
    }

    /// The metrics page as it is now.
    pub fn metrics_page(&self, gpus: &GpuPlane) -> String {
        let (waiting, servers) = (self.dispatch.waiting(), self.dispatch.servers());
        let live = self.live.load();
        let caches = live.counters.iter().chain(self.trust.all_found());
        self.books
            .metrics
            .set_caches(caches.map(|(model, counter)| (model, counter.files().cache_use())));
        self.books.metrics.set_holdings(self.devices.holdings());
        self.books.metrics.set_classifiers(&live.screening.models);
        self.books.metrics.page_with(&waiting, &servers, &self.trust.pairs(), gpus)
    }

    /// Answers one request. Never fails: what goes wrong becomes the answer.
    ///
    /// Dropping the future, or the body of its answer, ends the request at once and gives back
    /// everything it holds.
    pub async fn handle<B>(self: &Arc<Self>, request: HttpRequest<B>) -> Response<Reply>
    where
        B: http_body::Body<Data = Bytes> + Unpin,
    {
        self.handle_as(RequestId::fresh(), request).await
    }

    /// As [`Broker::handle`], for a request that has its id already.
    pub async fn handle_as<B>(
        self: &Arc<Self>,
        id: RequestId,
        request: HttpRequest<B>,
    ) -> Response<Reply>
    where
        B: http_body::Body<Data = Bytes> + Unpin,
    {
        let (head, mut body) = request.into_parts();
        let route = match find(&head.method, head.uri.path()) {
            Ok(Target::Generate(route)) => route,
            Ok(Target::Models(one)) => return self.models(&id, &head.headers, one.as_deref()),
            Ok(Target::Count(what)) => {
                return self.only_count(what, &id, &head.headers, &mut body).await;
            }
            Ok(Target::Moderate) => return self.moderate(&id, &head.headers, &mut body).await,
            Err(refusal) => {
                Record::begin(Arc::clone(&self.books), id.clone(), "none").refused(&refusal);
                answer::discard(&mut body).await;
                return answer::refused_in(refuse::form_of(head.uri.path()), &refusal, &id);
            }
        };
        let mut record = Record::begin(Arc::clone(&self.books), id.clone(), route.as_str());
        match self.prepare(route, &head.headers, &mut body, &mut record).await {
            Ok((job, ask)) => deliver::deliver(self, job, ask, record).await,
            Err(refusal) => {
                let screened = record.screened.clone().filter(|screened| screened.tell);
                record.refused(&refusal);
                answer::discard(&mut body).await;
                let mut response = answer::refused(&refusal, &id);
                if let Some(screened) = screened {
                    screened.head(response.headers_mut());
                }
                response
            }
        }
    }

    /// Everything before the queue. The cheap gates stand first, so that neither parsing nor counting
    /// can be used to burn the host's CPU.
    async fn prepare<B>(
        self: &Arc<Self>,
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
        let urgency = Urgency::of_headers(headers)?;
        record.tier = Some(urgency.tier_for(&tenant));
        record.tell_energy = device::working::wants(headers)?;
        record.tell_decision = urgency::wants_explanation(headers)?;
        record.prices = Prices::of(&settings.energy);
        // parse, authorise, count
        answer::check_media(headers)?;
        let (limits, limit) = (&settings.limits, settings.listen.body_limit);
        let room = answer::body_room(&self.bodies, BODIES_MAX_KIB, headers, limits, limit).await?;
        let body = read_body(body, headers, limits, limit).await?;
        // The bytes are shared, not copied: what is taken out of a body makes a new one of it.
        let whole = live.settings.screen.reads_input().then(|| body.clone());
        let mut studied = self.study(&live, &tenant, route, (body, room)).await?;
        record.model = Some(studied.entry.model.clone());
        let urgency = urgency.or(studied.urgency);
        let tier = urgency.tier_for(&tenant);
        record.tier = Some(tier);
        // screen: before a server is asked to count, so that none sees what is refused
        if let Some(body) = &whole {
            let given = (route, headers, body);
            studied = self.screen(&live, &tenant, given, studied, record).await?;
        }
        let counted = self.count(&studied).await?;
        record.counted = Some(counted);
        record.shadow = studied.shadow();
        if settings.tokens.prefix_blocks {
            studied.log_prefix(&record.id);
        }
        let window = studied.check_window(counted)?;
        // admit
        let mean = self.dispatch.expected_output(&tenant.name, &studied.entry.model);
        let output = studied.expected_output(counted, window, mean);
        let estimate = counted.tokens.plus(output);
        let reservation = live.admission.reserve(&tenant.name, estimate, Instant::now())?;
        record.reservation = Some(reservation);
        // what the queue, the placement and the relay need
        let asked = urgency.deadline.map(|deadline| record.started() + deadline);
        let wait_max = settings.queue.wait_max_of(tier);
        let ask = Ask {
            id: record.id.clone(),
            request: Request {
                model: studied.entry.model.clone(),
                tenant: tenant.name.clone(),
                weight: f64::from(tenant.weight),
                tier,
                input: counted.tokens,
                output,
                sequences: studied.sequences(),
                span: studied.span(counted),
                // Hashes do not tell models apart, and caches do. Nor are they worth anything where servers count
                // otherwise than we do.
                blocks: match counted.source == Source::Exact
                    && !self.dispatch.shares_servers(&studied.entry.model)
                {
                    true => studied.blocks(),
                    false => Blocks::default(),
                },
                tried: Vec::new(),
                due: asked.unwrap_or_else(|| record.started() + wait_max),
                strict: asked.is_some(),
                watched: studied.is_stream(),
                returned: urgency::returned(headers),
                preempted: 0,
                foreseen: None,
                arrival: None,
                entered: record.started(),
                progress: Arc::default(),
            },
            recalls: 0,
            decision: None,
        };
        let guard = studied.guard(&live, &tenant);
        let mut job = studied.job(settings.relay.clone(), settings.limits.clone(), counted);
        job.guard = guard;
        job.content_by = asked;
        job.tier = tier;
        Ok((job, ask))
    }

    fn authenticate(
        &self,
        live: &Live,
        headers: &HeaderMap,
        record: &mut Record,
    ) -> Result<Arc<Tenant>, Refusal> {
        self.admit(live, live.keys.find(headers), record)
    }

    /// Lets a caller in whose key was looked up: one request off its rate.
    fn admit(
        &self,
        live: &Live,
        found: Result<Arc<Tenant>, Refusal>,
        record: &mut Record,
    ) -> Result<Arc<Tenant>, Refusal> {
        if self.stopping.load(Ordering::Relaxed) {
            let text = "This daemon is stopping. Retry, which will reach its successor.";
            return Err(Refusal::new(Reason::Draining, text).retry_after(Duration::from_secs(1)));
        }
        let tenant = found?;
        record.tenant = Some(tenant.name.clone());
        live.admission.knock(&tenant.name, Instant::now())?;
        Ok(tenant)
    }
}

fn may_use(tenant: &Tenant, asked: &ModelName, entry: &Entry) -> bool {
    tenant.models.is_empty()
        || tenant.models.contains(asked)
        || tenant.models.contains(&entry.model)
}

/// Where a request goes.
enum Target {
    Generate(Route),
    Models(Option<String>),
    Count(tokenize::Counting),
    Moderate,
}

fn find(method: &Method, path: &str) -> Result<Target, Refusal> {
    let (target, allowed) = match path {
        "/v1/chat/completions" => (Target::Generate(Route::Chat), Method::POST),
        "/v1/completions" => (Target::Generate(Route::Completions), Method::POST),
        "/v1/embeddings" => (Target::Generate(Route::Embeddings), Method::POST),
        "/v1/models" => (Target::Models(None), Method::GET),
        "/v1/moderations" => (Target::Moderate, Method::POST),
        "/tokenize" => (Target::Count(tokenize::Counting::Tokenize), Method::POST),
        "/v1/messages/count_tokens" => (Target::Count(tokenize::Counting::Messages), Method::POST),
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
