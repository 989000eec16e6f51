//! The exchange with a publisher byte by byte, and a way to play one for other tests.

use super::*;
use proptest::prelude::*;
use tokio::{
    io::{DuplexStream, duplex, join, sink},
    task::JoinSet,
};

/// What a publisher says first, as libzmq 4.3 does.
pub(crate) fn publisher_greeting() -> Vec<u8> {
    let mut bytes = greeting();
    bytes[11] = 1;
    bytes
}

pub(crate) fn publisher_ready() -> Vec<u8> {
    command(b"READY", &property(b"Socket-Type", b"PUB"))
}

/// A message as a publisher sends it.
pub(crate) fn frames(parts: &[&[u8]]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (at, part) in parts.iter().enumerate() {
        let more = u8::from(at + 1 < parts.len());
        match u8::try_from(part.len()) {
            Ok(size) => bytes.extend([more, size]),
            Err(_) => {
                bytes.push(more | LONG);
                bytes.extend((part.len() as u64).to_be_bytes());
            }
        }
        bytes.extend_from_slice(part);
    }
    bytes
}

/// Hears `bytes` behind a good introduction until something is wrong with them.
async fn hears(bytes: &[u8]) -> (Vec<Parts>, ZmtpError) {
    let all = [publisher_greeting(), publisher_ready(), bytes.to_vec()].concat();
    let mut subscriber = Subscriber::greet(join(all.as_slice(), sink())).await.unwrap();
    let mut heard = Vec::new();
    loop {
        match subscriber.next().await {
            Ok(parts) => heard.push(parts),
            Err(error) => return (heard, error),
        }
    }
}

async fn introduced(bytes: &[u8]) -> Result<(), ZmtpError> {
    Subscriber::greet(join(bytes, sink())).await.map(|_| ())
}

/// Every byte of the exchange, in the order in which a publisher of libzmq sends and expects it.
#[tokio::test]
async fn a_publisher_is_greeted_subscribed_and_heard() {
    let (ours, mut theirs) = duplex(1 << 20);
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let mut subscriber = Subscriber::greet(ours).await.unwrap();
        (subscriber.next().await.unwrap(), subscriber.next().await.unwrap())
    });
    // libzmq sends the first ten bytes alone and reads ours before it goes on.
    theirs.write_all(&publisher_greeting()[..10]).await.unwrap();
    let mut greeting = [0; 64];
    theirs.read_exact(&mut greeting).await.unwrap();
    assert_eq!(greeting[..12], [0xff, 0, 0, 0, 0, 0, 0, 0, 1, 0x7f, 3, 0]);
    assert_eq!(greeting[12..17], *b"NULL\0");
    assert_eq!(greeting[32..], [0; 32], "a client, and filler");
    theirs.write_all(&publisher_greeting()[10..]).await.unwrap();
    expect(&mut theirs, b"\x04\x19\x05READY\x0bSocket-Type\0\0\0\x03SUB").await;
    theirs.write_all(&publisher_ready()).await.unwrap();
    expect(&mut theirs, &[0, 1, 1]).await;

    let long = vec![7; 300];
    theirs.write_all(&frames(&[b"kv", &[0; 8], &long])).await.unwrap();
    theirs.write_all(b"\x04\x0a\x04PING\0\x0aabc").await.unwrap();
    expect(&mut theirs, b"\x04\x08\x04PONGabc").await;
    theirs.write_all(&frames(&[b""])).await.unwrap();
    let (first, second) = tasks.join_next().await.unwrap().unwrap();
    assert_eq!(first, [b"kv".to_vec(), vec![0; 8], long]);
    assert_eq!(second, [Vec::<u8>::new()]);
}

async fn expect(peer: &mut DuplexStream, expected: &[u8]) {
    let mut got = vec![0; expected.len()];
    peer.read_exact(&mut got).await.unwrap();
    assert_eq!(got, expected);
}

#[tokio::test]
async fn who_is_no_publisher_is_told_so() {
    let with = |bytes: &[u8]| [publisher_greeting(), bytes.to_vec()].concat();
    let mut plain = publisher_greeting();
    plain[12..17].copy_from_slice(b"PLAIN");
    let mut old = publisher_greeting();
    old[10] = 1;
    let reply = command(b"READY", &property(b"socket-type", b"REP"));
    let page = [b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec(), vec![b' '; 64]].concat();
    for (bytes, expected) in [
        (page, "does not speak ZMTP 3"),
        (old, "does not speak ZMTP 3"),
        (plain, "mechanism PLAIN"),
        (with(&reply), "is a REP socket"),
        (with(&command(b"READY", b"")), "is a nameless socket"),
        (with(&command(b"ERROR", b"\x03no\n")), r"refused: no\n"),
        (with(&command(b"READY", b"\x0bSocket-Type\xff\xff\xff\xffPUB")), "broke the rules"),
        (with(&frames(&[b"x"])), "broke the rules"),
        (b"\xff".to_vec(), "connection broke"),
    ] {
        let told = introduced(&bytes).await.unwrap_err().to_string();
        assert!(told.contains(expected), "{told} instead of {expected}");
    }
}

#[tokio::test]
async fn what_is_too_much_ends_the_connection() {
    let over = [[LONG].as_slice(), &(MESSAGE_MAX + 1).to_be_bytes()].concat();
    // The bound is for all parts together.
    let half = vec![0; (MESSAGE_MAX / 2 + 1) as usize];
    for (bytes, expected) in [
        (over, "at most"),
        (frames(&[&half, &half]), "at most"),
        (frames(&[b"x".as_slice(); PARTS_MAX + 1]), "more than 8 parts"),
        (vec![8, 0], "broke the rules"),
        (vec![COMMAND | LONG, 0, 0, 0, 0, 0, 0, 0xff, 0], "at most"),
        (command(b"PING", b""), "broke the rules"),
        (frames(&[b"cut short"])[..5].to_vec(), "connection broke"),
    ] {
        let (heard, error) = hears(&bytes).await;
        assert!(heard.is_empty());
        assert!(error.to_string().contains(expected), "{error} instead of {expected}");
    }
}

#[tokio::test(start_paused = true)]
async fn who_begins_and_does_not_end_is_left() {
    let (ours, mut theirs) = duplex(4096);
    theirs.write_all(&publisher_greeting()[..10]).await.unwrap();
    assert!(matches!(Subscriber::greet(ours).await, Err(ZmtpError::Slow(..))));

    let (ours, mut theirs) = duplex(4096);
    let good = [publisher_greeting(), publisher_ready(), frames(&[b"x", b"y"])].concat();
    theirs.write_all(&good[..good.len() - 1]).await.unwrap();
    let mut subscriber = Subscriber::greet(ours).await.unwrap();
    assert!(matches!(subscriber.next().await, Err(ZmtpError::Slow(..))));
}

proptest! {
    #[test]
    fn no_bytes_make_it_panic(
        first in proptest::collection::vec(any::<u8>(), 0..200),
        later in proptest::collection::vec(any::<u8>(), 0..400),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()
            .unwrap();
        runtime.block_on(async {
            let _ = introduced(&first).await;
            let _ = introduced(&[publisher_greeting(), first].concat()).await;
            hears(&later).await;
        });
    }
}
