//! Counting turn by turn, against counting whole.

use super::*;
use crate::api::json;
use serde_json::json as value;
use std::path::Path;

const FAMILIES: [&str; 15] = [
    "chatml", "header", "inst", "brackets", "turn", "think", "merge", "query", "bars", "trail",
    "channel", "pieces", "records", "clauses", "sections",
];

fn load(family: &str) -> ModelFiles {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/counts").join(family);
    ModelFiles::load(&folder).unwrap()
}

fn both(
    files: &ModelFiles,
    body: &Value,
) -> (Result<Vec<u32>, CountError>, Result<Vec<u32>, CountError>) {
    let profile = Profile::reference();
    let text = body.to_string();
    let fields = json::open(text.as_bytes()).unwrap();
    (
        files.request_ids(&profile, &fields, Allowance::Whole),
        files
            .chat_text(&profile, body.as_object().unwrap())
            .and_then(|text| files.text_ids(&text, false)),
    )
}

#[test]
fn every_family_is_proven() {
    for family in FAMILIES {
        let files = load(family);
        assert!(files.chat.pick(false).unwrap().template.remembers(), "{family}");
    }
}

#[test]
fn a_conversation_that_grew_misses_only_its_new_turn() {
    for family in FAMILIES {
        let files = load(family);
        let mut messages = vec![];
        for number in 0..40 {
            messages.push(value!({"role": "user", "content": format!("Question {number}?")}));
            messages.push(value!({"role": "assistant", "content": format!("Answer {number}.")}));
        }
        messages.push(value!({"role": "user", "content": "And?"}));
        let (quick, whole) = both(&files, &value!({"messages": messages}));
        assert_eq!(quick, whole, "{family}");
        let before = files.cache_use();
        messages.push(value!({"role": "assistant", "content": "More."}));
        messages.push(value!({"role": "user", "content": "Then?"}));
        let (quick, whole) = both(&files, &value!({"messages": messages}));
        assert_eq!(quick, whole, "{family}");
        let missed = files.cache_use().misses - before.misses;
        println!("{family}: {missed} misses");
        assert!(missed <= 12, "{family}: {missed} misses");
    }
}

fn with_template(source: &str) -> ModelFiles {
    let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/counts/chatml");
    let folder = tempfile::tempdir().unwrap();
    for name in ["tokenizer.json", "tokenizer_config.json"] {
        std::fs::copy(from.join(name), folder.path().join(name)).unwrap();
    }
    std::fs::write(folder.path().join("chat_template.jinja"), source).unwrap();
    ModelFiles::load(folder.path()).unwrap()
}

