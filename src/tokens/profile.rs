//! What each kind of model server does to a conversation before its template sees it, as plain data.
//!
//! Every difference here changes the token count. Read from the servers' sources; a model whose server
//! was started with other flags must carry the same values as template variables.

use super::{
    ModelFiles,
    memo::{Key, key_of},
};
use crate::snapshot::ServerKind;
use serde_json::Value;
use std::collections::BTreeMap;

/// How one model is counted: its server's rules, and the variables its template is given.
#[derive(Clone, Debug, PartialEq)]
pub struct Profile {
    pub(super) rules: Rules,
    pub(super) variables: BTreeMap<String, Value>,
    key: Key,
}

/// When message content is handed to the template as a list of parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ListForm {
    /// As the caller sent it.
    AsSent,
    /// When the template loops over content; strings are then wrapped into one part.
    WhenLooping,
    /// When the template loops over content or speaks of media; strings stay strings.
    WhenLoopingOrMedia,
    /// When a trial shows that the template prints lists; strings are wrapped only if another shows
    /// that it does not print them.
    WhenPrinted,
}

/// What becomes of the role `developer`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Developer {
    /// Nothing.
    AsSent,
    /// It joins the system message at the front, unless the template knows it.
    JoinsSystem,
    /// It is read as `system`, wherever it stands.
    IsSystem,
}

/// What becomes of the `arguments` of earlier tool calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Arguments {
    /// As sent, which is JSON text.
    AsSent,
    /// Parsed; text that is no JSON becomes an empty object.
    Parsed,
}

/// How tool definitions are written out again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ToolKeys {
    /// As sent.
    AsSent,
    /// `name`, `description`, `parameters`, then `strict` if given; missing ones as null.
    Fixed,
    /// The known ones in the caller's order, missing ones as null behind them.
    SentThenNull,
    /// `name`, `description`, `parameters` and nothing else; missing ones as empty text and empty object.
    OnlyThree,
}

/// What `tool_choice` does to the tools that are rendered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ToolChoice {
    /// Nothing.
    Ignored,
    /// `none` hides all tools, a named function hides the others.
    Obeyed,
}

/// What becomes of a last message by the assistant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LastAssistant {
    /// Rendered like any other; `continue_final_message` cuts the text behind its content.
    Rendered,
    /// Turned into a user message; `continue_final_message` encodes it apart, behind the prompt.
    BecomesUser,
    /// Taken off, and its content written behind the prompt.
    Prefill,
}

/// The rules of one kind of server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Rules {
    pub(super) list_form: ListForm,
    /// Between text parts where the template gets a string.
    pub(super) joiner: &'static str,
    /// It stands only behind text: empty parts at the front leave none.
    pub(super) join_behind_text: bool,
    pub(super) developer: Developer,
    /// A system message that the template does not print joins the next message.
    pub(super) system_joins_next: bool,
    pub(super) arguments: Arguments,
    pub(super) tool_keys: ToolKeys,
    pub(super) tool_choice: ToolChoice,
    pub(super) last_assistant: LastAssistant,
    /// Message keys that are null are left out.
    pub(super) drop_nulls: bool,
    /// Messages keep only the keys that the API defines, and missing content becomes empty.
    pub(super) tidy_messages: bool,
    /// An assistant's reasoning is also given under the library's other names.
    pub(super) reasoning_names: &'static [&'static str],
    /// `reasoning_effort` reaches the template.
    pub(super) reasoning_effort: bool,
    /// `reasoning_effort` also sets `enable_thinking`.
    pub(super) effort_sets_thinking: bool,
    /// `enable_thinking` is true unless said otherwise.
    pub(super) thinking_by_default: bool,
    /// The prompt begins with exactly one beginning-of-text token if the vocabulary adds one at all.
    pub(super) one_bos: bool,
    /// Whose way of turning requests of other APIs into chat is followed.
    pub(super) other_apis: ServerKind,
}

