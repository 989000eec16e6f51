//! Answers that fell apart, with how soon that must be seen, and answers that only look like it.

use super::degenerate::{Degeneration, Facts, Kind, Limits, Watch};
use base64::{Engine, engine::general_purpose::STANDARD};
use proptest::prelude::*;
use std::fmt::Write;

fn watch(text: &str) -> Option<Degeneration> {
    Watch::new(Limits::default()).push(text)
}

/// Numbers that look random, the same every time.
fn dice(seed: u32) -> impl FnMut(usize) -> usize {
    let mut state = seed;
    move |sides| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 16) as usize % sides
    }
}

fn rows(count: usize, mut row: impl FnMut(usize) -> String) -> String {
    (0..count).map(|at| row(at) + "\n").collect()
}

const NAMES: [&str; 12] = [
    "Ada", "Bela", "Chen", "Dora", "Emil", "Fatima", "Goran", "Hana", "Ivo", "Jun", "Kofi", "Lena",
];

/// What people ask for and models write.
fn legitimate() -> Vec<(&'static str, String)> {
    let mut roll = dice(1);
    let mut texts = vec![
        ("times tables", rows(100, |n| format!("{} x {} = {}", n / 10 + 1, n % 10 + 1, (n / 10 + 1) * (n % 10 + 1)))),
        ("counting", (1..1500).map(|n| format!("{n} ")).collect()),
        ("counting in lines", rows(1000, |n| format!("{}.", n + 1))),
        ("numbered names", rows(300, |n| format!("item_{n:03}.txt"))),
        ("chapters", rows(200, |n| format!("Chapter {}", n + 1))),
        ("bottles", rows(99, |n| {
            let n = 99 - n;
            format!("{n} bottles of beer on the wall, {n} bottles of beer.\nTake one down and pass it around, {} bottles of beer on the wall.\n", n - 1)
        })),
        ("csv", rows(300, |n| format!("{n},{},{}.{:02},{}", NAMES[n % 12], n * 7 % 100, n * 13 % 100, n % 3 == 0))),
        ("csv of numbers", rows(400, |n| format!("{},{},{}", n, n * n % 97, n * 31 % 89))),
        ("sql", rows(200, |n| format!("INSERT INTO users (id, name, score) VALUES ({n}, '{}', {});", NAMES[n % 12], n * 37 % 101))),
        ("log", rows(200, |n| format!("2024-05-01 12:{:02}:{:02} INFO request {} served in {} ms", n / 60, n % 60, 1000 + n, n * 17 % 90))),
        ("json objects", format!("[{}]", (0..120).map(|n| format!("{{\"id\": {n}, \"name\": \"{}\", \"active\": {}, \"score\": {}}},\n", NAMES[n % 12], n % 2 == 0, n * n % 50)).collect::<String>())),
        ("json numbers", format!("{:?}", (0..800).map(|n| n * n % 101).collect::<Vec<_>>())),
        ("zeros", format!("[{}0]", "0, ".repeat(500))),
        ("grid of zeros", rows(30, |_| format!("[{}0],", "0, ".repeat(19)))),
        ("identity", rows(24, |n| (0..24).map(|m| if n == m { "1 " } else { "0 " }).collect())),
        ("flags", rows(16, |n| (0..16).map(|m| if (n * m) % 3 == 0 { "true, " } else { "false, " }).collect())),
        ("all false", rows(20, |_| "[false, false, false, false, false, false, false, false],".to_owned())),
        ("table", format!("| Name | Age | City |\n|------|-----|------|\n{}", rows(80, |n| format!("| {} | {} | - |", NAMES[n % 12], 20 + n)))),
        ("table of ticks", rows(40, |n| format!("| feature {} | yes | no | yes | no |", NAMES[n % 12]))),
        ("empty table", rows(60, |_| "|      |      |      |      |".to_owned())),
        ("wide table", rows(20, |n| format!("| {:<200} | {:>100} |", NAMES[n % 12], n))),
        ("rules", rows(12, |n| format!("{}\nSection {n}: {}\n{}", "=".repeat(100), NAMES[n], "-".repeat(100)))),
        ("contents", rows(30, |n| format!("{}{}{}", NAMES[n % 12], ".".repeat(120 - n), n * 3))),
        ("a long rule", "-".repeat(1500)),
        ("base64", STANDARD.encode((0..9000u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect::<Vec<_>>())),
        ("base64 of zeros", STANDARD.encode([0u8; 300])),
        ("hex dump", rows(120, |n| format!("{:08x}  {}", n * 16, "00 ".repeat(16)))),
        ("digits", (0..6000).map(|_| char::from(b'0' + roll(10) as u8)).collect()),
        ("bits", (0..4000).map(|_| if roll(2) == 0 { '0' } else { '1' }).collect()),
        ("a third", format!("0.{}", "3".repeat(1500))),
        ("dna", (0..6000).map(|_| ['A', 'C', 'G', 'T'][roll(4)]).collect()),
        ("shout", format!("{}gh!{}", "A".repeat(300), "!".repeat(60))),
        ("laughter", format!("{} {}", "ha".repeat(150), "哈".repeat(150))),
        ("html table", rows(80, |n| format!("<tr><td class=\"name\">{}</td><td class=\"value\">{}</td></tr>", NAMES[n % 12], n * 7 % 31))),
        ("svg", rows(100, |n| format!("<rect x=\"{}\" y=\"{}\" width=\"10\" height=\"10\" fill=\"black\"/>", n % 8 * 10, n / 8 * 10))),
        ("css", rows(60, |n| format!(".{}-{n} {{ margin: 0; padding: 0; border: none; width: {}px; }}", NAMES[n % 12], n * 4))),
        ("getters", rows(60, |n| format!("    pub fn {}_{n}(&self) -> u32 {{\n        self.{0}_{n}\n    }}\n", NAMES[n % 12].to_lowercase()))),
        ("asserts", rows(100, |n| format!("    assert_eq!(add({n}, {}), {});", n * 3, n * 4))),
        ("match arms", rows(100, |n| format!("        {n} => \"{}\",", NAMES[n * 7 % 12]))),
        ("yaml", rows(50, |n| format!("- name: {}\n  image: registry/{}:v{}\n  ports:\n    - containerPort: {}\n  resources:\n    limits:\n      cpu: {}m", NAMES[n % 12], NAMES[n * 5 % 12], n, 8000 + n, n * 50))),
        ("chess", rows(80, |n| format!("{}. {}{} {}{}", n + 1, ["e", "d", "Nf", "Bc"][n % 4], n % 8 + 1, ["c", "Nc", "e", "Bg"][n * 3 % 4], n * 5 % 8 + 1))),
        ("alphabets", "a b c d e f g h i j k l m n o p q r s t u v w x y z\n".repeat(4)),
        ("translations", NAMES.iter().map(|name| format!("{name}: привет, γειά σου, שלום, مرحبا, नमस्ते, สวัสดี, 你好, こんにちは, 안녕하세요, xin chào, cześć\n")).collect()),
        ("license three times", "Permission is granted to use, copy and change this work for any purpose, as long as this notice stays with it. The work comes without any promise that it is good for anything, and nobody is to be blamed for what it does to you, your data or your cat.\n".repeat(3)),
        ("empty lines", format!("poem\n{}end", "\n".repeat(40))),
        ("tokens explained", "A turn begins with `<|im_start|>` and ends with `<|im_end|>`. The token <|im_end|> also stops generation, as <|eot_id|> and </s> do elsewhere.\n```\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello<|im_end|>\n```\n".repeat(2)),
        ("replacement explained", "U+FFFD (\u{fffd}) stands for what could not be read: \"caf\u{fffd}\" or \"na\u{fffd}ve\". Two of them, \u{fffd}\u{fffd}, are often one character.".repeat(3)),
    ];
    let refrain = "Row on, row on, the river is long,\nrow on till the light is gone.\n";
    texts.push(("song", (0..6).map(|n| format!("{} went down to the water at {n},\nwith a lantern and half a song,\nand {} sat waiting and said to the others:\n{refrain}{refrain}\n", NAMES[n], NAMES[n + 6])).collect()));
    texts.push((
        "litany",
        (0..100)
            .map(|n| format!("Saint {} of {}, pray for us.\n", NAMES[n % 12], NAMES[n / 12]))
            .collect(),
    ));
    texts.push((
        "form letters",
        (0..60).map(|n| format!("Dear {} {}, we thank you for your letter and are glad to tell you that your place in the \
            course is kept for you until the end of the month, when we will meet in the great hall.\n", NAMES[n % 12], NAMES[n / 12])).collect(),
    ));
    texts.push((
        "flags at random",
        rows(60, |_| (0..50).map(|_| if roll(2) == 0 { "true, " } else { "false, " }).collect()),
    ));
    texts.push(("chinese poem", "春眠不觉晓，处处闻啼鸟。夜来风雨声，花落知多少。\n".repeat(4)));
    let code: String = rows(60, |n| {
        format!(
            "    let {}_{n} = read({n})?.trim().parse::<u{}>().ok();",
            NAMES[n % 12].to_lowercase(),
            8 << (n % 4)
        )
    });
    texts.push((
        "code and its correction",
        format!(
            "```\n{code}```\nHere is the corrected version:\n```\n{}```\n",
            code.replace("?.trim()", "?.trim_end()")
        ),
    ));
    texts.push(("code shown three times", format!("First:\n{code}\nThen:\n{code}\nLast:\n{code}")));
    texts
}

#[test]
fn what_was_asked_for_passes() {
    for (name, text) in legitimate() {
        assert_eq!(watch(&text), None, "{name}: {}", text.chars().take(300).collect::<String>());
        // Behind other text, too.
        assert_eq!(watch(&format!("Of course! Here it is:\n\n{text}")), None, "{name}, introduced");
    }
}

/// Answers that fall apart: what comes before, what comes again and again, and tokens of four bytes after which
/// that must be seen.
fn loops() -> Vec<(&'static str, String, usize)> {
    let mut roll = dice(5);
    let mut text = String::new();
    for _ in 0..120 {
        let lines = [
            "I'm sorry, I can't help with that request. ",
            "Please let me know what else I may do for you. ",
            "Thank you for your patience and understanding. ",
        ];
        text.push_str(lines[roll(3)]);
    }
    let long = NAMES
        .iter()
        .enumerate()
        .map(|(n, name)| {
            format!("{name} found stone number {n} under the bridge and carried it home. ")
        })
        .collect::<String>();
    let longer: String = (0..350)
        .map(|n| format!("{}{} ", NAMES[n * 7 % 12], NAMES[(n * n + n / 12) % 12].to_lowercase()))
        .collect();
    let mut all = vec![
        ("a word", "the ".repeat(600), 170),
        ("a sentence", "I can help you with that. ".repeat(100), 180),
        ("a line", "- Check the cable.\n".repeat(100), 180),
        ("two lines", "Yes, you are right.\nNo, I was wrong.\n".repeat(60), 200),
        ("letters", "ab".repeat(1000), 170),
        ("Chinese", "我不知道。".repeat(200), 180),
        ("Japanese", "はい、わかりました。".repeat(100), 190),
        ("Arabic", "لا أعرف الجواب. ".repeat(100), 190),
        ("emoji", "🙂🙃".repeat(400), 170),
        ("changing case and space", "Well then.  WELL THEN.\nwell Then. ".repeat(80), 180),
        ("a paragraph", long.repeat(8), 4 * long.len() / 4 + 60),
        ("a page", longer.repeat(8), 6 * longer.len() / 4),
        ("a counter", rows(200, |n| format!("Step {}: check the cable again.", n + 1)), 450),
        (
            "a counter in prose",
            (0..200).map(|n| format!("This is attempt number {n} and it did not work. ")).collect(),
            450,
        ),
        ("dates", rows(200, |n| format!("On day {} nothing happened at all.", 700 + n)), 450),
        ("changing order", text, 900),
        ("code", "        self.value = self.value\n".repeat(300), 1000),
        ("data", "{\"status\": \"ok\", \"value\": null}, ".repeat(300), 1100),
        ("zeros", "0, ".repeat(3000), 1000),
        ("brackets", "[[]], ".repeat(1500), 1000),
    ];
    let prose = "Let me think. The answer depends on the weather, on the size of the boat, and on whether the crew has slept. ";
    for (_, text, _) in &mut all {
        text.insert_str(0, prose);
    }
    all
}

#[test]
fn loops_are_seen_soon() {
    for (name, text, tokens) in loops() {
        let start = 110;
        let found =
            watch(&text).unwrap_or_else(|| panic!("{name} not seen in {} bytes", text.len()));
        assert_eq!(found.kind, Kind::Loop, "{name}");
        // Folding leaves out white space and figures.
        assert!(found.at <= start + 4 * tokens * 5 / 4, "{name}: {} bytes", found.at);
        assert!(found.at >= start + 500, "{name}: {} bytes", found.at);
    }
}

#[test]
fn other_ways_to_fall_apart_are_seen() {
    let mut roll = dice(9);
    let scripts =
        ["ing", "ния", "ება", "ים", "ість", "tion", "ность", "ული", "კა", "ות", "al", "ер"];
    let salad: String = (0..400)
        .map(|n| format!("{}{}", scripts[roll(12)], if n % 5 == 4 { " " } else { "" }))
        .collect();
    let noise: String = (0..4000)
        .map(|at| if at % 6 == 5 { ' ' } else { char::from(b'a' + roll(26) as u8) })
        .collect();
    let cases = [
        (Kind::Endless, "!".repeat(200), 160),
        (Kind::Endless, "a".repeat(600), 480),
        (Kind::Endless, "0".repeat(2500), 1920),
        (Kind::Endless, "\n".repeat(100), 64),
        (Kind::Endless, " \n\t".repeat(100), 200),
        (Kind::Endless, " ".repeat(1000), 768),
        (Kind::Replacement, "\u{fffd}".repeat(20), 24),
        (Kind::Replacement, "a\u{fffd}b\u{fffd}".repeat(40), 8 * 14),
        (
            Kind::ControlTokens,
            "Yes.<|im_end|>\n<|im_start|>user\nAnd?<|im_end|>\n<|im_start|>assistant\nNo."
                .to_owned(),
            90,
        ),
        (Kind::ControlTokens, "<unk>".repeat(10), 25),
        (Kind::ControlTokens, "[PAD] ".repeat(20), 50),
        (Kind::Gibberish, salad, 1200),
        (Kind::Gibberish, noise, 3000),
    ];
    for (kind, text, bytes) in cases {
        let show = text.chars().take(30).collect::<String>();
        let found = watch(&format!("Fine so far, {text}")).unwrap_or_else(|| panic!("{show}"));
        assert_eq!(found.kind, kind, "{show}");
        assert!(found.at <= bytes + 15, "{show}: {}", found.at);
    }
}

#[test]
fn limits_are_the_callers() {
    let lines = "I will not talk in class. ".repeat(100);
    assert_eq!(watch(&lines).map(|found| found.kind), Some(Kind::Loop));
    let wide = Limits { loop_tokens: 1000, ..Limits::default() };
    assert_eq!(Watch::new(wide).push(&lines), None);
    let strict = Limits { control_tokens: 1, replacements: 1, empty_lines: 3, ..Limits::default() };
    for text in ["Bye.<|eot_id|>", "\u{fffd}", "\n\n\n"] {
        assert!(Watch::new(strict).push(text).is_some(), "{text:?}");
    }
    for all in [0, 1, u32::MAX] {
        let limits = Limits {
            loop_tokens: all,
            loop_times: all,
            empty_lines: all,
            control_tokens: all,
            replacements: all,
        };
        assert_eq!(Watch::new(limits).push("Nothing wrong."), None);
        assert_eq!(Watch::new(limits).push(&lines).is_some(), all < 2);
    }
}

fn by_pieces<'a>(pieces: impl Iterator<Item = &'a str>) -> (Vec<Degeneration>, Facts) {
    let mut watch = Watch::new(Limits::default());
    let found = pieces.filter_map(|piece| watch.push(piece)).collect();
    (found, watch.facts())
}

