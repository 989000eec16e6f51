//! Callers who leave: whatever a request held is given back, and its server hears of it at once.

use crate::support::{
    house::{CHAT, Chance, House, Plan, chat, request},
    raw::{self, PATIENCE},
    scripted::{
        Behaviour::{self, HangAfterHead, HangBeforeHead},
        Scripted,
    },
};
use berthd::units::Tokens;
use std::{sync::Arc, time::Duration};
use tokio::{
    io::AsyncWriteExt,
    net::{TcpSocket, TcpStream},
    task::JoinSet,
    time::{Instant, sleep, timeout},
};

/// Aborts in each state.
const ABORTS: usize = 1000;
/// Callers there together.
const TOGETHER: usize = 50;
/// Callers who leave in the same moment, at most.
const BURST: u64 = 5;
/// Longest time between a caller's close and what must follow. Loopback takes a millisecond; this leaves
/// room for a machine that builds something else meanwhile.
const BOUND: Duration = Duration::from_millis(500);
/// Output tokens held for each request.
const HELD: u64 = 20_000;
/// The tenant's tokens a minute: enough for all who are there together.
const BUDGET: u64 = (TOGETHER as u64 + 2) * (HELD + 500);

async fn house(server: &Scripted, max_running: u32) -> House {
    let plan = Plan::new()
        .tenant("b", &format!("tokens_per_minute = {BUDGET}"))
        .model("scripted", &format!("expected_output_tokens = {HELD}"))
        .server("s", server.addr, &format!("max_running = {max_running}"));
    House::open(&plan).await
}

/// Nothing is held of the budget. A request that had reached its server was charged a few tokens; one
/// held reservation would be far more.
fn assert_budget(house: &House) {
    let live = house.broker.live.load();
    let all = Tokens(BUDGET - HELD / 2);
    let whole = live.admission.reserve(&"b".into(), all, Instant::now());
    assert!(whole.is_ok(), "a reservation is still held: {}", whole.unwrap_err());
}

/// Opens a batch of requests.
async fn batch(house: &House, stream: impl Fn(usize) -> bool) -> Vec<TcpStream> {
    let mut callers = Vec::new();
    for number in 0..TOGETHER {
        let body = chat("scripted", &format!("caller {number}"), stream(number));
        callers.push(house.open_as("b", "", &body).await);
    }
    callers
}

/// Some of a batch leave, and the rest stays. When the first of them left.
fn leave(callers: &mut Vec<TcpStream>, chance: &mut Chance) -> Instant {
    let count = (1 + chance.below(BURST)).min(callers.len() as u64);
    let leaving: Vec<TcpStream> = (0..count).map(|_| chance.take(callers)).collect();
    let left = Instant::now();
    drop(leaving);
    left
}

fn tell(state: &str, worst: Duration) {
    println!(
        "{ABORTS} aborts, {state}: queue 0, running 0, placed tokens 0; worst delay {:.1} ms",
        worst.as_secs_f64() * 1e3
    );
    assert!(worst < BOUND, "{state}: {worst:?}");
}

#[tokio::test]
async fn callers_who_leave_the_queue_leave_nothing_behind() {
    let mut chance = Chance::new("queued", 1);
    let server = Scripted::start(HangBeforeHead).await;
    let house = house(&server, 1).await;
    let holder = house.open_as("a", "", &chat("scripted", "holder", true)).await;
    timeout(PATIENCE, server.hits.until(|hits| hits.open() == 1)).await.expect("it runs");
    let mut worst = Duration::ZERO;
    for _ in 0..ABORTS / TOGETHER {
        let mut callers = batch(&house, |number| number % 2 == 0).await;
        house.until("all wait", |house| house.waiting() == TOGETHER).await;
        while !callers.is_empty() {
            let left = leave(&mut callers, &mut chance);
            let stay = callers.len();
            house.until("they have left", |house| house.waiting() == stay).await;
            worst = worst.max(left.elapsed());
        }
        assert_budget(&house);
    }
    assert_eq!(server.hits.requests(), 1, "nobody but the holder reached the server");
    assert_eq!(house.placed().0, 1);
    drop(holder);
    house.until_empty().await;
    tell("queued", worst);
    house.close().await;
}

/// Lets batches leave a server that has them all; gives the worst delay until the server has seen it.
async fn leave_server(
    house: &House,
    server: &Scripted,
    chance: &mut Chance,
    mut callers: Vec<TcpStream>,
) -> Duration {
    let mut worst = Duration::ZERO;
    let before = server.hits.aborted();
    let all = callers.len() as u64;
    while !callers.is_empty() {
        let left = leave(&mut callers, chance);
        let gone = before + all - callers.len() as u64;
        let seen =
            server.hits.until(|hits| hits.aborted() == gone && hits.open() == before + all - gone);
        timeout(PATIENCE, seen).await.expect("the server sees each abort");
        let last = server.hits.aborts().pop().unwrap().at;
        worst = worst.max(last - left);
    }
    house.until_empty().await;
    assert_budget(house);
    worst
}

