//! Tables for the join, and the property that no byte is lost.

use super::*;
use crate::{
    holding::Seat,
    snapshot::{Listener, MigPart, Network},
};
use std::net::{IpAddr, SocketAddr};

mod listeners;
mod property;

const GIB: u64 = 1 << 30;
const OWN: u32 = 10;

/// A node as this rule sees it.
struct Node {
    gpus: Vec<GpuState>,
    table: ProcessTable,
    residents: Vec<Resident>,
    now: Instant,
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn gpu(id: &str, used: u64, reserved: u64, processes: &[(u32, Option<u64>)]) -> GpuState {
    let process = |&(pid, memory): &(u32, Option<u64>)| GpuProcess {
        pid,
        memory: memory.map(|gib| Bytes(gib * GIB)),
        ..Default::default()
    };
    GpuState {
        memory_used: Some(Bytes(used * GIB)),
        memory_reserved: Some(Bytes(reserved * GIB)),
        processes: Some(processes.iter().map(process).collect()),
        ..GpuState::blank(id.into(), 0, "card".into())
    }
}

impl Node {
    fn new(gpus: Vec<GpuState>) -> Self {
        let now = Instant::now();
        let networks = vec![Network { id: None, addresses: vec![ip("10.0.0.1")] }];
        let table =
            ProcessTable { networks, clock: 10_000, read_at: Some(now), ..Default::default() };
        let mut node = Self { gpus, table, residents: Vec::new(), now };
        node.process(1, 0, "systemd", "");
        node.process(OWN, 1, "berthd", "berthd.service");
        node
    }

    fn process(&mut self, pid: u32, parent: u32, name: &str, unit: &str) -> &mut Process {
        let unit = Some(unit.to_owned()).filter(|unit| !unit.is_empty());
        let name = name.to_owned();
        let process = Process { pid, parent, started: 100, name, unit, ..Default::default() };
        self.table.processes.insert(pid, process);
        self.table.processes.get_mut(&pid).unwrap()
    }

    fn listen(&mut self, address: &str, port: u16, holders: &[u32]) -> &mut Listener {
        let inode = 1000 + self.table.listeners.len() as u64;
        let network = holders.first().and_then(|pid| self.table.processes.get(pid)?.network);
        self.table.listeners.push(Listener {
            address: ip(address),
            port,
            inode,
            user: 0,
            network,
            holders: holders.to_vec(),
            group: None,
            forward: None,
        });
        self.table.listeners.last_mut().unwrap()
    }

    fn server(&mut self, name: &str, address: &str, port: u16) -> &mut Resident {
        let seat = Seat::At { addresses: vec![ip(address)], port };
        self.residents.push(Resident { id: name.into(), seat, gpus: Vec::new() });
        self.residents.last_mut().unwrap()
    }

    fn join_with(&self, book: &mut Book) -> Joined {
        book.join(&Scene {
            gpus: &self.gpus,
            gpus_read_at: self.now,
            table: &self.table,
            residents: &self.residents,
            own_pid: OWN,
        })
    }

