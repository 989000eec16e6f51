//! `Problem`: one thing that is wrong in the files, where it stands, and how to mend it.
//!
//! Nothing here knows which keys exist. Problems are collected, never thrown: an operator who made
//! five mistakes reads about five mistakes, not about the first one five times.

use std::{
    collections::BTreeSet,
    fmt,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
};

/// A place in a file.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Spot {
    /// The file, as the operator would name it.
    pub file: Arc<str>,
    /// Line, counted from 1; 0 means the file as a whole.
    pub line: usize,
}

impl Spot {
    /// A line of a file.
    pub fn new(file: &Arc<str>, line: usize) -> Self {
        Self { file: Arc::clone(file), line }
    }

    /// A file as a whole.
    pub fn of_file(path: &Path) -> Self {
        Self { file: path.display().to_string().into(), line: 0 }
    }
}

impl fmt::Display for Spot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.line == 0 {
            f.write_str(&self.file)
        } else {
            write!(f, "{}:{}", self.file, self.line)
        }
    }
}

/// Whether the daemon can start all the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// No settings are made of these files.
    Error,
    /// The settings are valid, and probably not what was meant.
    Warning,
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Can the daemon start all the same?
    pub severity: Severity,
    /// Where it stands.
    pub at: Spot,
    /// The key, as a path from the top: `servers[0].kind`. Empty for a file as a whole.
    pub key: String,
    /// What is wrong.
    pub what: String,
    /// What to do.
    pub remedy: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.at)?;
        if !self.key.is_empty() {
            write!(f, "{}: ", self.key)?;
        }
        write!(f, "{} — {}", self.what, self.remedy)
    }
}

/// Everything wrong with the files, at least one of it an error. No settings were made and nothing
/// was changed; calling again after mending is safe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problems(pub Vec<Problem>);

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (position, problem) in self.0.iter().enumerate() {
            if position > 0 {
                f.write_str("\n")?;
            }
            problem.fmt(f)?;
        }
        Ok(())
    }
}

impl std::error::Error for Problems {}

// === Collecting ===

/// An unknown key, kept until all sections are read: only then is it clear where it belongs.
#[derive(Clone, Debug)]
struct Stranger {
    at: Spot,
    key: String,
    section: String,
    name: String,
    neighbours: Vec<&'static str>,
}

/// What one reading found. Shared by all sections of it.
#[derive(Debug, Default)]
pub(super) struct Report {
    // Guards what the sections add while they are read. A mutex and not a `RefCell` only so that a
    // report may cross threads; it is never contended.
    found: Mutex<Found>,
}

