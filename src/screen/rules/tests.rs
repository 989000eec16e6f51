//! Reading, finding, and the bounds of both.

use super::*;

fn parse(text: &str) -> Result<Rules, Vec<String>> {
    let told = |problems: Vec<Problem>| problems.iter().map(ToString::to_string).collect();
    Rules::parse(text, Path::new("/nowhere")).map_err(told)
}

/// Ids and texts of the hits.
fn hits<'a>(rules: &Rules, text: &'a str, origin: Origin) -> Vec<(String, &'a str)> {
    let hits = rules.find(text, origin).into_iter();
    hits.map(|hit| (hit.id.to_string(), text.get(hit.span).unwrap())).collect()
}

/// A rule with these keys.
fn rule(id: &str, keys: &str) -> String {
    format!("[[rule]]\nid = \"{id}\"\nlabel = \"test\"\n{keys}\n")
}

#[test]
fn a_rule_is_read_with_all_its_keys() {
    let text = r#"
        [[rule]]
        id = "a.b-c_1"
        label = "leak"
        description = "why"
        origins = ["user", "tool"]
        score = 0.25
        action = "sanitise"
        pattern = 'se[ck]ret'
        patterns = ['x\d{3}yz']
        phrases = ["open it"]
        words = true
        tests = { match = ["sekret", "x123yz", "OPEN  it"], pass = ["sekrets"] }
        [[list]]
        id = "words"
        label = "policy"
        entries = ["one", "two"]
    "#;
    let rules = parse(text).unwrap();
    assert_eq!((rules.len(), rules.is_empty()), (2, false));
    assert_eq!(rules.labels().into_iter().collect::<Vec<_>>(), ["leak", "policy"]);
    assert_eq!(rules.self_test(), []);
    let hit = &rules.find("a sekret", Origin::User)[0];
    assert_eq!((&*hit.id, &*hit.label, hit.rule), ("a.b-c_1", "leak", 0));
    assert_eq!((hit.score, hit.action, hit.span.clone()), (0.25, Some(Action::Sanitise), 2..8));
    let rule = rules.iter().next().unwrap();
    assert_eq!((rule.description.as_str(), rule.words), ("why", true));
    assert_eq!(rule.origins.iter().collect::<Vec<_>>(), [Origin::User, Origin::Tool]);
    let hit = &rules.find("two", Origin::System)[0];
    assert_eq!((&*hit.id, hit.score, hit.action), ("words", 1.0, None));
}

#[test]
fn no_rules_find_nothing() {
    for rules in [Rules::empty(), parse("").unwrap(), parse("# nothing\n").unwrap()] {
        assert!(rules.is_empty());
        assert_eq!(rules.find("anything", Origin::User), []);
        assert_eq!(rules.self_test(), []);
        assert!(rules.labels().is_empty());
    }
}

