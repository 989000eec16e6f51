//! What can be said to a simulated node, and how it is read. Nothing is changed here.

use super::{
    LIBRARY,
    cards::CardName,
    keys,
    state::{pair, words},
};
use clap::ValueEnum;
use std::fmt;

/// Why a line was refused. Nothing was changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Wrong(String);

/// `key=value`, checked.
pub(super) type Pairs = Vec<(String, String)>;

/// One line, understood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Command {
    Set { gpu: usize, pairs: Pairs },
    Unset { gpu: usize, keys: Vec<String> },
    Proc { gpu: usize, pid: u32, pairs: Pairs },
    End { gpu: usize, pid: u32 },
    Link { gpu: usize, link: u64, pairs: Pairs },
    Event { gpu: Option<usize>, kind: String, pairs: Pairs },
    Lose { gpu: usize },
    Find { gpu: usize },
    Events { lost: bool },
    Order { verb: &'static str, call: String, value: String },
    Release,
    Driver { mark: Option<&'static str> },
    Cards { count: usize, card: Option<CardName> },
    Mig { gpu: usize, parts: u64 },
    Reset { gpu: usize },
    Show,
    Help,
    Play { script: String },
}

/// The most cards of one node.
pub(super) const CARDS_MAX: usize = 64;

/// Text for `help`.
pub(super) const HELP: &str = "\
set N KEY=VALUE ...           change readings of GPU N: set 0 util=90 temp=80 mem_used=12GiB
unset N KEY ...               GPU N does not have these readings
proc N pid=P KEY=VALUE ...    a process on GPU N, or a change to it: proc 0 pid=123 mem=2GiB name=python3
end N pid=P                   that process ends, and its memory is free
link N I KEY=VALUE ...        change NVLink I of GPU N: link 0 3 active=0 crc_errors=12
xid N NUMBER                  the driver reports an Xid about GPU N
event N|none TYPE [data=D]    another event: sbe, dbe, pstate, clock, mig, poison, unavailable, recovery ...
lose N, find N                GPU N falls off the bus, and comes back
lose events, find events      waiting for events fails, and works again
hang CALL[@N] TIME            calls do not return for so long: hang nvmlDeviceGetPowerUsage@0 30s, hang * 5s
slow CALL[@N] TIME            calls take so much longer
fail CALL[@N] CODE            calls answer with an NVML error: fail nvmlDeviceGetTemperature 999
release                       ends all hang, slow and fail
unload, mismatch, load        the driver is gone, is of another version, is back
cards COUNT [CARD]            so many GPUs; new ones are like GPU 0, or h200, a100, l4, t4, p40
mig N on PARTS, mig N off     divides GPU N into 1 to 7 MIG devices, or makes it whole
reset N                       GPU N as after a reset: no processes, counters back, found again
play FILE                     plays a script: lines of SECONDS COMMAND, each so long after the one before
show                          the state file
help                          this
The keys are explained in docs/simulated-gpus.md.
";

/// Microseconds in the units of a time.
const TIMES: [(&str, f64); 3] = [("us", 0.001), ("ms", 1.0), ("s", 1000.0)];

/// The longest hang, in milliseconds: a day.
const TIME_MAX_MS: f64 = 86_400_000.0;

pub(super) fn wrong(what: impl fmt::Display) -> Wrong {
    Wrong(what.to_string())
}

// === impl Command ===

impl Command {
    /// Understands one line.
    pub(super) fn parse(line: &str) -> Result<Self, Wrong> {
        if line.chars().any(char::is_control) {
            return Err(wrong("a command is one line of plain text"));
        }
        let words = words(line);
        let Some((&verb, rest)) = words.split_first() else {
            return Err(wrong("no command; try help"));
        };
        match (verb, rest) {
            ("set", [gpu, changes @ ..]) => {
                Ok(Self::Set { gpu: index(gpu)?, pairs: pairs(changes, &keys::GPU)? })
            }
            ("unset", [gpu, keys @ ..]) if !keys.is_empty() => Ok(Self::Unset {
                gpu: index(gpu)?,
                keys: keys.iter().map(ToString::to_string).collect(),
            }),
            ("proc", [gpu, changes @ ..]) => {
                let (pid, pairs) = process(changes)?;
                Ok(Self::Proc { gpu: index(gpu)?, pid, pairs })
            }
            ("end", [gpu, pid @ ..]) => Ok(Self::End { gpu: index(gpu)?, pid: process(pid)?.0 }),
            ("link", [gpu, link, changes @ ..]) => {
                let link = number(link, "a link", 17)?;
                Ok(Self::Link { gpu: index(gpu)?, link, pairs: pairs(changes, &keys::LINK)? })
            }
            ("xid", [gpu, xid]) => {
                let xid = number(xid, "an Xid", u64::from(u32::MAX))?;
                let pairs = vec![("data".to_owned(), xid.to_string())];
                Ok(Self::Event { gpu: Some(index(gpu)?), kind: "xid".to_owned(), pairs })
            }
            ("event", [gpu, kind, more @ ..]) => {
                let gpu = if *gpu == "none" { None } else { Some(index(gpu)?) };
                let pairs = if more.is_empty() { Vec::new() } else { pairs(more, &keys::EVENT)? };
                Ok(Self::Event { gpu, kind: event(kind)?, pairs })
            }
            ("lose", ["events"]) => Ok(Self::Events { lost: true }),
            ("find", ["events"]) => Ok(Self::Events { lost: false }),
            ("lose", [gpu]) => Ok(Self::Lose { gpu: index(gpu)? }),
            ("find", [gpu]) => Ok(Self::Find { gpu: index(gpu)? }),
            ("hang", [call, time]) => order("hang", call, &duration(time)?),
            ("slow", [call, time]) => order("slow", call, &duration(time)?),
            ("fail", [call, code]) => {
                order("return", call, &number(code, "an error code", 999)?.to_string())
            }
            ("release", []) => Ok(Self::Release),
            ("unload", []) => Ok(Self::Driver { mark: Some("unloaded") }),
            ("mismatch", []) => Ok(Self::Driver { mark: Some("mismatch") }),
            ("load", []) => Ok(Self::Driver { mark: None }),
            ("cards", [count]) => Ok(Self::Cards { count: cards(count)?, card: None }),
            ("cards", [count, card]) => {
                let card = CardName::from_str(card, true).map_err(|_| {
                    wrong(format_args!("no card {card}: there are h200, a100, l4, t4, p40"))
                })?;
                Ok(Self::Cards { count: cards(count)?, card: Some(card) })
            }
            ("mig", [gpu, "off"]) => Ok(Self::Mig { gpu: index(gpu)?, parts: 0 }),
            ("mig", [gpu, "on", parts]) => match number(parts, "a number of parts", 7)? {
                0 => Err(wrong("1 to 7 parts, or off")),
                parts => Ok(Self::Mig { gpu: index(gpu)?, parts }),
            },
            ("reset", [gpu]) => Ok(Self::Reset { gpu: index(gpu)? }),
            ("show", []) => Ok(Self::Show),
            ("help", []) => Ok(Self::Help),
            ("play", [script]) => Ok(Self::Play { script: (*script).to_owned() }),
            _ => {
                let usage = HELP.lines().find(|line| line.split([' ', ',']).next() == Some(verb));
                Err(match usage {
                    Some(usage) => wrong(format_args!("not so: {usage}")),
                    None => wrong(format_args!("no command {verb}; try help")),
                })
            }
        }
    }
}

fn number(text: &str, what: &str, most: u64) -> Result<u64, Wrong> {
    let number = text.parse().ok().filter(|number| *number <= most);
    number.ok_or_else(|| wrong(format_args!("{text} is not {what} (0 to {most})")))
}

fn index(text: &str) -> Result<usize, Wrong> {
    number(text, "a GPU", CARDS_MAX as u64 - 1).map(|index| index as usize)
}

fn cards(text: &str) -> Result<usize, Wrong> {
    number(text, "a number of GPUs", CARDS_MAX as u64).map(|count| count as usize)
}

/// Checks `key=value` words against the keys of a line.
fn pairs(words: &[&str], keys: &keys::Keys) -> Result<Pairs, Wrong> {
    if words.is_empty() {
        return Err(wrong("say what: KEY=VALUE"));
    }
    words.iter().map(|word| checked(word, keys)).collect()
}

fn checked(word: &str, keys: &keys::Keys) -> Result<(String, String), Wrong> {
    let (key, value) = pair(word).ok_or_else(|| wrong(format_args!("{word} is not KEY=VALUE")))?;
    if value.contains('"') || value.is_empty() {
        return Err(wrong(format_args!("{key} has no usable value")));
    }
    if keys.texts.contains(&key) {
        return Ok((key.to_owned(), value.to_owned()));
    }
    if !keys.numbers.contains(&key) {
        let known = [keys.texts, keys.numbers].concat().join(" ");
        return Err(wrong(format_args!("no key {key}: there are {known}")));
    }
    let number = amount(value).ok_or_else(|| {
        wrong(format_args!("{key}={value} is no number (12, 0x1f, 2KiB, 2MiB or 2GiB)"))
    })?;
    Ok((key.to_owned(), number))
}

/// A number as the file has it. Sizes become bytes.
fn amount(text: &str) -> Option<String> {
    for (unit, bytes) in [("KiB", 1024.0), ("MiB", 1_048_576.0), ("GiB", 1_073_741_824.0)] {
        if let Some(size) = text.strip_suffix(unit) {
            let size: f64 = size.trim_end().parse().ok()?;
            let bytes = size * bytes;
            return (0.0..1e18).contains(&bytes).then(|| format!("{bytes:.0}"));
        }
    }
    match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16).ok().map(|_| text.to_owned()),
        None => text.parse::<u64>().ok().map(|number| number.to_string()),
    }
}