    fn join(&self) -> Joined {
        self.join_with(&mut Book::default())
    }
}

/// A GPU's holders as `label=GiB`, the largest first; `?` where nothing is told.
fn rows(joined: &Joined, gpu: &str) -> Vec<String> {
    let of = joined.holdings.gpus.iter().find(|one| one.gpu.as_str() == gpu).unwrap();
    let row = |one: &crate::holding::Holder| match one.memory {
        Some(memory) => format!("{}={}", one.owner.label(), memory.get() / GIB),
        None => format!("{}=?", one.owner.label()),
    };
    of.holders.iter().map(row).collect()
}

/// GPUs with GiB, and how they are known.
type Told = Option<(Vec<(String, Option<u64>)>, How)>;

fn of(joined: &Joined, server: &str) -> Told {
    let holding = joined.holdings.servers.get(server)?;
    let gpus = holding.gpus.iter();
    let gpus = gpus.map(|(gpu, memory)| (gpu.to_string(), memory.map(|one| one.get() / GIB)));
    Some((gpus.collect(), holding.how))
}

fn on(gpus: &[(&str, Option<u64>)], how: How) -> Told {
    Some((gpus.iter().map(|(gpu, gib)| ((*gpu).to_owned(), *gib)).collect(), how))
}

#[tokio::test(start_paused = true)]
async fn a_servers_tree_a_stranger_and_the_driver_share_a_card() {
    let mut node = Node::new(vec![
        gpu("GPU-a", 60, 1, &[(41, Some(40)), (90, Some(15))]),
        gpu("GPU-b", 41, 1, &[(42, Some(40))]),
    ]);
    node.process(40, 1, "vllm", "vllm.service");
    node.process(41, 40, "VLLM::Worker", "vllm.service");
    node.process(42, 41, "VLLM::Worker", "vllm.service");
    node.process(90, 1, "train.py", "session-3.scope");
    node.listen("127.0.0.1", 8000, &[40]);
    node.server("vllm-0", "127.0.0.1", 8000);
    let joined = node.join();
    assert_eq!(rows(&joined, "GPU-a"), ["vllm-0=40", "train.py (session-3.scope)=15", "driver=6"]);
    assert_eq!(rows(&joined, "GPU-b"), ["vllm-0=40", "driver=2"]);
    let wanted = on(&[("GPU-a", Some(40)), ("GPU-b", Some(40))], How::Socket);
    assert_eq!(of(&joined, "vllm-0"), wanted);
    assert_eq!(joined.holdings.servers["vllm-0"].pids, [41, 42]);
}

#[tokio::test(start_paused = true)]
async fn the_nearest_listener_wins_and_a_router_keeps_the_rest() {
    let list = [(52, Some(10)), (54, Some(20)), (55, Some(5))];
    let mut node = Node::new(vec![gpu("GPU-a", 35, 0, &list)]);
    node.process(50, 1, "llama-swap", "");
    node.process(51, 50, "sh", "");
    node.process(52, 51, "llama-server", "");
    node.process(53, 50, "sh", "");
    node.process(54, 53, "llama-server", "");
    node.process(55, 50, "helper", "");
    node.listen("0.0.0.0", 9000, &[50]);
    node.listen("127.0.0.1", 9001, &[52]);
    node.listen("127.0.0.1", 9002, &[54]);
    node.server("router", "127.0.0.1", 9000);
    node.server("one", "127.0.0.1", 9001);
    node.server("two", "10.0.0.1", 9002);
    let joined = node.join();
    assert_eq!(rows(&joined, "GPU-a"), ["router=25", "one=10"], "9002 is not bound to 10.0.0.1");
    node.residents[2].seat = Seat::At { addresses: vec![ip("::1"), ip("127.0.0.1")], port: 9002 };
    assert_eq!(rows(&node.join(), "GPU-a"), ["two=20", "one=10", "router=5"]);
}

#[tokio::test(start_paused = true)]
async fn a_container_or_a_service_holds_together_and_a_login_session_does_not() {
    for (unit, container, how) in [
        ("svc.service", "", Some(How::Group)),
        ("", "c0ffee", Some(How::Group)),
        ("session-1.scope", "", None),
        ("user@1000.service", "", None),
        ("", "", None),
    ] {
        let mut node = Node::new(vec![gpu("GPU-a", 9, 0, &[(72, Some(8))])]);
        let put = |process: &mut Process| {
            process.container = Some(container.to_owned()).filter(|id| !id.is_empty());
        };
        put(node.process(70, 1, "entry", unit));
        put(node.process(71, 70, "api", unit));
        put(node.process(72, 70, "engine", unit));
        node.listen("0.0.0.0", 8000, &[71]);
        node.server("s", "127.0.0.1", 8000);
        let joined = node.join();
        match how {
            Some(how) => assert_eq!(of(&joined, "s"), on(&[("GPU-a", Some(8))], how), "{unit}"),
            // It is seen, and what is on the card is not its own.
            None => assert_eq!(of(&joined, "s"), on(&[], How::Socket), "{unit}"),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn several_servers_of_one_container_split_by_tree_or_share() {
    let mut node = Node::new(vec![gpu("GPU-a", 30, 0, &[(83, Some(10)), (86, Some(20))])]);
    for (pid, parent) in [(80, 1), (81, 80), (82, 81), (83, 81), (84, 80), (85, 84), (86, 84)] {
        node.process(pid, parent, "p", "both.service");
    }
    node.listen("0.0.0.0", 8000, &[82]);
    node.listen("0.0.0.0", 8001, &[85]);
    node.server("a", "127.0.0.1", 8000);
    node.server("b", "127.0.0.1", 8001);
    let joined = node.join();
    assert_eq!(rows(&joined, "GPU-a"), ["b=20", "a=10"], "each has a branch of its own");
    // The engine is everybody's brother.
    node.table.processes.get_mut(&86).unwrap().parent = 80;
    let joined = node.join();
    assert_eq!(rows(&joined, "GPU-a"), ["a or b=20", "a=10"], "no byte counts twice");
    assert_eq!(of(&joined, "a"), on(&[("GPU-a", None)], How::Group));
    assert_eq!(of(&joined, "b"), on(&[("GPU-a", None)], How::Group));
}

#[tokio::test(start_paused = true)]
async fn a_container_of_its_own_network_is_found_by_address_and_by_forwarder() {
    let mut node = Node::new(vec![gpu("GPU-a", 9, 0, &[(71, Some(8))])]);
    for (pid, parent) in [(70, 1), (71, 70)] {
        node.process(pid, parent, "p", "").network = Some(77);
    }
    node.listen("0.0.0.0", 80, &[70]);
    let addresses = vec![ip("172.17.0.2")];
    node.table.networks.push(Network { id: Some(77), addresses });
    node.server("direct", "172.17.0.2", 80);
    assert_eq!(of(&node.join(), "direct"), on(&[("GPU-a", Some(8))], How::Socket));

    node.residents.clear();
    node.process(95, 1, "docker-proxy", "");
    let to: SocketAddr = "172.17.0.2:80".parse().unwrap();
    node.listen("0.0.0.0", 8000, &[95]).forward = Some(to);
    node.server("published", "127.0.0.1", 8000);
    assert_eq!(of(&node.join(), "published"), on(&[("GPU-a", Some(8))], How::Socket));

    // Without the right to look into processes, the namespace still tells.
    node.table.listeners.iter_mut().for_each(|one| one.holders.clear());
    assert_eq!(of(&node.join(), "published"), on(&[("GPU-a", Some(8))], How::Group));

    // A forwarder into a container without a GPU: the server uses none, on this host of one GPU, too.
    node.table.listeners[1].forward = Some("172.17.0.9:80".parse().unwrap());
    assert_eq!(of(&node.join(), "published"), on(&[], How::Socket));
}

#[tokio::test(start_paused = true)]
async fn a_service_with_a_user_of_its_own_is_known_by_the_sockets_user() {
    let mut node = Node::new(vec![
        gpu("GPU-a", 9, 0, &[(41, Some(8)), (90, Some(1))]),
        gpu("GPU-b", 0, 0, &[]),
    ]);
    node.process(41, 1, "vllm", "vllm.service").user = Some(998);
    node.process(90, 1, "train", "session-1.scope").user = Some(1000);
    node.listen("127.0.0.1", 8000, &[]).user = 998;
    node.server("s", "127.0.0.1", 8000);
    assert_eq!(of(&node.join(), "s"), on(&[("GPU-a", Some(8))], How::Group));
    // Root opens sockets for everybody.
    node.table.processes.get_mut(&41).unwrap().user = Some(0);
    node.table.listeners[0].user = 0;
    assert_eq!(of(&node.join(), "s"), None);
    // Nor is a user without a name here anybody in particular.
    node.table.processes.get_mut(&41).unwrap().user = Some(65_534);
    node.table.listeners[0].user = 65_534;
    assert_eq!(of(&node.join(), "s"), None);
    // And a person's session is no service.
    node.table.listeners[0].user = 1000;
    assert_eq!(of(&node.join(), "s"), None);
}

#[tokio::test(start_paused = true)]
async fn the_group_that_a_socket_was_opened_in_stands_in_for_its_holder() {
    let mut node = Node::new(vec![
        gpu("GPU-a", 9, 0, &[(41, Some(8)), (90, Some(1))]),
        gpu("GPU-b", 0, 0, &[]),
    ]);
    node.process(41, 1, "ollama", "ollama.service").group = Some(25);
    node.process(90, 1, "train", "session-1.scope").group = Some(26);
    node.listen("127.0.0.1", 11434, &[]).group = Some(25);
    node.server("s", "127.0.0.1", 11434);
    assert_eq!(of(&node.join(), "s"), on(&[("GPU-a", Some(8))], How::Group));
    // A person's session holds nothing together.
    node.table.listeners[0].group = Some(26);
    assert_eq!(of(&node.join(), "s"), None);
    // Two servers of one container on the host's network cannot be told apart by it.
    node.table.listeners[0].group = Some(25);
    node.listen("127.0.0.1", 8000, &[]).group = Some(25);
    node.server("t", "127.0.0.1", 8000);
    assert_eq!(rows(&node.join(), "GPU-a"), ["s or t=8", "train (session-1.scope)=1"]);
}

#[tokio::test(start_paused = true)]
async fn an_id_used_again_is_another_process() {
    let mut node = Node::new(vec![gpu("GPU-a", 9, 0, &[(41, Some(8))]), gpu("GPU-b", 0, 0, &[])]);
    node.process(41, 1, "vllm", "");
    node.listen("127.0.0.1", 8000, &[41]);
    node.server("s", "127.0.0.1", 8000);
    let mut book = Book::default();
    assert_eq!(of(&node.join_with(&mut book), "s"), on(&[("GPU-a", Some(8))], How::Socket));
    // The reading of the GPUs is two seconds older than the process that has the id now.
    node.table.read_at = Some(node.now + std::time::Duration::from_secs(2));
    node.table.processes.get_mut(&41).unwrap().started = 9_900;
    let joined = node.join_with(&mut book);
    assert_eq!(rows(&joined, "GPU-a"), ["process 41=8", "driver=1"]);
    assert_eq!(of(&joined, "s"), None, "nothing is claimed while somebody on the card is unknown");
    // And nothing of it is believed later: the card tells no more, and the old process is gone.
    node.gpus[0].processes = None;
    assert_eq!(of(&node.join_with(&mut book), "s"), None);
}

#[tokio::test(start_paused = true)]
async fn a_card_that_tells_no_more_keeps_its_servers_while_they_live() {
    let mut node = Node::new(vec![gpu("GPU-a", 9, 0, &[(41, Some(8))]), gpu("GPU-b", 0, 0, &[])]);
    node.process(40, 1, "vllm", "");
    node.process(41, 40, "worker", "");
    node.listen("127.0.0.1", 8000, &[40]);
    node.server("s", "127.0.0.1", 8000);
    let mut book = Book::default();
    node.join_with(&mut book);
    assert_eq!(book.pids(), BTreeSet::from([40, 41]));
    node.gpus[0] = GpuState::blank("GPU-a".into(), 0, "card".into());
    assert_eq!(of(&node.join_with(&mut book), "s"), on(&[("GPU-a", None)], How::Socket));
    // The worker dies on the lost card, the listener lives; and then the whole driver goes.
    node.table.processes.remove(&41);
    node.gpus.clear();
    assert_eq!(of(&node.join_with(&mut book), "s"), on(&[("GPU-a", None)], How::Socket));
    // Started anew under the same ids, it is another.
    node.table.processes.get_mut(&40).unwrap().started = 5_000;
    assert_eq!(of(&node.join_with(&mut book), "s"), None);
    assert_eq!(book.pids(), BTreeSet::new());
}

#[tokio::test(start_paused = true)]
async fn a_restarted_server_joins_at_once_with_its_new_processes() {
    let mut node = Node::new(vec![gpu("GPU-a", 9, 0, &[(41, Some(8))])]);
    node.process(41, 1, "llama-server", "");
    node.listen("127.0.0.1", 8080, &[41]);
    node.server("s", "127.0.0.1", 8080);
    let mut book = Book::default();
    node.join_with(&mut book);
    node.table.processes.remove(&41);
    node.process(61, 1, "llama-server", "");
    node.table.listeners[0].holders = vec![61];
    node.gpus[0] = gpu("GPU-a", 4, 0, &[(61, Some(3))]);
    let joined = node.join_with(&mut book);
    assert_eq!(of(&joined, "s"), on(&[("GPU-a", Some(3))], How::Socket));
    assert_eq!(joined.holdings.servers["s"].pids, [61]);
}

#[tokio::test(start_paused = true)]
async fn the_configuration_goes_before_what_is_found_and_says_where_they_differ() {
    let mut node = Node::new(vec![gpu("GPU-a", 9, 0, &[(41, Some(8))]), gpu("GPU-b", 0, 0, &[])]);
    node.process(41, 1, "vllm", "");
    node.listen("127.0.0.1", 8000, &[41]);
    node.server("s", "127.0.0.1", 8000).gpus = vec!["GPU-a".into(), "GPU-b".into()];
    let joined = node.join();
    let wanted = on(&[("GPU-a", Some(8)), ("GPU-b", None)], How::Configured);
    assert_eq!(of(&joined, "s"), wanted);
    assert_eq!(joined.differ, [], "less than was given is no contradiction");
    node.residents[0].gpus = vec!["GPU-b".into()];
    let joined = node.join();
    assert_eq!(of(&joined, "s"), on(&[("GPU-b", None)], How::Configured));
    assert_eq!(joined.differ, [("s".into(), vec!["GPU-a".into()])]);
    assert_eq!(rows(&joined, "GPU-a"), ["s=8", "driver=1"], "the bytes are where they are");
}

#[tokio::test(start_paused = true)]
async fn the_only_gpu_is_used_by_local_servers_that_cannot_be_seen_and_by_no_others() {
    let mut node = Node::new(vec![gpu("GPU-a", 9, 0, &[(90, Some(8))])]);
    node.process(90, 1, "x", "");
    node.process(41, 1, "llama-server", "");
    node.listen("127.0.0.1", 8000, &[]);
    node.listen("127.0.0.1", 8080, &[41]);
    node.server("unseen", "127.0.0.1", 8000);
    node.server("seen", "127.0.0.1", 8080);
    node.server("far", "10.9.9.9", 8000);
    node.residents.push(Resident { id: "demo".into(), seat: Seat::Inside, gpus: Vec::new() });
    let joined = node.join();
    assert_eq!(of(&joined, "unseen"), on(&[("GPU-a", None)], How::OnlyGpu));
    assert_eq!(of(&joined, "seen"), on(&[], How::Socket), "it computes on the CPU");
    assert_eq!(of(&joined, "demo"), on(&[], How::Socket));
    assert_eq!(of(&joined, "far"), None);
    node.gpus.push(gpu("GPU-b", 0, 0, &[]));
    assert_eq!(of(&node.join(), "unseen"), None, "with two there is a choice");
}

#[tokio::test(start_paused = true)]
async fn the_daemon_on_a_gpu_is_its_embedded_model_and_its_children_are_not() {
    let mut node = Node::new(vec![gpu("GPU-a", 9, 0, &[(OWN, Some(2)), (11, Some(3))])]);
    node.process(11, OWN, "child", "berthd.service");
    node.residents.push(Resident { id: "demo".into(), seat: Seat::Inside, gpus: Vec::new() });
    assert_eq!(rows(&node.join(), "GPU-a"), ["driver=4", "child (berthd.service)=3", "demo=2"]);
}

#[tokio::test(start_paused = true)]
async fn mig_devices_are_joined_each_by_itself_and_their_card_is_not_used_twice() {
    let part = |id: &str, list: &[(u32, Option<u64>)]| {
        let parent = "GPU-a".into();
        let mig = Some(MigPart { parent, gpu_instance: Some(1), compute_instance: Some(0) });
        GpuState { mig, ..gpu(id, 10, 0, list) }
    };
    let whole = GpuState { processes: None, ..gpu("GPU-a", 21, 1, &[]) };
    let parts = vec![whole, part("MIG-1", &[(41, Some(9))]), part("MIG-2", &[(90, Some(7))])];
    let mut node = Node::new(parts);
    node.process(41, 1, "vllm", "");
    node.process(90, 1, "other", "");
    node.listen("127.0.0.1", 8000, &[41]);
    node.server("s", "127.0.0.1", 8000);
    let joined = node.join();
    assert_eq!(rows(&joined, "GPU-a"), ["s=9", "other=7", "driver=6"]);
    assert_eq!(rows(&joined, "MIG-1"), ["s=9", "driver=1"]);
    assert_eq!(of(&joined, "s"), on(&[("MIG-1", Some(9))], How::Socket));
}

#[tokio::test(start_paused = true)]
async fn memory_that_is_not_told_is_neither_guessed_nor_given_to_the_driver() {
    let mut node = Node::new(vec![gpu("GPU-a", 20, 1, &[(41, None), (90, Some(5))])]);
    node.process(41, 1, "vllm", "");
    node.process(90, 1, "other", "");
    node.listen("127.0.0.1", 8000, &[41]);
    node.server("s", "127.0.0.1", 8000);
    let joined = node.join();
    assert_eq!(rows(&joined, "GPU-a"), ["other=5", "driver=1", "s=?"]);
    assert_eq!(joined.holdings.gpus[0].untold, Some(Bytes(15 * GIB)));
    assert_eq!(of(&joined, "s"), on(&[("GPU-a", None)], How::Socket));
}

#[tokio::test(start_paused = true)]
async fn strangers_that_listen_are_offered_and_servers_and_bystanders_are_not() {
    let list = [(41, Some(1)), (91, Some(1)), (71, Some(1)), (96, Some(1))];
    let mut node = Node::new(vec![gpu("GPU-a", 5, 0, &list)]);
    node.process(41, 1, "vllm", "");
    node.listen("127.0.0.1", 8000, &[41]);
    node.server("known", "127.0.0.1", 8000);
    // A login session: its shell's ancestor listens, too, but in another unit.
    node.process(20, 1, "sshd", "ssh.service");
    node.process(90, 20, "api", "session-1.scope");
    node.process(91, 90, "engine", "session-1.scope");
    node.listen("0.0.0.0", 22, &[20]);
    node.listen("0.0.0.0", 8001, &[90]);
    // A container of its own network; and a job that shares a process with nobody who listens.
    node.process(71, 1, "python3", "").network = Some(77);
    node.listen("::", 80, &[71]);
    node.table.networks.push(Network { id: Some(77), addresses: vec![ip("172.17.0.2")] });
    node.process(96, 1, "job", "session-1.scope");
    let found = node.join().candidates;
    let told: Vec<(String, u32)> = found.iter().map(|one| (one.at.to_string(), one.pid)).collect();
    assert_eq!(told, [("127.0.0.1:8001".to_owned(), 90), ("172.17.0.2:80".to_owned(), 71)]);
    assert_eq!(found[0].gpus, BTreeSet::from([GpuId::from("GPU-a")]));
}
