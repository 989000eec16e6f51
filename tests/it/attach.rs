//! What is compared when servers and files come, come back and change, before any request.

use crate::support::{
    counted::{counts, demo, drifts, plan, scripted, source, told, until, with_folder},
    house::House,
    scripted::Says,
};
use berthd::snapshot::ServerKind;
use std::fs;
use tempfile::TempDir;

#[tokio::test]
async fn a_server_that_counts_otherwise_from_the_start_is_never_called_exact() {
    let server = scripted(counts(ServerKind::Vllm, 5)).await;
    let plan = with_folder(plan(), &demo()).server_of("vllm", "s", server.addr, "");
    let house = House::open(&plan).await;
    until(&house, "s", "estimated").await;
    assert!(told(&house, "s").1.starts_with("probe \"one question\": "), "{:?}", told(&house, "s"));
    for _ in 0..4 {
        assert_eq!(source(&house).await, "server");
    }
    assert_eq!(drifts(&house, "s"), 0.0, "it had never been exact");
    house.close().await;
}

#[tokio::test]
async fn a_reload_with_other_files_is_compared_anew() {
    let folder = TempDir::new().unwrap();
    for entry in fs::read_dir(demo()).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), folder.path().join(entry.file_name())).unwrap();
    }
    let server = scripted(counts(ServerKind::Vllm, 0)).await;
    let plan = with_folder(plan(), folder.path()).server_of("vllm", "s", server.addr, "");
    let house = House::open(&plan).await;
    until(&house, "s", "exact").await;

    let template = folder.path().join("chat_template.jinja");
    let good = fs::read_to_string(&template).unwrap();
    fs::write(&template, format!("{good}and more")).unwrap();
    house.reload().await;
    until(&house, "s", "estimated").await;
    assert_eq!(source(&house).await, "server");

    fs::write(&template, good).unwrap();
    house.reload().await;
    until(&house, "s", "exact").await;
    assert_eq!(source(&house).await, "exact");

    house.reload().await;
    assert_eq!(source(&house).await, "exact");
    assert_eq!(told(&house, "s").0, "exact", "the same files keep what they have proven");
    house.close().await;
}

#[tokio::test]
async fn a_server_that_comes_back_with_another_template_is_caught_before_its_first_answer() {
    let server = scripted(counts(ServerKind::Vllm, 0)).await;
    let plan = with_folder(plan(), &demo()).server_of("vllm", "s", server.addr, "");
    let house = House::open(&plan).await;
    until(&house, "s", "exact").await;
    server.say(Says { down: true, ..counts(ServerKind::Vllm, 0) });
    house.until("it is down", |house| !house.server("s").usable).await;
    server.say(counts(ServerKind::Vllm, 4));
    until(&house, "s", "estimated").await;
    assert_eq!(server.hits.requests(), 0);
    assert_eq!(source(&house).await, "server");
    house.close().await;
}

/// Files that nobody configured count once they agreed with the server, and not before.
#[tokio::test]
async fn found_files_are_believed_after_they_agreed() {
    let root = || Some(demo().display().to_string());
    let server = scripted(Says { root: root(), ..counts(ServerKind::Vllm, 0) }).await;
    let house = House::open(&plan().server_of("vllm", "s", server.addr, "")).await;
    until(&house, "s", "exact").await;
    assert_eq!(source(&house).await, "exact");
    let model = &house.status()["models"][0]["counting"];
    assert_eq!(
        (model["origin"].as_str(), model["folder"].as_str()),
        (Some("found"), root().as_deref())
    );
    house.close().await;

    // The server runs other files than those.
    let server = scripted(Says { root: root(), ..counts(ServerKind::Vllm, 2) }).await;
    let house = House::open(&plan().server_of("vllm", "s", server.addr, "")).await;
    until(&house, "s", "estimated").await;
    assert_eq!(source(&house).await, "server");
    assert_eq!(drifts(&house, "s"), 0.0);
    house.close().await;

    // It cannot be asked: its answers speak.
    let says = Says { root: root(), usage: counts(ServerKind::Vllm, 0).usage, ..Says::default() };
    let server = scripted(says).await;
    let house = House::open(&plan().server_of("vllm", "s", server.addr, "")).await;
    until(&house, "s", "unproven").await;
    for _ in 0..3 {
        assert_eq!(source(&house).await, "estimate");
    }
    assert_eq!(source(&house).await, "exact");
    house.close().await;
}
