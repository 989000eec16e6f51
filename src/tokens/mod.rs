//! What text costs: exact input tokens of a request, from the files of its model.
//!
//! A conversation is prepared as its server prepares it, rendered through the model's own template and
//! encoded with the model's own tokenizer; what was counted before is remembered. Knows no server and no
//! request queue.

use crate::units::Tokens;
use serde_json::{Map, Value, json};
use std::{collections::BTreeMap, path::Path, path::PathBuf, sync::Arc};

mod blocks;
mod content;
mod encoder;
mod engine;
mod files;
mod forgery;
mod gguf;
#[cfg(test)]
mod gguf_reference_tests;
mod gguf_split;
#[cfg(test)]
mod gguf_tests;
mod gguf_tokens;
mod gguf_vocab;
mod harmless;
mod jinja;
pub mod locate;
mod memo;
mod messages;
mod other_apis;
mod profile;
mod python;
mod ranked;
#[cfg(test)]
mod ranked_tests;
mod seams;
mod sentencepiece;
mod spelling;
mod strings;
mod tekken;
mod template;
mod tiktoken;
mod unspellable;
mod vocabulary;

pub use blocks::{BlockRule, PrefixBlocks, block_hash};
pub use encoder::Encoder;
pub use forgery::{Checked, Spelled};
pub use memo::{Allowance, CACHE_BYTES, CacheUse, key_of_texts};
pub use profile::Profile;

use forgery::Guard;
use jinja::Value as Rendered;
use memo::{Memo, Sum};
use messages::{Ending, Prepared, Wants};
use template::{Clock, Template};
use vocabulary::Vocabulary;

/// The tokenizer and the chat template of one model folder. Loaded once (a 128k vocabulary takes about a
/// second and 100 MB), shared by `Arc`; every method may be called from any thread.
pub struct ModelFiles {
    memo: Arc<Memo>,
    guard: Guard,
    chat: Chat,
    clock: Clock,
    /// Special tokens by the name that templates know them by.
    named_tokens: BTreeMap<String, String>,
    added: AddedAround,
    eos_ids: Vec<u32>,
    context_window: Option<Tokens>,
    fingerprint: String,
    is_gguf: bool,
}

/// Why a folder could not be loaded. Nothing is kept.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The folder has no such file.
    #[error("{0} does not exist")]
    Missing(PathBuf),
    /// A file cannot be read or is not what it should be.
    #[error("cannot read {0}: {1}")]
    Unreadable(PathBuf, String),
    /// The tokenizer is of a kind, or uses a part, that we do not know.
    #[error("unusable tokenizer: {0}")]
    Tokenizer(String),
}

/// Why a request could not be counted. Nothing has changed; another request may well be counted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CountError {
    /// The template itself refused the conversation; its words. The caller's to mend.
    #[error("{0}")]
    Template(String),
    /// The body has no list of messages.
    #[error("the request has no messages")]
    NoMessages,
    /// These files cannot tell (no template, or content other than text). Ask the server, or estimate.
    #[error("cannot be counted here: {0}")]
    NotAvailable(String),
    /// Counting would take too long. The caller's to mend: the request is out of proportion.
    #[error("too costly to count: {0}")]
    TooCostly(String),
    /// The template broke on this conversation. The server's may or may not; ask it, or estimate.
    #[error("the chat template failed: {0}")]
    Render(String),
    /// The tokenizer failed. Ask the server, or estimate.
    #[error("the tokenizer failed: {0}")]
    Encode(String),
    /// More work than [`Allowance::Little`] covers. Count again with [`Allowance::Whole`].
    #[error("more work than allowed at once")]
    Deferred,
}

/// The templates of a model.
enum Chat {
    /// There is none, or none that compiles; the text says which.
    None(String),
    /// The default one, and the one for requests with tools where the model brings its own.
    Some { default: Box<Loaded>, tools: Option<Box<Loaded>> },
}

/// The tokens that llama.cpp puts around every text of this model, text and id.
#[derive(Default)]
struct AddedAround {
    bos: Option<(String, u32)>,
    eos: Option<(String, u32)>,
}

struct Loaded {
    template: Template,
    wants: Wants,
}

