//! Looks whether a chat request spells control tokens: a turn of the conversation that nobody wrote.
//!
//! Ordinary text costs one pass over its bytes. Where something looks odd every string is decoded and
//! searched; and where a spelling could come together only in the prompt, the prompt's control tokens are
//! counted, and those of the same conversation with harmless texts.

use super::{
    CountError, ModelFiles, Profile,
    memo::{Allowance, Sink},
    seams::Seams,
    spelling::Spellings,
    strings::{self, Found},
};
use crate::api::json::Object;
use serde::de::IgnoredAny;
use serde_json::{Map, Value, value::RawValue};
use std::collections::BTreeMap;

/// Fields of a chat request whose texts can reach the prompt.
const FIELDS: [&str; 8] = [
    "messages",
    "tools",
    "functions",
    "documents",
    "chat_template_kwargs",
    "reasoning",
    "reasoning_effort",
    "thinking",
];

/// JSON text that an async thread may look at closely.
const CLOSE_LOOK_MAX: usize = 32 << 10;

/// What a look at a chat request found.
#[derive(Debug)]
pub enum Checked {
    /// Nothing.
    Clean,
    /// Spellings, which are mended: the fields, by their position in the body, that must be replaced.
    Mended(Vec<(usize, Box<RawValue>)>),
    /// A spelling that may not stay, or cannot be mended.
    Spelled(Spelled),
}

/// A control token in a caller's text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spelled {
    /// How it is spelled; `None` where only the sum of them showed it.
    pub token: Option<String>,
    /// Where it stands, as `messages[2].content`; `None` where it comes together only in the prompt.
    pub place: Option<String>,
}

/// How a model's vocabulary and templates can be talked into control tokens. Made once at load.
pub(super) struct Guard {
    spellings: Spellings,
    seams: Seams,
    /// Any text could be a part of one: prompts are always compared.
    open: bool,
}

impl Guard {
    pub(super) fn new<'a>(
        added_tokens: &[Value],
        templates: impl Iterator<Item = &'a str>,
    ) -> Self {
        let spellings = Spellings::of(added_tokens);
        let seams = Seams::of(templates);
        let open = spellings.are_late() || seams.are_open(&spellings);
        Self { spellings, seams, open }
    }
}

/// Counts control tokens by their id.
struct Controls<'a> {
    spellings: &'a Spellings,
    found: BTreeMap<u32, usize>,
}

impl Sink for Controls<'_> {
    fn take(&mut self, ids: &[u32]) {
        for id in ids {
            if self.spellings.name(*id).is_some() {
                *self.found.entry(*id).or_default() += 1;
            }
        }
    }

    fn clear(&mut self) {
        self.found.clear();
    }
}

/// What the close look has found so far.
struct Look<'a> {
    guard: &'a Guard,
    mend: bool,
    dangles: bool,
    spelled: Option<Spelled>,
}

impl Look<'_> {
    /// Looks at one string below `root`; gives what should stand there instead.
    fn string(&mut self, root: &str, found: &Found<'_, '_>) -> Option<String> {
        let mut changed = None;
        // A call's arguments are JSON inside a string, which most servers open.
        if found.key() == Some("arguments")
            && found.text.contains('\\')
            && serde_json::from_str::<IgnoredAny>(found.text).is_ok()
        {
            changed = strings::walk(found.text, |inner| self.text(inner.text, root, found));
        }
        let text = changed.as_deref().unwrap_or(found.text);
        let mended = self.text(text, root, found);
        mended.or(changed)
    }

    fn text(&mut self, text: &str, root: &str, at: &Found<'_, '_>) -> Option<String> {
        let spellings = &self.guard.spellings;
        self.dangles = self.dangles || spellings.dangles(text, &self.guard.seams);
        let token = spellings.find(text)?;
        let mended = if self.mend { spellings.mend(text) } else { None };
        if mended.is_none() && self.spelled.is_none() {
            let place = Some(at.place(root));
            self.spelled = Some(Spelled { token: Some(token.to_owned()), place });
        }
        mended
    }
}

