//! The GPU part of the report: one table for the status, one block for each card where they are all that
//! is asked for.

use super::{Table, gib, list, sentence, show, shown, span, text, whole};
use serde_json::Value;
use std::fmt::Write;

/// What needs a person, one line each.
pub(super) fn troubles(report: &Value) -> Vec<String> {
    let gpus = report.get("gpus").unwrap_or(&Value::Null);
    let mut lines: Vec<String> =
        list(gpus, "list").iter().filter_map(|gpu| trouble(report, gpu)).collect();
    match text(gpus, "state") {
        "stale" => {
            let age = gpus.get("age_s").and_then(Value::as_f64).unwrap_or(0.0);
            lines.push(format!("GPUs: the driver has not answered for {}", span(age)));
        }
        // A host that never had a driver lacks nothing; one that had one does.
        "no_driver" if !list(gpus, "list").is_empty() => {
            lines.push(format!("GPUs: {}", sentence(text(gpus, "why"))));
        }
        _ => {}
    }
    lines.extend(list(report, "servers").iter().filter_map(|server| unknown_gpus(gpus, server)));
    lines
}

fn trouble(report: &Value, gpu: &Value) -> Option<String> {
    let condition = text(gpu, "condition");
    // An unknown card is told of once for all, above; a degraded one works.
    if !matches!(condition, "draining" | "lost" | "suspect") {
        return None;
    }
    let mut line = format!("{}: {}", name(gpu), condition.to_uppercase());
    if let Some(reason) = list(gpu, "reasons").first().and_then(Value::as_str) {
        let _ = write!(line, ": {}", sentence(reason));
    }
    if let Some(needs) = needs(gpu) {
        let _ = write!(line, "; NEEDS {needs}");
    }
    let servers = stopped(report, gpu);
    if !servers.is_empty() && condition != "suspect" {
        let _ = write!(line, "; nothing new goes to {servers}");
    }
    Some(line)
}

fn name(gpu: &Value) -> String {
    let part = if gpu.get("mig").is_some() { "MIG device of GPU" } else { "GPU" };
    // A card that the driver does not list has no name any more, perhaps never had an index.
    let who = Some(text(gpu, "name")).filter(|name| !name.is_empty() && *name != "-");
    format!("{part} {} ({})", show(whole(gpu, "/index")), shown(who.unwrap_or(text(gpu, "uuid"))))
}

/// The servers on it that get nothing new: with `gpu.drain = false` none, whatever the card has.
fn stopped(report: &Value, gpu: &Value) -> String {
    let is_stopped = |name: &&str| {
        let mut all = list(report, "servers").iter();
        all.any(|server| text(server, "name") == *name && server.get("stopped").is_some())
    };
    let names = list(gpu, "servers").iter().filter_map(Value::as_str);
    names.filter(is_stopped).map(shown).collect::<Vec<_>>().join(", ")
}

/// GPUs that a server's entry names and of which nobody ever heard: no fault of them would stop it.
fn unknown_gpus(gpus: &Value, server: &Value) -> Option<String> {
    if text(gpus, "state") != "ok" || server.pointer("/on/how")?.as_str()? != "configured" {
        return None;
    }
    let known = |uuid: &str| list(gpus, "list").iter().any(|gpu| text(gpu, "uuid") == uuid);
    let named = server.pointer("/on/gpus")?.as_object()?.keys();
    let unknown: Vec<String> = named.filter(|uuid| !known(uuid)).map(|uuid| shown(uuid)).collect();
    (!unknown.is_empty()).then(|| {
        let name = shown(text(server, "name"));
        format!("server {name}: its entry names {}, which is no GPU here", unknown.join(", "))
    })
}

/// What the operator must do, as a command reads.
fn needs(gpu: &Value) -> Option<&'static str> {
    match text(gpu, "needs") {
        "restart_server" => Some("restart of its model servers"),
        "reset_gpu" => Some("GPU reset"),
        "reboot_host" => Some("reboot of the host"),
        "service" => Some("a look at the hardware"),
        _ => None,
    }
}

fn servers(gpu: &Value) -> String {
    let names: Vec<&str> = list(gpu, "servers").iter().filter_map(Value::as_str).collect();
    names.join(", ")
}

fn watts(gpu: &Value, key: &str) -> String {
    let watts = gpu.get(key).and_then(Value::as_f64);
    watts.map_or_else(|| "-".to_owned(), |watts| format!("{watts:.0}"))
}

