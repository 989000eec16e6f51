//! A fake NVML library that a test scripts. It is loaded as the real one would be, so the wrapper, the
//! struct layouts and the error codes in between are the real ones.
//!
//! It is the library that the program carries for `berthd simulate --gpu`. Each fake has a directory of its own:
//! the library reads the file `state` that lies beside it. Its lines are described in `docs/simulated-gpus.md`.

use berthd::simulate::gpu::LIBRARY;
use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
    time::Duration,
};
use tempfile::TempDir;

const SOURCE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/src/simulate/driver/library.c");

/// A host with one busy card.
pub const ONE_CARD: &str = "driver=580.65.06\nnvml=13.580.65.06\n\
    gpu 0 uuid=GPU-aaaa name=\"NVIDIA H200\" mem_total=150754820096 mem_used=98784247808 \
    mem_free=51436847104 mem_reserved=533725184 util=87 mem_util=41 power_mw=612345 limit_mw=700000 temp=63\n\
    proc 0 pid=4100 mem=98000000000 name=\"/opt/vllm/bin/python3\"\n";

/// One fake library and what it tells. Dropping it removes both; a library that is loaded stays usable
/// and then has no GPUs.
pub struct FakeNvml {
    dir: TempDir,
}

impl FakeNvml {
    /// A library like that of a present driver.
    pub fn new(state: &str) -> Self {
        assert!(!LIBRARY.is_empty(), "these tests need a C compiler when the program is built");
        Self::install(LIBRARY, state)
    }

    /// A library that lacks the calls which came after driver 470.
    pub fn of_old_driver(state: &str) -> Self {
        static BUILT: OnceLock<Vec<u8>> = OnceLock::new();
        Self::install(BUILT.get_or_init(|| build(&["-DOLD_DRIVER"])), state)
    }

    fn install(library: &[u8], state: &str) -> Self {
        let dir = tempfile::tempdir().expect("a directory for the fake library");
        let fake = Self { dir };
        fs::write(fake.library(), library).expect("the fake library's file");
        fake.set(state);
        fake
    }

    /// Where the library lies: a copy of its own, since the loader would take a linked file for one that
    /// it has loaded already.
    pub fn library(&self) -> PathBuf {
        self.dir.path().join("libnvidia-ml.so.1")
    }

    /// Changes what the library tells, for all calls from now on.
    pub fn set(&self, state: &str) {
        // By rename, so that no call reads half of it.
        let next = self.dir.path().join("state.next");
        fs::write(&next, state).expect("the new state");
        fs::rename(&next, self.dir.path().join("state")).expect("the new state in place");
    }

    /// Puts another library in its place, as a new driver package does: the old file stays with those who
    /// have it open.
    pub fn replace_by_old_driver(&self) {
        let other = Self::of_old_driver("");
        fs::remove_file(self.library()).expect("the library is there");
        fs::copy(other.library(), self.library()).expect("the other library's file");
    }

    /// How often this call was made since the state said `log_calls`; with `@N`, about GPU N.
    pub fn calls(&self, call: &str) -> usize {
        let log = fs::read_to_string(self.dir.path().join("calls")).unwrap_or_default();
        let is_it = |line: &&str| match call.contains('@') {
            true => *line == call,
            false => line.split('@').next() == Some(call),
        };
        log.lines().filter(is_it).count()
    }

    /// Waits until a call is inside a `hang`.
    pub async fn hanging(&self) {
        let mark = self.dir.path().join("hanging");
        while !mark.exists() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
}

/// The library's bytes.
fn build(options: &[&str]) -> Vec<u8> {
    let dir = tempfile::tempdir().expect("a directory to build in");
    let library = dir.path().join("fake.so");
    let compiler = env::var_os("CC").unwrap_or_else(|| "cc".into());
    let output = Command::new(&compiler)
        .args(["-std=gnu11", "-O1", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-pthread"])
        .args(options)
        .args([Path::new("-o"), &library, Path::new(SOURCE)])
        .arg("-ldl")
        .output()
        .unwrap_or_else(|error| panic!("these tests need a C compiler, and {compiler:?}: {error}"));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    fs::read(library).expect("the library that was built")
}
