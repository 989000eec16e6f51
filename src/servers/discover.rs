//! Looks for model servers on this host's usual ports, or at any listener that it is sent to.
//!
//! A port proves nothing: a server is taken for what its own pages say it is, and a port whose
//! answer is no model list is left alone. A server that wants an API key cannot be used unasked, so
//! it is not found; the operator names it in the configuration.

use super::{
    exposition,
    http::{Client, ClientLimits},
    llamacpp, ollama, openai,
    remote::{MODELS, PAGE_MAX},
    sglang, vllm,
};
use crate::snapshot::{ServedModel, ServerKind};
use http::StatusCode;
use std::time::Duration;
use tokio::task::JoinSet;

/// vLLM and others, SGLang, llama.cpp, Ollama, TGI, LM Studio and mistral.rs.
pub const PORTS: [u16; 6] = [8000, 30000, 8080, 11434, 3000, 1234];

/// Usual ports are asked on loopback only: what listens elsewhere is not this host's to offer.
const HOST: &str = "127.0.0.1";

/// On loopback a listening port answers in microseconds.
const CONNECT_LIMIT: Duration = Duration::from_millis(300);

/// A model server that was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Which program it is.
    pub kind: ServerKind,
    /// Its address.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// What it lists; empty while it loads.
    pub models: Vec<ServedModel>,
    /// Version text, where it tells it.
    pub version: Option<String>,
}

/// Asks the usual ports, all at once, except `own`. Each page must come within `limit`. Found servers
/// come in the order of [`PORTS`]. Dropping the future ends all questions.
pub async fn discover(limit: Duration, own: &[u16]) -> Vec<Found> {
    among(&PORTS, limit, own).await
}

/// As [`discover`], on other ports.
pub async fn among(ports: &[u16], limit: Duration, own: &[u16]) -> Vec<Found> {
    let mut questions = JoinSet::new();
    for (place, &port) in ports.iter().enumerate().filter(|(_, port)| !own.contains(port)) {
        questions.spawn(async move { (place, recognise(HOST, port, limit).await) });
    }
    let mut found = Vec::new();
    while let Some(answer) = questions.join_next().await {
        if let Ok((place, Some(server))) = answer {
            found.push((place, server));
        }
    }
    found.sort_by_key(|(place, _)| *place);
    found.into_iter().map(|(_, server)| server).collect()
}

/// Asks one listener of this host, at an address as URLs have it, whether it is a model server. Each page
/// must come within `limit`. Dropping the future ends the question.
pub async fn recognise(host: &str, port: u16, limit: Duration) -> Option<Found> {
    let limits =
        ClientLimits { connect: CONNECT_LIMIT.min(limit), idle_max: 1, keep_after_stream: false };
    let client = Client::new(host.to_owned(), port, String::new(), None, limits);
    let (status, page) = client.get(MODELS, limit, PAGE_MAX).await.ok()?;
    let found =
        |kind, models, version| Found { kind, host: host.to_owned(), port, models, version };
    if status == StatusCode::SERVICE_UNAVAILABLE && llamacpp::loading(&page) {
        return Some(found(ServerKind::LlamaCpp, Vec::new(), None));
    }
    let models = openai::models(&page).filter(|_| status == StatusCode::OK)?;
    let (kind, version) = Signs { client, limit }.kind().await;
    Some(found(kind, models, version))
}

/// Reads the pages that tell one kind from another.
struct Signs {
    client: Client,
    limit: Duration,
}

impl Signs {
    async fn page(&self, path: &str) -> Option<bytes::Bytes> {
        let (status, page) = self.client.get(path, self.limit, PAGE_MAX).await.ok()?;
        (status == StatusCode::OK).then_some(page)
    }

    async fn version(&self, path: &str) -> Option<String> {
        openai::text(&self.page(path).await?, "/version")
    }

    async fn kind(&self) -> (ServerKind, Option<String>) {
        if let Some(props) =
            self.page(llamacpp::PROPS).await.and_then(|page| llamacpp::props(&page))
        {
            return (ServerKind::LlamaCpp, props.version);
        }
        for path in sglang::INFO {
            if let Some(sglang::Info { version, .. }) =
                self.page(path).await.and_then(|page| sglang::info(&page))
            {
                return (ServerKind::Sglang, version);
            }
        }
        match self.metrics_kind().await {
            Some(ServerKind::Vllm) => (ServerKind::Vllm, self.version(vllm::VERSION).await),
            Some(kind) => (kind, None),
            None => match self.page(ollama::ROOT).await {
                Some(page) if ollama::is_it(&page) => {
                    (ServerKind::Ollama, self.version(ollama::VERSION).await)
                }
                _ => (ServerKind::OpenAi, self.version("/info").await),
            },
        }
    }

