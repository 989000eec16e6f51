//! Readings of small trees that look like `/proc`, and of the real one.

use super::*;
use std::{net::IpAddr, os::unix::fs::symlink, path::Path};
use tempfile::TempDir;

const ID: &str = "4f1c0c2b9d0e4f1c0c2b9d0e4f1c0c2b9d0e4f1c0c2b9d0e4f1c0c2b9d0e4f1c";

/// A tree like `/proc`.
struct Tree(TempDir);

impl Tree {
    /// With one namespace, in which nobody listens.
    fn new() -> Self {
        let tree = Self(tempfile::tempdir().unwrap());
        fs::create_dir_all(tree.path("self/net")).unwrap();
        tree.listen("self", &[]);
        tree
    }

    fn path(&self, below: &str) -> PathBuf {
        self.0.path().join(below)
    }

    fn write(&self, below: &str, text: &str) {
        let path = self.path(below);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    /// A process in the namespace of another (`self` for the daemon's own).
    fn process(&self, pid: u32, parent: u32, started: u64, name: &str, like: &str) {
        let filler = "S PARENT 1 1 0 -1 0 0 0 0 0 0 0 0 0 20 0 1 0 STARTED 0 0";
        let filler = filler.replace("PARENT", &parent.to_string());
        let filler = filler.replace("STARTED", &started.to_string());
        self.write(&format!("{pid}/stat"), &format!("{pid} ({name}) {filler}\n"));
        self.write(&format!("{pid}/comm"), &format!("{name}\n"));
        self.write(&format!("{pid}/cgroup"), "0::/system.slice/a.service\n");
        fs::create_dir_all(self.path(&format!("{pid}/fd"))).unwrap();
        fs::create_dir_all(self.path(&format!("{pid}/net"))).unwrap();
        if like == pid.to_string() {
            self.listen(like, &[]);
        } else {
            // One namespace has one list, whoever looks at it.
            let from = self.path(&format!("{like}/net/tcp"));
            let to = self.path(&format!("{pid}/net/tcp"));
            let _ = fs::remove_file(&to);
            fs::hard_link(from, to).unwrap();
        }
    }

    /// The sockets that listen in a namespace: address in the kernel's spelling, port and inode.
    fn listen(&self, process: &str, sockets: &[(&str, u16, u64)]) {
        let user = self.user();
        let mut text = "  sl  local_address ...\n".to_owned();
        for (at, (address, port, inode)) in sockets.iter().enumerate() {
            text.push_str(&format!(
                "   {at}: {address}:{port:04X} 00000000:0000 0A 0:0 00:0 0   {user}        0 {inode} 1 0 100\n"
            ));
        }
        let list = self.path(&format!("{process}/net/tcp"));
        // In place, so that the inode stays.
        fs::write(list, text).unwrap();
    }

    /// Whose the tree is: who owns the folders of its processes.
    fn user(&self) -> u32 {
        fs::metadata(self.0.path()).unwrap().uid()
    }

    fn opens(&self, pid: u32, file: u32, what: &str) {
        let link = self.path(&format!("{pid}/fd/{file}"));
        let _ = fs::remove_file(&link);
        symlink(what, link).unwrap();
    }

    fn reader(&self) -> Reader {
        Reader::new(self.0.path().to_owned(), || 5000)
    }
}

fn wanted(pids: &[u32], ports: &[u16]) -> Wanted {
    Wanted { pids: pids.iter().copied().collect(), ports: ports.iter().copied().collect() }
}

fn holders(table: &ProcessTable, port: u16) -> Vec<u32> {
    let mut of = table.listeners.iter().filter(|one| one.port == port);
    of.next().map(|one| one.holders.clone()).unwrap_or_default()
}

#[tokio::test(start_paused = true)]
async fn a_gpu_process_its_ancestors_and_the_listener_are_told() {
    let tree = Tree::new();
    tree.process(1, 0, 1, "systemd", "self");
    tree.process(40, 1, 100, "vllm (api)", "self");
    tree.process(41, 40, 200, "VLLM::EngineCor", "self");
    tree.process(90, 1, 300, "bystander", "self");
    tree.listen("self", &[("0100007F", 8000, 700)]);
    tree.opens(40, 0, "/dev/null");
    tree.opens(40, 7, "socket:[700]");
    let mut reader = tree.reader();
    let table = reader.read(&wanted(&[41, 5000], &[8000]));
    let mut pids: Vec<u32> = table.processes.keys().copied().collect();
    pids.sort_unstable();
    assert_eq!(pids, [1, 40, 41], "who is not there is left out, and so are bystanders");
    let engine = &table.processes[&41];
    assert_eq!((engine.parent, engine.started, engine.network), (40, 200, None));
    assert_eq!(engine.unit.as_deref(), Some("a.service"));
    assert_eq!(table.processes[&40].name, "vllm (api)");
    assert_eq!(holders(&table, 8000), [40]);
    assert_eq!((table.clock, table.denied, table.cut), (5000, false, false));
    let line: Vec<u32> = table.line(41).map(|one| one.pid).collect();
    assert_eq!(line, [41, 40, 1]);
}

#[tokio::test(start_paused = true)]
async fn the_service_manager_is_nobodys_listener_and_a_listener_without_a_gpu_is_found() {
    let tree = Tree::new();
    tree.process(1, 0, 1, "systemd", "self");
    tree.process(60, 1, 100, "llama-server", "self");
    tree.listen("self", &[("00000000", 8080, 700), ("00000000", 22, 701)]);
    // A unit's socket is held by both.
    tree.opens(1, 3, "socket:[700]");
    tree.opens(60, 3, "socket:[700]");
    let table = tree.reader().read(&wanted(&[], &[8080]));
    assert_eq!(holders(&table, 8080), [60]);
}

#[tokio::test(start_paused = true)]
async fn a_restarted_server_is_found_at_once_and_an_old_process_id_is_no_holder() {
    let tree = Tree::new();
    tree.process(60, 1, 100, "llama-server", "self");
    tree.listen("self", &[("00000000", 8080, 700)]);
    tree.opens(60, 3, "socket:[700]");
    let mut reader = tree.reader();
    assert_eq!(holders(&reader.read(&wanted(&[], &[8080])), 8080), [60]);
    // The id goes to another program, and another process has the port.
    fs::remove_file(tree.path("60/fd/3")).unwrap();
    tree.process(60, 1, 4000, "sleep", "self");
    tree.process(61, 1, 4100, "llama-server", "self");
    tree.listen("self", &[("00000000", 8080, 800)]);
    tree.opens(61, 3, "socket:[800]");
    let table = reader.read(&wanted(&[], &[8080]));
    assert_eq!(holders(&table, 8080), [61]);
    assert!(!table.processes.contains_key(&60));
}

// The socket of a process that had ended stayed with whoever got its id, while the list still had it.
#[tokio::test(start_paused = true)]
async fn a_socket_passes_from_a_process_that_ended_to_the_one_that_shares_it() {
    let tree = Tree::new();
    for (pid, started) in [(60, 100), (61, 101)] {
        tree.process(pid, 1, started, "uvicorn", "self");
        tree.opens(pid, 3, "socket:[700]");
    }
    tree.listen("self", &[("00000000", 8080, 700)]);
    let mut reader = tree.reader();
    let mut both = holders(&reader.read(&wanted(&[], &[8080])), 8080);
    both.sort_unstable();
    assert_eq!(both, [60, 61]);
    fs::remove_dir_all(tree.path("60")).unwrap();
    tree.process(60, 1, 4000, "sleep", "self");
    let table = reader.read(&wanted(&[60], &[8080]));
    assert_eq!(holders(&table, 8080), [61]);
    assert_eq!(table.processes[&60].name, "sleep");
}

#[tokio::test(start_paused = true)]
async fn a_containers_sockets_and_addresses_are_read_through_its_gpu_process() {
    let tree = Tree::new();
    tree.process(70, 1, 100, "python3", "70");
    tree.write("70/cgroup", &format!("0::/system.slice/docker-{ID}.scope\n"));
    tree.process(71, 70, 110, "engine", "70");
    tree.listen("70", &[("00000000", 8000, 900)]);
    tree.opens(70, 5, "socket:[900]");
    tree.write("71/net/fib_trie", "Local:\n  |-- 172.17.0.2\n    /32 host LOCAL\n");
    // Its forwarder on the host.
    tree.process(80, 1, 90, "docker-proxy", "self");
    tree.listen("self", &[("00000000", 8000, 901), ("00000000", 9000, 902)]);
    let words =
        "docker-proxy -proto tcp -host-port 8000 -container-ip 172.17.0.2 -container-port 8000";
    tree.write("80/cmdline", &words.replace(' ', "\0"));
    tree.opens(80, 4, "socket:[901]");
    let table = tree.reader().read(&wanted(&[71], &[8000]));
    let network = table.processes[&71].network;
    assert!(network.is_some() && network == table.processes[&70].network);
    let inside = table.listeners.iter().find(|one| one.network.is_some()).unwrap();
    assert_eq!((inside.network, inside.port, &inside.holders), (network, 8000, &vec![70]));
    let addresses: Vec<IpAddr> = vec!["172.17.0.2".parse().unwrap()];
    assert!(table.networks.contains(&Network { id: network, addresses }));
    let outside = table.listeners.iter().find(|one| one.inode == 901).unwrap();
    assert_eq!(outside.forward, Some("172.17.0.2:8000".parse().unwrap()));
    assert_eq!(table.listeners.iter().find(|one| one.inode == 902).unwrap().forward, None);
}

// Anybody could say of any port that it leads into a container, and so hide the server there.
#[tokio::test(start_paused = true)]
async fn a_forwarder_is_believed_only_about_a_socket_that_can_be_its_own() {
    let tree = Tree::new();
    tree.process(60, 1, 100, "llama-server", "self");
    tree.process(80, 1, 100, "docker-proxy", "self");
    let words = "docker-proxy -host-port 8080 -container-ip 172.17.0.9 -container-port 80";
    tree.write("80/cmdline", &words.replace(' ', "\0"));
    tree.listen("self", &[("00000000", 8080, 700)]);
    let forward = |tree: &Tree| {
        let table = tree.reader().read(&wanted(&[], &[8080]));
        table.listeners.iter().find(|one| one.port == 8080).unwrap().forward
    };
    assert!(forward(&tree).is_some(), "one of the socket's user, which nobody is seen to hold");
    tree.opens(60, 3, "socket:[700]");
    assert_eq!(forward(&tree), None, "another process holds the socket");
    fs::remove_file(tree.path("60/fd/3")).unwrap();
    let list = tree.path("self/net/tcp");
    let own = format!("0   {}   ", tree.user());
    let other = format!("0   {}   ", tree.user() + 1);
    fs::write(&list, fs::read_to_string(&list).unwrap().replace(&own, &other)).unwrap();
    assert_eq!(forward(&tree), None, "another user's socket");
}

// Whoever nests processes without end made each round read all of them.
#[tokio::test(start_paused = true)]
async fn no_more_ancestors_are_read_than_are_looked_at() {
    let tree = Tree::new();
    for pid in 100..300 {
        tree.process(pid, pid - 1, 100, "nested", "self");
    }
    let table = tree.reader().read(&wanted(&[299], &[]));
    assert_eq!(table.processes.len(), LINE_MAX);
    assert_eq!(table.line(299).count(), LINE_MAX);
}

#[tokio::test(start_paused = true)]
async fn a_holder_that_nobody_finds_is_looked_for_at_growing_pauses() {
    let tree = Tree::new();
    tree.process(60, 1, 100, "llama-server", "self");
    tree.listen("self", &[("00000000", 8080, 700)]);
    let mut reader = tree.reader();
    let asked = wanted(&[], &[8080]);
    assert_eq!(holders(&reader.read(&asked), 8080), [0; 0]);
    // From now on it could be seen, but it is not looked for in every round.
    tree.opens(60, 3, "socket:[700]");
    tokio::time::advance(AGAIN_JUST_BEFORE).await;
    assert_eq!(holders(&reader.read(&asked), 8080), [0; 0]);
    tokio::time::advance(Duration::from_secs(1)).await;
    assert_eq!(holders(&reader.read(&asked), 8080), [60]);
}

#[tokio::test(start_paused = true)]
async fn lists_of_sockets_are_read_again_when_they_are_old_or_anything_changed() {
    let tree = Tree::new();
    tree.process(60, 1, 100, "llama-server", "self");
    tree.process(90, 1, 100, "other", "self");
    tree.listen("self", &[("00000000", 8080, 700)]);
    tree.opens(60, 3, "socket:[700]");
    let mut reader = tree.reader();
    let mut sockets = |pids: &[u32]| reader.read(&wanted(pids, &[8080])).listeners.len();
    assert_eq!(sockets(&[60]), 1);
    tree.listen("self", &[("00000000", 8080, 700), ("00000000", 8081, 701)]);
    assert_eq!(sockets(&[60]), 1, "nothing else changed, and it was a moment ago");
    assert_eq!(sockets(&[60, 90]), 2, "another process is on a GPU");
    tree.listen("self", &[("00000000", 8080, 700)]);
    tokio::time::advance(LISTS_FOR).await;
    assert_eq!(sockets(&[60, 90]), 1, "it was long ago");
    tree.listen("self", &[]);
    tree.process(60, 1, 4000, "sleep", "self");
    assert_eq!(sockets(&[60, 90]), 0, "the listener is another process now");
}

const AGAIN_JUST_BEFORE: Duration = Duration::from_millis(1999);

#[tokio::test(start_paused = true)]
async fn a_tree_that_ends_midway_or_is_no_tree_is_no_error() {
    let tree = Tree::new();
    tree.process(60, 61, 100, "a", "self");
    tree.process(61, 60, 100, "b", "self");
    tree.write("62/stat", "62 (half");
    let table = tree.reader().read(&wanted(&[60, 62], &[]));
    assert_eq!(table.processes.len(), 2, "a circle of parents ends, too");
    assert_eq!(table.line(60).count(), LINE_MAX);
    let nothing = Reader::new(PathBuf::from("/nonexistent"), || 0).read(&wanted(&[1], &[80]));
    assert_eq!((nothing.processes.len(), nothing.listeners.len(), nothing.denied), (0, 0, false));
}

#[tokio::test]
async fn this_process_finds_its_own_socket_in_the_real_proc() {
    if !Path::new("/proc/self/net/tcp").exists() {
        println!("SKIPPED: no /proc here");
        return;
    }
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let own = std::process::id();
    let mut reader = Reader::default();
    let table = reader.read(&wanted(&[own], &[port]));
    assert_eq!(holders(&table, port), [own]);
    let process = &table.processes[&own];
    assert_eq!(process.network, None, "the daemon's own namespace");
    assert!(process.started <= table.clock, "{} is after {}", process.started, table.clock);
    assert!(table.line(own).count() > 1, "it has a parent");
    drop(listener);
    // Another port is looked for, so that the lists are read again.
    assert!(!reader.read(&wanted(&[own], &[])).listeners.iter().any(|one| one.port == port));
}
