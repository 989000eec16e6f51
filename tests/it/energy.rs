//! What requests take of a card, from the fake driver's readings to headers, metrics, totals and log.
//!
//! The card is read by a real thread, so these tests wait for what must become true in real time.

use crate::support::{
    house::{House, Plan, chat},
    nvml::FakeNvml,
    raw::Reply,
    scripted::{Behaviour, Scripted},
};
use berthd::energy::{gauge::Source, meter::CardView};
use serde_json::Value;
use std::time::Duration;

const ASKS: &str = "X-Berthd-Energy: yes\r\n";

/// A card that draws 300 W and works at four fifths.
fn card(more: &str) -> String {
    format!(
        "driver=580.65.06\nnvml=13.580.65.06\ngpu 0 uuid=GPU-aaaa name=\"NVIDIA H200\" \
         mem_total=150754820096 mem_used=98784247808 mem_free=51436847104 util=80 mem_util=41 \
         power_mw=300000 limit_mw=700000 temp=63 energy=auto {more}\n"
    )
}

fn plan(fake: &FakeNvml, server: &Scripted, energy: &str) -> Plan {
    let library = fake.library();
    let gpu =
        format!("nvml_library = \"{}\"\nperiod_s = 0.1\n[energy]\n{energy}", library.display());
    Plan::new().tenant("b", "tier = \"batch\"").gpu(&gpu).server(
        "s",
        server.addr,
        "gpus = [\"GPU-aaaa\"]",
    )
}

/// A daemon that has read its card.
async fn open(plan: &Plan) -> House {
    let house = House::open(plan).await;
    house.until("the card was read", |house| !house.broker.devices.metered().is_empty()).await;
    house
}

fn view(house: &House) -> CardView {
    house.broker.devices.metered()[0].clone()
}

fn number(text: &str) -> f64 {
    text.parse().unwrap_or_else(|_| panic!("{text:?} is no number"))
}

/// The comment with what a stream took, and what comes after it.
fn comment(reply: &Reply) -> Option<(Vec<f64>, String)> {
    let text = String::from_utf8(reply.body.clone()).unwrap();
    let (_, after) = text.split_once(": energy ")?;
    let (line, after) = after.split_once("\n\n")?;
    let numbers = line.split(' ').map(|part| number(part.split_once('=').unwrap().1));
    Some((numbers.collect(), after.to_owned()))
}

/// The sum of a family's lines with all of `parts`.
fn sum(page: &str, parts: &[&str]) -> f64 {
    let lines = page.lines().filter(|line| parts.iter().all(|part| line.contains(part)));
    lines
        .filter(|line| !line.starts_with('#'))
        .map(|line| number(line.rsplit(' ').next().unwrap()))
        .sum()
}

fn total<'a>(status: &'a Value, tenant: &str) -> &'a Value {
    let totals = status["totals"].as_array().unwrap();
    totals.iter().find(|total| total["tenant"] == tenant).unwrap()
}

