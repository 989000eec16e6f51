//! Reads `[[servers]]`: which program each is and where.

use super::{
    KvEndpoint, Listen, Place, Server, defaults, keys, load::Surroundings, problem::Spot,
    read::Section, rows, sections,
};
use crate::{
    ids::{GpuId, ServerId, ServerKind},
    units::{Bytes, Tokens},
};
use std::net::Ipv6Addr;

/// Most servers: each is probed every second and has its own metric series.
pub(super) const SERVERS_MAX: usize = 256;

/// What an embedded server loads.
const EMBEDDED_FILES: [&str; 3] = ["config.json", "tokenizer.json", "model.safetensors"];

/// Most GPUs of one server.
const GPUS_MAX: usize = 256;

/// Largest KV cache that is not a slip of the pen, tokens.
const KV_MAX_TOKENS: u64 = 1_000_000_000_000;

/// One `[[servers]]` entry.
pub(super) fn server(
    section: &mut Section<'_>,
    listen: &Listen,
    taken: &mut rows::Taken,
    surroundings: &Surroundings,
) -> Server {
    let name = rows::name(section, "server");
    if !section.holds("kind") {
        let all: Vec<&str> = rows::kinds().iter().map(|(word, _)| *word).collect();
        section.missing("kind", format!("add kind = \"...\", one of {}", all.join(", ")));
    }
    let kind = section.optional_choice("kind", &rows::kinds());
    Server {
        name: ServerId::from(name),
        kind: kind.unwrap_or(ServerKind::OpenAi),
        place: place(section, kind, listen, taken, surroundings),
        api_key: keys::of_server(section, surroundings),
        models: rows::model_names(section, "models").into_iter().map(|(name, _)| name).collect(),
        kv_tokens: section.optional_number("kv_tokens", 1..=KV_MAX_TOKENS).map(Tokens),
        max_running: section
            .optional_number("max_running", 1..=1_000_000)
            .and_then(|most| u32::try_from(most).ok()),
        send_token_ids: send_token_ids(section, kind),
        priority: priority(section, kind),
        paced: section.optional_flag("paced"),
        gpus: gpus(section),
        memory_grows: section.optional_flag("memory_grows"),
        memory_per_token: section
            .optional_number("memory_per_token_kib", 1..=1_000_000)
            .map(|kib| Bytes(kib << 10)),
        kv_events: kv_events(section, kind),
    }
}

/// UUIDs of whole cards or MIG devices. An index means another card after the next reboot.
fn gpus(section: &mut Section<'_>) -> Vec<GpuId> {
    let texts = section.texts("gpus", GPUS_MAX);
    let ids = texts.iter().map(|found| found.text);
    if let Some(wrong) = ids.clone().find(|id| !id.starts_with("GPU-") && !id.starts_with("MIG-")) {
        let what = format!("\"{wrong}\" is no UUID of a GPU");
        section.error("gpus", what, "take it from `berthd gpus`; it begins with GPU- or MIG-");
    }
    ids.map(GpuId::from).collect()
}

fn priority(section: &mut Section<'_>, kind: Option<ServerKind>) -> bool {
    let wanted = section.flag("priority", defaults::PRIORITY);
    if wanted && !matches!(kind, None | Some(ServerKind::Vllm | ServerKind::Sglang)) {
        let what = "a server of this kind has no priorities of its own";
        section.error("priority", what, "remove the key");
    }
    wanted
}

fn send_token_ids(section: &mut Section<'_>, kind: Option<ServerKind>) -> bool {
    let wanted = section.flag("send_token_ids", defaults::SEND_TOKEN_IDS);
    if wanted
        && matches!(kind, Some(ServerKind::Ollama | ServerKind::OpenAi | ServerKind::Embedded))
    {
        let what = "a server of this kind takes no token ids";
        section.error("send_token_ids", what, "remove the key");
    }
    wanted
}

fn kv_events(section: &mut Section<'_>, kind: Option<ServerKind>) -> Option<KvEndpoint> {
    let url = section.text("kv_events")?.text;
    if !matches!(kind, None | Some(ServerKind::Vllm | ServerKind::Sglang)) {
        let what = "a server of this kind publishes no KV events";
        section.error(
            "kv_events",
            what,
            "remove the key; kinds \"vllm\" and \"sglang\" publish them",
        );
        return None;
    }
    let endpoint = parse_endpoint(url);
    if endpoint.is_none() {
        // A password, which has no place here, is not repeated.
        let shown = if url.contains('@') { "this".to_owned() } else { format!("{url:?}") };
        let what = format!("{shown} is no endpoint to connect to");
        section.error(
            "kv_events",
            what,
            "write it like \"tcp://127.0.0.1:5557\", host and port only",
        );
    }
    endpoint
}

