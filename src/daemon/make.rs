//! Making what requests need: counters, keys, adapters of servers.

use super::StartError;
use crate::{
    admit::Admission,
    config::{self, Place, Settings},
    ids::{ModelName, ServerKind},
    pipeline::{Live, auth::Keys, count::Counters, screening::Screening},
    servers::{ModelServer, http::ClientLimits, remote::Remote},
    tokens::locate::{Roots, locate},
};
use std::{path::PathBuf, sync::Arc};
use tokio::time::Instant;

/// Loads what requests need. Reads model folders, so it runs off the async threads.
pub(super) async fn live(settings: Settings, before: Option<&Live>) -> Result<Live, StartError> {
    let screened = before.map(|live| Arc::clone(&live.screening));
    let loaded = tokio::task::spawn_blocking(move || {
        let (counters, problems) = Counters::load(&settings);
        let screening = Screening::load(&settings.screen, screened.as_deref());
        (settings, counters, problems, screening)
    });
    let (settings, counters, problems, screening) =
        loaded.await.map_err(|error| StartError::System(format!("loading models: {error}")))?;
    let screening = screening.map_err(|error| StartError::Screening(error.to_string()))?;
    for problem in screening.unknown_names() {
        tracing::warn!(problem, "configuration");
    }
    for (model, problem) in problems {
        tracing::warn!(
            model = model.as_str(),
            problem,
            "input cannot be counted here; the server is asked, or it is estimated"
        );
    }
    let keys = Keys::new(&settings.tenants);
    let before = before.map(|live| (&live.admission, live.settings.tenants.as_slice()));
    let admission = Admission::new(&settings.tenants, before, Instant::now());
    Ok(Live { settings, keys, admission, counters, screening: Arc::new(screening) })
}

/// Where the files of a model are that nobody configured: in the caches of this host, or where its server
/// says.
pub(super) fn find_files(
    model: &ModelName,
    _: ServerKind,
    reported: Option<&str>,
) -> Option<PathBuf> {
    let roots = Roots::from_env(|name| std::env::var_os(name));
    match locate(model.as_str(), reported, &roots) {
        Ok(found) => {
            if let Some(why) = found.chats_differ {
                tracing::info!(
                    model = model.as_str(),
                    why,
                    "chats may not be counted with its files"
                );
            }
            Some(found.path)
        }
        Err(none) => {
            tracing::debug!(model = model.as_str(), %none, "counted by its server or estimated");
            None
        }
    }
}

pub(super) fn client_limits(settings: &Settings) -> ClientLimits {
    ClientLimits {
        connect: settings.relay.connect_limit,
        idle_max: settings.relay.idle_connections_max,
        keep_after_stream: false,
    }
}

/// Makes the adapter of a configured server.
pub(super) async fn make(
    config: &config::Server,
    settings: &Settings,
) -> Result<Arc<dyn ModelServer>, StartError> {
    let failed = |why: String| StartError::Server(config.name.clone(), why);
    if let Some(remote) = Remote::new(config, settings.probe.limit, client_limits(settings)) {
        return Ok(Arc::new(remote));
    }
    let Place::Folder(folder) = &config.place else {
        return Err(failed("neither a URL nor a folder".to_owned()));
    };
    embedded(config, folder.clone()).await.map_err(failed)
}

#[cfg(feature = "candle")]
async fn embedded(
    config: &config::Server,
    folder: PathBuf,
) -> Result<Arc<dyn ModelServer>, String> {
    use crate::servers::embedded::{Embedded, MAX_RUNNING};
    let name = config::embedded_model(config).ok_or("its folder has no name; set models")?;
    let id = config.name.clone();
    let max_running = config.max_running.unwrap_or(MAX_RUNNING);
    let load = move || Embedded::load(id, name, &folder, max_running);
    let loaded = tokio::task::spawn_blocking(load).await.map_err(|error| error.to_string())?;
    loaded.map(|server| Arc::new(server) as Arc<dyn ModelServer>).map_err(|error| error.to_string())
}

#[cfg(not(feature = "candle"))]
async fn embedded(_: &config::Server, _: PathBuf) -> Result<Arc<dyn ModelServer>, String> {
    Err("this build has no embedded models (cargo feature 'candle')".to_owned())
}
