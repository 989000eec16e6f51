//! Whole files: all problems at once, drop-ins, and the sample file against the code.

use super::{
    load::{Surroundings, read_text},
    *,
};
use std::{collections::BTreeSet, fs, path::Path};

const SAMPLE: &str = include_str!("../../config/berthd.toml");
const DIGEST: &str = "50d858e0985ecc7f60418aaf0cc5ab587f42c2570a884095a9e8ccacd0f6545c";

fn nowhere() -> Surroundings {
    Surroundings { base: PathBuf::from("/nonexistent"), credentials: None, cores: 8 }
}

/// What is wrong with `text`, one line each, without the file's name.
fn told(text: &str) -> Vec<String> {
    let problems = match read_text("t", text, &nowhere()).0 {
        Ok(loaded) => loaded.warnings,
        Err(Problems(problems)) => problems,
    };
    problems.iter().map(|problem| problem.to_string().split_off(2)).collect()
}

fn tenant() -> String {
    format!("[[tenants]]\nname = \"a\"\nkeys_sha256 = [\"{DIGEST}\"]\n")
}

/// Each expectation is the beginning of one problem; all must be there, in order, and no other.
fn expect(text: &str, expected: &[&str]) {
    let told = told(text);
    let fits = told.len() == expected.len()
        && told.iter().zip(expected).all(|(told, expected)| told.starts_with(expected));
    assert!(fits, "given:\n{text}\nexpected: {expected:#?}\ntold: {told:#?}");
}

#[test]
fn an_empty_file_has_every_default_and_one_warning() {
    let loaded = read_text("t", "", &nowhere()).0.unwrap();
    assert_eq!(loaded.warnings.len(), 1);
    assert!(loaded.warnings[0].what.contains("nobody can call"));
    let Settings { listen, relay, breaker, limits, threads, .. } = loaded.settings;
    assert_eq!(listen.data.to_string(), "127.0.0.1:8484");
    assert_eq!(limits.body_max, Bytes::mib(16));
    assert_eq!(relay.attempts_max, 3);
    assert_eq!(breaker.trial_first, Duration::from_millis(250));
    assert_eq!(threads.carry, 2);
    assert_eq!(defaults::carry_threads(17), 4);
}

#[cfg(feature = "candle")]
#[test]
fn all_mistakes_are_told_at_once_with_their_lines() {
    let text = format!(
        r#"colour = "red"
[listen]
data = "localhost"
head_limit = 5
idle_limit_s = "75s"
[queue]
length_max = 0
[[servers]]
name = "one"
kind = "vlm"
[[servers]]
kind = "vllm"
url = "https://h"
[[servers]]
name = "three"
kind = "embedded"
[[tenants]]
name = "a"
keys = ["sk-plain"]
[[tenants]]
name = "b"
keys_sha256 = [
  "{DIGEST}",
  "sk-plain",
]
[[tenants]]
name = "c"
keys_sha256 = ["{DIGEST}"]
tier = "urgent"
"#
    );
    expect(
        &text,
        &[
            "1: colour: unknown key — remove it, or use one of: listen,",
            "3: listen.data: \"localhost\" is not an IP address with a port — write it like",
            "4: listen.head_limit: unknown key — write `head_limit_s`",
            "5: listen.idle_limit_s: expected a number of seconds, without a unit, found text",
            "7: queue.length_max: 0 is out of range — choose a number from 1 to",
            "10: servers[0].kind: unknown value \"vlm\" — write \"vllm\"",
            "11: servers[1].name: missing — add name",
            "13: servers[1].url: https is not supported",
            "14: servers[2].folder: missing — add folder",
            "17: tenants[0].keys_sha256: missing — make a key",
            "19: tenants[0].keys: plain keys are not kept in configuration — make a key",
            "24: tenants[1].keys_sha256[1]: not a SHA-256 digest",
            "28: tenants[2].keys_sha256[0]: the same digest belongs to tenant `b` at t:23",
            "29: tenants[2].tier: unknown value \"urgent\" — use one of \"interactive\",",
        ],
    );
    assert!(!told(&text).join("\n").contains("sk-plain"), "what may be a key must not be repeated");
}

