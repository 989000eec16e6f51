//! One chat template, compiled once, rendered as transformers renders it.

use super::{
    CountError,
    jinja::{self, Limits, Memory, Program, Rendered, Stop, Value},
    memo::{Key, key_of},
};
use std::sync::{Arc, OnceLock};

/// Instructions one rendering may take. A message costs a template about a hundred, so this is some
/// ten thousand messages and well under a second; a template that loops for ever ends here.
pub(super) const FUEL: u64 = 4_000_000;

/// Bytes one rendering may produce. More could not be counted in reasonable time either.
pub(super) const TEXT_BYTES_MAX: usize = 16 << 20;

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
    program: Program,
    source: String,
    clock: Clock,
    key: Key,
    remembers: bool,
}

impl Template {
    /// Compiles a template; the error is a sentence.
    pub(super) fn compile(source: &str, clock: &Clock) -> Result<Self, String> {
        // jinja2 reads every kind of line end as a newline.
        let source = source.replace("\r\n", "\n").replace('\r', "\n");
        let key = key_of(source.as_bytes());
        let program = jinja::parse(&source)?;
        Ok(Self { program, source, clock: clock.clone(), key, remembers: true })
    }

    /// Whether turns of its loops may be remembered.
    pub(super) const fn remembers(&self) -> bool {
        self.remembers
    }

    /// Renders every conversation as a whole from now on.
    pub(super) const fn remember_nothing(&mut self) {
        self.remembers = false;
    }

    /// The template's text, with newlines made equal.
    pub(super) fn source(&self) -> &str {
        &self.source
    }

    /// Renders with these variables.
    pub(super) fn render(&self, variables: Value) -> Result<String, CountError> {
        let now = || self.clock.now();
        let limits = Limits { fuel: FUEL, now: &now };
        let rendered = jinja::render(&self.program, &variables, &limits, None);
        rendered.map(|rendered| rendered.text).map_err(render_error)
    }

    /// Renders with these variables and a memory of earlier turns; `key` tells what else there is to them.
    pub(super) fn render_with(
        &self,
        variables: &Value,
        key: Key,
        memory: &mut dyn Memory,
        fuel: u64,
    ) -> Result<Rendered, CountError> {
        let now = || self.clock.now();
        let limits = Limits { fuel, now: &now };
        // Borrowed anew, for as short as the clock is.
        let memory: &mut dyn Memory = memory;
        let memory = Some((self.key ^ key, memory));
        jinja::render(&self.program, variables, &limits, memory).map_err(render_error)
    }
}

