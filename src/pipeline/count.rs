//! How many tokens a server will see, counted before it sees any.
//!
//! The model's own files come first. Without them the server is asked; without its answer the count is
//! an estimate, and says so wherever it is shown.

use crate::{
    api::{
        Route,
        answer::TEMPLATE_MAX_TOKENS,
        json::{self, Object},
    },
    config::{Settings, SpecialTokens},
    error::{Reason, Refusal},
    ids::ModelName,
    servers::ModelServer,
    snapshot::ServerKind,
    tokens::{Allowance, BlockRule, CountError, ModelFiles, PrefixBlocks, Profile},
    units::Tokens,
};
use bytes::Bytes;
use serde_json::Value;
use std::{
    collections::HashMap,
    num::NonZeroU32,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

/// Where a count came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// The model's own tokenizer and template, here.
    Exact,
    /// The server's counting endpoint.
    Server,
    /// A rule of thumb.
    Estimate,
}

impl Source {
    /// The source's name in headers, logs and metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Exact => "exact",
            Self::Server => "server",
            Self::Estimate => "estimate",
        }
    }
}

/// An input count.
#[derive(Clone, Copy, Debug)]
pub struct Counted {
    /// Input tokens, all prompts together.
    pub tokens: Tokens,
    /// Where the count came from.
    pub source: Source,
}

/// What is wanted of an input's ids beside their number.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Wants {
    /// The ids, if a server could take them.
    pub(super) ids: bool,
    /// Hashes of blocks of this size, of conversations.
    pub(super) block_tokens: Option<NonZeroU32>,
}

/// What one pass over an input gave.
#[derive(Debug)]
pub(super) struct Read {
    /// The number of ids.
    pub(super) tokens: Tokens,
    /// Hashes of their blocks.
    pub(super) prefix: Option<PrefixBlocks>,
    /// The ids themselves.
    pub(super) ids: Option<Vec<u32>>,
}

/// One model's files and how its servers use them.
#[derive(Debug)]
pub struct Counter {
    files: Arc<ModelFiles>,
    profile: Profile,
    folder: PathBuf,
    found: bool,
    special_tokens: SpecialTokens,
}

impl Counter {
    /// A counter over loaded files.
    pub fn new(files: Arc<ModelFiles>, profile: Profile) -> Self {
        Self {
            files,
            profile,
            folder: PathBuf::new(),
            found: false,
            special_tokens: SpecialTokens::default(),
        }
    }

    /// Says where the files are, and whether they were found there rather than configured.
    #[must_use]
    pub fn at(self, folder: PathBuf, found: bool) -> Self {
        Self { folder, found, ..self }
    }

    /// The same files, used in another way.
    #[must_use]
    pub fn used_as(&self, profile: Profile) -> Self {
        Self { files: Arc::clone(&self.files), profile, folder: self.folder.clone(), ..*self }
    }

    /// Where the files are: a folder or a file. Empty where nobody said.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Whether nobody configured the files: they may be another version than the server's.
    pub const fn is_found(&self) -> bool {
        self.found
    }

    /// Whether the other counts as this one does: the same files, used alike. What was proven of one then
    /// holds for the other.
    pub fn counts_like(&self, other: &Self) -> bool {
        self.files.fingerprint() == other.files.fingerprint()
            && self.profile == other.profile
            && self.found == other.found
    }

    /// Says what becomes of chat requests that spell control tokens.
    #[must_use]
    pub fn guarding(self, special_tokens: SpecialTokens) -> Self {
        Self { special_tokens, ..self }
    }

    /// What becomes of chat requests that spell control tokens.
    pub(super) const fn special_tokens(&self) -> SpecialTokens {
        self.special_tokens
    }

    /// The files.
    pub fn files(&self) -> &ModelFiles {
        &self.files
    }

    /// How its servers use the files.
    pub const fn profile(&self) -> &Profile {
        &self.profile
    }

    /// Counts a request body.
    ///
    /// # Errors
    /// As [`Counter::count`], with [`Allowance::Whole`].
    pub fn count_body(&self, route: Route, body: &[u8]) -> Result<Tokens, CountError> {
        let fields = json::open(body)
            .map_err(|refusal| CountError::NotAvailable(refusal.message.into_owned()))?;
        self.count(route, &fields, Allowance::Whole)
    }

    /// Counts a request from its body's fields.
    ///
    /// # Errors
    /// As [`CountError`]: the template's own refusal, or that this input cannot be counted here; and with
    /// [`Allowance::Little`] that it is too much work for an async thread.
    pub fn count(
        &self,
        route: Route,
        fields: &Object<'_>,
        allowance: Allowance,
    ) -> Result<Tokens, CountError> {
        let texts = |name: &str| {
            let Some(value) = fields.get(name) else { return self.count_texts(None) };
            if allowance == Allowance::Little && value.get().len() > self.files.little_bytes() {
                return Err(CountError::Deferred);
            }
            let value: Value = serde_json::from_str(value.get())
                .map_err(|error| CountError::NotAvailable(error.to_string()))?;
            self.count_texts(Some(&value))
        };
        match route {
            Route::Chat => self.files.count_request(&self.profile, fields, allowance),
            Route::Completions => texts("prompt"),
            Route::Embeddings => texts("input"),
        }
    }

