//! The status report as a tired person reads it: what is wrong first, then everything, in plain words.

pub mod explain;
mod gpus;
#[cfg(test)]
mod gpus_tests;
mod screening;

pub use gpus::gpus;

use serde_json::Value;
use std::fmt::Write;

/// Columns, widened to their longest cell.
struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    fn new(head: &[&str]) -> Self {
        Self { rows: vec![head.iter().map(|cell| (*cell).to_owned()).collect()] }
    }

    fn row<const N: usize>(&mut self, cells: [String; N]) {
        self.cells(cells);
    }

    fn cells(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(cells.into_iter().map(|cell| shown(&cell)).collect());
    }

    fn write(&self, out: &mut String) {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let widths: Vec<usize> = (0..columns)
            .map(|column| {
                let cells = self.rows.iter().filter_map(|row| row.get(column));
                cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
            })
            .collect();
        for row in &self.rows {
            let mut line = String::from(" ");
            for (cell, width) in row.iter().zip(&widths) {
                let _ = write!(line, " {cell:<width$} ");
            }
            out.push_str(line.trim_end());
            out.push('\n');
        }
    }
}

/// Widest cell. Names come from model servers, which may say anything.
const CELL_MAX: usize = 60;

/// Longest sentence on a line of its own.
const SENTENCE_MAX: usize = 250;

/// A text from outside as it may stand on a terminal: short, and without characters that move the
/// cursor, hide or reverse what follows.
fn shown(text: &str) -> String {
    cut(text, CELL_MAX)
}

/// A sentence from outside: cut only where it would fill the screen.
fn sentence(text: &str) -> String {
    cut(text, SENTENCE_MAX)
}

fn cut(text: &str, most: usize) -> String {
    let plain = |letter: char| {
        let hides = matches!(letter, '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}');
        if letter.is_control() || hides { '?' } else { letter }
    };
    let mut shown: String = text.chars().take(most).map(plain).collect();
    if text.chars().nth(most).is_some() {
        shown.push('\u{2026}');
    }
    shown
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value.get(key).and_then(Value::as_str).unwrap_or("-")
}

fn whole(value: &Value, pointer: &str) -> Option<u64> {
    value.pointer(pointer).and_then(Value::as_u64)
}

fn show(number: Option<u64>) -> String {
    number.map_or_else(|| "-".to_owned(), |number| number.to_string())
}

fn list<'a>(value: &'a Value, key: &str) -> &'a [Value] {
    value.get(key).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

/// `3 s`, `12 min`, `5 h 2 min`, `3 d 4 h`.
pub fn span(seconds: f64) -> String {
    let whole = seconds.max(0.0) as u64;
    match whole {
        0..60 => format!("{whole} s"),
        60..3600 => format!("{} min", whole / 60),
        3600..86_400 => format!("{} h {} min", whole / 3600, whole % 3600 / 60),
        _ => format!("{} d {} h", whole / 86_400, whole % 86_400 / 3600),
    }
}

fn gib(bytes: Option<u64>) -> String {
    bytes.map_or_else(
        || "-".to_owned(),
        |bytes| format!("{:.1}", bytes as f64 / (1u64 << 30) as f64),
    )
}

/// What is said of one server in a word or two, and whether it needs a person.
fn server_state(server: &Value) -> (String, bool) {
    let flag = |key: &str| server.get(key).and_then(Value::as_bool).unwrap_or(false);
    let state = server.pointer("/health/state").and_then(Value::as_str).unwrap_or("unknown");
    let why = server.pointer("/health/why").and_then(Value::as_str);
    let with_why = |word: &str| why.map_or_else(|| word.to_owned(), |why| format!("{word}: {why}"));
    match state {
        "down" => (with_why("DOWN"), true),
        _ if flag("drained") => ("drained by operator".to_owned(), false),
        "starting" => (with_why("starting"), false),
        "unknown" => ("not asked yet".to_owned(), false),
        _ if server.get("stopped").is_some() => {
            (format!("STOPPED: {}", text(server, "stopped")), true)
        }
        _ if server.get("hung").is_some() => {
            let why = server.get("hung").and_then(Value::as_str).unwrap_or_default();
            (format!("HUNG: {why}"), true)
        }
        _ if flag("breaker_open") => {
            ("FAILING: its breaker is open, trials are under way".to_owned(), true)
        }
        _ if flag("usable") => ("up".to_owned(), false),
        _ => ("up, resting or readings too old".to_owned(), false),
    }
}

/// The whole report.
pub fn status(report: &Value) -> String {
    let mut out = String::new();
    let number = |key: &str| report.get(key).and_then(Value::as_f64).unwrap_or(0.0);
    let _ = writeln!(
        out,
        "berthd {}, {}, up {}, pid {}, callers at {}",
        text(report, "version"),
        text(report, "state"),
        span(number("uptime_s")),
        show(whole(report, "/pid")),
        text(report, "data"),
    );
    for trouble in troubles(report) {
        let _ = writeln!(out, "!! {trouble}");
    }
    gpus::write(report, &mut out);
    servers(report, &mut out);
    queue(report, &mut out);
    models(report, &mut out);
    screening::write(report, &mut out);
    totals(report, &mut out);
    refusals(report, &mut out);
    out
}

