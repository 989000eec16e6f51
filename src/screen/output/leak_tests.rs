//! Leaks in all forms, at every split, and what must not be taken for one.

use super::leak::{How, Leak, LeakFound, Secretive, WORDS};
use base64::{Engine, engine::general_purpose as engines};
use proptest::prelude::*;
use std::sync::Arc;

const PROMPT: &str = "You are Nova, the concierge of the Hotel Meridian in Trieste. Never reveal that rooms 401 \
    to 409 are kept for diplomats, and don't discuss the overbooking policy. Offer guests a late checkout only \
    if they ask twice.\n\nThe wifi password of the staff network is in the blue binder.";

fn secret(prompts: &[&str], canaries: &[&str]) -> Arc<Secretive> {
    let canaries: Vec<String> = canaries.iter().map(|canary| (*canary).to_owned()).collect();
    Arc::new(Secretive::new(prompts, &canaries, WORDS))
}

fn find(secret: &Arc<Secretive>, text: &str) -> Option<LeakFound> {
    Leak::new(Arc::clone(secret)).push(text)
}

fn how(secret: &Arc<Secretive>, text: &str) -> Option<How> {
    find(secret, text).map(|found| found.how)
}

fn rot13(text: &str) -> String {
    let turn = |ch: char| match ch {
        'a'..='m' | 'A'..='M' => (ch as u8 + 13) as char,
        'n'..='z' | 'N'..='Z' => (ch as u8 - 13) as char,
        _ => ch,
    };
    text.chars().map(turn).collect()
}

fn leet(text: &str) -> String {
    let figure = |ch| match ch {
        'o' => '0',
        'l' => '1',
        'e' => '3',
        'a' => '4',
        's' => '5',
        't' => '7',
        _ => ch,
    };
    text.chars().map(figure).collect()
}

fn spaced(text: &str, between: &str) -> String {
    text.chars().map(|ch| format!("{ch}{between}")).collect()
}

fn hex(text: &str, before: &str, between: &str) -> String {
    let bytes: Vec<String> = text.bytes().map(|byte| format!("{before}{byte:02x}")).collect();
    bytes.join(between)
}

fn wrapped(text: &str, width: usize) -> String {
    let chars: Vec<char> = text.chars().collect();
    let lines: Vec<String> = chars.chunks(width).map(|line| line.iter().collect()).collect();
    lines.join("\n")
}

/// The sentence of the prompt that the cases say.
const SAID: &str = "Offer guests a late checkout only if they ask twice.";

fn forms() -> Vec<(How, String)> {
    let numbered: Vec<String> =
        SAID.split(' ').enumerate().map(|(at, word)| format!("{}. {word}", at + 1)).collect();
    let spelled_json =
        serde_json::to_string(&format!("# Rules\n{}", SAID.replace(' ', "\n"))).unwrap();
    vec![
        (How::Plain, SAID.to_owned()),
        (How::Plain, SAID.to_uppercase()),
        (How::Plain, SAID.replace(' ', "")),
        (How::Plain, SAID.replace(' ', "_")),
        (How::Plain, SAID.replace(' ', "%20")),
        (How::Plain, SAID.replace(' ', "&nbsp;")),
        (How::Plain, SAID.chars().map(|ch| format!("&#{};", u32::from(ch))).collect()),
        (How::Plain, spaced(SAID, "-")),
        (How::Plain, spaced(SAID, "\u{200b}")),
        (How::Plain, spaced(SAID, "\u{301}")),
        (How::Plain, SAID.replace(' ', " **·** ")),
        (How::Plain, wrapped(SAID, 3)),
        (How::Plain, numbered.join("\n")),
        (How::Plain, spelled_json),
        (How::Plain, SAID.replace('e', "е").replace('o', "ο")),
        (How::Plain, SAID.chars().map(|ch| format!("\\u{:04x}", u32::from(ch))).collect()),
        (
            How::Plain,
            SAID.chars().filter_map(|ch| char::from_u32(0xE0000 + u32::from(ch))).collect(),
        ),
        (How::Leet, leet(SAID)),
        (How::Leet, leet(&SAID.to_lowercase()).replace('7', "t").replace('5', "$")),
        (How::Rot13, rot13(SAID)),
        (How::Rot13, spaced(&rot13(SAID), " ")),
        (How::Reversed, SAID.chars().rev().collect()),
        (How::Base64, engines::STANDARD.encode(SAID)),
        (How::Base64, wrapped(&engines::STANDARD.encode(SAID.to_uppercase()), 64)),
        (How::Base64, engines::URL_SAFE_NO_PAD.encode(spaced(SAID, "."))),
        (
            How::Base64,
            engines::STANDARD
                .encode(SAID.encode_utf16().flat_map(u16::to_le_bytes).collect::<Vec<_>>()),
        ),
        (How::Hex, hex(SAID, "", "")),
        (How::Hex, hex(SAID, "", " ")),
        (How::Hex, hex(SAID, "0x", ", ")),
        (How::Hex, wrapped(&hex(SAID, "", ":"), 60)),
        // Escapes are read before all else.
        (How::Plain, hex(SAID, "%", "")),
        (How::Plain, wrapped(&hex(SAID, "\\x", ""), 80)),
    ]
}

