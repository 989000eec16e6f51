//! Reads `[[tenants]]` and `[[models]]`, and what their entries must not share.

use super::{
    Model, Place, Server, SpecialTokens, Tenant, defaults,
    keys::{self, KeyOwners},
    load::Surroundings,
    problem::Spot,
    read::Section,
    source::Value,
};
use crate::{
    ids::{ModelName, ServerKind, TenantId, Tier},
    units::Tokens,
};
use serde_json::Value as Json;
use std::{
    collections::{BTreeMap, HashMap},
    io::Read,
    path::{Path, PathBuf},
};

/// Most tenants: each has its own metric series.
pub(super) const TENANTS_MAX: usize = 4096;
/// Most models.
pub(super) const MODELS_MAX: usize = 1024;
/// Most names in one list.
pub(super) const NAMES_MAX: usize = 1024;

/// Entries of one folder that are looked at in search of a GGUF file.
const ENTRIES_MAX: usize = 4096;

/// Largest context window that is not a slip of the pen.
const WINDOW_MAX_TOKENS: u64 = 100_000_000;
/// Largest limit by the minute.
const RATE_MAX: u64 = 1_000_000_000_000;

/// Names that are taken, each with its place.
#[derive(Default)]
pub(super) struct Taken(HashMap<String, Spot>);

impl Taken {
    /// Takes a name; tells where it was taken before.
    pub(super) fn take(&mut self, name: &str, at: &Spot) -> Option<Spot> {
        if let Some(other) = self.0.get(name) {
            return Some(other.clone());
        }
        self.0.insert(name.to_owned(), at.clone());
        None
    }
}

/// The name of a tenant or server: short, and safe in metrics, headers and logs. Twins within one file
/// are reported where files are read.
pub(super) fn name(section: &mut Section<'_>, what_for: &str) -> String {
    if !section.holds("name") {
        let _ = section.take("name");
        section.missing(
            "name",
            format!("add name = \"...\": it names the {what_for} in metrics and logs"),
        );
        return String::new();
    }
    let Some(found) = section.text("name") else { return String::new() };
    let fine = |letter: char| letter.is_ascii_alphanumeric() || matches!(letter, '-' | '_' | '.');
    if found.text.is_empty() || found.text.len() > 64 || !found.text.chars().all(fine) {
        let what = format!("{:?} is not a name", found.text);
        section.error("name", what, "use 1 to 64 letters, digits, `-`, `_` or `.`");
    }
    found.text.to_owned()
}

/// Is this a name a model can have? Slashes and colons are usual; spaces and control characters are slips.
fn is_model_name(text: &str) -> bool {
    let fine = |letter: char| !letter.is_whitespace() && !letter.is_control();
    !text.is_empty() && text.len() <= 256 && text.chars().all(fine)
}

const MODEL_NAME_REMEDY: &str = "use 1 to 256 characters without spaces, as callers write them";

/// A list of model names.
pub(super) fn model_names(section: &mut Section<'_>, key: &'static str) -> Vec<(ModelName, Spot)> {
    let mut names: Vec<(ModelName, Spot)> = Vec::new();
    for found in section.texts(key, NAMES_MAX) {
        if !is_model_name(found.text) {
            let what = format!("{:?} is not a model's name", found.text);
            section.report.error(found.at, found.key, what, MODEL_NAME_REMEDY);
        } else if names.iter().any(|(name, _)| name.as_str() == found.text) {
            let what = format!("`{}` stands in the list twice", found.text);
            section.report.error(found.at, found.key, what, "remove one of them");
        } else {
            names.push((found.text.into(), found.at.clone()));
        }
    }
    names
}

// === Tenants ===

