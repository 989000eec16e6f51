//! Reads `[screen]` and what is below it.

use super::{
    Action, InputPolicy, OnFailure, OutputPolicy, Screen, ScreenModel, ScreenPolicy, ScreenRuntime,
    SecondStage, Sensitivity, Task, Watch,
};
use crate::config::{
    defaults,
    load::Surroundings,
    read::Section,
    rows::{self, MODELS_MAX},
    source::Value,
};
use std::{collections::BTreeMap, path::PathBuf};

/// Most entries of a table of labels.
const LABELS_MAX: usize = 256;
/// Shortest canary: shorter ones stand in innocent text.
const CANARY_MIN_BYTES: usize = 8;

const RUNTIMES: [(&str, ScreenRuntime); 3] = [
    ("auto", ScreenRuntime::Auto),
    ("candle", ScreenRuntime::Candle),
    ("onnx", ScreenRuntime::Onnx),
];

/// `[screen]`
pub(in crate::config) fn screen(section: &mut Section<'_>, surroundings: &Surroundings) -> Screen {
    let failures = [("open", OnFailure::Open), ("closed", OnFailure::Closed)];
    let usual = ScreenPolicy {
        name: "usual".to_owned(),
        tenants: Vec::new(),
        models: Vec::new(),
        input: input(&mut section.section("input")),
        output: output(&mut section.section("output")),
    };
    let mut names = rows::Taken::default();
    let mut rows = section.rows("policies", rows::TENANTS_MAX);
    let policies = rows.iter_mut().map(|row| policy(row, &usual, &mut names)).collect();
    let mut names = rows::Taken::default();
    let mut rows = section.rows("models", MODELS_MAX);
    let models = rows.iter_mut().map(|row| model(row, &mut names, surroundings)).collect();
    Screen {
        models_folder: path(section, "models_folder", surroundings),
        own_models: section.flag("own_models", defaults::SCREEN_OWN_MODELS),
        runtime: section.choice("runtime", ScreenRuntime::Auto, &RUNTIMES),
        onnx_library: path(section, "onnx_library", surroundings),
        rules: path(section, "rules", surroundings),
        threads: section.number("threads", defaults::SCREEN_THREADS, 1..=64),
        waiting_max: section.number("waiting_max", defaults::SCREEN_WAITING_MAX, 1..=65_536),
        batch_max: section.number("batch_max", defaults::SCREEN_BATCH_MAX, 1..=256),
        windows_max: section.number("windows_max", defaults::SCREEN_WINDOWS_MAX, 1..=65_536),
        budget: section.seconds("budget_s", defaults::SCREEN_BUDGET, 0.001..=60.0),
        on_failure: section.choice("on_failure", OnFailure::Open, &failures),
        canaries: canaries(section),
        quotable: quotable(section, surroundings),
        models,
        usual,
        policies,
    }
}

fn path(
    section: &mut Section<'_>,
    key: &'static str,
    surroundings: &Surroundings,
) -> Option<PathBuf> {
    let path = surroundings.path(section.text(key)?.text);
    if let Err(error) = std::fs::metadata(&path) {
        let what = format!("cannot read {}: {error}", path.display());
        section.error(key, what, "check the path, and that the daemon's user may read it");
    }
    Some(path)
}

fn quotable(section: &mut Section<'_>, surroundings: &Surroundings) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for found in section.texts("quotable", LABELS_MAX) {
        let path = surroundings.path(found.text);
        if let Err(error) = std::fs::metadata(&path) {
            let what = format!("cannot read {}: {error}", path.display());
            let remedy = "check the path, and that the daemon's user may read it";
            section.report.error(found.at, found.key, what, remedy);
        }
        files.push(path);
    }
    files
}

fn canaries(section: &mut Section<'_>) -> Vec<String> {
    let mut canaries = Vec::new();
    for found in section.texts("canaries", LABELS_MAX) {
        if found.text.len() < CANARY_MIN_BYTES {
            let what = format!("a canary of {} bytes stands in innocent text", found.text.len());
            section.report.error(
                found.at,
                found.key,
                what,
                "use at least 8 random letters and digits",
            );
        } else {
            canaries.push(found.text.to_owned());
        }
    }
    canaries
}

