//! Which form of message content a template wants: one string, or a list of parts.
//!
//! Model servers decide it from the template before they render; so do we, from the template's tags.

/// What a template's text says about message content.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct ContentHints {
    /// It loops over a message's content, the message being an element of `messages`.
    pub(super) loops: bool,
    /// It speaks of images, audio or video.
    pub(super) media: bool,
    /// It knows the role `developer`.
    pub(super) developer: bool,
}

impl ContentHints {
    /// Reads a template.
    pub(super) fn of(source: &str) -> Self {
        let media = ["image", "audio", "video", "vision"].iter().any(|word| source.contains(word));
        Self { loops: loops_over_content(source), media, developer: source.contains("developer") }
    }
}

/// Whether some `for` tag walks the content of something that another `for` tag took from `messages`.
fn loops_over_content(source: &str) -> bool {
    let mut lists = vec!["messages"];
    let mut messages: Vec<&str> = Vec::new();
    // Assignments may follow one another in any order, so a second reading finds what the first missed.
    for _ in 0..2 {
        for tag in block_tags(source) {
            if let Some((name, value)) = assignment(tag)
                && lists.contains(&core(value))
                && !lists.contains(&name)
            {
                lists.push(name);
            }
            if let Some((name, over)) = for_loop(tag)
                && lists.contains(&core(over))
                && !messages.contains(&name)
            {
                messages.push(name);
            }
        }
    }
    block_tags(source)
        .filter_map(for_loop)
        .any(|(_, over)| content_of(core(over)).is_some_and(|of| messages.contains(&of)))
}

/// The insides of all `{% ... %}` tags.
fn block_tags(source: &str) -> impl Iterator<Item = &str> {
    source.split("{%").skip(1).filter_map(|tail| {
        let inside = tail.split("%}").next()?;
        Some(inside.trim_start_matches(['-', '+']).trim_end_matches(['-', '+']).trim())
    })
}

/// `set NAME = VALUE`
fn assignment(tag: &str) -> Option<(&str, &str)> {
    let (name, value) = tag.strip_prefix("set ")?.split_once('=')?;
    Some((name.trim(), value.trim()))
}

/// `for NAME in VALUE`, without a condition.
fn for_loop(tag: &str) -> Option<(&str, &str)> {
    let (name, over) = tag.strip_prefix("for ")?.split_once(" in ")?;
    Some((name.trim(), over.split(" if ").next()?.trim()))
}

/// An expression without filters, tests and slices behind it.
fn core(expression: &str) -> &str {
    let mut rest = expression.split('|').next().unwrap_or_default();
    rest = rest.split(" is ").next().unwrap_or_default().trim();
    while let Some((before, inside)) = rest.strip_suffix(']').and_then(|rest| rest.rsplit_once('['))
    {
        if !inside.contains(':') {
            break;
        }
        rest = before.trim();
    }
    rest
}

/// `NAME` of `NAME['content']` or `NAME.content`.
fn content_of(expression: &str) -> Option<&str> {
    let ends = [".content", "['content']", "[\"content\"]"];
    ends.iter().find_map(|end| expression.strip_suffix(end)).map(str::trim)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loops_over_parts_are_found_however_they_are_written() {
        let looping = [
            "{% for m in messages %}{% for part in m['content'] %}{% endfor %}{% endfor %}",
            "{%- set rest = messages[1:] -%}{%- for m in rest | list -%}{%- for p in m.content if p.text -%}",
            "{% for message in messages[1:][::-1] %}{% for p in message[\"content\"] | reverse %}",
        ];
        for source in looping {
            assert!(ContentHints::of(source).loops, "{source}");
        }
        let plain = [
            "{% for m in messages %}{{ m['content'] }}{% endfor %}",
            "{% for m in messages %}{% for call in m.tool_calls %}{% endfor %}{% endfor %}",
            "{% for m in others %}{% for p in m.content %}{% endfor %}{% endfor %}",
        ];
        for source in plain {
            assert!(!ContentHints::of(source).loops, "{source}");
        }
    }
}