/// The heading's end, and whether there is anything below it.
fn heading(gpus: &Value) -> (String, bool) {
    match text(gpus, "state") {
        "off" => ("not read (gpu.enabled = false)".to_owned(), false),
        "ok" => (format!("driver {}", shown(text(gpus, "driver_version"))), true),
        "stale" => {
            let age = gpus.get("age_s").and_then(Value::as_f64).unwrap_or(0.0);
            let driver = shown(text(gpus, "driver_version"));
            (format!("driver {driver}, READINGS {} OLD", span(age)), true)
        }
        _ => (sentence(text(gpus, "why")), false),
    }
}

/// The status's table.
pub(super) fn write(report: &Value, out: &mut String) {
    let gpus = report.get("gpus").unwrap_or(&Value::Null);
    let (heading, more) = heading(gpus);
    let _ = writeln!(out, "\nGPUS  {heading}");
    if !more {
        return;
    }
    let mut table = Table::new(&[
        "#",
        "NAME",
        "STATE",
        "MEMORY GiB",
        "BUSY %",
        "POWER W",
        "TEMP C",
        "HELD BY (GiB)",
        "UUID",
    ]);
    for gpu in list(gpus, "list") {
        let used = gib(whole(gpu, "/memory_used_bytes"));
        table.row([
            show(whole(gpu, "/index")),
            text(gpu, "name").to_owned(),
            text(gpu, "condition").to_owned(),
            format!("{used} of {}", gib(whole(gpu, "/memory_total_bytes"))),
            show(whole(gpu, "/utilisation_percent")),
            format!("{} of {}", watts(gpu, "power_w"), watts(gpu, "power_limit_w")),
            show(whole(gpu, "/temperature_c")),
            holders_short(gpu),
            text(gpu, "uuid").to_owned(),
        ]);
    }
    table.write(out);
    for line in found(gpus).lines() {
        let _ = writeln!(out, "  {line}");
    }
}

/// Who holds memory, the largest first, without what the driver keeps.
pub(super) fn holders_short(gpu: &Value) -> String {
    let Some(holders) = gpu.get("holders").and_then(Value::as_array) else {
        let processes = gpu.get("processes").and_then(Value::as_array);
        return processes.map_or_else(|| "-".to_owned(), |all| format!("{} processes", all.len()));
    };
    let held = holders.iter().filter(|holder| text(holder, "owner") != "driver");
    let one = |holder: &Value| format!("{} {}", owner(holder), gib(whole(holder, "/memory")));
    let all: Vec<String> = held.map(one).collect();
    if all.is_empty() && whole(gpu, "/memory_used_bytes").is_none() {
        // It does not answer: nobody is seen there, which is not the same.
        return "-".to_owned();
    }
    if all.is_empty() { "nobody".to_owned() } else { all.join(", ") }
}

fn owner(holder: &Value) -> String {
    match text(holder, "owner") {
        "server" => shown(text(holder, "server")),
        "driver" => "(driver)".to_owned(),
        "shared" => {
            let servers: Vec<&str> =
                list(holder, "servers").iter().filter_map(Value::as_str).collect();
            shown(&servers.join(" or "))
        }
        _ => {
            let place = ["unit", "container"].into_iter().find_map(|key| holder.get(key)?.as_str());
            let program = shown(text(holder, "name"));
            match place {
                Some(place) => format!("{program} [{}]", shown(place)),
                None => program,
            }
        }
    }
}

// === One block for each card ===

/// The whole report of the cards, for people.
pub fn gpus(gpus: &Value) -> String {
    let mut out = String::new();
    let (heading, more) = heading(gpus);
    let nvml = gpus.get("nvml_version").and_then(Value::as_str);
    let nvml = nvml.map_or_else(String::new, |nvml| format!(", NVML {}", shown(nvml)));
    let _ = writeln!(out, "{heading}{nvml}");
    if more && list(gpus, "list").is_empty() {
        out.push_str("The driver lists no GPU.\n");
    }
    for gpu in list(gpus, "list") {
        block(gpu, &mut out);
    }
    out.push_str(&found(gpus));
    out
}

/// Model servers on the cards that get no requests, with what would change that.
fn found(gpus: &Value) -> String {
    let mut lines = String::new();
    for server in list(gpus, "found_servers") {
        let models: Vec<&str> = list(server, "models").iter().filter_map(Value::as_str).collect();
        let _ = writeln!(
            lines,
            "found: {} at {}:{} (pid {}) serves {}; it has no entry in the configuration",
            shown(text(server, "kind")),
            shown(text(server, "host")),
            show(whole(server, "/port")),
            show(whole(server, "/pid")),
            shown(&models.join(", ")),
        );
    }
    lines
}

