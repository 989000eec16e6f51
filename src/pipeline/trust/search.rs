//! Files of models that nobody configured: looked for when a server lists the model, loaded off the async
//! threads, kept within a number. What is found counts only once it agreed with a server.

use crate::{
    ids::{ModelName, ServerId},
    pipeline::{Broker, Live, count::Counter},
    snapshot::ServerKind,
    tokens::{ModelFiles, Profile},
};
use std::{
    collections::{HashMap, HashSet},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};
use tokio::{task::JoinSet, time::Instant};

/// Looks for the files of a model: by its name, by the kind of its server, and by what the server itself says
/// of them. Blocks; called on a blocking thread.
pub type FindFiles = fn(&ModelName, ServerKind, Option<&str>) -> Option<PathBuf>;

/// Vocabularies kept that nobody configured: a large one takes 100 MB.
const FOUND_MAX: usize = 16;
/// A model without files is looked for again after this: they may be downloaded by then.
const AGAIN_AFTER: Duration = Duration::from_secs(600);

/// The search, one model at a time.
pub(super) struct Search {
    find: FindFiles,
    task: JoinSet<Option<Counter>>,
    whose: Option<ModelName>,
    /// When each model was looked for last.
    looked: HashMap<ModelName, Instant>,
}

/// A model for which there are no files yet.
struct Wanted {
    model: ModelName,
    kind: ServerKind,
    reported: Option<String>,
}

impl Search {
    pub(super) fn new(find: FindFiles) -> Self {
        Self { find, task: JoinSet::new(), whose: None, looked: HashMap::new() }
    }

    pub(super) fn is_on(&self) -> bool {
        !self.task.is_empty()
    }

    /// Forgets what is not wanted any more, and begins to look for the next model.
    pub(super) fn look(&mut self, broker: &Broker, live: &Live) {
        let listed: HashMap<ModelName, (ServerId, ServerKind, Option<String>)> = listed(broker);
        forget(broker, live, &listed.keys().collect());
        self.looked.retain(|model, _| listed.contains_key(model));
        if self.is_on() || !live.settings.tokens.search {
            return;
        }
        let now = Instant::now();
        let found = broker.trust.found.load();
        let wanted = listed.into_iter().find(|(model, _)| {
            let looked = self.looked.get(model);
            looked.is_none_or(|at| now.duration_since(*at) >= AGAIN_AFTER)
                && found.len() < FOUND_MAX
                && !found.contains_key(model)
                && may_search(live, model)
        });
        let Some((model, (server, kind, reported))) = wanted else { return };
        self.looked.insert(model.clone(), now);
        // Whoever opens a port on this host is found; it has no say in which files are read.
        let ours = live.settings.servers.iter().any(|known| known.name == server);
        let reported = reported.filter(|_| ours);
        let variables = live.settings.models.iter().find(|known| known.name == model);
        let variables = variables.map(|known| known.template_variables.clone()).unwrap_or_default();
        let find = self.find;
        self.whose = Some(model.clone());
        let wanted = Wanted { model, kind, reported };
        self.task.spawn_blocking(move || {
            let (files, folder) = load(find, &wanted)?;
            let profile = Profile::with_files(wanted.kind, &files).with_variables(variables);
            Some(Counter::new(Arc::new(files), profile).at(folder, true))
        });
    }

    /// Waits for its end and takes what was found. Dropping the future loses nothing.
    pub(super) async fn over(&mut self, broker: &Broker) {
        let Some(ended) = self.task.join_next().await else { return };
        let (Some(model), Ok(Some(counter))) = (self.whose.take(), ended) else { return };
        tracing::info!(
            model = model.as_str(),
            folder = %counter.folder().display(),
            fingerprint = counter.files().fingerprint(),
            "found the files of a model; it is counted by them once they agree with a server"
        );
        let mut found = HashMap::clone(&broker.trust.found.load());
        found.insert(model, Arc::new(counter));
        broker.trust.found.store(Arc::new(found));
    }
}

/// Models that usable servers list, each with the first of them.
fn listed(broker: &Broker) -> HashMap<ModelName, (ServerId, ServerKind, Option<String>)> {
    let mut listed = HashMap::new();
    for view in broker.dispatch.servers() {
        let state = view.state;
        // One that is down now still has its models: what was found for them is kept.
        for served in state.models {
            let reported = state.reported.get(&served.name).cloned();
            let first = (state.id.clone(), state.kind, reported);
            listed.entry(served.name).or_insert(first);
        }
    }
    listed
}

/// Whether files may be looked for: nobody said where they are. One who did, and was wrong, is told so at
/// start and gets no others in their place.
fn may_search(live: &Live, model: &ModelName) -> bool {
    let settings = &live.settings;
    let named = settings.models.iter().any(|known| known.name == *model && known.folder.is_some());
    !named && live.counters.get(model).is_none()
}

fn forget(broker: &Broker, live: &Live, listed: &HashSet<&ModelName>) {
    let found = broker.trust.found.load();
    let stays = |model: &ModelName| {
        live.settings.tokens.search && listed.contains(model) && may_search(live, model)
    };
    if found.keys().all(stays) {
        return;
    }
    let mut kept = HashMap::clone(&found);
    kept.retain(|model, _| stays(model));
    broker.trust.found.store(Arc::new(kept));
}

fn load(find: FindFiles, wanted: &Wanted) -> Option<(ModelFiles, PathBuf)> {
    let Wanted { model, kind, reported } = wanted;
    let folder = find(model, *kind, reported.as_deref())?;
    match ModelFiles::load(&folder) {
        Ok(files) => Some((files, folder)),
        Err(error) => {
            let (model, folder) = (model.as_str(), folder.display());
            tracing::info!(model, %folder, %error, "files of a model were found but cannot be used");
            None
        }
    }
}
