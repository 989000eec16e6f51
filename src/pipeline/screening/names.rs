//! Names in policies that nothing answers to: a threshold or an action for a label that nobody gives would be
//! silently without effect.

use super::{
    Screening,
    strand::{DEGENERATE, LEAK},
};
use crate::{
    config::Task,
    screen::{
        CONTROL, HIDDEN, INJECTION, PERSONAL, SECRET,
        output::{degenerate, leak::How},
        secrets::Kind,
    },
};
use std::collections::BTreeSet;

/// Names that a line tells.
const SHOWN_MAX: usize = 12;

/// Heads of our model for answers; it need not be loaded for its names to be known.
const HEADS: [&str; 4] = ["toxic", "unsafe", "refusal", "lowq"];

impl Screening {
    /// What is wrong with names in policies, a line for each. Nothing where a model is not here to say what its
    /// labels are.
    pub fn unknown_names(&self) -> Vec<String> {
        if !self.models.absent.is_empty() || !self.models.loaded() {
            return Vec::new();
        }
        let rules = self.inspector.rules();
        let brought = |task: Task| {
            let own = self.models.brought.iter().filter(move |judge| judge.task == task);
            own.flat_map(|judge| judge.model.plan().labels.iter().map(String::as_str))
        };
        let secrets = || Kind::ALL.iter().map(|kind| kind.as_str());
        let input: BTreeSet<&str> = [INJECTION, CONTROL, HIDDEN, SECRET, PERSONAL]
            .into_iter()
            .chain(rules.labels())
            .chain(brought(Task::Input))
            .collect();
        let mut input_kinds = input.clone();
        input_kinds.extend(secrets());
        input_kinds.extend(rules.iter().map(|rule| &*rule.id));
        input_kinds.extend(["model", "token", "role"]);
        input_kinds.extend(["tags", "bidi", "invisible", "homoglyphs", "marks"]);
        let output: BTreeSet<&str> = [LEAK, SECRET, PERSONAL, DEGENERATE]
            .into_iter()
            .chain(HEADS)
            .chain(brought(Task::Output))
            .collect();
        let mut output_kinds = output.clone();
        output_kinds.extend(secrets());
        output_kinds.extend(How::ALL.map(How::as_str));
        output_kinds.extend(degenerate::Kind::ALL.map(degenerate::Kind::as_str));
        let answering = self.models.of_answers().map(|judge| judge.name.as_str());
        output_kinds.extend(answering.chain(["model"]));

        let told = |known: &BTreeSet<&str>| {
            let some: Vec<&str> = known.iter().copied().take(SHOWN_MAX).collect();
            some.join(", ") + if known.len() > SHOWN_MAX { ", ..." } else { "" }
        };
        // Policies begin as the usual one: what is wrong there is told once.
        let (mut seen, mut lines) = (BTreeSet::new(), Vec::new());
        for policy in [&self.settings.usual].into_iter().chain(&self.settings.policies) {
            let (one, other) = (&policy.input, &policy.output);
            for (table, names, known) in [
                ("input.thresholds", one.thresholds.keys().collect::<Vec<_>>(), &input),
                ("input.actions", one.actions.keys().collect(), &input_kinds),
                ("output.thresholds", other.thresholds.keys().collect(), &output),
                ("output.actions", other.actions.keys().collect(), &output_kinds),
            ] {
                for name in names.into_iter().filter(|name| !known.contains(name.as_str())) {
                    if seen.insert((table, name)) {
                        let (policy, known) = (&policy.name, told(known));
                        lines.push(format!("screening policy `{policy}`: {table} names `{name}`, which nothing here finds; it knows {known}"));
                    }
                }
            }
        }
        lines
    }
}
