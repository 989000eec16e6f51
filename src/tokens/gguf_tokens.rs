//! The tokens of a GGUF file: their types as llama.cpp corrects them, and which of them are added to texts.

use super::{gguf::Header, gguf_split::Split};
use serde_json::{Map, Value, json};

/// A token's type, as the file numbers them.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Of no importance here: normal, unused, undefined.
    Plain,
    /// Found in text before anything else, and part of no answer's text.
    Special,
    /// Found in text before anything else.
    Added,
    /// Stands for one byte.
    Byte,
}

pub(super) struct Token {
    pub(super) text: String,
    pub(super) kind: Kind,
    /// Whether it may be part of plain text, and its score says how likely.
    pub(super) normal: bool,
    pub(super) score: f32,
}

/// Tokens that end an answer, whatever type the file gives them.
const ENDS: [&str; 21] = [
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<|return|>",
    "<|call|>",
    "<|flush|>",
    "<|calls|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "</s>",
    "<|eom_id|>",
    "<EOT>",
    "_<EOT>",
    "[EOT]",
    "[EOS]",
    "<|end_of_text|>",
    "<end_of_utterance>",
    "<eos>",
    "<turn|>",
    "[e~[",
    "<\u{ff5c}end\u{2581}of\u{2581}sentence\u{ff5c}>",
];

/// Tokens around code to fill in. Those of a part are special whatever type the file gives them, unless
/// the file names the token of that part.
const FILLS: [(&[&str], &[&str]); 6] = [
    (
        &["fim_pre", "prefix"],
        &[
            "<|fim_prefix|>",
            "<fim-prefix>",
            "<fim_prefix>",
            "<\u{ff5c}fim\u{2581}begin\u{ff5c}>",
            "<PRE>",
            "\u{2581}<PRE>",
            "<|code_prefix|>",
            "<|prefix|>",
        ],
    ),
    (
        &["fim_suf", "suffix"],
        &[
            "<|fim_suffix|>",
            "<fim-suffix>",
            "<fim_suffix>",
            "<\u{ff5c}fim\u{2581}hole\u{ff5c}>",
            "<SUF>",
            "\u{2581}<SUF>",
            "<|code_suffix|>",
            "<|suffix|>",
        ],
    ),
    (
        &["fim_mid", "middle"],
        &[
            "<|fim_middle|>",
            "<fim-middle>",
            "<fim_middle>",
            "<\u{ff5c}fim\u{2581}end\u{ff5c}>",
            "<MID>",
            "\u{2581}<MID>",
            "<|code_middle|>",
            "<|middle|>",
        ],
    ),
    (&["fim_pad"], &["<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]"]),
    (&["fim_rep"], &["<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>"]),
    (&["fim_sep"], &["<|file_sep|>"]),
];

pub(super) fn tokens(header: &Header) -> Vec<Token> {
    let texts = header.texts("tokenizer.ggml.tokens");
    let kinds = header.integers("tokenizer.ggml.token_type");
    let scores = header.floats("tokenizer.ggml.scores");
    let mut tokens: Vec<Token> = Vec::with_capacity(texts.len());
    for (at, text) in texts.iter().enumerate() {
        let kind = match kinds.get(at) {
            Some(2 | 3) => Kind::Special,
            Some(4) => Kind::Added,
            Some(6) => Kind::Byte,
            _ => Kind::Plain,
        };
        let text = if text.is_empty() { format!("[EMPTY_{at}]") } else { text.clone() };
        let normal = matches!(kinds.get(at), None | Some(1));
        tokens.push(Token { text, kind, normal, score: scores.get(at).copied().unwrap_or(0.0) });
    }
    let has = |text: &str| texts.iter().any(|token| token == text);
    // Of a family where the turn goes on behind it, and one where it is plain text.
    let goes_on = has("<|end|>")
        && ((has("<|return|>") && has("<|call|>"))
            || (has("<|flush|>") && (has("<|call|>") || has("<|calls|>"))));
    let plain_s = has("<|tool_response>");
    let named = |part: &str| header.number(&format!("tokenizer.ggml.{part}_token_id")).is_some();
    let fills: Vec<&str> = FILLS
        .iter()
        .filter(|(parts, _)| !parts.iter().any(|part| named(part)))
        .flat_map(|(_, texts)| *texts)
        .copied()
        .collect();
    for token in &mut tokens {
        token.kind = match token.text.as_str() {
            "<|channel|>" | "<|message|>" | "<|start|>" | "<|constrain|>" => Kind::Added,
            "<|end|>" if goes_on => Kind::Added,
            "</s>" if plain_s => Kind::Plain,
            "<|tool_response>" => Kind::Special,
            text if ENDS.contains(&text) || fills.contains(&text) => Kind::Special,
            _ => token.kind,
        };
    }
    tokens
}

/// The special tokens by their part, and where they are added.
pub(super) struct Ids {
    pub(super) bos: Option<usize>,
    pub(super) eos: Option<usize>,
    pub(super) unk: Option<usize>,
    pub(super) add_bos: bool,
    pub(super) add_eos: bool,
}

