//! Which models there are, by which names, with which context window.

use crate::{
    config::Model,
    ids::{ModelName, ServerId},
    snapshot::ServerState,
    units::Tokens,
};
use std::collections::BTreeMap;

/// One model as callers may ask for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The name that servers know.
    pub model: ModelName,
    /// Context window, where anybody told it: the configuration, else the largest of the servers':
    /// each request goes only where it fits.
    pub context_window: Option<Tokens>,
    /// Servers that list it, up or not.
    pub servers: Vec<ServerId>,
}

/// All models, by every name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Catalog {
    names: BTreeMap<ModelName, Entry>,
}

impl Catalog {
    /// Joins what is configured with what servers list.
    pub fn build<'a>(models: &[Model], servers: impl IntoIterator<Item = &'a ServerState>) -> Self {
        let mut names: BTreeMap<ModelName, Entry> = BTreeMap::new();
        for server in servers {
            for served in &server.models {
                let entry = names.entry(served.name.clone()).or_insert_with(|| Entry {
                    model: served.name.clone(),
                    context_window: None,
                    servers: Vec::new(),
                });
                entry.servers.push(server.id.clone());
                entry.context_window = match (entry.context_window, served.context_window) {
                    (Some(a), Some(b)) => Some(a.max(b)),
                    (a, b) => a.or(b),
                };
            }
        }
        for model in models {
            let entry = names.entry(model.name.clone()).or_insert_with(|| Entry {
                model: model.name.clone(),
                context_window: None,
                servers: Vec::new(),
            });
            entry.context_window = model.context_window.or(entry.context_window);
            let entry = entry.clone();
            for alias in &model.aliases {
                names.insert(alias.clone(), entry.clone());
            }
        }
        Self { names }
    }

    /// The model behind a name.
    pub fn find(&self, name: &ModelName) -> Option<&Entry> {
        self.names.get(name)
    }

    /// Every name a caller may use, with its entry, in order.
    pub fn iter(&self) -> impl Iterator<Item = (&ModelName, &Entry)> {
        self.names.iter()
    }

    /// The name closest to one that does not exist, to help a caller who misspelt it.
    pub fn nearest(&self, name: &str) -> Option<&ModelName> {
        let lower = name.to_lowercase();
        self.names
            .keys()
            .map(|known| (distance(&lower, &known.as_str().to_lowercase()), known))
            .min()
            .filter(|(distance, _)| *distance <= 3.max(name.len() / 4))
            .map(|(_, known)| known)
    }
}

/// Edit distance (Levenshtein), one row at a time. Long names are cut: callers choose them.
fn distance(a: &str, b: &str) -> usize {
    const MAX: usize = 64;
    let b: Vec<char> = b.chars().take(MAX).collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, ca) in a.chars().take(MAX).enumerate() {
        let mut before = i;
        let mut left = i + 1;
        for (cell, cb) in row.iter_mut().skip(1).zip(&b) {
            let change = before + usize::from(ca != *cb);
            before = *cell;
            left = change.min(before + 1).min(left + 1);
            *cell = left;
        }
        if let Some(first) = row.first_mut() {
            *first = i + 1;
        }
    }
    row.last().copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::{ServedModel, ServerKind};

    fn server(id: &str, window: Option<u64>) -> ServerState {
        let mut state = ServerState::unknown(id.into(), ServerKind::Vllm);
        let context_window = window.map(Tokens);
        state.models = vec![ServedModel::ready("llama-8b".into(), context_window)];
        state
    }

    #[test]
    fn aliases_and_windows_join() {
        let model = Model {
            name: "llama-8b".into(),
            aliases: vec!["gpt-small".into()],
            folder: None,
            context_window: None,
            expected_output: Tokens(1),
            template_variables: BTreeMap::new(),
            special_tokens: crate::config::SpecialTokens::Refuse,
        };
        let catalog = Catalog::build(&[model], &[server("a", Some(8192)), server("b", Some(4096))]);
        let entry = catalog.find(&"gpt-small".into()).unwrap();
        assert_eq!(entry.model.as_str(), "llama-8b");
        assert_eq!(entry.context_window, Some(Tokens(8192)));
        assert_eq!(entry.servers.len(), 2);
        assert_eq!(catalog.nearest("lama-8B").map(ModelName::as_str), Some("llama-8b"));
        assert_eq!(catalog.nearest("something-else"), None);
    }

    #[test]
    fn edit_distance_of_known_pairs() {
        assert_eq!(distance("kitten", "sitting"), 3);
        assert_eq!(distance("", "abc"), 3);
        assert_eq!(distance("abc", "abc"), 0);
    }
}
