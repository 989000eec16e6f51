//! What a request is understood as.

use super::*;
use crate::pipeline::count::Counters;
use http::Response;
use http_body_util::Full;
use tokio::time::timeout;

/// The key of the one tenant is "example".
const SETTINGS: &str = "[[tenants]]\nname = \"a\"\nkeys_sha256 = [\"50d858e0985ecc7f60418aaf0cc5ab587f42c2570a884095a9e8ccacd0f6545c\"]\n[threads]\ncompute = 2\n";

fn broker() -> Arc<Broker> {
    let settings = config::parse_text("test", SETTINGS).unwrap().settings;
    Broker::new(Live::new(settings, Counters::default()))
}

async fn ask(broker: &Arc<Broker>, length: usize) -> Response<super::super::answer::Reply> {
    let text = "x".repeat(length);
    let body = format!(r#"{{"model":"m","messages":[{{"role":"user","content":"{text}"}}]}}"#);
    let request = http::Request::post("/v1/chat/completions")
        .header("authorization", "Bearer example")
        .header("content-length", body.len())
        .body(Full::new(Bytes::from(body)))
        .unwrap();
    broker.handle(request).await
}

/// A large body was parsed and counted even when its caller had left before a thread was free, and
/// any number of them stood in line.
#[tokio::test(start_paused = true)]
async fn a_caller_who_leaves_before_a_compute_thread_is_free_is_not_studied() {
    let broker = broker();
    let all = broker.bodies.available_permits();
    let turns = Arc::clone(&broker.compute).acquire_many_owned(2).await.unwrap();
    let mut asking = Box::pin(ask(&broker, 2 * INLINE_MAX));
    assert!(timeout(Duration::from_secs(9), asking.as_mut()).await.is_err(), "it waits");
    assert!(broker.bodies.available_permits() <= all - 64, "its memory is counted");
    let brokers = Arc::strong_count(&broker);
    drop(asking);
    assert_eq!(broker.bodies.available_permits(), all);
    assert_eq!(Arc::strong_count(&broker), brokers, "nothing was handed to the threads");
    drop(turns);
    assert_eq!(ask(&broker, 2 * INLINE_MAX).await.status(), 404, "the next one is studied");
    assert_eq!(broker.compute.available_permits(), 2);
    assert_eq!(broker.bodies.available_permits(), all);
}

#[tokio::test(start_paused = true)]
async fn bodies_that_find_no_memory_are_refused_and_may_come_again() {
    let broker = broker();
    let all = broker.bodies.available_permits();
    let others = u32::try_from(all - 10).unwrap();
    let others = Arc::clone(&broker.bodies).acquire_many_owned(others).await.unwrap();
    assert_eq!(ask(&broker, 1000).await.status(), 404, "a small one fits");
    let refused = ask(&broker, 10 * 1024).await;
    assert_eq!(refused.status(), 503);
    assert_eq!(refused.headers()["retry-after"], "1");
    drop(others);
    assert_eq!(ask(&broker, 10 * 1024).await.status(), 404);
    assert_eq!(broker.bodies.available_permits(), all);
}
