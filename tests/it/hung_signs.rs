//! Signs of life that are none, and silence that is no hang.

use crate::hung::{Prefills, broker, health, plane, prompt};
use berthd::{
    ids::ServerId,
    pipeline::{Broker, device::hanging},
    servers::{Answer, AnswerBody, Call, CallError, Later, ModelServer, Route},
    snapshot::{GpuPlane, Loading, ServedModel, ServerKind, ServerState},
    units::{Bytes as Memory, Tokens},
};
use bytes::Bytes;
use std::{
    sync::{Arc, LazyLock, Mutex},
    time::Duration,
};
use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
    time::{Instant, sleep},
};

/// Answers each request with a head and comments; its engine does nothing.
#[derive(Default)]
struct FrontEnd(Mutex<Vec<mpsc::Sender<Result<Bytes, CallError>>>>);

impl ModelServer for FrontEnd {
    fn id(&self) -> &ServerId {
        static ID: LazyLock<ServerId> = LazyLock::new(|| "s".into());
        &ID
    }

    fn kind(&self) -> ServerKind {
        ServerKind::OpenAi
    }

    fn send(&self, _call: Call) -> Later<'_, Result<Answer, CallError>> {
        let (give, pieces) = mpsc::channel(1);
        give.try_send(Ok(Bytes::from_static(b": still here\n\n"))).unwrap();
        self.0.lock().unwrap().push(give);
        let mut headers = http::HeaderMap::new();
        headers.insert("content-type", http::HeaderValue::from_static("text/event-stream"));
        let body = AnswerBody::Memory(pieces);
        Box::pin(std::future::ready(Ok(Answer { status: http::StatusCode::OK, headers, body })))
    }

    fn observe<'a>(&'a self, last: &'a ServerState) -> Later<'a, ServerState> {
        Box::pin(std::future::ready(last.clone()))
    }

    fn count(&self, _route: Route, _body: Bytes) -> Later<'_, Option<Tokens>> {
        Box::pin(std::future::ready(None))
    }
}

/// Reads an idle card each second.
async fn idle(gpus: watch::Sender<Arc<GpuPlane>>) {
    loop {
        gpus.send_replace(plane(Some(0)));
        sleep(Duration::from_secs(1)).await;
    }
}

/// How long it takes until the server is called hung, with a new request every 10 s.
async fn hung_after(broker: &Arc<Broker>, limit: Duration) -> Option<Duration> {
    let (publish, gpus) = watch::channel(plane(Some(0)));
    let found = async {
        let mut running = JoinSet::new();
        let begun = Instant::now();
        while begun.elapsed() < limit {
            if begun.elapsed().as_secs().is_multiple_of(10) {
                running.spawn(prompt(Arc::clone(broker), 60));
            }
            sleep(Duration::from_secs(1)).await;
            if broker.dispatch.servers()[0].hung.is_some() {
                return Some(begun.elapsed());
            }
        }
        None
    };
    tokio::select! {
        found = found => found,
        () = hanging::watch(Arc::clone(broker), gpus) => unreachable!(),
        () = idle(publish) => unreachable!(),
    }
}

/// The heads of new requests once kept a dead engine alive as long as callers came.
#[tokio::test(start_paused = true)]
async fn heads_of_new_requests_are_no_sign_of_life() {
    let broker = broker(FrontEnd::default());
    let after = hung_after(&broker, Duration::from_secs(300)).await;
    assert!(after.is_some_and(|after| after <= Duration::from_secs(33)), "{after:?}");
}

/// Ollama reads a model from a disk: it says nothing for minutes, and its cards do nothing.
#[tokio::test(start_paused = true)]
async fn a_server_that_loads_a_model_is_not_hung_until_it_is_loaded() {
    let server = Prefills { id: "s".into(), working: Arc::default(), dead: true };
    let broker = broker(server);
    let model = |loaded| ServerState {
        models: vec![ServedModel {
            loading: Some(Loading { memory: Memory(8 << 30), loaded }),
            ..ServedModel::ready("m".into(), None)
        }],
        ..health()
    };
    broker.dispatch.observe(&model(false));
    assert_eq!(hung_after(&broker, Duration::from_secs(300)).await, None);
    broker.dispatch.observe(&model(true));
    let after = hung_after(&broker, Duration::from_secs(300)).await;
    assert!(after.is_some_and(|after| after >= Duration::from_secs(30)), "{after:?}");
}
