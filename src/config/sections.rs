//! Reads the sections that stand once: `[listen]` to `[log]`. Ranges live here, defaults in
//! `defaults`.

use super::{
    Breaker, Energy, FoundOnGpu, Gpu, Limits, Listen, Log, LogFormat, LogLevel, Probe, Queue,
    Relay, Schedule, Threads, TokenCounts, defaults, problem::Spot, read::Section,
};
use std::{
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
};

/// Longest path of a Unix socket: `sun_path` has 108 bytes, one of them the end mark.
const SOCKET_PATH_MAX_BYTES: usize = 107;

/// A day, in seconds: the longest time any limit may have.
const DAY_S: f64 = 86_400.0;

/// `[listen]`
pub(super) fn listen(section: &mut Section<'_>) -> Listen {
    let listen = Listen {
        data: section.address("data", defaults::DATA),
        admin: section.address("admin", defaults::ADMIN),
        socket: PathBuf::from(section.text_or("socket", defaults::SOCKET)),
        connections_max: section.number(
            "connections_max",
            defaults::CONNECTIONS_MAX,
            1..=1_000_000,
        ),
        head_limit: section.seconds("head_limit_s", defaults::HEAD_LIMIT, 0.1..=300.0),
        body_limit: section.seconds("body_limit_s", defaults::BODY_LIMIT, 0.1..=3600.0),
        idle_limit: section.seconds("idle_limit_s", defaults::IDLE_LIMIT, 0.1..=DAY_S),
        drain_limit: section.seconds("drain_limit_s", defaults::DRAIN_LIMIT, 0.0..=DAY_S),
    };
    if listen.data == listen.admin && listen.data.port() != 0 {
        let what = format!("{} is the address of `data` as well", listen.admin);
        section.error("admin", what, "give metrics and health a port of their own");
    }
    for (name, address, carried) in
        [("data", listen.data, "keys and prompts"), ("admin", listen.admin, "metrics and health")]
    {
        if !is_loopback(address) {
            section.warn(
                name,
                format!(
                    "{address} is not a loopback address: {carried} cross the network unencrypted"
                ),
                "listen on 127.0.0.1 behind a proxy that ends TLS, or on a private network only",
            );
        }
    }
    socket_path(section, &listen.socket);
    listen
}

fn socket_path(section: &Section<'_>, socket: &Path) {
    let bytes = socket.as_os_str().len();
    if !socket.is_absolute() {
        let what = format!("\"{}\" is not an absolute path", socket.display());
        section.error("socket", what, format!("write it like \"{}\"", defaults::SOCKET));
    } else if bytes > SOCKET_PATH_MAX_BYTES {
        let what = format!("{bytes} bytes; a socket's path has at most {SOCKET_PATH_MAX_BYTES}");
        section.error("socket", what, "choose a shorter path");
    }
}

fn is_loopback(address: SocketAddr) -> bool {
    match address.ip() {
        IpAddr::V4(ip) => ip.is_loopback(),
        IpAddr::V6(ip) => ip.to_ipv4_mapped().map_or(ip.is_loopback(), |ip| ip.is_loopback()),
    }
}

/// `[limits]`
pub(super) fn limits(section: &mut Section<'_>) -> Limits {
    let limits = Limits {
        body_max: section.mebibytes("body_max_mib", defaults::BODY_MAX, 1..=1024),
        choices_max: section.number("choices_max", defaults::CHOICES_MAX, 1..=128),
        answer_max: section.mebibytes("answer_max_mib", defaults::ANSWER_MAX, 1..=4096),
        event_max: section.mebibytes("event_max_mib", defaults::EVENT_MAX, 1..=1024),
    };
    if limits.event_max > limits.answer_max {
        let what = "one event may be larger than a whole answer";
        section.error("event_max_mib", what, "make it at most `answer_max_mib`");
    }
    limits
}

/// `[queue]`
pub(super) fn queue(section: &mut Section<'_>) -> Queue {
    let queue = Queue {
        length_max: section.number("length_max", defaults::QUEUE_LENGTH_MAX, 1..=1_000_000),
        tenant_share_percent: section.number(
            "tenant_share_percent",
            defaults::TENANT_SHARE_PERCENT,
            1..=100,
        ),
        wait_max: section.seconds("wait_max_s", defaults::WAIT_MAX, 0.0..=DAY_S),
        batch_wait_max: section.seconds("batch_wait_max_s", defaults::BATCH_WAIT_MAX, 0.0..=DAY_S),
        no_server_wait: section.seconds("no_server_wait_s", defaults::NO_SERVER_WAIT, 0.0..=DAY_S),
    };
    if queue.length_max.saturating_mul(usize::from(queue.tenant_share_percent)) < 100 {
        let percent = queue.tenant_share_percent;
        let what = format!("{percent} % of {} places is less than one", queue.length_max);
        section.error("tenant_share_percent", what, "raise it, or raise `length_max`");
    }
    if queue.no_server_wait > queue.wait_max {
        let what = "longer than any request waits";
        section.error("no_server_wait_s", what, "make it at most `wait_max_s`");
    }
    queue
}

