//! What operators have in their hands, against the real binary: status, drain, reload, check, the other
//! commands and their exit codes.

use crate::support::{
    nvml::{FakeNvml, ONE_CARD},
    process::{
        Daemon, KEY, Setup, ask, berthd, digest, eventually, get, run, run_with, simulated, told,
    },
    raw::{self, Reply},
};
use rustix::process::Signal;
use serde_json::{Value, json};
use std::{
    fs,
    os::unix::{fs::PermissionsExt, process::CommandExt},
    process::Command,
    time::Duration,
};

const FAST: Duration = Duration::ZERO;
/// A stream of 700 tokens takes more than three seconds at this pace: longer than what is done meanwhile.
const SLOW: Duration = Duration::from_millis(5);

fn body(reply: &Reply) -> String {
    String::from_utf8_lossy(&reply.body).into_owned()
}

fn server<'a>(status: &'a Value, name: &str) -> &'a Value {
    let list = status["servers"].as_array().unwrap();
    list.iter().find(|server| server["name"] == name).unwrap_or(&Value::Null)
}

/// Waits for both notices of one reload, however it was asked for.
async fn reloaded(daemon: &mut Daemon) {
    daemon.notice("RELOADING=1").await;
    daemon.notice("READY=1").await;
}

#[tokio::test]
async fn the_status_tells_what_an_operator_asks_first() {
    let simulated = simulated("m", SLOW).await;
    let mut setup = Setup::with_server("one", simulated.addr);
    setup.rest.push_str("max_running = 1\n");
    let daemon = setup.start().await;
    assert_eq!(daemon.chat(&ask("m", false, 4)).await.status, 200);
    assert_eq!(get(daemon.data, "/nobody/knows/me").await.status, 404);
    assert_eq!(daemon.chat(&ask("nothing-like-it", false, 4)).await.status, 404);
    let mut running = daemon.open_chat(&ask("m", true, 30_000)).await;
    raw::read_until(&mut running, "data: ").await;
    let _waiting = daemon.open_chat(&ask("m", true, 4)).await;
    daemon.until("one waits", |status| (status["queue"]["standard"] == 1).then_some(())).await;

    let output = daemon.command(&["status", "--json"]).await;
    let (code, out, _) = told(&output);
    assert_eq!(code, 0);
    let status: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(status["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(status["state"], "serving");
    assert!(status["uptime_s"].as_f64().unwrap() > 0.0 && status["pid"].is_u64());
    assert_eq!(status["data"], daemon.data.to_string(), "the port that was found, not port 0");
    assert_eq!(status["admin"], daemon.admin.to_string());
    assert_eq!(status["connections"], 2);
    assert_eq!(status["running"], 1);
    assert_eq!(
        status["queue"],
        json!({"system": 0, "interactive": 0, "standard": 1, "batch": 0}),
        "every tier is there, waiting or not"
    );
    assert_eq!(status["gpus"]["state"], "off");
    let one = server(&status, "one");
    assert_eq!((&one["kind"], &one["usable"]), (&json!("vllm"), &json!(true)));
    assert_eq!(one["health"]["state"], "up");
    assert_eq!((&one["drained"], &one["breaker_open"]), (&json!(false), &json!(false)));
    assert_eq!(one["placed_requests"], 1);
    assert!(one["placed_tokens"].as_u64().unwrap() > 0, "{one}");
    assert!(one["capacity"]["kv_tokens"].as_u64().unwrap() > 0, "{one}");
    assert_eq!(one["models"], json!(["m"]));
    assert!(one["age_s"].as_f64().unwrap() < 10.0);
    let model = &status["models"][0];
    assert_eq!((&model["name"], &model["servers"]), (&json!("m"), &json!(["one"])));
    assert!(model["context_window"].is_u64() && model["token_count"].is_string());
    let total = &status["totals"][0];
    assert_eq!((&total["tenant"], &total["requests"]), (&json!("team"), &json!(1)));
    // Strangers, who may come by the thousand, take no place there.
    assert_eq!(status["recent_refusals"].as_array().unwrap().len(), 1);
    let refusal = &status["recent_refusals"][0];
    assert_eq!(refusal["reason"], "model_not_found");
    assert_eq!(refusal["tenant"], "team");
    assert!(refusal["ago_s"].is_number() && refusal["request"].is_string());
    assert!(refusal["message"].is_null(), "a caller's mistake may quote what the caller sent");
    assert!(!out.contains("nothing-like-it"), "{out}");

    let (code, out, _) = told(&daemon.command(&["status"]).await);
    assert_eq!(code, 0);
    for told in
        ["serving", "one", "vllm", "up", "standard 1", "1 running", "team", "model_not_found"]
    {
        assert!(out.contains(told), "{told:?} is missing:\n{out}");
    }
    println!("{out}");
}

#[tokio::test]
async fn the_socket_speaks_plain_http_and_is_for_the_group_only() {
    let daemon = Setup::default().start().await;
    let mode = fs::metadata(daemon.socket()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o660);
    let reply = daemon.control("GET", "/status").await;
    assert_eq!(reply.status, 200);
    assert!(reply.head.to_lowercase().contains("content-type: application/json"));
    assert_eq!(daemon.control("GET", "/drain/one").await.status, 405);
    assert_eq!(daemon.control("DELETE", "/status").await.status, 405);
    let lost = daemon.control("GET", "/nothing").await;
    assert!(lost.status == 404 && body(&lost).contains("/status"), "{}", body(&lost));

    let mut curl = Command::new("curl");
    curl.args(["--silent", "--show-error", "--unix-socket"]).arg(daemon.socket());
    curl.arg("http://berthd/status");
    if Command::new("curl").arg("--version").output().is_err() {
        eprintln!("SKIPPED: curl is not installed");
        return;
    }
    let (code, out, err) = told(&run_with(curl, "").await);
    assert_eq!(code, 0, "{err}");
    let status: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(status["state"], "serving");
}

#[tokio::test]
async fn a_drained_server_finishes_and_takes_nothing_new() {
    let (a, b) = (simulated("m", SLOW).await, simulated("m", SLOW).await);
    let daemon = Setup::with_server("a", a.addr).server("b", b.addr).start().await;
    let (code, _, err) = told(&daemon.command(&["drain", "c"]).await);
    assert_eq!(code, 64);
    assert!(err.contains("'c'") && err.contains("a, b"), "the servers there are: {err}");
    let (code, _, err) = told(&daemon.command(&["undrain", "no/such server"]).await);
    assert!(code == 64 && err.contains("'no/such server'"), "{err}");

    let mut streams = Vec::new();
    for _ in 0..2 {
        let mut stream = daemon.open_chat(&ask("m", true, 200)).await;
        raw::read_until(&mut stream, "data: ").await;
        streams.push(stream);
    }
    assert_eq!((a.stats.running(), b.stats.running()), (1, 1), "one each");
    let (code, out, _) = told(&daemon.command(&["drain", "a"]).await);
    assert!(code == 0 && out.contains("'a'"), "{out}");
    let asked = a.stats.requests();
    for _ in 0..4 {
        let reply = daemon.chat(&ask("m", false, 2)).await;
        assert!(reply.status == 200 && reply.head.contains("x-berthd-server: b"), "{}", reply.head);
    }
    assert_eq!(a.stats.requests(), asked, "nothing new went to the drained one");
    let status = daemon.status().await;
    assert_eq!(server(&status, "a")["drained"], true);
    assert_eq!(server(&status, "a")["placed_requests"], 1, "what runs there may finish");
    let (_, out, _) = told(&daemon.command(&["status"]).await);
    assert!(out.contains("drained by operator"), "{out}");
    for mut stream in streams {
        raw::read_until(&mut stream, "data: [DONE]").await;
    }

    let (code, out, _) = told(&daemon.command(&["undrain", "a"]).await);
    assert!(code == 0 && out.contains("again"), "{out}");
    for _ in 0..2 {
        assert_eq!(daemon.chat(&ask("m", false, 2)).await.status, 200);
    }
    assert!(a.stats.requests() > asked, "requests go there again");
}

#[tokio::test]
async fn a_reload_changes_everything_or_nothing() {
    let (a, b) = (simulated("m", SLOW).await, simulated("other", FAST).await);
    let mut daemon = Setup::with_server("a", a.addr).start().await;
    let mut running = daemon.open_chat(&ask("m", true, 700)).await;
    raw::read_until(&mut running, "data: ").await;

    // A bad file: every problem is told, nothing changes.
    let good = daemon.setup().rest.clone();
    daemon.setup().rest =
        good.replace("vllm", "vlm") + "[[tenants]]\nname = \"team\"\nkeys_sha256 = [\"12\"]\n";
    daemon.setup().listen = "drain_limit = 3".into();
    daemon.write();
    let (code, _, err) = told(&daemon.command(&["reload"]).await);
    assert_eq!(code, 78);
    for told in ["Nothing was changed", "drain_limit_s", "vllm", "keys_sha256", "team"] {
        assert!(err.contains(told), "{told:?} is missing:\n{err}");
    }
    assert_eq!(daemon.chat(&ask("m", false, 2)).await.status, 200);
    reloaded(&mut daemon).await;
    daemon.signal(Signal::HUP);
    reloaded(&mut daemon).await;
    assert_eq!(daemon.logged("configuration not reloaded").len(), 2);
    assert_eq!(daemon.chat(&ask("m", false, 2)).await.status, 200);

    // A good file: a tenant and a server more, one key less.
    let newcomer = "sk-newcomer";
    assert_eq!(daemon.chat_as(newcomer, &ask("m", false, 2)).await.status, 401);
    daemon.setup().listen = "drain_limit_s = 10".into();
    daemon.setup().rest =
        format!("{good}[[tenants]]\nname = \"new\"\nkeys_sha256 = [\"{}\"]\n", digest(newcomer));
    let setup = daemon.setup().clone().server("b", b.addr);
    *daemon.setup() = setup;
    daemon.write();
    let (code, out, err) = told(&daemon.command(&["reload"]).await);
    assert!(code == 0 && out.contains("1 servers kept, 1 new"), "{out}{err}");
    assert_eq!(daemon.chat_as(newcomer, &ask("m", false, 2)).await.status, 200, "at once");
    reloaded(&mut daemon).await;
    daemon.until("b is up", |status| (server(status, "b")["usable"] == true).then_some(())).await;
    assert_eq!(daemon.chat(&ask("other", false, 2)).await.status, 200);

    // And back, by signal: the server and the tenant are gone.
    daemon.setup().rest = good;
    daemon.write();
    daemon.signal(Signal::HUP);
    reloaded(&mut daemon).await;
    assert_eq!(daemon.chat_as(newcomer, &ask("m", false, 2)).await.status, 401);
    assert_eq!(daemon.chat(&ask("other", false, 2)).await.status, 404);
    daemon.until("b is gone", |status| server(status, "b").is_null().then_some(())).await;

    // The stream that began before all of it is whole.
    assert_eq!(a.stats.running(), 1, "it ran all the while");
    let rest = raw::read_until(&mut running, "data: [DONE]").await;
    assert!(!raw::contains(&rest, "\"error\""));
    assert_eq!(a.stats.aborted(), 0);
}

/// A reload that changes how every server is watched makes each of them anew. Their models must not
/// vanish for the moment until the first look: callers would be told that there is no such model.
#[tokio::test]
async fn a_reload_of_every_server_is_not_seen_by_callers() {
    let a = simulated("m", FAST).await;
    let mut daemon = Setup::with_server("a", a.addr).start().await;
    for round in 0..10 {
        daemon.setup().probe = format!("period_s = 0.{}", 11 + round);
        daemon.write();
        let (code, out, err) = told(&daemon.command(&["reload"]).await);
        assert!(code == 0 && out.contains("1 new or changed"), "{out}{err}");
        let reply = daemon.chat(&ask("m", false, 2)).await;
        assert_eq!(reply.status, 200, "{}", body(&reply));
    }
}

#[tokio::test]
async fn check_explains_every_problem_with_its_line_and_remedy() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("berthd.toml");
    fs::write(
        &file,
        "[listen]\ndata = \"127.0.0.1:99999\"\nhead_limit = 3\n[queue]\nlength_max = \"many\"\n\
         [[servers]]\nname = \"a\"\nkind = \"vlm\"\nurl = \"https://h\"\n[nonsense]\nx = 1\n",
    )
    .unwrap();
    let path = file.display().to_string();
    let (code, out, err) = told(&run(&["check", "--config", &path]).await);
    assert_eq!((code, out.as_str()), (78, ""));
    for (line, key) in
        [(2, "listen.data"), (3, "head_limit"), (5, "length_max"), (8, "kind"), (9, "url")]
    {
        let place = format!("{path}:{line}: ");
        let problem = err.lines().find(|text| text.contains(&place));
        let problem = problem.unwrap_or_else(|| panic!("line {line} is missing:\n{err}"));
        let (what, remedy) = problem.split_once(" — ").expect("a remedy");
        assert!(what.contains(key) && !remedy.is_empty(), "{problem}");
    }
    assert!(err.contains("nonsense") && err.contains("write `head_limit_s`"), "{err}");

    // The daemon refuses the same file in the same words.
    let (code, _, served) = told(&run(&["serve", "--config", &path]).await);
    assert_eq!((code, served), (78, err));

    fs::write(&file, "[[tenants]]\nname = \"a\"\n").unwrap();
    let (code, _, err) = told(&run(&["check", "--config", &path]).await);
    assert!(code == 78 && err.contains("keys_sha256"), "{err}");
    let good = Setup::default().text(&folder.path().join("s"));
    fs::write(&file, &good).unwrap();
    let (code, out, err) = told(&run(&["check", "--config", &path]).await);
    assert!(code == 0 && out.contains("is valid: 1 tenants"), "{out}{err}");

    // What would be without effect is told: labels that nobody finds, models that cannot be loaded.
    let screen = "[screen]\nown_models = false\n[screen.input]\nmode = \"flag\"\n\
        thresholds = { injectoin = 0.5, secret = 0.5 }\nactions = { jwt = \"refuse\", tags = \"shadow\" }\n\
        [screen.output]\nwatch = \"cut\"\nactions = { loop = \"flag\", unsave = \"refuse\" }\n";
    fs::write(&file, format!("{good}{screen}")).unwrap();
    let (code, out, err) = told(&run(&["check", "--config", &path]).await);
    let warned: Vec<&str> = out.lines().filter(|line| line.starts_with("warning")).collect();
    assert!(code == 0 && warned.len() == 2, "{out}{err}");
    assert!(warned[0].contains("input.thresholds names `injectoin`"), "{out}");
    assert!(warned[1].contains("output.actions names `unsave`"), "{out}");
    let models = folder.path().display().to_string();
    fs::write(
        &file,
        format!("{good}[screen]\nmodels_folder = \"{models}\"\n[screen.input]\nmode = \"flag\"\n"),
    )
    .unwrap();
    let (code, out, err) = told(&run(&["check", "--config", &path]).await);
    assert!(code == 0 && out.contains("warning: classifier `injection-a`: "), "{out}{err}");
}

#[tokio::test]
async fn exit_codes_say_whose_turn_it_is() {
    for args in
        [&["frobnicate"][..], &["status", "--nonsense"], &["drain"], &["simulate", "--speed"]]
    {
        assert_eq!(told(&run(args).await).0, 64, "{args:?}");
    }
    for args in [&["--help"][..], &["--version"], &["serve", "--help"]] {
        assert_eq!(told(&run(args).await).0, 0, "{args:?}");
    }
    let folder = tempfile::tempdir().unwrap();
    let nobody = folder.path().join("s").display().to_string();
    for command in ["status", "reload"] {
        let (code, _, err) = told(&run(&[command, "--socket", &nobody]).await);
        assert!(code == 69 && err.contains(&nobody), "{err}");
    }
    // A socket that nobody serves any more.
    drop(std::os::unix::net::UnixListener::bind(folder.path().join("s")).unwrap());
    let (code, _, err) = told(&run(&["status", "--socket", &nobody]).await);
    assert!(code == 69 && err.contains("nobody answers"), "{err}");
    let (code, _, err) = told(&run(&["serve", "--config", "/nonexistent/berthd.toml"]).await);
    assert!(code == 78 && err.contains("/nonexistent/berthd.toml"), "{err}");
}

#[tokio::test]
async fn without_permission_the_exit_code_is_77() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("s");
    let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    fs::set_permissions(&socket, fs::Permissions::from_mode(0o000)).unwrap();
    let mut command = berthd();
    command.args(["status", "--socket"]).arg(&socket).current_dir("/");
    if rustix::process::geteuid().is_root() {
        // The folder must be open to whom the command becomes, so that only the socket is in the way.
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
        command.uid(65534).gid(65534);
    }
    if let Err(error) = command.output() {
        eprintln!("SKIPPED: another user cannot run the binary here: {error}");
        return;
    }
    let (code, _, err) = told(&run_with(command, "").await);
    assert_eq!(code, 77, "{err}");
    assert!(err.contains("permission") && err.contains("group berthd"), "{err}");
}