/// Keys of a rule, and what is told about them.
const PROBLEMS: &[(&str, &[&str])] = &[
    (
        "phrases = [\"ab\"]\nextra = 1",
        &["line 5: r: unknown key `extra` — the keys are: id, label"],
    ),
    (
        "phrases = \"ab\"",
        &["line 4: r: `phrases` is no list", "line 1: r: the rule can match nothing"],
    ),
    ("phrases = [\"ab\", 1]", &["`phrases` has an entry that is no text"]),
    ("phrases = [\"a\"]", &["line 4: r: the phrase \"a\" has 1 bytes"]),
    ("phrases = [\"\\u200b \"]", &["has 0 bytes"]),
    ("pattern = 1", &["`pattern` is no text", "can match nothing"]),
    ("pattern = '('", &["line 4: r: the pattern cannot be read: unclosed group"]),
    ("pattern = 'a(?=b)'", &["cannot look around"]),
    ("pattern = '(x{1000}){1000}'", &["line 4: r: the pattern is too large"]),
    ("pattern = '.*'", &["matches where there is nothing"]),
    ("pattern = 'abc'\nscore = 1.5", &["line 5: r: `score` is no number from 0 to 1"]),
    ("pattern = 'abc'\nscore = nan", &["`score` is no number from 0 to 1"]),
    ("pattern = 'abc'\nscore = \"high\"", &["`score` is no number from 0 to 1"]),
    ("pattern = 'abc'\norigins = []", &["the rule would never apply"]),
    ("pattern = 'abc'\norigins = [\"users\"]", &["line 5: r: `users` is none of `system`, `user`"]),
    ("pattern = 'abc'\naction = \"block\"", &["`block` is none of `flag`, `sanitise`, `refuse`"]),
    ("pattern = 'abc'\nwords = \"yes\"", &["`words` is neither true nor false"]),
    ("pattern = 'abc'\ntests = [\"abc\"]", &["`tests` is no table"]),
    ("pattern = 'abc'\ntests = { hit = [\"abc\"] }", &["unknown key `tests.hit`"]),
    ("pattern = 'abc'\ntests = { match = \"abc\" }", &["`tests` is no list"]),
    (
        "pattern = 'abc'\n[[list]]\nid = \"r\"\nlabel = \"x\"\nentries = [\"ab\"]",
        &["the id is taken on line"],
    ),
    ("pattern = 'abc'\n[[list]]\nid = \"l\"\nlabel = \"x\"", &["l: the list is empty"]),
    ("pattern = 'abc'\n[[list]]\nlabel = \"x\"\nentries = [\"ab\"]", &["list 1: no `id`"]),
    (
        "pattern = 'abc'\n[[list]]\nid = \"a b\"\nlabel = \"x\"\nentries = [\"ab\"]",
        &["`a b` cannot be the id"],
    ),
    (
        "pattern = 'abc'\n[[list]]\nid = \"l\"\nlabel = \"x\"\nfile = \"none\"",
        &["/nowhere/none: cannot be read"],
    ),
    (
        "pattern = 'abc'\n[[lists]]\nid = \"l\"",
        &["unknown key `lists` — rules start with [[rule]]"],
    ),
    ("pattern = 'abc\n", &["line 4: not TOML"]),
];

#[test]
fn problems_are_told_with_rule_line_and_remedy() {
    for (keys, expected) in PROBLEMS {
        let told = parse(&rule("r", keys)).unwrap_err();
        for what in *expected {
            assert!(told.iter().any(|problem| problem.contains(what)), "{keys}: {told:#?}");
        }
        assert!(told.len() <= expected.len(), "{keys}: {told:#?}");
        assert!(told.iter().all(|problem| problem.contains(" — ")), "{keys}: {told:#?}");
    }
}

#[test]
fn all_problems_are_told_at_once_and_in_order() {
    let text = [rule("a", "pattern = '('"), rule("b", "score = 2"), rule("a", "pattern = 'abc'")];
    let told = parse(&text.concat()).unwrap_err();
    let lines: Vec<_> = told.iter().map(|line| line.split(':').next().unwrap()).collect();
    assert_eq!(lines, ["line 4", "line 5", "line 8", "line 9"], "{told:#?}");
}

#[test]
fn a_line_that_is_no_toml_is_told_once() {
    let text = rule("a", "patterns = ['it''s(', 'abc']") + &rule("b", "pattern = '('");
    let told = parse(&text).unwrap_err();
    assert!(
        told.iter().all(|problem| problem.contains("not TOML") || problem.contains("b:")),
        "{told:#?}"
    );
    assert!(told.iter().any(|problem| problem.starts_with("line 8: b:")), "{told:#?}");
}

#[test]
fn origins_decide_whose_texts_a_rule_is_for() {
    let keys = "origins = [\"tool\"]\nphrases = [\"run it\"]\npattern = 'do \\w+ now'";
    let rules = parse(&rule("tools", keys)).unwrap();
    for origin in Origin::ALL {
        let expected = if origin == Origin::Tool { 2 } else { 0 };
        assert_eq!(rules.find("run it, do that now", origin).len(), expected, "{origin}");
    }
}