/// `[schedule]`
pub(super) fn schedule(section: &mut Section<'_>) -> Schedule {
    Schedule {
        token_gap: section.seconds("token_gap_s", defaults::TOKEN_GAP, 0.001..=10.0),
        prefill_debt: section.seconds("prefill_debt_s", defaults::PREFILL_DEBT, 0.01..=60.0),
        chunk: section.tokens("chunk_tokens", defaults::CHUNK, 16..=1_000_000),
        kv_share_percent: section.number("kv_share_percent", defaults::KV_SHARE_PERCENT, 10..=100),
        batch_leaves_percent: section.number(
            "batch_leaves_percent",
            defaults::BATCH_LEAVES_PERCENT,
            0..=90,
        ),
        standard_ages: section.seconds("standard_ages_s", defaults::STANDARD_AGES, 0.1..=DAY_S),
        batch_ages: section.seconds("batch_ages_s", defaults::BATCH_AGES, 0.1..=DAY_S),
        preempt_batch: section.flag("preempt_batch", defaults::PREEMPT_BATCH),
        prefix: section.flag("prefix", defaults::PREFIX),
    }
}

/// `[relay]`
pub(super) fn relay(section: &mut Section<'_>) -> Relay {
    let relay = Relay {
        first_token_limit: section.seconds(
            "first_token_limit_s",
            defaults::FIRST_TOKEN_LIMIT,
            0.1..=DAY_S,
        ),
        idle_limit: section.seconds("idle_limit_s", defaults::STREAM_IDLE_LIMIT, 0.1..=DAY_S),
        answer_limit: section.seconds("answer_limit_s", defaults::ANSWER_LIMIT, 0.1..=DAY_S),
        heartbeat: section.seconds("heartbeat_s", defaults::HEARTBEAT, 0.1..=3600.0),
        attempts_max: section.number("attempts_max", defaults::ATTEMPTS_MAX, 1..=16),
        connect_limit: section.seconds("connect_limit_s", defaults::CONNECT_LIMIT, 0.01..=300.0),
        idle_connections_max: section.number(
            "idle_connections_max",
            defaults::IDLE_CONNECTIONS_MAX,
            0..=10_000,
        ),
    };
    if relay.connect_limit > relay.first_token_limit {
        let what = "longer than a whole attempt may take until its first content";
        section.error("connect_limit_s", what, "make it at most `first_token_limit_s`");
    }
    relay
}

/// `[breaker]`
pub(super) fn breaker(section: &mut Section<'_>) -> Breaker {
    let breaker = Breaker {
        failures: section.number("failures", defaults::BREAKER_FAILURES, 1..=1000),
        trial_first: section.seconds("trial_first_s", defaults::TRIAL_FIRST, 0.01..=3600.0),
        trial_max: section.seconds("trial_max_s", defaults::TRIAL_MAX, 0.01..=3600.0),
    };
    if breaker.trial_first > breaker.trial_max {
        let what = "the first pause is longer than the longest";
        section.error("trial_first_s", what, "make it at most `trial_max_s`");
    }
    breaker
}

/// `[probe]`
pub(super) fn probe(section: &mut Section<'_>) -> Probe {
    let probe = Probe {
        period: section.seconds("period_s", defaults::PROBE_PERIOD, 0.05..=3600.0),
        limit: section.seconds("limit_s", defaults::PROBE_LIMIT, 0.05..=300.0),
        stale_after: section.seconds("stale_after_s", defaults::STALE_AFTER, 0.1..=DAY_S),
        failures_down: section.number("failures_down", defaults::FAILURES_DOWN, 1..=1000),
        discover: section.flag("discover", defaults::DISCOVER),
    };
    if probe.stale_after <= probe.period {
        let what = "every reading would be out of date before the next";
        section.error("stale_after_s", what, "make it longer than `period_s`");
    }
    probe
}

/// `[tokens]`
pub(super) fn tokens(section: &mut Section<'_>) -> TokenCounts {
    TokenCounts {
        search: section.flag("search", defaults::TOKENS_SEARCH),
        prefix_blocks: section.flag("prefix_blocks", defaults::PREFIX_BLOCKS),
        cache_max_mib: section.number("cache_max_mib", defaults::TOKEN_CACHE_MAX_MIB, 1..=65_536),
    }
}

