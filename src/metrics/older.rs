//! The page in the text format that readers know who ask for no other.

use std::collections::HashMap;

/// The page in the older text format (0.0.4), for readers that do not ask for OpenMetrics: there a
/// counter's family carries its suffix, and there are no units, infos or end mark.
pub fn older_text(page: &str) -> String {
    let types: HashMap<&str, &str> =
        page.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' ')).collect();
    let mut text = String::with_capacity(page.len());
    for line in page.lines() {
        let comment = line.strip_prefix("# ").map(|rest| rest.splitn(3, ' ').collect::<Vec<_>>());
        match comment.as_deref() {
            None => text.push_str(line),
            Some([word @ ("HELP" | "TYPE"), name, rest]) => {
                let (suffix, kind) = match types.get(name) {
                    Some(&"counter") => ("_total", "counter"),
                    Some(&"info") => ("_info", "gauge"),
                    other => ("", other.copied().unwrap_or("untyped")),
                };
                let rest = if *word == "TYPE" { kind } else { rest };
                text.push_str(&format!("# {word} {name}{suffix} {rest}"));
            }
            Some(_) => continue,
        }
        text.push('\n');
    }
    text
}
