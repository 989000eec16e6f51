//! Following a publisher that a script plays, byte by byte, over loopback.

use super::{
    decode::tests::{batch, cleared, removed, stored},
    zmtp::tests::{frames, publisher_greeting, publisher_ready},
    *,
};
use crate::tokens::BlockRule;
use std::num::NonZeroU32;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    sync::mpsc::{Receiver, channel},
    task::JoinSet,
};

/// A place where a publisher listens, and one who follows it.
struct Stage {
    listener: TcpListener,
    changes: Receiver<(ServerId, KvChange)>,
    counts: Arc<Counts>,
    tasks: JoinSet<()>,
}

impl Stage {
    async fn set(room: usize) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (sender, changes) = channel(room);
        let counts = Arc::<Counts>::default();
        let mut tasks = JoinSet::new();
        let endpoint = KvEndpoint { host: "127.0.0.1".into(), port };
        tasks.spawn(follow("s".into(), endpoint, sender, Arc::clone(&counts)));
        Self { listener, changes, counts, tasks }
    }

    /// A connection on which both sides are introduced and the subscription came.
    async fn publisher(&self) -> TcpStream {
        let (mut stream, _) = self.listener.accept().await.unwrap();
        stream.write_all(&publisher_greeting()).await.unwrap();
        stream.write_all(&publisher_ready()).await.unwrap();
        let mut theirs = vec![0; 64 + 27 + 3];
        stream.read_exact(&mut theirs).await.unwrap();
        assert!(theirs.ends_with(&[0, 1, 1]));
        stream
    }

    async fn heard(&mut self) -> KvChange {
        let heard = timeout(Duration::from_secs(20), self.changes.recv()).await;
        let (server, change) = heard.expect("a change comes").expect("somebody follows");
        assert_eq!(server, "s".into());
        change
    }
}

async fn publish(stream: &mut TcpStream, number: u64, events: &[Vec<u8>]) {
    let message = frames(&[b"kv", &number.to_be_bytes(), &batch(events)]);
    stream.write_all(&message).await.unwrap();
}

fn ours(ids: &[u32]) -> Vec<u64> {
    let block_tokens = NonZeroU32::new(2).unwrap();
    BlockRule { block_tokens, adapter: "", salt: "" }.blocks(ids).hashes
}

fn new(hashes: &[u64]) -> KvChange {
    KvChange::Stored { block_tokens: 2, hashes: hashes.to_vec() }
}

/// A first block under a name, made of two ids.
fn first(name: u64, ids: [u32; 2]) -> Vec<u8> {
    stored(&[name], None, &ids, 2, &[])
}

#[tokio::test]
async fn changes_come_in_our_own_hashes() {
    let mut stage = Stage::set(8).await;
    let mut publisher = stage.publisher().await;
    let hashes = ours(&[1, 2, 3, 4]);
    // Whoever connects later than the engine began hears a number from the middle.
    publish(&mut publisher, 41, &[stored(&[11, 12], None, &[1, 2, 3, 4], 2, &[])]).await;
    assert_eq!(stage.heard().await, new(&hashes));
    publish(&mut publisher, 42, &[removed(&[12])]).await;
    assert_eq!(stage.heard().await, KvChange::Removed { hashes: hashes[1..].to_vec() });
    publish(&mut publisher, 43, &[cleared()]).await;
    assert_eq!(stage.heard().await, KvChange::Cleared);
    let expected = Tally { connections: 1, batches: 3, stored: 2, removed: 1, ..Tally::default() };
    assert_eq!(stage.counts.read(), expected);
}

#[tokio::test]
async fn a_missing_batch_or_a_restart_voids_the_view() {
    let mut stage = Stage::set(8).await;
    let mut publisher = stage.publisher().await;
    for (number, name) in [(0, 1), (2, 2), (0, 3)] {
        publish(&mut publisher, number, &[first(name, [name as u32, 0])]).await;
        if name > 1 {
            assert_eq!(stage.heard().await, KvChange::Cleared, "before batch {number}");
        }
        assert_eq!(stage.heard().await, new(&ours(&[name as u32, 0])));
    }
    publish(&mut publisher, 1, &[stored(&[9], Some(1), &[5, 6], 2, &[]), removed(&[3])]).await;
    assert_eq!(stage.heard().await, KvChange::Removed { hashes: ours(&[3, 0]) });
    let counted = stage.counts.read();
    assert_eq!((counted.lost, counted.orphans), (2, 1), "the first block was forgotten");
}

