//! Rules that operators write: patterns, phrases and word lists, in a TOML file.
//!
//! ```toml
//! [[rule]]
//! id = "override-en"                  # unique: letters, digits, `-`, `_`, `.`
//! label = "injection"                 # what it is; any such word: injection, leak, policy, …
//! description = "…"                   # optional, for people
//! origins = ["user", "tool"]          # optional: whose texts; system, user, assistant, tool
//! score = 0.9                         # optional, 0 to 1: how sure a hit is; 1 if left out
//! action = "flag"                     # optional: flag, sanitise, refuse; what the rule asks for
//! pattern = '(?i)ignore\s+all'        # one pattern, or
//! patterns = ['…', '…']               # several; the syntax of the Rust crate `regex`
//! phrases = ["ignore all", "…"]       # and, or, phrases
//! words = true                        # optional: only where whole words match
//! tests = { match = ["…"], pass = ["…"] }
//!
//! [[list]]                            # many phrases of one kind
//! id = "products"
//! label = "policy"
//! file = "products.txt"               # one entry a line, # starts a comment; or entries = ["…"]
//! words = true                        # and the other keys, except patterns
//! ```
//!
//! A phrase matches in any case and any script; where it has a blank the text may have any white space,
//! and characters that nobody sees (soft hyphens, zero-width blanks) do not count. A pattern matches the
//! text as it is written; put it in `'…'`, or in `'''…'''` if it has a `'`. `words` has no meaning for scripts
//! without blanks between words.
//!
//! A file is used as a whole or not at all. Unknown keys are refused, so that a mistyped `orgins` does not
//! widen a rule.
//!
//! Bounds. Patterns run in time linear in the text: nothing backtracks, and `(a+)+$` costs what `a` costs.
//! What remains is the size of a pattern's program, which is limited, as are the characters that its counted
//! repetitions stand for (`.{0,80}` is 80, of 512): each can take 5 ns for a byte of a text that was made to
//! be slow. Patterns that no fixed text of three letters announces run on every text, and there may be 64
//! of them. All phrases, and the fixed texts that patterns need, are searched in one pass; a pattern runs
//! only when all its texts are there. A rule hits at most 64 times in a text, and all rules together at most
//! once each and 1024 times more; no rule's first hit is ever left out.
//!
//! Memory: about 15 bytes for a byte of phrases (ten times that while all of them have less than 16 KiB),
//! 1 KB for a pattern, and about 128 MiB at most for patterns that have run and are kept compiled.

mod fold;
mod lists;
mod literal;
mod matcher;
mod origin;
mod pattern;
mod problem;
mod read;
mod size;

#[cfg(test)]
mod shipped_tests;
#[cfg(test)]
mod tests;

use self::{matcher::Matcher, read::Written};
pub use self::{
    origin::{Action, Origin, Origins, UnknownWord},
    problem::{Failure, Problem},
};
use std::{collections::BTreeSet, ops::Range, path::Path, sync::Arc};

/// Most problems that are told; a file of another kind has one a line.
const PROBLEMS_MAX: usize = 200;
/// Patterns that are compiled when the rules are read, so that the first texts need not wait; the others
/// are when a text first calls for them.
const WARM: usize = 256;

/// One rule, or one list.
#[derive(Clone, Debug)]
pub struct Rule {
    /// Its id, unique in the file.
    pub id: Arc<str>,
    /// What its hits are.
    pub label: Arc<str>,
    /// What it is for, in the operator's words; may be empty.
    pub description: String,
    /// Whose texts it is for.
    pub origins: Origins,
    /// How sure a hit is, 0 to 1.
    pub score: f64,
    /// What it asks for, if it asks for something.
    pub action: Option<Action>,
    /// Does it match whole words only?
    pub words: bool,
    /// Texts that must match, and texts that must not.
    tests: (Vec<String>, Vec<String>),
}

/// A place where a rule matches.
#[derive(Clone, Debug, PartialEq)]
pub struct Hit {
    /// The rule's place among the rules and lists of the file, from 0.
    pub rule: usize,
    /// The rule's id.
    pub id: Arc<str>,
    /// What it is.
    pub label: Arc<str>,
    /// How sure it is, 0 to 1.
    pub score: f64,
    /// What the rule asks for.
    pub action: Option<Action>,
    /// Where it is, bytes of the text, at characters' boundaries.
    pub span: Range<usize>,
}

/// The rules of a file, compiled. Used from any number of threads.
#[derive(Debug, Default)]
pub struct Rules {
    rules: Vec<Rule>,
    matcher: Matcher,
}

impl Rules {
    /// No rules.
    pub fn empty() -> Self {
        Self::default()
    }

    /// Reads and compiles the text of a rule file. `folder` is where the files of lists are looked for. All
    /// problems are returned at once, in the order of their lines; the tests in the file are not run.
    pub fn parse(text: &str, folder: &Path) -> Result<Self, Vec<Problem>> {
        let mut problems = Vec::new();
        let written = read::read(text, folder, &mut problems);
        let matcher = Matcher::new(&written, &mut problems);
        if problems.is_empty() {
            matcher.warm(WARM);
            return Ok(Self { rules: written.into_iter().map(Rule::from).collect(), matcher });
        }
        problems.sort_by_key(|problem| problem.line);
        let mut told = without_noise(problems);
        told.truncate(PROBLEMS_MAX);
        Err(told)
    }

    /// Runs the tests in the file: each text that must match against its rule alone, and each that must not.
    pub fn self_test(&self) -> Vec<Failure> {
        let mut failures = Vec::new();
        for (place, rule) in self.rules.iter().enumerate() {
            let Some(origin) = rule.origins.iter().next() else { continue };
            let (matching, passing) = &rule.tests;
            let cases = matching.iter().map(|text| (text, true));
            for (text, expected) in cases.chain(passing.iter().map(|text| (text, false))) {
                let hit = self.find(text, origin).iter().any(|hit| hit.rule == place);
                if hit != expected {
                    let rule = rule.id.to_string();
                    failures.push(Failure { rule, text: text.clone(), expected });
                }
            }
        }
        failures
    }

    /// The hits in a text that `origin` wrote, in order. Those of different rules may overlap, and those of
    /// one rule too.
    pub fn find(&self, text: &str, origin: Origin) -> Vec<Hit> {
        self.matcher.find(&self.rules, text, origin)
    }

    /// How many rules and lists there are.
    pub fn len(&self) -> usize {
        self.rules.len()
    }

    /// Are there none?
    pub fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }

    /// The rules, in their order.
    pub fn iter(&self) -> impl Iterator<Item = &Rule> {
        self.rules.iter()
    }

    /// All labels, each once, in alphabetical order.
    pub fn labels(&self) -> BTreeSet<&str> {
        self.rules.iter().map(|rule| &*rule.label).collect()
    }
}

/// A line that is no TOML was read as something else; what follows from that is noise.
fn without_noise(problems: Vec<Problem>) -> Vec<Problem> {
    let broken: BTreeSet<_> =
        problems.iter().filter(|one| one.is_syntax()).map(|one| one.line).collect();
    let told = problems.into_iter().filter(|one| one.is_syntax() || !broken.contains(&one.line));
    told.collect()
}

impl From<Written> for Rule {
    fn from(written: Written) -> Self {
        Self {
            id: written.id.into(),
            label: written.label.into(),
            description: written.description,
            origins: written.origins,
            score: written.score,
            action: written.action,
            words: written.words,
            tests: written.tests,
        }
    }
}
