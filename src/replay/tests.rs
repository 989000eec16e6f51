//! Whole replays of small traces made by hand.

use super::*;
use crate::simulate::ProfileName;
use policy::baselines::Baseline;
use trace::Row;

/// So many requests, so many seconds apart, each of three blocks of one of four conversations.
fn plan(requests: u32, apart_s: f64, input: u64, output: u64) -> Plan {
    let row = |at: u32| Row {
        at_s: f64::from(at) * apart_s,
        input,
        output: output + u64::from(at % 7),
        blocks: (0..3).map(|block| u64::from(at % 4) * 10 + block).collect(),
    };
    let rows = (0..requests).map(row).collect();
    Plan { servers: 1, ..Plan::new("hand-made", rows, ProfileName::Small8bH200).unwrap() }
}

fn reports(plan: &Plan) -> Vec<Report> {
    run(plan, |_| {}).unwrap()
}

/// Of our rules.
fn ours(plan: &Plan) -> Report {
    reports(plan).remove(0)
}

#[test]
fn json_has_its_fields_in_order() {
    let report = ours(&plan(20, 0.5, 2_000, 20));
    let serde_json::Value::Object(json) = serde_json::to_value(&report).unwrap() else { panic!() };
    let text = serde_json::to_string(&report).unwrap();
    let places: Vec<Option<usize>> = [
        "policy",
        "offered",
        "good_pct",
        "good_ktok_s",
        "rejected_pct",
        "ttft_p50_s",
        "ttft_p99_s",
        "tpot_p99_ms",
        "preemptions",
        "prefix_hit_pct",
        "jain",
        "tenants",
        "name",
        "tier",
        "alone_ttft_p99_s",
        "served_tokens",
        "fair_tokens",
        "fair_ratio",
        "lost",
        "late_pct",
        "slow_pct",
        "tpot_p50_ms",
        "returned",
        "returned_admitted_pct",
        "returned_after_p50_s",
        "returned_after_p99_s",
        "predicted_pct",
        "fair_least",
        "trace",
        "profile",
        "servers",
        "speed",
        "seed",
        "window_s",
    ]
    .iter()
    .map(|name| text.find(&format!("\"{name}\":")))
    .collect();
    assert!(places.iter().all(Option::is_some) && places.is_sorted(), "{text}");
    assert_eq!(json["policy"], "berthd");
    assert_eq!((json["offered"].as_u64(), json["good_pct"].as_f64()), (Some(20), Some(100.0)));
    assert_eq!((json["jain"].as_f64(), json["fair_least"].as_f64()), (Some(1.0), Some(1.0)));
    assert!(json["returned_admitted_pct"].is_null() && json["predicted_pct"].is_number());
    // 20 requests of 2,000 and 20 to 26 tokens in 9.5 s, all good; served and due are the same.
    let tokens = 20 * 2_020 + (0..20).map(|at| at % 7).sum::<u64>();
    assert_eq!(report.good_ktok_s, (tokens as f64 / 1e3 / 9.5 * 1e4).round() / 1e4);
    assert_eq!((report.tenants[0].served_tokens, report.tenants[0].fair_tokens), (tokens, tokens));
    // The first of each conversation finds nothing; 16 of 20 find 1,536 of 2,000 tokens.
    assert_eq!(report.prefix_hit_pct, 61.44);
}

#[test]
fn under_too_much_load_ours_is_no_worse_than_round_robin_and_nobody_is_lost() {
    // Of prompts that nothing is cached of a server computes about five a second.
    let mut plan = plan(400, 0.05, 6_000, 50);
    plan.policies = PolicyName::all();
    let reports = reports(&plan);
    let names: Vec<&str> = reports.iter().map(|report| report.policy.as_str()).collect();
    assert_eq!(
        (names.len(), names[0], names[1], names[10]),
        (11, "berthd", "round-robin", "slots")
    );
    assert!(reports.iter().all(|report| report.lost == 0 && report.offered == 400));
    assert!(reports[0].good_pct > 10.0 && reports[0].rejected_pct > 10.0, "{:?}", reports[0]);
    assert!(reports[0].good_pct >= reports[1].good_pct, "{:?}", &reports[..2]);
    assert!(reports[1..].iter().all(|report| report.predicted_pct.is_none()));
}

