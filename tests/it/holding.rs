//! Who holds what, on real processes: a daemon whose driver is played, and servers, strangers and
//! containers that are real.
//!
//! The driver's lists name the processes that a test started, so what the daemon reads in `/proc` is true.

use crate::support::{
    nvml::FakeNvml,
    players::{GIB, Held, card, driver, http, server, stranger},
    process::{berthd, digest, eventually},
    raw::PATIENCE,
};
use berthd::{
    config::{self, FoundOnGpu},
    daemon::{Daemon, Fatal},
    fault::{Condition, GpuHealth, Needs},
    holding::{Holdings, How, Owner},
    ids::GpuId,
    pipeline::Broker,
    report,
    snapshot::GpuPlane,
    systemd::{Listeners, Notifier},
    units::Bytes,
};
use std::{
    fs,
    io::Write,
    net::SocketAddr,
    process::{Command, Stdio},
    sync::Arc,
    time::Duration,
};
use tempfile::TempDir;
use tokio::{
    sync::{mpsc, oneshot},
    task::JoinSet,
};

const MODEL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/models/demo-chat");

/// A daemon in this process, before a driver that is played.
struct Host {
    broker: Arc<Broker>,
    data: SocketAddr,
    driver: FakeNvml,
    stop: oneshot::Sender<()>,
    running: JoinSet<Result<(), Fatal>>,
    /// A message reads the configuration again: the same, but that servers on GPUs are left alone.
    hangups: mpsc::Sender<()>,
    _folder: TempDir,
}

impl Host {
    async fn open(state: &str, gpu: &str, rows: &str) -> Self {
        let (folder, driver) = (TempDir::new().unwrap(), FakeNvml::new(state));
        let text = format!(
            "[listen]\ndata = \"127.0.0.1:0\"\nadmin = \"127.0.0.1:0\"\nsocket = \"{}/s\"\n\
             drain_limit_s = 1\n[probe]\ndiscover = false\nperiod_s = 0.1\n[log]\nlevel = \"error\"\n\
             [gpu]\nnvml_library = \"{}\"\nperiod_s = 0.1\n{gpu}\n\
             [[tenants]]\nname = \"a\"\nkeys_sha256 = [\"{}\"]\n{rows}",
            folder.path().display(),
            driver.library().display(),
            digest("key")
        );
        let settings = match config::parse_text("host.toml", &text) {
            Ok(loaded) => loaded.settings,
            Err(problems) => panic!("{problems}\n{text}"),
        };
        let mut again = settings.clone();
        again.gpu.found = FoundOnGpu::Off;
        let reread = Box::new(move || Ok(again.clone()));
        let daemon = Daemon::build(settings, Listeners::default(), Notifier::default(), reread)
            .await
            .unwrap();
        let (broker, data) = (daemon.broker(), daemon.data_address().unwrap());
        let (stop, stopped) = oneshot::channel();
        let (hangups, hung_up) = mpsc::channel(1);
        let mut running = JoinSet::new();
        running.spawn(daemon.run(async { drop(stopped.await) }, hung_up, || {}));
        Self { broker, data, driver, stop, running, hangups, _folder: folder }
    }