/// The pid, and what else is said of a process.
fn process(words: &[&str]) -> Result<(u32, Pairs), Wrong> {
    let mut pairs = pairs(words, &keys::PROC)?;
    let at = pairs.iter().position(|(key, _)| key == "pid");
    let at = at.ok_or_else(|| wrong("say which process: pid=NUMBER"))?;
    let pid = pairs.remove(at).1.parse().map_err(|_| wrong("that pid is too large"))?;
    Ok((pid, pairs))
}

fn event(kind: &str) -> Result<String, Wrong> {
    let bits = kind.strip_prefix("other:0x").map(|bits| u64::from_str_radix(bits, 16));
    if keys::EVENTS.contains(&kind) || matches!(bits, Some(Ok(_))) {
        return Ok(kind.to_owned());
    }
    let known = keys::EVENTS.join(" ");
    Err(wrong(format_args!("no event {kind}: there are {known} other:0xBITS")))
}

/// A time as the file has it, in milliseconds.
fn duration(text: &str) -> Result<String, Wrong> {
    let split = text.find(|letter: char| letter.is_ascii_alphabetic()).unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let time = TIMES.iter().find(|(name, _)| *name == unit).and_then(|(_, ms)| {
        let time = number.parse::<f64>().ok()? * ms;
        (0.0..=TIME_MAX_MS).contains(&time).then(|| format!("{time}ms"))
    });
    time.ok_or_else(|| wrong(format_args!("{text} is no time: 30s, 500ms or 20us, up to a day")))
}