/// Transformers' own behaviour.
const REFERENCE: Rules = Rules {
    list_form: ListForm::AsSent,
    joiner: "",
    join_behind_text: false,
    developer: Developer::AsSent,
    system_joins_next: false,
    arguments: Arguments::AsSent,
    tool_keys: ToolKeys::AsSent,
    tool_choice: ToolChoice::Ignored,
    last_assistant: LastAssistant::Rendered,
    drop_nulls: true,
    tidy_messages: false,
    reasoning_names: &["reasoning_content", "thinking"],
    reasoning_effort: false,
    effort_sets_thinking: false,
    thinking_by_default: false,
    one_bos: false,
    other_apis: ServerKind::Vllm,
};

const VLLM: Rules = Rules {
    list_form: ListForm::WhenLooping,
    joiner: "\n",
    developer: Developer::JoinsSystem,
    arguments: Arguments::Parsed,
    tool_keys: ToolKeys::Fixed,
    tidy_messages: true,
    reasoning_names: &["reasoning", "reasoning_content", "thinking"],
    reasoning_effort: true,
    effort_sets_thinking: true,
    ..REFERENCE
};

const SGLANG: Rules = Rules {
    list_form: ListForm::WhenLoopingOrMedia,
    joiner: " ",
    arguments: Arguments::Parsed,
    tool_keys: ToolKeys::SentThenNull,
    tool_choice: ToolChoice::Obeyed,
    last_assistant: LastAssistant::BecomesUser,
    tidy_messages: true,
    reasoning_effort: true,
    other_apis: ServerKind::Sglang,
    ..REFERENCE
};

const LLAMA_CPP: Rules = Rules {
    list_form: ListForm::WhenPrinted,
    developer: Developer::IsSystem,
    system_joins_next: true,
    joiner: "\n",
    join_behind_text: true,
    arguments: Arguments::Parsed,
    tool_keys: ToolKeys::OnlyThree,
    last_assistant: LastAssistant::Prefill,
    drop_nulls: false,
    tidy_messages: true,
    reasoning_names: &["reasoning_content"],
    reasoning_effort: true,
    thinking_by_default: true,
    one_bos: true,
    other_apis: ServerKind::LlamaCpp,
    ..REFERENCE
};

// === impl Profile ===

impl Profile {
    /// The rules of a kind of server, without template variables.
    pub fn of(kind: ServerKind) -> Self {
        let rules = match kind {
            // A server of unknown make is most often a vLLM behind another name.
            ServerKind::Vllm | ServerKind::Ollama | ServerKind::OpenAi | ServerKind::Embedded => {
                VLLM
            }
            ServerKind::Sglang => SGLANG,
            ServerKind::LlamaCpp => LLAMA_CPP,
        };
        Self::with_rules(rules)
    }

    fn with_rules(rules: Rules) -> Self {
        Self { rules, variables: BTreeMap::new(), key: key_of(format!("{rules:?}").as_bytes()) }
    }

    /// Tells these rules from others, in keys of remembered counts. Variables are part of those anyway.
    pub(super) const fn key(&self) -> Key {
        self.key
    }

    /// The rules of a kind of server with these files. A server of unknown make that serves a GGUF file is
    /// llama.cpp in some shell, as Ollama is.
    pub fn with_files(kind: ServerKind, files: &ModelFiles) -> Self {
        match kind {
            ServerKind::Ollama | ServerKind::OpenAi if files.is_gguf() => {
                Self::of(ServerKind::LlamaCpp)
            }
            kind => Self::of(kind),
        }
    }

    /// The kind of server whose way of turning requests of other APIs into chat is followed.
    pub const fn other_apis(&self) -> ServerKind {
        self.rules.other_apis
    }

    /// Whether these are the rules of a kind of server.
    pub fn is_of(&self, kind: ServerKind) -> bool {
        self.rules == Self::of(kind).rules
    }

    /// What the transformers library does by itself. The measure that counts are checked against.
    pub fn reference() -> Self {
        Self::with_rules(REFERENCE)
    }

    /// Gives the template these variables, as the server's own flags do. A request's
    /// `chat_template_kwargs` go before them.
    #[must_use]
    pub fn with_variables(mut self, variables: BTreeMap<String, Value>) -> Self {
        self.variables = variables;
        self
    }
}
