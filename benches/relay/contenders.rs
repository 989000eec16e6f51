//! Who is measured: how each gateway is started before the same model server.

use super::{load::Door, procs::Tree};
use std::{
    fs,
    path::{Path, PathBuf},
};

/// A gateway, not started yet.
pub struct Contender {
    /// Its name in the table.
    pub name: &'static str,
    /// Where callers reach it.
    pub door: Door,
    command: Vec<String>,
    folder: PathBuf,
}

/// The key that berthd's callers send; its digest stands in the configuration below.
const KEY: &str = "example";
const DIGEST: &str = "50d858e0985ecc7f60418aaf0cc5ab587f42c2570a884095a9e8ccacd0f6545c";

impl Contender {
    /// Starts it on a core.
    pub fn start(&self, core: usize) -> Result<Tree, String> {
        Tree::start(core, &self.command, &self.folder.join(format!("{}.log", self.name)))
    }

    fn new(name: &'static str, folder: &Path, port: u16, key: bool, command: &[&str]) -> Self {
        Self {
            name,
            door: Door { port, key: key.then(|| KEY.to_owned()) },
            command: command.iter().map(|word| (*word).to_owned()).collect(),
            folder: folder.to_owned(),
        }
    }
}

/// Every gateway that is installed; the others are named on standard error. Ports count up from `port`.
pub fn all(berthd: &str, server: u16, port: u16, folder: &Path) -> Result<Vec<Contender>, String> {
    let mut all = Vec::new();
    match ["/usr/sbin/nginx", "/usr/bin/nginx"].into_iter().find(|path| Path::new(path).exists()) {
        Some(program) => all.push(nginx(program, server, port, folder)?),
        None => skip("nginx", "no /usr/sbin/nginx"),
    }
    let url = format!("http://127.0.0.1:{server}");
    let venv = Path::new(env!("CARGO_MANIFEST_DIR")).join(".venv-bench/bin");
    for (name, offset, first) in [("vllm-router", 1, None), ("smg", 2, Some("launch"))] {
        let program = venv.join(name);
        if !program.exists() {
            skip(name, "not in .venv-bench");
            continue;
        }
        let (door, metrics) = ((port + offset).to_string(), (port + offset + 10).to_string());
        let program = program.to_string_lossy();
        let mut command = vec![&*program];
        command.extend(first);
        command.extend(["--host", "127.0.0.1", "--port", &door, "--worker-urls", &url]);
        command.extend(["--policy", "round_robin", "--prometheus-port", &metrics]);
        command.extend(["--max-concurrent-requests", "16384"]);
        command.extend(["--log-level", if name == "smg" { "warn" } else { "warning" }]);
        if name == "smg" {
            command.extend(["--disable-tokenizer-autoload"]);
        }
        all.push(Contender::new(name, folder, port + offset, false, &command));
    }
    all.push(broker("berthd", berthd, server, port + 3, folder, "")?);
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/demo-chat");
    let exact = format!("[[models]]\nname = \"simulated\"\nfolder = \"{}\"\n", model.display());
    all.push(broker("berthd-exact", berthd, server, port + 4, folder, &exact)?);
    Ok(all)
}

fn skip(name: &str, why: &str) {
    eprintln!("SKIPPED: {name}: {why}. Run benches/setup to have it measured.");
}

fn nginx(program: &str, server: u16, port: u16, folder: &Path) -> Result<Contender, String> {
    let root = folder.display();
    let text = format!(
        "daemon off;
worker_processes 1;
worker_rlimit_nofile 20000;
pid {root}/nginx.pid;
error_log {root}/nginx-error.log warn;
events {{ worker_connections 10000; }}
http {{
    access_log off;
    client_body_temp_path {root}/body;
    proxy_temp_path {root}/proxy;
    fastcgi_temp_path {root}/fastcgi;
    uwsgi_temp_path {root}/uwsgi;
    scgi_temp_path {root}/scgi;
    keepalive_requests 10000000;
    upstream server {{ server 127.0.0.1:{server}; keepalive 512; keepalive_requests 10000000; }}
    server {{
        listen 127.0.0.1:{port};
        tcp_nodelay on;
        location / {{
            proxy_pass http://server;
            proxy_http_version 1.1;
            proxy_set_header Connection \"\";
            proxy_buffering off;
            proxy_read_timeout 600s;
        }}
    }}
}}
"
    );
    let file = folder.join("nginx.conf");
    fs::write(&file, text).map_err(|e| e.to_string())?;
    Ok(Contender::new("nginx", folder, port, false, &[program, "-c", &file.to_string_lossy()]))
}

/// berthd as an operator would run it on one core: authentication, accounting and the log on.
fn broker(
    name: &'static str,
    program: &str,
    server: u16,
    port: u16,
    folder: &Path,
    more: &str,
) -> Result<Contender, String> {
    let text = format!(
        "[listen]
data = \"127.0.0.1:{port}\"
admin = \"127.0.0.1:{}\"
socket = \"{}/{name}.sock\"
connections_max = 10000
[threads]
carry = 1
compute = 1
[probe]
discover = false
[gpu]
enabled = false
[queue]
tenant_share_percent = 100
[[tenants]]
name = \"bench\"
keys_sha256 = [\"{DIGEST}\"]
requests_per_minute = 100000000
tokens_per_minute = 100000000000
{more}[[servers]]
name = \"simulated\"
kind = \"openai\"
url = \"http://127.0.0.1:{server}\"
max_running = 10000
",
        port + 10,
        folder.display()
    );
    let file = folder.join(format!("{name}.toml"));
    fs::write(&file, text).map_err(|e| e.to_string())?;
    Ok(Contender::new(name, folder, port, true, &[program, "serve", "-c", &file.to_string_lossy()]))
}
