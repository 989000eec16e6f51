//! The state file as a list of lines that can be changed one by one. Lines and keys that nobody here knows
//! stay as they are, so that a person may write into the file, too.

/// A state file's text, taken apart.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct State {
    lines: Vec<Line>,
}

/// One line: words that say what it is about, then what is said about it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Line {
    head: String,
    pairs: Vec<(String, String)>,
}

/// Lines that consist of a head and pairs. All others are kept as they are.
const THINGS: [&str; 5] = ["gpu", "mig", "link", "proc", "event"];

/// The words of a line. A part in double quotes belongs to one word, which keeps its quotes.
pub(super) fn words(text: &str) -> Vec<&str> {
    let mut quoted = false;
    text.split(|letter: char| {
        quoted ^= letter == '"';
        !quoted && letter.is_whitespace()
    })
    .filter(|word| !word.is_empty())
    .collect()
}

/// `key=value` or `key="value with spaces"`.
pub(super) fn pair(word: &str) -> Option<(&str, &str)> {
    let (key, value) = word.split_once('=')?;
    let bare = value.strip_prefix('"').and_then(|rest| rest.strip_suffix('"'));
    Some((key, bare.unwrap_or(value)))
}

// === impl State ===

impl State {
    /// Reads a text. There is no text that cannot be read.
    pub(super) fn parse(text: &str) -> Self {
        Self { lines: text.lines().map(Line::parse).collect() }
    }

    /// The text for the file.
    pub(super) fn text(&self) -> String {
        self.lines.iter().flat_map(|line| [line.text(), "\n".to_owned()]).collect()
    }

    pub(super) fn lines(&self) -> impl Iterator<Item = &Line> {
        self.lines.iter()
    }

    pub(super) fn lines_mut(&mut self) -> impl Iterator<Item = &mut Line> {
        self.lines.iter_mut()
    }

    /// The first line with this head.
    pub(super) fn line(&self, head: &str) -> Option<&Line> {
        self.lines.iter().find(|line| line.head == head)
    }

    /// The first line with this head, to be changed.
    pub(super) fn line_mut(&mut self, head: &str) -> Option<&mut Line> {
        self.lines.iter_mut().find(|line| line.head == head)
    }

    pub(super) fn push(&mut self, line: Line) {
        self.lines.push(line);
    }

    /// A line without pairs, unless it is there.
    pub(super) fn mark(&mut self, head: &str) {
        if self.line(head).is_none() {
            self.push(Line::new(head));
        }
    }

    /// Takes out what matches; says how many lines that were.
    pub(super) fn remove(&mut self, gone: impl Fn(&Line) -> bool) -> usize {
        let before = self.lines.len();
        self.lines.retain(|line| !gone(line));
        before - self.lines.len()
    }

    /// How many GPUs there are lines for.
    pub(super) fn cards(&self) -> usize {
        self.lines.iter().filter(|line| line.kind() == "gpu").count()
    }
}

// === impl Line ===

impl Line {
    /// A line without pairs yet.
    pub(super) fn new(head: impl Into<String>) -> Self {
        Self { head: head.into(), pairs: Vec::new() }
    }

    fn parse(text: &str) -> Self {
        let words = words(text);
        if !words.first().is_some_and(|first| THINGS.contains(first)) {
            return Self::new(text);
        }
        let mut line = Self::default();
        for word in words {
            match pair(word) {
                Some((key, value)) => line.pairs.push((key.to_owned(), value.to_owned())),
                None if line.head.is_empty() => line.head.push_str(word),
                None => line.head.extend([" ", word]),
            }
        }
        line
    }

    fn text(&self) -> String {
        let mut text = self.head.clone();
        for (key, value) in &self.pairs {
            let quote = if value.contains(char::is_whitespace) { "\"" } else { "" };
            text.extend([" ", key, "=", quote, value, quote]);
        }
        text
    }

    /// Its first word.
    pub(super) fn kind(&self) -> &str {
        self.head.split_whitespace().next().unwrap_or_default()
    }

    /// All words before the pairs, or the whole line where it has none.
    pub(super) fn head(&self) -> &str {
        &self.head
    }

    /// The number behind the first word: the GPU's, or an event's own.
    pub(super) fn index(&self) -> Option<u64> {
        self.head.split_whitespace().nth(1)?.parse().ok()
    }

    /// Whether it is about this GPU, events left aside.
    pub(super) fn is_about(&self, gpu: usize) -> bool {
        let of_gpu = ["gpu", "mig", "link", "proc", "lost", "no_processes"];
        of_gpu.contains(&self.kind()) && self.index() == Some(gpu as u64)
    }

    pub(super) fn get(&self, key: &str) -> Option<&str> {
        self.pairs.iter().find(|(name, _)| name == key).map(|(_, value)| value.as_str())
    }

    pub(super) fn number(&self, key: &str) -> Option<u64> {
        self.get(key)?.parse().ok()
    }

    /// Sets one value, in its place if the key is there.
    pub(super) fn set(&mut self, key: &str, value: impl ToString) {
        let value = value.to_string();
        match self.pairs.iter_mut().find(|(name, _)| name == key) {
            Some((_, old)) => *old = value,
            None => self.pairs.push((key.to_owned(), value)),
        }
    }

    /// Sets a value only where there is one already.
    pub(super) fn set_if_there(&mut self, key: &str, value: impl ToString) {
        if self.get(key).is_some() {
            self.set(key, value);
        }
    }

    /// Whether there was something to take out.
    pub(super) fn unset(&mut self, key: &str) -> bool {
        let before = self.pairs.len();
        self.pairs.retain(|(name, _)| name != key);
        self.pairs.len() < before
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_a_person_wrote_survives_a_change() {
        let text = "# mine\n\ndriver=580.65.06\ngpu 0 uuid=a name=\"NVIDIA H200\" new_key=7\n\
            return nvmlDeviceGetTemperature@0=3\nsomething else = odd\n";
        let mut state = State::parse(text);
        assert_eq!(state.text(), text);
        state.line_mut("gpu 0").unwrap().set("temp", 80);
        state.line_mut("gpu 0").unwrap().set("uuid", "b c");
        let changed = text.replace("uuid=a", "uuid=\"b c\"").replace("_key=7", "_key=7 temp=80");
        assert_eq!(state.text(), changed);
        assert!(state.line_mut("gpu 0").unwrap().unset("temp"));
        assert!(!state.line_mut("gpu 0").unwrap().unset("temp"));
    }

    #[test]
    fn quotes_hold_words_together() {
        let line = "proc 0 pid=5 name=\"a b = c\"  mem=1";
        assert_eq!(words(line), ["proc", "0", "pid=5", "name=\"a b = c\"", "mem=1"]);
        assert_eq!(State::parse(line).line("proc 0").unwrap().get("name"), Some("a b = c"));
    }
}
