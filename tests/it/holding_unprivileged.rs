//! Who holds what, seen by a daemon that may look into nobody's processes, as the shipped unit runs it.

use crate::support::{
    nvml::FakeNvml,
    players::{Held, card, driver, http, server_after, stranger},
    process::{berthd, digest, eventually, get},
};
use serde_json::Value;
use std::{
    fs,
    net::SocketAddr,
    os::unix::fs::{PermissionsExt, chown},
    path::{Path, PathBuf},
    process::Command,
};

/// A user that owns nothing here, and is not the one that stands for users without a name.
const NOBODY: u32 = 61_234;

/// A control group of version 2, named like a service's; removed when dropped.
struct Group(PathBuf);

impl Group {
    fn new() -> Option<Self> {
        let roots = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"].map(Path::new);
        let root = roots.into_iter().find(|root| root.join("cgroup.procs").exists())?;
        let group = root.join(format!("berthd-test-{}.service", std::process::id()));
        fs::create_dir(&group).ok()?;
        Some(Self(group))
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // Processes leave it a moment after their end.
        for _ in 0..10_000 {
            if fs::remove_dir(&self.0).is_ok() {
                return;
            }
        }
    }
}

/// Starts a daemon as [`NOBODY`]; `None` where that is not possible. It, and its admin address.
async fn unprivileged(folder: &Path, driver: &FakeNvml, rows: &str) -> Option<(Held, SocketAddr)> {
    let open = |path: &Path| fs::set_permissions(path, fs::Permissions::from_mode(0o755));
    open(driver.library().parent()?).ok()?;
    chown(folder, Some(NOBODY), Some(NOBODY)).ok()?;
    let config = folder.join("berthd.toml");
    let text = format!(
        "[listen]\ndata = \"127.0.0.1:0\"\nadmin = \"127.0.0.1:0\"\nsocket = \"{}/s\"\n\
         [probe]\ndiscover = false\n[log]\nformat = \"json\"\n[gpu]\nnvml_library = \"{}\"\n\
         period_s = 0.1\n[[tenants]]\nname = \"a\"\nkeys_sha256 = [\"{}\"]\n{rows}",
        folder.display(),
        driver.library().display(),
        digest("key")
    );
    fs::write(&config, text).ok()?;
    fs::set_permissions(&config, fs::Permissions::from_mode(0o644)).ok()?;
    let user = NOBODY.to_string();
    let mut command = Command::new("setpriv");
    command.args(["--reuid", &user, "--regid", &user, "--clear-groups", "--no-new-privs"]);
    // The log is a file, since nobody would empty a pipe.
    command.args(["sh", "-c", "exec \"$0\" serve --config \"$1\" 2>\"$2\""]);
    let log = folder.join("log");
    command.arg(berthd().get_program()).arg(config).arg(&log);
    let (mut held, _) = Held::start(command);
    let serving = |line: &str| {
        let event: Value = serde_json::from_str(line).ok()?;
        let admin = event["admin"].as_str().or(event["fields"]["admin"].as_str());
        admin.and_then(|admin| admin.parse().ok())
    };
    let admin = eventually("it serves, or ends", || {
        let text = fs::read_to_string(&log).unwrap_or_default();
        let admin = text.lines().find_map(serving);
        let over = held.is_over();
        async move { (admin.is_some() || over).then_some(admin) }
    })
    .await;
    admin.map(|admin| (held, admin))
}

// As the shipped unit runs it, the daemon saw no holder of another user's socket, and so no server.
#[tokio::test]
async fn a_service_is_known_by_its_group_without_any_privilege() {
    let skip = "SKIPPED: needs root, setpriv, and control groups of version 2";
    let Some(group) = Group::new() else { return println!("{skip}") };
    let enter = format!("echo $$ > {}/cgroup.procs", group.0.display());
    let (service, child, at) = server_after(&enter, "127.0.0.1:0", "m");
    let (loose, loose_child, loose_at) = server_after(":", "127.0.0.1:0", "m");
    let other = stranger();
    let cards = [
        card(0, 50, &[(child, 40), (other.pid(), 5)]),
        card(1, 50, &[(loose_child, 30), (loose.pid(), 2)]),
    ];
    let (folder, fake) = (tempfile::tempdir().unwrap(), FakeNvml::new(&driver(&cards)));
    let rows = [http("service", at), http("loose", loose_at)].concat();
    let Some((daemon, admin)) = unprivileged(folder.path(), &fake, &rows).await else {
        return println!("{skip}");
    };
    let page = eventually("the service's GPU is known", || async {
        let page = String::from_utf8_lossy(&get(admin, "/metrics").await.body).into_owned();
        let known = page.contains("server_gpu{server=\"service\",gpu=\"GPU-0\",how=\"group\"} 1");
        known.then_some(page)
    })
    .await;
    let memory = |gpu: &str, holder: &str, server: &str| {
        let labels = format!("{{gpu=\"{gpu}\",holder=\"{holder}\",server=\"{server}\"}} ");
        let line = page.lines().find_map(|line| line.split_once(&labels));
        line.map(|(_, bytes)| bytes.parse::<u64>().unwrap() >> 30)
    };
    assert_eq!(memory("GPU-0", "server", "service"), Some(40));
    assert_eq!(memory("GPU-0", "foreign", ""), Some(5));
    assert_eq!(memory("GPU-0", "driver", ""), Some(5));
    // What is in no service is not guessed.
    assert_eq!(memory("GPU-1", "foreign", ""), Some(32));
    assert!(!page.contains("server_gpu{server=\"loose\""), "{page}");
    drop((daemon, service, loose, other));
}
