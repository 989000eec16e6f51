//! Scripts: commands with the time that passes before each.

use super::command::{Command, Wrong, wrong};
use std::{fs, time::Duration};

/// A script that comes with the program.
const FAILING_NODE: (&str, &str) = ("failing-node", include_str!("failing-node.play"));

/// The longest script, in bytes and in steps.
const BYTES_MAX: u64 = 1 << 20;
const STEPS_MAX: usize = 10_000;

/// The longest wait before one step: a day.
const WAIT_MAX_S: f64 = 86_400.0;

/// A script, every line of it understood.
#[derive(Debug)]
pub(super) struct Script {
    pub(super) name: String,
    pub(super) steps: Vec<Step>,
}

/// One line.
#[derive(Debug)]
pub(super) struct Step {
    /// Since the step before.
    pub(super) after: Duration,
    pub(super) command: Command,
    /// As it is written.
    pub(super) text: String,
}

impl Script {
    /// Reads a file, or else the script that comes with the program and has this name.
    pub(super) fn find(name: &str) -> Result<Self, Wrong> {
        match fs::metadata(name) {
            Ok(found) if found.len() > BYTES_MAX => {
                Err(wrong(format_args!("{name} is longer than {BYTES_MAX} bytes")))
            }
            Err(_) if name == FAILING_NODE.0 => Self::parse(name, FAILING_NODE.1),
            _ => match fs::read_to_string(name) {
                Ok(text) => Self::parse(name, &text),
                Err(error) => {
                    let built_in = FAILING_NODE.0;
                    Err(wrong(format_args!(
                        "{name}: {error} (a script that is always there: {built_in})"
                    )))
                }
            },
        }
    }

    /// Lines of `SECONDS COMMAND`. Empty lines and those that begin with `#` say nothing.
    pub(super) fn parse(name: &str, text: &str) -> Result<Self, Wrong> {
        let lines = text.lines().map(str::trim).enumerate();
        let lines = lines.filter(|(_, line)| !line.is_empty() && !line.starts_with('#'));
        let steps = lines.map(|(at, line)| {
            step(line).map_err(|why| wrong(format_args!("{name}, line {}: {why}", at + 1)))
        });
        let steps: Vec<Step> = steps.collect::<Result<_, _>>()?;
        if steps.len() > STEPS_MAX {
            return Err(wrong(format_args!("{name} has more than {STEPS_MAX} steps")));
        }
        Ok(Self { name: name.to_owned(), steps })
    }
}

fn step(line: &str) -> Result<Step, Wrong> {
    let (after, text) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
    let seconds = after.parse().ok().filter(|seconds| (0.0..=WAIT_MAX_S).contains(seconds));
    let seconds = seconds.ok_or_else(|| wrong(format_args!("{after} is no number of seconds")))?;
    let command = Command::parse(text.trim())?;
    if matches!(command, Command::Play { .. }) {
        return Err(wrong("a script plays no other script"));
    }
    Ok(Step { after: Duration::from_secs_f64(seconds), command, text: text.trim().to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_line_is_found_before_anything_is_played() {
        let said = |text: &str| Script::parse("s", text).unwrap_err().to_string();
        assert_eq!(said("0 lose 0\n\n# x\nsoon lose 0"), "s, line 4: soon is no number of seconds");
        assert_eq!(said("1"), "s, line 1: no command; try help");
        assert_eq!(said("-1 show"), "s, line 1: -1 is no number of seconds");
        assert_eq!(said("1 play x"), "s, line 1: a script plays no other script");
    }

    #[test]
    fn the_failing_node_ends_lost() {
        let script = Script::find("failing-node").unwrap();
        let length: Duration = script.steps.iter().map(|step| step.after).sum();
        assert!(length > Duration::from_secs(30) && length < Duration::from_secs(300));
        let texts: Vec<&str> = script.steps.iter().map(|step| step.text.as_str()).collect();
        for wanted in ["xid 0 48", "xid 0 79", "event 0 dbe", "lose 0"] {
            assert!(texts.contains(&wanted), "{wanted}");
        }
    }
}