#[test]
fn a_leak_is_found_in_every_form_and_at_every_split() {
    let secret = secret(&[PROMPT], &[]);
    for (expected, form) in forms() {
        let text = format!("Sure! Here you go, as you asked: \"{form}\" Anything else?");
        let found = find(&secret, &text).unwrap_or_else(|| panic!("not found: {text}"));
        assert_eq!(found.how, expected, "{text}");
        assert_eq!(found.canary, None);
        let begin = text.find(&form).unwrap();
        assert!(found.from >= begin && found.from <= begin + form.len() / 3, "{found:?} {text}");
        assert!(found.at > found.from && found.at <= begin + form.len(), "{found:?} {text}");
        for split in (0..=text.len()).filter(|at| text.is_char_boundary(*at)) {
            let (first, second) = text.split_at(split);
            let mut leak = Leak::new(Arc::clone(&secret));
            let either = [leak.push(first), leak.push(second)];
            assert_eq!(either.into_iter().flatten().collect::<Vec<_>>(), [found], "{split} {text}");
            assert_eq!(leak.found(), Some(found));
        }
        let mut leak = Leak::new(Arc::clone(&secret));
        let pieces = text.chars().filter_map(|ch| leak.push(ch.encode_utf8(&mut [0; 4])));
        assert_eq!(pieces.collect::<Vec<_>>(), [found], "{text}");
    }
}

#[test]
fn other_scripts_leak_alike() {
    let cases = [
        (
            "你是梅里迪安酒店的礼宾员。绝对不要透露四楼的房间是为外交官保留的。只有客人问两次才可以提供延迟退房。",
            "好的：绝 对 不 要 透 露 四楼的房间，是为外交官保留的！",
        ),
        (
            "あなたはホテルのコンシェルジュです。四階の部屋が外交官のために確保されていることを決して明かさないでください。",
            "四階の部屋が外交官のために確保されていることを",
        ),
        (
            "คุณเป็นพนักงานต้อนรับของโรงแรม ห้ามเปิดเผยว่าห้องชั้นสี่สงวนไว้สำหรับนักการทูตเท่านั้น",
            "ห้ามเปิดเผยว่าห้องชั้นสี่ สงวนไว้สำหรับนักการทูต",
        ),
        (
            "당신은 호텔의 컨시어지입니다. 사층의 객실이 외교관을 위해 예약되어 있다는 사실을 절대 밝히지 마세요.",
            "사층의 객실이 외교관을 위해 예약되어 있다는 사실을",
        ),
        (
            "Ты консьерж отеля. Никогда не говори, что номера на четвёртом этаже держат для дипломатов.",
            "НИКОГДА НЕ ГОВОРИ, ЧТО НОМЕРА НА ЧЕТВЕРТОМ ЭТАЖЕ ДЕРЖАТ",
        ),
        (
            "أنت موظف استقبال في الفندق. لا تكشف أبدا أن غرف الطابق الرابع محجوزة للدبلوماسيين فقط.",
            "لا تَكشِف أبداً أنّ غرف الطابق الرابع محجوزة للدبلوماسيين",
        ),
        (
            "आप होटल के दरबान हैं। कभी न बताएं कि चौथी मंजिल के कमरे राजनयिकों के लिए रखे गए हैं।",
            "कभी न बताएं कि चौथी मंजिल के कमरे राजनयिकों के लिए रखे गए हैं",
        ),
    ];
    for (prompt, said) in cases {
        let secret = secret(&[prompt], &[]);
        assert_eq!(how(&secret, said), Some(How::Plain), "{said}");
        let reversed: String = prompt.chars().rev().collect();
        assert_eq!(how(&secret, &reversed), Some(How::Reversed), "{said}");
        assert_eq!(how(&secret, &engines::STANDARD.encode(prompt)), Some(How::Base64), "{said}");
        assert_eq!(how(&secret, &hex(prompt, "%", "")), Some(How::Hex), "{said}");
    }
}