#[test]
fn phrases_match_in_any_case_script_and_spacing() {
    let cases = [
        ("ignore all", "Please IGNORE\n\t All that", Some("IGNORE\n\t All")),
        ("ignore  all", "ignore all", Some("ignore all")),
        ("ИГНОРИРУЙ ВСЕ", "игнорируй все", Some("игнорируй все")),
        ("straße", "STRAẞE", Some("STRAẞE")),
        ("ignore", "ig\u{200b}nore", Some("ig\u{200b}nore")),
        ("don't stop", "DON\u{2019}T  STOP", Some("DON\u{2019}T  STOP")),
        ("无视指令", "请无视指令!", Some("无视指令")),
        (" padded ", "xpaddedx", Some("padded")),
        ("ignore all", "ignoreall", None),
        ("a.c", "abc", None),
    ];
    for (phrase, text, expected) in cases {
        let rules = parse(&rule("p", &format!("phrases = [\"{phrase}\"]"))).unwrap();
        let found = hits(&rules, text, Origin::User).first().map(|(_, found)| *found);
        assert_eq!(found, expected, "{phrase} in {text}");
    }
}

#[test]
fn whole_words_are_not_parts_of_words() {
    let rules = parse(&rule("w", "words = true\nphrases = [\"cat\"]\npattern = 'dogs?'")).unwrap();
    let found = hits(&rules, "cat cats concat _cat Cat. dog dogma hotdogs ärcat", Origin::User);
    let texts: Vec<_> = found.iter().map(|(_, text)| *text).collect();
    assert_eq!(texts, ["cat", "Cat", "dog"]);
}

#[test]
fn phrases_within_phrases_and_shared_ones_all_hit() {
    let text = rule("a", "phrases = [\"new york\"]")
        + &rule("b", "phrases = [\"york city\", \"york\"]")
        + &rule("c", "phrases = [\"york\"]\npattern = '(?i)york\\s+city'");
    let found = hits(&parse(&text).unwrap(), "New York City", Origin::User);
    let found: Vec<_> = found.iter().map(|(id, text)| (id.as_str(), *text)).collect();
    let expected =
        [("a", "New York"), ("b", "York"), ("b", "York City"), ("c", "York"), ("c", "York City")];
    let mut sorted = found.clone();
    sorted.sort_unstable();
    assert_eq!(sorted, expected);
}

#[test]
fn lists_are_read_from_files_beside_the_rules() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("bad.txt"), "# bad\nfoo bar\nbaz\n").unwrap();
    let text = "[[list]]\nid = \"l\"\nlabel = \"x\"\nfile = \"bad.txt\"\nentries = [\"qux\"]\nwords = true";
    let rules = Rules::parse(text, folder.path()).unwrap();
    let found = hits(&rules, "Foo  Bar, bazaar, BAZ, qux # bad", Origin::Tool);
    let texts: Vec<_> = found.iter().map(|(_, text)| *text).collect();
    assert_eq!(texts, ["Foo  Bar", "BAZ", "qux"]);
}

#[test]
fn failed_tests_are_told() {
    let keys = "pattern = 'abc'\ntests = { match = [\"abc\", \"abd\"], pass = [\"xabc\", \"ab\"] }";
    let rules = parse(&rule("t", keys)).unwrap();
    let failures: Vec<_> = rules.self_test().iter().map(ToString::to_string).collect();
    assert_eq!(failures, ["t: does not match \"abd\"", "t: matches, and must not: \"xabc\""]);
}

#[test]
fn no_rule_hides_behind_others_that_hit_often() {
    let noisy = (0..40).map(|n| rule(&format!("n{n}"), "phrases = [\"la\"]")).collect::<String>();
    let rules =
        parse(&(noisy + &rule("quiet", "phrases = [\"end\"]\npattern = 'fin\\w+'"))).unwrap();
    let text = "la ".repeat(5_000) + "end final";
    let found = rules.find(&text, Origin::User);
    let of = |id| found.iter().filter(|hit| &*hit.id == id).count();
    assert!((20..=64).contains(&of("n0")), "{}", of("n0"));
    assert!(of("n39") > 0);
    assert!(of("quiet") > 0);
    assert!(found.len() <= rules.len() + 1024, "{}", found.len());
    assert!(found.is_sorted_by_key(|hit| (hit.span.start, hit.rule)));
    let one = parse(&rule("one", "phrases = [\"la\"]")).unwrap();
    assert_eq!(one.find(&text, Origin::User).len(), 64);
}

