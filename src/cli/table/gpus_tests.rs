//! What of the GPUs needs a person, and how the report of the cards reads.

use super::gpus::*;
use serde_json::{Value, json};

fn sick() -> Value {
    json!({
        "uuid": "GPU-a", "index": 0, "name": "NVIDIA H200", "condition": "draining",
        "reasons": ["Xid 79: the card has fallen off the bus"], "needs": "reboot_host",
        "servers": ["vllm-0"], "memory_used_bytes": 2u64 << 30, "memory_total_bytes": 8u64 << 30,
        "holders": [
            {"owner": "server", "server": "vllm-0", "memory": 1u64 << 30, "pids": [7, 8]},
            {"owner": "foreign", "name": "train", "unit": "job.service", "memory": null, "pids": [9]},
            {"owner": "driver", "memory": 1u64 << 30, "pids": []},
        ],
    })
}

#[test]
fn a_sick_card_says_what_it_needs_and_whom_it_costs() {
    let mut report = json!({
        "gpus": {"state": "ok", "driver_version": "580", "list": [sick()]},
        "servers": [{"name": "vllm-0", "stopped": "GPU 0 is draining"}],
    });
    let line = "GPU 0 (NVIDIA H200): DRAINING: Xid 79: the card has fallen off the bus; \
                NEEDS reboot of the host; nothing new goes to vllm-0";
    assert_eq!(troubles(&report), [line]);
    let mut table = String::new();
    write(&report, &mut table);
    assert!(table.contains("vllm-0 1.0, train [job.service] -"), "{table}");

    // With `gpu.drain = false` the card is as sick, and its server goes on.
    report["servers"] = json!([{"name": "vllm-0"}]);
    let line = "GPU 0 (NVIDIA H200): DRAINING: Xid 79: the card has fallen off the bus; \
                NEEDS reboot of the host";
    assert_eq!(troubles(&report), [line]);
}

#[test]
fn a_driver_that_went_needs_a_person_and_one_that_never_was_does_not() {
    let why = "the kernel module is not loaded";
    let mut report = json!({"gpus": {"state": "no_driver", "why": why, "list": []}});
    assert!(troubles(&report).is_empty());
    report["gpus"]["list"] = json!([
        {"uuid": "GPU-a", "index": 0, "name": "", "condition": "unknown"},
        {"uuid": "GPU-b", "index": 1, "name": "", "condition": "lost", "needs": "reboot_host"},
    ]);
    assert_eq!(
        troubles(&report),
        ["GPU 1 (GPU-b): LOST; NEEDS reboot of the host", "GPUs: the kernel module is not loaded"]
    );
}

#[test]
fn a_card_that_nobody_has_is_told_where_an_entry_names_it() {
    let on = json!({"how": "configured", "gpus": {"GPU-a": null, "GPU-typo": null}});
    let mut report = json!({
        "gpus": {"state": "ok", "list": [{"uuid": "GPU-a", "condition": "ok"}]},
        "servers": [{"name": "vllm-0", "on": on}],
    });
    let line = "server vllm-0: its entry names GPU-typo, which is no GPU here";
    assert_eq!(troubles(&report), [line]);
    // Without a driver nothing is known of any GPU.
    report["gpus"]["state"] = json!("no_driver");
    report["gpus"]["list"] = json!([]);
    assert!(troubles(&report).is_empty());
}

#[test]
fn nobody_is_said_to_hold_a_card_only_when_it_answers() {
    assert_eq!(holders_short(&json!({"holders": [], "memory_used_bytes": 0})), "nobody");
    assert_eq!(holders_short(&json!({"holders": []})), "-");
}

#[test]
fn a_block_names_every_holder_and_leaves_out_what_is_not_known() {
    let page = gpus(&json!({"state": "ok", "driver_version": "580", "list": [sick()]}));
    assert!(page.contains("GPU 0 (NVIDIA H200)  DRAINING  GPU-a"), "{page}");
    assert!(page.contains("!! needs reboot of the host"), "{page}");
    assert!(page.contains("pid 7, 8"), "{page}");
    assert!(page.contains("train [job.service]       ? GiB  pid 9"), "{page}");
    assert!(page.contains("(driver)"), "{page}");
    assert!(!page.contains("heat") && !page.contains("links"), "{page}");
}

#[test]
fn old_readings_are_no_fault_of_a_card() {
    let gpus = json!({"state": "stale", "age_s": 12.0, "driver_version": "580", "list": []});
    let report = json!({"gpus": gpus});
    assert_eq!(troubles(&report), ["GPUs: the driver has not answered for 12 s"]);
    let mut table = String::new();
    write(&report, &mut table);
    assert!(table.contains("READINGS 12 s OLD"), "{table}");
}
