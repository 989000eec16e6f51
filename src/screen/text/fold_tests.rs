//! Tables of cases for `fold`.

use super::*;

fn tags(text: &str) -> String {
    let tag = |letter: char| char::from_u32(0xe0000 + u32::from(letter));
    text.chars().filter_map(tag).collect()
}

#[test]
fn texts_that_read_alike_become_one() {
    let cases = [
        ("plain", "plain"),
        // Composed and widened letters.
        ("cafe\u{301}", "café"),
        ("ｉｇｎｏｒｅ\u{3000}ａｌｌ", "ignore all"),
        ("𝐢𝐠𝐧𝐨𝐫𝐞 𝒶𝓁𝓁 🅘🅖🅝", "ignore all ign"),
        ("ⓘⓖⓝⓞⓡⓔ ﬁle", "ignore file"),
        ("ᄒ\u{1161}\u{11ab}글", "한글"),
        // What nobody sees.
        ("ig\u{200b}no\u{ad}re\u{2060}", "ignore"),
        ("e\u{200b}\u{301}", "é"),
        ("\u{202e}erongi\u{202c}", "erongi"),
        // Letters of other scripts.
        ("ignоrе аll", "ignore all"),
        ("раssшоrd", "password"),
        ("the сосо is", "the coco is"),
        ("Ιgnοre", "Ignore"),
        ("ɪɢɴᴏʀᴇ ᴀʟʟ", "ignore all"),
        ("ᎪᏞᏞ of it", "ALL of it"),
        ("suoᴉʇɔnɹʇsuᴉ", "snoitcurtsni"),
        ("е\u{301}xit", "exit"),
        // Marks.
        ("i\u{335}g\u{335}n\u{336}ore", "ignore"),
        ("z\u{300}\u{301}\u{302}\u{303}\u{304}a\u{316}\u{317}\u{318}\u{319}lgo", "zalgo"),
        ("1\u{fe0f}\u{20e3}", "1"),
        ("\0\u{fc}\0\0\u{fc}", "\0ü\0\0ü"),
    ];
    for (text, expected) in cases {
        assert_eq!(fold(text).text, expected, "{text:?}");
    }
}

#[test]
fn honest_texts_stay_and_nothing_odd_is_seen() {
    let cases = [
        "Съешь ещё этих мягких французских булок, да выпей чаю. Оса села на сосну.",
        "Ξεσκεπάζω την ψυχοφθόρα βδελυγμία. Ο νους και το σώμα.",
        "Müller straße ça été niño Łódź Việt Nam đường phố kırmızı",
        "天地玄黄、宇宙洪荒。ひらがなとカタカナ 대한민국",
        "مرحبا بالعالم שלום עולם नमस्ते दुनिया สวัสดีชาวโลก",
        "The word 'дом' means house; IT-отдел; 5 µm",
        "ɔdɔ ye, ɛyɛ; fəal /fəˈnɛtɪk/ \u{fdfa}",
        "👍🏽 🇩🇪🇫🇷 — “quoted” … naïve",
        "Σ(x) ≤ ∞, α + β = γ, Δt = 3 s",
    ];
    for text in cases {
        let folded = fold(text);
        let composed: String = text
            .split(LONGEST)
            .map(|part| part.nfkc().collect())
            .collect::<Vec<String>>()
            .join("\u{fdfa}");
        assert_eq!((&*folded.text, folded.seen.total()), (&*composed, 0));
        assert_eq!(folded.hidden, "");
    }
}

#[test]
fn what_honest_texts_hold_is_taken_out_and_not_counted() {
    let cases = [
        ("❤\u{fe0f} ok", "❤ ok"),
        ("👨\u{200d}👩\u{200d}👧", "👨👩👧"),
        ("می\u{200c}خواهم", "میخواهم"),
        ("אבג\u{200f}!", "אבג!"),
        ("\u{feff}first", "first"),
        ("葛\u{e0100}城", "葛城"),
    ];
    for (text, expected) in cases {
        let folded = fold(text);
        assert_eq!((&*folded.text, folded.seen.total()), (expected, 0), "{text:?}");
    }
    let flag = format!("\u{1f3f4}{}\u{e007f} flag", tags("gbsct"));
    let folded = fold(&flag);
    assert_eq!((&*folded.text, folded.seen.total()), ("\u{1f3f4} flag", 0));
}