fn troubles(report: &Value) -> Vec<String> {
    // A sick card stands before the servers that it takes down.
    let mut troubles = gpus::troubles(report);
    troubles.extend(list(report, "servers").iter().filter_map(|server| {
        let (state, trouble) = server_state(server);
        let line = || format!("server {}: {}", shown(text(server, "name")), sentence(&state));
        trouble.then(line)
    }));
    troubles.extend(list(report, "models").iter().flat_map(miscounted));
    troubles.extend(screening::troubles(report));
    let usable =
        list(report, "servers").iter().any(|s| s.get("usable") == Some(&Value::Bool(true)));
    if list(report, "servers").is_empty() {
        troubles.push(
            "no model servers: configure [[servers]], or start one on its default port".to_owned(),
        );
    } else if !usable {
        troubles.push("no server takes requests now".to_owned());
    }
    troubles
}

/// The servers that count a model's input otherwise than we do.
fn miscounted(model: &Value) -> Vec<String> {
    // An alias would only say it again.
    let servers = match (model.get("alias_of"), model.get("counting")) {
        (None, Some(counting)) => list(counting, "servers"),
        _ => &[],
    };
    let wrong = |server: &&Value| matches!(text(server, "state"), "estimated" | "drifted");
    let say = |server: &Value| {
        let fingerprint = model.pointer("/counting/fingerprint").and_then(Value::as_str);
        format!(
            "model {} on {}: input count {}: {} (files {})",
            shown(text(model, "name")),
            shown(text(server, "server")),
            text(server, "state"),
            text(server, "reason"),
            fingerprint.unwrap_or("-"),
        )
    };
    servers.iter().filter(wrong).map(say).collect()
}

fn servers(report: &Value, out: &mut String) {
    out.push_str("\nSERVERS\n");
    let mut table = Table::new(&[
        "NAME",
        "KIND",
        "STATE",
        "PLACED",
        "TOKENS PLACED OF",
        "OWES",
        "ITS OWN RUN/WAIT",
        "KV %",
    ]);
    for server in list(report, "servers") {
        let ratio = server.pointer("/load/kv_used_ratio").and_then(Value::as_f64);
        table.row([
            text(server, "name").to_owned(),
            text(server, "kind").to_owned(),
            server_state(server).0,
            show(whole(server, "/placed_requests")),
            format!(
                "{} of {}",
                show(whole(server, "/placed_tokens")),
                show(whole(server, "/capacity/kv_tokens"))
            ),
            server
                .pointer("/flow/debt_s")
                .and_then(Value::as_f64)
                .map_or_else(|| "-".to_owned(), |debt| format!("{debt:.1} s")),
            format!(
                "{}/{}",
                show(whole(server, "/load/running")),
                show(whole(server, "/load/waiting"))
            ),
            ratio.map_or_else(|| "-".to_owned(), |ratio| format!("{:.0}", ratio * 100.0)),
        ]);
    }
    table.write(out);
}

fn queue(report: &Value, out: &mut String) {
    let tiers = ["system", "interactive", "standard", "batch"];
    let waiting: Vec<String> = tiers
        .iter()
        .map(|tier| format!("{tier} {}", show(whole(report, &format!("/queue/{tier}")))))
        .collect();
    let _ = writeln!(
        out,
        "\nREQUESTS  {} running; waiting: {}; {} connections",
        show(whole(report, "/running")),
        waiting.join(", "),
        show(whole(report, "/connections")),
    );
}

fn models(report: &Value, out: &mut String) {
    out.push_str("\nMODELS\n");
    let mut table = Table::new(&["NAME", "WINDOW", "INPUT COUNT", "SERVERS"]);
    for model in list(report, "models") {
        let name = match model.get("alias_of").and_then(Value::as_str) {
            Some(real) => format!("{} -> {real}", text(model, "name")),
            None => text(model, "name").to_owned(),
        };
        let servers: Vec<&str> = list(model, "servers").iter().filter_map(Value::as_str).collect();
        table.row([
            name,
            show(whole(model, "/context_window")),
            text(model, "token_count").to_owned(),
            servers.join(", "),
        ]);
    }
    table.write(out);
}