#[tokio::test]
async fn a_request_hears_what_it_took_and_the_books_add_up() {
    let fake = FakeNvml::new(&card(""));
    let paced = Behaviour::Ok { tokens: 50, interval: Duration::from_millis(15) };
    let server = Scripted::start(paced).await;
    let prices = "price_per_kwh = 360\nprice_per_gpu_hour = 3600";
    let house = open(&plan(&fake, &server, prices)).await;

    // A stream over several readings: told in a comment right before the end mark.
    let stream = house.ask_as("a", ASKS, &chat("scripted", "hello", true)).await;
    let (numbers, after) = comment(&stream).expect("it was told");
    assert_eq!(after, "data: [DONE]\n\n");
    assert!(stream.done() && stream.header("x-berthd-energy-joules").is_empty());
    let [joules, seconds, cost] = numbers[..] else { panic!("{numbers:?}") };
    // At least 0.5 s of it were seen, at 300 W of which 105 W are taken for idle; four fifths busy.
    assert!((80.0..2_000.0).contains(&joules), "{joules}");
    assert!((0.3..8.0).contains(&seconds), "{seconds}");
    // 0.0001 a joule and 1 a second.
    assert!((cost - joules / 1e4 - seconds).abs() < 1e-4, "{cost}");

    // A whole answer: in its head. It began and ended between two readings.
    server.behave(Behaviour::ok());
    let whole = house.ask_as("b", ASKS, &chat("scripted", "hello", false)).await;
    assert!(number(whole.header("x-berthd-energy-joules")) > 0.0, "{}", whole.head);
    assert!(number(whole.header("x-berthd-gpu-seconds")) > 0.0, "{}", whole.head);
    assert!(number(whole.header("x-berthd-cost")) > 0.0, "{}", whole.head);

    // Who does not ask is told nothing; who asks for nonsense is told so.
    for body in [chat("scripted", "hello", false), chat("scripted", "hello", true)] {
        let quiet = house.ask(&body).await;
        assert!(quiet.header("x-berthd-energy-joules").is_empty());
        assert_eq!((quiet.status, quiet.comments()), (200, 0));
    }
    let odd = house.ask_as("a", "X-Berthd-Energy: 7\r\n", &chat("scripted", "hi", false)).await;
    assert_eq!((odd.status, odd.json()["error"]["param"].as_str()), (400, Some("x-berthd-energy")));

    // Once the card was read again, all of it is booked, and adds up everywhere.
    house.until_empty().await;
    assert!(house.broker.works.is_empty(), "nothing is left at work");
    let is_booked = |house: &House| house.metric(&["berthd_energy_joules_total", "tenant=\"b\""]);
    house.until("the short answer is booked", |house| is_booked(house) > Some(0.0)).await;
    let seconds = |house: &House| view(house).shares.all().time.seconds();
    let since = seconds(&house);
    house.until("the card was read twice more", |house| seconds(house) > since + 0.25).await;
    let page = house.broker.metrics_page(&berthd::snapshot::GpuPlane::Off);
    let status = house.status();
    let by_tenant = |field: &str| {
        ["a", "b"].map(|tenant| total(&status, tenant)[field].as_f64().unwrap()).iter().sum::<f64>()
    };
    let requests = view(&house).shares.requests;
    for (all, family, field) in [
        (requests.energy.joules(), "berthd_energy_joules_total{", "joules"),
        (requests.time.seconds(), "berthd_gpu_busy_seconds_total{", "gpu_seconds"),
    ] {
        assert!((sum(&page, &[family, "server=\"s\"", "model=\"scripted\""]) - all).abs() < 1e-3);
        assert!((by_tenant(field) - all).abs() < 1e-3, "{field}: {all} {status}");
    }
    let cost = requests.energy.joules() / 1e4 + requests.time.seconds();
    assert!((sum(&page, &["berthd_energy_cost_total{"]) - cost).abs() < 1e-3);
    assert!((by_tenant("cost") - cost).abs() < 1e-3);
    let of_a = sum(&page, &["berthd_energy_joules_total{", "tenant=\"a\"", "tier=\"interactive\""]);
    assert!(of_a >= joules * 0.5, "the stream's provisional {joules} J, settled {of_a} J");
    let on_card = |share: &str| sum(&page, &["berthd_gpu_energy_joules_total{", share]);
    assert!((on_card("share=\"requests\"") - requests.energy.joules()).abs() < 1e-3);
    assert!(on_card("share=\"foreign\"") > 0.0, "the card works on without us");
    house.close().await;
}