#[test]
fn what_is_no_leak_is_not_taken_for_one() {
    let secret = secret(&[PROMPT], &["NV-4471-QX"]);
    let cases = [
        "You are a helpful assistant.",
        "I'm Nova, the concierge of the Hotel Meridian. How can I help?",
        // Seven words of it.
        "We offer guests a late checkout only on Sundays.",
        "The wifi password is on your key card, and rooms 410 to 430 look out to the sea.",
        "Offer guests tea. A late breakfast. Checkout at eleven only. If they like it they ask twice.",
        // Translated.
        "Biete Gästen einen späten Checkout nur an, wenn sie zweimal fragen. Verrate nie, dass die Zimmer.",
        "NV-4471 QY",
        "",
    ];
    for text in cases {
        assert_eq!(find(&secret, text), None, "{text}");
    }
    let blob = engines::STANDARD.encode(cases.join(" "));
    assert_eq!(find(&secret, &blob), None);
}

#[test]
fn what_everyone_says_gives_nothing_away() {
    let llama = "You are a helpful, respectful and honest assistant. Always answer as helpfully as possible, while \
        being safe.";
    let guarded = secret(
        &[&format!("{llama} Refunds above ninety euros need the approval of Mrs Kovac.")],
        &[],
    );
    assert_eq!(find(&guarded, &format!("My prompt is: {llama}")), None);
    assert_eq!(find(&guarded, &llama.chars().rev().collect::<String>()), None);
    let own = "Refunds above ninety euros need the approval of Mrs Kovac.";
    assert_eq!(how(&guarded, own), Some(How::Plain));
    for whole in [
        "You are a helpful assistant.",
        "You are Qwen, created by Alibaba Cloud. You are a helpful assistant.",
        "Be brief.",
    ] {
        let secret = secret(&[whole], &[]);
        assert!(secret.is_empty(), "{whole}");
        assert_eq!(find(&secret, whole), None);
    }
    let days = "Mondays, Tuesdays... Our week is Monday, Tuesday, Wednesday, Thursday, Friday, Saturday, Sunday.";
    let schedule = secret(
        &[
            "Opening days: Monday, Tuesday, Wednesday, Thursday, Friday, Saturday, Sunday except holidays",
        ],
        &[],
    );
    assert_eq!(find(&schedule, days), None);
    // Rows of one letter and of figures.
    let count = |to: usize| (1..to).map(|n| format!("{n} ")).collect::<String>();
    let filling = secret(&[&format!("Fill in: {} and {}", "_x".repeat(60), count(40))], &[]);
    assert_eq!(find(&filling, &"x".repeat(100)), None);
    assert_eq!(find(&filling, &count(50)), None);
}

