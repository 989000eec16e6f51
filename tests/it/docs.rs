//! What the pages in `docs/` must not forget: every metric and every error code.

use std::{collections::BTreeSet, fs, path::Path};

fn text(path: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap()
}

/// All sources of one folder, one behind the other.
fn sources(folder: &str) -> String {
    let files = fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(folder)).unwrap();
    files.map(|file| fs::read_to_string(file.unwrap().path()).unwrap()).collect()
}

/// Names of metric families, without prefix and unit, as `src/metrics/` registers them.
fn families(source: &str) -> BTreeSet<String> {
    let code: String = source.split_whitespace().collect();
    let calls = [
        "family!(r,\"",
        "histograms!(r,\"",
        "r.register(\"",
        "r.register_with_unit(\"",
        "gauge(\"gpu_",
        "counter(\"gpu_",
    ];
    let named = |call: &&'static str| {
        let after: Vec<&str> = code.split(*call).skip(1).collect();
        let prefix = if call.ends_with("gpu_") { "gpu_" } else { "" };
        let name = |rest: &str| rest.split('"').next().map(|name| format!("{prefix}{name}"));
        after.into_iter().filter_map(name).collect()
    };
    calls.iter().flat_map(|call| -> Vec<String> { named(call) }).collect()
}

/// Codes of refusals, as `src/error.rs` names them.
fn codes(source: &str) -> BTreeSet<String> {
    let body = source.split("impl Reason").nth(1).unwrap().split("fn class").next().unwrap();
    let after = body.split("=> \"").skip(1);
    after.filter_map(|rest| rest.split('"').next()).map(str::to_owned).collect()
}

/// Those of `names` that `page` does not hold in backticks, bare or with one of `endings`.
fn missing(names: &BTreeSet<String>, prefix: &str, endings: &[&str], page: &str) -> Vec<String> {
    let written = |name: &String| {
        endings.iter().any(|ending| page.contains(&format!("`{prefix}{name}{ending}`")))
    };
    names.iter().filter(|name| !written(name)).cloned().collect()
}

const UNITS: [&str; 5] = ["", "_total", "_seconds", "_bytes", "_info"];

#[test]
fn every_metric_is_explained() {
    let families = families(&sources("src/metrics"));
    assert!(families.len() > 25, "families are not found any more: {families:?}");
    let missing = missing(&families, "berthd_", &UNITS, &text("docs/operations.md"));
    assert!(missing.is_empty(), "docs/operations.md does not explain {missing:?}");
}

/// Names that dashboards made for dcgm-exporter ask for.
fn dcgm(source: &str) -> BTreeSet<String> {
    let after = source.split("\"DCGM_FI_").skip(1);
    after.filter_map(|rest| rest.split('"').next()).map(|name| format!("DCGM_FI_{name}")).collect()
}

#[test]
fn every_borrowed_metric_is_listed() {
    let names = dcgm(&sources("src/metrics"));
    assert!(names.len() > 20, "names are not found any more: {names:?}");
    let missing = missing(&names, "", &[""], &text("docs/operations.md"));
    assert!(missing.is_empty(), "docs/operations.md does not list {missing:?}");
}

#[test]
fn every_error_code_is_explained() {
    let codes = codes(&text("src/error.rs"));
    assert!(codes.len() > 25, "codes are not found any more: {codes:?}");
    let missing = missing(&codes, "", &[""], &text("docs/api.md"));
    assert!(missing.is_empty(), "docs/api.md does not explain {missing:?}");
}

#[test]
fn what_a_page_lacks_is_found() {
    let source =
        "let a = family!(\n r,\n \"new_thing\", \"Help\"); r.register(\"old\", \"Help\", x);";
    let names = families(source);
    assert_eq!(names.len(), 2);
    let page = "| `berthd_old_total` | and berthd_new_thing without its marks |";
    assert_eq!(missing(&names, "berthd_", &UNITS, page), ["new_thing"]);
    let codes =
        codes("impl Reason { A => \"a_b\", B => \"c\", } pub const fn class() { x => \"no\" }");
    assert_eq!(missing(&codes, "", &[""], "`a_b`"), ["c"]);
}
