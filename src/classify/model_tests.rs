//! The shipped models against what Python says of the same texts.

use super::{Classifier, Library, Model, Runtime, Spec};
use serde_json::Value;
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn fixture(path: &str) -> Value {
    let path = root().join("tests/it/fixtures/screen").join(path);
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// ONNX Runtime where `scripts/onnxruntime` put it.
fn library() -> Option<Library> {
    let path = root().join(".cache/onnxruntime/libonnxruntime.so");
    match Library::find(Some(&path)) {
        Ok(library) => Some(library),
        Err(why) => {
            println!("skipped: ONNX Runtime is not here ({why}); scripts/onnxruntime fetches it");
            None
        }
    }
}

fn load(folder: &Path, runtime: Runtime, library: Option<&Library>) -> Model {
    let spec = Spec { folder: folder.to_owned(), runtime, ..Spec::default() };
    Model::load(&spec, library.ok_or("not asked for")).unwrap()
}

fn numbers(value: &Value) -> Vec<f32> {
    value.as_array().unwrap().iter().map(|number| number.as_f64().unwrap() as f32).collect()
}

fn worst(ours: &[f32], theirs: &[f32]) -> f32 {
    assert_eq!(ours.len(), theirs.len());
    ours.iter().zip(theirs).map(|(one, other)| (one - other).abs()).fold(0.0, f32::max)
}

/// First windows and raw outputs of every text, as Python has them.
fn check(name: &str, model: &Model, tolerance: f32) {
    let mut classifier = model.classifier().unwrap();
    let (mut gap, mut texts) = (0.0_f32, 0);
    for text in fixture("parity.json")["texts"].as_array().unwrap() {
        let wanted = &text[name];
        let cut = model.cut(text["folded"].as_str().unwrap(), usize::MAX).unwrap();
        let ids: Vec<u32> = wanted["first_ids"]
            .as_array()
            .unwrap()
            .iter()
            .map(|id| id.as_u64().unwrap() as u32)
            .collect();
        assert_eq!(cut.windows[0], ids, "{name}: {}", text["text"]);
        assert_eq!(
            cut.windows.len() as u64,
            wanted["windows"].as_u64().unwrap(),
            "{name}: {}",
            text["text"]
        );
        let rows = run(&mut *classifier, &cut.windows);
        gap = gap.max(worst(&rows[0], &numbers(&wanted["first_logits"])));
        let most = rows.iter().skip(1).fold(rows[0].clone(), |most, row| {
            most.iter().zip(row).map(|(one, other)| one.max(*other)).collect()
        });
        gap = gap.max(worst(&most, &numbers(&wanted["max_logits"])));
        texts += 1;
    }
    println!("{name} {}: worst difference {gap} over {texts} texts", model.runtime().as_str());
    assert!(gap < tolerance, "{name}: {gap}");
}

fn run(classifier: &mut dyn Classifier, windows: &[Vec<u32>]) -> Vec<Vec<f32>> {
    let windows: Vec<&[u32]> = windows.iter().map(Vec::as_slice).collect();
    classifier.run(&windows).unwrap()
}

#[cfg(feature = "candle")]
#[test]
fn candle_gives_what_python_gives() {
    for name in ["injection-a", "injection-b", "output"] {
        let model = load(&root().join("models").join(name), Runtime::Candle, None);
        check(name, &model, 1e-3);
    }
}

#[test]
fn onnx_runtime_gives_what_python_gives() {
    let Some(library) = library() else { return };
    let worst = fixture("parity.json")["int8_worst_difference"].as_f64().unwrap() as f32;
    for (name, tolerance) in
        [("injection-a", 1e-3), ("injection-b", worst + 0.05), ("output", 1e-3)]
    {
        let model = load(&root().join("models").join(name), Runtime::Onnx, Some(&library));
        check(name, &model, tolerance);
    }
}

/// Texts of many languages and kinds: every third of what the models were trained with.
#[cfg(feature = "candle")]
fn seeds() -> Vec<String> {
    let files = ["attacks_a1", "frames_a2", "benign_a3", "languages_a4"];
    let lines = files.map(|name| {
        let path = root().join(format!("models/train/screen/seeds/{name}.jsonl"));
        std::fs::read_to_string(path).unwrap()
    });
    let texts = lines.iter().flat_map(|text| text.lines()).step_by(3).map(|line| {
        let value: Value = serde_json::from_str(line).unwrap();
        value["text"].as_str().unwrap().to_owned()
    });
    texts.take(500).collect()
}

/// The two runtimes agree on probabilities, over many texts of many kinds.
#[cfg(feature = "candle")]
#[test]
fn both_runtimes_give_the_same_probabilities() {
    let Some(library) = library() else { return };
    let texts = seeds();
    assert_eq!(texts.len(), 500);
    for (name, tolerance) in [("injection-a", 1e-3), ("injection-b", 0.04), ("output", 1e-3)] {
        let folder = root().join("models").join(name);
        let [one, other] =
            [Runtime::Candle, Runtime::Onnx].map(|runtime| load(&folder, runtime, Some(&library)));
        let (mut first, mut second) = (one.classifier().unwrap(), other.classifier().unwrap());
        let mut gap = 0.0_f32;
        for text in &texts {
            let ours = one.score(&mut *first, text, 8).unwrap();
            let theirs = other.score(&mut *second, text, 8).unwrap();
            gap = gap.max(worst(&ours, &theirs));
        }
        println!("{name}: worst difference between the runtimes {gap} over {} texts", texts.len());
        assert!(gap < tolerance, "{name}: {gap}");
    }
}

/// What somebody else's model says, window by window and joined, beside Python's word.
fn check_brought(name: &str, model: &Model) {
    let mut classifier = model.classifier().unwrap();
    let wanted = &fixture("expected.json")["models"][name];
    let labels: Vec<&str> =
        wanted["labels"].as_array().unwrap().iter().map(|label| label.as_str().unwrap()).collect();
    let (mut gap, mut texts) = (0.0_f32, 0);
    for text in wanted["texts"].as_array().unwrap() {
        let cut = model.cut(text["text"].as_str().unwrap(), usize::MAX).unwrap();
        let ids = |list: &Value| -> Vec<u32> {
            list.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
        };
        let windows = match text.get("windows") {
            Some(windows) => windows.as_array().unwrap().iter().map(ids).collect(),
            None => vec![ids(&text["ids"])],
        };
        assert_eq!(cut.windows, windows, "{name}: {}", text["text"]);
        if let Some(logits) = text.get("logits") {
            gap = gap.max(worst(&run(&mut *classifier, &windows)[0], &numbers(logits)));
        }
        let scores =
            model.score(&mut *classifier, text["text"].as_str().unwrap(), usize::MAX).unwrap();
        let probabilities = numbers(&text["probabilities"]);
        for (label, score) in model.plan().labels.iter().zip(scores) {
            let at = labels.iter().position(|one| one == label).unwrap();
            assert!(
                (score - probabilities[at]).abs() < 1e-4,
                "{name}: {label} of {}",
                text["text"]
            );
        }
        texts += 1;
    }
    println!("{name} {}: worst difference {gap} over {texts} texts", model.runtime().as_str());
    assert!(gap < 1e-3 && texts > 20, "{name}: {gap} over {texts}");
}

#[cfg(feature = "candle")]
#[test]
fn a_bert_folder_that_somebody_brings_runs_in_candle() {
    let model = load(&root().join("tests/it/fixtures/screen/tiny-bert"), Runtime::Candle, None);
    assert_eq!(model.plan().labels, ["INJECTION"]);
    check_brought("tiny-bert", &model);
}

#[test]
fn a_deberta_that_somebody_exported_runs_in_onnx_runtime() {
    let folder = root().join("tests/it/fixtures/screen/tiny-deberta");
    let spec = Spec { folder: folder.clone(), runtime: Runtime::Candle, ..Spec::default() };
    let candle = Model::load(&spec, Err("not asked for")).unwrap_err().to_string();
    assert!(candle.contains("onnx"), "the error says what would work: {candle}");
    let Some(library) = library() else { return };
    let model = load(&folder, Runtime::Onnx, Some(&library));
    assert_eq!(model.plan().labels, ["INJECTION", "JAILBREAK"]);
    check_brought("tiny-deberta", &model);
}

/// A copy of a folder with one file put in.
fn folder_with(from: &str, file: &str, bytes: &[u8]) -> tempfile::TempDir {
    let copy = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(root().join(from)).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, copy.path().join(path.file_name().unwrap())).unwrap();
    }
    std::fs::write(copy.path().join(file), bytes).unwrap();
    copy
}

