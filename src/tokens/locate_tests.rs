//! Caches and stores laid out in temporary folders.

use super::*;
use serde_json::json;
use std::os::unix::fs::symlink;
use tempfile::TempDir;

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

fn put(root: &Path, place: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
    let path = root.join(place);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(&path, bytes).unwrap();
    path
}

fn roots(root: &TempDir) -> Roots {
    Roots {
        folders: Vec::new(),
        hubs: vec![root.path().join("hub")],
        ollama: vec![root.path().join("ollama")],
    }
}

/// A cache with one model of which `refs/main` names a whole snapshot.
fn hub() -> TempDir {
    let root = tempfile::tempdir().unwrap();
    let model = "hub/models--Org--Some-Model-7B";
    put(root.path(), &format!("{model}/refs/main"), format!("{COMMIT}\n"));
    let blob = put(root.path(), &format!("{model}/blobs/aa"), "{}");
    let snapshot = root.path().join(format!("{model}/snapshots/{COMMIT}"));
    fs::create_dir_all(&snapshot).unwrap();
    symlink(blob, snapshot.join("tokenizer.json")).unwrap();
    root
}

fn snapshots(root: &TempDir) -> PathBuf {
    root.path().join("hub/models--Org--Some-Model-7B/snapshots")
}

#[test]
fn a_name_is_found_in_the_hubs_cache_in_any_case() {
    let root = hub();
    let expected = snapshots(&root).join(COMMIT);
    for name in ["Org/Some-Model-7B", "org/some-model-7b"] {
        let found = locate(name, None, &roots(&root)).unwrap();
        assert_eq!((found.path, found.place), (expected.clone(), Place::Hub));
        assert_eq!(found.chats_differ, None);
    }
    let reported = locate("chat", Some("Org/Some-Model-7B"), &roots(&root)).unwrap();
    assert_eq!((reported.path, reported.place), (expected, Place::Hub));
}

#[test]
fn a_link_that_leads_nowhere_is_no_file() {
    let root = hub();
    fs::remove_file(root.path().join("hub/models--Org--Some-Model-7B/blobs/aa")).unwrap();
    let told = locate("Org/Some-Model-7B", None, &roots(&root)).unwrap_err().to_string();
    assert!(told.contains("holds no whole vocabulary"), "{told}");
    // Another snapshot may be whole, whatever `refs/main` says.
    let other = put(&snapshots(&root), "other/tokenizer.json", "{}");
    let found = locate("Org/Some-Model-7B", None, &roots(&root)).unwrap();
    assert_eq!(found.path, other.parent().unwrap());
}

#[test]
fn of_several_snapshots_the_newest_is_taken_where_none_is_named() {
    let root = hub();
    let old = put(&snapshots(&root), "old/tokenizer.json", "{}");
    let time = |path: &Path, seconds| {
        let file = fs::File::open(path).unwrap();
        let at = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(seconds);
        file.set_modified(at).unwrap();
    };
    fs::remove_file(root.path().join("hub/models--Org--Some-Model-7B/refs/main")).unwrap();
    let named = snapshots(&root).join(COMMIT);
    time(&named, 2000);
    time(old.parent().unwrap(), 1000);
    assert_eq!(locate("Org/Some-Model-7B", None, &roots(&root)).unwrap().path, named);
    time(old.parent().unwrap(), 3000);
    let newest = locate("Org/Some-Model-7B", None, &roots(&root)).unwrap().path;
    assert_eq!(newest, old.parent().unwrap());
}

#[test]
fn of_a_snapshot_of_gguf_files_one_is_taken() {
    let root = tempfile::tempdir().unwrap();
    let place = "hub/models--org--m-GGUF/snapshots/a";
    put(root.path(), &format!("{place}/m-Q8_0.gguf"), "GGUF...");
    put(root.path(), &format!("{place}/mmproj-f16.gguf"), "GGUF...");
    let first = put(root.path(), &format!("{place}/m-Q4_K_M.gguf"), "GGUF...");
    put(root.path(), &format!("{place}/a-cut.gguf"), "GG");
    assert_eq!(locate("org/m-GGUF", None, &roots(&root)).unwrap().path, first);
}

#[test]
fn names_lead_nowhere_but_below_the_roots() {
    let root = hub();
    let secret = put(root.path(), "secret/tokenizer.json", "{}");
    let mut all = roots(&root);
    all.folders.push(root.path().join("hub"));
    let long = "a/".repeat(3000);
    for name in [
        "../secret",
        "..",
        ".",
        "",
        "/",
        "a//b",
        "a/../../secret",
        "..:latest",
        long.as_str(),
        "a\0b",
    ] {
        let told = locate(name, None, &all).unwrap_err();
        assert!(!told.tried.is_empty(), "{name:?}");
        assert!(locate("m", Some(name), &all).is_err(), "{name:?}");
    }
    // `refs/main` is a file that somebody wrote.
    put(root.path(), "hub/models--Org--Some-Model-7B/refs/main", "../../../secret");
    let found = locate("Org/Some-Model-7B", None, &all).unwrap().path;
    assert_ne!(
        fs::canonicalize(found).unwrap(),
        fs::canonicalize(secret.parent().unwrap()).unwrap()
    );
}