    async fn metrics_kind(&self) -> Option<ServerKind> {
        const PREFIXES: [(&str, ServerKind); 3] = [
            (vllm::METRIC_PREFIX, ServerKind::Vllm),
            (sglang::METRIC_PREFIX, ServerKind::Sglang),
            (llamacpp::METRIC_PREFIX, ServerKind::LlamaCpp),
        ];
        let page = self.page(vllm::METRICS).await?;
        let text = String::from_utf8_lossy(&page);
        exposition::samples(&text).find_map(|sample| {
            let named = PREFIXES.iter().find(|(prefix, _)| sample.name.starts_with(prefix));
            named.map(|(_, kind)| *kind)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::servers::staged::Staged;

    const LIMIT: Duration = Duration::from_secs(5);
    const LIST: &str = r#"{"object":"list","data":[{"id":"m","max_model_len":4096}]}"#;

    async fn only(pages: &[(&str, u16, &str)]) -> Option<(ServerKind, Option<String>)> {
        let staged = Staged::start(pages).await;
        let found = among(&[staged.port], LIMIT, &[]).await;
        assert!(found.iter().all(|server| server.port == staged.port));
        found.into_iter().next().map(|server| (server.kind, server.version))
    }

    #[tokio::test]
    async fn each_kind_is_known_by_its_own_pages() {
        let models = ("/v1/models", 200, LIST);
        let gauge = "vllm:num_requests_running{engine=\"0\"} 0\n";
        let vllm = [models, ("/metrics", 200, gauge), ("/version", 200, r#"{"version":"0.33.0"}"#)];
        assert_eq!(only(&vllm).await, Some((ServerKind::Vllm, Some("0.33.0".into()))));

        let info = r#"{"version":"0.5.23","max_total_num_tokens":100,"internal_states":[{}]}"#;
        let sglang = [models, ("/get_server_info", 200, info)];
        assert_eq!(only(&sglang).await, Some((ServerKind::Sglang, Some("0.5.23".into()))));

        let props =
            r#"{"default_generation_settings":{"n_ctx":64},"total_slots":1,"build_info":"b1"}"#;
        let llama = [models, ("/props", 200, props)];
        assert_eq!(only(&llama).await, Some((ServerKind::LlamaCpp, Some("b1".into()))));

        let ollama = [
            ("/v1/models", 200, r#"{"object":"list","data":null}"#),
            ("/api/version", 200, r#"{"version":"0.33.0"}"#),
            ("/", 200, "Ollama is running"),
        ];
        assert_eq!(only(&ollama).await, Some((ServerKind::Ollama, Some("0.33.0".into()))));
        let tgi = [models, ("/info", 200, r#"{"version":"3.3.7"}"#)];
        assert_eq!(only(&tgi).await, Some((ServerKind::OpenAi, Some("3.3.7".into()))));
    }

    #[tokio::test]
    async fn what_is_no_model_server_is_left_alone() {
        assert_eq!(only(&[]).await, None);
        let page = "<!doctype html><title>dashboard</title>";
        assert_eq!(
            only(&[("/v1/models", 200, page), ("/metrics", 200, "go_goroutines 8")]).await,
            None
        );
        let locked = r#"{"error":"Unauthorized"}"#;
        assert_eq!(only(&[("/v1/models", 401, locked)]).await, None);
        assert_eq!(only(&[("/v1/models", 500, LIST)]).await, None, "a list, but not in earnest");
    }

    #[tokio::test]
    async fn a_llama_cpp_that_loads_is_found_without_models() {
        let loading =
            r#"{"error":{"message":"Loading model","type":"unavailable_error","code":503}}"#;
        let found = only(&[("/v1/models", 503, loading)]).await;
        assert_eq!(found, Some((ServerKind::LlamaCpp, None)));
    }

    #[tokio::test]
    async fn own_ports_are_not_asked_and_order_is_kept() {
        let models = ("/v1/models", 200, LIST);
        let (one, two, own) = (
            Staged::start(&[models]).await,
            Staged::start(&[models]).await,
            Staged::start(&[models]).await,
        );
        let ports = [two.port, own.port, one.port];
        let found = among(&ports, LIMIT, &[own.port]).await;
        let found: Vec<u16> = found.iter().map(|server| server.port).collect();
        assert_eq!(found, [two.port, one.port]);
        assert_eq!(own.asked(), Vec::<String>::new());
    }

    #[tokio::test]
    async fn a_port_that_accepts_and_says_nothing_costs_only_the_limit() {
        let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = silent.local_addr().unwrap().port();
        assert_eq!(among(&[port], Duration::from_millis(50), &[]).await, []);
    }
}