async fn leave_before_the_first_byte(state: &str, seed: u64, stream: bool) {
    let mut chance = Chance::new(state, seed);
    let server = Scripted::start(HangBeforeHead).await;
    let house = house(&server, 1000).await;
    let mut worst = Duration::ZERO;
    for round in 0..ABORTS / TOGETHER {
        server.behave(if round % 2 == 0 { HangBeforeHead } else { HangAfterHead });
        let callers = batch(&house, |_| stream).await;
        let here = server.hits.until(|hits| hits.open() == TOGETHER as u64);
        timeout(PATIENCE, here).await.expect("all are there");
        assert_eq!(house.placed().0, TOGETHER as u32);
        worst = worst.max(leave_server(&house, &server, &mut chance, callers).await);
    }
    assert_eq!((server.hits.aborted(), server.hits.finished()), (ABORTS as u64, 0));
    tell(state, worst);
    house.close().await;
}

#[tokio::test]
async fn callers_who_leave_before_the_first_byte_free_the_server() {
    leave_before_the_first_byte("waiting for the first byte", 2, true).await;
}

#[tokio::test]
async fn callers_who_leave_a_whole_answer_free_the_server() {
    leave_before_the_first_byte("waiting for a whole answer", 3, false).await;
}

#[tokio::test]
async fn callers_who_leave_a_stream_free_the_server() {
    let mut chance = Chance::new("streaming", 4);
    let endless = Behaviour::Ok { tokens: 1_000_000, interval: Duration::from_millis(20) };
    let server = Scripted::start(endless).await;
    let house = house(&server, 1000).await;
    let mut worst = Duration::ZERO;
    for _ in 0..ABORTS / TOGETHER {
        let mut reading = JoinSet::new();
        for mut caller in batch(&house, |_| true).await {
            let mark = format!("-{} ", chance.below(4));
            reading.spawn(async move {
                raw::read_until(&mut caller, &mark).await;
                caller
            });
        }
        let callers = reading.join_all().await;
        worst = worst.max(leave_server(&house, &server, &mut chance, callers).await);
    }
    assert_eq!((server.hits.aborted(), server.hits.finished()), (ABORTS as u64, 0));
    tell("streaming", worst);
    house.close().await;
}

/// One who stays but reads nothing would hold the server's room for ever.
#[tokio::test]
async fn a_caller_who_takes_nothing_is_let_go() {
    let server = Scripted::start(Behaviour::TooLong(usize::MAX)).await;
    let plan = Plan::new().listen("idle_limit_s = 0.5").server("s", server.addr, "");
    let house = House::open(&plan).await;
    let socket = TcpSocket::new_v4().unwrap();
    // So that the kernel does not take much in its place.
    socket.set_recv_buffer_size(4096).unwrap();
    let mut caller = socket.connect(house.data).await.unwrap();
    let body = chat("scripted", "never read", true).to_string();
    caller.write_all(&request("a", CHAT, "", &body)).await.unwrap();
    let seen = server.hits.until(|hits| hits.aborted() == 1);
    timeout(PATIENCE, seen).await.expect("the server is freed");
    house.until_empty().await;
    drop(caller);
    house.close().await;
}

/// Not in a known state but at any moment: on the way in, between queue and server, at the last byte.
#[tokio::test]
async fn callers_who_leave_at_any_moment_leave_nothing_behind() {
    let mut chance = Chance::new("any moment", 5);
    let server = Scripted::start(Behaviour::ok()).await;
    let house = Arc::new(house(&server, 8).await);
    for round in 0..ABORTS / TOGETHER {
        let interval = Duration::from_micros(chance.below(3000));
        server.behave(Behaviour::Ok { tokens: 4, interval });
        let mut callers = JoinSet::new();
        for number in 0..TOGETHER {
            let moment = Duration::from_micros(chance.below(60_000));
            let house = Arc::clone(&house);
            callers.spawn(async move {
                let prompt = format!("round {round}, caller {number}");
                let body = chat("scripted", &prompt, number % 3 != 0);
                let stream = house.open_as("b", "", &body).await;
                sleep(moment).await;
                drop(stream);
            });
        }
        callers.join_all().await;
        house.until_empty().await;
        timeout(PATIENCE, server.hits.until(|hits| hits.open() == 0)).await.expect("all ended");
        assert_budget(&house);
    }
    let (requests, finished) = (server.hits.requests(), server.hits.finished());
    let aborted = server.hits.aborted();
    assert_eq!(requests, finished + aborted);
    println!(
        "{ABORTS} leave at any moment: {} before a server had them, {aborted} from a server, {finished} after it had finished",
        ABORTS as u64 - requests
    );
    Arc::into_inner(house).unwrap().close().await;
}
