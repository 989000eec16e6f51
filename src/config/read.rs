//! `Section`: reads one table, key by key, and notes everything that is wrong with it.
//!
//! Every getter returns a usable value whatever it finds, so that reading goes on to the next fault.
//! A key that nobody asked for by the time the section is dropped is reported as unknown.

use super::{
    problem::{Report, Spot, join},
    source::{Table, Value, Written},
};
use crate::units::{Bytes, Tokens};
use std::{fmt::Display, net::SocketAddr, ops::RangeInclusive, time::Duration};

/// One table while it is read.
pub(super) struct Section<'a> {
    pub(super) report: &'a Report,
    /// Where it stands: the place of what is missing in it.
    pub(super) at: Spot,
    /// Path as written: `servers[0]`.
    pub(super) path: String,
    /// Path without positions: `servers[]`.
    pattern: String,
    table: Option<&'a Table>,
    asked: Vec<&'static str>,
}

/// Text and where it stands.
pub(super) struct Text<'a> {
    /// The text.
    pub text: &'a str,
    /// Its key's path.
    pub key: String,
    /// Its place.
    pub at: &'a Spot,
}

impl<'a> Section<'a> {
    /// The top of the file.
    pub(super) fn root(name: &Spot, table: &'a Table, report: &'a Report) -> Self {
        let (path, pattern) = (String::new(), String::new());
        Self { report, at: name.clone(), path, pattern, table: Some(table), asked: Vec::new() }
    }

