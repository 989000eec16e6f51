//! Real vocabularies in GGUF form against reference ids, where somebody has them at hand.
//!
//! Set `BERTHD_VOCAB_DIR` to a folder with files `NAME.gguf`, each with texts beside it in
//! `NAME.gguf.inp`, separated by lines `__ggml_vocab_test__`, and their ids in `NAME.gguf.out`, a line for
//! each text. llama.cpp keeps such files in its folder `models`. Where there is a `NAME.gguf.chats`, each of
//! its lines is a chat request with the count by a llama.cpp server as `n`.

use berthd::{
    snapshot::ServerKind,
    tokens::{ModelFiles, Profile},
    units::Tokens,
};
use serde_json::Value;
use std::{fs, path::Path};

/// Texts and chats of one vocabulary that came out as the reference says, and all of them.
fn right_ids(vocabulary: &Path) -> (usize, usize) {
    let beside = |end: &str| fs::read_to_string(vocabulary.with_extension(format!("gguf.{end}")));
    let (texts, ids) = (beside("inp").unwrap(), beside("out").unwrap());
    let files = ModelFiles::load(vocabulary).unwrap();
    let (mut right, mut all) = (0, 0);
    for (text, line) in texts.split("\n__ggml_vocab_test__\n").zip(ids.lines()) {
        let expected: Vec<u32> = line.split_whitespace().map(|id| id.parse().unwrap()).collect();
        let found = files.text_ids(text, false).unwrap();
        all += 1;
        right += usize::from(found == expected);
        if found != expected {
            println!("  {text:?}\n    expected {expected:?}\n    found    {found:?}");
        }
    }
    let Ok(chats) = beside("chats") else { return (right, all) };
    let profile = Profile::of(ServerKind::LlamaCpp);
    for line in chats.lines() {
        let chat: Value = serde_json::from_str(line).unwrap();
        let Some(expected) = chat["n"].as_u64() else { continue };
        let found = files.count_chat(&profile, chat.as_object().unwrap());
        all += 1;
        right += usize::from(found == Ok(Tokens(expected)));
        if found != Ok(Tokens(expected)) {
            println!("  expected {expected}, found {found:?}: {}", chat["messages"]);
        }
    }
    (right, all)
}

#[test]
fn real_vocabularies_give_the_reference_ids() {
    let Some(folder) = std::env::var_os("BERTHD_VOCAB_DIR") else {
        println!("SKIPPED: real vocabularies are not checked; set BERTHD_VOCAB_DIR to check them");
        return;
    };
    let entries = fs::read_dir(folder).unwrap().flatten().map(|entry| entry.path());
    let mut vocabularies: Vec<_> =
        entries.filter(|path| path.extension().is_some_and(|end| end == "gguf")).collect();
    vocabularies.sort();
    let mut wrong = 0;
    for vocabulary in &vocabularies {
        let (right, all) = right_ids(vocabulary);
        println!("{right:>3} of {all} {}", vocabulary.file_stem().unwrap().display());
        wrong += all - right;
        assert!(all > 0, "no texts for {}", vocabulary.display());
    }
    assert!(!vocabularies.is_empty(), "no vocabularies in the folder");
    assert_eq!(wrong, 0, "texts with other ids");
}
