//! What is wrong with a rule file, and which of its tests fail.

use std::fmt;

/// One thing that is wrong with a rule file. Nothing of the file is used while there is one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The rule's id, or `rule 3` (counted from 1) where it has none. Empty for the file as a whole.
    pub rule: String,
    /// Line of the rule file, counted from 1; 0 if it is not known.
    pub line: usize,
    /// What is wrong.
    pub what: String,
    /// What to do.
    pub remedy: String,
}

/// How a problem starts that the TOML parser found.
pub(super) const NO_TOML: &str = "not TOML";

impl Problem {
    /// Did the TOML parser find it?
    pub(super) fn is_syntax(&self) -> bool {
        self.what.starts_with(NO_TOML)
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.line > 0 {
            write!(f, "line {}: ", self.line)?;
        }
        if !self.rule.is_empty() {
            write!(f, "{}: ", self.rule)?;
        }
        write!(f, "{} — {}", self.what, self.remedy)
    }
}

impl std::error::Error for Problem {}

/// A test in a rule file that does not hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The rule's id.
    pub rule: String,
    /// The text of the test.
    pub text: String,
    /// Should the rule have matched it?
    pub expected: bool,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let wrong = if self.expected { "does not match" } else { "matches, and must not:" };
        write!(f, "{}: {wrong} {:?}", self.rule, self.text)
    }
}

/// Collects problems of one rule.
pub(super) struct Report<'a> {
    /// All problems of the file.
    pub problems: &'a mut Vec<Problem>,
    /// The rule they belong to.
    pub rule: String,
}

impl Report<'_> {
    /// Adds a problem.
    pub(super) fn add(&mut self, line: usize, what: impl Into<String>, remedy: impl Into<String>) {
        let (rule, what, remedy) = (self.rule.clone(), what.into(), remedy.into());
        self.problems.push(Problem { rule, line, what, remedy });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn problems_and_failures_read_as_sentences() {
        let mut problems = Vec::new();
        let mut report = Report { problems: &mut problems, rule: "a".into() };
        report.add(3, "no label", "add one");
        report.add(0, "no label", "add one");
        report.rule = String::new();
        report.add(3, "no rules", "add one");
        let read: Vec<_> = problems.iter().map(ToString::to_string).collect();
        assert_eq!(
            read,
            [
                "line 3: a: no label — add one",
                "a: no label — add one",
                "line 3: no rules — add one"
            ]
        );
        let failure = Failure { rule: "a".into(), text: "x\ny".into(), expected: true };
        assert_eq!(failure.to_string(), r#"a: does not match "x\ny""#);
        let failure = Failure { expected: false, ..failure };
        assert_eq!(failure.to_string(), r#"a: matches, and must not: "x\ny""#);
    }
}
