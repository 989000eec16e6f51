//! Who may ask the control surfaces, and for what.

use super::*;
use crate::{
    config,
    pipeline::{Live, count::Counters, device},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex},
    time::Instant,
};

const SETTINGS: &str = "[[tenants]]\nname = \"a\"\nkeys_sha256 = [\"50d858e0985ecc7f60418aaf0cc5ab587f42c2570a884095a9e8ccacd0f6545c\"]\n";

fn control() -> (Arc<Control>, mpsc::Receiver<ReloadWish>) {
    let settings = config::parse_text("test", SETTINGS).unwrap().settings;
    let broker = Broker::new(Live::new(settings, Counters::default()));
    let (reload, reloads) = mpsc::channel(1);
    let (_, gpus) = watch::channel(Arc::new(GpuPlane::Off));
    let addresses = Addresses { data: "-".into(), admin: "-".into() };
    (Control::new(broker, gpus, addresses, reload), reloads)
}

/// Everything that comes back, and how long that took.
async fn exchange(control: &Arc<Control>, door: Door, request: &str) -> (String, Duration) {
    let (mut ours, theirs): (DuplexStream, DuplexStream) = duplex(64 << 10);
    let begun = Instant::now();
    ours.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    let (_, read) = tokio::join!(
        Arc::clone(control).connection(theirs, door),
        ours.read_to_string(&mut answer)
    );
    read.unwrap();
    (answer, begun.elapsed())
}

#[tokio::test(start_paused = true)]
async fn only_a_gpu_that_exists_is_cleared_and_only_through_the_socket() {
    let (control, _reloads) = control();
    let clear = "POST /gpus/clear/GPU-1 HTTP/1.1\r\nhost: localhost\r\n\r\n";
    let (answer, _) = exchange(&control, Door::Admin, clear).await;
    assert!(answer.starts_with("HTTP/1.1 404") && !answer.contains("GPU-1"), "{answer}");
    // No driver was ever read here.
    let watched = device::faulting::watch(Arc::clone(&control.broker), control.gpus.clone(), None);
    let watched = tokio::time::timeout(Duration::from_millis(1), watched);
    let (_, (answer, _)) = tokio::join!(watched, exchange(&control, Door::Socket, clear));
    assert!(answer.starts_with("HTTP/1.1 404"), "{answer}");
    assert!(answer.contains("There is no GPU GPU-1"), "{answer}");
}

#[test]
fn only_addresses_localhost_and_the_machine_are_us() {
    for host in [
        "127.0.0.1:8485",
        "10.1.2.3",
        "[::1]:8485",
        "[fd00::2]",
        "localhost:1",
        "GPU-3",
        "gpu-3.:8485",
    ] {
        assert!(names_us(host, "gpu-3"), "{host}");
    }
    for host in
        ["evil.example", "gpu-3.evil.example:8485", "127.0.0.1.evil.example", "", "?", "[::1"]
    {
        assert!(!names_us(host, "gpu-3"), "{host}");
    }
    assert!(!names_us("gpu-3", ""), "a machine without a name has none");
}

// A web page whose name was rebound to our address read the status with its visitor's browser.
#[tokio::test(start_paused = true)]
async fn the_admin_door_answers_to_no_strange_name() {
    let (control, _reloads) = control();
    for path in ["/status", "/metrics", "/healthz"] {
        let ask = |host: &str| format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n");
        let (answer, _) = exchange(&control, Door::Admin, &ask("evil.example:8485")).await;
        assert!(answer.starts_with("HTTP/1.1 403") && answer.contains("localhost"), "{answer}");
        let (answer, _) = exchange(&control, Door::Admin, &ask("127.0.0.1:8485")).await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        let (answer, _) = exchange(&control, Door::Socket, &ask("berthd")).await;
        assert!(answer.starts_with("HTTP/1.1 200"), "the file system guards it: {answer}");
    }
}

// Eight readers that sent nothing held the door for half a minute.
#[tokio::test(start_paused = true)]
async fn a_reader_that_dawdles_is_sent_away_soon() {
    let (control, _reloads) = control();
    for (door, sent) in [(Door::Admin, "GET /status HTTP/1.1\r\n"), (Door::Socket, "")] {
        let (answer, took) = exchange(&control, door, sent).await;
        assert!(answer.is_empty(), "{answer}");
        assert_eq!(took.as_secs(), READER_LIMIT.as_secs());
    }
}

#[tokio::test(start_paused = true)]
async fn a_reload_may_take_longer_but_a_stopping_daemon_says_so_at_once() {
    const RELOAD: &str = "POST /reload HTTP/1.1\r\nHost: berthd\r\n\r\n";
    let (control, mut reloads) = control();
    let reloading = async {
        let wish = reloads.recv().await.unwrap();
        tokio::time::sleep(Duration::from_secs(20)).await;
        wish.send(Ok("Reloaded.".into())).unwrap();
    };
    let (told, ()) = tokio::join!(exchange(&control, Door::Socket, RELOAD), reloading);
    assert!(told.0.starts_with("HTTP/1.1 200") && told.0.contains("Reloaded."), "{}", told.0);

    // Nobody takes wishes while the daemon drains.
    control.broker.stopping.store(true, Ordering::Relaxed);
    let (answer, took) = exchange(&control, Door::Socket, RELOAD).await;
    assert!(answer.starts_with("HTTP/1.1 503") && answer.contains("stopping"), "{answer}");
    assert_eq!(took, Duration::ZERO);
}