    /// Counts as [`Counter::count`] does, and gives what else is wanted of the same ids.
    ///
    /// # Errors
    /// As [`Counter::count`].
    pub(super) fn read(
        &self,
        route: Route,
        fields: &Object<'_>,
        allowance: Allowance,
        wants: Wants,
    ) -> Result<Read, CountError> {
        // Callers bring no adapter and no salt of their own: both are the operator's.
        let rule = |block_tokens| BlockRule { block_tokens, adapter: "", salt: "" };
        let rule = wants.block_tokens.filter(|_| route == Route::Chat).map(rule);
        if wants.ids
            && let Some(ids) = self.ids(route, fields, allowance)?
        {
            let prefix = rule.map(|rule| rule.blocks(&ids));
            return Ok(Read { tokens: Tokens(ids.len() as u64), prefix, ids: Some(ids) });
        }
        let (tokens, prefix) = match rule {
            Some(rule) => {
                let profile = &self.profile;
                let (tokens, blocks) =
                    self.files.count_blocks(profile, fields, allowance, &rule)?;
                (tokens, Some(blocks))
            }
            None => (self.count(route, fields, allowance)?, None),
        };
        Ok(Read { tokens, prefix, ids: None })
    }

    /// The ids of an input that a server could take in its text's place: a conversation, or one prompt.
    fn ids(
        &self,
        route: Route,
        fields: &Object<'_>,
        allowance: Allowance,
    ) -> Result<Option<Vec<u32>>, CountError> {
        match route {
            // Only SGLang takes them; ids made by another's rules are not what was asked for.
            Route::Chat if self.profile.is_of(ServerKind::Sglang) => {
                self.files.request_ids(&self.profile, fields, allowance).map(Some)
            }
            Route::Completions => {
                let text = fields.get("prompt").map(|value| value.get());
                // With these the server needs the text itself.
                let bare = ["echo", "suffix"].iter().all(|name| fields.get(name).is_none());
                let Some(text) = text.filter(|text| bare && text.starts_with('"')) else {
                    return Ok(None);
                };
                if allowance == Allowance::Little && text.len() > self.files.little_bytes() {
                    return Err(CountError::Deferred);
                }
                let text: String = serde_json::from_str(text)
                    .map_err(|error| CountError::NotAvailable(error.to_string()))?;
                self.files.text_ids(&text, true).map(Some)
            }
            Route::Chat | Route::Embeddings => Ok(None),
        }
    }

    fn count_texts(&self, value: Option<&Value>) -> Result<Tokens, CountError> {
        match value {
            Some(Value::String(text)) => self.files.count_text(text, true),
            Some(Value::Array(items)) if items.iter().all(Value::is_number) => {
                Ok(Tokens(items.len() as u64))
            }
            Some(Value::Array(items)) => {
                let mut sum = Tokens::ZERO;
                for item in items {
                    sum = sum.plus(self.count_texts(Some(item))?);
                }
                Ok(sum)
            }
            _ => Err(CountError::NotAvailable("neither text nor token ids".to_owned())),
        }
    }

    /// Tokens of a piece of output text.
    pub fn output(&self, text: &str) -> Option<Tokens> {
        self.files.count_text(text, false).ok()
    }

    /// The longest beginning of `text` with at most `most` tokens.
    pub fn cut(&self, text: &str, most: Tokens) -> Option<String> {
        let ids = self.files.text_ids(text, false).ok()?;
        let keep = usize::try_from(most.get()).unwrap_or(usize::MAX);
        if ids.len() <= keep {
            return None;
        }
        let kept = ids.iter().take(keep).filter_map(|id| self.files.bytes_of(*id)).flatten();
        let bytes: Vec<u8> = kept.collect();
        // The cut may fall inside a character: it goes whole.
        let valid = match std::str::from_utf8(&bytes) {
            Ok(text) => text,
            Err(error) => bytes
                .get(..error.valid_up_to())
                .and_then(|valid| std::str::from_utf8(valid).ok())
                .unwrap_or_default(),
        };
        text.starts_with(valid).then(|| valid.to_owned())
    }
}

/// The counters of all models whose files are on this host.
#[derive(Debug, Default)]
pub struct Counters {
    models: HashMap<ModelName, Arc<Counter>>,
}

/// How long a server may take to count for us.
const ASK_LIMIT: Duration = Duration::from_secs(2);

