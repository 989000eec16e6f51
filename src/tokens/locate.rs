//! Finds a model's files on this host without being told where: by its name, or by what its server reports.
//!
//! A function of names, folders and an environment that was read before: it asks no server. Names come from
//! outside, so only such are looked up as can be one folder or two, and of a folder only a bounded number of
//! entries is read. What is found may still not be what a server runs: compare counts.

use serde_json::Value;
use std::{
    ffi::OsString,
    fmt, fs,
    io::Read as _,
    path::{Path, PathBuf},
    time::SystemTime,
};

/// Entries of one folder that are looked at.
const ENTRIES_MAX: usize = 4096;

/// Largest manifest of Ollama's store; real ones have about 1 kB.
const MANIFEST_BYTES_MAX: u64 = 1 << 20;

/// Where Ollama's own service keeps its store.
const OLLAMA_SERVICE: &str = "/usr/share/ollama/.ollama/models";

/// Folders that are searched, each kind in its order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Roots {
    /// Folders that hold model folders, as `NAME` or `ORG/NAME`.
    pub folders: Vec<PathBuf>,
    /// Caches of the Hugging Face libraries.
    pub hubs: Vec<PathBuf>,
    /// Stores of Ollama.
    pub ollama: Vec<PathBuf>,
}

/// Files that were found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// A folder or a GGUF file, as `ModelFiles::load` takes it.
    pub path: PathBuf,
    /// Where it was found.
    pub place: Place,
    /// Why chats cannot be counted exactly with these files, though texts can.
    pub chats_differ: Option<String>,
}

/// Where files were found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Below one of the folders of models.
    Folder,
    /// In a cache of the Hugging Face libraries.
    Hub,
    /// In Ollama's store.
    Ollama,
    /// Where the server says.
    Reported,
}

/// Nothing was found.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct NotFound {
    /// What was tried, in order, each with what was missing.
    pub tried: Vec<String>,
}

// === impl Roots ===

impl Roots {
    /// The usual places, by the environment: `HF_HUB_CACHE`, else `HF_HOME`, else `XDG_CACHE_HOME`, else
    /// below `HOME`; `OLLAMA_MODELS`, then below `HOME`, then where Ollama's service keeps it.
    pub fn from_env(variable: impl Fn(&str) -> Option<OsString>) -> Self {
        let path = |name: &str| variable(name).map(PathBuf::from).filter(|path| path.is_absolute());
        let home = path("HOME");
        let below_home = |rest: &str| home.as_ref().map(|home| home.join(rest));
        let hub = path("HF_HUB_CACHE")
            .or_else(|| path("HUGGINGFACE_HUB_CACHE"))
            .or_else(|| path("HF_HOME").map(|home| home.join("hub")))
            .or_else(|| path("XDG_CACHE_HOME").map(|cache| cache.join("huggingface/hub")))
            .or_else(|| below_home(".cache/huggingface/hub"));
        let ollama = [path("OLLAMA_MODELS"), below_home(".ollama/models")];
        Self {
            folders: Vec::new(),
            hubs: hub.into_iter().collect(),
            ollama: ollama.into_iter().flatten().chain([PathBuf::from(OLLAMA_SERVICE)]).collect(),
        }
    }
}

// === impl NotFound ===

impl fmt::Display for NotFound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "no files found: {}", self.tried.join("; "))
    }
}

/// Finds the files of a model that a server serves by this name. `reported` is what the server says it
/// loaded: a path, or a name in the hub. The order: the folders of models, the hub's cache, Ollama's store
/// (unless the server reports something else), what is reported. Blocks for some reads of small files.
pub fn locate(name: &str, reported: Option<&str>, roots: &Roots) -> Result<Found, NotFound> {
    let mut tried = Vec::new();
    let found = by_name(name, roots, &mut tried)
        .or_else(|| {
            let other = reported.is_some_and(|reported| reported != name);
            if other { None } else { in_ollama(name, roots, &mut tried) }
        })
        .or_else(|| by_report(reported?, name, roots, &mut tried));
    found.ok_or(NotFound { tried })
}

