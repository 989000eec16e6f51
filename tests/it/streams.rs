//! Many streams at once: none is lost, and each brings its own tokens in their order.

use crate::support::{
    house::{CHAT, House, Plan, chat, request},
    raw::{self, PATIENCE, Reply},
    scripted::{Behaviour, Scripted, TOKENS, expected_text},
};
use berthd::simulate::{ProfileName, SimulateOptions, bind};
use rustix::process::{Resource, getrlimit, setrlimit};
use std::{sync::Arc, time::Duration};
use tokio::{
    io::AsyncWriteExt,
    net::TcpStream,
    sync::{Semaphore, watch},
    task::JoinSet,
    time::{Instant, timeout},
};

const STREAMS: usize = 2000;
/// Descriptors of one stream in this process: both ends of the caller's connection and of the server's.
const EACH: u64 = 4;
/// And of everything else that runs beside this test.
const OTHERS: u64 = 1500;
/// Callers who connect in the same moment, so that the kernel's line of new connections is never full.
const CONNECTING: usize = 128;

/// Raises the limit of descriptors as far as needed. False, and a loud word, where that is not allowed.
fn descriptors(streams: usize) -> bool {
    let need = streams as u64 * EACH + OTHERS;
    let mut limit = getrlimit(Resource::Nofile);
    if limit.current.is_none_or(|current| current >= need) {
        return true;
    }
    limit.current = limit.maximum.map_or(Some(need), |most| Some(need.min(most)));
    let raised = setrlimit(Resource::Nofile, limit).is_ok();
    let enough = raised && getrlimit(Resource::Nofile).current.is_none_or(|now| now >= need);
    if !enough {
        println!(
            "SKIPPED: {streams} streams need {need} descriptors; raise the hard limit (ulimit -Hn)"
        );
    }
    enough
}

/// Opens so many streams, each with a prompt of its own.
async fn open(house: &House, model: &'static str, streams: usize) -> Vec<(String, TcpStream)> {
    let places = Arc::new(Semaphore::new(CONNECTING));
    let mut opening = JoinSet::new();
    for number in 0..streams {
        let (places, at) = (Arc::clone(&places), house.data);
        opening.spawn(async move {
            let _place = places.acquire_owned().await;
            let prompt = format!("stream {number}");
            let body = chat(model, &prompt, true).to_string();
            let mut stream = TcpStream::connect(at).await.unwrap();
            stream.write_all(&request("a", CHAT, "", &body)).await.unwrap();
            (prompt, stream)
        });
    }
    opening.join_all().await
}

/// Reads all streams to their ends, together.
async fn read(streams: Vec<(String, TcpStream)>) -> Vec<(String, Reply)> {
    let mut reading = JoinSet::new();
    for (prompt, mut stream) in streams {
        reading.spawn(async move {
            let (bytes, ended) = raw::read_all(&mut stream).await;
            (prompt, Reply::parse(&bytes, ended))
        });
    }
    reading.join_all().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_thousand_streams_at_once_and_none_is_lost() {
    if !descriptors(STREAMS) {
        return;
    }
    let (go, wait) = watch::channel(false);
    let server = Scripted::start(Behaviour::Held { after: 2, go: wait }).await;
    let plan = Plan::new().server("s", server.addr, &format!("max_running = {STREAMS}"));
    let house = House::open(&plan).await;
    let began = Instant::now();
    let streams = open(&house, "scripted", STREAMS).await;
    let all = server.hits.until(|hits| hits.open() == STREAMS as u64);
    timeout(PATIENCE, all).await.expect("all are there");
    assert_eq!((house.placed().0, house.waiting()), (STREAMS as u32, 0));
    let opened = began.elapsed();
    go.send(true).unwrap();
    let replies = read(streams).await;
    for (prompt, reply) in &replies {
        assert!(reply.status == 200 && reply.whole && reply.done(), "{prompt}: {}", reply.head);
        assert_eq!(reply.text(), expected_text(prompt, TOKENS), "{prompt}: its own, in order");
    }
    assert_eq!(replies.len(), STREAMS);
    assert_eq!((server.hits.most_open(), server.hits.aborted()), (STREAMS as u64, 0));
    println!(
        "{STREAMS} streams at once: 0 lost, 0 out of order; open after {} ms, all over after {} ms",
        opened.as_millis(),
        began.elapsed().as_millis()
    );
    house.close().await;
}

/// Tokens of one simulated answer.
const WORDS: usize = 64;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn simulated_streams_keep_their_order() {
    const SIMULATED: usize = 200;
    let options = SimulateOptions {
        listen: ([127, 0, 0, 1], 0).into(),
        profile: ProfileName::Instant,
        output_tokens: WORDS as u64,
        token_interval_us: 2000,
        ..SimulateOptions::default()
    };
    let simulator = bind(options).await.unwrap();
    let (at, stats) = (simulator.local_addr(), simulator.stats());
    let mut simulating = JoinSet::new();
    simulating.spawn(simulator.run(std::future::pending()));
    let house = House::open(&Plan::new().server("simulated", at, "")).await;
    let began = Instant::now();
    let replies = read(open(&house, "simulated", SIMULATED).await).await;
    let words: Vec<String> = (0..WORDS).map(|index| format!("word{index}")).collect();
    for (prompt, reply) in &replies {
        assert!(reply.whole && reply.done(), "{prompt}: {}", reply.head);
        assert_eq!(reply.text(), words.join(" "), "{prompt}");
    }
    assert_eq!(stats.finished(), SIMULATED as u64);
    let took: Duration = began.elapsed();
    println!("{SIMULATED} simulated streams of {WORDS} tokens: in order, {} ms", took.as_millis());
    house.close().await;
}
