//! What it costs. Printed, not judged: `cargo test --release -- --ignored --nocapture speed`.

use super::{
    degenerate::{Limits, Watch},
    leak::{Leak, Secretive, WORDS},
};
use base64::{Engine, engine::general_purpose::STANDARD};
use std::{sync::Arc, time::SystemTime};

const MIB: usize = 1 << 20;

/// Time that this thread ran, so that others on the machine do not count; else by the clock.
fn now_s() -> f64 {
    let ran = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    let ran_ns = ran.split(' ').next().and_then(|first| first.parse::<f64>().ok());
    let clock = || SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs_f64();
    ran_ns.map_or_else(clock, |ns| ns / 1e9)
}

fn seconds(work: impl FnOnce()) -> f64 {
    let start = now_s();
    work();
    now_s() - start
}

fn noise(bytes: usize, seed: u64) -> Vec<u8> {
    let mut state = 0x2545_F491_4F6C_DD1D ^ seed;
    let next = |_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u8
    };
    (0..bytes).map(next).collect()
}

/// Prose of words that come as often as words do.
fn prose(bytes: usize, seed: u64) -> String {
    const WORDS: [&str; 24] = [
        "the", "of", "and", "to", "in", "answer", "model", "which", "street", "winter", "because",
        "seven", "people", "between", "quietly", "machine", "river", "a", "is", "that", "garden",
        "would", "letter", "small",
    ];
    let mut text = String::new();
    for (at, byte) in noise(bytes / 3, seed).into_iter().enumerate() {
        text.push_str(WORDS[usize::from(byte) % WORDS.len()]);
        text.push_str(if at % 12 == 11 { ".\n" } else { " " });
    }
    text.truncate(bytes);
    text
}

fn texts() -> Vec<(&'static str, String)> {
    vec![
        ("prose", prose(4 * MIB, 0)),
        ("Chinese", "今天天气很好，我们一起去公园散步吧。".repeat(MIB / 54)),
        ("one letter", "a".repeat(MIB)),
        ("one space", " ".repeat(MIB)),
        ("random base64", STANDARD.encode(noise(MIB * 3 / 4, 0))),
        ("hexadecimals", noise(MIB / 2, 0).iter().map(|byte| format!("{byte:02x}")).collect()),
        ("digits", noise(MIB, 0).iter().map(|byte| char::from(b'0' + byte % 10)).collect()),
        ("escapes", "\\u00e9%41\\n".repeat(MIB / 11)),
        ("<s", "<|".repeat(MIB / 2)),
    ]
}

fn by_twenty(text: &str, mut push: impl FnMut(&str)) {
    let mut rest = text;
    while !rest.is_empty() {
        let mut cut = rest.len().min(20);
        while !rest.is_char_boundary(cut) {
            cut += 1;
        }
        let (piece, behind) = rest.split_at(cut);
        push(piece);
        rest = behind;
    }
}

fn report(name: &str, bytes: usize, took_s: f64) {
    println!("{name:<32} {:>8.1} MB/s {:>9.3} ms", bytes as f64 / took_s / 1e6, took_s * 1e3);
}

#[test]
#[ignore = "prints what leaks cost"]
fn speed_of_leaks() {
    for kib in [1, 2, 8, 64] {
        let prompt = prose(kib * 1024, 1);
        let times = 4000 / kib;
        let index = || (0..times).for_each(|_| drop(Secretive::new(&[&prompt], &[], WORDS)));
        report(&format!("index of {kib} KiB"), prompt.len(), seconds(index) / times as f64);
    }
    let prompt = format!("{} The vault's number is known to no guest of ours.", prose(2000, 1));
    let secret = Arc::new(Secretive::new(&[&prompt], &["NV-4471-QX".to_owned()], WORDS));
    println!("{} bytes a stream", size_of::<Leak>());
    for (name, text) in texts() {
        let mut leak = Leak::new(Arc::clone(&secret));
        let took = seconds(|| {
            by_twenty(&text, |piece| {
                leak.push(piece);
            })
        });
        assert_eq!(leak.found(), None, "{name}");
        report(&format!("leak, {name}"), text.len(), took);
    }
    let text = prose(MIB, 0);
    let mut leak = Leak::new(secret);
    let took = seconds(|| {
        by_twenty(&text, |piece| {
            leak.push(piece);
            std::hint::black_box(leak.held());
        });
    });
    report("leak, prose, with held", text.len(), took);
}

#[test]
#[ignore = "prints what watching costs"]
fn speed_of_watching() {
    println!("{} bytes a stream, and 6 KiB beside it", size_of::<Watch>());
    for (name, text) in texts() {
        let mut watch = Watch::new(Limits::default());
        let took = seconds(|| {
            by_twenty(&text, |piece| {
                watch.push(piece);
            })
        });
        report(&format!("watch, {name}"), text.len(), took);
    }
    let took = seconds(|| {
        for _ in 0..10_000 {
            std::hint::black_box(Watch::new(Limits::default()));
        }
    });
    println!("a new one takes {:.2} us", took * 100.0);
}
