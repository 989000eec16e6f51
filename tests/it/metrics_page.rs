//! The metrics page as a scraper reads it: every line by the letter of the exposition format, and every
//! family that operators were promised.

use crate::support::{
    nvml::{FakeNvml, ONE_CARD},
    process::{Setup, ask, exchange, get, run_with, simulated, told},
    raw,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    process::Command,
    time::Duration,
};
use tokio::net::TcpStream;

/// One sample.
#[derive(Debug)]
struct Sample {
    name: String,
    labels: BTreeMap<String, String>,
    value: f64,
}

/// A sample's name and labels.
type Series = (String, BTreeMap<String, String>);

/// A page that was read without a complaint.
#[derive(Debug, Default)]
struct Page {
    /// Name to type.
    families: BTreeMap<String, String>,
    samples: Vec<Sample>,
}

impl Page {
    /// Reads OpenMetrics text. Panics with the line that breaks a rule.
    fn parse(text: &str) -> Self {
        Self::read(text.strip_suffix("# EOF\n").expect("the page ends with # EOF"), true)
    }

    /// Reads the older text format, where a family has the names of its samples.
    fn parse_older(text: &str) -> Self {
        assert!(text.ends_with('\n') && !text.contains("# EOF") && !text.contains("# UNIT"));
        Self::read(text, false)
    }

    fn read(whole: &str, open_metrics: bool) -> Self {
        let mut page = Self::default();
        let mut seen = BTreeSet::new();
        let mut current = String::new();
        for line in whole.lines() {
            if let Some(rest) = line.strip_prefix("# ") {
                let (word, rest) = rest.split_once(' ').expect(line);
                let (name, rest) = rest.split_once(' ').expect(line);
                assert!(is_name(name) && !rest.is_empty(), "{line}");
                match word {
                    "HELP" | "UNIT" => {}
                    "TYPE" => {
                        assert!(
                            ["counter", "gauge", "histogram"].contains(&rest)
                                || (open_metrics && rest == "info"),
                            "a type that is known: {line}"
                        );
                        let before = page.families.insert(name.to_owned(), rest.to_owned());
                        assert!(before.is_none(), "declared twice: {line}");
                        name.clone_into(&mut current);
                    }
                    _ => panic!("no such comment: {line}"),
                }
                if word == "UNIT" {
                    assert!(name.ends_with(&format!("_{rest}")), "the unit ends the name: {line}");
                }
                continue;
            }
            let sample = Sample::parse(line);
            let suffix = sample.name.strip_prefix(&current).expect(line);
            let kind = page.families.get(&current).expect("declared before").as_str();
            let fits = match kind {
                "counter" if open_metrics => suffix == "_total",
                "counter" => suffix.is_empty() && current.ends_with("_total"),
                "gauge" => suffix.is_empty(),
                "info" => suffix == "_info",
                _ => ["_bucket", "_sum", "_count"].contains(&suffix),
            };
            assert!(fits, "a {kind} has no {suffix:?}: {line}");
            assert!(seen.insert((sample.name.clone(), sample.labels.clone())), "twice: {line}");
            assert!(kind == "gauge" || sample.value >= 0.0, "{line}");
            page.samples.push(sample);
        }
        page.check_histograms();
        page
    }

    /// Buckets never fall, and the last is the count.
    fn check_histograms(&self) {
        let mut rows: BTreeMap<Series, Vec<(f64, f64)>> = BTreeMap::new();
        for sample in &self.samples {
            let Some(name) = sample.name.strip_suffix("_bucket") else { continue };
            let mut labels = sample.labels.clone();
            let bound = labels.remove("le").expect("a bucket has a bound");
            let bound = if bound == "+Inf" { f64::INFINITY } else { bound.parse().unwrap() };
            rows.entry((name.to_owned(), labels)).or_default().push((bound, sample.value));
        }
        for ((name, labels), buckets) in rows {
            let rising = |pair: &[(f64, f64)]| pair[0].0 < pair[1].0 && pair[0].1 <= pair[1].1;
            assert!(buckets.windows(2).all(rising), "{name}{labels:?}: {buckets:?}");
            let (bound, last) = *buckets.last().unwrap();
            assert!(bound.is_infinite());
            let count = self
                .samples
                .iter()
                .find(|sample| sample.name == format!("{name}_count") && sample.labels == labels);
            assert_eq!(count.map(|sample| sample.value), Some(last), "{name}{labels:?}");
        }
    }

    /// The sum of all samples of this name with these labels.
    fn sum(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        let fits = |sample: &&Sample| {
            sample.name == name
                && labels
                    .iter()
                    .all(|(label, value)| sample.labels.get(*label).is_some_and(|v| v == value))
        };
        let mut found = self.samples.iter().filter(fits).peekable();
        found.peek()?;
        Some(found.map(|sample| sample.value).sum())
    }
}