impl Counters {
    /// Loads every folder that the settings name. Reads files and builds vocabularies: seconds of CPU
    /// for large ones, so call it off the async threads. Folders that cannot be used are returned with
    /// the reason; their models are counted by their servers or estimated.
    pub fn load(settings: &Settings) -> (Self, Vec<(ModelName, String)>) {
        let mut problems = Vec::new();
        let mut models = HashMap::new();
        let mut folders: HashMap<PathBuf, Arc<ModelFiles>> = HashMap::new();
        for (name, folder, kind) in folders_of(settings) {
            let files = match folders.get(&folder) {
                Some(files) => Arc::clone(files),
                None => match ModelFiles::load_with(&folder, settings.tokens.cache_max_mib << 20) {
                    Ok(files) => {
                        let files = Arc::new(files);
                        folders.insert(folder.clone(), Arc::clone(&files));
                        files
                    }
                    Err(error) => {
                        problems.push((name, error.to_string()));
                        continue;
                    }
                },
            };
            let mut profile = Profile::with_files(kind, &files);
            let mut special_tokens = SpecialTokens::default();
            if let Some(model) = settings.models.iter().find(|model| model.name == name) {
                profile = profile.with_variables(model.template_variables.clone());
                special_tokens = model.special_tokens;
            }
            let counter = Counter::new(files, profile).at(folder, false);
            models.insert(name, Arc::new(counter.guarding(special_tokens)));
        }
        (Self { models }, problems)
    }

    /// All models with their counters.
    pub fn iter(&self) -> impl Iterator<Item = (ModelName, Arc<Counter>)> + '_ {
        self.models.iter().map(|(model, counter)| (model.clone(), Arc::clone(counter)))
    }

    /// The counter of a model, if its files are here.
    pub fn get(&self, model: &ModelName) -> Option<&Arc<Counter>> {
        self.models.get(model)
    }
}

/// Model name, folder and the kind of server that renders its template.
fn folders_of(settings: &Settings) -> Vec<(ModelName, PathBuf, ServerKind)> {
    let mut folders = Vec::new();
    for model in &settings.models {
        let Some(folder) = model.folder.clone() else { continue };
        let server = settings.servers.iter().find(|server| server.models.contains(&model.name));
        // With one server in all, the model is its.
        let only = settings.servers.first().filter(|_| settings.servers.len() == 1);
        let kind = server.or(only).map_or(ServerKind::OpenAi, |server| server.kind);
        folders.push((model.name.clone(), folder, kind));
    }
    for server in &settings.servers {
        if let crate::config::Place::Folder(folder) = &server.place
            && let Some(name) = crate::config::embedded_model(server)
            && !folders.iter().any(|(known, ..)| *known == name)
        {
            folders.push((name, folder.clone(), ServerKind::Embedded));
        }
    }
    folders
}

/// The input count of a request: ours where we have one that is believed, else as the server says, else an
/// estimate. `local` is our count and whether it is believed.
///
/// # Errors
/// The template refuses the conversation: the caller's to mend, as the server would say.
pub async fn count(
    local: Option<(&Result<Tokens, CountError>, bool)>,
    server: Option<Arc<dyn ModelServer>>,
    route: Route,
    body_bytes: usize,
    outgoing: &Bytes,
) -> Result<Counted, Refusal> {
    match local {
        Some((Ok(tokens), true)) => {
            return Ok(Counted { tokens: *tokens, source: Source::Exact });
        }
        Some((Err(CountError::Template(text)), true)) => {
            let text = format!("The model's chat template refuses this conversation: {text}");
            return Err(Refusal::new(Reason::TemplateRefused, text).param("messages"));
        }
        // Too costly is too costly by whatever template.
        Some((Err(error @ (CountError::NoMessages | CountError::TooCostly(_))), _)) => {
            return Err(Refusal::new(Reason::TemplateRefused, error.to_string()));
        }
        Some((Err(error), _)) => tracing::debug!(%error, "not counted here"),
        Some((Ok(_), false)) | None => {}
    }
    if let Some(server) = server {
        let asked = server.count(route, outgoing.clone());
        if let Ok(Some(tokens)) = tokio::time::timeout(ASK_LIMIT, asked).await
            && believable(tokens, outgoing.len())
        {
            return Ok(Counted { tokens, source: Source::Server });
        }
    }
    // A count that is off is nearer than a rule of thumb.
    let near = local.and_then(|(local, _)| local.as_ref().ok().copied());
    Ok(Counted { tokens: near.unwrap_or_else(|| estimate(body_bytes)), source: Source::Estimate })
}

/// A token is a byte of the body at least, but for what the template adds; and no input is empty.
fn believable(tokens: Tokens, body_bytes: usize) -> bool {
    tokens > Tokens::ZERO && tokens.get() <= (body_bytes as u64).saturating_add(TEMPLATE_MAX_TOKENS)
}

/// A token for every four bytes of the body, rounded up. English prose runs at 4 to 5 bytes a token and
/// the JSON around it about makes up for templates; other scripts run denser, up to a token a character.
fn estimate(body_bytes: usize) -> Tokens {
    Tokens((body_bytes as u64).div_ceil(4))
}