    /// A table inside this one; absent reads as empty.
    pub(super) fn section(&mut self, name: &'static str) -> Section<'a> {
        let mut at = self.at.clone();
        let mut table = None;
        if let Some(written) = self.take(name) {
            at = written.at.clone();
            match &written.value {
                Value::Table(inner) => table = Some(inner),
                other => self.wrong_type(written, name, other, &format!("a section, [{name}]")),
            }
        }
        let (path, pattern) = (join(&self.path, name), join(&self.pattern, name));
        Section { report: self.report, at, path, pattern, table, asked: Vec::new() }
    }

    /// The entries of a list of tables, at most `most` of them.
    pub(super) fn rows(&mut self, name: &'static str, most: usize) -> Vec<Section<'a>> {
        let Some(written) = self.take(name) else { return Vec::new() };
        let Value::List(list) = &written.value else {
            self.wrong_type(
                written,
                name,
                &written.value,
                &format!("entries, each under [[{name}]]"),
            );
            return Vec::new();
        };
        let path = join(&self.path, name);
        if list.len() > most {
            let what = format!("{} entries; at most {most} are allowed", list.len());
            self.report.error(&written.at, &path, what, "remove entries that are no longer used");
        }
        let mut rows = Vec::new();
        for (position, row) in list.iter().take(most).enumerate() {
            let path = format!("{path}[{position}]");
            let Value::Table(table) = &row.value else {
                let what = format!("expected an entry, found {}", row.value.kind());
                self.report.error(
                    &row.at,
                    path,
                    what,
                    format!("write each entry under [[{name}]]"),
                );
                continue;
            };
            rows.push(Section {
                report: self.report,
                at: row.at.clone(),
                path,
                pattern: format!("{}[]", join(&self.pattern, name)),
                table: Some(table),
                asked: Vec::new(),
            });
        }
        rows
    }

    /// The value of a key, whatever it is.
    pub(super) fn take(&mut self, name: &'static str) -> Option<&'a Written> {
        self.asked.push(name);
        self.report.know(&self.pattern, name);
        self.table?.entries.get(name)
    }

    /// Does the table hold this key? Does not count as asking for it.
    pub(super) fn holds(&self, name: &str) -> bool {
        self.table.is_some_and(|table| table.entries.contains_key(name))
    }

    /// The path of a key of this section.
    pub(super) fn key(&self, name: &str) -> String {
        join(&self.path, name)
    }

    /// Where a key stands, or the section if it is absent.
    pub(super) fn spot(&self, name: &str) -> Spot {
        let written = self.table.and_then(|table| table.entries.get(name));
        written.map_or_else(|| self.at.clone(), |written| written.at.clone())
    }

    /// Reports a fault of a key.
    pub(super) fn error(&self, name: &str, what: impl Into<String>, remedy: impl Into<String>) {
        self.report.error(&self.spot(name), self.key(name), what, remedy);
    }

    /// Reports what is odd about a key.
    pub(super) fn warn(&self, name: &str, what: impl Into<String>, remedy: impl Into<String>) {
        self.report.warn(&self.spot(name), self.key(name), what, remedy);
    }

    /// Reports that a key is not there.
    pub(super) fn missing(&self, name: &str, remedy: impl Into<String>) {
        self.report.missing(&self.at, self.key(name), "missing", remedy);
    }

    /// Refuses a key that once looked like a good idea, with its own remedy.
    pub(super) fn refuse(&mut self, name: &'static str, what: &str, remedy: &str) {
        if self.holds(name) {
            self.asked.push(name);
            self.error(name, what, remedy);
        }
    }

    fn wrong_type(&self, written: &Written, name: &str, found: &Value, expected: &str) {
        let what = format!("expected {expected}, found {}", found.kind());
        self.report.error(&written.at, self.key(name), what, format!("write {expected}"));
    }

    fn default(&self, name: &str, written: impl Display) {
        self.report.default_of(&self.pattern, name, written.to_string());
    }

    // === Kinds of values ===

    /// Text, if it is there.
    pub(super) fn text(&mut self, name: &'static str) -> Option<Text<'a>> {
        let written = self.take(name)?;
        match &written.value {
            Value::Text(text) => Some(Text { text, key: self.key(name), at: &written.at }),
            other => {
                self.wrong_type(written, name, other, "text in double quotes");
                None
            }
        }
    }

    /// A list of texts; absent reads as empty.
    pub(super) fn texts(&mut self, name: &'static str, most: usize) -> Vec<Text<'a>> {
        self.default(name, "[]");
        let Some(written) = self.take(name) else { return Vec::new() };
        let Value::List(list) = &written.value else {
            self.wrong_type(written, name, &written.value, "a list of texts");
            return Vec::new();
        };
        if list.len() > most {
            self.error(
                name,
                format!("{} entries; at most {most} are allowed", list.len()),
                "shorten the list",
            );
        }
        let mut texts = Vec::new();
        for (position, item) in list.iter().take(most).enumerate() {
            let key = format!("{}[{position}]", self.key(name));
            match &item.value {
                Value::Text(text) => texts.push(Text { text, key, at: &item.at }),
                other => {
                    let what = format!("expected text in double quotes, found {}", other.kind());
                    self.report.error(&item.at, key, what, "write text in double quotes");
                }
            }
        }
        texts
    }

    /// `true`, `false`, or nothing at all.
    pub(super) fn optional_flag(&mut self, name: &'static str) -> Option<bool> {
        let written = self.take(name)?;
        match &written.value {
            Value::Flag(flag) => Some(*flag),
            other => {
                self.wrong_type(written, name, other, "true or false");
                None
            }
        }
    }

    /// `true` or `false`.
    pub(super) fn flag(&mut self, name: &'static str, default: bool) -> bool {
        self.default(name, default);
        self.optional_flag(name).unwrap_or(default)
    }

    /// A whole number in a range, if it is there.
    pub(super) fn optional_number(
        &mut self,
        name: &'static str,
        range: RangeInclusive<u64>,
    ) -> Option<u64> {
        let written = self.take(name)?;
        let Value::Integer(number) = &written.value else {
            self.wrong_type(written, name, &written.value, "a whole number");
            return None;
        };
        match u64::try_from(*number).ok().filter(|number| range.contains(number)) {
            Some(number) => Some(number),
            None => {
                let (least, most) = (range.start(), range.end());
                let what = format!("{number} is out of range");
                self.error(name, what, format!("choose a number from {least} to {most}"));
                None
            }
        }
    }

    /// A whole number in a range.
    pub(super) fn number<T>(
        &mut self,
        name: &'static str,
        default: T,
        range: RangeInclusive<u64>,
    ) -> T
    where
        T: TryFrom<u64> + Display,
    {
        self.default(name, &default);
        let number = self.optional_number(name, range);
        number.and_then(|number| T::try_from(number).ok()).unwrap_or(default)
    }

    /// Tokens.
    pub(super) fn tokens(
        &mut self,
        name: &'static str,
        default: Tokens,
        range: RangeInclusive<u64>,
    ) -> Tokens {
        Tokens(self.number(name, default.get(), range))
    }

    /// Bytes, written in mebibytes.
    pub(super) fn mebibytes(
        &mut self,
        name: &'static str,
        default: Bytes,
        range: RangeInclusive<u64>,
    ) -> Bytes {
        Bytes::mib(self.number(name, default.get() >> 20, range))
    }

    /// A time, written in seconds, with a fraction where wanted.
    pub(super) fn seconds(
        &mut self,
        name: &'static str,
        default: Duration,
        range: RangeInclusive<f64>,
    ) -> Duration {
        let wanted = "a number of seconds, without a unit";
        let seconds = self.fraction(name, default.as_secs_f64(), range, wanted, " s");
        seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok()).unwrap_or(default)
    }

    /// A number with a fraction where wanted.
    pub(super) fn decimal(
        &mut self,
        name: &'static str,
        default: f64,
        range: RangeInclusive<f64>,
    ) -> f64 {
        self.fraction(name, default, range, "a number", "").unwrap_or(default)
    }

    /// A number in a range, if it is there. `wanted` says what it is, `unit` stands behind a wrong one.
    fn fraction(
        &mut self,
        name: &'static str,
        default: f64,
        range: RangeInclusive<f64>,
        wanted: &str,
        unit: &str,
    ) -> Option<f64> {
        self.default(name, default);
        let written = self.take(name)?;
        let number = match &written.value {
            Value::Integer(number) => *number as f64,
            Value::Float(number) => *number,
            other => {
                self.wrong_type(written, name, other, wanted);
                return None;
            }
        };
        // Not-a-number lies in no range.
        if range.contains(&number) {
            return Some(number);
        }
        let (least, most) = (range.start(), range.end());
        let noun = wanted.split(',').next().unwrap_or(wanted);
        let what = format!("{number}{unit} is out of range");
        self.error(name, what, format!("choose {noun} from {least} to {most}"));
        None
    }

    /// One of a list of words.
    pub(super) fn choice<T: Copy + PartialEq>(
        &mut self,
        name: &'static str,
        default: T,
        options: &[(&'static str, T)],
    ) -> T {
        if let Some((word, _)) = options.iter().find(|(_, option)| *option == default) {
            self.default(name, format!("\"{word}\""));
        }
        self.optional_choice(name, options).unwrap_or(default)
    }

    /// One of a list of words, if it is there.
    pub(super) fn optional_choice<T: Copy>(
        &mut self,
        name: &'static str,
        options: &[(&'static str, T)],
    ) -> Option<T> {
        let Text { text, .. } = self.text(name)?;
        if let Some((_, option)) = options.iter().find(|(word, _)| *word == text) {
            return Some(*option);
        }
        let words = options.iter().map(|(word, _)| *word);
        let remedy = match super::problem::nearest(text, words.clone()) {
            Some(near) => format!("write \"{near}\""),
            None => {
                let all: Vec<String> = words.map(|word| format!("\"{word}\"")).collect();
                format!("use one of {}", all.join(", "))
            }
        };
        self.error(name, format!("unknown value \"{text}\""), remedy);
        None
    }

    /// An address with a port.
    pub(super) fn address(&mut self, name: &'static str, default: SocketAddr) -> SocketAddr {
        self.default(name, format!("\"{default}\""));
        let Some(Text { text, .. }) = self.text(name) else { return default };
        text.parse().unwrap_or_else(|_| {
            let what = format!("\"{text}\" is not an IP address with a port");
            self.error(
                name,
                what,
                format!("write it like \"{default}\" or \"[::1]:{}\"", default.port()),
            );
            default
        })
    }

    /// Text that always has a value.
    pub(super) fn text_or(&mut self, name: &'static str, default: &'static str) -> &'a str {
        self.default(name, format!("\"{default}\""));
        self.text(name).map_or(default, |found| found.text)
    }
}

impl Drop for Section<'_> {
    fn drop(&mut self) {
        let Some(table) = self.table else { return };
        for (name, written) in &table.entries {
            if !self.asked.contains(&name.as_str()) {
                let key = self.key(name);
                self.report.stranger(&written.at, key, &self.pattern, name, &self.asked);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::source;

    fn problems(text: &str, read: impl FnOnce(&mut Section<'_>)) -> Vec<String> {
        let report = Report::default();
        let table = source::parse("t", text, &report);
        read(&mut Section::root(&Spot::of_file("t".as_ref()), &table, &report));
        report.finish().problems.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn seconds_take_fractions_and_refuse_units_ranges_and_nonsense() {
        let mut read = Vec::new();
        let told = problems(
            "a = 2\nb = 0.25\nc = \"5s\"\nd = -1\ne = nan\nf = inf\ng = true",
            |section| {
                for name in ["a", "b", "c", "d", "e", "f", "g", "h"] {
                    read.push(
                        section.seconds(name, Duration::from_secs(7), 0.1..=60.0).as_millis(),
                    );
                }
            },
        );
        assert_eq!(read, [2000, 250, 7000, 7000, 7000, 7000, 7000, 7000]);
        let lines: Vec<&str> = told.iter().map(|line| line.get(..5).unwrap()).collect();
        assert_eq!(lines, ["t:3: ", "t:4: ", "t:5: ", "t:6: ", "t:7: "], "{told:#?}");
    }

    #[test]
    fn numbers_stay_in_range_and_are_whole() {
        let mut read = Vec::new();
        let told = problems("a = 4\nb = 0\nc = 1.0\nd = 0x10\ne = 99", |section| {
            for name in ["a", "b", "c", "d", "e", "f"] {
                read.push(section.number::<u32>(name, 3, 1..=16));
            }
        });
        assert_eq!(read, [4, 3, 3, 16, 3, 3]);
        assert_eq!(told.len(), 3, "{told:#?}");
    }

    #[test]
    fn a_choice_suggests_the_word_that_was_meant() {
        let told = problems("a = \"txt\"\nb = \"xml\"", |section| {
            for name in ["a", "b"] {
                assert_eq!(section.choice(name, 1, &[("text", 1), ("json", 2)]), 1);
            }
        });
        assert_eq!(
            told,
            [
                "t:1: a: unknown value \"txt\" — write \"text\"",
                "t:2: b: unknown value \"xml\" — use one of \"text\", \"json\"",
            ]
        );
    }

    #[test]
    fn a_key_in_the_wrong_section_is_told_where_it_belongs() {
        let told = problems("depth = 1\n[b]\ncolour = 1", |section| {
            section.section("a").flag("depth", true);
            section.section("b").flag("c", true);
        });
        assert_eq!(
            told,
            [
                "t:1: depth: unknown key — move it to the section [a]",
                "t:3: b.colour: unknown key — remove it, or use one of: c",
            ]
        );
    }
}
