//! The rules that are shipped: they can be read, their tests hold, and they leave ordinary texts alone.

use super::*;

fn shipped() -> Rules {
    let text = include_str!("../../../config/screen-rules.toml");
    Rules::parse(text, Path::new(".")).unwrap_or_else(|problems| {
        let problems: Vec<_> = problems.iter().map(ToString::to_string).collect();
        panic!("{}", problems.join("\n"))
    })
}

#[test]
fn shipped_rules_hold_their_tests() {
    let failures: Vec<_> = shipped().self_test().iter().map(ToString::to_string).collect();
    assert_eq!(failures, Vec::<String>::new());
}

#[test]
fn every_shipped_rule_is_described_and_tested_both_ways() {
    let rules = shipped();
    assert!((25..=40).contains(&rules.len()), "{}", rules.len());
    for rule in rules.iter() {
        assert!(!rule.description.is_empty(), "{}", rule.id);
        assert!(!rule.tests.0.is_empty() && !rule.tests.1.is_empty(), "{}", rule.id);
    }
}
