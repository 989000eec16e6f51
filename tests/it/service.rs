//! The daemon under a service manager: what it tells, how it stops, what a crash leaves behind, and what
//! it writes.

use crate::support::{
    process::{
        self, Daemon, KEY, Setup, ask, berthd, ended, exchange, request, run, simulated, told,
    },
    raw::{self, PATIENCE, Reply},
};
use rustix::process::Signal;
use serde_json::{Value, json};
use std::{collections::BTreeSet, fs, net::TcpListener, os::fd::OwnedFd, time::Duration};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::{Instant, timeout},
};

const FAST: Duration = Duration::ZERO;
const SLOW: Duration = Duration::from_millis(5);

fn body(reply: &Reply) -> String {
    String::from_utf8_lossy(&reply.body).into_owned()
}

fn status_of(notice: &[String]) -> &str {
    notice.iter().find_map(|line| line.strip_prefix("STATUS=")).expect("a status")
}

fn monotonic_us() -> i64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    now.tv_sec * 1_000_000 + now.tv_nsec / 1_000
}

#[tokio::test]
async fn the_manager_hears_ready_reloading_and_stopping() {
    let simulated = simulated("m", FAST).await;
    let folder = tempfile::tempdir().unwrap();
    let mut daemon = Setup::with_server("a", simulated.addr).spawn(folder);
    let first = daemon.next_notice().await;
    assert_eq!(first, ["STATUS=loading models"], "not ready before it serves");
    let ready = daemon.notice("READY=1").await;
    assert_eq!(
        status_of(&ready),
        "serving: 1 of 1 servers usable, 0 requests running, 0 waiting",
        "ready means that a request succeeds"
    );
    let status = daemon.status().await;
    daemon.data = status["data"].as_str().unwrap().parse().unwrap();
    assert_eq!(daemon.chat(&ask("m", false, 2)).await.status, 200);

    let before = monotonic_us();
    daemon.signal(Signal::HUP);
    let reloading = daemon.notice("RELOADING=1").await;
    let stamp = reloading.iter().find_map(|line| line.strip_prefix("MONOTONIC_USEC=")).unwrap();
    let stamp: i64 = stamp.parse().unwrap();
    assert!((before..=monotonic_us()).contains(&stamp), "{before} <= {stamp}");
    daemon.notice("READY=1").await;

    daemon.signal(Signal::TERM);
    let stopping = daemon.notice("STOPPING=1").await;
    assert!(status_of(&stopping).contains("draining"), "{stopping:?}");
    assert_eq!(daemon.exit().await, 0);
    assert!(!daemon.socket().exists(), "nothing is left behind");
}

/// Every request right after READY succeeds: twenty starts, none of which gets to warm up.
#[tokio::test]
async fn ready_is_never_early() {
    let simulated = simulated("m", FAST).await;
    let mut slowest = Duration::ZERO;
    for _ in 0..20 {
        let begun = Instant::now();
        let daemon = Setup::with_server("a", simulated.addr).start().await;
        slowest = slowest.max(begun.elapsed());
        let reply = daemon.chat(&ask("m", false, 1)).await;
        assert_eq!(reply.status, 200, "{}", body(&reply));
    }
    println!("20 starts to READY=1, slowest {slowest:?}");
}

#[tokio::test]
async fn a_server_that_is_silent_does_not_keep_the_daemon_from_starting() {
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut setup = Setup::with_server("silent", silent.local_addr().unwrap());
    setup.rest.push_str("models = [\"m\"]\n[queue]\nno_server_wait_s = 0.2\n");
    let daemon = setup.start().await;
    let reply = daemon.chat(&ask("m", false, 1)).await;
    assert_eq!(reply.status, 503, "its model is known: {}", body(&reply));
    assert_eq!(reply.json()["error"]["code"], "no_server_available");
}

#[tokio::test]
async fn the_watchdog_is_fed_at_half_its_limit_also_while_draining() {
    let simulated = simulated("m", SLOW).await;
    let mut setup = Setup::with_server("a", simulated.addr);
    setup.env.push(("WATCHDOG_USEC".into(), "400000".into()));
    let mut daemon = setup.start().await;
    daemon.notice("WATCHDOG=1").await;
    let begun = Instant::now();
    for _ in 0..5 {
        daemon.notice("WATCHDOG=1").await;
    }
    let beat = begun.elapsed() / 5;
    println!("a beat every {beat:?} for a limit of 400 ms");
    assert!((150..=260).contains(&beat.as_millis()), "{beat:?}");

    let mut stream = daemon.open_chat(&ask("m", true, 300)).await;
    raw::read_until(&mut stream, "data: ").await;
    daemon.signal(Signal::TERM);
    daemon.notice("STOPPING=1").await;
    daemon.notice("WATCHDOG=1").await;
    daemon.notice("WATCHDOG=1").await;
    raw::read_until(&mut stream, "data: [DONE]").await;
    assert_eq!(daemon.exit().await, 0);
}