/// Takes `tcp://host:port` apart. What a publisher may listen at (`tcp://*:5557`) is no host.
fn parse_endpoint(url: &str) -> Option<KvEndpoint> {
    let (host, port) = url.strip_prefix("tcp://")?.rsplit_once(':')?;
    let port = Some(port).filter(|port| port.bytes().all(|byte| byte.is_ascii_digit()))?;
    let port = port.parse().ok().filter(|port| *port > 0)?;
    let host = match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        Some(host) => host.parse::<Ipv6Addr>().ok().map(|_| host)?,
        None => host,
    };
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._:".contains(&byte);
    let named = !host.is_empty() && host.bytes().all(plain);
    let bare = host.contains(':') && !url.contains('[');
    (named && !bare).then(|| KvEndpoint { host: host.to_owned(), port })
}

fn place(
    section: &mut Section<'_>,
    kind: Option<ServerKind>,
    listen: &Listen,
    taken: &mut rows::Taken,
    surroundings: &Surroundings,
) -> Place {
    let nowhere = Place::Http { host: String::new(), port: 0, prefix: String::new() };
    // Both are asked for whatever the kind, so that neither counts as unknown.
    let url = section.text("url").map(|found| (found.text.to_owned(), found.at.clone()));
    match kind {
        Some(ServerKind::Embedded) => {
            if url.is_some() {
                let what = "an embedded server runs inside the daemon and has no address";
                section.error("url", what, "remove the key, or choose another `kind`");
            }
            if !cfg!(feature = "candle") {
                let what = "this berthd was built without the embedded model";
                section.error("kind", what, "install a build with the feature `candle`");
            }
            if section.holds("kv_tokens") {
                let what = "an embedded server has room for its window times max_running";
                section.error(
                    "kv_tokens",
                    what,
                    "remove the key; set max_running to change its room",
                );
            }
            if !section.holds("folder") {
                let _ = section.take("folder");
                section.missing("folder", "add folder = \"...\": the model folder to load");
            }
            match rows::folder(section, &EMBEDDED_FILES, surroundings) {
                Some(folder) => Place::Folder(folder),
                None => nowhere,
            }
        }
        other => {
            let _ = section.take("folder");
            if other.is_some() && section.holds("folder") {
                let what = "only an embedded server is loaded from a folder";
                section.error("folder", what, "give a `url`, or set kind = \"embedded\"");
            }
            match url {
                Some((url, at)) => http(section, &url, &at, listen, taken).unwrap_or(nowhere),
                None => {
                    if other.is_some() && !section.holds("url") {
                        section.missing("url", "add url = \"http://127.0.0.1:8000\"");
                    }
                    nowhere
                }
            }
        }
    }
}

fn http(
    section: &Section<'_>,
    url: &str,
    at: &Spot,
    listen: &Listen,
    taken: &mut rows::Taken,
) -> Option<Place> {
    let place = match parse_url(url) {
        Ok(place) => place,
        Err((what, remedy)) => {
            section.error("url", what, remedy);
            return None;
        }
    };
    if let Place::Http { host, port, prefix } = &place {
        if sections::leads_home(listen, host, *port) {
            let what = format!("{host}:{port} is the daemon's own address");
            section.error("url", what, "write the model server's address");
        }
        let address = format!("{}:{port}{prefix}", host.to_ascii_lowercase());
        if let Some(other) = taken.take(&address, at) {
            let what = format!("{address} is already a server at {other}");
            section.error("url", what, "list each server once; its load would be counted twice");
        }
    }
    Some(place)
}

