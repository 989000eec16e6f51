//! What watching eight GPUs costs: CPU time of the GPU plane's two threads, and what a request pays to look
//! at their readings.
//!
//! `cargo bench --bench gpu -- [--seconds N] [--json FILE]`. Each library is read once a second, and then with
//! utilisation, power and energy ten times a second. `null` is a library whose calls return constants, so that
//! its figures are the plane's own; `fake` is the one that `berthd simulate --gpu` carries, with its own time
//! in the figures. The time of a real driver is in neither.

#![expect(clippy::expect_used, clippy::panic, reason = "a bench fails by panicking")]

use berthd::{
    config,
    gpu::{self, GpuWatch},
    simulate::gpu::LIBRARY,
    snapshot::GpuPlane,
};
use std::{
    env,
    fmt::Write,
    fs,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::Duration,
};
use tempfile::TempDir;
use tokio::time::Instant;

const NULL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/gpu/null.c");

/// As the kernel cuts them.
const THREADS: [&str; 2] = ["berthd-nvml", "berthd-nvml-eve"];

const CARDS: usize = 8;
const LINKS: usize = 18;

fn main() {
    let (mut seconds, mut json) = (20, None);
    let mut args = env::args().skip(1);
    while let Some(arg) = args.next() {
        let mut value = || args.next().unwrap_or_else(|| panic!("{arg} needs a value"));
        match arg.as_str() {
            "--seconds" => seconds = value().parse().expect("a number of seconds"),
            "--json" => json = Some(PathBuf::from(value())),
            // Cargo's own.
            "--bench" => {}
            other => panic!("{other} is not known; see the top of benches/gpu/main.rs"),
        }
    }
    let folder = tempfile::tempdir().expect("a folder");
    let played = fake(&rich());
    let span = Duration::from_secs(seconds);
    let mut figures = serde_json::Map::new();
    for (name, library) in [("null", null(folder.path())), ("fake", played.1.clone())] {
        for (pace, fast) in [("1 Hz", Duration::ZERO), ("10 Hz", Duration::from_millis(100))] {
            let [sampling, waiting] = share(&library, fast, span);
            println!(
                "{name:5} {pace:6} sampling {sampling:.3} %  events {waiting:.3} %  of one core"
            );
            let shares = serde_json::json!({"sampling": sampling, "events": waiting});
            figures.insert(format!("{name} {pace}"), shares);
        }
    }
    let (middle, worst) = look_while_hanging();
    println!(
        "a look at the plane while the driver hangs: {middle:.0} ns, the worst of 1,000,000 {worst:.1} us"
    );
    figures.insert("look_ns".into(), middle.into());
    figures.insert("look_worst_us".into(), worst.into());
    if let Some(path) = json {
        let text = serde_json::to_string_pretty(&figures).expect("figures are plain");
        fs::write(path, text).expect("the file for figures can be written");
    }
}

/// Shares of one core in percent, of the sampling and the waiting thread.
fn share(library: &Path, fast: Duration, span: Duration) -> [f64; 2] {
    let gpus = start(library, fast);
    // The first rounds load the library and ask for what never changes.
    thread::park_timeout(Duration::from_secs(2));
    let GpuPlane::Driver(state) = &*gpus.latest() else { panic!("{:?}", gpus.latest()) };
    assert_eq!(state.gpus.len(), CARDS);
    assert!(state.gpus.iter().all(|gpu| gpu.nvlinks.len() == LINKS && gpu.ecc.is_some()));
    let (began, before) = (Instant::now(), cpu());
    thread::park_timeout(span);
    let (passed, after) = (began.elapsed(), cpu());
    let mut shares = [0.0; 2];
    for ((share, before), after) in shares.iter_mut().zip(before).zip(after) {
        *share = 100.0 * after.saturating_sub(before).as_secs_f64() / passed.as_secs_f64();
    }
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    runtime.block_on(gpus.stop());
    shares
}

fn start(library: &Path, fast_period: Duration) -> GpuWatch {
    let nvml_library = Some(library.to_path_buf());
    let period = Duration::from_secs(1);
    let settings = config::Gpu { nvml_library, period, fast_period, ..config::Gpu::default() };
    gpu::start(&settings).expect("a thread")
}