fn by_name(name: &str, roots: &Roots, tried: &mut Vec<String>) -> Option<Found> {
    let Some(parts) = parts(name).filter(|parts| parts.len() <= 2) else {
        tried.push(format!("{name:?} cannot be a folder's name"));
        return None;
    };
    for root in &roots.folders {
        let whole = parts.iter().fold(root.clone(), |path, part| path.join(part));
        let short = parts.last().map(|part| root.join(part));
        for folder in [Some(whole), short].into_iter().flatten() {
            if let Some(path) = usable(&folder) {
                return Some(Found { path, place: Place::Folder, chats_differ: None });
            }
        }
        tried.push(format!("{} holds no {name}", root.display()));
    }
    let entry = format!("models--{}", parts.join("--"));
    for hub in &roots.hubs {
        let Some(folder) = child(hub, &entry) else {
            tried.push(format!("{} holds no {entry}", hub.display()));
            continue;
        };
        match snapshot(&folder) {
            Some(path) => return Some(Found { path, place: Place::Hub, chats_differ: None }),
            None => tried.push(format!("{} holds no whole vocabulary", folder.display())),
        }
    }
    None
}

fn by_report(reported: &str, name: &str, roots: &Roots, tried: &mut Vec<String>) -> Option<Found> {
    let path = Path::new(reported);
    if !path.is_absolute() {
        return if reported == name { None } else { by_name(reported, roots, tried) };
    }
    let found = if is_gguf(path) { Some(path.to_owned()) } else { usable(path) };
    // Of a file of weights, the folder.
    let found = found.or_else(|| usable(path.parent().filter(|_| path.is_file())?));
    if found.is_none() {
        tried.push(format!("{reported} as the server reports it holds no vocabulary here"));
    }
    Some(Found { path: found?, place: Place::Reported, chats_differ: None })
}

/// The parts of a name, if each can be the name of one folder and of nothing else.
fn parts(name: &str) -> Option<Vec<&str>> {
    const PART_BYTES_MAX: usize = 128;
    let is_part = |part: &str| {
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
        !part.is_empty()
            && part.len() <= PART_BYTES_MAX
            && !part.starts_with('.')
            && part.chars().all(plain)
    };
    let parts: Vec<&str> = name.split('/').collect();
    (parts.len() <= 4 && parts.iter().all(|part| is_part(part))).then_some(parts)
}

/// An entry of a folder by its name, letters in any case where the exact one is not there.
fn child(folder: &Path, name: &str) -> Option<PathBuf> {
    let exact = folder.join(name);
    if exact.is_dir() {
        return Some(exact);
    }
    let same = |entry: &fs::DirEntry| {
        entry.file_name().to_str().is_some_and(|other| other.eq_ignore_ascii_case(name))
    };
    let entries = fs::read_dir(folder).ok()?.flatten().take(ENTRIES_MAX);
    entries.filter(same).map(|entry| entry.path()).find(|path| path.is_dir())
}

// === the hub's cache ===

/// The snapshot that `refs/main` names, else the newest, of those that hold a vocabulary whole: links in a
/// cache may lead nowhere.
fn snapshot(folder: &Path) -> Option<PathBuf> {
    let snapshots = folder.join("snapshots");
    let main = read_start(&folder.join("refs/main"), 256)
        .and_then(|text| String::from_utf8(text).ok())
        .filter(|commit| parts(commit.trim()).is_some_and(|parts| parts.len() == 1))
        .map(|commit| snapshots.join(commit.trim()));
    if let Some(path) = main.and_then(|folder| usable(&folder)) {
        return Some(path);
    }
    let age = |path: &PathBuf| {
        fs::metadata(path).and_then(|facts| facts.modified()).unwrap_or(SystemTime::UNIX_EPOCH)
    };
    let entries = fs::read_dir(&snapshots).ok()?.flatten().take(ENTRIES_MAX);
    let mut others: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
    others.sort_by_key(|path| std::cmp::Reverse(age(path)));
    others.iter().find_map(|folder| usable(folder))
}

