//! Reads a Prometheus text page: only what the adapters need, and whatever a server makes of it.
//!
//! Nothing is copied: a sample borrows the page. A line that cannot be read is skipped, so one broken
//! metric never hides the others.

use std::{borrow::Cow, str::Lines};

/// One value on a page.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sample<'a> {
    /// Metric name, for example `vllm:num_requests_running`.
    pub name: &'a str,
    /// The text between the braces, empty when there is none.
    labels: &'a str,
    /// The value; never NaN and never infinite.
    pub value: f64,
}

impl<'a> Sample<'a> {
    /// The value of a label, its escapes undone.
    pub fn label(&self, name: &str) -> Option<Cow<'a, str>> {
        Labels(self.labels).find(|(found, _)| *found == name).map(|(_, raw)| unescape(raw))
    }

    /// A label read as a number; `None` also for texts such as `None`.
    pub fn label_number(&self, name: &str) -> Option<f64> {
        self.label(name)?.trim().parse().ok().filter(|number: &f64| number.is_finite())
    }
}

/// The samples of a page, in its order.
pub fn samples(page: &str) -> Samples<'_> {
    Samples(page.lines())
}

/// The first sample with this name.
pub fn first<'a>(page: &'a str, name: &str) -> Option<Sample<'a>> {
    samples(page).find(|sample| sample.name == name)
}

/// The sum over all samples with this name: one server's engines together.
pub fn sum(page: &str, name: &str) -> Option<f64> {
    samples(page)
        .filter(|sample| sample.name == name)
        .map(|sample| sample.value)
        .reduce(|total, value| total + value)
}

/// The mean over all samples with this name: a share, of engines that are equally large.
pub fn mean(page: &str, name: &str) -> Option<f64> {
    let (total, count) = samples(page)
        .filter(|sample| sample.name == name)
        .fold((0.0, 0u32), |(total, count), sample| (total + sample.value, count + 1));
    (count > 0).then(|| total / f64::from(count))
}

/// The iterator behind [`samples`].
#[derive(Clone, Debug)]
pub struct Samples<'a>(Lines<'a>);

impl<'a> Iterator for Samples<'a> {
    type Item = Sample<'a>;

    fn next(&mut self) -> Option<Sample<'a>> {
        self.0.find_map(sample)
    }
}

fn sample(line: &str) -> Option<Sample<'_>> {
    let line = line.trim();
    if line.is_empty() || line.starts_with('#') {
        return None;
    }
    let end = line.find(|c: char| c == '{' || c.is_whitespace())?;
    let (name, rest) = line.split_at_checked(end)?;
    if name.is_empty() {
        return None;
    }
    let rest = rest.trim_start();
    let (labels, rest) = match rest.strip_prefix('{') {
        Some(inside) => split_at_closing(inside, '}')?,
        None => ("", rest),
    };
    // What follows the value is a timestamp or an exemplar: not ours.
    let value: f64 = rest.split_whitespace().next()?.parse().ok()?;
    value.is_finite().then_some(Sample { name, labels, value })
}

/// Splits at the first `closing` that does not stand inside quotes.
fn split_at_closing(text: &str, closing: char) -> Option<(&str, &str)> {
    let (mut quoted, mut escaped) = (false, false);
    for (at, c) in text.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' if quoted => escaped = true,
            '"' => quoted = !quoted,
            _ if c == closing && !quoted => {
                let (before, after) = text.split_at_checked(at)?;
                return Some((before, after.strip_prefix(closing)?));
            }
            _ => {}
        }
    }
    None
}

/// Name and raw value of each label.
struct Labels<'a>(&'a str);

impl<'a> Iterator for Labels<'a> {
    type Item = (&'a str, &'a str);

    fn next(&mut self) -> Option<(&'a str, &'a str)> {
        let (name, rest) = self.0.split_once('=')?;
        let rest = rest.trim_start().strip_prefix('"')?;
        let mut escaped = false;
        let end = rest.char_indices().find(|&(_, c)| {
            let closes = c == '"' && !escaped;
            escaped = c == '\\' && !escaped;
            closes
        })?;
        let (value, rest) = rest.split_at_checked(end.0)?;
        self.0 = rest.strip_prefix('"')?.trim_start().trim_start_matches(',');
        Some((name.trim(), value))
    }
}

fn unescape(raw: &str) -> Cow<'_, str> {
    if !raw.contains('\\') {
        return Cow::Borrowed(raw);
    }
    let mut text = String::with_capacity(raw.len());
    let mut chars = raw.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => match chars.next() {
                Some('n') => text.push('\n'),
                Some(plain @ ('\\' | '"')) => text.push(plain),
                // Not an escape of this format: kept as it stands.
                Some(other) => text.extend(['\\', other]),
                None => text.push('\\'),
            },
            _ => text.push(c),
        }
    }
    Cow::Owned(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PAGE: &str = r#"
# HELP vllm:num_requests_running Requests in the batch.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="m"} 3.0
vllm:num_requests_running{engine="1",model_name="m"} 4.0 1766440000000
  spaced {a="1" , b = "2",}   7e2
bare 12
broken{a="1" 5
broken{a="1"} five
no_value
nothing NaN
huge +Inf
odd{text="a}b\"c\\d\ne,f=\"g\"",next="y"} 1 # {trace="x"} 0.5
"#;

    #[test]
    fn values_and_labels_are_read() {
        let odd = first(PAGE, "odd").unwrap();
        assert_eq!(odd.label("text").unwrap(), "a}b\"c\\d\ne,f=\"g\"");
        assert_eq!(odd.label("next").unwrap(), "y");
        assert_eq!(odd.label("f"), None);
        let spaced = first(PAGE, "spaced").unwrap();
        assert_eq!((spaced.value, spaced.label_number("b")), (700.0, Some(2.0)));
        assert_eq!(first(PAGE, "bare").unwrap().value, 12.0);
    }

    #[test]
    fn engines_are_taken_together() {
        assert_eq!(sum(PAGE, "vllm:num_requests_running"), Some(7.0));
        assert_eq!(mean(PAGE, "vllm:num_requests_running"), Some(3.5));
        assert_eq!(sum(PAGE, "absent"), None);
        assert_eq!(mean(PAGE, "absent"), None);
    }

    #[test]
    fn what_cannot_be_read_is_skipped_alone() {
        let names: Vec<_> = samples(PAGE).map(|sample| sample.name).collect();
        let running = "vllm:num_requests_running";
        assert_eq!(names, [running, running, "spaced", "bare", "odd"]);
    }

    proptest! {
        #[test]
        fn any_text_is_survived(page in "[a-z{}=\",\\\\ 0-9\n#ü]{0,200}") {
            for sample in samples(&page) {
                prop_assert!(sample.value.is_finite());
                let _ = sample.label("a");
            }
        }

        #[test]
        fn any_label_value_comes_back(value in any::<String>()) {
            let escaped =
                value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
            // The format ends a line at a newline only; a bare CR at the end would be cut with it.
            prop_assume!(!value.contains('\r'));
            let page = format!("m{{before=\"1\",a=\"{escaped}\"}} 1\n");
            prop_assert_eq!(first(&page, "m").unwrap().label("a").unwrap(), value);
        }
    }
}