#[test]
fn the_seed_decides_everything() {
    let mut plan = plan(300, 0.05, 5_000, 40);
    plan.policies = PolicyName::all();
    plan.returns = Some(0.2);
    plan.tenants = 3;
    plan.shuffle_outputs = true;
    plan.seed = 7;
    let first = reports(&plan);
    assert_eq!(first, reports(&plan));
    plan.seed = 8;
    assert_ne!(first, reports(&plan));
}

#[test]
fn refused_callers_that_come_back_are_counted() {
    let mut plan = plan(400, 0.05, 6_000, 50);
    assert_eq!((ours(&plan).returned, ours(&plan).lost), (0, 0));
    plan.returns = Some(0.2);
    let report = ours(&plan);
    assert!(report.returned > 100 && report.lost == 0, "{report:?}");
    assert!(report.returned_admitted_pct.unwrap() > 0.0, "{report:?}");
}

#[test]
fn a_flood_is_measured_beside_the_victim_alone() {
    let mut plan = plan(400, 0.5, 4_000, 30);
    plan.flood = Some(Flood { factor: 10.0, start_s: 60.0, seconds: 60.0 });
    plan.tier = crate::ids::Tier::Interactive;
    plan.policies.push(PolicyName::Baseline(Baseline::RoundRobin));
    let reports = reports(&plan);
    let [victim, flood] = reports[0].tenants.as_slice() else { panic!("{:?}", reports[0]) };
    assert_eq!((victim.name.as_str(), flood.name.as_str()), ("victim", "flood"));
    // Both ends of the window count: 60.0, 60.5 ... 120.0.
    assert_eq!((victim.offered, reports[0].window_s), (121, 60.0));
    // 400 requests in 199.5 s, times ten, for a minute.
    assert_eq!(flood.offered, 1203);
    assert!(victim.alone_ttft_p99_s.unwrap() < 1.0 && flood.alone_ttft_p99_s.is_none());
    assert!(victim.good_pct > flood.good_pct && reports[0].lost == 0, "{:?}", reports[0]);
    let unprotected = &reports[1].tenants[0];
    assert!(unprotected.alone_ttft_p99_s.is_some());
    assert!(unprotected.good_pct < victim.good_pct, "{unprotected:?}");
    let text = table(&plan, &reports);
    assert!(text.contains("  victim, interactive") && text.contains("ALONE p99 s"), "{text}");
}

#[test]
fn progress_rises_to_the_end_and_tables_hold_every_policy() {
    let mut plan = plan(100, 0.5, 1_000, 10);
    plan.policies.push(PolicyName::Baseline(Baseline::Slots));
    let mut heard = Vec::new();
    let reports = run(&plan, |progress| heard.push(progress)).unwrap();
    assert!(heard.is_sorted_by_key(|progress| progress.done) && heard.len() > 100);
    assert_eq!(heard.last().map(|last| (last.done, last.of)), Some((200, 200)));
    let text = table(&plan, &reports);
    let lines: Vec<&str> = text.lines().collect();
    assert!(
        lines[0].starts_with("hand-made at 1 x, 1 server 8b-h200, seed 1, 50 s measured"),
        "{text}"
    );
    assert!(lines[2].starts_with("POLICY") && !lines[2].contains("JAIN"), "{text}");
    assert!(lines[3].starts_with("berthd") && lines[4].starts_with("slots"), "{text}");
}

#[test]
fn a_request_larger_than_the_server_is_refused_by_everyone() {
    let mut plan = plan(10, 1.0, 9_000, 10);
    plan.profile.kv = crate::units::Tokens(8_000);
    plan.policies = PolicyName::all();
    for report in reports(&plan) {
        assert_eq!(
            (report.rejected_pct, report.lost, report.ttft_p50_s),
            (100.0, 0, None),
            "{report:?}"
        );
    }
}