// === impl ModelFiles ===

impl ModelFiles {
    /// Loads a folder with `tokenizer.json` and, for chat, a template; or a GGUF file, named itself or the
    /// only one of its folder. Blocks for up to some seconds.
    pub fn load(folder: &Path) -> Result<Self, LoadError> {
        Self::load_with(folder, CACHE_BYTES)
    }

    /// As [`ModelFiles::load`]; what was counted before takes at most about `cache_bytes`.
    ///
    /// # Errors
    /// As [`LoadError`].
    pub fn load_with(folder: &Path, cache_bytes: u64) -> Result<Self, LoadError> {
        let folder = files::Folder::read(folder)?;
        let named_tokens: BTreeMap<String, String> =
            vocabulary::named_tokens(&folder.tokenizer_config)
                .map(|(name, content)| (name.to_owned(), content.to_owned()))
                .collect();
        let vocabulary = Vocabulary::load(folder.tokenizer, &folder.tokenizer_config)
            .map_err(LoadError::Tokenizer)?;
        let added = AddedAround::of(&vocabulary, &folder.tokenizer_config, &named_tokens);
        let mut eos_ids = ids_of(folder.generation_config.get("eos_token_id"));
        if eos_ids.is_empty() {
            let named =
                named_tokens.get("eos_token").and_then(|content| vocabulary.added_id(content));
            eos_ids.extend(named);
        }
        let window = |config: &Map<String, Value>| config.get("max_position_embeddings")?.as_u64();
        // Models of several parts keep the language model's figures one level down.
        let inner = folder.config.get("text_config").and_then(Value::as_object);
        let context_window = window(&folder.config).or_else(|| window(inner?)).map(Tokens);
        let clock = Clock::default();
        let templates = folder.templates.values().map(String::as_str);
        let mut files = Self {
            guard: Guard::new(vocabulary.added_tokens(), templates),
            chat: Chat::load(&folder.templates, &clock, &named_tokens),
            memo: Arc::new(Memo::new(vocabulary, cache_bytes)),
            clock,
            named_tokens,
            added,
            eos_ids,
            context_window,
            fingerprint: folder.fingerprint,
            is_gguf: folder.is_gguf,
        };
        if !files.is_proven() {
            tracing::warn!(
                fingerprint = files.fingerprint,
                "this chat template cannot be counted turn by turn; conversations are rendered whole"
            );
            files.chat.forget_plans();
        }
        Ok(files)
    }

    /// The text of the model's `tokenizer.json`, or what a file of another kind says in its form. For
    /// comparison with other libraries.
    pub fn tokenizer_json(folder: &Path) -> Result<String, LoadError> {
        Ok(files::Folder::read(folder)?.tokenizer.to_string())
    }

    /// Stops the clock that templates read the date from, so that counts can be repeated.
    #[must_use]
    pub fn with_clock_at(self, now: jiff::Zoned) -> Self {
        self.clock.stop(now);
        self
    }

    /// The prompt of a whole chat request body.
    pub fn chat_text(
        &self,
        profile: &Profile,
        body: &Map<String, Value>,
    ) -> Result<String, CountError> {
        let (mut text, apart) = self.render(profile, body)?;
        text.push_str(apart.as_deref().unwrap_or_default());
        Ok(text)
    }

    /// The ids of a whole chat request body's prompt.
    pub fn chat_ids(
        &self,
        profile: &Profile,
        body: &Map<String, Value>,
    ) -> Result<Vec<u32>, CountError> {
        let (text, apart) = self.render(profile, body)?;
        let mut ids = Vec::new();
        self.take_prompt(profile, &text, Allowance::Whole, &mut ids)?;
        if let Some(apart) = apart {
            ids.extend(self.text_ids(&apart, false)?);
        }
        Ok(ids)
    }

    /// The number of ids of a whole chat request body's prompt.
    pub fn count_chat(
        &self,
        profile: &Profile,
        body: &Map<String, Value>,
    ) -> Result<Tokens, CountError> {
        let (text, apart) = self.render(profile, body)?;
        let mut sum = Sum::default();
        self.take_prompt(profile, &text, Allowance::Whole, &mut sum)?;
        let prompt = Tokens(sum.0);
        match apart {
            Some(apart) => Ok(prompt.plus(self.count_text(&apart, false)?)),
            None => Ok(prompt),
        }
    }