impl Sample {
    fn parse(line: &str) -> Self {
        let name_end = line.find(['{', ' ']).expect(line);
        let (name, mut rest) = line.split_at(name_end);
        assert!(is_name(name), "{line}");
        let mut labels = BTreeMap::new();
        if let Some(inner) = rest.strip_prefix('{') {
            rest = inner;
            loop {
                let (label, after) = rest.split_once("=\"").expect(line);
                assert!(is_name(label) && !label.contains(':'), "{line}");
                let (value, after) = quoted(after, line);
                assert!(labels.insert(label.to_owned(), value).is_none(), "label twice: {line}");
                match after.strip_prefix(',') {
                    Some(next) => rest = next,
                    None => {
                        rest = after.strip_prefix('}').expect(line);
                        break;
                    }
                }
            }
        }
        let value = rest.strip_prefix(' ').expect(line);
        assert!(!value.contains(' '), "neither time stamps nor exemplars here: {line}");
        Self { name: name.to_owned(), labels, value: value.parse().expect(line) }
    }
}

/// A label's value up to its closing quote, and what follows.
fn quoted<'a>(text: &'a str, line: &str) -> (String, &'a str) {
    let mut value = String::new();
    let mut letters = text.char_indices();
    while let Some((at, letter)) = letters.next() {
        match letter {
            '"' => return (value, &text[at + 1..]),
            '\\' => match letters.next().expect(line).1 {
                'n' => value.push('\n'),
                escaped @ ('"' | '\\') => value.push(escaped),
                _ => panic!("no such escape: {line}"),
            },
            letter => value.push(letter),
        }
    }
    panic!("the quote is not closed: {line}");
}

fn is_name(text: &str) -> bool {
    let mut letters = text.chars();
    letters.next().is_some_and(|first| first.is_ascii_alphabetic() || first == '_' || first == ':')
        && letters.all(|letter| letter.is_ascii_alphanumeric() || letter == '_' || letter == ':')
}