/// CPU time of the two threads so far.
fn cpu() -> [Duration; 2] {
    let mut times = [Duration::ZERO; 2];
    for task in fs::read_dir("/proc/self/task").expect("Linux").flatten() {
        let read = |name| fs::read_to_string(task.path().join(name)).unwrap_or_default();
        let name = read("comm");
        let Some(place) = THREADS.iter().position(|thread| *thread == name.trim()) else {
            continue;
        };
        let stat = read("schedstat");
        let nanos = stat.split(' ').next().and_then(|nanos| nanos.parse().ok());
        if let Some(time) = times.get_mut(place) {
            *time += Duration::from_nanos(nanos.expect("nanoseconds on a CPU"));
        }
    }
    times
}

/// Nanoseconds of one look by the plane's reader, and microseconds of the slowest, while a call hangs.
fn look_while_hanging() -> (f64, f64) {
    let state = rich();
    let (folder, library) = fake(&state);
    let gpus = start(&library, Duration::ZERO);
    until(|| matches!(&*gpus.latest(), GpuPlane::Driver(_)));
    set(folder.path(), &format!("{state}hang nvmlDeviceGetPowerUsage=60000ms\n"));
    until(|| folder.path().join("hanging").exists());
    let plane = gpus.subscribe();
    let (mut worst, looks) = (Duration::ZERO, 1_000_000);
    let began = Instant::now();
    for _ in 0..looks {
        let one = Instant::now();
        std::hint::black_box(matches!(&**plane.borrow(), GpuPlane::Driver(_)));
        worst = worst.max(one.elapsed());
    }
    let each = began.elapsed().as_secs_f64() * 1e9 / f64::from(looks);
    set(folder.path(), &state);
    (each, worst.as_secs_f64() * 1e6)
}

fn until(is_it: impl Fn() -> bool) {
    let began = Instant::now();
    while !is_it() {
        assert!(began.elapsed() < Duration::from_secs(20), "never came");
        thread::park_timeout(Duration::from_millis(5));
    }
}

fn null(folder: &Path) -> PathBuf {
    let library = folder.join("libnvidia-ml.so.1");
    let compiler = env::var_os("CC").unwrap_or_else(|| "cc".into());
    let built = Command::new(compiler)
        .args(["-std=gnu11", "-O2", "-shared", "-fPIC", "-o"])
        .args([&library, Path::new(NULL)])
        .status();
    assert!(built.expect("a C compiler").success());
    library
}

fn fake(state: &str) -> (TempDir, PathBuf) {
    assert!(!LIBRARY.is_empty(), "this needs a C compiler when the program is built");
    let folder = tempfile::tempdir().expect("a folder");
    let library = folder.path().join("libnvidia-ml.so.1");
    fs::write(&library, LIBRARY).expect("the fake library's file");
    set(folder.path(), state);
    (folder, library)
}

fn set(folder: &Path, state: &str) {
    let next = folder.join("state.next");
    fs::write(&next, state).expect("the new state");
    fs::rename(&next, folder.join("state")).expect("the new state in place");
}

/// Eight cards of which everything is known.
fn rich() -> String {
    let mut state = String::from("driver=580.65.06\nnvml=13.580.65.06\n");
    for card in 0..CARDS {
        let _ = writeln!(
            state,
            "gpu {card} uuid=GPU-{card} name=\"NVIDIA H200\" pci=0000:1{card}:00.0 compute_mode=0 persistence=1 \
             mig=0 mem_total=150754820096 mem_used=98784247808 mem_free=51436847104 mem_reserved=533725184 \
             bar1_total=274877906944 bar1_used=1048576 util=87 mem_util=41 power_mw=612345 limit_mw=650000 \
             energy=auto temp=63 temp_memory=71 temp_slowdown=87 temp_shutdown=92 sm_mhz=1755 sm_max_mhz=1980 \
             mem_mhz=3200 mem_max_mhz=3201 throttle=0 ecc=1 ecc_corrected=1 ecc_uncorrected=2 \
             ecc_corrected_total=3 ecc_uncorrected_total=4 rows_correctable=5 rows_uncorrectable=6 rows_pending=0 \
             rows_failed=0 pcie_gen=5 pcie_width=16 pcie_gen_max=5 pcie_width_max=16 pcie_replays=7 \
             pcie_tx_bytes=8000000000 pcie_rx_bytes=9000000000 recovery=0"
        );
        for link in 0..LINKS {
            let _ = writeln!(
                state,
                "link {card} {link} active=1 crc_errors=0 replay_errors=0 recovery_errors=0 tx_kib=5 rx_kib=6"
            );
        }
        for process in 0..4 {
            let pid = 4100 + 10 * card + process;
            let _ = writeln!(state, "proc {card} pid={pid} mem=1000 sm=20 name=python3");
        }
    }
    state
}
