//! What was measured, as a table for people and as JSON for machines.

use serde_json::{Value, json};
use std::fmt::Write as _;

/// Figures of one contender; `None` where a round failed or was not run.
#[derive(Clone, Debug, Default)]
pub struct Figures {
    /// Its name.
    pub name: String,
    /// Time of one request at a time, microseconds: half of them were faster than this.
    pub p50_us: Option<f64>,
    /// And 99 of 100 faster than this.
    pub p99_us: Option<f64>,
    /// Requests a second with 16 callers.
    pub per_s: Option<f64>,
    /// CPU per small request, microseconds.
    pub request_us: Option<f64>,
    /// CPU per token, streams as fast as they go, microseconds.
    pub token_us: Option<f64>,
    /// CPU per token, 64 streams with a token every 10 ms, microseconds.
    pub paced_us: Option<f64>,
    /// Memory per idle stream, KiB.
    pub stream_kib: Option<f64>,
    /// From the start of the process to the first answer, seconds.
    pub start_s: Option<f64>,
    /// Memory after the first answer, MiB.
    pub idle_mib: Option<f64>,
}

type Column = (&'static str, usize, fn(&Figures, &Figures) -> Option<f64>);

/// `direct` is taken off the latencies; every other figure stands alone.
const COLUMNS: [Column; 9] = [
    ("added p50 ms", 3, |f, direct| Some((f.p50_us? - direct.p50_us?) / 1e3)),
    ("added p99 ms", 3, |f, direct| Some((f.p99_us? - direct.p99_us?) / 1e3)),
    ("CPU us/request", 1, |f, _| f.request_us),
    ("requests/s", 0, |f, _| f.per_s),
    ("CPU us/token", 2, |f, _| f.token_us),
    ("us/token paced", 2, |f, _| f.paced_us),
    ("KiB/stream", 1, |f, _| f.stream_kib),
    ("start s", 3, |f, _| f.start_s),
    ("idle MiB", 1, |f, _| f.idle_mib),
];

/// The table, with each figure's ratio to nginx where nginx was there.
pub fn table(all: &[Figures], direct: &Figures) -> String {
    let nginx = all.iter().find(|figures| figures.name == "nginx");
    let mut text = format!("{:<14}", "");
    for (title, ..) in COLUMNS {
        let _ = write!(text, " | {title:>16}");
    }
    let _ = write!(text, "\n{:<14}", "direct");
    for (title, digits, _) in COLUMNS {
        let own = match title {
            "added p50 ms" => direct.p50_us.map(|us| format!("({:.digits$} whole)", us / 1e3)),
            "added p99 ms" => direct.p99_us.map(|us| format!("({:.digits$} whole)", us / 1e3)),
            "requests/s" => direct.per_s.map(|rate| format!("{rate:.0}")),
            _ => None,
        };
        let _ = write!(text, " | {:>16}", own.unwrap_or_default());
    }
    for figures in all {
        let _ = write!(text, "\n{:<14}", figures.name);
        for (_, digits, get) in COLUMNS {
            let own = get(figures, direct);
            let base = nginx.and_then(|nginx| get(nginx, direct));
            let cell = match (own, base) {
                (Some(own), Some(base)) if base > 0.0 => {
                    format!("{own:.digits$} ({:>4.1}x)", own / base)
                }
                (Some(own), _) => format!("{own:.digits$}"),
                (None, _) => "-".to_owned(),
            };
            let _ = write!(text, " | {cell:>16}");
        }
    }
    text.push('\n');
    text
}

/// The same as JSON.
pub fn json(all: &[Figures], direct: &Figures) -> Value {
    let one = |figures: &Figures| {
        let mut map = serde_json::Map::new();
        map.insert("name".into(), figures.name.clone().into());
        for (title, _, get) in COLUMNS {
            map.insert(title.into(), json!(get(figures, direct)));
        }
        map.insert("p50_us".into(), json!(figures.p50_us));
        map.insert("p99_us".into(), json!(figures.p99_us));
        Value::Object(map)
    };
    json!({ "direct": one(direct), "gateways": all.iter().map(one).collect::<Vec<_>>() })
}

/// The middle of some figures.
pub fn median(mut figures: Vec<f64>) -> Option<f64> {
    figures.sort_by(f64::total_cmp);
    figures.get(figures.len() / 2).copied()
}

/// The value below which this share of the times lies.
pub fn share(times: &mut [f64], share: f64) -> f64 {
    times.sort_by(f64::total_cmp);
    let at = (times.len() as f64 * share) as usize;
    times.get(at.min(times.len().saturating_sub(1))).copied().unwrap_or_default()
}
