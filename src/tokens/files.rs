//! Reads a model folder as the Hugging Face libraries lay it out, or finds the GGUF file or another form of
//! vocabulary in it.

use super::{LoadError, gguf_vocab, sentencepiece, tekken, tiktoken, unspellable};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};
use std::{
    collections::BTreeMap,
    fs,
    io::{self, Read as _},
    path::{Path, PathBuf},
};

/// Largest file that is read; the largest vocabularies in circulation take about 40 MB.
const FILE_BYTES_MAX: u64 = 256 << 20;

/// Named templates that one folder may bring.
const TEMPLATES_MAX: usize = 32;

/// Entries of one folder that are looked at in search of a GGUF file.
const ENTRIES_MAX: usize = 4096;

/// What a folder holds, read but not yet understood.
pub(super) struct Folder {
    pub(super) tokenizer: Value,
    pub(super) tokenizer_config: Map<String, Value>,
    pub(super) config: Map<String, Value>,
    pub(super) generation_config: Map<String, Value>,
    /// Chat templates by name; the only one is usually `default`.
    pub(super) templates: BTreeMap<String, String>,
    pub(super) fingerprint: String,
    pub(super) is_gguf: bool,
}

impl Folder {
    /// Reads all of it; of a GGUF file its header, which holds the same.
    pub(super) fn read(folder: &Path) -> Result<Self, LoadError> {
        // Ollama's files have no ending, so any file may be one.
        if folder.is_file() {
            return gguf_vocab::folder(folder);
        }
        let path = folder.join("tokenizer.json");
        if !path.exists()
            && let Some(file) = gguf_file(folder)?
        {
            return gguf_vocab::folder(&file);
        }
        let mut tokenizer_config = object(&folder.join("tokenizer_config.json"))?;
        // The older place of the names of special tokens.
        for (name, token) in object(&folder.join("special_tokens_map.json"))? {
            tokenizer_config.entry(name).or_insert(token);
        }
        let config = object(&folder.join("config.json"))?;
        let (text, mut tokenizer) = match read(&path)? {
            Some(text) => {
                let tokenizer = parse(&path, &text)?;
                (text, tokenizer)
            }
            None => other_vocabulary(folder, &mut tokenizer_config, &config)?,
        };
        unspellable::hide(&mut tokenizer);
        let templates = templates(folder, &tokenizer_config)?;
        let fingerprint = fingerprint(&text, &tokenizer_config, &templates);
        Ok(Self {
            tokenizer,
            tokenizer_config,
            config,
            generation_config: object(&folder.join("generation_config.json"))?,
            templates,
            fingerprint,
            is_gguf: false,
        })
    }
}

/// The vocabulary of a folder without `tokenizer.json`: the text of its file, and what it says as such a
/// file.
fn other_vocabulary(
    folder: &Path,
    tokenizer_config: &mut Map<String, Value>,
    config: &Map<String, Value>,
) -> Result<(String, Value), LoadError> {
    let told = |error| LoadError::Tokenizer(error);
    if let Some(text) = read(&folder.join("tekken.json"))? {
        let tokenizer = tekken::tokenizer(&text).map_err(told)?;
        tekken::name_tokens(tokenizer_config);
        return Ok((text, tokenizer));
    }
    if let Some(path) = tiktoken_file(folder) {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let text = read(&path)?.ok_or_else(|| LoadError::Missing(path.clone()))?;
        let tokenizer =
            tiktoken::tokenizer(&text, &name, tokenizer_config, config).map_err(told)?;
        return Ok((text, tokenizer));
    }
    let path = folder.join("tokenizer.model");
    let Some(bytes) = read_bytes(&path)? else {
        return Err(LoadError::Missing(folder.join("tokenizer.json")));
    };
    let tokenizer = sentencepiece::tokenizer(&bytes, tokenizer_config).map_err(told)?;
    sentencepiece::name_tokens(tokenizer_config, &tokenizer);
    Ok((tokenizer.to_string(), tokenizer))
}

/// `tiktoken.model`, `NAME.tiktoken`, or a `tokenizer.model` that has this form.
fn tiktoken_file(folder: &Path) -> Option<PathBuf> {
    let has_form = |path: &PathBuf| {
        let mut start = Vec::with_capacity(512);
        let file = fs::File::open(path).ok();
        let read = file.map(|file| file.take(512).read_to_end(&mut start));
        read.is_some_and(|read| read.is_ok()) && tiktoken::is_such(&start)
    };
    let entries = fs::read_dir(folder).ok()?.flatten().take(ENTRIES_MAX);
    let mut named: Vec<PathBuf> = entries
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|end| end == "tiktoken"))
        .collect();
    named.sort();
    ["tiktoken.model", "tokenizer.model"]
        .map(|name| folder.join(name))
        .into_iter()
        .chain(named)
        .find(has_form)
}

