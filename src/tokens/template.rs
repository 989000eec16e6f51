//! One chat template, compiled once, rendered as transformers renders it.

use super::{
    CountError, jinja,
    memo::{self, Key, Plan},
};
use minijinja::{AutoEscape, Environment, Error, ErrorKind, Value, syntax::SyntaxConfig};
use std::{
    error::Error as _,
    io,
    sync::{Arc, OnceLock},
};

/// Instructions one rendering may take. A message costs a template about a hundred, so this is some
/// ten thousand messages and well under a second; a template that loops for ever ends here.
pub(super) const FUEL: u64 = 4_000_000;

/// Bytes one rendering may produce. More could not be counted in reasonable time either.
pub(super) const TEXT_BYTES_MAX: usize = 16 << 20;

/// The name under which the one template of an environment is known.
const NAME: &str = "chat";

/// The name of what is left of it without its loops.
const FRAME: &str = "frame";

/// A clock that can be stopped, for templates that write today's date.
#[derive(Clone, Debug, Default)]
pub(super) struct Clock(Arc<OnceLock<jiff::Zoned>>);

impl Clock {
    /// Stops the clock. The first stop holds.
    pub(super) fn stop(&self, at: jiff::Zoned) {
        let _ = self.0.set(at);
    }

    fn now(&self) -> jiff::Zoned {
        // Local time, as the model servers on this host see it.
        self.0.get().cloned().unwrap_or_else(jiff::Zoned::now)
    }
}

/// A compiled template.
#[derive(Debug)]
pub(super) struct Template {
    environment: Environment<'static>,
    source: String,
    key: Key,
    plan: Option<Arc<Plan>>,
}

/// The name of the template that a loop's body became.
pub(super) fn turn_name(number: usize) -> String {
    format!("turn {number}")
}

/// The name of the template that sets what a loop's body would set.
pub(super) fn setter_name(number: usize, at: usize) -> String {
    format!("set {number} {at}")
}

impl Template {
    /// Compiles a template; the error is the engine's text.
    pub(super) fn compile(source: &str, clock: &Clock) -> Result<Self, String> {
        let told = |error: Error| format!("{error:#}");
        // jinja2 reads every kind of line end as a newline.
        let source = source.replace("\r\n", "\n").replace('\r', "\n");
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        let syntax = syntax.map_err(told)?;
        environment.set_syntax(syntax.clone());
        environment.set_auto_escape_callback(|_| AutoEscape::None);
        environment.set_fuel(Some(FUEL));
        jinja::install(&mut environment);
        let clock = clock.clone();
        environment.add_function("strftime_now", move |format: &str| -> Result<String, Error> {
            jiff::fmt::strtime::format(format, &clock.now()).map_err(|error| {
                Error::new(ErrorKind::InvalidOperation, "bad date format").with_source(error)
            })
        });
        let text = without_generation_tags(&source);
        let plan = memo::plan_of(&text, syntax);
        environment.add_template_owned(NAME, text).map_err(told)?;
        let plan = plan.filter(|plan| add_parts(&mut environment, plan).is_ok()).map(Arc::new);
        Ok(Self { environment, key: memo::key_of(source.as_bytes()), source, plan })
    }

    /// How it is taken apart, if it is.
    pub(super) const fn plan(&self) -> Option<&Arc<Plan>> {
        self.plan.as_ref()
    }

    /// Renders every conversation as a whole from now on.
    pub(super) fn forget_plan(&mut self) {
        self.plan = None;
    }

    /// Tells this template from others, in keys of remembered counts.
    pub(super) const fn key(&self) -> Key {
        self.key
    }

    /// Renders the frame of a template that is taken apart.
    pub(super) fn render_frame(&self, variables: Value) -> Result<String, CountError> {
        self.render_named(FRAME, variables)
    }

    /// The template's text, with newlines made equal.
    pub(super) fn source(&self) -> &str {
        &self.source
    }

    /// Renders with these variables.
    pub(super) fn render(&self, variables: Value) -> Result<String, CountError> {
        self.render_named(NAME, variables)
    }

    fn render_named(&self, name: &str, variables: Value) -> Result<String, CountError> {
        let mut text = Bounded(Vec::new());
        let template = self.environment.get_template(name).map_err(render_error)?;
        template.render_captured_to(variables, &mut text).map_err(render_error)?;
        String::from_utf8(text.0).map_err(|error| CountError::Render(error.to_string()))
    }
}

