//! Files of models that nobody configured: looked for when a server lists the model, loaded off the async
//! threads, kept within a number. What is found counts only once it agreed with a server.

use crate::{
    ids::{ModelName, ServerId},
    pipeline::{Broker, Live, count::Counter},
    snapshot::ServerKind,
    tokens::{ModelFiles, Profile},
};
use serde_json::Value;
use std::{
    collections::{BTreeMap, HashMap},
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

/// The first server that lists a model, and where that says its files are.
struct Listed {
    server: ServerId,
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

    /// Brings what was found up to date with servers and settings, and begins to look for the next model.
    pub(super) fn look(&mut self, broker: &Broker, live: &Live) {
        let listed = listed(broker);
        refresh(broker, live, &listed);
        self.looked.retain(|model, _| listed.contains_key(model));
        if self.is_on() || !live.settings.tokens.search {
            return;
        }
        let now = Instant::now();
        let found = broker.trust.found.load();
        // Files that were found and are in doubt may be the server's by now.
        let lacks = |model: &ModelName| match found.get(model) {
            Some(counter) => !broker.trust.believes(model, counter),
            None => found.len() < FOUND_MAX,
        };
        let wanted = listed.into_iter().find(|(model, _)| {
            let looked = self.looked.get(model);
            looked.is_none_or(|at| now.duration_since(*at) >= AGAIN_AFTER)
                && may_search(live, model)
                && lacks(model)
        });
        let Some((model, Listed { server, kind, reported })) = wanted else { return };
        self.looked.insert(model.clone(), now);
        // Whoever opens a port on this host is found; it has no say in which files are read.
        let ours = live.settings.servers.iter().any(|known| known.name == server);
        let reported = reported.filter(|_| ours);
        let variables = variables(live, &model);
        let known = live.settings.models.iter().find(|known| known.name == model);
        let special_tokens = known.map(|known| known.special_tokens).unwrap_or_default();
        let (find, name) = (self.find, model.clone());
        let cache_bytes = live.settings.tokens.cache_max_mib << 20;
        self.whose = Some(model);
        self.task.spawn_blocking(move || {
            let (files, folder) = load(find, &name, kind, reported.as_deref(), cache_bytes)?;
            let profile = Profile::with_files(kind, &files).with_variables(variables);
            let counter = Counter::new(Arc::new(files), profile).at(folder, true);
            Some(counter.guarding(special_tokens))
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

/// Models that servers list, also those that are down now: what was found for them is kept.
fn listed(broker: &Broker) -> HashMap<ModelName, Listed> {
    let mut listed = HashMap::new();
    for view in broker.dispatch.servers() {
        let state = view.state;
        let told: BTreeMap<ModelName, String> = state
            .models
            .iter()
            .filter_map(|served| {
                Some((served.name.clone(), state.reported(&served.name)?.to_owned()))
            })
            .collect();
        for served in state.models {
            let reported = told.get(&served.name).cloned();
            let first = Listed { server: state.id.clone(), kind: state.kind, reported };
            listed.entry(served.name).or_insert(first);
        }
    }
    listed
}

/// What the operator says of the model's template beside its files.
fn variables(live: &Live, model: &ModelName) -> BTreeMap<String, Value> {
    let known = live.settings.models.iter().find(|known| known.name == *model);
    known.map(|known| known.template_variables.clone()).unwrap_or_default()
}

/// Whether files may be looked for: nobody said where they are. One who did, and was wrong, is told so at
/// start and gets no others in their place.
fn may_search(live: &Live, model: &ModelName) -> bool {
    let settings = &live.settings;
    let named = settings.models.iter().any(|known| known.name == *model && known.folder.is_some());
    !named && live.counters.get(model).is_none()
}

/// Forgets what is not wanted any more, and has the rest used as its servers do by now.
fn refresh(broker: &Broker, live: &Live, listed: &HashMap<ModelName, Listed>) {
    let found = broker.trust.found.load();
    let mut changed = false;
    let kept = found.iter().filter_map(|(model, counter)| {
        let wanted = live.settings.tokens.search && may_search(live, model);
        let Some(Listed { kind, .. }) = listed.get(model).filter(|_| wanted) else {
            changed = true;
            return None;
        };
        let profile = Profile::with_files(*kind, counter.files());
        let now = counter.used_as(profile.with_variables(variables(live, model)));
        if now.counts_like(counter) {
            return Some((model.clone(), Arc::clone(counter)));
        }
        changed = true;
        Some((model.clone(), Arc::new(now)))
    });
    let kept: HashMap<ModelName, Arc<Counter>> = kept.collect();
    if changed {
        broker.trust.found.store(Arc::new(kept));
    }
}

fn load(
    find: FindFiles,
    model: &ModelName,
    kind: ServerKind,
    reported: Option<&str>,
    cache_bytes: u64,
) -> Option<(ModelFiles, PathBuf)> {
    let folder = find(model, kind, reported)?;
    match ModelFiles::load_with(&folder, cache_bytes) {
        Ok(files) => Some((files, folder)),
        Err(error) => {
            let (model, folder) = (model.as_str(), folder.display());
            tracing::info!(model, %folder, %error, "files of a model were found but cannot be used");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        config,
        pipeline::count::Counters,
        servers::{Answer, Call, CallError, Later, ModelServer, Route},
        snapshot::{Reported, ServedModel, ServerState},
        units::Tokens,
    };
    use bytes::Bytes;
    use std::path::Path;
    use tokio::sync::Notify;

    struct Silent(ServerId);

    impl ModelServer for Silent {
        fn id(&self) -> &ServerId {
            &self.0
        }

        fn kind(&self) -> ServerKind {
            ServerKind::Vllm
        }

        fn send(&self, _call: Call) -> Later<'_, Result<Answer, CallError>> {
            Box::pin(std::future::pending())
        }

        fn observe<'a>(&'a self, last: &'a ServerState) -> Later<'a, ServerState> {
            Box::pin(std::future::ready(last.clone()))
        }

        fn count(&self, _route: Route, _body: Bytes) -> Later<'_, Option<Tokens>> {
            Box::pin(std::future::ready(None))
        }
    }

    fn live(rows: &str) -> Live {
        let key = "50d858e0985ecc7f60418aaf0cc5ab587f42c2570a884095a9e8ccacd0f6545c";
        let text = format!("[[tenants]]\nname = \"t\"\nkeys_sha256 = [\"{key}\"]\n{rows}");
        let settings = config::parse_text("test", &text).unwrap().settings;
        Live::new(settings, Counters::default())
    }

    /// A broker whose server lists `m` and says where its files are.
    fn broker(kind: ServerKind) -> Arc<Broker> {
        let broker = Broker::new(live(""));
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/demo-chat");
        let known = ServerState {
            models: vec![ServedModel::ready("m".into(), None)],
            reported: vec![Reported { model: None, source: folder.display().to_string() }],
            ..ServerState::unknown("s".into(), kind)
        };
        broker.dispatch.join(Arc::new(Silent("s".into())), Arc::new(Notify::new()), known);
        broker
    }

    fn as_reported(_: &ModelName, _: ServerKind, reported: Option<&str>) -> Option<PathBuf> {
        reported.map(PathBuf::from)
    }

    async fn look(search: &mut Search, broker: &Broker, live: &Live) -> bool {
        search.look(broker, live);
        search.over(broker).await;
        broker.trust.found(&"m".into()).is_some()
    }

    const CONFIGURED: &str =
        "[[servers]]\nname = \"s\"\nkind = \"vllm\"\nurl = \"http://127.0.0.1:1\"\n";

    /// Any process on the host may pose as a model server: it could have had any file read.
    #[tokio::test]
    async fn only_a_configured_server_says_where_files_are() {
        let broker = broker(ServerKind::Vllm);
        assert!(!look(&mut Search::new(as_reported), &broker, &live("")).await);
        assert!(look(&mut Search::new(as_reported), &broker, &live(CONFIGURED)).await);
    }

    #[tokio::test]
    async fn files_that_an_operator_names_or_does_not_want_are_not_looked_for() {
        let broker = broker(ServerKind::Vllm);
        let off = format!("[tokens]\nsearch = false\n{CONFIGURED}");
        assert!(!look(&mut Search::new(as_reported), &broker, &live(&off)).await);
        let mut search = Search::new(as_reported);
        assert!(look(&mut search, &broker, &live(CONFIGURED)).await);
        assert!(!look(&mut search, &broker, &live(&off)).await, "and what was found is let go");
    }

    #[tokio::test(start_paused = true)]
    async fn a_model_without_files_is_looked_for_again_after_a_while() {
        let (broker, live) = (broker(ServerKind::Vllm), live(CONFIGURED));
        let mut search = Search::new(|_, _, _| None);
        assert!(!look(&mut search, &broker, &live).await);
        search.find = as_reported;
        assert!(!look(&mut search, &broker, &live).await, "not at every look");
        tokio::time::advance(AGAIN_AFTER).await;
        assert!(look(&mut search, &broker, &live).await);
    }

    /// The server was replaced by one of another kind, and its conversations went on being prepared as
    /// the first had done.
    #[tokio::test]
    async fn found_files_are_used_as_the_server_at_hand_does() {
        let (first, live) = (broker(ServerKind::Vllm), live(CONFIGURED));
        assert!(look(&mut Search::new(as_reported), &first, &live).await);
        let second = broker(ServerKind::Sglang);
        second.trust.found.store(first.trust.found.load_full());
        let before = second.trust.found(&"m".into()).unwrap();
        let mut search = Search::new(as_reported);
        assert!(look(&mut search, &second, &live).await);
        let after = second.trust.found(&"m".into()).unwrap();
        assert!(!after.counts_like(&before));
        assert_eq!(after.files().fingerprint(), before.files().fingerprint());
        assert!(look(&mut search, &second, &live).await);
        assert!(Arc::ptr_eq(&after, &second.trust.found(&"m".into()).unwrap()), "and then stay so");
    }
}
