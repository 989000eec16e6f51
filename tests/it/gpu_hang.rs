//! A driver that hangs, seen from outside: nothing else of the daemon may notice.

use crate::support::{
    nvml::{FakeNvml, ONE_CARD},
    process::{Setup, ask, simulated},
};
use std::time::Duration;
use tokio::time::{Instant, timeout};

/// No answer waited for the driver if it came in less than this; the driver hangs for far longer.
const AT_ONCE: Duration = Duration::from_secs(5);

const HANG: &str = "hang nvmlDeviceGetPowerUsage=30000ms\nhang nvmlEventSetWait_v2=30000ms\n";

#[tokio::test]
async fn a_driver_that_hangs_for_half_a_minute_holds_up_neither_requests_nor_operators() {
    let fake = FakeNvml::new(ONE_CARD);
    let server = simulated("m", Duration::ZERO).await;
    let mut setup = Setup::with_server("one", server.addr);
    setup.gpu = format!(
        "period_s = 0.1\nstale_after_s = 0.2\nnvml_library = \"{}\"",
        fake.library().display()
    );
    let daemon = setup.start().await;
    let ready = |status: &serde_json::Value| {
        (status["gpus"]["state"] == "ok" && status["servers"][0]["health"]["state"] == "up")
            .then_some(())
    };
    daemon.until("the GPU is read and the server is up", ready).await;
    fake.set(&format!("{ONE_CARD}{HANG}"));
    timeout(Duration::from_secs(20), fake.hanging()).await.expect("the driver hangs");

    let age = |status: &serde_json::Value| status["gpus"]["age_s"].as_f64().expect("an age");
    let began = Instant::now();
    let mut last = age(&daemon.status().await);
    for _ in 0..20 {
        assert_eq!(daemon.chat(&ask("m", false, 4)).await.status, 200);
        assert_eq!(daemon.control("GET", "/metrics").await.status, 200);
        let status = daemon.status().await;
        assert_eq!(status["gpus"]["state"], "ok", "the last readings are shown");
        assert!(age(&status) > last, "and their age with them");
        last = age(&status);
    }
    assert!(began.elapsed() < AT_ONCE, "{:?}", began.elapsed());
    fake.set(ONE_CARD);
    daemon.until("it is read again", |status| (age(status) < last).then_some(())).await;
}