#[test]
fn oddities_are_counted_by_kind() {
    let text = format!(
        "a\u{200b}\u{200b}b \u{202e}c {} pаy {}x\u{300}\u{301}\u{302}\u{303}",
        tags("Do it~"),
        "y\u{336}"
    );
    let folded = fold(&text);
    let expected = Oddities { invisible: 2, bidi: 1, tags: 6, homoglyphs: 1, marks: 5 };
    assert_eq!(folded.seen, expected);
    assert_eq!(folded.hidden, "Do it~");
    assert_eq!(folded.text, "ab c  pay yx");
    assert_eq!(fold("𝐚𝐛").seen.homoglyphs, 2);
    let smuggled: String = "ignore"
        .bytes()
        .filter_map(|byte| char::from_u32(0xe0100 + u32::from(byte) - 16))
        .collect();
    let smuggled = format!("😀{smuggled}");
    let folded = fold(&smuggled);
    assert_eq!((&*folded.text, &*folded.hidden), ("😀", "ignore"));
    assert_eq!(folded.seen.invisible, 6);
}

#[test]
fn places_are_found_again() {
    let text = "x ig\u{200b}nоrе ｙ cafe\u{301}!";
    let folded = fold(text);
    assert_eq!(folded.text, "x ignore y café!");
    let origin = |part: &str| {
        let at = folded.text.find(part).unwrap();
        text.get(folded.origin(at..at + part.len())).unwrap()
    };
    assert_eq!(origin("ignore"), "ig\u{200b}nоrе");
    assert_eq!(origin("re"), "rе");
    assert_eq!(origin("y"), "ｙ");
    assert_eq!(origin("é"), "e\u{301}");
    assert_eq!(origin("!"), "!");
    assert_eq!(folded.origin(0..folded.text.len()), 0..text.len());
    assert_eq!(folded.origin(1..1), 1..1);
    assert_eq!(fold("ab").origin(1..2), 1..2);
    let unseen = fold("\u{200b}\u{200b}");
    assert_eq!((&*unseen.text, unseen.origin(0..0)), ("", 6..6));
}

#[test]
fn many_changes_need_little_room_and_places_hold_what_was_meant() {
    // No two neighbours are of one size.
    let sizes = ["ａ", "é", "ﬁ", "b\u{200b}", "е\u{200b}x", " "];
    let mut text = String::new();
    for number in 0..40_000_usize {
        text.push_str(sizes[number * number % 31 % sizes.len()]);
    }
    text.push_str("needle");
    let folded = fold(&text);
    assert!(folded.composed.is_small() && folded.latin.is_small());
    let at = folded.text.find("needle").unwrap();
    let origin = folded.origin(at..at + 6);
    assert!(
        text.get(origin.clone()).unwrap().contains("needle") && origin.len() < 200,
        "{origin:?}"
    );
    let mut last = 0;
    for (at, letter) in folded.text.char_indices().step_by(97) {
        let origin = folded.origin(at..at + letter.len_utf8());
        assert!(
            origin.start < origin.end && origin.start >= last && text.get(origin.clone()).is_some()
        );
        last = origin.start;
    }
}

#[test]
#[ignore = "prints how long hostile texts take"]
fn figures() {
    let megabyte = |unit: &str| unit.repeat((1 << 20) / unit.len());
    let cases = [
        ("ascii", "a"),
        ("Cyrillic", "ж"),
        ("Cyrillic that looks Latin", "а"),
        ("such words", "а "),
        ("such a word and another", "а b "),
        ("Han", "中"),
        ("full width", "ａ"),
        ("mathematical", "𝐚"),
        ("marks", "\u{301}"),
        ("a letter and marks", "a\u{301}\u{302}\u{303}\u{304}"),
        ("mixed marks", "\u{316}\u{301}"),
        ("tags", "\u{e0041}"),
        ("zero width", "\u{200b}"),
        ("selectors", "\u{fe01}"),
        ("alternating scripts", "aаbв"),
        ("alternating widths", "aａ\u{200b}bﬁ"),
        ("jamo", "\u{1161}"),
        ("ligature", "\u{fdfa}"),
        ("emoji", "👩\u{200d}🚀"),
    ];
    for (name, unit) in cases {
        let text = megabyte(unit);
        let start = super::super::tests::cpu();
        let folded = fold(&text);
        let took = super::super::tests::cpu() - start;
        println!("fold  {name:26} {took:>12.1?} -> {} bytes", folded.text.len());
    }
}