#[tokio::test]
async fn a_stop_refuses_the_new_and_finishes_the_running() {
    let simulated = simulated("m", SLOW).await;
    let mut daemon = Setup::with_server("a", simulated.addr).start().await;
    let mut stream = daemon.open_chat(&ask("m", true, 300)).await;
    raw::read_until(&mut stream, "data: ").await;
    // A caller whose request is on its way when the stop comes.
    let key = format!("Bearer {KEY}");
    let headers = [("Authorization", key.as_str())];
    let text = ask("m", false, 2).to_string();
    let text = request("POST", "/v1/chat/completions", &headers, &text, "keep-alive");
    let (head, rest) = text.split_at(40);
    let mut late = TcpStream::connect(daemon.data).await.unwrap();
    late.write_all(head.as_bytes()).await.unwrap();
    daemon.until("both are connected", |s| (s["connections"] == 2).then_some(())).await;

    daemon.signal(Signal::TERM);
    daemon.notice("STOPPING=1").await;
    let begun = Instant::now();
    process::eventually("the listener is closed", || async {
        TcpStream::connect(daemon.data).await.is_err().then_some(())
    })
    .await;
    println!("listener closed {:?} after STOPPING=1", begun.elapsed());
    assert_eq!(daemon.status().await["state"], "stopping");
    assert_eq!(process::get(daemon.admin, "/healthz").await.status, 503);
    late.write_all(rest.as_bytes()).await.unwrap();
    let (bytes, ended) = raw::read_all(&mut late).await;
    let refused = Reply::parse(&bytes, ended);
    assert_eq!(refused.status, 503, "{}", body(&refused));
    assert_eq!(refused.json()["error"]["code"], "shutting_down");
    assert!(refused.head.to_lowercase().contains("retry-after: 1"), "{}", refused.head);

    let (rest, _) = raw::read_all(&mut stream).await;
    assert!(raw::contains(&rest, "data: [DONE]") && rest.ends_with(b"0\r\n\r\n"), "it is whole");
    assert!(!raw::contains(&rest, "\"error\""));
    assert_eq!(daemon.exit().await, 0);
    assert_eq!(simulated.stats.aborted(), 0);
    let records = daemon.logged("request");
    let classes: Vec<&str> = records.iter().filter_map(|record| record["class"].as_str()).collect();
    assert_eq!(classes, ["shed", "answered"]);
}

