//! Hundreds of small templates against what jinja2 made of them in Python.
//!
//! `scripts/make_snippet_fixtures.py` makes `tests/fixtures/snippets.jsonl`. A snippet with a `gap` is one
//! that we refuse although Python renders it: never a text that differs.

use crate::tokens::{
    CountError,
    python::from_json,
    template::{Clock, Template},
};
use proptest::prelude::*;
use serde_json::Value as Json;

fn render(source: &str, variables: &Json) -> Result<String, CountError> {
    let clock = Clock::default();
    clock.stop("2024-07-06T15:04:05[UTC]".parse().unwrap());
    let template = Template::compile(source, &clock).map_err(CountError::Render)?;
    template.render(from_json(variables))
}

/// What is wrong, if anything is.
fn complaint(case: &Json, variables: &Json) -> Option<String> {
    let source = case["source"].as_str().unwrap();
    let found = render(source, variables);
    let right = match (&found, case["gap"].as_str()) {
        (found, Some(_)) => matches!(found, Err(CountError::Render(_))),
        (Ok(text), None) => case["text"].as_str() == Some(text),
        (Err(CountError::Template(told)), None) => case["raises"].as_str() == Some(told),
        (Err(_), None) => case["error"].is_string(),
    };
    (!right).then(|| format!("{source:?}\n  expected {case}\n  found    {found:?}"))
}

/// Snippets made by `scripts/random_snippets.py`, if a file of them is named.
#[test]
fn random_snippets_render_as_in_python_or_fail() {
    let Some(path) = std::env::var_os("BERTHD_SNIPPET_FILE") else {
        println!("SKIPPED: random snippets are not checked; set BERTHD_SNIPPET_FILE to check them");
        return;
    };
    let file = std::fs::read_to_string(path).unwrap();
    let mut lines = file.lines().map(|line| serde_json::from_str::<Json>(line).unwrap());
    let variables = lines.next().unwrap()["variables"].clone();
    let (mut all, mut refused, mut wrong) = (0, Vec::new(), Vec::new());
    for case in lines {
        all += 1;
        let source = case["source"].as_str().unwrap();
        match (render(source, &variables), case["text"].as_str()) {
            (Ok(text), Some(expected)) if text == expected => {}
            (Err(CountError::Render(told)), Some(_)) => refused.push(format!("{told}: {source}")),
            (Err(_), None) => {}
            (found, _) => {
                wrong.push(format!("{source:?}\n  expected {case}\n  found    {found:?}"))
            }
        }
    }
    println!("{all} snippets, {} refused though Python renders them", refused.len());
    refused.iter().for_each(|told| println!("  {told}"));
    assert!(wrong.is_empty(), "{} differ:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn snippets_render_as_in_python() {
    let file = include_str!("../../../tests/fixtures/snippets.jsonl");
    let mut lines = file.lines().map(|line| serde_json::from_str::<Json>(line).unwrap());
    let variables = lines.next().unwrap()["variables"].clone();
    let cases: Vec<Json> = lines.collect();
    let wrong: Vec<String> = cases.iter().filter_map(|case| complaint(case, &variables)).collect();
    assert!(cases.len() > 300, "only {} snippets", cases.len());
    assert!(wrong.is_empty(), "{} of {} differ:\n{}", wrong.len(), cases.len(), wrong.join("\n"));
}

/// Pieces that templates are made of, and numbers at the edges.
const PIECES: [&str; 78] = [
    "{{",
    "}}",
    "{%",
    "%}",
    "{#",
    "#}",
    "-",
    "+",
    " ",
    "\n",
    "(",
    ")",
    "[",
    "]",
    "{",
    "}",
    ".",
    ",",
    ":",
    "|",
    "~",
    "*",
    "**",
    "/",
    "//",
    "%",
    "=",
    "==",
    "<",
    "\"",
    "'",
    "\\",
    "x",
    "loop",
    "items",
    "name",
    "users",
    "is",
    "in",
    "not",
    "and",
    "or",
    "if",
    "else",
    "elif",
    "endif",
    "for",
    "endfor",
    "set",
    "endset",
    "macro",
    "m()",
    "endmacro",
    "call",
    "endcall",
    "filter",
    "endfilter",
    "with",
    "endwith",
    "raw",
    "endraw",
    "generation",
    "break",
    "range(9)",
    "namespace(a=1)",
    "0",
    "1",
    "-1",
    "1.5",
    "170141183460469231731687303715884105727",
    "1e308",
    "\u{1f}",
    "é",
    "tojson",
    "format",
    "%*.*d",
    "{:>{}}",
    "slice(2)",
];

proptest! {
    /// Whatever a template says, it is rendered or refused.
    #[test]
    fn no_template_ends_the_process(picks in prop::collection::vec(0..PIECES.len(), 0..24), inside: bool) {
        let soup: Vec<&str> = picks.into_iter().map(|pick| PIECES[pick]).collect();
        let source = if inside { format!("{{{{ {} }}}}", soup.join(" ")) } else { soup.concat() };
        let variables = serde_json::json!({"items": [3, 1], "name": "n", "users": [{"a": 1}], "x": 1e300});
        let _ = render(&source, &variables);
    }

    /// Numbers at the edges go through all operators, slices and formats.
    #[test]
    fn no_number_ends_the_process(one: i64, two: i64, three in -3i64..4, pick in 0..12usize) {
        let wide = "170141183460469231731687303715884105727";
        let source = [
            format!("{{{{ {one} * {two} // {three} % {wide} - {wide} }}}}"),
            format!("{{{{ range(3)[{one}:{two}:{three}]|list }}}}"),
            format!("{{{{ 'abc'[{one}:{two}:{three}] }}}}"),
            format!("{{{{ [1, 2][::{wide}] }}}}{{{{ range(3)[::{wide}]|list }}}}{{{{ range(3)[{wide}] }}}}"),
            format!("{{{{ (-{wide} - 1) // -1 }}}}"),
            format!("{{{{ (-{wide} - 1)|abs }}}}"),
            format!("{{{{ -(-{wide} - 1) }}}}"),
            format!("{{{{ 'x'[-{wide} - 1] }}}}{{{{ 'x'.find('x', -{wide} - 1) }}}}"),
            format!("{{{{ '%*d' % ({one}, 1) }}}}"),
            format!("{{{{ {one} ** {two} }}}}{{{{ {one}|round({three}) }}}}{{{{ 1.5|round({three}) }}}}"),
            format!("{{{{ range({one}, {two}, {three})|length }}}}"),
            format!("{{{{ 'x'.center({one}) }}}}{{{{ 'x' * {two} }}}}{{{{ 'x'|indent({one}) }}}}{{{{ [1]|batch({two})|list }}}}"),
        ];
        let _ = render(&source[pick], &serde_json::json!({}));
    }
}