fn digest(byte: &str) -> String {
    byte.repeat(32)
}

fn manifest(root: &TempDir, place: &str, layers: &[(&str, &str)]) {
    let layers: Vec<Value> = layers
        .iter()
        .map(|(kind, digest)| {
            let kind = format!("application/vnd.ollama.image.{kind}");
            json!({"mediaType": kind, "digest": format!("sha256:{digest}"), "size": 1})
        })
        .collect();
    let text = json!({"schemaVersion": 2, "layers": layers}).to_string();
    put(root.path(), &format!("ollama/manifests/{place}"), text);
}

#[test]
fn a_name_is_found_in_ollamas_store_with_a_word_on_chats() {
    let root = tempfile::tempdir().unwrap();
    let (model, template) = (digest("ab"), digest("cd"));
    let path = put(root.path(), &format!("ollama/blobs/sha256-{model}"), "GGUF...");
    let layers = [("template", template.as_str()), ("model", model.as_str())];
    manifest(&root, "registry.ollama.ai/library/llama3.2/latest", &layers);
    manifest(&root, "registry.ollama.ai/library/llama3.2/1b", &layers[1..]);
    manifest(&root, "registry.ollama.ai/me/mine/latest", &layers[1..]);
    manifest(&root, "hf.co/org/repo/Q4_K_M", &layers[1..]);
    for name in ["llama3.2", "llama3.2:latest", "llama3.2:1b", "me/mine", "hf.co/org/repo:Q4_K_M"] {
        let found = locate(name, None, &roots(&root)).unwrap();
        assert_eq!((found.path, found.place), (path.clone(), Place::Ollama), "{name}");
        assert!(found.chats_differ.is_some(), "{name}");
    }
    let told = locate("llama3.2:3b", None, &roots(&root)).unwrap_err().to_string();
    assert!(told.contains("llama3.2/3b does not exist"), "{told}");
    // A server that says it runs something else does not run this.
    assert!(locate("llama3.2", Some("/nowhere/x.gguf"), &roots(&root)).is_err());
}

#[test]
fn a_manifest_leads_nowhere_but_to_a_blob() {
    let root = tempfile::tempdir().unwrap();
    put(root.path(), "secret.gguf", "GGUF...");
    put(root.path(), &format!("ollama/blobs/sha256-{}", digest("ee")), "not a model");
    for digest in ["../../secret.gguf", "", &digest("ab"), &digest("ee")] {
        manifest(&root, "registry.ollama.ai/library/m/latest", &[("model", digest)]);
        let told = locate("m", None, &roots(&root)).unwrap_err().to_string();
        assert!(told.contains("names no model that is here"), "{told}");
    }
    put(root.path(), "ollama/manifests/registry.ollama.ai/library/m/latest", "[[");
    assert!(locate("m", None, &roots(&root)).is_err());
}

#[test]
fn what_the_server_reports_is_found_where_it_says() {
    let root = tempfile::tempdir().unwrap();
    let file = put(root.path(), "m/model.gguf", "GGUF...");
    let weights = put(root.path(), "hf/model.safetensors", "...");
    put(root.path(), "hf/tokenizer.json", "{}");
    let folder = weights.parent().unwrap();
    let text = |path: &Path| path.to_str().unwrap().to_owned();
    let at = |path: &Path| locate("m", Some(&text(path)), &roots(&root));
    assert_eq!(at(&file).unwrap().path, file);
    assert_eq!(at(folder).unwrap().path, folder);
    assert_eq!(at(&weights).unwrap().path, folder, "beside its weights");
    assert_eq!(at(folder).unwrap().place, Place::Reported);
    let told = at(&root.path().join("gone")).unwrap_err().to_string();
    assert!(told.contains("gone as the server reports it"), "{told}");
    assert!(told.contains("models--m"), "and it says where else it looked: {told}");
    assert!(at(Path::new("/dev/zero")).is_err());
}

#[test]
fn the_environment_tells_where_to_look() {
    let of = |variables: &[(&str, &str)]| {
        let variables: Vec<(String, String)> =
            variables.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect();
        Roots::from_env(move |name| {
            variables.iter().find(|(key, _)| key == name).map(|(_, value)| value.into())
        })
    };
    let hub = |variables: &[(&str, &str)]| of(variables).hubs.first().cloned();
    let home = ("HOME", "/home/x");
    assert_eq!(hub(&[home]), Some("/home/x/.cache/huggingface/hub".into()));
    assert_eq!(hub(&[home, ("XDG_CACHE_HOME", "/c")]), Some("/c/huggingface/hub".into()));
    assert_eq!(hub(&[home, ("XDG_CACHE_HOME", "/c"), ("HF_HOME", "/h")]), Some("/h/hub".into()));
    assert_eq!(hub(&[home, ("HF_HOME", "/h"), ("HF_HUB_CACHE", "/b")]), Some("/b".into()));
    assert_eq!(hub(&[("HF_HOME", "relative")]), None);
    assert_eq!(of(&[]).ollama, [PathBuf::from(OLLAMA_SERVICE)]);
    let ollama = of(&[home, ("OLLAMA_MODELS", "/o")]).ollama;
    assert_eq!(ollama, ["/o", "/home/x/.ollama/models", OLLAMA_SERVICE].map(PathBuf::from));
}