    /// The ids of plain text. `add_special` as completions and embeddings do: with what the tokenizer
    /// puts around every text.
    pub fn text_ids(&self, text: &str, add_special: bool) -> Result<Vec<u32>, CountError> {
        self.memo.vocabulary.with_ids(text, add_special, <[u32]>::to_vec)
    }

    /// The number of ids of plain text. Allocates nothing for the ids.
    pub fn count_text(&self, text: &str, add_special: bool) -> Result<Tokens, CountError> {
        self.memo.vocabulary.with_ids(text, add_special, |ids| Tokens(ids.len() as u64))
    }

    /// The bytes a token stands for; `None` for special tokens and unknown ids. A character may be spread
    /// over several tokens.
    pub fn bytes_of(&self, id: u32) -> Option<Vec<u8>> {
        self.memo.vocabulary.bytes_of(id)
    }

    /// The tokens that end an answer.
    pub fn eos_ids(&self) -> &[u32] {
        &self.eos_ids
    }

    /// The longest sequence the model was made for, as its configuration says.
    pub fn context_window(&self) -> Option<Tokens> {
        self.context_window
    }

    /// 16 hex digits that change with the tokenizer or a template.
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    /// Whether these come from a GGUF file, which llama.cpp serves, under this name or another's.
    pub fn is_gguf(&self) -> bool {
        self.is_gguf
    }

    /// Whether chat requests can be rendered.
    pub fn has_template(&self) -> bool {
        matches!(self.chat, Chat::Some { .. })
    }

    /// The prompt's text, and text that is encoded by itself behind it.
    fn render(
        &self,
        profile: &Profile,
        body: &Map<String, Value>,
    ) -> Result<(String, Option<String>), CountError> {
        let has_tools = body.get("tools").is_some_and(Value::is_array);
        let loaded = self.chat.pick(has_tools)?;
        let prepared = messages::prepare(profile, loaded.wants, body)?;
        let ending = prepared.ending.clone();
        let mut text = loaded.template.render(whole(&self.named_tokens, prepared))?;
        match ending {
            Ending::Nothing => Ok((text, None)),
            Ending::Cut => {
                let length = messages::cut(&text)?.len();
                text.truncate(length);
                Ok((text, None))
            }
            Ending::Text(tail) => Ok((text + &tail, None)),
            Ending::Apart(tail) => Ok((text, Some(tail))),
        }
    }
}

impl std::fmt::Debug for ModelFiles {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ModelFiles").field("fingerprint", &self.fingerprint).finish_non_exhaustive()
    }
}

/// One id or a list of them.
fn ids_of(value: Option<&Value>) -> Vec<u32> {
    let id = |value: &Value| value.as_u64()?.try_into().ok();
    match value {
        Some(Value::Array(list)) => list.iter().filter_map(id).collect(),
        Some(one) => id(one).into_iter().collect(),
        None => Vec::new(),
    }
}

// === impl AddedAround ===

impl AddedAround {
    /// `add_bos_token` and `add_eos_token` as the configuration gives them (a GGUF file is made from
    /// these), else what the tokenizer puts around plain text.
    fn of(
        vocabulary: &Vocabulary,
        config: &Map<String, Value>,
        named_tokens: &BTreeMap<String, String>,
    ) -> Self {
        let around = vocabulary.with_ids("", true, <[u32]>::to_vec).unwrap_or_default();
        let added = |switch: &str, name: &str| {
            let content = named_tokens.get(name)?;
            let id = vocabulary.added_id(content)?;
            let switched = config.get(switch).and_then(Value::as_bool);
            switched.unwrap_or_else(|| around.contains(&id)).then(|| (content.clone(), id))
        };
        Self { bos: added("add_bos_token", "bos_token"), eos: added("add_eos_token", "eos_token") }
    }
}

// === impl Chat ===