/// An order about a call that the library has.
fn order(verb: &'static str, call: &str, value: &str) -> Result<Command, Wrong> {
    let (name, gpu) = call.split_once('@').map_or((call, None), |(name, gpu)| (name, Some(gpu)));
    if let Some(gpu) = gpu {
        index(gpu)?;
    }
    if name != "*" && !has_call(name) {
        return Err(wrong(format_args!("the library has no call {name}")));
    }
    Ok(Command::Order { verb, call: call.to_owned(), value: value.to_owned() })
}

/// The names of a library's calls stand in it between zeros.
fn has_call(name: &str) -> bool {
    let mut symbol = vec![0];
    symbol.extend(name.bytes());
    symbol.push(0);
    name.starts_with("nvml") && memchr::memmem::find(LIBRARY, &symbol).is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(line: &str) -> String {
        Command::parse(line).unwrap_err().to_string()
    }

    #[test]
    fn sizes_times_and_hexadecimal_numbers_are_read() {
        let pairs = |list: &[(&str, &str)]| -> Pairs {
            list.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
        };
        assert_eq!(
            Command::parse("set 3 mem_used=1.5GiB throttle=0x40 name=\"a b\"").unwrap(),
            Command::Set {
                gpu: 3,
                pairs: pairs(&[("mem_used", "1610612736"), ("throttle", "0x40"), ("name", "a b")])
            }
        );
        let order = |call: &str, value: &str| Command::Order {
            verb: "hang",
            call: call.to_owned(),
            value: value.to_owned(),
        };
        assert_eq!(Command::parse("hang * 30s").unwrap(), order("*", "30000ms"));
        let one = Command::parse("hang nvmlDeviceGetName@7 1.5ms").unwrap();
        assert_eq!(one, order("nvmlDeviceGetName@7", "1.5ms"));
    }

    #[test]
    fn what_is_wrong_is_said() {
        assert_eq!(said(""), "no command; try help");
        assert_eq!(said("frobnicate 0"), "no command frobnicate; try help");
        assert!(said("lose").starts_with("not so: lose N, find N"));
        assert!(said("set 0 tmp=1").starts_with("no key tmp: there are uuid "));
        assert!(said("set 0 temp=hot").starts_with("temp=hot is no number"));
        assert_eq!(said("set 64 temp=1"), "64 is not a GPU (0 to 63)");
        assert_eq!(said("proc 0 mem=1"), "say which process: pid=NUMBER");
        assert!(said("event 0 xyz").starts_with("no event xyz: there are sbe "));
        assert!(said("hang nvmlDeviceGetNam 1s").starts_with("the library has no call"));
        assert!(said("hang * 2days").starts_with("2days is no time"));
        assert!(said("mig 0 on 8").starts_with("8 is not a number of parts"));
        assert!(said("cards 2 h300").starts_with("no card h300"));
        assert!(
            said("set 0 name=a\nlost 0").contains("one line"),
            "no second line gets into the file"
        );
        assert!(said("set 0 name=\"a\"b\"").contains("no usable value"));
    }

    #[test]
    fn every_line_of_the_help_names_a_command() {
        for line in HELP.lines().filter(|line| !line.starts_with("The keys")) {
            let verb = line.split([' ', ',']).next().unwrap();
            let refused = Command::parse(&format!("{verb} a b c d")).unwrap_err().to_string();
            assert!(!refused.starts_with("no command"), "{verb}: {refused}");
        }
    }
}
