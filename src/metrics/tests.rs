//! Pages made from nothing but views.

use super::*;
use crate::snapshot::{DriverState, Health, ServerKind, ServerState};

fn view() -> ServerView {
    let mut state = ServerState::unknown("one".into(), ServerKind::OpenAi);
    state.health = Health::Up;
    ServerView { usable: true, comings: 1, ..ServerView::idle(state) }
}

// One reader cleared the gauges while the other wrote its page.
#[test]
fn pages_made_at_once_are_all_whole() {
    let (metrics, servers) = (Metrics::new(), [view()]);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..200 {
                    let page = metrics.page(&BTreeMap::new(), &servers, &GpuPlane::Off);
                    assert!(page.contains("berthd_server_usable{server=\"one\"} 1"), "{page}");
                }
            });
        }
    });
}

#[tokio::test(start_paused = true)]
async fn readings_that_nobody_took_have_no_age() {
    let metrics = Metrics::new();
    let age = |plane: &GpuPlane| {
        let page = metrics.page(&BTreeMap::new(), &[], plane);
        page.lines().find(|line| line.starts_with("berthd_gpu_readings_age")).map(str::to_owned)
    };
    assert_eq!(age(&GpuPlane::NoDriver("none".into())), None);
    let driver = GpuPlane::Driver(DriverState {
        session: 1,
        driver_version: "1".into(),
        nvml_version: "1".into(),
        gpus: Vec::new(),
        read_at: Instant::now(),
    });
    assert_eq!(age(&driver), Some("berthd_gpu_readings_age_seconds 0.0".to_owned()));
    assert_eq!(age(&GpuPlane::NoDriver("gone".into())), None, "nor those of a lost driver");
}