/// Readings of the GPUs that a hang must show in: four gaps between them, and one to spare, since a round takes
/// time, too.
const HUNG_READINGS_LEAST: u32 = 5;

/// `[gpu]`
pub(super) fn gpu(section: &mut Section<'_>) -> Gpu {
    let gpu = Gpu {
        enabled: section.flag("enabled", defaults::GPU_ENABLED),
        nvml_library: section.text("nvml_library").map(|found| PathBuf::from(found.text)),
        period: section.seconds("period_s", defaults::GPU_PERIOD, 0.1..=3600.0),
        fast_period: section.seconds("fast_period_s", defaults::GPU_FAST_PERIOD, 0.0..=3600.0),
        stale_after: section.seconds("stale_after_s", defaults::GPU_STALE_AFTER, 0.1..=DAY_S),
        drain: section.flag("drain", defaults::GPU_DRAIN),
        hung_after: section.seconds("hung_after_s", defaults::HUNG_AFTER, 0.0..=DAY_S),
        memory_floor: section.mebibytes("memory_floor_mib", defaults::MEMORY_FLOOR, 0..=1_000_000),
        found: section.choice(
            "found_servers",
            defaults::FOUND_ON_GPU,
            &[
                ("report", FoundOnGpu::Report),
                ("adopt", FoundOnGpu::Adopt),
                ("off", FoundOnGpu::Off),
            ],
        ),
    };
    if gpu.stale_after <= gpu.period {
        let what = "readings would be unknown before the next round";
        section.error("stale_after_s", what, "make it longer than `period_s`");
    }
    if !gpu.hung_after.is_zero() && gpu.hung_after < gpu.period * HUNG_READINGS_LEAST {
        let what = "the GPUs are read too seldom to tell a hang in this time";
        let remedy = "make it at least five times `period_s`, or 0 to tell none";
        section.error("hung_after_s", what, remedy);
    }
    if let Some(library) = &gpu.nvml_library
        && !library.is_absolute()
    {
        let what = format!("\"{}\" is not an absolute path", library.display());
        let remedy = "write the whole path, or remove the key to let the system find the library";
        section.error("nvml_library", what, remedy);
    }
    gpu
}

/// `[energy]`
pub(super) fn energy(section: &mut Section<'_>) -> Energy {
    Energy {
        price_per_kwh: section.decimal("price_per_kwh", defaults::PRICE_PER_KWH, 0.0..=1e9),
        price_per_gpu_hour: section.decimal(
            "price_per_gpu_hour",
            defaults::PRICE_PER_GPU_HOUR,
            0.0..=1e9,
        ),
        output_weight: section.decimal("output_weight", defaults::OUTPUT_WEIGHT, 0.01..=1000.0),
    }
}

/// `[threads]`
pub(super) fn threads(section: &mut Section<'_>, cores: usize) -> Threads {
    let carry = section.optional_number("carry", 1..=256);
    Threads {
        carry: carry
            .and_then(|carry| usize::try_from(carry).ok())
            .unwrap_or(defaults::carry_threads(cores)),
        compute: section.number("compute", defaults::COMPUTE_THREADS, 1..=256),
    }
}

/// `[log]`
pub(super) fn log(section: &mut Section<'_>) -> Log {
    let formats = [("text", LogFormat::Text), ("json", LogFormat::Json)];
    let levels = [
        ("error", LogLevel::Error),
        ("warn", LogLevel::Warn),
        ("info", LogLevel::Info),
        ("debug", LogLevel::Debug),
    ];
    Log {
        format: section.choice("format", defaults::LOG_FORMAT, &formats),
        level: section.choice("level", defaults::LOG_LEVEL, &levels),
    }
}

/// Does a server's address lead back to one of our own listeners?
pub(super) fn leads_home(listen: &Listen, host: &str, port: u16) -> bool {
    let ip = match host {
        "localhost" => None,
        other => match other.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>() {
            Ok(ip) => Some(ip),
            Err(_) => return false,
        },
    };
    [listen.data, listen.admin].into_iter().any(|own| {
        let here =
            ip.is_none_or(|ip| ip == own.ip() || (own.ip().is_unspecified() && ip.is_loopback()));
        here && own.port() == port
    })
}

/// Nobody may call: valid, and certainly not what was meant.
pub(super) fn warn_without_tenants(root: &Section<'_>, name: &Spot) {
    let what = "there is no [[tenants]] entry: nobody can call";
    let remedy = "make a key with `berthd key` and add a tenant with its digest";
    if !root.report.is_broken(&name.file) {
        root.report.warn(name, "tenants", what, remedy);
    }
}
