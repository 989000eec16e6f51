//! `berthd simulate --gpu` from outside: the binary runs, commands go in over the socket, standard input and
//! `--once`, and the values are read back through the wrapper that the daemon uses.

use crate::support::process::{berthd, ended, run, signal, told};
use nvml_wrapper::{
    Nvml,
    bitmasks::event::EventTypes,
    enum_wrappers::device::{EccCounter, MemoryError, TemperatureSensor},
    enums::{device::UsedGpuMemory, event::XidError},
    error::NvmlError,
};
use std::{
    io::{BufRead, BufReader, Read, Write},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Stdio},
    thread,
    time::Duration,
};
use tempfile::TempDir;
use tokio::time::Instant;

const GIB: u64 = 1 << 30;
const LIMIT: Duration = Duration::from_secs(20);

/// A simulation that runs. Dropping it kills it.
struct Simulation {
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<std::process::ChildStdout>,
    folder: PathBuf,
}

impl Drop for Simulation {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Simulation {
    fn start(folder: &Path, args: &[&str]) -> Self {
        let mut command = berthd();
        command.args(["simulate", "--gpu"]).arg(folder).args(args);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().expect("the binary starts");
        let stdin = child.stdin.take().expect("a pipe");
        let stdout = BufReader::new(child.stdout.take().expect("a pipe"));
        let folder = folder.canonicalize().unwrap_or_else(|_| folder.to_owned());
        let mut simulation = Self { child, stdin, stdout, folder };
        let greeting = simulation.until("try help.");
        assert!(greeting.contains("simulated GPUs"), "{greeting}");
        simulation
    }

    /// What it prints up to a line that ends so.
    fn until(&mut self, end: &str) -> String {
        let mut text = String::new();
        while !text.trim_end().ends_with(end) {
            let read = self.stdout.read_line(&mut text).expect("text");
            assert!(read > 0, "it ended: {text}");
        }
        text
    }

    fn library(&self) -> PathBuf {
        self.folder.join("libnvidia-ml.so.1")
    }

    fn open(&self) -> Nvml {
        Nvml::builder().lib_path(self.library().as_os_str()).init().expect("the library loads")
    }

    fn connect(&self) -> UnixStream {
        let stream = UnixStream::connect(self.folder.join("control")).expect("it listens");
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        stream
    }

    /// Says one line over the socket; gives what comes back up to `ok` or an error.
    fn say(&self, command: &str) -> String {
        let mut stream = self.connect();
        writeln!(stream, "{command}").unwrap();
        let mut answer = String::new();
        let mut lines = BufReader::new(stream);
        while answer != "ok\n" && !answer.ends_with("\nok\n") && !answer.starts_with("error: ") {
            assert!(lines.read_line(&mut answer).expect("an answer") > 0, "cut: {answer}");
        }
        answer
    }

    fn ok(&self, commands: &[&str]) {
        for command in commands {
            assert_eq!(self.say(command), "ok\n", "{command}");
        }
    }