/// Adds the parts of a template that was taken apart.
fn add_parts(environment: &mut Environment<'static>, plan: &Plan) -> Result<(), Error> {
    environment.add_template_owned(FRAME, plan.frame.clone())?;
    for (number, one) in plan.loops.iter().enumerate() {
        environment.add_template_owned(turn_name(number), one.body.clone())?;
        for (at, (_, attribute)) in one.reads.writes.iter().enumerate() {
            let setter = format!("{{% set namespace_.{attribute} = value_ %}}");
            environment.add_template_owned(setter_name(number, at), setter)?;
        }
    }
    Ok(())
}

/// Tells the template's own refusals from limits and from faults.
fn render_error(error: Error) -> CountError {
    let mut cause = error.source();
    while let Some(inner) = cause {
        if let Some(jinja::Raised(text)) = inner.downcast_ref() {
            return CountError::Template(text.clone());
        }
        cause = inner.source();
    }
    match error.kind() {
        ErrorKind::OutOfFuel => {
            CountError::TooCostly("the chat template takes too many steps".into())
        }
        ErrorKind::WriteFailure => {
            CountError::TooCostly("the rendered conversation is too long".into())
        }
        _ => CountError::Render(format!("{error:#}")),
    }
}

/// Bytes up to [`TEXT_BYTES_MAX`].
struct Bounded(Vec<u8>);

impl io::Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.0.len() + bytes.len() > TEXT_BYTES_MAX {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

// === generation blocks ===

/// Turns `{% generation %}` blocks, which mark what an assistant wrote and render as their content, into
/// `{% with %}` blocks, which have the same scope. Only the word changes, so that whitespace control and
/// the trimming of blocks work on the new tag as on the old. Comments and raw blocks stay as they are.
fn without_generation_tags(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut from = 0;
    each_tag(source, |start, tag| {
        let new = match block_word(tag) {
            Some("generation") => tag.replacen("generation", "with", 1),
            Some("endgeneration") => tag.replacen("endgeneration", "endwith", 1),
            _ => return,
        };
        out.push_str(source.get(from..start).unwrap_or_default());
        out.push_str(&new);
        from = start + tag.len();
    });
    out.push_str(source.get(from..).unwrap_or_default());
    out
}

/// Calls `see` with each `{% ... %}` and where it begins, but for what stands in comments and raw blocks.
pub(super) fn each_tag<'a>(source: &'a str, mut see: impl FnMut(usize, &'a str)) {
    let mut at = 0;
    let mut raw = false;
    while let Some(found) = source.get(at..).and_then(|rest| rest.find('{')) {
        at += found;
        let tag = source.get(at..).unwrap_or_default();
        let length = if raw && block_word(tag) != Some("endraw") {
            1
        } else if tag.starts_with("{#") {
            tag.find("#}").map_or(tag.len(), |end| end + 2)
        } else if tag.starts_with("{%") || tag.starts_with("{{") {
            tag_length(tag)
        } else {
            1
        };
        let tag = tag.get(..length).unwrap_or_default();
        let word = block_word(tag);
        raw = (raw && word != Some("endraw")) || word == Some("raw");
        if word.is_some() {
            see(at, tag);
        }
        at += length;
    }
}

/// The first word of a `{% ... %}` tag.
pub(super) fn block_word(tag: &str) -> Option<&str> {
    let inside = tag.strip_prefix("{%")?;
    let inside = inside.strip_prefix(['-', '+']).unwrap_or(inside).trim_start();
    inside.split(|c: char| !c.is_alphanumeric() && c != '_').next()
}

/// Bytes of a tag from its opening to its closing delimiter, which may also stand inside a string.
fn tag_length(tag: &str) -> usize {
    let close = if tag.starts_with("{%") { "%}" } else { "}}" };
    let mut quote = None;
    let mut escaped = false;
    for (at, c) in tag.char_indices().skip(2) {
        match quote {
            Some(_) if escaped => escaped = false,
            Some(_) if c == '\\' => escaped = true,
            Some(open) if c == open => quote = None,
            Some(_) => {}
            None if c == '"' || c == '\'' => quote = Some(c),
            None if tag.get(at..).is_some_and(|tail| tail.starts_with(close)) => return at + 2,
            None => {}
        }
    }
    tag.len()
}

#[cfg(test)]
mod tests {
    use super::*;
    use minijinja::context;