#[derive(Debug, Default)]
struct Found {
    problems: Vec<Problem>,
    strangers: Vec<Stranger>,
    known: BTreeSet<(String, &'static str)>,
    defaults: Vec<(String, String)>,
    broken_files: BTreeSet<Arc<str>>,
    broken_lines: BTreeSet<Spot>,
}

impl Report {
    fn with<T>(&self, change: impl FnOnce(&mut Found) -> T) -> T {
        change(&mut self.found.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn add(
        &self,
        severity: Severity,
        at: &Spot,
        key: impl Into<String>,
        what: impl Into<String>,
        remedy: impl Into<String>,
    ) {
        let (key, what, remedy) = (key.into(), what.into(), remedy.into());
        let problem = Problem { severity, at: at.clone(), key, what, remedy };
        // A line with broken syntax was read as something else; what follows from it is noise.
        self.with(|found| {
            if !found.broken_lines.contains(at) {
                found.problems.push(problem);
            }
        });
    }

    /// Adds an error.
    pub(super) fn error(
        &self,
        at: &Spot,
        key: impl Into<String>,
        what: impl Into<String>,
        remedy: impl Into<String>,
    ) {
        self.add(Severity::Error, at, key, what, remedy);
    }

    /// Adds a warning.
    pub(super) fn warn(
        &self,
        at: &Spot,
        key: impl Into<String>,
        what: impl Into<String>,
        remedy: impl Into<String>,
    ) {
        self.add(Severity::Warning, at, key, what, remedy);
    }

    /// Adds an error about something absent. In a file with broken syntax it may stand on the broken
    /// line, so there it is not told.
    pub(super) fn missing(
        &self,
        at: &Spot,
        key: impl Into<String>,
        what: impl Into<String>,
        remedy: impl Into<String>,
    ) {
        if !self.is_broken(&at.file) {
            self.error(at, key, what, remedy);
        }
    }

    /// Adds a syntax error.
    pub(super) fn syntax(&self, at: &Spot, what: impl Into<String>) {
        self.add(
            Severity::Error,
            at,
            "",
            format!("not valid TOML: {}", what.into()),
            "mend the line; text stands in double quotes, lists in square brackets",
        );
        self.broken(&at.file);
        self.with(|found| found.broken_lines.insert(at.clone()));
    }

    /// Remembers that a file could not be read, or not in whole.
    pub(super) fn broken(&self, file: &Arc<str>) {
        self.with(|found| found.broken_files.insert(Arc::clone(file)));
    }

    /// Could this file not be read in whole?
    pub(super) fn is_broken(&self, file: &Arc<str>) -> bool {
        self.with(|found| found.broken_files.contains(file))
    }

    /// Remembers that a key exists. `section` is its pattern, `servers[]` for `servers[3]`.
    pub(super) fn know(&self, section: &str, name: &'static str) {
        self.with(|found| found.known.insert((section.to_owned(), name)));
    }

    /// Remembers the default of a key, as it would be written.
    pub(super) fn default_of(&self, section: &str, name: &str, written: String) {
        self.with(|found| found.defaults.push((join(section, name), written)));
    }

    /// Remembers a key nobody asked for.
    pub(super) fn stranger(
        &self,
        at: &Spot,
        key: String,
        section: &str,
        name: &str,
        neighbours: &[&'static str],
    ) {
        let stranger = Stranger {
            at: at.clone(),
            key,
            section: section.to_owned(),
            name: name.to_owned(),
            neighbours: neighbours.to_vec(),
        };
        self.with(|found| found.strangers.push(stranger));
    }

    /// All problems, in the order of the files as first mentioned and of their lines.
    pub(super) fn finish(self) -> Outcome {
        let strangers = self.with(|found| std::mem::take(&mut found.strangers));
        for stranger in strangers {
            let remedy = self.with(|found| remedy_for(&stranger, &found.known));
            self.error(&stranger.at, &stranger.key, "unknown key", remedy);
        }
        let found = self.found.into_inner().unwrap_or_else(PoisonError::into_inner);
        let mut problems = found.problems;
        problems.sort_by(|one, two| {
            one.at.cmp(&two.at).then(one.key.cmp(&two.key)).then(one.what.cmp(&two.what))
        });
        problems.dedup();
        let known = found.known.iter().map(|(section, name)| join(section, name)).collect();
        Outcome { problems, known, defaults: found.defaults }
    }
}

/// What a whole reading found, in order.
#[derive(Debug)]
pub(super) struct Outcome {
    /// All problems.
    pub problems: Vec<Problem>,
    /// Every key that was asked for, as a pattern: `servers[].kind`.
    #[cfg_attr(
        not(all(test, feature = "candle")),
        expect(dead_code, reason = "the sample file is tested against it")
    )]
    pub known: BTreeSet<String>,
    /// Every default, as it would be written.
    #[cfg_attr(
        not(all(test, feature = "candle")),
        expect(dead_code, reason = "the sample file is tested against it")
    )]
    pub defaults: Vec<(String, String)>,
}

/// A key's path below its section.
pub(super) fn join(section: &str, name: &str) -> String {
    if section.is_empty() { name.to_owned() } else { format!("{section}.{name}") }
}

// === Suggestions ===