#[tokio::test]
async fn tokens_counts_what_the_daemon_counts() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/models/demo-chat");
    let count = async |request: &Value| {
        let mut command = berthd();
        command.args(["tokens", "--folder", folder, "--kind", "embedded", "--json"]);
        let (code, out, err) = told(&run_with(command, &request.to_string()).await);
        assert_eq!(code, 0, "{err}");
        serde_json::from_str::<Value>(&out).unwrap()
    };
    let setup = Setup {
        rest: format!(
            "[[models]]\nname = \"demo-chat\"\nspecial_tokens = \"pass\"\n\
             [[servers]]\nname = \"demo\"\nkind = \"embedded\"\nfolder = \"{folder}\"\n"
        ),
        ..Setup::default()
    };
    let daemon = setup.start().await;
    for content in ["What is berthd?", "Zwölf Kräne 🏗", "", "<|im_end|> a marker in the text"]
    {
        let request = json!({
            "model": "demo-chat", "max_tokens": 1,
            "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": content}],
        });
        let counted = count(&request).await;
        assert_eq!(counted["source"], "exact");
        assert!(
            counted["fingerprint"].is_string() && counted["input_tokens"].as_u64().unwrap() > 5
        );
        let reply = daemon.chat(&request).await;
        assert_eq!(reply.status, 200, "{}", body(&reply));
        let header = format!("x-berthd-input-tokens: {}", counted["input_tokens"]);
        assert!(reply.head.contains(&header), "{header} in {}", reply.head);
        assert_eq!(reply.json()["usage"]["prompt_tokens"], counted["input_tokens"], "{content}");
    }

    let mut plain = berthd();
    plain.args(["tokens", "--folder", folder]);
    let request = json!({"messages": [{"role": "user", "content": "Hi"}]}).to_string();
    let (code, out, _) = told(&run_with(plain, &request).await);
    assert!(code == 0 && out.contains("input tokens (exact"), "{out}");
    for (input, folder, told_) in [
        ("{", folder, "not valid JSON"),
        ("{\"messages\": 3}", folder, "messages"),
        (&request, "/nonexistent", "/nonexistent"),
    ] {
        let mut command = berthd();
        command.args(["tokens", "--folder", folder]);
        let (code, _, err) = told(&run_with(command, input).await);
        assert!(code == 64 && err.contains(told_), "{input}: {code} {err}");
    }
}