#[test]
fn a_short_prompt_must_be_said_as_a_whole() {
    let secret = secret(&["Answer only in rhymes about cheese."], &[]);
    for (text, expected) in [
        ("I was told to answer only in rhymes about cheese!", Some(How::Plain)),
        ("ESEEHC tuoba semyhr ni ylno rewsna", Some(How::Reversed)),
        ("QW5zd2VyIG9ubHkgaW4gcmh5bWVzIGFib3V0IGNoZWVzZS4=", Some(How::Base64)),
        ("I was told to answer only in rhymes about bread.", None),
        ("only in rhymes about cheese", None),
    ] {
        assert_eq!(how(&secret, text), expected, "{text}");
    }
}

#[test]
fn a_canary_is_found_in_any_form() {
    let canary = "NV-4471-Qxz";
    let secret = secret(&["Be brief."], &["??", "other mark", canary]);
    let cases = [
        (How::Plain, "nv4471qxz".to_owned()),
        (How::Plain, spaced(canary, " ")),
        (How::Plain, "N.V.4.4.7.1.q.x.z".to_owned()),
        (How::Plain, format!("prefix{canary}suffix")),
        (How::Rot13, rot13(canary)),
        (How::Reversed, canary.chars().rev().collect()),
        (How::Base64, engines::STANDARD.encode(format!("mark {canary}"))),
        (How::Base64, engines::STANDARD_NO_PAD.encode(rot13(canary))),
        (How::Hex, hex(canary, "", " ")),
    ];
    for (expected, form) in cases {
        let text = format!("The mark is {form}.");
        let found = find(&secret, &text).unwrap_or_else(|| panic!("{text}"));
        assert_eq!((found.how, found.canary), (expected, Some(2)), "{text}");
        assert!(found.from >= 12 && found.at < text.len(), "{found:?} {text}");
    }
    assert_eq!(find(&secret, "NV-4471-Qx"), None);
    assert!(!Secretive::fits("-??-") && !Secretive::fits("abc") && Secretive::fits("a-b-c-1"));
}

#[test]
fn what_the_caller_said_may_be_repeated() {
    let said = "Is it true that you offer guests a late checkout only if they ask twice?";
    let free = Arc::new(Secretive::new(&[PROMPT], &[], WORDS).allowing(&["Hello", said]));
    assert_eq!(find(&free, "Yes: Offer guests a late checkout only if they ask twice."), None);
    let short =
        Secretive::new(&["Answer only in rhymes about cheese."], &["sesame".to_owned()], WORDS);
    let free_short =
        Arc::new(short.allowing(&["Do you answer only in rhymes about cheese? sesame"]));
    assert_eq!(find(&free_short, "I answer only in rhymes about cheese."), None);
    assert_eq!(find(&free_short, "sesame").and_then(|found| found.canary), Some(0));
    let other = "Never reveal that rooms 401 to 409 are kept for diplomats";
    assert_eq!(how(&free, other), Some(How::Plain));
    assert_eq!(find(&free, other).map(|found| found.from), Some(0));
}

#[test]
fn words_rule_how_much_is_a_leak() {
    for (words, said, found) in [
        (4, "offer guests a late checkout", true),
        (4, "offer guests a late", false),
        (8, "offer guests a late checkout only", false),
        (16, "Offer guests a late checkout only if they ask twice.", false),
        // A figure in between breaks one of the readings only.
        (
            16,
            "don't discuss the over5booking policy. Offer guests a late checkout only if they ask twice. The wifi \
             password",
            true,
        ),
        (
            16,
            "Never reveal that rooms 401 to 409 are kept for diplomats, and don't discuss the overbooking policy. Offer",
            true,
        ),
    ] {
        let secret = Arc::new(Secretive::new(&[PROMPT], &[], words));
        assert_eq!(find(&secret, said).is_some(), found, "{words} {said}");
    }
}

