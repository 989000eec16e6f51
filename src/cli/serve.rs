//! `serve` and `check`: the daemon's own commands.

use super::{Failure, print};
use crate::{
    config::{self, Settings},
    daemon::{Daemon, StartError},
    log,
    pipeline::screening::Screening,
    systemd::{Listeners, Notifier},
};
use std::{io, path::Path, time::Duration};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::mpsc,
};

/// Threads for blocking work that is not the study of bodies.
const SPARE_THREADS: usize = 4;

/// How long the end waits for threads that are blocked.
const BLOCKED_LIMIT: Duration = Duration::from_secs(1);

/// Runs the daemon until it is told to stop.
pub fn run(path: &Path) -> Result<(), Failure> {
    let loaded = config::load(path).map_err(|problems| configuration(path, &problems))?;
    log::start(&loaded.settings.log);
    for warning in &loaded.warnings {
        tracing::warn!(problem = %warning, "configuration");
    }
    raise_open_files(loaded.settings.listen.connections_max);
    let given = Listeners::from_environment().map_err(Failure::internal)?;
    let path = path.to_owned();
    let reread = move || {
        let loaded = config::load(&path).map_err(|problems| problems.to_string())?;
        Ok(loaded.settings)
    };
    run_on(runtime(&loaded.settings)?, async move {
        let notifier = Notifier::from_environment();
        let daemon = Daemon::build(loaded.settings, given, notifier, Box::new(reread))
            .await
            .map_err(start_failure)?;
        let (hangups, stop) = signals()?;
        daemon.run(stop, hangups, || ()).await.map_err(Failure::internal)
    })
}

/// Checks the configuration.
pub fn check(path: &Path) -> Result<(), Failure> {
    let loaded = config::load(path).map_err(|problems| configuration(path, &problems))?;
    let mut text = String::new();
    for warning in &loaded.warnings {
        text.push_str(&format!("warning: {warning}\n"));
    }
    let settings = &loaded.settings;
    let screening = Screening::load(&settings.screen, None)
        .map_err(|error| Failure::configuration(error.to_string()))?;
    for warning in screening.warnings() {
        text.push_str(&format!("warning: {warning}\n"));
    }
    if settings.screen.rules.is_some() {
        let rules = screening.inspector.rules().len();
        text.push_str(&format!("{rules} screening rules pass their own tests.\n"));
    }
    for judge in screening.models.all() {
        let (name, runtime) = (&judge.name, judge.model.runtime().as_str());
        text.push_str(&format!("Classifier {name} runs in {runtime}.\n"));
    }
    text.push_str(&format!(
        "{} is valid: {} tenants, {} models, {} servers.\n",
        path.display(),
        settings.tenants.len(),
        settings.models.len(),
        settings.servers.len()
    ));
    print(text.as_bytes())
}

/// Takes as many open files as the system allows, and says so when that is too few: each caller needs
/// one, and each request at a server another.
pub fn raise_open_files(connections_max: usize) {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let now = getrlimit(Resource::Nofile);
    // Refused, the limit stays what it was; the line below tells.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: now.maximum, maximum: now.maximum });
    let allowed = getrlimit(Resource::Nofile).current;
    let wanted = (connections_max as u64).saturating_mul(2).saturating_add(256);
    if let Some(allowed) = allowed.filter(|allowed| *allowed < wanted) {
        tracing::warn!(
            allowed,
            wanted,
            "too few open files are allowed for listen.connections_max; raise LimitNOFILE or lower it"
        );
    }
}

/// The threads that the settings ask for.
pub fn runtime(settings: &Settings) -> Result<tokio::runtime::Runtime, Failure> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(settings.threads.carry)
        // Bodies take `compute` of them at most; the others are there so that no name lookup and no
        // loading of files ever waits behind bodies.
        .max_blocking_threads(settings.threads.compute.max(1).saturating_add(SPARE_THREADS))
        .thread_name("berthd")
        .enable_all()
        .build()
        .map_err(Failure::internal)
}

/// Runs to the end and then waits a moment for what still blocks a thread: a name server or a file that
/// does not answer must not keep the process from ending.
pub fn run_on<T>(runtime: tokio::runtime::Runtime, future: impl Future<Output = T>) -> T {
    let ended = runtime.block_on(future);
    runtime.shutdown_timeout(BLOCKED_LIMIT);
    ended
}

/// Hangups as they come, and a future that resolves when the process should stop.
pub fn signals() -> Result<(mpsc::Receiver<()>, impl Future<Output = ()>), Failure> {
    let mut terminate = signal(SignalKind::terminate()).map_err(Failure::internal)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(Failure::internal)?;
    let mut hangup = signal(SignalKind::hangup()).map_err(Failure::internal)?;
    // One waiting hangup says as much as ten.
    let (send, hangups) = mpsc::channel(1);
    let stop = async move {
        loop {
            tokio::select! {
                _ = terminate.recv() => return,
                _ = interrupt.recv() => return,
                _ = hangup.recv() => drop(send.try_send(())),
            }
        }
    };
    Ok((hangups, stop))
}

/// What kept the daemon from starting, with the exit code for it.
pub fn start_failure(error: StartError) -> Failure {
    let mut text = error.to_string();
    if let Some(source) = std::error::Error::source(&error) {
        text.push_str(&format!(": {source}"));
    }
    match &error {
        StartError::Bind { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
            Failure::permission(text)
        }
        StartError::Server(..) | StartError::Screening(_) => Failure::configuration(text),
        _ => Failure::internal(text),
    }
}

fn configuration(path: &Path, problems: &config::Problems) -> Failure {
    Failure::configuration(format!("{} cannot be used:\n{problems}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_blocked_thread_does_not_keep_the_process_from_ending() {
        let (free, blocked) = std::sync::mpsc::channel::<()>();
        let began = tokio::time::Instant::now();
        let told =
            run_on(runtime(&config::parse_text("test", "").unwrap().settings).unwrap(), async {
                let (running, runs) = tokio::sync::oneshot::channel();
                drop(tokio::task::spawn_blocking(move || {
                    running.send(()).unwrap();
                    blocked.recv_timeout(BLOCKED_LIMIT * 30)
                }));
                runs.await.unwrap();
                7
            });
        assert_eq!(told, 7);
        assert!(began.elapsed() < BLOCKED_LIMIT * 15, "{:?}", began.elapsed());
        drop(free);
    }
}