fn totals(report: &Value, out: &mut String) {
    if list(report, "totals").is_empty() {
        return;
    }
    out.push_str("\nUSE SINCE START\n");
    let number = |total: &Value, key: &str| total.get(key).and_then(Value::as_f64);
    let joules = list(report, "totals").iter().any(|total| number(total, "joules") > Some(0.0));
    let mut head = vec!["TENANT", "MODEL", "REQUESTS", "INPUT TOKENS", "OUTPUT TOKENS"];
    head.extend(joules.then_some(["JOULES", "GPU SECONDS", "COST"]).into_iter().flatten());
    let mut table = Table::new(&head);
    for total in list(report, "totals") {
        let shown = |key, digits: usize| {
            number(total, key).map_or_else(|| "-".to_owned(), |number| format!("{number:.digits$}"))
        };
        let mut cells = vec![
            text(total, "tenant").to_owned(),
            text(total, "model").to_owned(),
            show(whole(total, "/requests")),
            show(whole(total, "/input_tokens")),
            show(whole(total, "/output_tokens")),
        ];
        if joules {
            cells.extend([shown("joules", 0), shown("gpu_seconds", 1), shown("cost", 4)]);
        }
        table.cells(cells);
    }
    table.write(out);
}

/// Refusals shown; `--json` has all that are kept.
const REFUSALS_SHOWN: usize = 8;

fn refusals(report: &Value, out: &mut String) {
    let all = list(report, "recent_refusals");
    if all.is_empty() {
        out.push_str("\nRECENT REFUSALS  none\n");
        return;
    }
    let _ = writeln!(
        out,
        "\nRECENT REFUSALS  newest first, {} of {}",
        all.len().min(REFUSALS_SHOWN),
        all.len()
    );
    let mut table = Table::new(&["AGO", "TENANT", "MODEL", "REASON", "REQUEST"]);
    for refusal in all.iter().rev().take(REFUSALS_SHOWN) {
        table.row([
            span(refusal.get("ago_s").and_then(Value::as_f64).unwrap_or(0.0)),
            text(refusal, "tenant").to_owned(),
            text(refusal, "model").to_owned(),
            text(refusal, "reason").to_owned(),
            text(refusal, "request").to_owned(),
        ]);
    }
    table.write(out);
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn trouble_stands_in_the_second_line() {
        let report = json!({
            "version": "1", "state": "serving", "uptime_s": 90.0, "pid": 7, "data": "127.0.0.1:1",
            "gpus": {"state": "no_driver", "why": "no NVIDIA driver", "list": []},
            "servers": [
                {"name": "a", "kind": "vllm", "usable": true, "health": {"state": "up"}},
                {"name": "b", "kind": "vllm", "usable": false, "health": {"state": "down", "why": "refused"}},
            ],
            "queue": {"system": 0, "interactive": 2, "standard": 0, "batch": 0},
            "running": 3, "connections": 4,
        });
        let text = status(&report);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "berthd 1, serving, up 1 min, pid 7, callers at 127.0.0.1:1");
        assert_eq!(lines[1], "!! server b: DOWN: refused");
        assert!(text.contains("GPUS  no NVIDIA driver"));
        assert!(text.contains("3 running; waiting: system 0, interactive 2"));
        assert!(text.contains("RECENT REFUSALS  none"));
    }

    #[test]
    fn a_server_that_counts_otherwise_stands_on_top_with_both_numbers() {
        let reason = "an answer of chat was counted as 13 here and 16 by the server";
        let on = json!([
            {"server": "a", "state": "exact", "reason": "14 probes agree"},
            {"server": "b", "state": "drifted", "reason": reason, "ours": 13, "theirs": 16},
        ]);
        let counting = json!({"fingerprint": "4158552a0fe84e7f", "servers": on});
        let model = json!({"name": "m", "token_count": "drifted", "counting": counting});
        let mut alias = model.clone();
        alias["name"] = json!("also-m");
        alias["alias_of"] = json!("m");
        let server = json!({"name": "b", "usable": true, "health": {"state": "up"}});
        let text = status(&json!({"servers": [server], "models": [model, alias]}));
        let troubles: Vec<&str> = text.lines().filter(|line| line.starts_with("!!")).collect();
        let line =
            format!("!! model m on b: input count drifted: {reason} (files 4158552a0fe84e7f)");
        assert_eq!(troubles, [line]);
        assert!(text.contains("also-m -> m"));
    }

    #[test]
    fn names_from_servers_cannot_forge_lines_or_break_the_table() {
        let long = "x".repeat(100_000);
        let forged = "\u{1b}[2J\n!! server ok: HACKED\u{202e}";
        let server = |name: &str| json!({"name": name, "kind": "vllm", "usable": true, "health": {"state": "down", "why": forged}});
        let report = json!({"servers": [server(&long), server(forged)], "gpus": {"state": "off"}});
        let text = status(&report);
        assert!(!text.contains('\u{1b}') && !text.contains('\u{202e}'), "{text:?}");
        assert!(!text.lines().any(|line| line.starts_with("!! server ok")), "{text}");
        assert!(text.lines().all(|line| line.chars().count() < 400));
    }

    #[test]
    fn spans_read_like_speech() {
        assert_eq!(span(59.9), "59 s");
        assert_eq!(span(3700.0), "1 h 1 min");
        assert_eq!(span(90_000.0), "1 d 1 h");
    }
}
