//! Real processes that stand on played GPUs: model servers with a child each, and strangers.

use super::process::berthd;
use rustix::process::{Pid, Signal, kill_process};
use std::{
    io::{BufRead, BufReader},
    net::SocketAddr,
    process::{Child, ChildStdin, Command, Stdio},
};

/// A gibibyte.
pub const GIB: u64 = 1 << 30;

/// A process that ends with the test.
pub struct Held {
    child: Child,
    /// What it reads.
    pub stdin: Option<ChildStdin>,
    /// Its own child, which would outlive it.
    below: Option<u32>,
}

impl Held {
    /// Starts it, and its lines.
    pub fn start(mut command: Command) -> (Self, impl Iterator<Item = String>) {
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().expect("it starts");
        let stdin = child.stdin.take();
        let lines = BufReader::new(child.stdout.take().expect("a pipe")).lines();
        (Self { child, stdin, below: None }, lines.map_while(Result::ok))
    }

    /// Its id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Has it ended?
    pub fn is_over(&mut self) -> bool {
        self.child.try_wait().is_ok_and(|status| status.is_some())
    }

    /// Ends it, and its child.
    pub fn end(&mut self) {
        if let Some(below) = self.below.take().and_then(|pid| Pid::from_raw(pid.cast_signed())) {
            let _ = kill_process(below, Signal::KILL);
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.end();
    }
}

/// Somebody who has nothing to do with us.
pub fn stranger() -> Held {
    let mut command = Command::new("sleep");
    command.arg("1000");
    Held::start(command).0
}

/// A simulated model server as a process of its own, with a child: its process, the child, its address.
pub fn server(listen: &str, model: &str) -> (Held, u32, SocketAddr) {
    server_after(":", listen, model)
}

/// The same, by a shell that does something before.
pub fn server_after(first: &str, listen: &str, model: &str) -> (Held, u32, SocketAddr) {
    // The shell becomes the server, so that what it started before is the server's child.
    let script = format!(
        "{first}; sleep 1000 & echo $!; \
         exec \"$0\" simulate --listen $1 --model $2 --profile instant"
    );
    let mut command = Command::new("sh");
    command.args(["-c", &script]).arg(berthd().get_program()).args([listen, model]);
    let (mut held, mut lines) = Held::start(command);
    let child = lines.next().expect("the child's id").parse().unwrap();
    held.below = Some(child);
    let line = lines.next().expect("its address");
    let address = line.rsplit("http://").next().unwrap().parse().unwrap();
    (held, child, address)
}

/// A server's entry.
pub fn http(name: &str, at: SocketAddr) -> String {
    format!("[[servers]]\nname = \"{name}\"\nkind = \"vllm\"\nurl = \"http://{at}\"\n")
}

/// A card with so many GiB in use, and its processes.
pub fn card(index: u32, used: u64, processes: &[(u32, u64)]) -> String {
    let mut text = format!(
        "gpu {index} uuid=GPU-{index} name=\"NVIDIA H200\" mem_total={} mem_used={} mem_free={} mem_reserved=0\n",
        141 * GIB,
        used * GIB,
        (141 - used) * GIB
    );
    for (pid, gib) in processes {
        text.push_str(&format!("proc {index} pid={pid} mem={} name=p\n", gib * GIB));
    }
    text
}

/// The driver with these cards.
pub fn driver(cards: &[String]) -> String {
    format!("driver=580.65.06\nnvml=13.580.65.06\n{}", cards.concat())
}