#[test]
fn contradictions_are_told() {
    for (text, expected) in [
        (
            "[listen]\nadmin = \"127.0.0.1:8484\"",
            "2: listen.admin: 127.0.0.1:8484 is the address of",
        ),
        ("[listen]\ndata = \"0.0.0.0:8484\"", "2: listen.data: 0.0.0.0:8484 is not a loopback"),
        ("[listen]\nsocket = \"run/x\"", "2: listen.socket: \"run/x\" is not an absolute path"),
        ("[limits]\nevent_max_mib = 65", "2: limits.event_max_mib: one event may be larger"),
        ("[queue]\nlength_max = 1", "1: queue.tenant_share_percent: 50 % of 1 places"),
        ("[queue]\nwait_max_s = 1", "1: queue.no_server_wait_s: longer than any request waits"),
        ("[relay]\nconnect_limit_s = 121", "2: relay.connect_limit_s: longer than a whole attempt"),
        ("[breaker]\ntrial_first_s = 3", "2: breaker.trial_first_s: the first pause is longer"),
        (
            "[gpu]\nhung_after_s = 4",
            "2: gpu.hung_after_s: the GPUs are read too seldom to tell a hang in this time",
        ),
        (
            "[probe]\nstale_after_s = 1",
            "2: probe.stale_after_s: every reading would be out of date",
        ),
        ("[gpu]\nnvml_library = \"x.so\"", "2: gpu.nvml_library: \"x.so\" is not an absolute path"),
        ("listen = 5", "1: listen: expected a section, [listen], found a whole number"),
        ("servers = 5", "1: servers: expected entries, each under [[servers]], found a whole"),
        ("servers = [5]", "1: servers[0]: expected an entry, found a whole number"),
        (
            "[relay]\nhead_limit_s = 3",
            "2: relay.head_limit_s: unknown key — move it to the section [listen]",
        ),
        (
            "[[models]]\nname = \"m\"\ncontext_window_tokens = 256",
            "3: models[0].context_window_tokens: an output of 256 tokens leaves no room",
        ),
        (
            "[[models]]\nname = \"m\"\naliases = [\"n\"]\n[[models]]\nname = \"n\"",
            "5: models[1].name: `n` already names a model at t:3",
        ),
        (
            "[[models]]\nname = \"m\"\naliases = [\"x\", \"x\"]",
            "3: models[0].aliases[1]: `x` stands in the list twice",
        ),
        (
            "[[models]]\nname = \"m\"\n[[models]]\nname = \"m\"",
            "4: models[1].name: `m` already names a model at t:2",
        ),
        (
            "[[servers]]\nname = \"m\"\nkind = \"vllm\"\nurl = \"http://h:1\"\n[[servers]]\nname = \"m\"\nkind = \"vllm\"\nurl = \"http://h:2\"",
            "6: servers[1].name: the name `m` is taken on line 2",
        ),
        (
            "[[models]]\nname = \"m\"\nfolder = \"gone\"",
            "3: models[0].folder: cannot read the folder /nonexistent/gone: ",
        ),
        (
            "[[servers]]\nname = \"a\"\nkind = \"vllm\"\nurl = \"http://127.0.0.1:8484\"",
            "4: servers[0].url: 127.0.0.1:8484 is the daemon's own address",
        ),
        (
            "[[servers]]\nname = \"a\"\nkind = \"vllm\"\nurl = \"http://H:1\"\n[[servers]]\nname = \"b\"\nkind = \"openai\"\nurl = \"http://h:1/\"",
            "8: servers[1].url: h:1 is already a server at t:4",
        ),
        (
            "[[servers]]\nname = \"a\"\nkind = \"vllm\"\nurl = \"http://h:1\"\nfolder = \"x\"",
            "5: servers[0].folder: only an embedded server is loaded from a folder",
        ),
        ("[[servers]]\nname = \"a\"\nkind = \"vllm\"", "1: servers[0].url: missing — add url"),
        (
            "[[servers]]\nname = \"a\"\nurl = \"http://h:1\"",
            "1: servers[0].kind: missing — add kind",
        ),
        (
            "[[servers]]\nname = \"a b\"\nkind = \"vllm\"\nurl = \"http://h:1\"",
            "2: servers[0].name: \"a b\" is not a name",
        ),
        (
            "[[servers]]\nname = \"a\"\nkind = \"vllm\"\nurl = \"http://h:1\"\napi_key = \"sk-1\"",
            "5: servers[0].api_key: plain keys are not kept in configuration",
        ),
        (
            "[[servers]]\nname = \"a\"\nkind = \"vllm\"\nurl = \"http://h:1\"\napi_key_file = \"credential:k\"",
            "5: servers[0].api_key_file: the service manager handed over no credentials",
        ),
        (
            "[[models]]\nname = \"m\"\naliases = [\"n\"]\n[[servers]]\nname = \"a\"\nkind = \"vllm\"\nurl = \"http://h:1\"\nmodels = [\"n\"]",
            "8: servers[0].models: `n` is an alias of `m`",
        ),
        (
            "[[models]]\nname = \"m\"\ncontext_window_tokens = 8192\n[[servers]]\nname = \"a\"\nkind = \"vllm\"\nurl = \"http://h:1\"\nmodels = [\"m\"]\nkv_tokens = 4096",
            "9: servers[0].kv_tokens: 4096 tokens do not hold one full window",
        ),
        (
            "[[servers]]\nname = \"a\"\nkind = \"vllm\"\nurl = \"http://h:1\"\nkv_events = \"tcp://*:5557\"",
            "5: servers[0].kv_events: \"tcp://*:5557\" is no endpoint to connect to",
        ),
        (
            "[[servers]]\nname = \"a\"\nkind = \"llama.cpp\"\nurl = \"http://h:1\"\nkv_events = \"tcp://h:5557\"",
            "5: servers[0].kv_events: a server of this kind publishes no KV events",
        ),
    ] {
        expect(&format!("{text}\n{}", tenant()), &[expected]);
    }
}

