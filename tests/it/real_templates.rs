//! Real chat templates against Python, where somebody has them at hand.
//!
//! Set `BERTHD_TEMPLATE_DIR` to a folder with files `NAME.jinja`, and `BERTHD_TEMPLATE_PYTHON` to a Python with
//! what `scripts/requirements-fixtures.txt` lists, unless it is in `.venv-fixtures`. Each template is rendered by
//! Python's library and by us with all conversations of the count fixtures; every text must be the same, every
//! refusal have the same words, and where Python fails, so must we. llama.cpp keeps such files in its folder
//! `models/templates`.

use berthd::tokens::{Allowance, CountError, ModelFiles, Profile};
use serde_json::{Value, json};
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

/// Templates that we render where Python fails with these words, and why.
const BEYOND_PYTHON: [(&str, &str, &str); 3] = [
    ("deepseek-ai-DeepSeek-V3.2", NO_FILTER, FROM_JSON),
    ("deepseek-ai-DeepSeek-V4", NO_FILTER, FROM_JSON),
    ("deepseek-ai-DeepSeek-V4-Flash-0731", NO_FILTER, FROM_JSON),
];
const NO_FILTER: &str = "No filter named 'from_json'";
const FROM_JSON: &str =
    "written for servers whose engine has the filter from_json; jinja2 has not, we have";

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// What Python makes of all templates: the name and the outcomes of each.
fn expected(templates: &Path, work: &Path) -> Vec<Value> {
    let python = std::env::var_os("BERTHD_TEMPLATE_PYTHON")
        .map_or_else(|| root().join(".venv-fixtures/bin/python"), PathBuf::from);
    let out = work.join("expected.jsonl");
    let ended = Command::new(&python)
        .arg(root().join("scripts/render_templates.py"))
        .args([templates, out.as_path()])
        .status()
        .unwrap_or_else(|error| panic!("cannot run {}: {error}", python.display()));
    assert!(ended.success(), "scripts/render_templates.py failed");
    let text = fs::read_to_string(out).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// A model folder with this template.
fn load(template: &Path, work: &Path) -> ModelFiles {
    let folder = work.join("model");
    fs::create_dir_all(&folder).unwrap();
    fs::copy(
        root().join("tests/fixtures/counts/chatml/tokenizer.json"),
        folder.join("tokenizer.json"),
    )
    .unwrap();
    fs::copy(template, folder.join("chat_template.jinja")).unwrap();
    let named = json!({"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"});
    fs::write(folder.join("tokenizer_config.json"), named.to_string()).unwrap();
    ModelFiles::load(&folder).unwrap().with_clock_at("2024-07-06T15:04:05[UTC]".parse().unwrap())
}

/// Whether our outcome is Python's.
fn agrees(found: &Result<String, CountError>, expected: &Value) -> bool {
    match found {
        Ok(text) => expected.as_str() == Some(text),
        Err(CountError::Template(told)) if expected["raises"].is_string() => {
            expected["raises"] == told.as_str()
        }
        Err(_) => expected["fails"].is_string(),
    }
}

/// The first place where two texts part, with a little around it.
fn parting(found: &str, expected: &str) -> String {
    let at = found.bytes().zip(expected.bytes()).take_while(|(one, two)| one == two).count();
    let near = |text: &str| {
        String::from_utf8_lossy(&text.as_bytes()[at.saturating_sub(40)..(at + 60).min(text.len())])
            .into_owned()
    };
    format!("at byte {at}: {:?} instead of {:?}", near(found), near(expected))
}

/// What follows such a prompt is encoded apart.
fn continued(request: &Value) -> bool {
    request["continue_final_message"] == true
}

#[test]
fn real_templates_render_as_in_python() {
    let Some(folder) = std::env::var_os("BERTHD_TEMPLATE_DIR").map(PathBuf::from) else {
        println!(
            "SKIPPED: real chat templates are not checked; set BERTHD_TEMPLATE_DIR to check them"
        );
        return;
    };
    let requests = fs::read_to_string(root().join("tests/fixtures/counts/requests.jsonl")).unwrap();
    let requests: Vec<Value> =
        requests.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let work = tempfile::tempdir().unwrap();
    let (mut complaints, mut all, mut right) = (Vec::new(), 0, 0);
    for line in expected(&folder, work.path()) {
        let (name, outcomes) = line.as_array().unwrap().split_first().unwrap();
        let name = name.as_str().unwrap();
        let files = load(&folder.join(format!("{name}.jinja")), work.path());
        assert_eq!(outcomes.len(), requests.len(), "an outcome for each conversation");
        let exception = BEYOND_PYTHON.iter().find(|(known, ..)| *known == name);
        let [mut texts, mut wrong, mut beyond] = [0, 0, 0];
        for (request, expected) in requests.iter().zip(outcomes) {
            let found = files.chat_text(&Profile::reference(), request.as_object().unwrap());
            texts += usize::from(expected.is_string());
            // Remembered turn by turn it must be the same, also for what follows in the list and shares parts.
            let body = request.to_string();
            let fields = berthd::api::json::open(body.as_bytes()).unwrap();
            let turns = files.request_ids(&Profile::reference(), &fields, Allowance::Whole);
            let whole = found.clone().and_then(|text| files.text_ids(&text, false));
            if turns.as_ref().ok() != whole.as_ref().ok() && !continued(request) {
                complaints
                    .push(format!("{name}: turn by turn it is another prompt, for {body:.300}"));
            }
            if agrees(&found, expected) {
                continue;
            }
            let fails = expected["fails"].as_str().unwrap_or_default();
            if found.is_ok() && exception.is_some_and(|(_, words, _)| fails.contains(words)) {
                beyond += 1;
                continue;
            }
            wrong += 1;
            let told = match (&found, expected.as_str()) {
                (Ok(found), Some(expected)) => parting(found, expected),
                (found, _) => {
                    format!("{found:?} instead of {expected}").chars().take(400).collect()
                }
            };
            if wrong <= 3 {
                complaints.push(format!(
                    "{name}: {told}\n    for {}",
                    request.to_string().chars().take(300).collect::<String>()
                ));
            }
        }
        let right_here = outcomes.len() - wrong;
        println!("{right_here:>4} of {:>4} ({texts} texts) {name}", outcomes.len());
        if let Some((_, _, cause)) = exception {
            println!("             {beyond} of them beyond Python: {cause}");
        }
        all += outcomes.len();
        right += right_here;
    }
    println!("{right} of {all} outcomes are Python's");
    assert!(all > 0, "no templates in the folder");
    assert!(complaints.is_empty(), "{} of {all} differ:\n{}", all - right, complaints.join("\n"));
}