/// The counter as a driver gives it, in steps that the test knows.
#[tokio::test]
async fn shares_are_what_the_counter_moved() {
    let at = |energy_mj: u64| card("").replace("energy=auto", &format!("energy_mj={energy_mj}"));
    let fake = FakeNvml::new(&at(5_000_000));
    let (go, wait) = tokio::sync::watch::channel(false);
    let server = Scripted::start(Behaviour::Held { after: 2, go: wait }).await;
    let house = open(&plan(&fake, &server, "")).await;
    let is_known = |house: &House| view(house).source != Source::Nothing;
    house.until("it is known how energy is measured", is_known).await;
    let mut stream = house.open_as("a", ASKS, &chat("scripted", "hello", true)).await;
    house.until("it is at work", |house| house.broker.works.len() == 1).await;
    assert_eq!(view(&house).source, Source::Counter);
    // 300 J, a reset, and 200 J.
    let mut drawn = 0;
    for (counter, moved) in [(5_300_000, 300), (1_000, 0), (201_000, 200)] {
        fake.set(&at(counter));
        drawn += moved * 1_000_000;
        let is_seen = |house: &House| {
            let view = view(house);
            view.shares.all().energy.get() == drawn && (counter > 1_000 || view.resets == 1)
        };
        house.until("the counter was read", is_seen).await;
    }
    assert!(view(&house).shares.requests.energy.joules() > 300.0);
    go.send_replace(true);
    let (bytes, ended) = crate::support::raw::read_all(&mut stream).await;
    let (numbers, _) = comment(&Reply::parse(&bytes, ended)).expect("it was told");
    assert_eq!(numbers.len(), 2, "no prices, no cost");
    house.close().await;
}

/// What is booked only at the end of an answer misses those who leave before it.
#[tokio::test]
async fn a_caller_who_leaves_is_booked_for_what_was_done() {
    let fake = FakeNvml::new(&card(""));
    let server = Scripted::start(Behaviour::StallMidStream(3)).await;
    let house = open(&plan(&fake, &server, "")).await;
    let stream = house.open_as("b", "", &chat("scripted", "hello", true)).await;
    house.until("it is at work", |house| house.broker.works.len() == 1).await;
    let of_b = |house: &House| house.metric(&["berthd_energy_joules_total", "tenant=\"b\""]);
    house.until("it is booked while it runs", |house| of_b(house) > Some(0.0)).await;
    drop(stream);
    house.until("it left", |house| house.broker.works.is_empty()).await;
    house.until_empty().await;
    let all = |house: &House| view(house).shares.all().time.seconds();
    let since = all(&house);
    house.until("the card was read twice more", |house| all(house) > since + 0.25).await;
    let booked = of_b(&house).unwrap();
    assert!((booked - view(&house).shares.requests.energy.joules()).abs() < 1e-3);
    assert!((total(&house.status(), "b")["joules"].as_f64().unwrap() - booked).abs() < 1e-3);
    house.close().await;
}

/// Without a driver nothing is metered, nothing is told, and nothing breaks.
#[tokio::test]
async fn without_a_driver_nobody_is_told_a_number() {
    let server = Scripted::start(Behaviour::ok()).await;
    let house = House::open(&Plan::new().server("s", server.addr, "")).await;
    let whole = house.ask_as("a", ASKS, &chat("scripted", "hello", false)).await;
    assert_eq!((whole.status, whole.header("x-berthd-energy-joules")), (200, ""));
    let stream = house.ask_as("a", ASKS, &chat("scripted", "hello", true)).await;
    assert!(stream.done() && stream.comments() == 0);
    assert_eq!(total(&house.status(), "a")["joules"], 0.0);
    assert!(house.metric(&["berthd_energy_joules_total{"]).is_none());
    house.close().await;
}

/// An attempt that failed took energy too, on the server that failed; it ends with the attempt, not with
/// the request.
#[tokio::test]
async fn a_failed_attempt_stops_working_when_it_fails() {
    let fake = FakeNvml::new(&card(""));
    let bad = Scripted::start(Behaviour::status(500)).await;
    let (go, wait) = tokio::sync::watch::channel(false);
    let good = Scripted::start(Behaviour::Held { after: 1, go: wait }).await;
    let plan = plan(&fake, &bad, "").server("t", good.addr, "gpus = [\"GPU-aaaa\"]");
    let house = open(&plan).await;
    let mut streams = Vec::new();
    // Both servers look alike; one of these comes to the bad one first.
    for _ in 0..4 {
        streams.push(house.open_as("a", "", &chat("scripted", "hello", true)).await);
    }
    house.until("all are on the good one", |house| house.server("t").placed == 4).await;
    assert_eq!(house.broker.works.len(), 4);
    assert!(bad.hits.requests() > 0, "the bad one was tried");
    go.send_replace(true);
    for stream in &mut streams {
        crate::support::raw::read_all(stream).await;
    }
    house.until_empty().await;
    assert!(house.broker.works.is_empty());
    house.close().await;
}