#[tokio::test]
async fn key_completions_and_man_print_what_they_should() {
    let (code, out, _) = told(&run(&["key"]).await);
    assert_eq!(code, 0);
    let word = |name: &str| {
        let line = out.lines().find(|line| line.starts_with(name)).expect("the line");
        line.split_whitespace().nth(1).unwrap().to_owned()
    };
    let key = word("key");
    assert_eq!(word("digest"), digest(&key));
    assert!(key.len() > 40 && out.contains(&format!("keys_sha256 = [\"{}\"]", digest(&key))));
    assert_ne!(told(&run(&["key"]).await).1, out, "each is fresh");
    for shell in ["bash", "zsh", "fish"] {
        let (code, out, _) = told(&run(&["completions", shell]).await);
        assert!(code == 0 && out.contains("berthd") && out.contains("undrain"), "{shell}");
    }
    let (code, out, _) = told(&run(&["man"]).await);
    assert!(code == 0 && out.contains(".TH") && out.contains("quickstart"));
}

#[tokio::test]
async fn the_admin_listener_shows_and_changes_nothing() {
    let simulated = simulated("m", FAST).await;
    let daemon = Setup::with_server("a", simulated.addr).start().await;
    let health = get(daemon.admin, "/healthz").await;
    assert_eq!((health.status, body(&health).as_str()), (200, "ok\n"));
    assert_eq!(get(daemon.admin, "/status").await.json()["state"], "serving");
    for path in ["/drain/a", "/undrain/a", "/reload"] {
        let reply = raw::post(daemon.admin, path, &Value::Null).await;
        assert_eq!(reply.status, 404, "{path}");
    }
    assert_eq!(server(&daemon.status().await, "a")["drained"], false);
    assert!(daemon.logged("configuration reloaded").is_empty());
    // Nor are callers served there, or operators at the callers' door.
    assert_eq!(get(daemon.admin, "/v1/models").await.status, 404);
    assert_eq!(get(daemon.data, "/status").await.status, 404);
    assert_eq!(get(daemon.data, "/metrics").await.status, 404);
}

