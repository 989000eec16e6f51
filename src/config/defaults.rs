//! Every default, in one place: the reader takes them from here, and the sample file is tested
//! against them.

use super::{Action, FoundOnGpu, LogFormat, LogLevel, Watch};
use crate::{
    ids::Tier,
    units::{Bytes, Tokens},
};
use std::{
    net::{Ipv4Addr, SocketAddr, SocketAddrV4},
    time::Duration,
};

const fn s(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

const fn loopback(port: u16) -> SocketAddr {
    SocketAddr::V4(SocketAddrV4::new(Ipv4Addr::LOCALHOST, port))
}

/// Where callers connect.
pub const DATA: SocketAddr = loopback(8484);
/// Where metrics and health are read.
pub const ADMIN: SocketAddr = loopback(8485);
/// The operator's socket.
pub const SOCKET: &str = "/run/berthd/berthd.sock";
/// Callers' connections at once: a host's worth of streams with room, 4096 × about 30 KiB.
pub const CONNECTIONS_MAX: usize = 4096;
/// A head fits one packet; slower than this is an attack or a dead line.
pub const HEAD_LIMIT: Duration = s(10);
/// The largest body at 4.5 Mbit/s.
pub const BODY_LIMIT: Duration = s(30);
/// Longer than the 60 s that clients and load balancers keep connections, so that they close first.
pub const IDLE_LIMIT: Duration = s(75);
/// Most streams end in two minutes; below systemd's stop limit in the unit.
pub const DRAIN_LIMIT: Duration = s(120);

/// A window of 1 M tokens is about 4 MiB of text, JSON escapes included 8.
pub const BODY_MAX: Bytes = Bytes::mib(16);
/// Largest `n`.
pub const CHOICES_MAX: u32 = 8;
/// Largest whole answer.
pub const ANSWER_MAX: Bytes = Bytes::mib(64);
/// Largest single event; a server that sends more is at fault.
pub const EVENT_MAX: Bytes = Bytes::mib(4);

/// Requests waiting at once.
pub const QUEUE_LENGTH_MAX: usize = 1024;
/// One tenant must not fill the queue.
pub const TENANT_SHARE_PERCENT: u8 = 50;
/// What a person or a client library still waits for.
pub const WAIT_MAX: Duration = s(60);
/// Batch jobs are patient; most client libraries give up after ten minutes.
pub const BATCH_WAIT_MAX: Duration = s(540);
/// A restarted server needs longer than this to load; only a blip is worth waiting for.
pub const NO_SERVER_WAIT: Duration = s(5);

/// Ten tokens a second read fluently.
pub const TOKEN_GAP: Duration = Duration::from_millis(100);
/// A few steps' worth: enough that a server never idles, little enough that what comes next may still go first.
pub const PREFILL_DEBT: Duration = Duration::from_millis(400);
/// What vLLM computes in a step on large cards, by default.
pub const CHUNK: Tokens = Tokens(2048);
/// Answers grow beyond what was expected.
pub const KV_SHARE_PERCENT: u8 = 95;
/// Room that an urgent request finds at once.
pub const BATCH_LEAVES_PERCENT: u8 = 12;
/// Longer than any interactive burst should last.
pub const STANDARD_AGES: Duration = s(30);
/// The same for work that nobody waits for.
pub const BATCH_AGES: Duration = s(120);
/// What was begun is seldom worth throwing away.
pub const PREEMPT_BATCH: bool = false;
/// Costs microseconds, and finds seconds of prefill.
pub const PREFIX: bool = true;
/// One tenant's share is as large as another's.
pub const WEIGHT: u32 = 1;
/// A server that does not schedule by priority may refuse it.
pub const PRIORITY: bool = false;

/// Long inputs take a minute to read on a loaded server.
pub const FIRST_TOKEN_LIMIT: Duration = s(120);
/// A stream's longest silence.
pub const STREAM_IDLE_LIMIT: Duration = s(60);
/// A whole answer's longest time: 12,000 tokens at 20 a second.
pub const ANSWER_LIMIT: Duration = s(600);
/// Proxies close a silent stream after 30 to 60 s.
pub const HEARTBEAT: Duration = s(10);
/// Servers tried for one request.
pub const ATTEMPTS_MAX: u32 = 3;
/// Model servers are on this host or in this rack.
pub const CONNECT_LIMIT: Duration = s(2);
/// Idle connections kept to each server.
pub const IDLE_CONNECTIONS_MAX: usize = 64;

/// Failures in a row that open a breaker.
pub const BREAKER_FAILURES: u32 = 5;
/// First pause before a trial.
pub const TRIAL_FIRST: Duration = Duration::from_millis(250);
/// Longest pause between trials: a server that came back works again within this.
pub const TRIAL_MAX: Duration = s(2);

/// Time between rounds of probing.
pub const PROBE_PERIOD: Duration = s(1);
/// A busy server's metrics page may take seconds.
pub const PROBE_LIMIT: Duration = s(5);
/// Two failed probes and then some.
pub const STALE_AFTER: Duration = s(15);
/// Failed rounds that mark a server down.
pub const FAILURES_DOWN: u32 = 3;
/// Look for servers on the default loopback ports.
pub const DISCOVER: bool = true;

/// Look for the files of models that are configured without a folder.
pub const TOKENS_SEARCH: bool = true;

/// Read the GPUs.
pub const GPU_ENABLED: bool = true;
/// Time between rounds of GPU readings.
pub const GPU_PERIOD: Duration = s(1);
/// Time between readings of utilisation, power and energy: a lost card is noticed within it.
pub const GPU_FAST_PERIOD: Duration = Duration::from_millis(250);
/// Readings of GPUs older than this are unknown: five missed rounds.
pub const GPU_STALE_AFTER: Duration = s(5);
/// Sick cards take their servers out.
pub const GPU_DRAIN: bool = true;
/// Longer than any pause that was seen in a working server, shorter than people's patience.
pub const HUNG_AFTER: Duration = s(30);
/// Room for a card's own bookkeeping and for what a foreign process takes between two readings.
pub const MEMORY_FLOOR: Bytes = Bytes(512 << 20);
/// What becomes of servers found on a GPU.
pub const FOUND_ON_GPU: FoundOnGpu = FoundOnGpu::Report;

/// Price of a kilowatt-hour.
pub const PRICE_PER_KWH: f64 = 0.0;
/// Price of an hour of one GPU beside its energy.
pub const PRICE_PER_GPU_HOUR: f64 = 0.0;
/// Input tokens that cost as much as one output token.
pub const OUTPUT_WEIGHT: f64 = 4.0;

/// Threads for CPU work.
pub const COMPUTE_THREADS: usize = 2;

/// Threads that carry requests: the host's cores belong to its model servers.
pub const fn carry_threads(cores: usize) -> usize {
    if cores <= 16 { 2 } else { 4 }
}

/// Hash each prompt's blocks.
pub const PREFIX_BLOCKS: bool = false;

/// Memory for counted parts of prompts, MiB.
pub const TOKEN_CACHE_MAX_MIB: u64 = 64;

/// How log lines look.
pub const LOG_FORMAT: LogFormat = LogFormat::Text;
/// Least urgent level that is written.
pub const LOG_LEVEL: LogLevel = LogLevel::Info;

/// Send token ids instead of text.
pub const SEND_TOKEN_IDS: bool = false;

/// The tier of a tenant's requests.
pub const TIER: Tier = Tier::Standard;
/// Requests a minute; 0 for no limit.
pub const REQUESTS_PER_MINUTE: u64 = 0;
/// Tokens a minute; 0 for no limit.
pub const TOKENS_PER_MINUTE: Tokens = Tokens::ZERO;
/// Output tokens expected of a request that gives no maximum.
pub const EXPECTED_OUTPUT: Tokens = Tokens(256);

/// Our own classifiers run.
pub const SCREEN_OWN_MODELS: bool = true;
/// Threads for each classifier: the host's cores belong to its model servers.
pub const SCREEN_THREADS: usize = 1;
/// Texts that wait for a classifier at once.
pub const SCREEN_WAITING_MAX: usize = 256;
/// Windows that a classifier runs together.
pub const SCREEN_BATCH_MAX: usize = 8;
/// Windows of one text that a classifier looks at: some 25,000 tokens.
pub const SCREEN_WINDOWS_MAX: usize = 128;
/// Longest time that screening may add to a request.
pub const SCREEN_BUDGET: Duration = Duration::from_millis(250);
/// What is done about texts on their way in: an operator who asks for more has looked at what is measured.
pub const SCREEN_INPUT: Action = Action::Off;
/// How answers are watched.
pub const SCREEN_OUTPUT: Watch = Watch::Off;
/// Most tokens of an answer that are held back.
pub const HOLD_TOKENS: u32 = 48;
/// Longest time that they are.
pub const HOLD: Duration = Duration::from_millis(500);

/// A tenant may ask for weaker screening of a request.
pub const SCREEN_OVERRIDE: bool = false;
