//! `berthd explain`: what was decided about a request, and why.

use super::{
    Failure,
    operate::{Socket, ask, escaped_name},
    print, table,
};
use http::Method;
use serde_json::Value;

/// `berthd explain`
#[derive(Debug, clap::Args)]
pub struct Options {
    /// The request, by the id in its answer's x-request-id. Without it: the newest decisions
    #[arg(value_name = "REQUEST_ID")]
    request: Option<String>,
    /// How many decisions to list when no request is named
    #[arg(long, value_name = "NUMBER", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=2048))]
    last: u32,
    /// Print JSON instead of text
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    socket: Socket,
}

/// Asks the daemon.
pub fn run(options: &Options) -> Result<(), Failure> {
    let path = match &options.request {
        Some(request) => format!("/explain/{}", escaped_name(request)),
        None => format!("/explain?last={}", options.last),
    };
    let (status, body) = ask(&options.socket, Method::GET, &path)?;
    if !status.is_success() {
        let text = String::from_utf8_lossy(&body).trim_end().to_owned();
        return Err(if status.as_u16() == 404 {
            Failure::data(text)
        } else {
            Failure::internal(text)
        });
    }
    let value: Value = serde_json::from_slice(&body).map_err(Failure::internal)?;
    if options.json {
        let text = serde_json::to_string_pretty(&value).map_err(Failure::internal)?;
        return print(format!("{text}\n").as_bytes());
    }
    let text = match &value {
        Value::Array(decisions) => table::explain::list(decisions),
        decision => table::explain::one(decision),
    };
    print(text.as_bytes())
}