impl ModelFiles {
    /// Looks whether a chat request spells control tokens of this model where a caller's text stands; with
    /// `mend`, writes it so that it does not.
    ///
    /// # Errors
    /// [`CountError::Deferred`] with [`Allowance::Little`], where it is too much work.
    pub fn check_spelling(
        &self,
        profile: &Profile,
        fields: &Object<'_>,
        mend: bool,
        allowance: Allowance,
    ) -> Result<Checked, CountError> {
        let guard = &self.guard;
        if guard.spellings.is_empty() {
            return Ok(Checked::Clean);
        }
        let read =
            || fields.0.iter().enumerate().filter(|(_, (name, _))| FIELDS.contains(&&**name));
        let plain = read()
            .all(|(_, (_, value))| guard.spellings.is_plain(value.get().as_bytes(), &guard.seams));
        if plain && !guard.open {
            return Ok(Checked::Clean);
        }
        let bytes: usize = read().map(|(_, (_, value))| value.get().len()).sum();
        if allowance == Allowance::Little && bytes > CLOSE_LOOK_MAX {
            return Err(CountError::Deferred);
        }
        let mut look = Look { guard, mend, dangles: guard.open, spelled: None };
        let mut mended = Vec::new();
        if !plain {
            for (at, (name, value)) in read() {
                let new = strings::walk(value.get(), |found| look.string(name, found));
                let new = new.map(RawValue::from_string).transpose();
                let new = new.map_err(|error| CountError::NotAvailable(error.to_string()))?;
                mended.extend(new.map(|new| (at, new)));
            }
        }
        if let Some(spelled) = look.spelled {
            return Ok(Checked::Spelled(spelled));
        }
        if look.dangles || !mended.is_empty() {
            let mut now = Object(fields.0.clone());
            for (at, value) in &mended {
                if let Some((_, old)) = now.0.get_mut(*at) {
                    *old = value;
                }
            }
            if let Some(spelled) = self.forged(profile, &now, allowance)? {
                return Ok(Checked::Spelled(spelled));
            }
        }
        Ok(if mended.is_empty() { Checked::Clean } else { Checked::Mended(mended) })
    }

    /// Compares the prompt's control tokens with those of the harmless conversation. What images cost is not
    /// known here; what the words around them make is.
    fn forged(
        &self,
        profile: &Profile,
        fields: &Object<'_>,
        allowance: Allowance,
    ) -> Result<Option<Spelled>, CountError> {
        if let Some(compared) = self.compared(profile, fields, allowance)? {
            return Ok(compared);
        }
        let Some(text) = without_media(fields) else { return Ok(None) };
        let Ok(words) = serde_json::from_str::<Object<'_>>(&text) else { return Ok(None) };
        Ok(self.compared(profile, &words, allowance)?.flatten())
    }

    /// `None` where there is no prompt to compare.
    fn compared(
        &self,
        profile: &Profile,
        fields: &Object<'_>,
        allowance: Allowance,
    ) -> Result<Option<Option<Spelled>>, CountError> {
        let found = match self.controls(profile, fields, allowance) {
            Err(CountError::Deferred) => return Err(CountError::Deferred),
            // What cannot be rendered here is refused or asked about where it is counted.
            Err(_) => return Ok(None),
            Ok(found) => found,
        };
        let mut body = Map::new();
        for (name, value) in &fields.0 {
            let value = serde_json::from_str(value.get());
            let value = value.map_err(|error| CountError::NotAvailable(error.to_string()))?;
            body.insert(name.to_string(), value);
        }
        let harmless = Value::Object(self.guard.seams.harmless(&body, &FIELDS)).to_string();
        let harmless: Object<'_> = serde_json::from_str(&harmless)
            .map_err(|error| CountError::NotAvailable(error.to_string()))?;
        let expected = match self.controls(profile, &harmless, allowance) {
            Err(CountError::Deferred) => return Err(CountError::Deferred),
            // Then nothing shows that the prompt is what it should be.
            Err(_) => return Ok(Some(Some(Spelled { token: None, place: None }))),
            Ok(expected) => expected,
        };
        let more = |(id, count): (&u32, &usize)| *count > expected.get(id).copied().unwrap_or(0);
        let surplus = found.iter().find(|(id, count)| more((*id, *count)));
        Ok(Some(surplus.map(|(id, _)| Spelled {
            token: self.guard.spellings.name(*id).map(str::to_owned),
            place: None,
        })))
    }

    /// The control tokens of a request's prompt.
    fn controls(
        &self,
        profile: &Profile,
        fields: &Object<'_>,
        allowance: Allowance,
    ) -> Result<BTreeMap<u32, usize>, CountError> {
        let mut controls = Controls { spellings: &self.guard.spellings, found: BTreeMap::new() };
        self.prompt(profile, fields, allowance, &mut controls)?;
        Ok(controls.found)
    }
}

/// A request without the content parts that are no text; `None` if it has none of them.
fn without_media(fields: &Object<'_>) -> Option<String> {
    let mut body: Map<String, Value> = Map::new();
    for (name, value) in &fields.0 {
        body.insert(name.to_string(), serde_json::from_str(value.get()).ok()?);
    }
    let mut taken = false;
    for message in body.get_mut("messages")?.as_array_mut()? {
        let Some(Value::Array(parts)) = message.get_mut("content") else { continue };
        let before = parts.len();
        parts.retain(|part| part.get("text").is_some() || part.is_string());
        taken |= parts.len() < before;
    }
    taken.then(|| Value::Object(body).to_string())
}