    fn refused(&self, command: &str, why: &str) {
        let answer = self.say(command);
        assert!(answer.starts_with("error: ") && answer.contains(why), "{command}: {answer}");
    }
}

fn folder() -> (TempDir, PathBuf) {
    let outer = tempfile::tempdir().expect("a folder");
    let folder = outer.path().join("node");
    (outer, folder)
}

/// Waits until a reading is what it should be.
fn until(what: &str, is_it: impl Fn() -> bool) {
    let before = Instant::now();
    while !is_it() {
        assert!(before.elapsed() < LIMIT, "never: {what}");
        thread::yield_now();
    }
}

#[test]
fn commands_over_the_socket_show_in_the_driver() {
    let (_outer, folder) = folder();
    let simulation = Simulation::start(&folder, &["--cards", "3", "--card", "l4"]);
    let nvml = simulation.open();
    assert_eq!(nvml.device_count().unwrap(), 3);
    let card = nvml.device_by_index(0).unwrap();
    assert_eq!(card.name().unwrap(), "NVIDIA L4");
    assert_eq!(card.memory_info().unwrap().total, 23_034 << 20);

    simulation.ok(&["set 0 temp=80 throttle=0x20 enc_util=9", "unset 0 dec_util"]);
    assert_eq!(card.temperature(TemperatureSensor::Gpu).unwrap(), 80);
    assert_eq!(card.encoder_utilization().unwrap().utilization, 9);
    assert!(matches!(card.decoder_utilization(), Err(NvmlError::NotSupported)));

    // A process takes memory of the card, more of it, and gives it back.
    let used = || card.memory_info().unwrap();
    let before = used();
    simulation.ok(&["proc 0 pid=123 mem=2GiB name=\"/opt/a b\"", "proc 0 pid=77 kind=graphics"]);
    assert_eq!((used().used, used().free), (2 * GIB, before.free - 2 * GIB));
    simulation.ok(&["proc 0 pid=123 mem=3GiB"]);
    let listed = card.running_compute_processes().unwrap();
    assert_eq!(listed.len(), 1);
    assert_eq!((listed[0].pid, &listed[0].used_gpu_memory), (123, &UsedGpuMemory::Used(3 * GIB)));
    assert_eq!(nvml.sys_process_name(123, 64).unwrap(), "/opt/a b");
    simulation.refused("proc 0 pid=5 mem=20GiB", "the memory does not suffice");
    assert_eq!(used().used, 3 * GIB, "what was refused changed nothing");
    simulation.ok(&["end 0 pid=123"]);
    assert_eq!((used().used, used().free), (before.used, before.free));
    simulation.refused("end 0 pid=123", "no process 123 is on GPU 0");

    simulation.ok(&["cards 1"]);
    assert_eq!(nvml.device_count().unwrap(), 1);
    simulation.ok(&["cards 2 p40"]);
    let old = nvml.device_by_index(1).unwrap();
    assert_eq!(old.name().unwrap(), "Tesla P40");
    assert!(matches!(old.total_energy_consumption(), Err(NvmlError::NotSupported)));
    simulation.refused("set 2 temp=1", "there is no GPU 2; the node has 2");
    assert!(simulation.say("show").contains("name=\"Tesla P40\""));
    assert!(simulation.say("help").contains("hang CALL"));
}

#[test]
fn faults_are_made_and_mended() {
    let (_outer, folder) = folder();
    let simulation = Simulation::start(&folder, &[]);
    let nvml = simulation.open();
    let card = nvml.device_by_index(1).unwrap();
    let ecc = || card.total_ecc_errors(MemoryError::Uncorrected, EccCounter::Volatile).unwrap();
    let heat = || card.temperature(TemperatureSensor::Gpu);
    let types = EventTypes::CRITICAL_XID_ERROR | EventTypes::DOUBLE_BIT_ECC_ERROR;
    let set = card.register_events(types, nvml.create_event_set().unwrap()).unwrap();

    simulation.ok(&["xid 1 79", "xid 0 13", "event 1 dbe", "event none xid data=1", "event 1 sbe"]);
    let next = || set.wait(20_000).unwrap();
    assert_eq!(next().event_data, Some(XidError::Value(79)));
    assert_eq!(next().event_type, EventTypes::DOUBLE_BIT_ECC_ERROR);
    assert_eq!(ecc(), 1, "an error that is told is counted");
    assert_eq!(next().event_data, Some(XidError::Value(1)));
    assert!(matches!(set.wait(0), Err(NvmlError::Timeout)));

    simulation.ok(&["lose 1"]);
    assert!(matches!(heat(), Err(NvmlError::GpuLost)));
    simulation.ok(&["find 1", "lose events"]);
    assert_eq!(heat().unwrap(), 30);
    assert!(matches!(set.wait(0), Err(NvmlError::GpuLost)));
    simulation.ok(&["find events", "unload"]);
    assert!(matches!(heat(), Err(NvmlError::DriverNotLoaded)));
    simulation.ok(&["mismatch"]);
    assert!(matches!(heat(), Err(NvmlError::LibRmVersionMismatch)));
    simulation.ok(&["load", "fail nvmlDeviceGetTemperature@1 999"]);
    assert!(matches!(heat(), Err(NvmlError::Unknown)));
    simulation.ok(&["release"]);
    assert_eq!(heat().unwrap(), 30);
    simulation.refused("hang nvmlDeviceGetNothing 1s", "the library has no call");

    let energy = || card.total_energy_consumption().unwrap();
    until("energy", || energy() > 100);
    simulation.ok(&["set 1 power_mw=0 recovery=1", "proc 1 pid=4 mem=1GiB", "reset 1"]);
    assert_eq!((energy(), ecc()), (0, 0));
    assert_eq!(card.memory_info().unwrap().used, 0);
    let aggregate = card.total_ecc_errors(MemoryError::Uncorrected, EccCounter::Aggregate);
    assert_eq!(aggregate.unwrap(), 1, "what a card has suffered it keeps");
}

#[test]
fn a_hang_lasts_until_it_is_released() {
    let (_outer, folder) = folder();
    let simulation = Simulation::start(&folder, &[]);
    let nvml = simulation.open();
    let before = Instant::now();
    simulation.ok(&["hang nvmlDeviceGetPowerUsage@0 600s"]);
    let asked = thread::spawn(move || nvml.device_by_index(0).unwrap().power_usage().unwrap());
    let mark = simulation.folder.join("hanging");
    until("the driver hangs", || mark.exists());
    assert!(!asked.is_finished());
    simulation.ok(&["release"]);
    assert_eq!(asked.join().unwrap(), 76_000);
    assert!(before.elapsed() < Duration::from_secs(600));
    assert!(!mark.exists());
}

#[test]
fn a_card_is_divided_and_made_whole() {
    let (_outer, folder) = folder();
    let simulation = Simulation::start(&folder, &["--cards", "1"]);
    let nvml = simulation.open();
    let card = nvml.device_by_index(0).unwrap();
    simulation.ok(&["mig 0 on 3"]);
    assert_eq!(card.mig_mode().unwrap().current, 1);
    let parts: Vec<_> = (0..3).map(|part| card.mig_device_by_index(part).unwrap()).collect();
    let part = &parts[2];
    assert!(part.uuid().unwrap().starts_with("MIG-"));
    assert_eq!(part.name().unwrap(), "NVIDIA H200 MIG 2g.36gb");
    assert_eq!(part.mig_parent_device().unwrap().uuid().unwrap(), card.uuid().unwrap());
    simulation.ok(&["proc 0 pid=9 gi=5 ci=0 mem=1GiB"]);
    assert_eq!(part.memory_info().unwrap().used, GIB);
    assert_eq!(parts[0].memory_info().unwrap().used, 0);
    assert_eq!(card.memory_info().unwrap().used, GIB);
    assert_eq!(part.running_compute_processes().unwrap()[0].pid, 9);
    assert_eq!(parts[0].running_compute_processes().unwrap(), []);
    simulation.refused("mig 0 off", "end them first");
    simulation.ok(&["end 0 pid=9", "mig 0 off"]);
    assert!(matches!(part.memory_info(), Err(NvmlError::InvalidArg)));
    assert_eq!(card.utilization_rates().unwrap().gpu, 0);
    simulation.ok(&["cards 2 t4"]);
    simulation.refused("mig 1 on 2", "cannot be divided");
}

#[test]
fn scripts_and_typed_lines_are_played_and_told() {
    let (outer, folder) = folder();
    let script = outer.path().join("script");
    std::fs::write(
        &script,
        "# one\n0 set 0 temp=50\n0.02 set 0 temp=51\n0 set 9 temp=1\n0 lose 0\n",
    )
    .unwrap();
    let name = script.display().to_string();
    let mut simulation = Simulation::start(&folder, &["--play", &name]);
    let told = simulation.until("it ends here");
    assert!(told.contains(&format!("{name}: set 0 temp=51")), "{told}");
    assert!(told.contains("there is no GPU 9"), "{told}");
    let nvml = simulation.open();
    let card = nvml.device_by_index(0).unwrap();
    let heat = || card.temperature(TemperatureSensor::Gpu).unwrap();
    assert_eq!(heat(), 51, "the step behind the refused one was not done");

    writeln!(simulation.stdin, "set 0 temp=52").unwrap();
    assert_eq!(simulation.until("ok"), "ok\n");
    assert_eq!(heat(), 52);
    writeln!(simulation.stdin, "nonsense").unwrap();
    assert!(simulation.until("help").starts_with("error: no command nonsense"));

    simulation.refused("play nowhere.play", "failing-node");
    simulation.ok(&["play failing-node"]);
    simulation.until("vllm/bin/python3\"");
    assert_eq!(card.running_compute_processes().unwrap()[0].pid, 4100);
}

#[test]
fn a_caller_who_says_too_much_is_cut_off_and_others_are_served() {
    let (_outer, folder) = folder();
    let simulation = Simulation::start(&folder, &[]);
    let mut stream = simulation.connect();
    let silent = simulation.connect();
    // What it does not read may cut the connection under the writer.
    let _ = stream.write_all(&[b'x'; 5000]);
    let mut answer = String::new();
    let _ = stream.read_to_string(&mut answer);
    assert!(answer.is_empty() || answer.contains("up to 4096 bytes"), "{answer}");
    simulation.ok(&["set 0 temp=1"]);
    drop(silent);
}

#[tokio::test]
async fn a_folder_outlives_its_simulation() {
    let (_outer, folder) = folder();
    let path = folder.display().to_string();
    let nothing = run(&["simulate", "--gpu", &path, "--once", "set 0 temp=1"]).await;
    assert_eq!(told(&nothing).0, 65, "{nothing:?}");

    let mut simulation = Simulation::start(&folder, &["--cards", "1"]);
    let second = run(&["simulate", "--gpu", &path]).await;
    let (code, _, said) = told(&second);
    assert!(code == 69 && said.contains("a simulation runs there already"), "{said}");

    // Beside a running simulation, and after it.
    let nvml = simulation.open();
    let card = nvml.device_by_index(0).unwrap();
    let heat = || card.temperature(TemperatureSensor::Gpu).unwrap();
    let once =
        async |command: &str| told(&run(&["simulate", "--gpu", &path, "--once", command]).await);
    assert_eq!(once("set 0 temp=71").await, (0, String::new(), String::new()));
    assert_eq!(heat(), 71);
    signal(&simulation.child, rustix::process::Signal::TERM);
    assert!(ended(&mut simulation.child).await.success());
    assert!(!folder.join("control").exists());
    assert_eq!(once("set 0 temp=72").await.0, 0);
    assert_eq!(heat(), 72);
    assert!(once("show").await.1.contains("temp=72"));
    let (code, _, said) = once("set 0 heat=72").await;
    assert!(code == 65 && said.contains("no key heat"), "{said}");
    let (code, _, said) = once("play failing-node").await;
    assert!(code == 65 && said.contains("only a running simulation"), "{said}");

    // It is found as it was left, whatever size is asked for now.
    let again = Simulation::start(&folder, &["--cards", "5"]);
    assert_eq!(heat(), 72);
    assert_eq!(again.open().device_count().unwrap(), 1);
}

#[tokio::test]
async fn options_of_the_server_and_of_gpus_do_not_mix() {
    for args in [
        &["simulate", "--gpu", "x", "--model", "m"][..],
        &["simulate", "--cards", "2"],
        &["simulate", "--once", "show"],
        &["simulate", "--gpu", "x", "--cards", "65"],
        &["simulate", "--gpu", "x", "--card", "h300"],
        &["simulate", "--gpu", "x", "--once", "show", "--play", "failing-node"],
    ] {
        let output = run(args).await;
        assert_eq!(told(&output).0, 64, "{args:?}: {output:?}");
        assert!(!Path::new("x").exists());
    }
    let help = told(&run(&["simulate", "--gpu", "--help"]).await);
    assert!(help.0 == 0 && help.1.contains("docs/simulated-gpus.md"), "{help:?}");
}
