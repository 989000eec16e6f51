//! KV events from a real publisher of ZeroMQ, where somebody has one at hand.
//!
//! Set `BERTHD_KV_PYTHON` to a Python with `pyzmq` and `msgspec` (`tests/clients/requirements.txt`), the libraries
//! with which vLLM and SGLang publish.

use berthd::{
    config::KvEndpoint,
    ids::ServerId,
    servers::kv_events::{Counts, follow},
    snapshot::KvChange,
    tokens::{BlockRule, block_hash},
};
use std::{
    io::{BufRead, BufReader, Write},
    num::NonZeroU32,
    path::Path,
    process::{Child, ChildStdin, Command, Stdio},
    sync::Arc,
    time::Duration,
};
use tokio::{
    sync::mpsc::{Receiver, channel},
    task::JoinSet,
    time::{sleep, timeout},
};

const LIMIT: Duration = Duration::from_secs(30);

struct Publisher {
    child: Child,
    port: u16,
    input: ChildStdin,
}

impl Publisher {
    fn start(python: &std::ffi::OsStr) -> Self {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients/kv_publisher.py");
        let mut child = Command::new(python)
            .arg(script)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let port = line.trim().parse().unwrap();
        let input = child.stdin.take().unwrap();
        Self { child, port, input }
    }

    fn go_on(&mut self) {
        self.input.write_all(b"\n").unwrap();
    }
}

impl Drop for Publisher {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

async fn heard(changes: &mut Receiver<(ServerId, KvChange)>) -> KvChange {
    timeout(LIMIT, changes.recv()).await.expect("a change comes").unwrap().1
}

/// Waits until `reached` holds of what was counted.
async fn counted(counts: &Counts, reached: impl Fn(&berthd::servers::kv_events::Tally) -> bool) {
    let wait = async {
        while !reached(&counts.read()) {
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(LIMIT, wait).await.expect("the publisher is heard");
}

#[tokio::test]
async fn a_real_publisher_is_followed_through_its_restart() {
    let Some(python) = std::env::var_os("BERTHD_KV_PYTHON") else {
        println!("SKIPPED: no real publisher is heard; set BERTHD_KV_PYTHON to hear one");
        return;
    };
    let mut publisher = Publisher::start(&python);
    let (sender, mut changes) = channel(16);
    let counts = Arc::<Counts>::default();
    let mut tasks = JoinSet::new();
    let endpoint = KvEndpoint { host: "127.0.0.1".into(), port: publisher.port };
    tasks.spawn(follow("s".into(), endpoint, sender, Arc::clone(&counts)));

    let rule = BlockRule { block_tokens: NonZeroU32::new(16).unwrap(), adapter: "", salt: "" };
    let ids: Vec<u32> = (0..32).collect();
    let today = rule.blocks(&ids).hashes;
    let older = rule.blocks(&[[70_000; 16], [u32::MAX; 16]].concat()).hashes;
    let long = block_hash(today[0], &ids[..16].repeat(64));
    let stored = |block_tokens, hashes| KvChange::Stored { block_tokens, hashes };

    for life in 1..=2 {
        counted(&counts, |tally| tally.connections == life && tally.batches > 0).await;
        let before = counts.read().batches;
        // A batch heard on this very connection: what is published now arrives.
        counted(&counts, |tally| tally.batches > before).await;
        publisher.go_on();
        assert_eq!(heard(&mut changes).await, stored(16, today.clone()));
        assert_eq!(heard(&mut changes).await, stored(16, older.clone()));
        assert_eq!(heard(&mut changes).await, KvChange::Removed { hashes: vec![today[1]] });
        assert_eq!(heard(&mut changes).await, stored(1024, vec![long]));
        let tally = counts.read();
        assert_eq!((tally.apart, tally.lost, tally.unreadable), (life, 0, 0));
        publisher.go_on();
        assert_eq!(heard(&mut changes).await, KvChange::Cleared);
        assert_eq!(counts.read().connections, life, "it held until the publisher left");
    }
}
