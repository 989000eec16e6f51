//! Callers who send more than their request and then leave.

use crate::support::{
    house::{CHAT, House, Plan, chat, key},
    raw::{self, PATIENCE, Reply},
    scripted::{Behaviour, Scripted},
};
use tokio::{io::AsyncWriteExt, net::TcpStream, time::timeout};

/// A request that keeps its connection, as most libraries send it.
fn request() -> Vec<u8> {
    let body = chat("scripted", "hello", false).to_string();
    format!(
        "POST {CHAT} HTTP/1.1\r\nHost: berthd\r\nAuthorization: Bearer {}\r\n\
         Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        key("a"),
        body.len()
    )
    .into_bytes()
}

async fn house(behaviour: Behaviour) -> (Scripted, House) {
    let server = Scripted::start(behaviour).await;
    let house = House::open(&Plan::new().server("s", server.addr, "")).await;
    (server, house)
}

/// Some old clients end a body with an empty line. The HTTP library kept it, read no further before the
/// answer, and the server went on working for a caller who had left.
#[tokio::test]
async fn a_caller_who_leaves_behind_an_empty_line_is_noticed() {
    for tail in [&b"\r\n"[..], b"\r\n\r\n", b""] {
        let (server, house) = house(Behaviour::HangBeforeHead).await;
        let mut caller = TcpStream::connect(house.data).await.unwrap();
        caller.write_all(&[&request(), tail].concat()).await.unwrap();
        timeout(PATIENCE, server.hits.until(|hits| hits.open() == 1)).await.expect("it runs");
        drop(caller);
        let seen = server.hits.until(|hits| hits.aborted() == 1);
        timeout(PATIENCE, seen).await.expect("the server is freed");
        house.until_empty().await;
        house.close().await;
    }
}

/// A second request before the first one's answer would hide its caller's leaving too: it is refused, and
/// the first one ends with its connection.
#[tokio::test]
async fn a_request_before_the_answer_is_refused_and_frees_the_server() {
    let (server, house) = house(Behaviour::HangBeforeHead).await;
    let mut caller = TcpStream::connect(house.data).await.unwrap();
    caller.write_all(&request()).await.unwrap();
    timeout(PATIENCE, server.hits.until(|hits| hits.open() == 1)).await.expect("it runs");
    caller.write_all(&request()).await.unwrap();
    let (bytes, ended) = raw::read_all(&mut caller).await;
    let reply = Reply::parse(&bytes, ended);
    assert_eq!((reply.status, reply.header("connection")), (400, "close"));
    assert_eq!(reply.json()["error"]["code"], "ambiguous_framing");
    let seen = server.hits.until(|hits| hits.aborted() == 1);
    timeout(PATIENCE, seen).await.expect("the server is freed");
    house.close().await;
}

/// One after the other, with empty lines between, they are answered on one connection.
#[tokio::test]
async fn requests_one_after_another_share_a_connection() {
    let (server, house) = house(Behaviour::ok()).await;
    let mut caller = TcpStream::connect(house.data).await.unwrap();
    for _ in 0..20 {
        caller.write_all(&[&b"\r\n"[..], &request(), b"\r\n"].concat()).await.unwrap();
        let head = raw::read_until(&mut caller, "\"usage\"").await;
        assert!(head.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&head));
        // To the body's end, so that nothing of this answer is taken for the next.
        let length = String::from_utf8_lossy(&head).to_ascii_lowercase();
        let length = length.split("content-length: ").nth(1).unwrap().lines().next().unwrap();
        let start = head.windows(4).position(|w| w == b"\r\n\r\n").unwrap() + 4;
        let mut rest = vec![0; length.parse::<usize>().unwrap() + start - head.len()];
        tokio::io::AsyncReadExt::read_exact(&mut caller, &mut rest).await.unwrap();
    }
    assert_eq!(server.hits.requests(), 20);
    drop(caller);
    house.close().await;
}