impl Ids {
    /// Reads them, with llama.cpp's defaults. Tokens that are added become special ones.
    pub(super) fn of(header: &Header, model: &str, tokens: &mut [Token]) -> Self {
        let id = |name: &str, otherwise: Option<usize>| {
            let given = header.number(&format!("tokenizer.ggml.{name}_token_id"));
            given
                .and_then(|id| usize::try_from(id).ok())
                .filter(|id| *id < tokens.len())
                .or(otherwise.filter(|id| *id < tokens.len()))
        };
        let flag = |name: &str| header.flag(&format!("tokenizer.ggml.add_{name}_token"));
        let ids = match model {
            "bert" => Self {
                bos: id("bos", id("cls", Some(101))),
                eos: id("seperator", Some(102)),
                unk: id("unknown", Some(100)),
                add_bos: true,
                add_eos: true,
            },
            "llama" => Self {
                bos: id("bos", Some(1)),
                eos: id("eos", Some(2)),
                unk: id("unknown", Some(0)),
                add_bos: flag("bos").unwrap_or(true),
                add_eos: flag("eos").unwrap_or(false),
            },
            "gemma4" => Self {
                bos: id("bos", None),
                eos: id("eos", None),
                unk: id("unknown", None),
                add_bos: true,
                add_eos: flag("eos").unwrap_or(false),
            },
            "t5" => Self {
                bos: id("bos", None),
                eos: id("eos", Some(1)),
                unk: id("unknown", Some(2)),
                add_bos: flag("bos").unwrap_or(false),
                add_eos: flag("eos").unwrap_or(true),
            },
            _ => {
                let pre = header.text("tokenizer.ggml.pre").unwrap_or_default();
                let add_bos = Split::of(pre).is_some_and(|split| split.add_bos);
                let forced = matches!(pre, "gemma4" | "granite-embed-multi-311m");
                let bos = (!matches!(pre, "glm4" | "chatglm-bpe")).then_some(11);
                Self {
                    bos: id("bos", bos),
                    eos: id("eos", Some(11)),
                    unk: id("unknown", None),
                    add_bos: forced || flag("bos").unwrap_or(add_bos),
                    add_eos: flag("eos").unwrap_or(false),
                }
            }
        };
        for id in [ids.bos.filter(|_| ids.add_bos), ids.eos.filter(|_| ids.add_eos)] {
            if let Some(token) = id.and_then(|id| tokens.get_mut(id)) {
                token.kind = Kind::Special;
            }
        }
        ids
    }

    /// As `tokenizer_config.json` has them. Only special tokens are named: others would become special
    /// by being named.
    pub(super) fn tokenizer_config(&self, tokens: &[Token]) -> Map<String, Value> {
        let mut config = Map::new();
        for (name, id) in [("bos_token", self.bos), ("eos_token", self.eos)] {
            let token = id.and_then(|id| tokens.get(id));
            if let Some(token) = token.filter(|token| token.kind == Kind::Special) {
                config.insert(name.into(), token.text.as_str().into());
            }
        }
        config.insert("add_bos_token".into(), self.add_bos.into());
        config.insert("add_eos_token".into(), self.add_eos.into());
        config
    }

    /// The tokens that end an answer.
    pub(super) fn ends(&self, header: &Header, tokens: &[Token]) -> Vec<u64> {
        let mut ends: Vec<u64> = self.eos.into_iter().map(|id| id as u64).collect();
        for name in ["eot", "eom"] {
            ends.extend(header.number(&format!("tokenizer.ggml.{name}_token_id")));
        }
        for (id, token) in (0u64..).zip(tokens) {
            if token.kind == Kind::Special && ENDS.contains(&token.text.as_str()) {
                ends.push(id);
            }
        }
        ends.sort_unstable();
        ends.dedup();
        ends
    }

    pub(super) fn post_processor(&self, tokens: &[Token]) -> Value {
        let part = |id: Option<usize>, add: bool| {
            let id = id.filter(|_| add)?;
            Some((id, tokens.get(id)?.text.as_str()))
        };
        let (bos, eos) = (part(self.bos, self.add_bos), part(self.eos, self.add_eos));
        if bos.is_none() && eos.is_none() {
            return Value::Null;
        }
        let special =
            |(_, text): (usize, &str)| json!({"SpecialToken": {"id": text, "type_id": 0}});
        let text = |name: &str| json!({"Sequence": {"id": name, "type_id": 0}});
        let around = |middle: Vec<Value>| -> Vec<Value> {
            bos.map(special).into_iter().chain(middle).chain(eos.map(special)).collect()
        };
        let named: Map<String, Value> = bos
            .into_iter()
            .chain(eos)
            .map(|(id, text)| (text.to_owned(), json!({"id": text, "ids": [id], "tokens": [text]})))
            .collect();
        json!({
            "type": "TemplateProcessing", "single": around(vec![text("A")]),
            "pair": around(vec![text("A"), text("B")]), "special_tokens": named,
        })
    }
}

/// Which tokens swallow white space beside them. The file does not say; llama.cpp goes by names.
pub(super) struct Strips {
    phi_3: bool,
    mask: Option<&'static str>,
}

impl Strips {
    pub(super) fn of(header: &Header) -> Self {
        let pre = header.text("tokenizer.ggml.pre").unwrap_or_default();
        let architecture = header.text("general.architecture").unwrap_or_default();
        let name = header.text("general.name").unwrap_or_default().to_ascii_lowercase();
        let has = |text: &str, parts: &[&str]| parts.iter().any(|part| text.contains(part));
        let jina = has(pre, &["jina-v2-de", "jina-v2-es", "jina-v2-code"])
            || has(architecture, &["nomic-bert-moe", "jina-bert-v3"]);
        let phi_3 = !jina && has(&name, &["phi-3", "phi3"]);
        let modern = !jina && !phi_3 && name.contains("modern-bert");
        Self { phi_3, mask: if jina { Some("<mask>") } else { modern.then_some("[MASK]") } }
    }

    pub(super) fn left(&self, text: &str) -> bool {
        self.mask == Some(text)
    }

    pub(super) fn right(&self, text: &str) -> bool {
        self.phi_3 && !matches!(text, "<unk>" | "<s>" | "<|endoftext|>")
    }
}