#[tokio::test]
async fn every_promised_family_is_there_and_every_line_by_the_letter() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/models/demo-chat");
    let simulated = simulated("m", Duration::from_millis(1)).await;
    let mut setup = Setup::with_server("a", simulated.addr);
    setup.rest.push_str(&format!(
        "[[servers]]\nname = \"demo\"\nkind = \"embedded\"\nfolder = \"{folder}\"\n"
    ));
    let fake = FakeNvml::new(ONE_CARD);
    setup.gpu = format!("nvml_library = \"{}\"", fake.library().display());
    let daemon = setup.start().await;
    let mut streamed = ask("demo-chat", true, 6);
    streamed["stream_options"] = serde_json::json!({"include_usage": true});
    let stream = daemon.chat(&streamed).await;
    assert!(stream.status == 200 && stream.done(), "{}", stream.head);
    let usage = stream.usage().expect("usage was asked for");
    assert_eq!(daemon.chat(&ask("m", true, 20)).await.status, 200);
    assert_eq!(daemon.chat(&ask("no\"such\\model", false, 1)).await.status, 404);
    assert_eq!(daemon.chat_as("sk-wrong", &ask("m", false, 1)).await.status, 401);
    let mut left = daemon.open_chat(&ask("m", true, 30_000)).await;
    raw::read_until(&mut left, "data: ").await;
    drop(left);
    daemon.until("the one that left is gone", |s| (s["running"] == 0).then_some(())).await;

    daemon.until("the GPU is read", |s| (s["gpus"]["state"] == "ok").then_some(())).await;
    let mut stream = TcpStream::connect(daemon.admin).await.unwrap();
    let accept = "application/openmetrics-text;version=1.0.0;q=0.75,text/plain;version=0.0.4;q=0.5";
    let reply = exchange(&mut stream, "GET", "/metrics", &[("Accept", accept)], "").await;
    assert!(reply.head.contains("application/openmetrics-text; version=1.0.0"), "{}", reply.head);
    let text = String::from_utf8(reply.body).unwrap();
    let page = Page::parse(&text);
    println!("{} families, {} samples", page.families.len(), page.samples.len());

    let requests = |labels: &[(&str, &str)]| page.sum("berthd_requests_total", labels);
    let answered = [("model", "m"), ("tier", "standard"), ("class", "answered")];
    assert_eq!(requests(&answered), Some(1.0));
    assert_eq!(requests(&[("model", "m"), ("class", "cancelled")]), Some(1.0));
    let unknown = [("model", "unknown"), ("reason", "model_not_found"), ("class", "invalid")];
    assert_eq!(requests(&unknown), Some(1.0), "callers invent no labels");
    assert_eq!(requests(&[("reason", "invalid_api_key")]), Some(1.0));
    for tier in ["system", "interactive", "standard", "batch"] {
        assert_eq!(page.sum("berthd_queue_depth", &[("tier", tier)]), Some(0.0), "{tier}");
    }
    let demo = [("model", "demo-chat")];
    let tokens = |name: &str| page.sum(&format!("berthd_{name}_tokens_total"), &demo);
    assert_eq!(tokens("input"), usage["prompt_tokens"].as_f64());
    assert_eq!(tokens("output"), usage["completion_tokens"].as_f64());
    let checks = [("model", "demo-chat"), ("source", "exact"), ("result", "match")];
    assert_eq!(page.sum("berthd_token_count_checks_total", &checks), Some(1.0));
    for (histogram, least) in
        [("queue_wait", 3.0), ("ttft", 2.0), ("inter_token", 10.0), ("request", 2.0)]
    {
        let name = format!("berthd_{histogram}_seconds");
        assert_eq!(page.families.get(&name).map(String::as_str), Some("histogram"));
        let count = page.sum(&format!("{name}_count"), &[]).unwrap_or(0.0);
        assert!(count >= least, "{name}: {count}");
    }
    for server in ["a", "demo"] {
        for gauge in ["up", "usable", "capacity_tokens", "running", "waiting"] {
            let name = format!("berthd_server_{gauge}");
            assert!(
                page.sum(&name, &[("server", server)]).is_some(),
                "{name} of {server}:\n{text}"
            );
        }
        for gauge in ["placed_requests", "placed_tokens", "breaker_open"] {
            let name = format!("berthd_server_{gauge}");
            assert_eq!(page.sum(&name, &[("server", server)]), Some(0.0), "{name} of {server}");
        }
        let age = page.sum("berthd_server_readings_age_seconds", &[("server", server)]);
        assert!(age.unwrap() < 10.0);
    }
    assert!(page.sum("berthd_server_kv_used_ratio", &[("server", "a")]).is_some());
    for (gauge, value) in [
        ("memory_used_bytes", 98_784_247_808.0),
        ("memory_total_bytes", 150_754_820_096.0),
        ("utilisation_ratio", 0.87),
        ("power_watts", 612.345),
        ("temperature_celsius", 63.0),
        ("processes", 1.0),
    ] {
        let name = format!("berthd_gpu_{gauge}");
        assert_eq!(page.sum(&name, &[("gpu", "GPU-aaaa"), ("index", "0")]), Some(value), "{name}");
    }
    assert!(page.sum("berthd_gpu_readings_age_seconds", &[]).unwrap() < 10.0);
    assert!(page.sum("berthd_uptime_seconds", &[]).unwrap() > 0.0);
    let version = [("version", env!("CARGO_PKG_VERSION"))];
    assert_eq!(page.sum("berthd_build_info", &version), Some(1.0));
    assert!(!text.contains("such\\"), "what callers invent is no label");

    // Whoever does not ask for OpenMetrics gets the older text, with the same samples.
    let reply = get(daemon.admin, "/metrics").await;
    assert!(reply.head.contains("text/plain; version=0.0.4"), "{}", reply.head);
    let text = String::from_utf8(reply.body).unwrap();
    let older = Page::parse_older(&text);
    let series = |page: &Page| -> BTreeSet<Series> {
        page.samples.iter().map(|sample| (sample.name.clone(), sample.labels.clone())).collect()
    };
    assert_eq!(series(&older), series(&page));
    let mut promtool = Command::new("promtool");
    promtool.args(["check", "metrics"]);
    if Command::new("promtool").arg("--version").output().is_err() {
        eprintln!("SKIPPED: promtool (Debian package prometheus) is not installed");
        return;
    }
    let (code, out, err) = told(&run_with(promtool, &text).await);
    println!("promtool check metrics: exit code {code}\n{out}{err}");
    assert_eq!(code, 0, "{out}{err}");
}

#[test]
fn the_reader_complains_of_what_is_wrong() {
    let fine = "# HELP x y.\n# TYPE x counter\nx_total{a=\"b\\\"\\\\\\n\",c=\"\"} 1\n# EOF\n";
    assert_eq!(Page::parse(fine).sum("x_total", &[("a", "b\"\\\n")]), Some(1.0));
    for wrong in [
        "# TYPE x counter\nx_total 1\n",
        "# TYPE x counter\nx 1\n# EOF\n",
        "# TYPE x gauge\nx 1\nx 1\n# EOF\n",
        "# TYPE x gauge\nx{a=\"b\"\n# EOF\n",
        "# TYPE x gauge\nx{a=\"1\",a=\"2\"} 1\n# EOF\n",
        "# TYPE x gauge\nx one\n# EOF\n",
        "# TYPE x gauge\ny 1\n# EOF\n",
        "# TYPE x histogram\nx_bucket{le=\"1\"} 2\nx_bucket{le=\"+Inf\"} 1\nx_count 1\nx_sum 1\n# EOF\n",
        "# TYPE x histogram\nx_bucket{le=\"+Inf\"} 1\nx_count 2\nx_sum 1\n# EOF\n",
    ] {
        assert!(std::panic::catch_unwind(|| Page::parse(wrong)).is_err(), "{wrong}");
    }
}
