//! The first minute with berthd: the quickstart, run as a newcomer runs it.

use crate::support::{
    process::{berthd, ended, eventually, get, run_with, signal, told},
    raw,
};
use rustix::process::Signal;
use std::{
    fs::{self, File},
    net::SocketAddr,
    path::Path,
    process::{Command, Stdio},
};
use tokio::time::Instant;

/// Named, since a build may lie where the source folder is not found from.
const MODEL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/models/demo-chat");

const FREE: &str = "127.0.0.1:0";

fn quickstart(folder: &Path, listen: &str) -> Command {
    let mut command = berthd();
    command
        .args(["quickstart", "--listen", listen, "--admin", "127.0.0.1:0", "--embedded"])
        .arg("--socket")
        .arg(folder.join("s"))
        .current_dir(folder);
    command
}

#[tokio::test]
async fn once_prints_the_answer_with_its_figures_and_ends() {
    let folder = tempfile::tempdir().unwrap();
    let mut command = quickstart(folder.path(), FREE);
    command.args(["--once", "--model-folder", MODEL]);
    let begun = Instant::now();
    let (code, out, err) = told(&run_with(command, "").await);
    assert_eq!(code, 0, "{out}{err}");
    println!("quickstart --once took {:?}\n{out}", begun.elapsed());
    for told in [
        "Ready ",
        "demo-chat",
        "What is berthd?",
        "input tokens (exact)",
        "output tokens",
        "TTFT",
        "tokens/s",
        "queue wait",
        "answered by embedded",
    ] {
        assert!(out.contains(told), "{told:?} is missing:\n{out}");
    }
    let answer = out.split("What is berthd?").nth(1).unwrap();
    assert!(answer.contains("berthd") && answer.len() > 100, "{answer}");
    assert_eq!(err, "", "nothing to worry a newcomer");
    assert!(!folder.path().join("s").exists(), "nothing is left behind");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[tokio::test]
async fn a_folder_without_a_model_is_explained() {
    let folder = tempfile::tempdir().unwrap();
    let mut command = quickstart(folder.path(), FREE);
    command.args(["--once", "--model-folder", "/nonexistent"]);
    let (code, _, err) = told(&run_with(command, "").await);
    assert!(code == 64 && err.contains("/nonexistent"), "{code} {err}");
    let taken = std::net::TcpListener::bind(FREE).unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let mut command = quickstart(folder.path(), &address);
    command.args(["--once", "--model-folder", MODEL]);
    let output = run_with(command, "").await;
    let (code, _, err) = told(&output);
    assert_eq!(code, 70);
    for told in [address.as_str(), "cannot listen", "Choose free addresses", "--listen"] {
        assert!(err.contains(told), "{told:?} is missing:\n{err}");
    }
}

#[tokio::test]
async fn what_it_prints_to_try_next_works_until_it_is_interrupted() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let mut child = quickstart(folder.path(), FREE)
        .args(["--model-folder", MODEL])
        .stdin(Stdio::null())
        .stdout(File::create(&out).unwrap())
        .stderr(File::create(folder.path().join("err")).unwrap())
        .spawn()
        .unwrap();
    let printed = || fs::read_to_string(&out).unwrap();
    let text = eventually("it serves on", || async {
        let text = printed();
        text.contains("Serving until Ctrl-C.").then_some(text)
    })
    .await;
    assert!(text.contains("from openai import OpenAI") && text.contains("pip install openai"));
    assert!(
        text.contains(&format!("berthd status --socket {}", folder.path().join("s").display()))
    );

    // The printed command, word for word, in a shell.
    let start = text.find("  curl http").unwrap();
    let end = start + text[start..].find("\n\n").unwrap();
    let line = &text[start..end];
    if Command::new("curl").arg("--version").output().is_err() {
        eprintln!("SKIPPED: curl is not installed");
    } else {
        let mut shell = Command::new("sh");
        shell.args(["-c", line]).current_dir(folder.path());
        let (code, streamed, err) = told(&run_with(shell, "").await);
        assert_eq!(code, 0, "{line}\n{err}");
        assert!(
            streamed.contains("data: {") && streamed.ends_with("data: [DONE]\n\n"),
            "{streamed}"
        );
    }
    let admin =
        text.lines().find_map(|l| l.trim().strip_prefix("curl http://")?.strip_suffix("/metrics"));
    let admin: SocketAddr = admin.expect("the admin address").parse().unwrap();
    let page = get(admin, "/metrics").await;
    assert!(raw::contains(&page.body, "berthd_requests_total{model=\"demo-chat\""));

    signal(&child, Signal::INT);
    assert_eq!(ended(&mut child).await.code(), Some(0));
    assert!(!folder.path().join("s").exists());
    assert_eq!(fs::read_to_string(folder.path().join("err")).unwrap(), "");
}