    /// Waits until the holdings say so.
    async fn until<T>(&self, what: &str, is_it: impl Fn(&Holdings) -> Option<T>) -> T {
        let look = async {
            loop {
                if let Some(found) = is_it(&self.broker.devices.holdings()) {
                    return found;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let found = tokio::time::timeout(PATIENCE, look).await;
        found.unwrap_or_else(|_| panic!("never: {what}; {:#?}", self.broker.devices.holdings()))
    }

    fn servers(&self) -> Vec<String> {
        self.broker.dispatch.servers().iter().map(|one| one.state.id.to_string()).collect()
    }

    async fn close(mut self) {
        let _ = self.stop.send(());
        let ended = tokio::time::timeout(PATIENCE, self.running.join_next()).await;
        ended.expect("it stops in time").unwrap().unwrap().expect("it stops in order");
    }
}

/// A GPU's rows: whose, GiB and processes. That they add up is asserted for each reading that is looked at.
fn rows(holdings: &Holdings, gpu: &str, used: u64) -> Option<Vec<(String, u64, Vec<u32>)>> {
    let gpu = holdings.gpus.iter().find(|one| one.gpu.as_str() == gpu)?;
    let sum: u64 = gpu.holders.iter().filter_map(|one| one.memory).map(Bytes::get).sum();
    let sum = sum + gpu.untold.map_or(0, Bytes::get);
    // A reading of the driver's state before.
    (sum == used * GIB).then_some(())?;
    let row = |one: &berthd::holding::Holder| {
        let name = match &one.owner {
            Owner::Foreign { name, .. } => format!("stranger {name}"),
            other => other.label(),
        };
        (name, one.memory.map_or(0, Bytes::get) / GIB, one.pids.clone())
    };
    Some(gpu.holders.iter().map(row).collect())
}

fn row(name: &str, gib: u64, pids: &[u32]) -> (String, u64, Vec<u32>) {
    (name.to_owned(), gib, pids.to_vec())
}

fn print(title: &str, holdings: &Holdings) {
    println!("{title}\n  GPU              HOLDER                       GiB    PROCESSES");
    for gpu in &holdings.gpus {
        for one in &gpu.holders {
            let memory = one.memory.map_or("?".to_owned(), |memory| {
                format!("{:.2}", memory.get() as f64 / GIB as f64)
            });
            println!("  {:<16} {:<28} {memory:<6} {:?}", gpu.gpu, one.owner.label(), one.pids);
        }
    }
}

#[tokio::test]
async fn every_byte_belongs_to_a_server_a_stranger_or_the_driver() {
    let (one, one_child, one_at) = server("127.0.0.1:0", "m1");
    let (two, two_child, two_at) = server("127.0.0.1:0", "m2");
    let (idle, _, idle_at) = server("127.0.0.1:0", "m3");
    let other = stranger();
    let state = driver(&[
        card(0, 100, &[(one_child, 60), (two.pid(), 20), (other.pid(), 15)]),
        card(1, 70, &[(one.pid(), 8), (one_child, 60), (two_child, 1)]),
    ]);
    let embedded =
        format!("[[servers]]\nname = \"demo\"\nkind = \"embedded\"\nfolder = \"{MODEL}\"\n");
    let servers = [http("one", one_at), http("two", two_at), http("idle", idle_at), embedded];
    let host = Host::open(&state, "", &servers.concat()).await;
    let holdings = host
        .until("both cards are divided", |holdings| {
            let first = rows(holdings, "GPU-0", 100)?;
            let second = rows(holdings, "GPU-1", 70)?;
            let wanted = [
                row("one", 60, &[one_child]),
                row("two", 20, &[two.pid()]),
                row("stranger sleep", 15, &[other.pid()]),
                row("driver", 5, &[]),
            ];
            let mut both = vec![one.pid(), one_child];
            both.sort_unstable();
            let of_second =
                [row("one", 68, &both), row("two", 1, &[two_child]), row("driver", 1, &[])];
            (first == wanted && second == of_second).then(|| holdings.clone())
        })
        .await;
    print("a node with two cards", &holdings);
    let gpus = |server: &str| {
        let holding = &holdings.servers[server];
        (holding.gpus.keys().map(GpuId::as_str).collect::<Vec<_>>(), holding.how)
    };
    assert_eq!(gpus("one"), (vec!["GPU-0", "GPU-1"], How::Socket));
    assert_eq!(gpus("two"), (vec!["GPU-0", "GPU-1"], How::Socket));
    assert_eq!(gpus("idle"), (vec![], How::Socket), "it is seen, and on no card");
    assert_eq!(gpus("demo"), (vec![], How::Socket), "the daemon's own model computes on the CPU");
    drop(idle);
    host.close().await;
}

#[tokio::test]
async fn a_restarted_server_joins_with_its_new_process_and_a_dead_one_holds_nothing() {
    let (mut first, _, at) = server("127.0.0.1:0", "m");
    let host = Host::open(&driver(&[card(0, 50, &[(first.pid(), 40)])]), "", &http("s", at)).await;
    let of_server = |holdings: &Holdings, pid| {
        rows(holdings, "GPU-0", 50)?.contains(&row("s", 40, &[pid])).then_some(())
    };
    host.until("the server holds it", |holdings| of_server(holdings, first.pid())).await;
    first.end();
    let (second, _, again) = server(&at.to_string(), "m");
    assert_eq!(at, again);
    host.driver.set(&driver(&[card(0, 50, &[(second.pid(), 40)])]));
    host.until("the new process holds it", |holdings| of_server(holdings, second.pid())).await;
    let holdings = host.broker.devices.holdings();
    assert_eq!(holdings.servers["s"].pids, [second.pid()]);
    // While the card is lost the server keeps it; once it is gone, it does not.
    host.driver.set(&format!("{}return *@0=15\n", driver(&[card(0, 50, &[])])));
    host.until("the card is lost", |holdings| {
        let server = holdings.servers.get("s")?;
        (server.gpus.get("GPU-0") == Some(&None)).then_some(())
    })
    .await;
    drop(second);
    // One GPU, and nobody listens: nothing speaks against it.
    host.until("its end is seen", |holdings| {
        (holdings.servers.get("s")?.how == How::OnlyGpu).then_some(())
    })
    .await;
    host.close().await;
}

/// Starts a stranger under the id of a process that ended, as root may ask the kernel to.
fn stranger_as(pid: u32) -> Option<Held> {
    for _ in 0..200 {
        fs::write("/proc/sys/kernel/ns_last_pid", (pid - 1).to_string()).ok()?;
        let held = stranger();
        if held.pid() == pid {
            return Some(held);
        }
    }
    None
}

#[tokio::test]
async fn a_process_with_the_id_of_a_server_that_ended_is_a_stranger() {
    let (mut first, _, at) = server("127.0.0.1:0", "m");
    let pid = first.pid();
    let host = Host::open(&driver(&[card(0, 50, &[(pid, 40)])]), "", &http("s", at)).await;
    let holder = |holdings: &Holdings, name: &str| {
        rows(holdings, "GPU-0", 50)?.contains(&row(name, 40, &[pid])).then_some(())
    };
    host.until("the server holds it", |holdings| holder(holdings, "s")).await;
    first.end();
    let Some(other) = stranger_as(pid) else {
        println!("SKIPPED: no process can be started under a chosen id here (needs root)");
        return;
    };
    // The driver lists the same number as before. The server is back under another.
    let (second, _, _) = server(&at.to_string(), "m");
    host.until("it is a stranger now", |holdings| holder(holdings, "stranger sleep")).await;
    host.until("and the server is on no card", |holdings| {
        holdings.servers.get("s")?.gpus.is_empty().then_some(())
    })
    .await;
    print(&format!("process {pid} ended, and sleep got its id"), &host.broker.devices.holdings());
    drop((second, other));
    host.close().await;
}

#[tokio::test]
async fn a_model_server_on_a_gpu_is_reported_and_not_used() {
    let (found, child, at) = server("127.0.0.1:0", "found-model");
    let state = driver(&[card(0, 50, &[(child, 40)]), card(1, 3, &[(found.pid(), 2)])]);
    let host = Host::open(&state, "", "").await;
    let look = || async {
        let offers = host.broker.devices.offers();
        // Its models come with a later answer, if it was asked while it started.
        (offers.len() == 1 && !offers[0].models.is_empty()).then(|| offers[0].clone())
    };
    let offer = eventually("it is offered", look).await;
    assert_eq!(
        (offer.kind.as_str(), offer.host.as_str(), offer.port),
        ("vllm", "127.0.0.1", at.port())
    );
    assert_eq!((offer.models, offer.pid), (vec!["found-model".into()], found.pid()));
    assert_eq!(offer.gpus, ["GPU-0", "GPU-1"].map(GpuId::from).into());
    assert_eq!(host.servers(), [""; 0]);
    let holdings = host.broker.devices.holdings();
    let rows = rows(&holdings, "GPU-0", 50).unwrap();
    assert!(rows.contains(&row("stranger sleep", 40, &[child])), "{rows:?}");
    drop(found);
    eventually("its end is seen", || async {
        host.broker.devices.offers().is_empty().then_some(())
    })
    .await;
    host.close().await;
}

#[tokio::test]
async fn a_model_server_on_a_gpu_is_adopted_where_that_is_wanted() {
    let (found, child, at) = server("127.0.0.1:0", "found-model");
    let state = driver(&[card(0, 50, &[(child, 40)])]);
    let host = Host::open(&state, "found_servers = \"adopt\"", "").await;
    let name = format!("vllm-{}", at.port());
    host.until("its memory is a server's", |holdings| {
        rows(holdings, "GPU-0", 50)?.contains(&row(&name, 40, &[child])).then_some(())
    })
    .await;
    assert_eq!(host.servers(), [name.as_str()]);
    eventually("it is no offer any more", || async {
        host.broker.devices.offers().is_empty().then_some(())
    })
    .await;
    assert_ne!(at, host.data);
    drop(found);
    host.close().await;
}

#[tokio::test]
async fn servers_on_gpus_are_told_of_until_that_is_switched_off() {
    let (found, child, at) = server("127.0.0.1:0", "found-model");
    let state = driver(&[card(0, 50, &[(child, 40)])]);
    let host = Host::open(&state, "", "").await;
    let told = || host.broker.devices.offers().iter().any(|offer| offer.port == at.port());
    eventually("it is told of", || async { told().then_some(()) }).await;
    host.hangups.send(()).await.unwrap();
    eventually("it is told of no more", || async { (!told()).then_some(()) }).await;
    drop(found);
    host.close().await;
}

// It vanished from all reports, and with it what the operator had to do.
#[tokio::test]
async fn a_card_that_is_gone_stays_in_the_report() {
    let host = Host::open(&driver(&[card(0, 50, &[]), card(1, 50, &[])]), "", "").await;
    host.until("both are read", |holdings| (holdings.gpus.len() == 2).then_some(())).await;
    host.driver.set(&driver(&[card(0, 50, &[])]));
    let gone = GpuId::from("GPU-1");
    let report = eventually("it is lost", || async {
        let health = host.broker.devices.health();
        let lost = |one: &GpuHealth| one.gpu == gone && one.condition == Condition::Lost;
        // As it would be with the driver gone as well: nothing else knows of the card.
        let plane = GpuPlane::NoDriver("away".to_owned());
        health.iter().any(lost).then(|| report::gpus::gpus(&host.broker, &plane))
    })
    .await;
    let card = report.list.iter().find(|gpu| gpu.uuid == "GPU-1").unwrap();
    assert_eq!((card.index, card.condition), (Some(1), Condition::Lost));
    assert_eq!(card.needs, Some(Needs::RebootHost));
    assert_eq!(card.reasons, ["the driver does not list it any more"]);
    assert_eq!(report.list.len(), 2, "the other one is not known to be well either");
    host.close().await;
}

fn run(command: &str) -> bool {
    let status = Command::new("sh").args(["-c", command]).stderr(Stdio::null()).status();
    status.is_ok_and(|status| status.success())
}

/// A simulated server in network, PID and mount namespaces of its own, joined to ours by a pair of
/// interfaces: what a container is to the kernel. Its address; its process and its child's as seen from here.
fn contained() -> Option<(Held, u32, u32, SocketAddr)> {
    // /sbin is not everybody's.
    const PATH: &str = "PATH=$PATH:/usr/sbin:/sbin";
    let own = std::process::id();
    let (net, outside, inside) = (own % 250, format!("bt{own}"), format!("bi{own}"));
    let address: SocketAddr = format!("10.213.{net}.2:8000").parse().unwrap();
    let program = berthd().get_program().to_owned();
    let script = format!(
        "{PATH}; echo inside; read go; ip link set lo up && ip addr add 10.213.{net}.2/30 dev {inside} \
         && ip link set {inside} up || exit 1; sleep 1000 & \
         exec \"$0\" simulate --listen 0.0.0.0:8000 --model boxed --profile instant"
    );
    let mut command = Command::new("unshare");
    command.args(["--net", "--pid", "--fork", "--mount-proc", "--kill-child", "sh", "-c", &script]);
    command.arg(program);
    let (mut held, mut lines) = Held::start(command);
    lines.next()?;
    let child_of = |pid: u32| -> Option<Vec<u32>> {
        let text = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).ok()?;
        Some(text.split_ascii_whitespace().filter_map(|pid| pid.parse().ok()).collect())
    };
    let shell = *child_of(held.pid())?.first()?;
    let joined = format!(
        "{PATH}; ip link add {outside} type veth peer name {inside} netns {shell} \
         && ip addr add 10.213.{net}.1/30 dev {outside} && ip link set {outside} up"
    );
    run(&joined).then_some(())?;
    writeln!(held.stdin.as_mut()?, "go").ok()?;
    lines.find(|line| line.contains("http://"))?;
    let child = *child_of(shell)?.first()?;
    Some((held, shell, child, address))
}

#[tokio::test]
async fn a_server_in_namespaces_of_its_own_is_found_by_its_address() {
    let Some((held, pid, child, at)) = contained() else {
        println!("SKIPPED: no namespaces and interfaces can be made here (needs root and ip)");
        return;
    };
    let other = stranger();
    let state =
        driver(&[card(0, 50, &[(child, 30), (pid, 5), (other.pid(), 10)]), card(1, 0, &[])]);
    let host = Host::open(&state, "", &http("boxed", at)).await;
    let holdings = host
        .until("the card is divided", |holdings| {
            let mut pids = vec![pid, child];
            pids.sort_unstable();
            let wanted = [
                row("boxed", 35, &pids),
                row("stranger sleep", 10, &[other.pid()]),
                row("driver", 5, &[]),
            ];
            (rows(holdings, "GPU-0", 50)? == wanted).then(|| holdings.clone())
        })
        .await;
    print("a server in a network and PID namespace", &holdings);
    assert_eq!(holdings.servers["boxed"].how, How::Socket);
    host.close().await;

    // Nobody configured it: it is found from the card's side, under the address that leads to it.
    let host = Host::open(&state, "found_servers = \"adopt\"", "").await;
    let name = format!("vllm-{}-8000", at.ip());
    host.until("it is adopted", |holdings| {
        let rows = rows(holdings, "GPU-0", 50)?;
        rows.iter().any(|(owner, gib, _)| *owner == name && *gib == 35).then_some(())
    })
    .await;
    eventually("it takes requests", || async {
        let servers = host.broker.dispatch.servers();
        servers.iter().any(|server| server.usable).then_some(())
    })
    .await;
    drop(held);
    host.close().await;
}
