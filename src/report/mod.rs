//! The status report: everything an operator asks first, as one JSON value with stable names.

pub mod gpus;
pub mod screening;

pub use gpus::{Gpu, Gpus};

use crate::{
    error::{Class, Reason},
    holding::{Holdings, ServerHolding},
    ids::{ModelName, RequestId, ServerId, TenantId, Tier},
    ledger::Total,
    pipeline::{
        Broker,
        count::Counter,
        dispatch::ServerView,
        trust::{
            self,
            book::Key,
            pair::{Pair, Standing},
        },
    },
    schedule::{FlowView, memory::MemoryView},
    snapshot::{Capacity, GpuPlane, Health, Load, ServerKind},
    units::{Cost, Tokens},
};
use serde::Serialize;
use std::{collections::BTreeMap, path::PathBuf, sync::atomic::Ordering};

/// The whole report.
#[derive(Debug, Serialize)]
pub struct Status {
    /// Version of this daemon.
    pub version: &'static str,
    /// Its process.
    pub pid: u32,
    /// `serving` or `stopping`.
    pub state: &'static str,
    /// Seconds since start.
    pub uptime_s: f64,
    /// Callers' connections.
    pub connections: i64,
    /// Where callers and scrapers connect.
    #[serde(flatten)]
    pub addresses: Addresses,
    /// The GPUs.
    pub gpus: Gpus,
    /// The model servers.
    pub servers: Vec<Server>,
    /// The models.
    pub models: Vec<Model>,
    /// How requests and answers are screened.
    pub screening: screening::Screens,
    /// Requests waiting, by tier.
    pub queue: BTreeMap<Tier, usize>,
    /// Requests placed on servers.
    pub running: u32,
    /// Use since start.
    pub totals: Vec<Use>,
    /// Refusals and failures, newest last.
    pub recent_refusals: Vec<Refused>,
}

/// The addresses that are bound. Not the configured ones: port 0 becomes a real port, and a service
/// manager's socket takes the place of an address.
#[derive(Clone, Debug, Serialize)]
pub struct Addresses {
    /// Where callers connect.
    pub data: String,
    /// Where metrics are read.
    pub admin: String,
}

/// One model server.
#[derive(Debug, Serialize)]
pub struct Server {
    /// Its name.
    pub name: ServerId,
    /// Which program.
    pub kind: ServerKind,
    /// Takes requests now.
    pub usable: bool,
    /// What its own health says.
    pub health: Health,
    /// Its breaker is open.
    pub breaker_open: bool,
    /// It was taken out because it hung; the signs, in words.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hung: Option<String>,
    /// What it may still use of its GPUs' memory, where that is guarded.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<MemoryView>,
    /// An operator drained it.
    pub drained: bool,
    /// Why its devices keep requests away from it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stopped: Option<String>,
    /// Share of its full work that its devices are good for.
    pub weight: f64,
    /// The GPUs it uses, where that is known, and what it holds there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub on: Option<ServerHolding>,
    /// Requests placed there.
    pub placed_requests: u32,
    /// KV tokens placed there.
    pub placed_tokens: Tokens,
    /// Prefill on its way through it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub flow: Option<FlowView>,
    /// How much it can hold.
    pub capacity: Capacity,
    /// How busy it says it is.
    pub load: Load,
    /// Its version.
    pub version: Option<String>,
    /// Models it serves.
    pub models: Vec<ModelName>,
    /// Age of its readings, seconds.
    pub age_s: Option<f64>,
}

/// One name a caller may ask for.
#[derive(Debug, Serialize)]
pub struct Model {
    /// The name.
    pub name: ModelName,
    /// The name servers know, where this is an alias.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub alias_of: Option<ModelName>,
    /// Context window, tokens.
    pub context_window: Option<Tokens>,
    /// What our own count is worth: `exact`, `unproven`, `estimated` or `drifted`; `server or estimate`
    /// without files to count by.
    pub token_count: &'static str,
    /// How it is counted here, where there are files to count by.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub counting: Option<Counting>,
    /// Servers that list it.
    pub servers: Vec<ServerId>,
}

/// How a model's input is counted here.
#[derive(Debug, Serialize)]
pub struct Counting {
    /// Requests are counted by these files; else by the server, or estimated.
    pub used: bool,
    /// Where they are.
    pub folder: PathBuf,
    /// `configured` or `found`.
    pub origin: &'static str,
    /// Changes with the tokenizer or a template.
    pub fingerprint: String,
    /// What they are worth on each server of the model.
    pub servers: Vec<CountedOn>,
}

/// What our own count of a model is worth on one server.
#[derive(Debug, Serialize)]
pub struct CountedOn {
    /// Which server.
    pub server: ServerId,
    /// `exact`, `unproven`, `estimated` or `drifted`.
    pub state: &'static str,
    /// Why, in words.
    pub reason: String,
    /// Our count in the comparison that decided.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ours: Option<Tokens>,
    /// The server's count in the same.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub theirs: Option<Tokens>,
    /// Seconds since the last comparison.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub compared_ago_s: Option<f64>,
}

/// One tenant's use of one model.
#[derive(Debug, Serialize)]
pub struct Use {
    /// Who.
    pub tenant: TenantId,
    /// What.
    pub model: ModelName,
    /// How much.
    #[serde(flatten)]
    pub total: Total,
    /// Energy attributed to it, joules.
    pub joules: f64,
    /// Time of GPUs attributed to it, seconds.
    pub gpu_seconds: f64,
    /// What both cost, in the operator's currency; absent without prices.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cost: Option<f64>,
}

