//! A rule file as written: TOML into rules, all that is wrong reported at once.

use super::{
    lists,
    origin::{Action, Origin, Origins},
    problem::{NO_TOML, Problem, Report},
};
use std::{collections::HashMap, fmt::Display, path::Path, str::FromStr};
use toml::de::{DeTable, DeValue};

/// Most bytes of an id or a label.
const NAME_MAX: usize = 64;

const RULE_KEYS: &[&str] = &[
    "id",
    "label",
    "origins",
    "pattern",
    "patterns",
    "phrases",
    "words",
    "score",
    "action",
    "description",
    "tests",
];
const LIST_KEYS: &[&str] = &[
    "id",
    "label",
    "origins",
    "file",
    "entries",
    "words",
    "score",
    "action",
    "description",
    "tests",
];

/// One rule as written.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Written {
    /// Line of its heading.
    pub line: usize,
    pub id: String,
    pub label: String,
    pub origins: Origins,
    pub words: bool,
    pub score: f64,
    pub action: Option<Action>,
    pub description: String,
    /// Patterns and the line each stands in.
    pub patterns: Vec<(String, usize)>,
    /// Phrases and the line each stands in; 0 for those of a list's file.
    pub phrases: Vec<(String, usize)>,
    /// Texts that must match, and texts that must not.
    pub tests: (Vec<String>, Vec<String>),
}

/// Reads a rule file. What is wrong goes to `problems`; rules with problems are returned as far as they were
/// read, so that all of them are found.
pub(super) fn read(text: &str, folder: &Path, problems: &mut Vec<Problem>) -> Vec<Written> {
    let lines = Lines(memchr::memchr_iter(b'\n', text.as_bytes()).collect());
    let (tree, errors) = DeTable::parse_recoverable(text);
    let mut file = Report { problems, rule: String::new() };
    for error in errors {
        let line = lines.of(error.span().map_or(0, |span| span.start));
        let what = format!("{NO_TOML}: {}", error.message().trim().replace('\n', ", "));
        file.add(
            line,
            what,
            "mend it; patterns are best put in '…', or with a ' in them in '''…'''",
        );
    }
    let mut rules = rows(tree.get_ref(), &lines, folder, &mut file);
    // The parser sorts by key; people count from the top.
    rules.sort_by_key(|rule| rule.line);
    refuse_twins(&rules, problems);
    rules
}

/// All rules and lists of a file.
fn rows(tree: &DeTable<'_>, lines: &Lines, folder: &Path, file: &mut Report<'_>) -> Vec<Written> {
    let mut rules = Vec::new();
    for (key, value) in tree {
        let line = lines.of(key.span().start);
        let (kind, keys) = match key.get_ref().as_ref() {
            "rule" => ("rule", RULE_KEYS),
            "list" => ("list", LIST_KEYS),
            other => {
                let remedy = "rules start with [[rule]] or [[list]]";
                file.add(line, format!("unknown key `{other}`"), remedy);
                continue;
            }
        };
        let Some(rows) = value.get_ref().as_array() else {
            file.add(line, format!("`{kind}` is no list"), format!("write [[{kind}]]"));
            continue;
        };
        for (place, row) in rows.iter().enumerate() {
            let rule = format!("{kind} {}", place + 1);
            let mut report = Report { problems: file.problems, rule };
            let line = lines.of(row.span().start);
            let Some(table) = row.get_ref().as_table() else {
                report.add(line, "no table", format!("write [[{kind}]] above it"));
                continue;
            };
            rules.push(Fields { table, lines, line }.rule(keys, folder, &mut report));
        }
    }
    rules
}

fn refuse_twins(rules: &[Written], problems: &mut Vec<Problem>) {
    let mut first: HashMap<&str, usize> = HashMap::new();
    for rule in rules.iter().filter(|rule| !rule.id.is_empty()) {
        if let Some(line) = first.get(rule.id.as_str()) {
            Report { problems, rule: rule.id.clone() }.add(
                rule.line,
                format!("the id is taken on line {line}"),
                "give each rule an id of its own",
            );
        } else {
            first.insert(&rule.id, rule.line);
        }
    }
}

/// Where the lines end.
struct Lines(Vec<usize>);

impl Lines {
    fn of(&self, offset: usize) -> usize {
        1 + self.0.partition_point(|end| *end < offset)
    }
}

/// A value and its line.
type Value<'a> = (&'a DeValue<'a>, usize);

/// One rule's keys.
struct Fields<'a> {
    table: &'a DeTable<'a>,
    lines: &'a Lines,
    line: usize,
}