fn remedy_for(stranger: &Stranger, known: &BTreeSet<(String, &'static str)>) -> String {
    if let Some(near) = nearest(&stranger.name, stranger.neighbours.iter().copied()) {
        return format!("write `{near}`");
    }
    let elsewhere = known
        .iter()
        .find(|(section, name)| *name == stranger.name && *section != stranger.section)
        .map(|(section, _)| section.as_str());
    match elsewhere {
        Some("") => format!("`{}` stands at the top, above the first section", stranger.name),
        Some(section) => match section.strip_suffix("[]") {
            Some(rows) => format!("`{}` belongs to a [[{rows}]] entry", stranger.name),
            None => format!("move it to the section [{section}]"),
        },
        None => format!("remove it, or use one of: {}", stranger.neighbours.join(", ")),
    }
}

/// The candidate that `written` most probably means, if one is near enough.
pub(super) fn nearest<'a>(
    written: &str,
    candidates: impl Iterator<Item = &'a str>,
) -> Option<&'a str> {
    let written = written.to_lowercase().replace('-', "_");
    let allowed = (written.chars().count() / 3).clamp(1, 3);
    candidates
        .filter_map(|candidate| {
            // A key without its unit is the commonest slip: `head_limit` for `head_limit_s`.
            let without_unit = candidate.rsplit_once('_').map(|(stem, _)| stem);
            let stem_given = written.rsplit_once('_').map(|(stem, _)| stem);
            let away = distance(&written, candidate);
            if without_unit.is_some()
                && (without_unit == Some(written.as_str()) || without_unit == stem_given)
            {
                return Some((away.min(1), away, candidate));
            }
            (away <= allowed).then_some((away, away, candidate))
        })
        .min()
        .map(|(_, _, candidate)| candidate)
}

/// Letters to insert, remove, change or swap with a neighbour to make one text of the other.
fn distance(one: &str, two: &str) -> usize {
    let two: Vec<char> = two.chars().collect();
    let mut above: Vec<usize> = Vec::new();
    let mut row: Vec<usize> = (0..=two.len()).collect();
    let mut letter_above = None;
    for (line, letter) in one.chars().enumerate() {
        let mut next = vec![line + 1];
        let mut left = line + 1;
        for (column, other) in two.iter().enumerate() {
            let at =
                |row: &[usize], index: usize| row.get(index).copied().unwrap_or(usize::MAX / 2);
            let change = at(&row, column) + usize::from(letter != *other);
            let mut best = change.min(at(&row, column + 1) + 1).min(left + 1);
            let before = column.checked_sub(1);
            if let Some(before) = before
                && letter_above == Some(*other)
                && two.get(before) == Some(&letter)
            {
                best = best.min(at(&above, before) + 1);
            }
            next.push(best);
            left = best;
        }
        above = std::mem::replace(&mut row, next);
        letter_above = Some(letter);
    }
    row.last().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances_count_single_slips_as_one() {
        for (one, two, away) in [
            ("kind", "kind", 0),
            ("knid", "kind", 1),
            ("kin", "kind", 1),
            ("kinds", "kind", 1),
            ("kimd", "kind", 1),
            ("", "kind", 4),
            ("data", "admin", 4),
        ] {
            assert_eq!(distance(one, two), away, "{one} -> {two}");
        }
    }

    #[test]
    fn suggestions_forgive_slips_and_forgotten_units_but_do_not_guess() {
        let keys = ["head_limit_s", "body_limit_s", "data", "connections_max"];
        for (written, meant) in [
            ("head_limit", Some("head_limit_s")),
            ("head_limit_ms", Some("head_limit_s")),
            ("Head-Limit-s", Some("head_limit_s")),
            ("dta", Some("data")),
            ("max_connections", None),
            ("colour", None),
        ] {
            assert_eq!(nearest(written, keys.into_iter()), meant, "{written}");
        }
    }

    #[test]
    fn a_problem_reads_as_place_key_fault_remedy() {
        let at = Spot { file: "config/berthd.toml".into(), line: 14 };
        let (key, what) = ("servers[0].kind".to_owned(), "unknown kind".to_owned());
        let remedy = "write `vllm`".to_owned();
        let problem = Problem { severity: Severity::Error, at, key, what, remedy };
        assert_eq!(
            problem.to_string(),
            "config/berthd.toml:14: servers[0].kind: unknown kind — write `vllm`"
        );
    }
}