/// One refusal.
#[derive(Debug, Serialize)]
pub struct Refused {
    /// Seconds ago.
    pub ago_s: f64,
    /// Which request.
    pub request: RequestId,
    /// Whose.
    pub tenant: Option<TenantId>,
    /// Of which model.
    pub model: Option<ModelName>,
    /// Why.
    pub reason: &'static str,
    /// What the caller was told, where the node or a server was at fault. Of the callers' own mistakes
    /// only the reason: the text may quote what they sent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

/// Makes the report from what is known now.
pub fn status(broker: &Broker, plane: &GpuPlane, addresses: &Addresses) -> Status {
    let views = broker.dispatch.servers();
    let holdings = broker.devices.holdings();
    let live = broker.live.load();
    let catalog = broker.dispatch.catalog();
    let pairs = broker.trust.pairs();
    let models = catalog.iter().map(|(name, entry)| {
        let counter = broker.counter_of(&live, &entry.model);
        let of_files = || counter.as_ref().and_then(|counter| counter.files().context_window());
        Model {
            name: name.clone(),
            alias_of: (*name != entry.model).then(|| entry.model.clone()),
            context_window: entry.context_window.or_else(of_files),
            token_count: worth(&entry.model, counter.is_some(), &pairs),
            counting: counter.map(|counter| counting(broker, &entry.model, &counter, &pairs)),
            servers: entry.servers.clone(),
        }
    });
    let stopping = broker.stopping.load(Ordering::Relaxed);
    Status {
        version: env!("CARGO_PKG_VERSION"),
        pid: std::process::id(),
        state: if stopping { "stopping" } else { "serving" },
        uptime_s: broker.books.metrics.uptime().as_secs_f64(),
        connections: broker.books.metrics.connections_now(),
        addresses: addresses.clone(),
        gpus: gpus::gpus(broker, plane),
        running: views.iter().map(|view| view.placed).sum(),
        servers: views.into_iter().map(|view| server(view, &holdings)).collect(),
        models: models.collect(),
        screening: screening::screens(&live.screening),
        queue: broker.dispatch.waiting(),
        totals: broker
            .books
            .ledger
            .totals()
            .into_iter()
            .map(|(tenant, model, total)| used(tenant, model, total))
            .collect(),
        recent_refusals: broker
            .books
            .recent
            .list()
            .into_iter()
            .map(|refusal| Refused {
                ago_s: refusal.at.elapsed().as_secs_f64(),
                request: refusal.id,
                tenant: refusal.tenant,
                model: refusal.model,
                reason: refusal.reason.as_str(),
                message: tells(refusal.reason).then_some(refusal.message),
            })
            .collect(),
    }
}

fn used(tenant: TenantId, model: ModelName, total: Total) -> Use {
    let cost = total.cost.rounded();
    Use {
        tenant,
        model,
        joules: total.spent.energy.joules(),
        gpu_seconds: total.spent.time.seconds(),
        cost: (cost > Cost::ZERO).then(|| cost.units()),
        total,
    }
}

/// What our count of a model is worth in a word.
fn worth(model: &ModelName, has_files: bool, pairs: &[(Key, Pair)]) -> &'static str {
    let own = pairs.iter().filter(|((of, _), _)| of == model).map(|(_, pair)| pair);
    match trust::worst(own) {
        _ if !has_files => "server or estimate",
        Some(pair) => pair.standing.as_str(),
        None => Standing::Unproven.as_str(),
    }
}

fn counting(
    broker: &Broker,
    model: &ModelName,
    counter: &Counter,
    pairs: &[(Key, Pair)],
) -> Counting {
    let on = |((_, server), pair): &(Key, Pair)| CountedOn {
        server: server.clone(),
        state: pair.standing.as_str(),
        reason: pair.reason.clone(),
        ours: pair.numbers.map(|(ours, _)| ours),
        theirs: pair.numbers.map(|(_, theirs)| theirs),
        compared_ago_s: pair.compared_at.map(|at| at.elapsed().as_secs_f64()),
    };
    Counting {
        used: broker.trust.believes(model, counter),
        folder: counter.folder().to_owned(),
        origin: if counter.is_found() { "found" } else { "configured" },
        fingerprint: counter.files().fingerprint().to_owned(),
        servers: pairs.iter().filter(|((of, _), _)| of == model).map(on).collect(),
    }
}

/// Whether operators, and whoever reads the admin address without a key, see the text of such a refusal.
const fn tells(reason: Reason) -> bool {
    matches!(reason.class(), Class::Shed | Class::Failed)
}

fn server(view: ServerView, holdings: &Holdings) -> Server {
    Server {
        stopped: view.footing.stop,
        weight: view.footing.weight,
        on: holdings.servers.get(&view.state.id).cloned(),
        usable: view.usable,
        breaker_open: view.breaker_open,
        drained: view.drained,
        memory: view.memory,
        hung: view.hung.map(|hung| hung.why),
        placed_requests: view.placed,
        placed_tokens: view.placed_tokens,
        flow: view.flow,
        name: view.state.id,
        kind: view.state.kind,
        health: view.state.health,
        capacity: view.state.capacity,
        load: view.state.load,
        version: view.state.version,
        models: view.state.models.into_iter().map(|model| model.name).collect(),
        age_s: view.state.read_at.map(|at| at.elapsed().as_secs_f64()),
    }
}
