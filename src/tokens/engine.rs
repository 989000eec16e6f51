//! The two tokenizer engines. The only file that knows the tokenizer crates.
//!
//! The fast one is some 40 times faster and runs every pre-tokenizer pattern in common use; a file with a
//! pattern of its own goes to the classic one, which gives the same ids and runs any pattern.

use super::CountError;
use serde_json::Value;
use std::cell::RefCell;
use tokenizers::pipeline::{
    EncodeOptions, Override, PipelineModel, PipelineToken, PipelineTokenizer,
};
use tokenizers_classic::{PostProcessor, Tokenizer};

/// A thread keeps its vector of ids between calls up to this many.
const KEPT_IDS_MAX: usize = 1 << 20;

/// Text with letters, digits, punctuation and white space, so that every stage of a tokenizer runs.
const TRIAL: &str = "Hello, it's 2 o'clock.\n\tAnd  then\u{e9}?";

thread_local! {
    /// Reused by every count on this thread, so that counting allocates nothing.
    static IDS: RefCell<Vec<PipelineToken>> = const { RefCell::new(Vec::new()) };
}

/// A loaded tokenizer.
pub(super) enum Engine {
    /// The usual one.
    Fast(Box<PipelineTokenizer>),
    /// For patterns that the fast one does not know.
    Classic(Box<Tokenizer>),
}

impl Engine {
    /// Builds the fast engine if it can run this file, else the classic one.
    pub(super) fn load(file: Value) -> Result<Self, String> {
        let fast = unpanicked(|| fast(file.clone())).and_then(|engine| {
            // A pattern that it does not know shows only when text comes.
            engine.with_ids(TRIAL, false, |_| ()).map_err(|error| error.to_string())?;
            // What servers run is the classic one: where the two differ, it is right.
            match unpanicked(|| classic(&file).map_err(|error| error.to_string())) {
                Ok(classic) if !agree(&engine, &classic, &file) => {
                    Err("it gives other ids than the classic one".to_owned())
                }
                _ => Ok(engine),
            }
        });
        fast.or_else(|why| {
            tracing::debug!(why, "the fast tokenizer cannot run this file; taking the classic one");
            unpanicked(|| classic(&file).map_err(|error| error.to_string()))
        })
    }

    /// Encodes and hands the ids to `read`, which must not encode itself.
    pub(super) fn with_ids<T>(
        &self,
        text: &str,
        add_special: bool,
        read: impl FnOnce(&[u32]) -> T,
    ) -> Result<T, CountError> {
        let failed = |error: String| CountError::Encode(error);
        let fast = match self {
            Self::Fast(fast) => fast,
            Self::Classic(classic) => {
                let encoded = unpanicked(|| {
                    classic.encode_fast(text, add_special).map_err(|error| error.to_string())
                });
                return encoded.map(|ids| read(ids.get_ids())).map_err(failed);
            }
        };
        let options = EncodeOptions {
            add_special_tokens: add_special,
            encode_special_tokens: false,
            // Files of embedding models pad and truncate; a count must do neither.
            padding: Override::Off,
            truncation: Override::Off,
        };
        IDS.with_borrow_mut(|ids| {
            ids.clear();
            let encoded = unpanicked(|| {
                fast.encode_into(text, &options, ids).map_err(|error| error.to_string())
            });
            let result = encoded.map(|()| read(PipelineToken::cast_slice(ids)));
            if ids.capacity() > KEPT_IDS_MAX {
                *ids = Vec::new();
            }
            result.map_err(failed)
        })
    }
}

impl Engine {
    /// Special tokens around two texts that are encoded as a pair. `None`: nothing stands between them.
    pub(super) fn around_pairs(&self) -> Option<usize> {
        match self {
            Self::Fast(fast) => {
                let pair = &fast.get_post_processor().pair;
                (!pair.infix.is_empty()).then(|| pair.n_special())
            }
            Self::Classic(classic) => {
                let added = |pair: bool| {
                    classic.get_post_processor().map_or(0, |processor| processor.added_tokens(pair))
                };
                (added(true) > added(false)).then(|| added(true))
            }
        }
    }