#[test]
fn syntax_errors_are_all_told_and_cause_no_noise() {
    let text = format!(
        "[listen]\ndata = 127.0.0.1:8484\nidle_limit_s = 0\n[queue]\nlength_max = = 4\n[log]\nlevel = info\nlevel = \"loud\"\n{}",
        tenant()
    );
    let told = told(&text);
    let lines: BTreeSet<&str> = told.iter().filter_map(|line| line.split(':').next()).collect();
    assert_eq!(lines, BTreeSet::from(["2", "3", "5", "7", "8"]), "{told:#?}");
    for line in &told {
        let semantic = line.starts_with("3: listen.idle_limit_s");
        assert_eq!(semantic, !line.contains("not valid TOML"), "{line}");
    }
}

#[test]
fn drop_ins_override_key_by_key_and_add_entries() {
    let folder = tempfile::tempdir().unwrap();
    let main = folder.path().join("berthd.toml");
    let drop_ins = folder.path().join("berthd.d");
    fs::create_dir(&drop_ins).unwrap();
    let server = |name: &str, port: u16| {
        format!("[[servers]]\nname = \"{name}\"\nkind = \"vllm\"\nurl = \"http://h:{port}\"\n")
    };
    fs::write(
        &main,
        format!(
            "[listen]\nhead_limit_s = 1\nbody_limit_s = 2\n{}{}{}",
            server("a", 1),
            server("b", 2),
            tenant()
        ),
    )
    .unwrap();
    fs::write(drop_ins.join("20-last.toml"), "[listen]\nbody_limit_s = 4\n").unwrap();
    fs::write(
        drop_ins.join("10-first.toml"),
        format!(
            "[listen]\nbody_limit_s = 3\n[[servers]]\nname = \"b\"\nmax_running = 7\n{}",
            server("c", 3)
        ),
    )
    .unwrap();
    fs::write(drop_ins.join(".10-first.toml"), "not toml at all").unwrap();
    fs::write(drop_ins.join("README"), "neither").unwrap();

    let loaded = load(&main).unwrap();
    assert_eq!(loaded.warnings, []);
    assert_eq!(
        loaded.settings.listen.head_limit,
        Duration::from_secs(1),
        "kept from the main file"
    );
    assert_eq!(loaded.settings.listen.body_limit, Duration::from_secs(4), "the last file wins");
    let servers: Vec<(&str, Option<u32>)> = loaded
        .settings
        .servers
        .iter()
        .map(|server| (server.name.as_str(), server.max_running))
        .collect();
    assert_eq!(servers, [("a", None), ("b", Some(7)), ("c", None)]);

    // A fault is told with the file it stands in.
    fs::write(drop_ins.join("30-bad.toml"), "\n[listen]\nhead_limit_s = -1\n").unwrap();
    let problems = load(&main).unwrap_err();
    assert_eq!(problems.0.len(), 1, "{problems}");
    assert!(problems.0[0].at.file.ends_with("berthd.d/30-bad.toml"));
    assert_eq!(problems.0[0].at.line, 3);
}

#[test]
fn files_that_cannot_be_read_are_told() {
    let folder = tempfile::tempdir().unwrap();
    let absent = load(&folder.path().join("berthd.toml")).unwrap_err();
    assert!(absent.0[0].what.contains("cannot read the file"), "{absent}");
    let main = folder.path().join("berthd.toml");
    fs::write(&main, b"[listen]\ndata = \"\xff\"\n").unwrap();
    let told = load(&main).unwrap_err();
    assert_eq!((told.0[0].at.line, told.0[0].what.as_str()), (2, "not UTF-8 text"));
}