#[test]
fn what_would_cost_too_much_is_refused() {
    let always = |count| {
        let rules =
            (0..count).map(|n| rule(&format!("a{n}"), &format!("pattern = '\\d{{{}}}'", n + 2)));
        parse(&rules.collect::<String>())
    };
    assert!(always(20).is_ok());
    let told = always(65).unwrap_err();
    assert!(told[0].contains("a64: more than 64 patterns have no three letters"), "{told:#?}");
    let nested = |count: usize| {
        let phrases: Vec<_> = (2..count + 2).map(|n| format!("\"{}\"", "a".repeat(n))).collect();
        parse(&rule("nested", &format!("phrases = [{}]", phrases.join(","))))
    };
    assert!(nested(64).is_ok());
    let told = nested(65).unwrap_err();
    assert!(told[0].contains("nested: more than 64 phrases are the end of"), "{told:#?}");
}

/// Numbers that look random and are the same each time.
fn random(seed: &mut u64) -> usize {
    *seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    (*seed >> 33) as usize
}

/// Parts of patterns, and bits of texts that they may match.
const PARTS: &[&str] = &[
    "ab",
    "(?i)k",
    "s+",
    r"\s+",
    "[xy]",
    "(?:ab|cd)",
    "(?i:straße)",
    "c{2,3}",
    ".",
    r"\b",
    "(?:e f)?",
    "(?i)ΣΑΣ",
    "don['’]t",
    "  ",
    r"\d",
];
const BITS: &[&str] = &[
    "ab", "K", "\u{212a}", "s", "ſ", " ", "\n\t", "x", "cd", "STRAẞE", "straße", "ccc", "e f",
    "σας", "’", "don’t", "\u{200b}", "7", "é",
];

#[test]
fn the_prefilter_loses_no_match() {
    let mut seed = 11;
    let (mut matched, mut total) = (0, 0);
    for _ in 0..400 {
        let count = 1 + random(&mut seed) % 4;
        let source: String = (0..count).map(|_| PARTS[random(&mut seed) % PARTS.len()]).collect();
        let Ok(rules) = parse(&rule("r", &format!("pattern = '''{source}'''"))) else { continue };
        let regex = regex::Regex::new(&source).unwrap();
        for _ in 0..40 {
            let count = 1 + random(&mut seed) % 8;
            let text: String = (0..count).map(|_| BITS[random(&mut seed) % BITS.len()]).collect();
            let found: Vec<_> =
                rules.find(&text, Origin::User).into_iter().map(|hit| hit.span).collect();
            let expected: Vec<_> = regex.find_iter(&text).map(|found| found.range()).collect();
            assert_eq!(found, expected, "{source} in {text:?}");
            matched += usize::from(!found.is_empty());
            total += 1;
        }
    }
    assert!(matched > total / 20, "{matched} of {total}: the test tests nothing");
}

#[test]
fn ten_thousand_rules_are_told_apart() {
    let rules = (0..10_000).map(|n| match n % 2 {
        0 => rule(&format!("r{n}"), &format!("phrases = [\"word {n} end\"]")),
        _ => rule(&format!("r{n}"), &format!("pattern = '(?i)word\\s+{n}\\s+end'")),
    });
    let rules = parse(&rules.collect::<String>()).unwrap();
    assert_eq!(rules.len(), 10_000);
    let found = hits(&rules, "a WORD 17 end, a word  4000\nEND.", Origin::User);
    assert_eq!(found, [("r17".into(), "WORD 17 end"), ("r4000".into(), "word  4000\nEND")]);
}