    /// A token as the vocabulary writes it. `None`: it has no such token, or this engine keeps its tokens
    /// as the bytes that they stand for.
    pub(super) fn token(&self, id: u32) -> Option<String> {
        match self {
            Self::Fast(fast) => match fast.get_model() {
                PipelineModel::BPE(model) if model.is_byte_level() => None,
                _ => fast.decode_tokens(&[id], false).pop(),
            },
            Self::Classic(classic) => classic.id_to_token(id),
        }
    }
}

/// Whether two engines give the same ids for texts around a file's added tokens, where odd files part them.
fn agree(one: &Engine, other: &Engine, file: &Value) -> bool {
    /// Added tokens that are tried; files list the ones that matter first, and reserve hundreds.
    const TOKENS_MAX: usize = 48;
    const PLAIN: [&str; 14] = [
        "",
        " ",
        "  hi",
        "hi ",
        "\n\n",
        "Hello, it's 2 o'clock.\n\tAnd  then\u{e9}?",
        "``quoted''",
        "A B\u{a0}C",
        "e\u{301}E\u{301}",
        "\u{4eca}\u{65e5}\u{306f} \u{d55c}\u{ad6d}\u{c5b4}",
        "\u{1f44d}\u{1f3fd}",
        "1234567 3.14",
        "snake_case camelCase [SEP] ##ing",
        "\u{fb01}\u{130}\u{df}",
    ];
    let tokens = file.get("added_tokens").and_then(Value::as_array).into_iter().flatten();
    let tokens = tokens.filter_map(|token| token.get("content")?.as_str()).take(TOKENS_MAX);
    let around = tokens.flat_map(|token| {
        [
            token.to_owned(),
            format!("{token}hi"),
            format!("{token} hi"),
            format!("hi {token}\n\nx{token}x"),
            format!(" {token} {token}{token} the"),
        ]
    });
    let same = |text: &str, add_special: bool| {
        let ids = |engine: &Engine| engine.with_ids(text, add_special, <[u32]>::to_vec).ok();
        ids(one) == ids(other)
    };
    PLAIN.iter().all(|text| same(text, false) && same(text, true))
        && around.into_iter().all(|text| same(&text, false))
}

/// Runs what a tokenizer library does: some odd files make it panic, at load or at some text.
fn unpanicked<T>(run: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
    let ran = std::panic::catch_unwind(std::panic::AssertUnwindSafe(run));
    ran.unwrap_or_else(|_| Err("the tokenizer library panicked over it".to_owned()))
}

fn fast(mut file: Value) -> Result<Engine, String> {
    // Files in circulation are older than the crate's own form.
    tokenizers::canonicalize_value(&mut file).map_err(|error| error.to_string())?;
    let text = file.to_string();
    drop(file);
    let engine = tokenizers::from_json(&text).map_err(|error| error.to_string())?;
    Ok(Engine::Fast(Box::new(engine)))
}