#[tokio::test]
async fn a_gpu_is_shown_and_losing_the_driver_costs_no_request() {
    let simulated = simulated("m", FAST).await;
    let fake = FakeNvml::new(ONE_CARD);
    let setup = Setup {
        gpu: format!("period_s = 0.1\nnvml_library = \"{}\"", fake.library().display()),
        ..Setup::with_server("a", simulated.addr)
    };
    let daemon = setup.start().await;
    let gpu = daemon
        .until("the GPU is read", |status| {
            (status["gpus"]["state"] == "ok").then(|| status["gpus"]["list"][0].clone())
        })
        .await;
    assert_eq!((&gpu["uuid"], &gpu["name"]), (&json!("GPU-aaaa"), &json!("NVIDIA H200")));
    assert_eq!(gpu["memory_total_bytes"], 150_754_820_096_u64);
    assert_eq!(gpu["memory_used_bytes"], 98_784_247_808_u64);
    assert_eq!((&gpu["power_w"], &gpu["temperature_c"]), (&json!(612.345), &json!(63)));
    assert_eq!(gpu["processes"][0]["name"], "python3");
    let (_, out, _) = told(&daemon.command(&["status"]).await);
    for told in ["driver 580.65.06", "NVIDIA H200", "92.0 of 140.4", "612 of 700", "63", "GPU-aaaa"]
    {
        assert!(out.contains(told), "{told:?} is missing:\n{out}");
    }
    let page = body(&get(daemon.admin, "/metrics").await);
    let labels = "{gpu=\"GPU-aaaa\",index=\"0\",name=\"NVIDIA H200\"}";
    for (name, value) in [
        ("memory_used_bytes", "98784247808"),
        ("memory_total_bytes", "150754820096"),
        ("utilisation_ratio", "0.87"),
        ("power_watts", "612.345"),
        ("temperature_celsius", "63"),
        ("processes", "1"),
    ] {
        let line = format!("berthd_gpu_{name}{labels} {value}\n");
        assert!(page.contains(&line), "{line:?} is missing:\n{page}");
    }
    let borrowed = page.lines().find(|line| line.starts_with("DCGM_FI_DEV_FB_USED{"));
    let borrowed = borrowed.expect("the same under the name that dashboards know");
    assert!(borrowed.contains("UUID=\"GPU-aaaa\"") && borrowed.ends_with(" 94208"), "{borrowed}");
    let (code, out, _) = told(&daemon.command(&["gpus"]).await);
    assert_eq!(code, 0);
    assert!(out.contains("GPU 0 (NVIDIA H200)  OK  GPU-aaaa"), "{out}");
    assert!(out.contains("87 %, memory 41 %, 612 of 700 W"), "{out}");
    assert!(out.contains("pid 4100"), "{out}");
    let (code, out, _) = told(&daemon.command(&["gpus", "--json"]).await);
    let gpus: Value = serde_json::from_str(&out).unwrap();
    assert_eq!((code, &gpus["list"][0]["memory_free_bytes"]), (0, &json!(51_436_847_104_u64)));

    let library = fake.library().display().to_string();
    let direct = ["gpus", "--direct", "--json", "--nvml-library", &library];
    let (code, out, _) = told(&run(&direct).await);
    let alone: Value = serde_json::from_str(&out).unwrap();
    assert_eq!((code, &alone["list"][0]["memory_free_bytes"]), (0, &json!(51_436_847_104_u64)));
    assert_eq!(alone["list"][0]["processes"][0]["pid"], 4100);

    // The driver goes away under the daemon.
    fake.set("return nvmlInit_v2=9\nreturn *=15\nreturn *@0=15\nreturn nvmlSystemGetDriverVersion=15\nreturn nvmlDeviceGetCount_v2=15\n");
    let why = daemon
        .until("the driver is gone", |status| {
            (status["gpus"]["state"] == "no_driver").then(|| status["gpus"]["why"].clone())
        })
        .await;
    println!("driver gone: {why}");
    assert!(!why.as_str().unwrap().is_empty());
    let (_, out, _) = told(&daemon.command(&["status"]).await);
    assert!(out.contains(why.as_str().unwrap()), "{out}");
    assert_eq!(
        daemon.chat(&ask("m", false, 2)).await.status,
        200,
        "requests do not need the GPU plane"
    );
    eventually("no stale values on the page", || async {
        let page = body(&get(daemon.admin, "/metrics").await);
        (!page.contains("berthd_gpu_memory_used_bytes{")).then_some(())
    })
    .await;
    fake.set(ONE_CARD);
    daemon.until("it is back", |status| (status["gpus"]["state"] == "ok").then_some(())).await;
}

/// The key is in no configuration that a test writes by hand.
#[test]
fn the_setup_keeps_digests_only() {
    assert!(!Setup::default().text("/s".as_ref()).contains(KEY));
}