#[tokio::test]
async fn the_drain_limit_ends_a_stream_that_does_not() {
    let simulated = simulated("m", SLOW).await;
    let mut setup = Setup::with_server("a", simulated.addr);
    setup.listen = "drain_limit_s = 0.5".into();
    let mut daemon = setup.start().await;
    let mut stream = daemon.open_chat(&ask("m", true, 30_000)).await;
    raw::read_until(&mut stream, "data: ").await;
    let begun = Instant::now();
    daemon.signal(Signal::TERM);
    let mut rest = Vec::new();
    // How it ends is looked at below; that it ends is the point.
    let _ = timeout(PATIENCE, stream.read_to_end(&mut rest)).await.expect("it ends");
    assert_eq!(daemon.exit().await, 0);
    let took = begun.elapsed();
    println!("drain limit 0.5 s: ended after {took:?}");
    assert!(took >= Duration::from_millis(500) && took < Duration::from_secs(4), "{took:?}");
    let silent_end = raw::contains(&rest, "[DONE]") || rest.ends_with(b"0\r\n\r\n");
    assert!(!silent_end || raw::contains(&rest, "\"error\""), "it must not look whole");
    process::eventually("the server is told", || async {
        (simulated.stats.aborted() == 1).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_second_daemon_does_not_take_the_socket() {
    let daemon = Setup::default().start().await;
    let config = daemon.config().display().to_string();
    let (code, _, err) = told(&run(&["serve", "--config", &config]).await);
    assert_eq!(code, 70);
    assert!(err.contains("another berthd answers") && err.contains("listen.socket"), "{err}");
    assert_eq!(daemon.status().await["state"], "serving", "the first is unharmed");

    // A file that is no socket is not removed.
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("s");
    fs::write(&file, "precious").unwrap();
    let config = folder.path().join("berthd.toml");
    fs::write(&config, Setup::default().text(&file)).unwrap();
    let (code, _, err) = told(&run(&["serve", "--config", &config.display().to_string()]).await);
    assert!(code == 70 && err.contains("not a socket"), "{code} {err}");
    assert_eq!(fs::read_to_string(&file).unwrap(), "precious");
}

#[tokio::test]
async fn an_address_that_is_taken_is_named_with_its_key() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let setup = Setup { data: taken.local_addr().unwrap().to_string(), ..Setup::default() };
    let address = setup.data.clone();
    let folder = tempfile::tempdir().unwrap();
    let mut daemon = setup.spawn(folder);
    assert_eq!(daemon.exit().await, 70);
    let log = daemon.log();
    for told in [address.as_str(), "listen.data", "in use"] {
        assert!(log.contains(told), "{told:?} is missing:\n{log}");
    }
    assert!(!daemon.socket().exists());
}

/// A port outside the range from which the system gives ports, so that nobody else is given it while the
/// daemon is down.
fn steady_port() -> u16 {
    let start = 20_000 + u16::try_from(std::process::id() % 5_000).unwrap();
    let free = |port: &u16| TcpListener::bind(("127.0.0.1", *port)).is_ok();
    (start..32_000).find(free).expect("a free port")
}

#[tokio::test]
async fn a_killed_daemon_comes_back_without_a_trace() {
    let simulated = simulated("m", SLOW).await;
    let mut setup = Setup::with_server("a", simulated.addr);
    setup.data = format!("127.0.0.1:{}", steady_port());
    let mut folder = tempfile::tempdir().unwrap();
    let mut slowest = Duration::ZERO;
    for round in 0..5u64 {
        let begun = Instant::now();
        let daemon = setup.clone().start_in(folder).await;
        let ready = begun.elapsed();
        let reply = daemon.chat(&ask("m", false, 2)).await;
        assert_eq!(reply.status, 200, "{}", body(&reply));
        slowest = slowest.max(begun.elapsed());
        println!(
            "round {round}: ready {ready:?} after its start, served after {:?}",
            begun.elapsed()
        );
        let status = daemon.status().await;
        assert_eq!((&status["running"], &status["connections"]), (&json!(0), &json!(0)));
        assert_eq!(status["totals"][0]["requests"], 1, "nothing of the one before");
        assert!(status["recent_refusals"].as_array().unwrap().is_empty());

        let mut streams = Vec::new();
        for _ in 0..10 {
            let mut stream = daemon.open_chat(&ask("m", true, 30_000)).await;
            raw::read_until(&mut stream, "data: ").await;
            streams.push(stream);
        }
        let before = daemon.socket();
        folder = daemon.kill().await;
        assert!(before.exists(), "the kernel cleans up no socket file");
        for mut stream in streams {
            let mut rest = Vec::new();
            // Closed or reset: over, and at once.
            let _ = timeout(PATIENCE, stream.read_to_end(&mut rest)).await.expect("it ends");
            assert!(!raw::contains(&rest, "[DONE]"));
        }
        process::eventually("the server lost its callers", || async {
            (simulated.stats.aborted() == 10 * (round + 1)).then_some(())
        })
        .await;
    }
    println!("kill -9 and restart while serving: slowest start to first answer {slowest:?}");
    assert!(slowest < Duration::from_secs(5), "{slowest:?}");
}

#[tokio::test]
async fn a_socket_from_the_manager_takes_the_place_of_the_address() {
    let simulated = simulated("m", FAST).await;
    let held = TcpListener::bind("127.0.0.1:0").unwrap();
    let at = held.local_addr().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("berthd.toml");
    let socket = folder.path().join("s");
    fs::write(&config, Setup::with_server("a", simulated.addr).text(&socket)).unwrap();
    // A caller who comes while nobody serves waits in the kernel's line.
    let mut early = TcpStream::connect(at).await.unwrap();
    let key = format!("Bearer {KEY}");
    let text = ask("m", false, 2).to_string();
    let text = request("POST", "/v1/chat/completions", &[("Authorization", &key)], &text, "close");
    early.write_all(text.as_bytes()).await.unwrap();

    let mut child = std::process::Command::new("sh")
        .args(["-c", "exec 3<&0 && export LISTEN_PID=$$ && exec \"$@\"", "sh"])
        .arg(berthd().get_program())
        .args(["serve", "--config"])
        .arg(&config)
        .env_remove("NOTIFY_SOCKET")
        .env("LISTEN_FDS", "1")
        .env("LISTEN_FDNAMES", "data")
        .stdin(OwnedFd::from(held))
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let (bytes, ended_how) = raw::read_all(&mut early).await;
    let reply = Reply::parse(&bytes, ended_how);
    assert_eq!(reply.status, 200, "{}", body(&reply));
    let mut control = tokio::net::UnixStream::connect(&socket).await.unwrap();
    let status = exchange(&mut control, "GET", "/status", &[], "").await.json();
    assert_eq!(status["data"], at.to_string(), "the address that is really used");
    process::signal(&child, Signal::TERM);
    assert!(ended(&mut child).await.success());
}

/// The fields of a request's line, as documented.
const FIELDS: [&str; 13] = [
    "id",
    "tenant",
    "tier",
    "model",
    "server",
    "class",
    "reason",
    "input_tokens",
    "output_tokens",
    "attempts",
    "queue_ms",
    "ttft_ms",
    "total_ms",
];

const SECRET: &str = "wombat-marker-in-the-prompt";

async fn secret_requests(daemon: &Daemon) {
    let mut secret = ask("m", false, 3);
    secret["messages"][0]["content"] = SECRET.into();
    secret["user"] = SECRET.into();
    assert_eq!(daemon.chat(&secret).await.status, 200);
    secret["stream"] = true.into();
    assert_eq!(daemon.chat(&secret).await.status, 200);
    assert_eq!(daemon.chat_as("sk-wrong-marker", &secret).await.status, 401);
    secret["max_tokens"] = SECRET.into();
    assert_eq!(daemon.chat(&secret).await.status, 400);
    let mut stream = TcpStream::connect(daemon.data).await.unwrap();
    let key = format!("Bearer {KEY}");
    let broken = format!("{{\"model\": \"m\", \"messages\": \"{SECRET}");
    let headers = [("Authorization", key.as_str())];
    let path = "/v1/chat/completions";
    assert_eq!(exchange(&mut stream, "POST", path, &headers, &broken).await.status, 400);
}

#[tokio::test]
async fn one_line_for_each_request_and_no_secrets_in_any() {
    let simulated = simulated("m", FAST).await;
    let mut setup = Setup::with_server("a", simulated.addr);
    setup.log = "format = \"json\"\nlevel = \"debug\"".into();
    let mut daemon = setup.start().await;
    secret_requests(&daemon).await;
    daemon.signal(Signal::TERM);
    assert_eq!(daemon.exit().await, 0);

    let records = daemon.logged("request");
    assert_eq!(records.len(), 5, "one line each: {records:#?}");
    // The streamed one: a whole answer has no first token of its own.
    let whole = &records[1];
    for field in FIELDS.iter().filter(|field| !["reason"].contains(field)) {
        assert!(!whole[*field].is_null(), "{field} is missing: {whole}");
    }
    assert_eq!((&whole["level"], &whole["class"]), (&json!("INFO"), &json!("answered")));
    assert_eq!((&whole["tenant"], &whole["tier"]), (&json!("team"), &json!("standard")));
    assert_eq!((&whole["model"], &whole["server"]), (&json!("m"), &json!("a")));
    assert_eq!((&whole["output_tokens"], &whole["attempts"]), (&json!(3), &json!(1)));
    assert!(whole["timestamp"].is_string());
    assert!(whole["total_ms"].as_f64() >= whole["ttft_ms"].as_f64());
    let reasons: Vec<&Value> = records.iter().map(|record| &record["reason"]).collect();
    assert_eq!(reasons[2..], ["invalid_api_key", "invalid_type", "malformed_json"]);
    let ids: BTreeSet<&str> = records.iter().filter_map(|record| record["id"].as_str()).collect();
    assert_eq!(ids.len(), 5);
    let log = daemon.log();
    for secret in [SECRET, "wombat", KEY, "marker-key", "sk-wrong", "What is berthd"] {
        assert!(!log.contains(secret), "{secret:?} is in the log:\n{log}");
    }
}

#[tokio::test]
async fn the_journal_gets_levels_and_no_time() {
    let simulated = simulated("m", FAST).await;
    let mut setup = Setup::with_server("a", simulated.addr);
    setup.log = "format = \"text\"".into();
    let plain = setup.clone().start().await;
    secret_requests(&plain).await;
    assert!(plain.log().lines().all(|line| line.starts_with("20") && !line.starts_with('<')));

    setup.env.push(("JOURNAL_STREAM".into(), "8:1234".into()));
    let mut daemon = setup.start().await;
    secret_requests(&daemon).await;
    fs::write(daemon.config(), "[listen]\ndata = 3\n").unwrap();
    daemon.signal(Signal::HUP);
    daemon.notice("RELOADING=1").await;
    daemon.notice("READY=1").await;
    let log = daemon.log();
    assert!(log.lines().any(|line| line.starts_with("<6>request ")), "{log}");
    let known =
        |line: &str| ["<3>", "<4>", "<6>", "<7>"].iter().any(|level| line.starts_with(level));
    for line in log.lines() {
        assert!(known(line), "the journal would file this line under no level: {line:?}\n{log}");
    }
    assert!(log.lines().any(|line| line.starts_with("<3>")), "{log}");
    for secret in [SECRET, KEY, "sk-wrong"] {
        assert!(!log.contains(secret) && !plain.log().contains(secret), "{secret:?}");
    }
}