/// The folder itself if it holds a vocabulary; else a GGUF file in it, the first by name: the files of one
/// model differ in their weights.
fn usable(folder: &Path) -> Option<PathBuf> {
    let names = ["tokenizer.json", "tekken.json", "tiktoken.model", "tokenizer.model"];
    if names.iter().any(|name| folder.join(name).is_file()) {
        return Some(folder.to_owned());
    }
    let entries = fs::read_dir(folder).ok()?.flatten().take(ENTRIES_MAX);
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
    files.sort();
    let end = |path: &PathBuf, end: &str| path.extension().is_some_and(|other| other == end);
    if files.iter().any(|path| end(path, "tiktoken") && path.is_file()) {
        return Some(folder.to_owned());
    }
    files.into_iter().find(|path| {
        let name = path.file_name().unwrap_or_default().to_string_lossy().to_ascii_lowercase();
        let later_part = name.contains("-of-") && !name.contains("-00001-of-");
        end(path, "gguf") && !name.contains("mmproj") && !later_part && is_gguf(path)
    })
}

fn is_gguf(path: &Path) -> bool {
    read_start(path, 4).is_some_and(|start| start == b"GGUF")
}

/// The first bytes of a regular file.
fn read_start(path: &Path, bytes: u64) -> Option<Vec<u8>> {
    if !path.is_file() {
        return None;
    }
    let mut start = Vec::new();
    fs::File::open(path).ok()?.take(bytes).read_to_end(&mut start).ok()?;
    Some(start)
}

// === Ollama's store ===

fn in_ollama(name: &str, roots: &Roots, tried: &mut Vec<String>) -> Option<Found> {
    let (path, tag) = name.rsplit_once(':').unwrap_or((name, "latest"));
    let parts = parts(path)?;
    let tag = self::parts(tag).filter(|parts| parts.len() == 1)?;
    let place = match parts.as_slice() {
        [model] => ["registry.ollama.ai", "library", model],
        [user, model] => ["registry.ollama.ai", user, model],
        [host, user, model] => [*host, user, model],
        _ => return None,
    };
    for root in &roots.ollama {
        let place: PathBuf = ["manifests"].into_iter().chain(place).chain(tag.clone()).collect();
        let manifest = root.join(&place);
        let Some(text) = read_start(&manifest, MANIFEST_BYTES_MAX) else {
            tried.push(format!("{} does not exist", manifest.display()));
            continue;
        };
        let layers: Value = serde_json::from_slice(&text).unwrap_or_default();
        let Some(path) = layer(&layers, "model").and_then(|digest| blob(root, digest)) else {
            tried.push(format!("{} names no model that is here", manifest.display()));
            continue;
        };
        let why = match layer(&layers, "template") {
            Some(_) => "Ollama writes chats with a template of its own kind",
            None => "Ollama decides itself how it writes chats",
        };
        return Some(Found { path, place: Place::Ollama, chats_differ: Some(why.into()) });
    }
    None
}

/// The digest of the layer of this kind.
fn layer<'a>(manifest: &'a Value, kind: &str) -> Option<&'a str> {
    let kind = format!("application/vnd.ollama.image.{kind}");
    let layers = manifest.get("layers")?.as_array()?;
    let layer = layers.iter().find(|layer| layer.get("mediaType").is_some_and(|is| *is == kind))?;
    layer.get("digest")?.as_str()
}

/// The file of a digest, if it is one and holds a vocabulary.
fn blob(root: &Path, digest: &str) -> Option<PathBuf> {
    let hex = digest.strip_prefix("sha256:")?;
    let is_digest = hex.len() == 64 && hex.bytes().all(|byte| byte.is_ascii_hexdigit());
    let path = root.join("blobs").join(format!("sha256-{hex}"));
    (is_digest && is_gguf(&path)).then_some(path)
}

#[cfg(test)]
#[path = "locate_tests.rs"]
mod tests;
