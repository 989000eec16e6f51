//! From files to `Settings`: the order in which sections are read, and what they are read against.

use super::{
    Model, Problem, Problems, Server, Settings, Severity, Spot, Tenant, keys, problem, read, rows,
    screen, sections, servers, source,
};
use crate::ids::TenantId;
use std::path::{Path, PathBuf};

/// Valid settings, and what is odd about them.
#[derive(Clone, Debug, PartialEq)]
pub struct Loaded {
    /// What the daemon runs by.
    pub settings: Settings,
    /// What the operator should look at; none of it keeps the daemon from starting.
    pub warnings: Vec<Problem>,
}

/// What the files are read against.
#[derive(Clone, Debug)]
pub(super) struct Surroundings {
    /// Relative paths start here.
    pub base: PathBuf,
    /// Where the service manager put credentials.
    pub credentials: Option<PathBuf>,
    /// CPU cores of this host.
    pub cores: usize,
}

impl Surroundings {
    fn of_process(base: &Path) -> Self {
        Self {
            base: base.to_owned(),
            credentials: std::env::var_os("CREDENTIALS_DIRECTORY").map(PathBuf::from),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
        }
    }

    /// A path as written, absolute or from the base.
    pub(super) fn path(&self, written: &str) -> PathBuf {
        self.base.join(written)
    }
}

/// Reads the file at `path` and the drop-ins in `berthd.d` beside it. Paths in them are relative to
/// the file's folder.
///
/// # Errors
/// All problems at once, warnings included, when at least one of them is an error. Nothing is changed;
/// calling again is safe.
pub fn load(path: &Path) -> Result<Loaded, Problems> {
    let report = problem::Report::default();
    let tree = source::read_files(path, &report);
    let surroundings = Surroundings::of_process(path.parent().unwrap_or(Path::new("")));
    settle(&Spot::of_file(path), &tree, report, &surroundings).0
}

/// Reads `text` as if it stood in a file called `name`, without drop-ins. Paths in it are relative to
/// the current folder.
///
/// # Errors
/// As [`load`].
pub fn parse_text(name: &str, text: &str) -> Result<Loaded, Problems> {
    read_text(name, text, &Surroundings::of_process(Path::new(""))).0
}

/// [`parse_text`] against given surroundings, with what the reader knows.
pub(super) fn read_text(
    name: &str,
    text: &str,
    surroundings: &Surroundings,
) -> (Result<Loaded, Problems>, problem::Outcome) {
    let report = problem::Report::default();
    let tree = source::parse(name, text, &report);
    settle(&Spot { file: name.into(), line: 0 }, &tree, report, surroundings)
}

fn settle(
    name: &Spot,
    tree: &source::Table,
    report: problem::Report,
    surroundings: &Surroundings,
) -> (Result<Loaded, Problems>, problem::Outcome) {
    let settings = read_all(name, tree, &report, surroundings);
    let mut outcome = report.finish();
    let problems = std::mem::take(&mut outcome.problems);
    let broken = problems.iter().any(|problem| problem.severity == Severity::Error);
    let result =
        if broken { Err(Problems(problems)) } else { Ok(Loaded { settings, warnings: problems }) };
    (result, outcome)
}

fn read_all(
    name: &Spot,
    tree: &source::Table,
    report: &problem::Report,
    surroundings: &Surroundings,
) -> Settings {
    let mut root = read::Section::root(name, tree, report);
    let listen = sections::listen(&mut root.section("listen"));
    let limits = sections::limits(&mut root.section("limits"));
    let queue = sections::queue(&mut root.section("queue"));
    let schedule = sections::schedule(&mut root.section("schedule"));
    let relay = sections::relay(&mut root.section("relay"));
    let breaker = sections::breaker(&mut root.section("breaker"));
    let probe = sections::probe(&mut root.section("probe"));
    let tokens = sections::tokens(&mut root.section("tokens"));
    let gpu = sections::gpu(&mut root.section("gpu"));
    let energy = sections::energy(&mut root.section("energy"));
    let screen = screen::screen(&mut root.section("screen"), surroundings);
    let threads = sections::threads(&mut root.section("threads"), surroundings.cores);
    let log = sections::log(&mut root.section("log"));

    let mut owners = keys::KeyOwners::default();
    let tenants: Vec<Tenant> = root
        .rows("tenants", rows::TENANTS_MAX)
        .iter_mut()
        .map(|row| rows::tenant(row, &mut owners, surroundings))
        .collect();
    if tenants.is_empty() {
        sections::warn_without_tenants(&root, name);
    }
    for policy in &screen.policies {
        let stranger = |tenant: &&TenantId| !tenants.iter().any(|known| known.name == **tenant);
        for tenant in policy.tenants.iter().filter(stranger) {
            let what =
                format!("policy `{}` names the tenant `{tenant}`, and there is none", policy.name);
            report.warn(name, "screen.policies", what, "name tenants as [[tenants]] does");
        }
    }
    let mut names = rows::Taken::default();
    let models: Vec<Model> = root
        .rows("models", rows::MODELS_MAX)
        .iter_mut()
        .map(|row| rows::model(row, &mut names, surroundings))
        .collect();
    let mut places = rows::Taken::default();
    let served: Vec<(Server, read::Section<'_>)> = root
        .rows("servers", servers::SERVERS_MAX)
        .into_iter()
        .map(|mut row| (servers::server(&mut row, &listen, &mut places, surroundings), row))
        .collect();
    rows::check_served(&served, &models);
    let servers = served.into_iter().map(|(server, _)| server).collect();
    Settings {
        listen,
        limits,
        queue,
        schedule,
        relay,
        breaker,
        probe,
        tokens,
        gpu,
        energy,
        screen,
        threads,
        log,
        tenants,
        models,
        servers,
    }
}