    fn render(source: &str) -> Result<String, CountError> {
        let template = Template::compile(source, &Clock::default()).unwrap();
        template
            .render(context! { schema => Value::from_pairs([("items", "of the key")]), none => () })
    }

    #[test]
    fn generation_blocks_render_as_their_content_and_keep_their_whitespace_control() {
        let source = "a\n  {%- generation -%}\n  b {% set x = 1 %}{%- endgeneration %}\nc{{ x }}";
        assert_eq!(render(source).unwrap(), "ab c");
        assert_eq!(
            without_generation_tags(
                "{# {% generation %} #}{% raw %}{% generation %}{% endraw %}{{ '{% generation %}' }}"
            ),
            "{# {% generation %} #}{% raw %}{% generation %}{% endraw %}{{ '{% generation %}' }}"
        );
    }

    #[test]
    fn what_a_template_raises_is_told_from_what_breaks() {
        let raised = render(
            "{% macro m() %}{{ raise_exception('roles must alternate') }}{% endmacro %}{{ m() }}",
        );
        assert!(
            matches!(raised, Err(CountError::Template(text)) if text == "roles must alternate")
        );
        assert!(matches!(render("{{ 1 / 0 }}{{ nothing.at.all }}"), Err(CountError::Render(_))));
    }

    #[test]
    fn templates_without_end_are_stopped() {
        let endless =
            "{% for a in range(99999) %}{% for b in range(99999) %}x{% endfor %}{% endfor %}";
        assert!(matches!(render(endless), Err(CountError::TooCostly(_))));
        let huge = "{% for a in range(99999) %}{{ 'x' * 100000 }}{% endfor %}";
        assert!(matches!(render(huge), Err(CountError::TooCostly(_))));
    }

    #[test]
    fn python_and_jinja2_rules_hold() {
        let cases = [
            ("{{ true }} {{ none }} {{ [1.0, 'a'] }}", "True None [1.0, 'a']"),
            ("{{ ' a\u{1f}' | trim }}|{{ '\u{1f}b '.strip() }}", "a|b"),
            (
                "{{ none is iterable }} {{ 'x' is iterable }} {{ {} is sequence }}",
                "False True True",
            ),
            (
                "{% for key, value in schema.items() %}{{ key }}={{ value }}{% endfor %}",
                "items=of the key",
            ),
            ("{{ 'a\nb\n' | indent(2) }}|", "a\n  b\n|"),
            ("{{ [1, 2, 3][::-1] }} {{ range(3, 0, -1) | list }}", "[3, 2, 1] [3, 2, 1]"),
            ("{{ 'a b c'.split(' ', 1) }} {{ 'a  b '.split() }}", "['a', 'b c'] ['a', 'b']"),
            (
                "{{ 'aaa' | replace('a', 'b', 2) }} {{ 'abc'.index('c') }} {{ '\"<' | e }}",
                "bba 2 &#34;&lt;",
            ),
            ("{{ 'ab'.center(5, '*') }} {{ 'a=b=c'.partition('=') }}", "**ab* ('a', '=', 'b=c')"),
            (
                "{{ dict([('a', 1)], b=true) }} {{ true is number }} {{ {}.copy() }}",
                "{'a': 1, 'b': True} True {}",
            ),
            ("{{ nothing | length }}{{ nothing }}{{ none.x }}", "0"),
            ("{{ [1e-6, 2] | tojson(separators=(',', ':')) }}", "[1e-06,2]"),
            (
                "{% set ns = namespace(n=0) %}{% for i in [1, 2] %}{% set ns.n = ns.n + i %}{% endfor %}{{ ns.n }}",
                "3",
            ),
            (
                "{% for i in range(9) %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}",
                "01",
            ),
        ];
        for (source, told) in cases {
            assert_eq!(render(source).unwrap(), told, "{source}");
        }
    }

    #[test]
    fn the_clock_can_be_stopped() {
        let clock = Clock::default();
        let template = Template::compile("{{ strftime_now('%d %b %Y') }}", &clock).unwrap();
        clock.stop("2024-07-26T12:00:00[UTC]".parse().unwrap());
        assert_eq!(template.render(Value::from(())).unwrap(), "26 Jul 2024");
    }
}