/// However long a text is, only so much of it is encoded, from its beginning to its end.
#[cfg(feature = "candle")]
#[test]
fn long_texts_are_looked_at_all_over_and_in_bounded_time() {
    let model = load(&root().join("models/injection-a"), Runtime::Candle, None);
    let text = format!("first {} last", "\u{3042} middle ".repeat(200_000));
    let cut = model.cut(&text, 5).unwrap();
    assert!(cut.incomplete && cut.windows.len() == 5);
    let short = model.cut("first", 5).unwrap();
    assert_eq!(cut.windows[0][0], short.windows[0][0], "it begins at the beginning");
    let size = model.plan().window_tokens;
    assert!(cut.windows.iter().all(|window| window.len() == size), "{:?}", cut.windows.len());
    let some = model.cut(&"one two three ".repeat(400), 3).unwrap();
    assert!(some.incomplete && some.windows.len() == 3);
}

fn refused(folder: &Path, runtime: Runtime, library: Option<&Library>) -> String {
    let spec = Spec { folder: folder.to_owned(), runtime, ..Spec::default() };
    Model::load(&spec, library.ok_or("the library is not installed")).unwrap_err().to_string()
}

#[cfg(feature = "candle")]
#[test]
fn broken_weights_are_refused_at_load_with_the_reason() {
    const BERT: &str = "tests/it/fixtures/screen/tiny-bert";
    let fixtures = root().join("tests/it/fixtures/screen");
    let whole = std::fs::read(fixtures.join("tiny-bert/model.safetensors")).unwrap();
    let half = folder_with(BERT, "model.safetensors", &whole[..whole.len() / 2]);
    assert!(refused(half.path(), Runtime::Candle, None).contains("model.safetensors"));
    let nan = folder_with(
        BERT,
        "model.safetensors",
        &std::fs::read(fixtures.join("nan-bert.safetensors")).unwrap(),
    );
    assert!(refused(nan.path(), Runtime::Candle, None).contains("no number"));
    let other = folder_with(BERT, "tokenizer.json", b"{}");
    assert!(refused(other.path(), Runtime::Candle, None).contains("tokenizer.json"));
    let absent = refused(&fixtures.join("tiny-bert"), Runtime::Onnx, None);
    assert!(absent.contains("the library is not installed"), "{absent}");
}