/// Tells the template's own refusals from limits and from faults.
fn render_error(stop: Stop) -> CountError {
    match stop {
        Stop::Raised(text) => CountError::Template(text),
        Stop::Fuel => CountError::TooCostly("the chat template takes too many steps".into()),
        Stop::TooLong => CountError::TooCostly("the rendered conversation is too long".into()),
        Stop::Failed(told) => CountError::Render(told),
        Stop::Break | Stop::Continue => CountError::Render("break outside of a loop".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tokens::python::from_json;
    use serde_json::json;

    fn render(source: &str) -> Result<String, CountError> {
        let template = Template::compile(source, &Clock::default()).unwrap();
        template.render(from_json(&json!({"schema": {"items": "of the key"}})))
    }

    #[test]
    fn generation_blocks_render_as_their_content_and_keep_their_whitespace_control() {
        let source = "a\n  {%- generation -%}\n  b {% set x = 1 %}{%- endgeneration %}\nc{{ x }}";
        assert_eq!(render(source).unwrap(), "ab c");
        let untouched =
            "{# {% generation %} #}{% raw %}{% generation %}{% endraw %}{{ '{% generation %}' }}";
        assert_eq!(render(untouched).unwrap(), "{% generation %}{% generation %}");
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
    fn a_macros_defaults_see_its_parameters_and_not_what_they_hide() {
        let source = "{% macro m(a, b=x, x=23) %}{{ a }}|{{ b }}|{{ x }}{% endmacro %}{% set x = 42 %}{{ m(1) }} {{ m(1, x=7) }}";
        assert_eq!(render(source).unwrap(), "1||23 1|7|7");
    }

    #[test]
    fn templates_without_end_are_stopped() {
        let endless =
            "{% for a in range(99999) %}{% for b in range(99999) %}x{% endfor %}{% endfor %}";
        assert!(matches!(render(endless), Err(CountError::TooCostly(_))));
        let huge = "{% for a in range(99999) %}{{ 'x' * 100000 }}{% endfor %}";
        assert!(matches!(render(huge), Err(CountError::TooCostly(_))));
    }

    /// Each of these ran for minutes or took gigabytes: there is no loop in them, or a short one.
    #[test]
    fn texts_and_lists_that_double_come_to_an_end() {
        let doubling = |step: &str| {
            format!(
                "{{% set ns = namespace(s='aaaaaaaaaa', l=[1], t=[1]) %}}{{% for i in range(60) %}}{step}{{% endfor %}}{{{{ ns.s }}}}"
            )
        };
        for source in [
            doubling("{% set ns.s = ns.s + ns.s %}"),
            doubling("{% set ns.s = [ns.s, ns.s] | join %}"),
            doubling("{% set ns.s = ''.join([ns.s, ns.s]) %}"),
            doubling("{% set ns.s = '%s%s' | format(ns.s, ns.s) %}"),
            doubling("{% set ns.s = ns.s | replace('a', 'aa') %}"),
            doubling("{% set ns.l = ns.l + ns.l %}"),
            doubling("{% set ns.l = [ns.l, ns.l] %}") + "{{ ns.l | tojson }}",
            doubling("{% set ns.l = [ns.l, ns.l] %}") + "{{ ns.l }}",
            doubling("{% set ns.l = [ns.l, ns.l] %}{% set ns.t = [ns.t, ns.t] %}")
                + "{{ ns.l == ns.t }}{{ 1 }}",
        ] {
            let ended = render(&source);
            assert!(matches!(ended, Err(CountError::TooCostly(_))), "{source}: {ended:?}");
        }
    }

    #[test]
    fn nesting_ends_in_an_error_and_not_on_the_stacks_end() {
        let brackets = format!("{{{{ {}1{} }}}}", "(".repeat(5000), ")".repeat(5000));
        let nots = format!("{{{{ {} 1 }}}}", "not ".repeat(5000));
        let blocks = "{% if 1 %}".repeat(5000) + &"{% endif %}".repeat(5000);
        // Long chains are deep trees.
        let sum = format!("{{{{ 1{} }}}}", " + 1".repeat(5000));
        let path = format!("{{{{ x{} }}}}", ".x".repeat(5000));
        let filters = format!("{{{{ 'a'{} }}}}", "|upper".repeat(5000));
        let choices = format!("{{{{ 1{} }}}}", " if 1 else 1".repeat(5000));
        let elses = "{% if 0 %}".to_owned() + &"{% elif 0 %}".repeat(5000) + "{% endif %}";
        assert!(Template::compile(&elses, &Clock::default()).is_ok());
        for source in [brackets, nots, blocks, sum, path, filters, choices] {
            let refused = Template::compile(&source, &Clock::default());
            assert!(refused.is_err_and(|told| told.contains("nested too deeply")));
        }
        let failing = [
            "{% macro m(n) %}{{ m(n + 1) }}{% endmacro %}{{ m(0) }}".to_owned(),
            "{% macro m() %}{% if 1 %}{% for x in [1] %}{{ [m()] }}{% endfor %}{% endif %}{% endmacro %}{{ m() }}".to_owned(),
            "{% set ns = namespace(x=[]) %}{% for i in range(9999) %}{% set ns.x = [ns.x] %}{% endfor %}".to_owned(),
            "{% for x in [1] recursive %}{{ loop([1]) }}{% endfor %}".to_owned(),
        ];
        for source in failing {
            let found = render(&source);
            assert!(matches!(found, Err(CountError::Render(_))), "{source:.80}: {found:?}");
        }
    }

    #[test]
    fn values_that_grow_are_stopped() {
        let growing = [
            "{% set ns = namespace(x='x') %}{% for i in range(99) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
            "{% set ns = namespace(x=[1]) %}{% for i in range(99) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
            "{{ 'x' * 999999999999 }}",
            "{{ [1] * 999999999 }}",
            "{{ '%999999999d' % 1 }}",
            "{{ '{:999999999}'.format(1) }}",
            "{{ 'x'.ljust(999999999) }}",
            "{% set x = 'x' * 9999999 %}{% for i in range(99999) %}{% set y = x|upper %}{% endfor %}",
            "{% set x = [1] * 99999 %}{% for i in range(99999) %}{% set y = x|list == x|list %}{% endfor %}",
            "{% macro m() %}{% endmacro %}{% for i in range(99999) %}{% for j in range(99999) %}{{ m() }}{% endfor %}{% endfor %}",
            "{% for i in range(99999) %}{% for j in range(99999) %}{% set n = namespace(a=1) %}{% endfor %}{% endfor %}",
            "{{ (range(99999)|list)|unique|list|length }}",
        ];
        for source in growing {
            let found = render(source);
            assert!(
                matches!(found, Err(CountError::TooCostly(_) | CountError::Render(_))),
                "{source}: {found:?}"
            );
        }
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
        assert_eq!(template.render(from_json(&json!({}))).unwrap(), "26 Jul 2024");
    }
}