#[test]
fn any_split_tells_the_same() {
    let mut texts: Vec<String> = loops().into_iter().map(|(_, text, _)| text).collect();
    texts.push("Ok.<|im_end|>\n<|im_start|>user <unk>\u{fffd}\u{fffd}".repeat(6));
    texts.extend(legitimate().into_iter().map(|(_, text)| text));
    for text in texts {
        let whole = by_pieces([text.as_str()].into_iter());
        assert_eq!(whole, by_pieces(text.split_inclusive(|_| true)));
        for at in
            (0..text.len()).step_by(text.len() / 8 + 1).filter(|at| text.is_char_boundary(*at))
        {
            let (first, second) = text.split_at(at);
            assert_eq!(whole, by_pieces([first, second].into_iter()));
        }
    }
    let short = "No!<|eot_id|><|eot_id|><|eot_id|><|eot_id|> \u{fffd} ab ab 12 13\n";
    let whole = by_pieces([short].into_iter());
    for at in (0..=short.len()).filter(|at| short.is_char_boundary(*at)) {
        let (first, second) = short.split_at(at);
        assert_eq!(whole, by_pieces([first, second].into_iter()), "{at}");
    }
}

#[test]
fn figures_tell_what_was_seen() {
    let mut watch = Watch::new(Limits::default());
    watch.push("One two three.<|eot_id|> ~~~~~ \u{fffd} One TWO three. xqzjk ");
    let facts = watch.facts();
    assert_eq!((facts.replacement, facts.control_tokens, facts.longest_run), (1, 1, 5));
    assert_eq!((facts.words, facts.bytes), (9, 56));
    assert_eq!(facts.distinct_share, 6.0 / 9.0);
    assert!(facts.odd_share > 0.1 && facts.odd_share < 0.5, "{facts:?}");
    let mut watch = Watch::new(Limits::default());
    let found = watch.push(&"Round and round. ".repeat(90));
    assert_eq!(watch.found(), found);
    // Figures go on.
    watch.push("And on.");
    let facts = watch.facts();
    assert!(facts.repeated_share > 0.9 && facts.distinct_share < 0.05, "{facts:?}");
    assert!(facts.longest_loop > 1400 && facts.longest_loop < 1600, "{facts:?}");
    assert_eq!(Watch::new(Limits::default()).facts(), Facts::default());
}

#[test]
fn memory_is_bounded() {
    // What stands outside of the struct are the ring, two tables of places, and the rows of words.
    assert!(size_of::<Watch>() + 2048 + 2 * 1024 + 2048 < 8 * 1024, "{}", size_of::<Watch>());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn nothing_panics_and_pieces_do_not_matter(
        parts in prop::collection::vec(("\\PC{0,12}|[<|\\[\\]>a-z]{0,9}|[\\n !0a\u{fffd}]{1,3}", 1usize..60), 1..12),
        cut in 1usize..40,
    ) {
        let mut text = String::new();
        for (part, times) in parts {
            write!(text, "{}", part.repeat(times)).unwrap();
        }
        let whole = by_pieces([text.as_str()].into_iter());
        let chars: Vec<char> = text.chars().collect();
        let pieces: Vec<String> = chars.chunks(cut).map(|piece| piece.iter().collect()).collect();
        prop_assert_eq!(by_pieces(pieces.iter().map(String::as_str)), whole);
    }
}
