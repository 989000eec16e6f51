//! `status`, `drain`, `undrain`, `reload`: talking to the running daemon.

use super::{Failure, client, one_thread, print, table};
use bytes::Bytes;
use http::{Method, StatusCode};
use std::path::PathBuf;

/// Where the daemon listens for operators.
#[derive(Debug, clap::Args)]
pub struct Socket {
    /// The daemon's control socket (listen.socket of its configuration).
    #[arg(long, env = "BERTHD_SOCKET", default_value = crate::config::defaults::SOCKET, value_name = "PATH")]
    pub socket: PathBuf,
}

/// `berthd status`
#[derive(Debug, clap::Args)]
pub struct StatusOptions {
    #[command(flatten)]
    socket: Socket,
    /// Print JSON instead of a table.
    #[arg(long)]
    json: bool,
}

/// `berthd drain` and `berthd undrain`
#[derive(Debug, clap::Args)]
pub struct ServerName {
    /// The server, by its name in `berthd status`.
    server: String,
    #[command(flatten)]
    socket: Socket,
}

pub(super) fn ask(
    socket: &Socket,
    method: Method,
    path: &str,
) -> Result<(StatusCode, Bytes), Failure> {
    one_thread()?.block_on(client::ask(&socket.socket, method, path))
}

/// Shows the status.
pub fn status(options: &StatusOptions) -> Result<(), Failure> {
    let (status, body) = ask(&options.socket, Method::GET, "/status")?;
    if !status.is_success() {
        return Err(Failure::internal(String::from_utf8_lossy(&body)));
    }
    let value: serde_json::Value = serde_json::from_slice(&body).map_err(Failure::internal)?;
    if options.json {
        let text = serde_json::to_string_pretty(&value).map_err(Failure::internal)?;
        return print(format!("{text}\n").as_bytes());
    }
    print(table::status(&value).as_bytes())
}

/// Drains a server, or takes it back.
pub fn drain(server: &ServerName, drained: bool) -> Result<(), Failure> {
    let verb = if drained { "drain" } else { "undrain" };
    post(&server.socket, &format!("/{verb}/{}", escaped_name(&server.server)))
}

/// Asks the daemon to do something, and prints what it says.
pub(super) fn post(socket: &Socket, path: &str) -> Result<(), Failure> {
    say(ask(socket, Method::POST, path)?)
}

/// A name as it stands in a path.
pub(super) fn escaped_name(name: &str) -> String {
    name.bytes().map(escaped).collect()
}

/// Reloads the configuration.
pub fn reload(socket: &Socket) -> Result<(), Failure> {
    post(socket, "/reload")
}

/// A byte of a name in a path.
fn escaped(byte: u8) -> String {
    if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
        char::from(byte).to_string()
    } else {
        format!("%{byte:02X}")
    }
}

fn say((status, body): (StatusCode, Bytes)) -> Result<(), Failure> {
    let text = String::from_utf8_lossy(&body);
    match status.as_u16() {
        200..=299 => print(text.as_bytes()),
        404 => Err(Failure::usage(text.trim_end())),
        422 => Err(Failure::configuration(text.trim_end())),
        _ => Err(Failure::internal(text.trim_end())),
    }
}