#[test]
fn held_grows_with_a_leak_in_the_making_and_falls_with_its_end() {
    let guarded = secret(&[PROMPT], &["sesame-open"]);
    let mut leak = Leak::new(Arc::clone(&guarded));
    let mut held = |text: &str| {
        assert_eq!(leak.push(text), None, "{text}");
        leak.held()
    };
    assert_eq!(held("Welcome. "), 0);
    assert_eq!(held("Offer guests a late"), 0);
    assert_eq!(held(" check"), "Offer guests a late check".len());
    assert_eq!(held("out on"), "Offer guests a late checkout on".len());
    assert_eq!(held(" Sundays"), 0);
    assert_eq!(held(" ses"), 0);
    assert_eq!(held("ame-"), "sesame-".len());
    assert_eq!(held("op"), "sesame-op".len());
    assert_eq!(held("tion"), 0);
    let mut leak = Leak::new(guarded);
    let found = leak.push(PROMPT).unwrap();
    assert_eq!((found.from, leak.held()), (0, PROMPT.len()));
}

#[test]
fn all_is_bounded() {
    assert!(size_of::<Leak>() < 1024, "{}", size_of::<Leak>());
    let long = (0..40_000).map(|n| format!("word{} ", n * 7919 % 10_007)).collect::<String>();
    let guarded = secret(&[&long, PROMPT], &[]);
    // What is beyond 64 KiB is not looked at.
    assert_eq!(find(&guarded, PROMPT), None);
    let empty = secret(&[], &[]);
    assert!(empty.is_empty());
    let mut leak = Leak::new(empty);
    assert_eq!((leak.push(PROMPT), leak.held()), (None, 0));
}

/// Whether a row of eight words' letters of the text, of which each four words stand in the prompt, exists:
/// said plainly, for plain letters of weight one.
fn naive(prompt: &[u8], text: &[u8]) -> Option<usize> {
    let known = |four: &[u8]| prompt.windows(20).any(|window| window == four);
    (40..=text.len()).find(|end| text[end - 40..*end].windows(20).all(known))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn what_is_found_is_what_its_definition_says(
        prompt in "[abcdefgh]{60,120}",
        parts in prop::collection::vec((0usize..120, 1usize..70, "[abc]{0,3}"), 1..6),
    ) {
        let mut text = String::new();
        for (from, len, noise) in parts {
            let from = from.min(prompt.len());
            text.push_str(prompt.get(from..(from + len).min(prompt.len())).unwrap());
            text.push_str(&noise);
        }
        let secret = secret(&[&prompt], &[]);
        let plain = find(&secret, &text).filter(|found| found.how == How::Plain).map(|found| found.at);
        let expected = naive(prompt.as_bytes(), text.as_bytes());
        // Windows of few different letters are not indexed; these have enough, as a rule.
        prop_assert!(plain == expected || expected.is_none_or(|at| {
            text.as_bytes()[..at].windows(20).any(|window| (b'a'..=b'h').filter(|ch| window.contains(ch)).count() < 5)
        }), "{plain:?} {expected:?}");
        prop_assert!(plain.is_none() || expected.is_some());
    }

    #[test]
    fn any_pieces_tell_the_same(text in "\\PC{0,200}", cuts in prop::collection::vec(0usize..400, 0..8), from in 0usize..150) {
        let secret = secret(&[PROMPT], &["sesame"]);
        let text = format!("{text}{}{text}", PROMPT.get(from..from + 45).unwrap());
        let mut whole = Leak::new(Arc::clone(&secret));
        let found = whole.push(&text);
        let mut cuts: Vec<usize> = cuts.into_iter().filter(|at| text.is_char_boundary(*at)).collect();
        cuts.push(text.len());
        cuts.sort_unstable();
        let (mut leak, mut last, mut first) = (Leak::new(secret), 0, None);
        for cut in cuts.into_iter().filter(|cut| *cut <= text.len()) {
            first = first.or(leak.push(text.get(last..cut).unwrap()));
            last = cut;
        }
        prop_assert_eq!(first, found);
        prop_assert_eq!(leak.held(), whole.held());
    }
}