fn block(gpu: &Value, out: &mut String) {
    let _ = writeln!(
        out,
        "\n{}  {}  {}  {}",
        name(gpu),
        text(gpu, "condition").to_uppercase(),
        shown(text(gpu, "uuid")),
        shown(gpu.get("pci_bus_id").and_then(Value::as_str).unwrap_or("")),
    );
    for reason in list(gpu, "reasons").iter().filter_map(Value::as_str) {
        let _ = writeln!(out, "  !! {}", sentence(reason));
    }
    if let Some(needs) = needs(gpu) {
        let _ = writeln!(out, "  !! needs {needs}");
    }
    let lines = [
        ("memory", memory(gpu)),
        ("busy", busy(gpu)),
        ("heat", heat(gpu)),
        ("clocks", clocks(gpu)),
        ("errors", errors(gpu)),
        ("links", links(gpu)),
        ("modes", modes(gpu)),
        ("servers", servers(gpu)),
    ];
    for (name, line) in lines {
        if !line.is_empty() {
            let _ = writeln!(out, "  {name:<8} {line}");
        }
    }
    holders(gpu, out);
}

fn number(value: &Value, pointer: &str) -> Option<String> {
    whole(value, pointer).map(|number| number.to_string())
}

/// The parts that are known, in one line.
fn joined<const N: usize>(parts: [Option<String>; N]) -> String {
    parts.into_iter().flatten().collect::<Vec<_>>().join(", ")
}

fn memory(gpu: &Value) -> String {
    let size = |key: &str| whole(gpu, key).map(|bytes| gib(Some(bytes)));
    joined([
        size("/memory_used_bytes").map(|used| format!("{used} GiB used")),
        size("/memory_free_bytes").map(|free| format!("{free} free")),
        size("/memory_reserved_bytes").map(|kept| format!("{kept} reserved")),
        size("/memory_total_bytes").map(|all| format!("{all} in all")),
        size("/bar1_used_bytes")
            .zip(size("/bar1_total_bytes"))
            .map(|(used, all)| format!("BAR1 {used} of {all}")),
    ])
}

fn busy(gpu: &Value) -> String {
    let energy = gpu.get("energy_j").and_then(Value::as_f64);
    joined([
        number(gpu, "/utilisation_percent").map(|percent| format!("{percent} %")),
        number(gpu, "/memory_utilisation_percent").map(|percent| format!("memory {percent} %")),
        gpu.get("power_w")
            .and_then(Value::as_f64)
            .map(|_| format!("{} of {} W", watts(gpu, "power_w"), watts(gpu, "power_limit_w"))),
        energy.map(|joules| format!("{:.0} kJ since the driver's start", joules / 1e3)),
    ])
}

fn heat(gpu: &Value) -> String {
    joined([
        number(gpu, "/temperature_c").map(|degrees| format!("{degrees} C")),
        number(gpu, "/memory_temperature_c").map(|degrees| format!("memory {degrees} C")),
        number(gpu, "/slowdown_c").map(|degrees| format!("slows down at {degrees} C")),
        number(gpu, "/shutdown_c").map(|degrees| format!("switches off at {degrees} C")),
    ])
}

fn clocks(gpu: &Value) -> String {
    let pair = |now: &str, most: &str| {
        let now = number(gpu, now)?;
        Some(number(gpu, most).map_or_else(|| now.clone(), |most| format!("{now} of {most}")))
    };
    let why: Vec<&str> = list(gpu, "throttle").iter().filter_map(Value::as_str).collect();
    joined([
        pair("/clocks/sm_mhz", "/clocks/sm_max_mhz").map(|clock| format!("SM {clock} MHz")),
        pair("/clocks/memory_mhz", "/clocks/memory_max_mhz")
            .map(|clock| format!("memory {clock} MHz")),
        (!why.is_empty()).then(|| format!("held back by {}", why.join(" and "))),
    ])
}

