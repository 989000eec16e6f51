//! Callers who hang up the moment the answer is whole, as OpenAI's own client does on `[DONE]`.

use berthd::{
    config,
    ids::{ModelName, ServerId},
    pipeline::{Broker, Live, count::Counters},
    servers::{Answer, AnswerBody, Call, CallError, Later, ModelServer, Route},
    snapshot::{Health, ServedModel, ServerKind, ServerState},
    units::Tokens,
};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::{
    sync::{Notify, mpsc},
    time::{Instant, timeout},
};

const ANSWER: &str = concat!(
    "data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"Hi\"},\"finish_reason\":null}]}\n\n",
    "data: {\"choices\":[{\"index\":0,\"delta\":{},\"finish_reason\":\"stop\"}]}\n\n",
    "data: [DONE]\n\n",
);

/// Sends a whole answer and is slow to end its body.
struct Lingering {
    id: ServerId,
    open: Mutex<Vec<mpsc::Sender<Result<Bytes, CallError>>>>,
}

impl ModelServer for Lingering {
    fn id(&self) -> &ServerId {
        &self.id
    }

    fn kind(&self) -> ServerKind {
        ServerKind::OpenAi
    }

    fn send(&self, _call: Call) -> Later<'_, Result<Answer, CallError>> {
        let (give, pieces) = mpsc::channel(1);
        give.try_send(Ok(Bytes::from_static(ANSWER.as_bytes()))).unwrap();
        self.open.lock().unwrap().push(give);
        let mut headers = http::HeaderMap::new();
        headers.insert("content-type", http::HeaderValue::from_static("text/event-stream"));
        let answer =
            Answer { status: http::StatusCode::OK, headers, body: AnswerBody::Memory(pieces) };
        Box::pin(std::future::ready(Ok(answer)))
    }

    fn observe<'a>(&'a self, last: &'a ServerState) -> Later<'a, ServerState> {
        Box::pin(std::future::ready(last.clone()))
    }

    fn count(&self, _route: Route, _body: Bytes) -> Later<'_, Option<Tokens>> {
        Box::pin(std::future::ready(None))
    }
}

/// The key of the one tenant is "example".
const SETTINGS: &str = "[[tenants]]\nname = \"a\"\nkeys_sha256 = [\"50d858e0985ecc7f60418aaf0cc5ab587f42c2570a884095a9e8ccacd0f6545c\"]\n";

fn broker() -> Arc<Broker> {
    let settings = config::parse_text("test", SETTINGS).unwrap().settings;
    let broker = Broker::new(Live::new(settings, Counters::default()));
    let id = ServerId::from("lingering");
    let server = Arc::new(Lingering { id: id.clone(), open: Mutex::default() });
    let unknown = ServerState::unknown(id.clone(), ServerKind::OpenAi);
    broker.dispatch.join(server, Arc::new(Notify::new()), unknown);
    broker.dispatch.observe(&ServerState {
        health: Health::Up,
        models: vec![ServedModel::ready(ModelName::from("m"), None)],
        read_at: Some(Instant::now()),
        ..ServerState::unknown(id, ServerKind::OpenAi)
    });
    broker
}

/// A caller who reads `[DONE]` and closes was answered. The record was once written only after the
/// server had ended its body, so that such callers counted as cancelled, their usage was a guess and the
/// breaker never heard of the success.
#[tokio::test(start_paused = true)]
async fn a_caller_who_leaves_on_done_was_answered() {
    let broker = broker();
    let body = r#"{"model":"m","stream":true,"messages":[{"role":"user","content":"Hello"}]}"#;
    let request = http::Request::post("/v1/chat/completions")
        .header("authorization", "Bearer example")
        .body(Full::new(Bytes::from(body)))
        .unwrap();
    let mut answer = broker.handle(request).await.into_body();
    let mut heard = String::new();
    while !heard.contains("[DONE]") {
        let frame = timeout(Duration::from_secs(1), answer.frame()).await.unwrap();
        heard.push_str(std::str::from_utf8(&frame.unwrap().unwrap().into_data().unwrap()).unwrap());
    }
    // Hyper asks for more before it writes what it has.
    let _ = timeout(Duration::from_millis(1), answer.frame()).await;
    drop(answer);
    let page = broker.books.metrics.page(
        &BTreeMap::new(),
        &broker.dispatch.servers(),
        &berthd::snapshot::GpuPlane::Off,
    );
    assert!(page.contains("class=\"answered\""), "{page}");
    assert!(!page.contains("class=\"cancelled\""), "{page}");
}