#[tokio::test]
async fn a_lost_connection_voids_the_view_and_is_made_again() {
    let mut stage = Stage::set(8).await;
    let mut publisher = stage.publisher().await;
    publish(&mut publisher, 7, &[first(1, [1, 2])]).await;
    assert_eq!(stage.heard().await, new(&ours(&[1, 2])));
    drop(publisher);
    assert_eq!(stage.heard().await, KvChange::Cleared, "at once, not with the next change");
    let mut publisher = stage.publisher().await;
    publish(&mut publisher, 0, &[first(1, [3, 4])]).await;
    assert_eq!(stage.heard().await, new(&ours(&[3, 4])), "no gap on a new connection");
    assert_eq!(stage.counts.read().connections, 2);
}

#[tokio::test]
async fn what_cannot_be_read_voids_the_view_and_no_more() {
    let mut stage = Stage::set(8).await;
    let mut publisher = stage.publisher().await;
    publish(&mut publisher, 0, &[first(1, [1, 2])]).await;
    assert_eq!(stage.heard().await, new(&ours(&[1, 2])));
    let whole = batch(&[first(2, [3, 4]), first(3, [5, 6])]);
    for (number, payload) in [(1, &b"no msgpack"[..]), (3, &whole[..whole.len() - 12])] {
        let message = frames(&[b"", &u64::to_be_bytes(number), payload]);
        publisher.write_all(&message).await.unwrap();
        assert_eq!(stage.heard().await, KvChange::Cleared);
        publish(&mut publisher, number + 1, &[first(1, [1, 2])]).await;
        assert_eq!(stage.heard().await, new(&ours(&[1, 2])));
    }
    assert_eq!(stage.counts.read().connections, 1);
}

#[tokio::test]
async fn a_publisher_of_something_else_is_left() {
    let mut stage = Stage::set(8).await;
    for parts in [&[b"load".as_slice(), b"{}"][..], &[b"", b"1234567", b""]] {
        let mut publisher = stage.publisher().await;
        publisher.write_all(&frames(parts)).await.unwrap();
        assert_eq!(publisher.read(&mut [0]).await.unwrap_or(0), 0, "the connection is closed");
    }
    assert!(stage.changes.try_recv().is_err());
}

/// The publisher must never find its buffers full because somebody here is slow.
#[tokio::test]
async fn a_reader_that_falls_behind_hears_that_its_view_is_void() {
    let mut stage = Stage::set(1).await;
    let mut publisher = stage.publisher().await;
    for number in 0..20 {
        publish(&mut publisher, number, &[first(number, [number as u32, 0])]).await;
    }
    let told = async {
        while stage.counts.read().dropped < 19 {
            sleep(Duration::from_millis(1)).await;
        }
    };
    timeout(Duration::from_secs(20), told).await.expect("all are read though nobody takes them");
    assert_eq!(stage.heard().await, new(&ours(&[0, 0])));
    assert_eq!(stage.heard().await, KvChange::Cleared);
    publish(&mut publisher, 20, &[stored(&[50], Some(19), &[1, 2], 2, &[])]).await;
    publish(&mut publisher, 21, &[first(60, [7, 7])]).await;
    assert_eq!(stage.heard().await, new(&ours(&[7, 7])), "what stands upon a hole is left out");
    assert_eq!(stage.counts.read().dropped, 19, "nothing more");
}

#[test]
fn pauses_double_up_to_a_ceiling() {
    let pauses: Vec<_> = std::iter::successors(Some(PAUSE_FIRST), |pause| Some(longer(*pause)))
        .take(8)
        .map(|pause| pause.as_millis())
        .collect();
    assert_eq!(pauses, [100, 200, 400, 800, 1600, 3200, 5000, 5000]);
}

#[tokio::test]
async fn it_ends_with_its_receiver() {
    let Stage { listener, changes, mut tasks, .. } = Stage::set(1).await;
    drop(listener);
    drop(changes);
    let ended = timeout(Duration::from_secs(20), tasks.join_next()).await;
    ended.expect("it ends").unwrap().unwrap();
}
