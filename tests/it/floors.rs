//! The floors of the source tree: no file may use a module that stands above its own.
//!
//! The compiler does not see floors inside one crate, so this reads the sources. Every `crate::` path
//! counts, in `use` lines, in groups over several lines and in the middle of code.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// The floor of each top-level module.
const FLOORS: [(&str, u8); 27] = [
    ("error", 0),
    ("ids", 0),
    ("units", 0),
    ("api", 1),
    ("config", 1),
    ("snapshot", 2),
    ("tokens", 2),
    ("admit", 3),
    ("energy", 3),
    ("fault", 3),
    ("holding", 3),
    ("ledger", 3),
    ("queue", 3),
    ("schedule", 3),
    ("screen", 3),
    ("classify", 4),
    ("gpu", 4),
    ("processes", 4),
    ("servers", 4),
    ("control", 5),
    ("metrics", 5),
    ("pipeline", 5),
    ("report", 5),
    ("cli", 6),
    ("daemon", 6),
    ("log", 6),
    ("systemd", 6),
];

/// A model server to test against: knows words and requests only, and only the command line knows it.
const ASIDE: &str = "simulate";

/// The rules played against it: knows both, and only the command line knows it.
const REPLAY: &str = "replay";

fn floor(module: &str) -> Option<u8> {
    FLOORS.iter().find(|(name, _)| *name == module).map(|(_, floor)| *floor)
}

/// May a file of module `from` use module `to`?
fn allowed(from: &str, to: &str) -> bool {
    if from == to {
        return true;
    }
    if to == ASIDE {
        return from == "cli" || from == REPLAY;
    }
    if to == REPLAY {
        return from == "cli";
    }
    let Some(there) = floor(to) else { return false };
    if from == ASIDE {
        return there <= 1;
    }
    if from == REPLAY {
        return there <= 3;
    }
    match floor(from) {
        // Edges know neither the rules nor each other.
        Some(4) => there <= 2,
        Some(here) => there <= here,
        None => false,
    }
}

/// The top-level modules that a source text uses.
fn used(source: &str) -> Vec<String> {
    let code: String = source
        .lines()
        .filter(|line| !line.trim_start().starts_with("//"))
        .flat_map(|line| [line, "\n"])
        .collect();
    let mut found = Vec::new();
    for (at, path) in code.match_indices("crate::") {
        let before = code[..at].chars().next_back();
        if before.is_some_and(|letter| letter.is_alphanumeric() || letter == '_') {
            continue;
        }
        let rest = &code[at + path.len()..];
        match rest.strip_prefix('{') {
            Some(group) => found.extend(heads(group)),
            None => found.push(word(rest)),
        }
    }
    found
}

/// The first words of a group's members, up to its closing brace.
fn heads(group: &str) -> Vec<String> {
    let (mut depth, mut fresh, mut found) = (0, true, Vec::new());
    for (at, letter) in group.char_indices() {
        match letter {
            '{' => depth += 1,
            '}' if depth == 0 => return found,
            '}' => depth -= 1,
            ',' if depth == 0 => fresh = true,
            _ if fresh && !letter.is_whitespace() => {
                found.push(word(&group[at..]));
                fresh = false;
            }
            _ => {}
        }
    }
    found
}

fn word(text: &str) -> String {
    text.chars().take_while(|letter| letter.is_alphanumeric() || *letter == '_').collect()
}

/// What is wrong with one file.
fn complaints(module: &str, source: &str) -> Vec<String> {
    let wrong = used(source).into_iter().filter(|to| !allowed(module, to));
    wrong.map(|to| format!("{module} may not use {to}")).collect()
}

fn sources(folder: &Path, into: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, into);
        } else if path.extension().is_some_and(|ending| ending == "rs") {
            into.push(path);
        }
    }
}

#[test]
fn no_file_uses_a_floor_above_its_own() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    sources(&root, &mut files);
    assert!(files.len() > 50, "the sources were not found");
    let mut wrong = Vec::new();
    for file in &files {
        let path = file.strip_prefix(&root).unwrap();
        let first = Path::new(path.components().next().unwrap().as_os_str());
        let module = first.file_stem().unwrap().to_str().unwrap();
        // The crate's root and the program name modules only to declare and to start them.
        if module == "lib" || module == "main" {
            continue;
        }
        assert!(
            [ASIDE, REPLAY].contains(&module) || floor(module).is_some(),
            "{module} has no floor yet: add it"
        );
        let source = fs::read_to_string(file).unwrap();
        let found = complaints(module, &source);
        wrong.extend(found.into_iter().map(|text| format!("{}: {text}", path.display())));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_check_sees_upward_edges_however_they_are_written() {
    assert_eq!(complaints("queue", "use crate::ids::Tier;\n"), [""; 0]);
    assert_eq!(complaints("queue", "use crate::pipeline::Broker;\n").len(), 1);
    let group = "use crate::{\n    ids::{A, B},\n    servers::http,\n    units::Tokens,\n};\n";
    assert_eq!(complaints("schedule", group), ["schedule may not use servers"]);
    assert_eq!(complaints("api", "fn f() { crate::tokens::count() }\n").len(), 1);
    assert_eq!(complaints("api", "/// See crate::tokens.\n// crate::cli\n"), [""; 0]);
}

#[test]
fn edges_know_neither_rules_nor_each_other_and_the_simulator_stands_aside() {
    assert_eq!(complaints("servers", "use crate::{admit::Admission, gpu};\n").len(), 2);
    assert_eq!(complaints("gpu", "use crate::{config, snapshot};\n"), [""; 0]);
    assert_eq!(complaints("simulate", "use crate::{api, snapshot};\n").len(), 1);
    assert_eq!(complaints("replay", "use crate::{schedule, simulate};\n"), [""; 0]);
    assert_eq!(complaints("replay", "use crate::{pipeline, servers};\n").len(), 2);
    assert_eq!(complaints("pipeline", "use crate::replay;\n").len(), 1);
    assert_eq!(complaints("daemon", "use crate::simulate;\n").len(), 1);
    assert_eq!(complaints("cli", "use crate::simulate;\n"), [""; 0]);
    assert_eq!(complaints("cli", "use crate::unheard_of;\n").len(), 1);
}