/// Templates that gave another prompt when their turns were remembered, each with a way to notice: what is
/// odd about them shows only with `z`, which no trial at load gives.
#[test]
fn what_a_turn_depends_on_is_part_of_its_key() {
    let says = |text: &str| value!({"role": "user", "content": text});
    let same = value!([says("one"), says("one"), says("one"), says("one"), says("one")]);
    let developer = value!([{"role": "developer", "content": "a", "thinking": null}, says("b")]);
    let cases: [(&str, &str, Value, [Value; 2]); 13] = [
        (
            "an attribute that is set to a missing value",
            "{% set ns=namespace(think=true) %}{% for m in messages %}{% if m.role=='developer' %}{% set ns.think=m.nothing %}{% endif %}{{m.content}}<|im_end|>{% endfor %}{% if ns.think %}think think think{% endif %}",
            developer,
            [value!({}), value!({})],
        ),
        (
            "an item of a list of the body's own",
            "{% for m in messages %}{% if z %}{% set p=['a','bb cc dd','ee ff gg hh jj kk','l','m'] %}{{ p[loop.index0] }}{% endif %}{{ m.content }}<|im_end|>{% endfor %}",
            same.clone(),
            [value!({"z": 1}), value!({"z": 1})],
        ),
        (
            "a character of the message's own",
            "{% for m in messages %}{{ m.content }}{% if z %}{% for c in [m.content] %}{{ c[loop.index0] }}{% endfor %}{% set s = m.content %}{{ s[loop.index0] }}{% endif %}<|im_end|>{% endfor %}",
            value!([says("abcde"), says("abcde"), says("abcde")]),
            [value!({"z": 1}), value!({"z": 1})],
        ),
        (
            "the loop around, in the condition of one inside",
            "{% for m in messages %}{% if z %}{% for p in [1] if loop.first %}first one only {% endfor %}{% endif %}{{ m.content }}<|im_end|>{% endfor %}",
            same.clone(),
            [value!({"z": 1}), value!({"z": 1})],
        ),
        (
            "a variable with a macro's name",
            "{% macro head(x) %}{{x}}{% endmacro %}{% set head = head(z) %}{% for m in messages %}{% if loop.first %}{{head}}{% endif %}{{ m.content }}<|im_end|>{% endfor %}",
            same.clone(),
            [value!({"z": "one"}), value!({"z": "one two three four five six"})],
        ),
        (
            "a macro that is there at times",
            "{% if z %}{% macro f() %}extra words here{% endmacro %}{% endif %}{% for m in messages %}{{ f() if f is defined }}{{ m.content }}<|im_end|>{% endfor %}",
            same.clone(),
            [value!({"z": 1}), value!({})],
        ),
        (
            "a name for one macro or another",
            "{% macro b() %}long words of b here{% endmacro %}{% macro a() %}a{% endmacro %}{% if z %}{% set a = b %}{% endif %}{% for m in messages %}{{ a() }}{{ m.content }}<|im_end|>{% endfor %}",
            same.clone(),
            [value!({}), value!({"z": 1})],
        ),
        (
            "an attribute of what is not there",
            "{% for m in messages %}{{ z.style }}{{ m.content }}<|im_end|>{% endfor %}",
            same.clone(),
            [value!({"z": {}}), value!({})],
        ),
        (
            "a namespace with two names",
            "{% set a=namespace(n=0) %}{% set b=a %}{% for m in messages %}{% set a.n=2 %}{% if loop.index0 > b.n %}more words {% endif %}{% set a.n=0 %}{{ m.content }}<|im_end|>{% endfor %}",
            same.clone(),
            [value!({}), value!({})],
        ),
        (
            "what another turn set, by another name",
            "{% set a=namespace(n=0) %}{% set b=a %}{% for m in messages %}{{ b.n }} {% set a.n = a.n + 100 %}{{ m.content }}<|im_end|>{% endfor %}",
            same.clone(),
            [value!({}), value!({})],
        ),
        (
            "a macro that is defined below",
            "{% for m in messages %}{{ f() if f is defined else z }}{{ m.content }}<|im_end|>{% endfor %}{% macro f() %}f{% endmacro %}",
            same.clone(),
            [value!({"z": "a"}), value!({"z": "a b c d e"})],
        ),
        (
            "a set variable that hides an outer one",
            "{% set x = z %}{% for m in messages %}{{ x }}{% set x = 'inner' %}{{ x }}{{ m.content }}<|im_end|>{% endfor %}",
            same.clone(),
            [value!({"z": "a"}), value!({"z": "a b c d e"})],
        ),
        (
            "two loops over the same messages",
            "{% for m in messages %}{{ m.content }}<|im_end|>{% endfor %}{% for m in messages %}again {{ m.content }} {{ z }}<|im_end|>{% endfor %}",
            same,
            [value!({"z": "a"}), value!({"z": "a b c d e"})],
        ),
    ];
    for (what, source, messages, given) in cases {
        let files = with_template(source);
        for variables in given {
            let body = value!({"messages": messages, "chat_template_kwargs": variables});
            let (quick, whole) = both(&files, &body);
            match (&quick, &whole) {
                (Err(_), Err(_)) => {}
                (quick, whole) => assert_eq!(quick, whole, "{what}"),
            }
        }
    }
}

/// The clock was remembered with the turn that asked it.
#[test]
fn a_clock_by_another_name_is_asked_each_time() {
    let source = "{% set ns = namespace(f=strftime_now) %}{% for m in messages %}{{ ns.f('%Y') }}{{ m.content }}<|im_end|>{% endfor %}";
    let files = with_template(source);
    let fields = r#"{"messages":[{"role":"user","content":"hi"}]}"#;
    let fields = json::open(fields.as_bytes()).unwrap();
    let profile = Profile::reference();
    files.request_ids(&profile, &fields, Allowance::Whole).unwrap();
    let before = files.cache_use().misses;
    files.request_ids(&profile, &fields, Allowance::Whole).unwrap();
    assert!(files.cache_use().misses > before, "the turn is not taken from memory");
}

/// A token that takes white space took none from a part that was encoded alone.
#[test]
fn greedy_tokens_beside_white_space_are_no_place_to_cut() {
    let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/counts/chatml");
    let folder = tempfile::tempdir().unwrap();
    let mut tokenizer: Value =
        serde_json::from_slice(&std::fs::read(from.join("tokenizer.json")).unwrap()).unwrap();
    let added = tokenizer["added_tokens"].as_array_mut().unwrap();
    for (id, content, rstrip) in [(9001, "<r>", true), (9002, "\n\n", false)] {
        added.push(value!({"id": id, "content": content, "special": true, "normalized": false,
            "single_word": false, "lstrip": false, "rstrip": rstrip}));
    }
    std::fs::write(folder.path().join("tokenizer.json"), tokenizer.to_string()).unwrap();
    std::fs::copy(from.join("tokenizer_config.json"), folder.path().join("tokenizer_config.json"))
        .unwrap();
    std::fs::write(
        folder.path().join("chat_template.jinja"),
        "{% for m in messages %}{{ m.content }}<|im_end|>{% endfor %}",
    )
    .unwrap();
    let files = ModelFiles::load(folder.path()).unwrap();
    let body = value!({"messages": [{"role": "user", "content": "<r>\n\nhello"}]});
    let (quick, whole) = both(&files, &body);
    assert_eq!(quick, whole);
}