impl<'a> Fields<'a> {
    fn get(&self, key: &str) -> Option<Value<'a>> {
        let value = self.table.get(key)?;
        Some((value.get_ref(), self.lines.of(value.span().start)))
    }

    fn rule(&self, keys: &[&str], folder: &Path, report: &mut Report<'_>) -> Written {
        let id = self.name("id", report);
        if !id.is_empty() {
            report.rule = id.clone();
        }
        self.refuse_strangers(keys, report);
        let mut phrases = self.texts("phrases", report);
        phrases.extend(self.texts("entries", report));
        if let Some((file, line)) = self.text("file", report) {
            lists::read(&folder.join(&file), line, &mut phrases, report);
        }
        let mut patterns: Vec<_> = self.text("pattern", report).into_iter().collect();
        patterns.extend(self.texts("patterns", report));
        if phrases.is_empty() && patterns.is_empty() && self.get("file").is_none() {
            let (what, remedy) = if keys == LIST_KEYS {
                ("the list is empty", "give it a `file`, or `entries`")
            } else {
                ("the rule can match nothing", "give it a `pattern`, or `phrases`")
            };
            report.add(self.line, what, remedy);
        }
        Written {
            line: self.line,
            label: self.name("label", report),
            origins: self.origins(report),
            words: self.flag("words", report),
            score: self.score(report),
            action: self.text("action", report).and_then(|given| word::<Action>(given, report)),
            description: self.text("description", report).map(|(text, _)| text).unwrap_or_default(),
            tests: self.tests(report),
            id,
            patterns,
            phrases,
        }
    }

    fn refuse_strangers(&self, keys: &[&str], report: &mut Report<'_>) {
        for (key, value) in self.table {
            if !keys.contains(&key.get_ref().as_ref()) {
                let line = self.lines.of(value.span().start);
                let what = format!("unknown key `{}`", key.get_ref());
                report.add(line, what, format!("the keys are: {}", keys.join(", ")));
            }
        }
    }

    /// Text, if it is given.
    fn text(&self, key: &str, report: &mut Report<'_>) -> Option<(String, usize)> {
        let (value, line) = self.get(key)?;
        let text = value.as_str().map(|text| (text.to_owned(), line));
        if text.is_none() {
            report.add(line, format!("`{key}` is no text"), "put it in quotes");
        }
        text
    }

    /// A list of texts, each with its line.
    fn texts(&self, key: &str, report: &mut Report<'_>) -> Vec<(String, usize)> {
        self.get(key).map_or_else(Vec::new, |value| texts(key, value, self.lines, report))
    }

    /// An id or a label.
    fn name(&self, key: &str, report: &mut Report<'_>) -> String {
        let Some((name, line)) = self.text(key, report) else {
            if self.get(key).is_none() {
                report.add(self.line, format!("no `{key}`"), "every rule and list has one");
            }
            return String::new();
        };
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
        if name.is_empty() || name.len() > NAME_MAX || !name.bytes().all(allowed) {
            let what = format!("`{name}` cannot be the {key}");
            let remedy = format!(
                "use 1 to {NAME_MAX} letters and digits, `-`, `_`, `.` (it becomes a metric's label)"
            );
            report.add(line, what, remedy);
        }
        name
    }

    fn flag(&self, key: &str, report: &mut Report<'_>) -> bool {
        let Some((value, line)) = self.get(key) else { return false };
        value.as_bool().unwrap_or_else(|| {
            report.add(
                line,
                format!("`{key}` is neither true nor false"),
                "write one of them, without quotes",
            );
            false
        })
    }

    fn score(&self, report: &mut Report<'_>) -> f64 {
        let Some((value, line)) = self.get("score") else { return 1.0 };
        let number = match value {
            DeValue::Float(number) => number.as_str().parse().ok(),
            DeValue::Integer(number) => number.as_str().parse().ok(),
            _ => None,
        };
        number.filter(|number| (0.0..=1.0).contains(number)).unwrap_or_else(|| {
            report.add(
                line,
                "`score` is no number from 0 to 1",
                "1 is certain; leave it out for that",
            );
            1.0
        })
    }

    fn origins(&self, report: &mut Report<'_>) -> Origins {
        let Some((_, line)) = self.get("origins") else { return Origins::ALL };
        let given = self.texts("origins", report);
        if given.is_empty() {
            report.add(
                line,
                "no `origins`: the rule would never apply",
                "leave the key out for all of them",
            );
        }
        given.into_iter().filter_map(|given| word::<Origin>(given, report)).collect()
    }

    fn tests(&self, report: &mut Report<'_>) -> (Vec<String>, Vec<String>) {
        let Some((value, line)) = self.get("tests") else { return Default::default() };
        let Some(table) = value.as_table() else {
            report.add(
                line,
                "`tests` is no table",
                "write tests = { match = [\"…\"], pass = [\"…\"] }",
            );
            return Default::default();
        };
        let mut tests = (Vec::new(), Vec::new());
        for (key, value) in table {
            let line = self.lines.of(value.span().start);
            let into = match key.get_ref().as_ref() {
                "match" => &mut tests.0,
                "pass" => &mut tests.1,
                other => {
                    report.add(
                        line,
                        format!("unknown key `tests.{other}`"),
                        "the keys are: match, pass",
                    );
                    continue;
                }
            };
            let texts = texts("tests", (value.get_ref(), line), self.lines, report);
            into.extend(texts.into_iter().map(|(text, _)| text));
        }
        tests
    }
}

/// A list of texts, each with its line.
fn texts(
    key: &str,
    (value, line): Value<'_>,
    lines: &Lines,
    report: &mut Report<'_>,
) -> Vec<(String, usize)> {
    let Some(list) = value.as_array() else {
        report.add(line, format!("`{key}` is no list"), "write it as [\"…\", \"…\"]");
        return Vec::new();
    };
    let mut texts = Vec::new();
    for item in list {
        let line = lines.of(item.span().start);
        match item.get_ref().as_str() {
            Some(text) => texts.push((text.to_owned(), line)),
            None => report.add(
                line,
                format!("`{key}` has an entry that is no text"),
                "put it in quotes",
            ),
        }
    }
    texts
}

/// One of a few words.
fn word<T: FromStr<Err: Display>>(
    (given, line): (String, usize),
    report: &mut Report<'_>,
) -> Option<T> {
    given
        .parse()
        .map_err(|error: T::Err| report.add(line, error.to_string(), "use one of these"))
        .ok()
}