/// 16 hex digits that change with any of these.
pub(super) fn fingerprint(
    tokenizer: &str,
    tokenizer_config: &Map<String, Value>,
    templates: &BTreeMap<String, String>,
) -> String {
    let mut hash = Sha256::new();
    hash.update(tokenizer);
    hash.update(Value::Object(tokenizer_config.clone()).to_string());
    for (name, template) in templates {
        hash.update([0]);
        hash.update(name);
        hash.update([0]);
        hash.update(template);
    }
    hash.finalize().iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

/// The GGUF file of a folder: the only one, or the first part of the only one. Files beside it that hold
/// the eyes of a model (`mmproj`) have no vocabulary.
fn gguf_file(folder: &Path) -> Result<Option<PathBuf>, LoadError> {
    let Ok(entries) = fs::read_dir(folder) else { return Ok(None) };
    let mut found = None;
    for entry in entries.flatten().take(ENTRIES_MAX) {
        let name = entry.file_name().to_string_lossy().to_ascii_lowercase();
        let later_part = name.contains("-of-") && !name.contains("-00001-of-");
        if !name.ends_with(".gguf") || name.contains("mmproj") || later_part {
            continue;
        }
        if found.replace(entry.path()).is_some() {
            let told = "holds several GGUF files; name one of them".to_owned();
            return Err(LoadError::Unreadable(folder.to_owned(), told));
        }
    }
    Ok(found)
}

/// Chat templates, the later sources over the earlier: the tokenizer's configuration,
/// `chat_template.json`, `chat_template.jinja` and the folder of additional ones.
fn templates(
    folder: &Path,
    config: &Map<String, Value>,
) -> Result<BTreeMap<String, String>, LoadError> {
    let mut found = BTreeMap::new();
    take_templates(&mut found, config.get("chat_template"));
    take_templates(&mut found, object(&folder.join("chat_template.json"))?.get("chat_template"));
    if let Some(text) = read(&folder.join("chat_template.jinja"))? {
        found.insert("default".into(), text);
    }
    let Ok(entries) = fs::read_dir(folder.join("additional_chat_templates")) else {
        return Ok(found);
    };
    for entry in entries.flatten().take(TEMPLATES_MAX) {
        let path = entry.path();
        let name = path.file_stem().and_then(|name| name.to_str());
        if let Some(name) = name.filter(|_| path.extension().is_some_and(|end| end == "jinja"))
            && let Some(text) = read(&path)?
        {
            found.insert(name.to_owned(), text);
        }
    }
    Ok(found)
}

/// One template as a string, or several as a list of names and texts or as a map.
fn take_templates(found: &mut BTreeMap<String, String>, value: Option<&Value>) {
    match value {
        Some(Value::String(text)) => {
            found.insert("default".into(), text.clone());
        }
        Some(Value::Array(list)) => {
            let named = list.iter().take(TEMPLATES_MAX).filter_map(|entry| {
                let name = entry.get("name")?.as_str()?.to_owned();
                Some((name, entry.get("template")?.as_str()?.to_owned()))
            });
            found.extend(named);
        }
        Some(Value::Object(map)) => {
            let named = map.iter().take(TEMPLATES_MAX);
            found.extend(
                named.filter_map(|(name, text)| Some((name.clone(), text.as_str()?.to_owned()))),
            );
        }
        _ => {}
    }
}

/// A file's text, `None` if there is no such file.
fn read(path: &Path) -> Result<Option<String>, LoadError> {
    let Some(bytes) = read_bytes(path)? else { return Ok(None) };
    let text = String::from_utf8(bytes);
    text.map(Some).map_err(|error| LoadError::Unreadable(path.to_owned(), error.to_string()))
}

/// A file's bytes, `None` if there is no such file.
fn read_bytes(path: &Path) -> Result<Option<Vec<u8>>, LoadError> {
    let told = |error: io::Error| LoadError::Unreadable(path.to_owned(), error.to_string());
    match fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(told(error)),
        // A pipe would be waited for, for ever.
        Ok(facts) if !facts.is_file() => {
            return Err(LoadError::Unreadable(path.to_owned(), "not a regular file".into()));
        }
        Ok(facts) if facts.len() > FILE_BYTES_MAX => {
            return Err(LoadError::Unreadable(path.to_owned(), "the file is too large".into()));
        }
        Ok(_) => {}
    }
    fs::read(path).map(Some).map_err(told)
}

fn parse(path: &Path, text: &str) -> Result<Value, LoadError> {
    let at = || PathBuf::from(path);
    serde_json::from_str(text).map_err(|error| LoadError::Unreadable(at(), error.to_string()))
}

/// A JSON object from a file that may be missing.
fn object(path: &Path) -> Result<Map<String, Value>, LoadError> {
    let Some(text) = read(path)? else { return Ok(Map::new()) };
    match parse(path, &text)? {
        Value::Object(map) => Ok(map),
        _ => Err(LoadError::Unreadable(path.to_owned(), "not a JSON object".into())),
    }
}