/// Takes `http://host[:port][/prefix]` apart. What is wrong, and the remedy, never repeat the URL when
/// it may hold a password.
fn parse_url(url: &str) -> Result<Place, (String, &'static str)> {
    let lower = url.to_ascii_lowercase();
    if lower.starts_with("https://") {
        return Err((
            "https is not supported: model servers listen on loopback or a private network"
                .to_owned(),
            "use http://, or put a local TLS client (stunnel, ghostunnel) in between",
        ));
    }
    if url.contains('@') {
        return Err((
            "user name or password in the address".to_owned(),
            "put the server's API key into a file and name it in `api_key_file`",
        ));
    }
    let rest = match (lower.strip_prefix("http://"), url.get("http://".len()..)) {
        (Some(_), Some(rest)) => rest,
        _ => {
            return Err((
                format!("{url:?} is not an HTTP address"),
                "write it like \"http://127.0.0.1:8000\"",
            ));
        }
    };
    if rest.contains(['?', '#']) {
        return Err((
            "a query or fragment in the address".to_owned(),
            "remove everything from `?` or `#` on",
        ));
    }
    let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
    let parsed: http::uri::Authority = authority.parse().map_err(|_| {
        (format!("{authority:?} is not a host and port"), "write it like \"127.0.0.1:8000\"")
    })?;
    // `http` reads a port lazily, so a bad one must be asked for.
    let port = match (parsed.port_u16(), authority.ends_with(':') || has_port(authority)) {
        (Some(0), _) | (None, true) => {
            return Err((
                format!("{authority:?} has no usable port"),
                "choose a port from 1 to 65535",
            ));
        }
        (Some(port), _) => port,
        (None, false) => 80,
    };
    let prefix = prefix(path)?;
    Ok(Place::Http { host: parsed.host().to_owned(), port, prefix })
}

/// Is there a port behind the host (and behind the bracket of an IPv6 address)?
fn has_port(authority: &str) -> bool {
    authority.rsplit_once(']').map_or(authority, |(_, rest)| rest).contains(':')
}

fn prefix(path: &str) -> Result<String, (String, &'static str)> {
    let path = path.trim_end_matches('/');
    if path.is_empty() {
        return Ok(String::new());
    }
    if path == "v1" || path.ends_with("/v1") {
        return Err(("the address ends in /v1".to_owned(), "remove /v1: it is added by itself"));
    }
    if !path.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err((
            "the path holds characters that must be percent-encoded".to_owned(),
            "encode them, or serve the model under a plain path",
        ));
    }
    Ok(format!("/{path}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_taken_apart() {
        for (url, host, port, prefix) in [
            ("http://127.0.0.1:8000", "127.0.0.1", 8000, ""),
            ("http://gpu-3:30000/", "gpu-3", 30000, ""),
            ("HTTP://[::1]:8080/a/b/", "[::1]", 8080, "/a/b"),
            ("http://models.internal", "models.internal", 80, ""),
            ("http://[::1]", "[::1]", 80, ""),
        ] {
            let (host, prefix) = (host.to_owned(), prefix.to_owned());
            assert_eq!(parse_url(url), Ok(Place::Http { host, port, prefix }), "{url}");
        }
    }

    #[test]
    fn an_endpoint_is_a_host_and_a_port() {
        for (url, host, port) in [
            ("tcp://127.0.0.1:5557", "127.0.0.1", 5557),
            ("tcp://gpu-3.internal:1", "gpu-3.internal", 1),
            ("tcp://[::1]:5557", "::1", 5557),
        ] {
            let endpoint = parse_endpoint(url).unwrap();
            assert_eq!((endpoint.host.as_str(), endpoint.port), (host, port));
            assert_eq!(endpoint.to_string(), url);
        }
        for url in [
            "tcp://*:5557",
            "tcp://h",
            "tcp://h:",
            "tcp://h:+1",
            "tcp://h:0",
            "tcp://h:65536",
            "tcp://:5557",
            "tcp://::1:5557",
            "tcp://[h]:1",
            "tcp://[::1:5557",
            "tcp://h:1/x",
            "tcp://me:secret@h:1",
            "ipc:///run/kv",
            "127.0.0.1:5557",
        ] {
            assert_eq!(parse_endpoint(url), None, "{url}");
        }
    }

    #[test]
    fn addresses_that_cannot_work_are_refused_with_a_remedy() {
        for (url, told) in [
            ("https://127.0.0.1:8000", "https"),
            ("127.0.0.1:8000", "not an HTTP address"),
            ("http://", "not a host and port"),
            ("http://a b:1", "not a host and port"),
            ("http://h:0", "no usable port"),
            ("http://h:", "no usable port"),
            ("http://h:70000", "no usable port"),
            ("http://h:1/v1", "/v1"),
            ("http://h:1/v1/", "/v1"),
            ("http://h:1?x=1", "query"),
            ("http://me:secret@h:1", "password"),
        ] {
            let (what, remedy) = parse_url(url).unwrap_err();
            assert!(what.contains(told), "{url}: {what}");
            assert!(!what.contains("secret") && !remedy.contains("secret"));
        }
    }
}