fn classic(file: &Value) -> Result<Engine, tokenizers_classic::Error> {
    let mut tokenizer: Tokenizer = file.to_string().parse()?;
    tokenizer.with_padding(None);
    tokenizer.with_truncation(None)?;
    Ok(Engine::Classic(Box::new(tokenizer)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn file(pattern: &str) -> Value {
        json!({
            "version": "1.0", "added_tokens": [], "normalizer": null, "post_processor": null,
            "decoder": null, "truncation": null, "padding": null,
            "pre_tokenizer": {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false},
            "model": {"type": "BPE", "dropout": null, "unk_token": "?", "continuing_subword_prefix": null,
                "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
                "vocab": {"?": 0, "a": 1, "b": 2, "ab": 3}, "merges": ["a b"]},
        })
    }

    #[test]
    fn a_pattern_of_its_own_runs_on_the_classic_engine() {
        let engine = Engine::load(file("a(?=b)|[ab]")).unwrap();
        assert!(matches!(engine, Engine::Classic(_)));
        // Cut between a and b by the pattern, so the merge does not apply.
        assert_eq!(engine.with_ids("ab", false, <[u32]>::to_vec).unwrap(), [1, 2]);
    }

    /// Both libraries panic over some odd files; the daemon must not go down with them.
    #[test]
    fn files_that_libraries_panic_over_are_refused() {
        let mut odd = file("[ab]");
        odd["model"]["continuing_subword_prefix"] = json!("##");
        odd["model"]["merges"] = json!(["a b"]);
        let _ = Engine::load(odd);
        let mut odd = file(r"\s+");
        odd["added_tokens"] = json!([{"id": 9, "content": "\u{fb01}", "single_word": true, "lstrip": false,
            "rstrip": false, "normalized": false, "special": true}]);
        if let Ok(engine) = Engine::load(odd) {
            let _ = engine.with_ids("x\u{fb01}x", false, <[u32]>::to_vec);
        }
    }

    /// The fast one put a space in front of a text that begins with such a token.
    #[test]
    fn where_the_engines_part_the_classic_one_counts() {
        let folder =
            std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/counts/inst");
        let text = std::fs::read_to_string(folder.join("tokenizer.json")).unwrap();
        let mut file: Value = serde_json::from_str(&text).unwrap();
        assert!(matches!(Engine::load(file.clone()).unwrap(), Engine::Fast(_)));
        let tokens = file["added_tokens"].as_array_mut().unwrap();
        let token = tokens.iter_mut().find(|token| token["content"] == "[INST]").unwrap();
        token["normalized"] = json!(true);
        let engine = Engine::load(file).unwrap();
        assert_eq!(engine.with_ids("[INST]hi", false, <[u32]>::len).unwrap(), 3);
    }

    #[test]
    fn a_known_pattern_runs_on_the_fast_engine() {
        let llama = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
        let engine = Engine::load(file(llama)).unwrap();
        assert!(matches!(engine, Engine::Fast(_)));
        assert_eq!(engine.with_ids("ab", false, <[u32]>::to_vec).unwrap(), [3]);
    }

    fn cross_encoder(words: &[&str]) -> Value {
        let vocab: serde_json::Map<String, Value> =
            words.iter().enumerate().map(|(id, word)| ((*word).to_owned(), id.into())).collect();
        let special = |id: u32, content: &str| {
            json!({"id": id, "content": content, "special": true, "normalized": false,
                "single_word": false, "lstrip": false, "rstrip": false})
        };
        let piece = |name: &str, id: u32| json!([name, id]);
        json!({
            "version": "1.0", "added_tokens": [special(0, "[CLS]"), special(1, "[SEP]"), special(2, "[UNK]")],
            "normalizer": null, "decoder": null, "truncation": {"max_length": 4, "strategy": "LongestFirst",
                "stride": 0, "direction": "Right"}, "padding": null,
            "pre_tokenizer": {"type": "Whitespace"},
            "post_processor": {"type": "BertProcessing", "sep": piece("[SEP]", 1), "cls": piece("[CLS]", 0)},
            "model": {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
                "max_input_chars_per_word": 100, "vocab": vocab},
        })
    }

    /// The classic engine encodes pairs itself; what is summed up must be the same.
    #[test]
    fn a_pair_costs_its_texts_and_what_stands_around_them() {
        let file = cross_encoder(&["[CLS]", "[SEP]", "[UNK]", "rain", "##s", "in", "spain"]);
        let (fast, classic) = (Engine::load(file.clone()).unwrap(), classic(&file).unwrap());
        assert!(matches!(fast, Engine::Fast(_)));
        let Engine::Classic(oracle) = &classic else { panic!("the classic one was asked for") };
        for engine in [&fast, &classic] {
            let around = engine.around_pairs().unwrap();
            for (first, second) in
                [("rain", "rains in spain"), ("", ""), ("nowhere [SEP]", "in"), ("rain in", "")]
            {
                let count = |text: &str| engine.with_ids(text, false, <[u32]>::len).unwrap();
                let whole = oracle.encode_fast((first, second), true).unwrap().get_ids().len();
                assert_eq!(count(first) + count(second) + around, whole, "{first:?} {second:?}");
            }
            assert_eq!(engine.token(4).as_deref(), Some("##s"));
        }
    }

    #[test]
    fn without_anything_between_them_texts_are_no_pair() {
        let engine = Engine::load(file("a(?=b)|[ab]")).unwrap();
        assert_eq!(engine.around_pairs(), None);
        let llama = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
        assert_eq!(Engine::load(file(llama)).unwrap().around_pairs(), None);
    }
}