#[test]
fn secrets_come_from_files_and_credentials_and_stay_out_of_debug_output() {
    let folder = tempfile::tempdir().unwrap();
    let credentials = folder.path().join("credentials");
    fs::create_dir(&credentials).unwrap();
    fs::write(credentials.join("team"), format!("# old\n\n{DIGEST} # laptop\n")).unwrap();
    fs::write(credentials.join("vllm"), "sk-secret\n").unwrap();
    let surroundings = Surroundings {
        base: folder.path().to_owned(),
        credentials: Some(credentials.clone()),
        cores: 1,
    };
    let text = "[[tenants]]\nname = \"a\"\nkeys_file = \"credential:team\"\n\
        [[servers]]\nname = \"s\"\nkind = \"vllm\"\nurl = \"http://h:1\"\napi_key_file = \"credential:vllm\"\n";
    let loaded = read_text("t", text, &surroundings).0.unwrap();
    assert_eq!(loaded.settings.tenants[0].keys[0][..2], [0x50, 0xd8]);
    assert_eq!(loaded.settings.servers[0].api_key.as_deref(), Some("sk-secret"));
    assert!(!format!("{:?}", loaded.settings).contains("sk-secret"));

    // A file that is not there is told at the line that names it.
    fs::rename(credentials.join("vllm"), credentials.join("other")).unwrap();
    let told = read_text("t", text, &surroundings).0.unwrap_err().to_string();
    assert!(told.starts_with("t:8: servers[0].api_key_file: "), "{told}");
    assert!(told.contains("credentials/vllm: cannot read the file"), "{told}");
    fs::rename(credentials.join("other"), credentials.join("vllm")).unwrap();

    // A bad line is told with the file and line it stands on, and not repeated.
    fs::write(credentials.join("team"), format!("{DIGEST}\nsk-plain\n")).unwrap();
    let told = read_text("t", text, &surroundings).0.unwrap_err();
    assert_eq!(told.0.len(), 1);
    assert!(told.0[0].at.file.ends_with("credentials/team") && told.0[0].at.line == 2, "{told}");
    assert!(!told.to_string().contains("sk-plain"));
}

#[cfg(feature = "candle")]
#[test]
fn an_embedded_server_needs_its_files() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("config.json"), "{}").unwrap();
    let surroundings = Surroundings { base: folder.path().to_owned(), credentials: None, cores: 1 };
    let text =
        format!("[[servers]]\nname = \"s\"\nkind = \"embedded\"\nfolder = \".\"\n{}", tenant());
    let told = read_text("t", &text, &surroundings).0.unwrap_err();
    assert!(told.0[0].what.ends_with("lacks tokenizer.json, model.safetensors"), "{told}");
}

#[test]
fn a_models_files_may_be_a_gguf_file_or_a_folder_with_one() {
    let folder = tempfile::tempdir().unwrap();
    let put = |name: &str, text: &str| fs::write(folder.path().join(name), text).unwrap();
    put("blob", "GGUF and so on");
    put("other", "no such thing");
    let surroundings = Surroundings { base: folder.path().to_owned(), credentials: None, cores: 1 };
    let told = |path: &str| {
        let text = format!("[[models]]\nname = \"m\"\nfolder = {path:?}\n{}", tenant());
        let read = read_text("t", &text, &surroundings).0;
        read.map_or_else(|told| told.0[0].what.clone(), |_| String::new())
    };
    assert_eq!(told("blob"), "");
    assert!(told("other").ends_with("is neither a folder nor a GGUF file"));
    assert!(told(".").ends_with("lacks tokenizer.json"));
    put("m.gguf", "");
    assert_eq!(told("."), "");
}

// === The sample file ===

/// The sample with every commented key uncommented, and its folders below `root`.
fn uncommented(root: &Path) -> String {
    let active = |line: &str| match line.strip_prefix('#') {
        Some(rest) if !rest.is_empty() && !rest.starts_with(' ') => rest.to_owned(),
        _ => line.to_owned(),
    };
    let text: Vec<String> = SAMPLE.lines().map(active).collect();
    text.join("\n").replace("/usr/share/berthd", &root.display().to_string())
}