/// One `[[tenants]]` entry.
pub(super) fn tenant(
    section: &mut Section<'_>,
    owners: &mut KeyOwners,
    surroundings: &Surroundings,
) -> Tenant {
    let name = name(section, "tenant");
    // The system tier is the operator's own: a tenant there could starve all others.
    let tiers: Vec<(&'static str, Tier)> = Tier::ALL
        .into_iter()
        .filter(|tier| *tier != Tier::System)
        .map(|tier| (tier.as_str(), tier))
        .collect();
    Tenant {
        keys: keys::of_tenant(section, &name, owners, surroundings),
        name: TenantId::from(name),
        tier: section.choice("tier", defaults::TIER, &tiers),
        models: model_names(section, "models").into_iter().map(|(name, _)| name).collect(),
        requests_per_minute: section.number(
            "requests_per_minute",
            defaults::REQUESTS_PER_MINUTE,
            0..=RATE_MAX,
        ),
        tokens_per_minute: section.tokens(
            "tokens_per_minute",
            defaults::TOKENS_PER_MINUTE,
            0..=RATE_MAX,
        ),
        weight: section.number("weight", defaults::WEIGHT, 1..=1_000),
        screen_override: section.flag("screen_override", defaults::SCREEN_OVERRIDE),
    }
}

// === Models ===

/// One `[[models]]` entry.
pub(super) fn model(
    section: &mut Section<'_>,
    taken: &mut Taken,
    surroundings: &Surroundings,
) -> Model {
    let name = model_name(section, taken);
    let mut aliases = Vec::new();
    for (alias, at) in model_names(section, "aliases") {
        if let Some(other) = taken.take(alias.as_str(), &at) {
            let what = format!("`{alias}` already names a model at {other}");
            section.report.error(
                &at,
                section.key("aliases"),
                what,
                "let each alias mean one model",
            );
        } else {
            aliases.push(alias);
        }
    }
    let context_window =
        section.optional_number("context_window_tokens", 1..=WINDOW_MAX_TOKENS).map(Tokens);
    let expected_output =
        section.tokens("expected_output_tokens", defaults::EXPECTED_OUTPUT, 1..=WINDOW_MAX_TOKENS);
    if let Some(window) = context_window
        && expected_output >= window
    {
        let key = if section.holds("expected_output_tokens") {
            "expected_output_tokens"
        } else {
            "context_window_tokens"
        };
        let what =
            format!("an output of {expected_output} tokens leaves no room for input in {window}");
        let remedy = "make `expected_output_tokens` smaller than `context_window_tokens`";
        section.error(key, what, remedy);
    }
    Model {
        name: ModelName::from(name),
        aliases,
        folder: model_files(section, surroundings),
        context_window,
        expected_output,
        template_variables: template_variables(section),
        special_tokens: special_tokens(section),
    }
}

fn model_name(section: &mut Section<'_>, taken: &mut Taken) -> String {
    if !section.holds("name") {
        let _ = section.take("name");
        section.missing("name", "add name = \"...\": the name that its servers know it by");
        return String::new();
    }
    let Some(found) = section.text("name") else { return String::new() };
    if !is_model_name(found.text) {
        section.error("name", format!("{:?} is not a model's name", found.text), MODEL_NAME_REMEDY);
    } else if let Some(other) = taken.take(found.text, found.at) {
        let what = format!("`{}` already names a model at {other}", found.text);
        section.error("name", what, "let each name mean one model");
    }
    found.text.to_owned()
}

/// A GGUF file, or a folder that holds one or a `tokenizer.json`.
fn model_files(section: &mut Section<'_>, surroundings: &Surroundings) -> Option<PathBuf> {
    let found = section.text("folder")?;
    let path = surroundings.path(found.text);
    if path.is_file() {
        match starts_as_gguf(&path) {
            Ok(true) => {}
            Ok(false) => {
                let what = format!("{} is neither a folder nor a GGUF file", path.display());
                section.error("folder", what, "name the model's folder, or its GGUF file");
            }
            Err(error) => {
                let what = format!("cannot read {}: {error}", path.display());
                section.error("folder", what, "let the daemon's user read it");
            }
        }
        return Some(path);
    }
    let holds_gguf = std::fs::read_dir(&path).is_ok_and(|entries| {
        let mut files = entries.flatten().take(ENTRIES_MAX).map(|entry| entry.path());
        files.any(|file| file.extension().is_some_and(|end| end == "gguf"))
    });
    let files: &[&str] = if holds_gguf { &[] } else { &["tokenizer.json"] };
    folder(section, files, surroundings)
}

/// Does the file begin as GGUF files do? Ollama's have no ending that would tell.
fn starts_as_gguf(path: &Path) -> std::io::Result<bool> {
    let mut start = Vec::new();
    std::fs::File::open(path)?.take(4).read_to_end(&mut start)?;
    Ok(start == b"GGUF")
}

/// A folder that must hold these files.
pub(super) fn folder(
    section: &mut Section<'_>,
    files: &[&str],
    surroundings: &Surroundings,
) -> Option<PathBuf> {
    let folder = surroundings.path(section.text("folder")?.text);
    if let Err(error) = std::fs::read_dir(&folder) {
        let what = format!("cannot read the folder {}: {error}", folder.display());
        section.error("folder", what, "check the path, and that the daemon's user may read it");
        return Some(folder);
    }
    let lacking: Vec<&str> =
        files.iter().filter(|file| !folder.join(file).is_file()).copied().collect();
    if !lacking.is_empty() {
        let what = format!("the folder {} lacks {}", folder.display(), lacking.join(", "));
        section.error("folder", what, "point it at a complete model folder");
    }
    Some(folder)
}

fn special_tokens(section: &mut Section<'_>) -> SpecialTokens {
    let options = [
        ("refuse", SpecialTokens::Refuse),
        ("neutralise", SpecialTokens::Neutralise),
        ("pass", SpecialTokens::Pass),
    ];
    section.choice("special_tokens", SpecialTokens::default(), &options)
}

fn template_variables(section: &mut Section<'_>) -> BTreeMap<String, Json> {
    let Some(written) = section.take("template_variables") else { return BTreeMap::new() };
    let Value::Table(table) = &written.value else {
        let what = format!("expected a table, found {}", written.value.kind());
        section.error("template_variables", what, "write it like { enable_thinking = false }");
        return BTreeMap::new();
    };
    table.entries.iter().map(|(key, written)| (key.clone(), json(&written.value))).collect()
}

fn json(value: &Value) -> Json {
    match value {
        Value::Text(text) | Value::Date(text) => Json::from(text.as_str()),
        Value::Integer(number) => Json::from(*number),
        // JSON has no infinity; such a variable reads as null.
        Value::Float(number) => Json::from(*number),
        Value::Flag(flag) => Json::from(*flag),
        Value::List(list) => list.iter().map(|item| json(&item.value)).collect(),
        Value::Table(table) => {
            let pairs = table.entries.iter().map(|(key, item)| (key.clone(), json(&item.value)));
            Json::Object(pairs.collect())
        }
    }
}

/// The server kinds by name.
pub(super) fn kinds() -> [(&'static str, ServerKind); 6] {
    ServerKind::ALL.map(|kind| (kind.as_str(), kind))
}

/// Contradictions between the entries of `[[servers]]` and of `[[models]]`.
pub(super) fn check_served(servers: &[(Server, Section<'_>)], models: &[Model]) {
    for (server, section) in servers {
        for served in &server.models {
            let meant = models.iter().find(|model| model.aliases.contains(served));
            if let Some(model) = meant {
                let what = format!("`{served}` is an alias of `{}`", model.name);
                section.error("models", what, "name the model as the server itself knows it");
            }
            let window = models
                .iter()
                .find(|model| model.name == *served)
                .and_then(|model| model.context_window);
            if let (Some(window), Some(room)) = (window, server.kv_tokens)
                && room < window
            {
                let what =
                    format!("{room} tokens do not hold one full window of `{served}` ({window})");
                section.warn(
                    "kv_tokens",
                    what,
                    "check both numbers: longer requests would never be placed",
                );
            }
        }
        if let (Place::Folder(_), Some(_)) = (&server.place, &server.api_key) {
            let what = "an embedded server takes no API key";
            section.error("api_key_file", what, "remove the key");
        }
    }
}
