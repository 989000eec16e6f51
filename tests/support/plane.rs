//! The GPU plane over a fake library. A real thread asks it, so tests of it run in real time: they wait for
//! what must be published, and the limit only says when to give up.

use berthd::{
    config,
    gpu::{self, GpuWatch},
    snapshot::{DriverState, GpuPlane, GpuState},
};
use std::{path::PathBuf, sync::Arc, time::Duration};
use tokio::{sync::watch, time::timeout};

/// When a test gives up.
pub const LIMIT: Duration = Duration::from_secs(20);

/// Time between rounds.
pub const PERIOD: Duration = Duration::from_millis(20);

/// The settings for this library.
pub fn settings(library: PathBuf) -> config::Gpu {
    config::Gpu { nvml_library: Some(library), period: PERIOD, ..config::Gpu::default() }
}

/// Starts to read it.
pub fn start(library: PathBuf) -> GpuWatch {
    gpu::start(&settings(library)).expect("a thread")
}

/// The next plane, or the present one if it has not been seen, for which `is_it` gives something.
pub async fn wait_for<T>(
    plane: &mut watch::Receiver<Arc<GpuPlane>>,
    mut is_it: impl FnMut(&GpuPlane) -> Option<T>,
) -> T {
    let found = timeout(LIMIT, async {
        loop {
            let found = is_it(&plane.borrow_and_update());
            if let Some(found) = found {
                return found;
            }
            plane.changed().await.expect("the GPU thread lives");
        }
    });
    found.await.unwrap_or_else(|_| panic!("never came; the last was {:?}", plane.borrow()))
}

/// Waits until so many more rounds were published.
pub async fn rounds(plane: &mut watch::Receiver<Arc<GpuPlane>>, count: usize) -> DriverState {
    for _ in 0..count {
        timeout(LIMIT, plane.changed()).await.expect("a round").expect("the GPU thread lives");
        plane.borrow_and_update();
    }
    driver(&plane.borrow()).expect("the driver answers")
}

/// What the driver says, if it does.
pub fn driver(plane: &GpuPlane) -> Option<DriverState> {
    if let GpuPlane::Driver(state) = plane { Some(state.clone()) } else { None }
}

/// Why there is no driver.
pub fn no_driver(plane: &GpuPlane) -> Option<String> {
    if let GpuPlane::NoDriver(why) = plane { Some(why.clone()) } else { None }
}

/// The driver's state, once this is true of its first card.
pub async fn until_first(
    plane: &mut watch::Receiver<Arc<GpuPlane>>,
    is_it: impl Fn(&GpuState) -> bool,
) -> DriverState {
    wait_for(plane, |plane| driver(plane).filter(|state| state.gpus.first().is_some_and(&is_it)))
        .await
}