#[cfg(feature = "candle")]
fn sample_surroundings(root: &Path) -> Surroundings {
    fs::create_dir_all(root.join("models/demo-chat")).unwrap();
    for file in ["config.json", "tokenizer.json", "model.safetensors"] {
        fs::write(root.join("models/demo-chat").join(file), "").unwrap();
    }
    for file in ["libonnxruntime.so", "screen-rules.toml"] {
        fs::write(root.join(file), "").unwrap();
    }
    fs::create_dir_all(root.join("keys")).unwrap();
    fs::write(root.join("keys/team-a"), DIGEST.replace('5', "6")).unwrap();
    fs::create_dir_all(root.join("credentials")).unwrap();
    fs::write(root.join("credentials/vllm-0"), "key").unwrap();
    Surroundings { base: root.to_owned(), credentials: Some(root.join("credentials")), cores: 8 }
}

#[test]
fn the_sample_as_shipped_changes_nothing() {
    let shipped = read_text("t", SAMPLE, &nowhere()).0.unwrap();
    let empty = read_text("t", "", &nowhere()).0.unwrap();
    assert_eq!(shipped, empty);
}

#[cfg(feature = "candle")]
#[test]
fn the_sample_uncommented_is_valid_and_keeps_every_default() {
    let root = tempfile::tempdir().unwrap();
    let surroundings = sample_surroundings(root.path());
    let (read, outcome) = read_text("t", &uncommented(root.path()), &surroundings);
    let loaded = read.unwrap_or_else(|problems| panic!("{problems}"));
    assert_eq!(loaded.warnings, []);

    // Every key that the reader knows stands in it, and each with a default stands there with it.
    let tree = source::parse("t", &uncommented(root.path()), &problem::Report::default());
    let mut written = Vec::new();
    leaves("", &source::Value::Table(tree), &mut written);
    let names: BTreeSet<&str> = written.iter().map(|(key, _)| key.as_str()).collect();
    let lacking: Vec<&String> =
        outcome.known.iter().filter(|key| !names.contains(key.as_str())).collect();
    assert!(lacking.is_empty(), "not in config/berthd.toml: {lacking:?}");
    assert!(outcome.known.len() > 60, "the reader tells what it knows: {}", outcome.known.len());
    for (key, default) in &outcome.defaults {
        // Digests and models are shown by example where the default is an empty list.
        if key.ends_with("keys_sha256") {
            continue;
        }
        let shown: Vec<&str> = written
            .iter()
            .filter(|(name, _)| name == key)
            .map(|(_, value)| value.as_str())
            .collect();
        assert!(
            !shown.is_empty() && shown.iter().all(|shown| shown == default),
            "{key}: {shown:?}"
        );
    }
    assert!(outcome.defaults.len() > 40, "the reader tells its defaults: {:?}", outcome.defaults);
}

/// Every key of the tree as a pattern, with its value as written.
#[cfg(feature = "candle")]
fn leaves(path: &str, value: &source::Value, found: &mut Vec<(String, String)>) {
    use source::Value;
    let written = match value {
        Value::Table(table) => {
            for (key, inner) in &table.entries {
                leaves(&problem::join(path, key), &inner.value, found);
            }
            String::new()
        }
        Value::List(list) if list.iter().any(|item| matches!(item.value, Value::Table(_))) => {
            for item in list {
                leaves(&format!("{path}[]"), &item.value, found);
            }
            String::new()
        }
        Value::List(list) => {
            format!("{:?}", list.iter().map(|item| &item.value).collect::<Vec<_>>())
        }
        Value::Text(text) => format!("\"{text}\""),
        Value::Integer(number) => number.to_string(),
        Value::Float(number) => number.to_string(),
        Value::Flag(flag) => flag.to_string(),
        Value::Date(date) => date.clone(),
    };
    found.push((path.to_owned(), written));
}

proptest::proptest! {
    /// Whatever stands in a file, the answer is settings or problems; each problem names a line of it.
    #[test]
    fn broken_samples_are_told_and_never_crash(cut in 0..SAMPLE.len(), insert in "[\\[\\]{}=\"'.,#\\n\\\\0-9a-z_é-]{0,6}") {
        let text: String = uncommented(Path::new("/nonexistent"))
            .chars()
            .enumerate()
            .flat_map(|(place, letter)| {
                let inserted = if place == cut { insert.as_str() } else { "" };
                inserted.chars().chain([letter]).collect::<Vec<_>>()
            })
            .collect();
        let lines = text.lines().count();
        if let Err(Problems(problems)) = read_text("t", &text, &nowhere()).0 {
            proptest::prop_assert!(!problems.is_empty());
            for problem in problems.iter().filter(|problem| &*problem.at.file == "t") {
                proptest::prop_assert!(problem.at.line <= lines + 1, "{problem}");
            }
        }
    }
}