fn errors(gpu: &Value) -> String {
    let ecc = |key: &str| number(gpu, &format!("/ecc/{key}"));
    let flag = |pointer: &str, says: &str| {
        (gpu.pointer(pointer) == Some(&Value::Bool(true))).then(|| says.to_owned())
    };
    joined([
        ecc("corrected_volatile").map(|errors| format!("ECC {errors} corrected")),
        ecc("uncorrected_volatile").map(|errors| format!("{errors} not correctable")),
        ecc("uncorrected_aggregate").map(|errors| format!("{errors} not correctable in its life")),
        whole(gpu, "/remapped_rows/correctable")
            .zip(whole(gpu, "/remapped_rows/uncorrectable"))
            .map(|(one, other)| format!("{} rows remapped", one + other)),
        flag("/remapped_rows/pending", "rows wait for a reset"),
        flag("/remapped_rows/failed", "NO SPARE ROW LEFT"),
        whole(gpu, "/retired_pages/double_bit").map(|pages| {
            let single = whole(gpu, "/retired_pages/single_bit").unwrap_or(0);
            format!("{} pages retired", pages + single)
        }),
        flag("/retired_pages/pending", "pages wait for a reset"),
        recovery(gpu),
    ])
}

fn recovery(gpu: &Value) -> Option<String> {
    let said = gpu.get("recovery").filter(|said| !said.is_null())?;
    let word = said.as_str().map_or_else(|| said.to_string(), str::to_owned);
    (word != "none").then(|| format!("the driver asks for: {}", word.replace('_', " ")))
}

fn links(gpu: &Value) -> String {
    let links = list(gpu, "nvlinks");
    let up = links.iter().filter(|link| link.get("active") == Some(&Value::Bool(true))).count();
    let errors = |link: &Value| {
        ["crc_errors", "replay_errors", "recovery_errors"]
            .iter()
            .filter_map(|key| link.get(*key)?.as_u64())
            .sum::<u64>()
    };
    let pcie = |key: &str| show(whole(gpu, &format!("/pcie/{key}")));
    joined([
        whole(gpu, "/pcie/generation").map(|now| {
            let (most, width, widest) = (pcie("generation_max"), pcie("width"), pcie("width_max"));
            format!("PCIe generation {now} of {most}, {width} of {widest} lanes")
        }),
        number(gpu, "/pcie/replays").map(|replays| format!("{replays} sent again")),
        (!links.is_empty()).then(|| {
            let errors: u64 = links.iter().map(errors).sum();
            format!("NVLink {up} of {} up, {errors} errors", links.len())
        }),
    ])
}

fn modes(gpu: &Value) -> String {
    let flag = |key: &str, name: &str| {
        let on = gpu.pointer(&format!("/modes/{key}"))?.as_bool()?;
        Some(format!("{name} {}", if on { "on" } else { "off" }))
    };
    joined([
        gpu.pointer("/modes/compute").and_then(Value::as_str).map(|mode| format!("compute {mode}")),
        flag("persistence", "persistence"),
        flag("mig", "MIG"),
    ])
}

fn holders(gpu: &Value, out: &mut String) {
    let pids = |list: &[Value]| {
        let pids: Vec<String> = list.iter().take(PIDS_SHOWN).map(Value::to_string).collect();
        let more = list.len().saturating_sub(PIDS_SHOWN);
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        if pids.is_empty() { String::new() } else { format!("  pid {}{more}", pids.join(", ")) }
    };
    let memory = |value: Option<u64>| value.map_or_else(|| "?".to_owned(), |_| gib(value));
    let mut rows: Vec<(String, String, String)> = Vec::new();
    if let Some(holders) = gpu.get("holders").and_then(Value::as_array) {
        for holder in holders {
            let held = memory(whole(holder, "/memory"));
            rows.push((owner(holder), held, pids(list(holder, "pids"))));
        }
    } else {
        for process in list(gpu, "processes") {
            let pid = process.get("pid").cloned().into_iter().collect::<Vec<_>>();
            let held = memory(whole(process, "/memory"));
            rows.push((shown(text(process, "name")), held, pids(&pid)));
        }
    }
    if let Some(bytes) = whole(gpu, "/untold_bytes") {
        rows.push(("(those with ?, together)".to_owned(), gib(Some(bytes)), String::new()));
    }
    let width = rows.iter().map(|(who, ..)| who.chars().count()).max().unwrap_or(0);
    for (at, (who, held, pids)) in rows.iter().enumerate() {
        let head = if at == 0 { "held by" } else { "" };
        let _ = writeln!(out, "  {head:<8} {who:<width$} {held:>7} GiB{pids}");
    }
}

/// Process ids named in one line.
const PIDS_SHOWN: usize = 8;