impl Chat {
    fn load(
        templates: &BTreeMap<String, String>,
        clock: &Clock,
        named_tokens: &BTreeMap<String, String>,
    ) -> Self {
        let load = |name: &str| {
            templates.get(name).map(|source| {
                let template = Template::compile(source, clock)?;
                let prints_all = |messages: Value| prints(&template, named_tokens, messages);
                let prints =
                    |content: Value| prints_all(json!([{"role": "user", "content": content}]));
                let prints_system = |system: Value, user: Value| {
                    prints_all(json!([
                        {"role": "system", "content": system}, {"role": "user", "content": user},
                    ]))
                };
                let list = |text: &str| json!([{"type": "text", "text": text}]);
                let wants = Wants {
                    hints: content::ContentHints::of(template.source()),
                    strings_fail: !prints(json!(NEEDLE)),
                    prints_lists: prints(list(NEEDLE)),
                    no_system: !prints_system(json!(NEEDLE), json!("hello"))
                        && !prints_system(list(NEEDLE), list("hello")),
                };
                Ok::<_, String>(Box::new(Loaded { template, wants }))
            })
        };
        match (load("default"), load("tool_use").transpose()) {
            (Some(Ok(default)), Ok(tools)) => Self::Some { default, tools },
            (Some(Err(told)), _) | (_, Err(told)) => {
                Self::None(format!("the chat template does not compile: {told}"))
            }
            (None, Ok(_)) => Self::None("the model has no chat template".into()),
        }
    }

    /// Renders every conversation as a whole from now on.
    fn forget_plans(&mut self) {
        if let Self::Some { default, tools } = self {
            default.template.remember_nothing();
            if let Some(tools) = tools {
                tools.template.remember_nothing();
            }
        }
    }

    fn pick(&self, has_tools: bool) -> Result<&Loaded, CountError> {
        match self {
            Self::None(told) => Err(CountError::NotAvailable(told.clone())),
            Self::Some { tools: Some(tools), .. } if has_tools => Ok(tools),
            Self::Some { default, .. } => Ok(default),
        }
    }
}

/// What a trial conversation says.
const NEEDLE: &str = "needle-in-content";

/// Renders a trial conversation, and looks whether the needle in it was printed, and not its JSON.
fn prints(template: &Template, named_tokens: &BTreeMap<String, String>, messages: Value) -> bool {
    let Value::Array(messages) = messages else { return false };
    let prepared = Prepared {
        messages,
        tools: None,
        documents: None,
        variables: Map::new(),
        add_generation_prompt: true,
        ending: Ending::Nothing,
    };
    let text = template.render(whole(named_tokens, prepared)).unwrap_or_default();
    text.contains(NEEDLE) && !text.contains("'text'")
}

/// A template's variables with the messages.
fn whole(named_tokens: &BTreeMap<String, String>, mut prepared: Prepared) -> Rendered {
    let messages = std::mem::take(&mut prepared.messages);
    let mut all = variables(named_tokens, prepared);
    all.push(("messages".into(), list(&messages)));
    Rendered::from_pairs(all)
}

/// A template's variables but for the messages: later ones go before earlier ones of the same name.
fn variables(
    named_tokens: &BTreeMap<String, String>,
    prepared: Prepared,
) -> Vec<(String, Rendered)> {
    let mut all: Vec<(String, Rendered)> = Vec::with_capacity(named_tokens.len() + 8);
    all.extend(
        named_tokens.iter().map(|(name, text)| (name.clone(), Rendered::from(text.as_str()))),
    );
    all.extend(
        prepared.variables.iter().map(|(name, value)| (name.clone(), python::from_json(value))),
    );
    // Absent tools and documents are none, not undefined: templates ask `tools is not none`.
    all.push(("tools".into(), prepared.tools.as_deref().map_or(Rendered::from(()), list)));
    all.push((
        "documents".into(),
        prepared.documents.as_ref().map_or(Rendered::from(()), python::from_json),
    ));
    all.push(("add_generation_prompt".into(), Rendered::from(prepared.add_generation_prompt)));
    all
}

fn list(items: &[Value]) -> Rendered {
    Rendered::from(items.iter().map(python::from_json).collect::<Vec<_>>())
}