fn actions() -> [(&'static str, Action); 5] {
    Action::ALL.map(|action| (action.as_str(), action))
}

fn input(section: &mut Section<'_>) -> InputPolicy {
    InputPolicy {
        mode: section.choice("mode", defaults::SCREEN_INPUT, &actions()),
        sensitivity: section.choice("sensitivity", Sensitivity::Usual, &SENSITIVITIES),
        second_stage: section.choice("second_stage", SecondStage::Grey, &STAGES),
        thresholds: shares(section, "thresholds"),
        origins: shares(section, "origins"),
        actions: actions_of(section),
    }
}

const SENSITIVITIES: [(&str, Sensitivity); 2] =
    [("usual", Sensitivity::Usual), ("sure", Sensitivity::Sure)];
const STAGES: [(&str, SecondStage); 3] =
    [("never", SecondStage::Never), ("grey", SecondStage::Grey), ("always", SecondStage::Always)];

fn output(section: &mut Section<'_>) -> OutputPolicy {
    let watches = Watch::ALL.map(|watch| (watch.as_str(), watch));
    OutputPolicy {
        watch: section.choice("watch", defaults::SCREEN_OUTPUT, &watches),
        hold_tokens: section.number("hold_tokens", defaults::HOLD_TOKENS, 1..=4096),
        hold: section.seconds("hold_s", defaults::HOLD, 0.01..=60.0),
        thresholds: shares(section, "thresholds"),
        actions: actions_of(section),
    }
}

/// One `[[screen.policies]]` entry: what it does not say holds as usual.
fn policy(
    section: &mut Section<'_>,
    usual: &ScreenPolicy,
    taken: &mut rows::Taken,
) -> ScreenPolicy {
    let name = rows::name(section, "policy");
    if let Some(other) = taken.take(&name, &section.at) {
        section.error("name", format!("`{name}` is taken at {other}"), "name each policy once");
    }
    let tenants = section.texts("tenants", rows::TENANTS_MAX);
    let tenants = tenants.into_iter().map(|found| found.text.into()).collect();
    let models = rows::model_names(section, "models").into_iter().map(|(name, _)| name).collect();
    let (mut input, mut output) = (usual.input.clone(), usual.output.clone());
    {
        let section = &mut section.section("input");
        input.mode = section.optional_choice("mode", &actions()).unwrap_or(input.mode);
        let sensitivity = section.optional_choice("sensitivity", &SENSITIVITIES);
        input.sensitivity = sensitivity.unwrap_or(input.sensitivity);
        let stage = section.optional_choice("second_stage", &STAGES);
        input.second_stage = stage.unwrap_or(input.second_stage);
        input.thresholds.extend(shares(section, "thresholds"));
        input.origins.extend(shares(section, "origins"));
        input.actions.extend(actions_of(section));
    }
    {
        let section = &mut section.section("output");
        let watches = Watch::ALL.map(|watch| (watch.as_str(), watch));
        output.watch = section.optional_choice("watch", &watches).unwrap_or(output.watch);
        let tokens = section.optional_number("hold_tokens", 1..=4096);
        output.hold_tokens =
            tokens.and_then(|tokens| u32::try_from(tokens).ok()).unwrap_or(output.hold_tokens);
        // Without a default of its own: what is not said holds as usual.
        output.hold = section.seconds("hold_s", output.hold, 0.01..=60.0);
        output.thresholds.extend(shares(section, "thresholds"));
        output.actions.extend(actions_of(section));
    }
    ScreenPolicy { name, tenants, models, input, output }
}

/// One `[[screen.models]]` entry.
fn model(
    section: &mut Section<'_>,
    taken: &mut rows::Taken,
    surroundings: &Surroundings,
) -> ScreenModel {
    let name = rows::name(section, "model");
    if let Some(other) = taken.take(&name, &section.at) {
        section.error("name", format!("`{name}` is taken at {other}"), "name each model once");
    }
    let tasks = [("input", Task::Input), ("output", Task::Output)];
    if !section.holds("folder") {
        section
            .missing("folder", "add folder = \"...\": config.json, tokenizer.json and the weights");
    }
    let folder = rows::folder(section, &["config.json", "tokenizer.json"], surroundings);
    ScreenModel {
        name,
        task: section.choice("task", Task::Input, &tasks),
        folder: folder.unwrap_or_default(),
        runtime: section.choice("runtime", ScreenRuntime::Auto, &RUNTIMES),
        file: section.text("file").map(|found| PathBuf::from(found.text)),
        labels: label_map(section),
        window_tokens: section
            .optional_number("window_tokens", 8..=8192)
            .and_then(|tokens| usize::try_from(tokens).ok()),
    }
}

/// A table that maps names to something; what `read` cannot read is a fault.
fn table<T>(
    section: &mut Section<'_>,
    key: &'static str,
    wanted: &str,
    read: impl Fn(&Value) -> Option<T>,
) -> BTreeMap<String, T> {
    let Some(written) = section.take(key) else { return BTreeMap::new() };
    let Value::Table(table) = &written.value else {
        let what = format!("expected a table, found {}", written.value.kind());
        section.error(key, what, format!("write it like {wanted}"));
        return BTreeMap::new();
    };
    let mut map = BTreeMap::new();
    for (name, written) in table.entries.iter().take(LABELS_MAX) {
        match read(&written.value) {
            Some(value) => {
                map.insert(name.clone(), value);
            }
            None => {
                let path = format!("{}.{name}", section.key(key));
                section.report.error(
                    &written.at,
                    path,
                    "not a value that fits here",
                    format!("write it like {wanted}"),
                );
            }
        }
    }
    map
}

fn shares(section: &mut Section<'_>, key: &'static str) -> BTreeMap<String, f64> {
    let example = match key {
        "origins" => "{ tool = 0.5 }, from 0 to 1",
        _ => "{ injection = 0.9 }, from 0 to 1",
    };
    let read = |value: &Value| {
        let number = match value {
            Value::Integer(number) => *number as f64,
            Value::Float(number) => *number,
            _ => return None,
        };
        (0.0..=1.0).contains(&number).then_some(number)
    };
    let map = table(section, key, example, read);
    if key == "origins" {
        for name in map.keys().filter(|name| !ORIGINS.contains(&name.as_str())) {
            let what = format!("\"{name}\" is no origin");
            section.error(key, what, "use system, user, assistant or tool");
        }
    }
    map
}

/// Where texts of a request come from.
const ORIGINS: [&str; 4] = ["system", "user", "assistant", "tool"];

fn actions_of(section: &mut Section<'_>) -> BTreeMap<String, Action> {
    let read = |value: &Value| match value {
        Value::Text(text) => Action::of(text),
        _ => None,
    };
    let example = "{ injection = \"refuse\" }, one of off, shadow, flag, sanitise, refuse";
    table(section, "actions", example, read)
}

fn label_map(section: &mut Section<'_>) -> BTreeMap<String, Vec<String>> {
    let text = |value: &Value| match value {
        Value::Text(text) => Some(text.clone()),
        _ => None,
    };
    let read = |value: &Value| match value {
        Value::List(list) => list.iter().map(|item| text(&item.value)).collect(),
        value => text(value).map(|one| vec![one]),
    };
    table(section, "labels", "{ injection = [\"INJECTION\"] }", read)
}