#[cfg(feature = "candle")]
#[test]
fn broken_onnx_files_are_refused_at_load_with_the_reason() {
    const DEBERTA: &str = "tests/it/fixtures/screen/tiny-deberta";
    let Some(library) = library() else { return };
    let fixtures = root().join("tests/it/fixtures/screen");
    let newer = std::fs::read(fixtures.join("wrong-opset/model.onnx")).unwrap();
    let newer = folder_with(DEBERTA, "model.onnx", &newer);
    let why = refused(newer.path(), Runtime::Onnx, Some(&library));
    assert!(why.contains("model.onnx") && why.to_lowercase().contains("opset"), "{why}");
    let whole = std::fs::read(fixtures.join("tiny-deberta/model.onnx")).unwrap();
    let half = folder_with(DEBERTA, "model.onnx", &whole[..whole.len() / 2]);
    assert!(refused(half.path(), Runtime::Onnx, Some(&library)).contains("model.onnx"));
    let spoilt = folder_with("models/injection-a", "model.onnx", b"not a model");
    let spec = Spec { folder: spoilt.path().to_owned(), ..Spec::default() };
    assert_eq!(Model::load(&spec, Ok(&library)).unwrap().runtime(), Runtime::Candle);
    let odd = folder_with(DEBERTA, "model.onnx", b"not a model");
    assert!(refused(odd.path(), Runtime::Onnx, Some(&library)).contains("model.onnx"));
    let wrong = Library::find(Some(&fixtures.join("tiny-deberta/model.onnx"))).unwrap_err();
    println!("a library that is none: {wrong}");
}
