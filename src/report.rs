//! The status report: everything an operator asks first, as one JSON value with stable names.

use crate::{
    error::{Class, Reason},
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
    schedule::memory::MemoryView,
    snapshot::{Capacity, GpuPlane, GpuProcess, GpuState, Health, Load, ServerKind},
    units::{Bytes, Tokens},
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

/// What is known of the GPUs.
#[derive(Debug, Serialize)]
pub struct Gpus {
    /// `ok`, `no_driver` or `off`.
    pub state: &'static str,
    /// Why there is nothing to show.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
    /// Driver version.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub driver_version: Option<String>,
    /// Age of the readings, seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub age_s: Option<f64>,
    /// Each GPU.
    pub list: Vec<Gpu>,
}

/// One GPU.
#[derive(Debug, Serialize)]
pub struct Gpu {
    /// NVML UUID.
    pub uuid: String,
    /// Position in the driver's list.
    pub index: u32,
    /// Product name.
    pub name: String,
    /// Memory in all, bytes.
    pub memory_total_bytes: Option<Bytes>,
    /// Memory in use, bytes.
    pub memory_used_bytes: Option<Bytes>,
    /// Memory free, bytes.
    pub memory_free_bytes: Option<Bytes>,
    /// Share of time with a kernel running, percent.
    pub utilisation_percent: Option<u32>,
    /// Share of time with memory access, percent.
    pub memory_utilisation_percent: Option<u32>,
    /// Power, watts.
    pub power_w: Option<f64>,
    /// Power limit, watts.
    pub power_limit_w: Option<f64>,
    /// Temperature, degrees Celsius.
    pub temperature_c: Option<u32>,
    /// Who holds memory.
    pub processes: Option<Vec<GpuProcess>>,
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
    /// Requests placed there.
    pub placed_requests: u32,
    /// KV tokens placed there.
    pub placed_tokens: Tokens,
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
pub fn status(broker: &Broker, gpus: &GpuPlane, addresses: &Addresses) -> Status {
    let views = broker.dispatch.servers();
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
        gpus: gpu_report(gpus),
        running: views.iter().map(|view| view.placed).sum(),
        servers: views.into_iter().map(server).collect(),
        models: models.collect(),
        queue: broker.dispatch.waiting(),
        totals: broker
            .books
            .ledger
            .totals()
            .into_iter()
            .map(|(tenant, model, total)| Use { tenant, model, total })
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

fn server(view: ServerView) -> Server {
    Server {
        usable: view.usable,
        breaker_open: view.breaker_open,
        drained: view.drained,
        memory: view.memory,
        hung: view.hung.map(|hung| hung.why),
        placed_requests: view.placed,
        placed_tokens: view.placed_tokens,
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

fn gpu_report(plane: &GpuPlane) -> Gpus {
    let nothing =
        |state, why| Gpus { state, why, driver_version: None, age_s: None, list: Vec::new() };
    match plane {
        GpuPlane::Off => nothing("off", None),
        GpuPlane::NoDriver(why) => nothing("no_driver", Some(why.clone())),
        GpuPlane::Driver(driver) => Gpus {
            state: "ok",
            why: None,
            driver_version: Some(driver.driver_version.clone()),
            age_s: Some(driver.read_at.elapsed().as_secs_f64()),
            list: driver.gpus.iter().map(gpu).collect(),
        },
    }
}

fn gpu(state: &GpuState) -> Gpu {
    Gpu {
        uuid: state.id.to_string(),
        index: state.index,
        name: state.name.clone(),
        memory_total_bytes: state.memory_total,
        memory_used_bytes: state.memory_used,
        memory_free_bytes: state.memory_free,
        utilisation_percent: state.utilisation_percent,
        memory_utilisation_percent: state.memory_utilisation_percent,
        power_w: state.power_w,
        power_limit_w: state.power_limit_w,
        temperature_c: state.temperature_c,
        processes: state.processes.clone(),
    }
}
