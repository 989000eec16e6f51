//! Who counts for `berthd tokens`: one folder, or what the configuration knows.

use super::{Failure, Options};
use crate::{
    config::{self, Place, Settings},
    ids::{ModelName, ServerKind},
    pipeline::count::{Counter, Counters},
    servers::{ModelServer, http::ClientLimits, remote::Remote},
    tokens::{ModelFiles, Profile},
};
use std::sync::Arc;

/// Loaded once, for any number of requests.
pub(super) enum Sources {
    Folder { counter: Arc<Counter>, kind: ServerKind },
    Configured { settings: Box<Settings>, counters: Counters },
}

/// Who counts for one model.
pub(super) struct Source {
    /// The model's own name, where an alias was asked for.
    pub(super) model: ModelName,
    pub(super) kind: ServerKind,
    pub(super) counter: Option<Arc<Counter>>,
    pub(super) server: Option<Arc<dyn ModelServer>>,
}

impl Sources {
    /// Loads. Problems with the files of `asked`, or of all models where none is named, are told on
    /// standard error.
    pub(super) fn open(options: &Options, asked: Option<&str>) -> Result<Self, Failure> {
        let kind = options.server_kind;
        if let Some(folder) = &options.model_dir {
            let files = ModelFiles::load(folder).map_err(|error| {
                Failure::usage(format!("{} cannot be used: {error}", folder.display()))
            })?;
            let profile = Profile::with_files(kind, &files);
            let counter = Arc::new(Counter::new(Arc::new(files), profile));
            return Ok(Self::Folder { counter, kind });
        }
        let loaded = config::load(&options.config).map_err(|problems| {
            Failure::configuration(format!(
                "{} cannot be used:\n{problems}Name a model folder with --model-dir to count without a configuration.",
                options.config.display()
            ))
        })?;
        let settings = Box::new(loaded.settings);
        let (counters, problems) = Counters::load(&settings);
        let asked = asked.map(|asked| real_name(&settings, &ModelName::from(asked)));
        for (name, problem) in &problems {
            if asked.as_ref().is_none_or(|asked| asked == name) {
                eprintln!("berthd: {name}: {problem}");
            }
        }
        Ok(Self::Configured { settings, counters })
    }

    /// Who counts for a model, by its name or an alias.
    pub(super) fn of(&self, asked: &ModelName) -> Source {
        match self {
            Self::Folder { counter, kind } => Source {
                model: asked.clone(),
                kind: *kind,
                counter: Some(Arc::clone(counter)),
                server: None,
            },
            Self::Configured { settings, counters } => {
                let model = real_name(settings, asked);
                let server = server_of(settings, &model);
                Source {
                    counter: counters.get(&model).cloned(),
                    kind: server.as_ref().map_or(ServerKind::OpenAi, |server| server.kind()),
                    server,
                    model,
                }
            }
        }
    }
}

fn real_name(settings: &Settings, asked: &ModelName) -> ModelName {
    let aliased = settings.models.iter().find(|model| model.aliases.contains(asked));
    aliased.map_or_else(|| asked.clone(), |model| model.name.clone())
}

/// A configured server that could count: one that names the model, else one that takes what it lists.
fn server_of(settings: &Settings, model: &ModelName) -> Option<Arc<dyn ModelServer>> {
    let remote = |server: &&config::Server| matches!(server.place, Place::Http { .. });
    let servers = || settings.servers.iter().filter(remote);
    let server = servers()
        .find(|server| server.models.contains(model))
        .or_else(|| servers().find(|server| server.models.is_empty()))?;
    let limits = ClientLimits {
        connect: settings.relay.connect_limit,
        idle_max: 0,
        keep_after_stream: false,
    };
    let remote = Remote::new(server, settings.probe.limit, limits)?;
    Some(Arc::new(remote))
}
