//! All kinds at once: each sample is found as what it is, whole or in pieces, and the costs are bounded.

use super::{samples::SAMPLES, *};

/// A sample with other text around it, and what is found.
fn text_of((kind, before, secret, behind): (Kind, &str, &str, &str)) -> (String, Found) {
    let lead = "Some words first, zażółć. ";
    let text = format!("{lead}{before}{secret}{behind} Then the rest.");
    let start = lead.len() + before.len();
    (text, Found { kind, span: start..start + secret.len() })
}

#[test]
fn every_kind_has_a_sample_and_each_is_found_alone() {
    for kind in Kind::ALL {
        assert!(SAMPLES.iter().any(|sample| sample.0 == *kind), "{kind}");
    }
    for sample in SAMPLES {
        let (text, expected) = text_of(*sample);
        assert_eq!(Finder::shared().find(&text), std::slice::from_ref(&expected), "{text}");
        let only = Finder::of([sample.0]);
        assert_eq!(only.find(&text), [expected], "one kind only: {text}");
        let others = Finder::of(Kind::ALL.iter().copied().filter(|kind| *kind != sample.0));
        assert!(others.find(&text).iter().all(|found| found.kind != sample.0), "{text}");
    }
}

#[test]
fn a_changed_character_is_no_finding_where_a_checksum_stands() {
    let checked = [
        Kind::GithubToken,
        Kind::NpmToken,
        Kind::PaymentCard,
        Kind::Iban,
        Kind::CnResidentId,
        Kind::FrNir,
        Kind::PlPesel,
        Kind::BrCpf,
        Kind::DeTaxId,
        Kind::InAadhaar,
        Kind::NlBsn,
        Kind::EsDni,
        Kind::ItFiscalCode,
    ];
    for sample in SAMPLES.iter().filter(|sample| checked.contains(&sample.0)) {
        // The longer tokens of GitHub have no checksum that is known.
        if sample.0 == Kind::GithubToken && sample.2.len() != 40 {
            continue;
        }
        let (text, Found { kind, span }) = text_of(*sample);
        let last =
            text.get(..span.end).and_then(|part| part.rfind(|c: char| c.is_ascii_digit())).unwrap();
        let digit = text.as_bytes()[last];
        let mut bad = text.clone();
        let other = if digit == b'9' { "8" } else { "9" };
        bad.replace_range(last..last + 1, other);
        let found = Finder::of([kind]).find(&bad);
        assert_eq!(found, [], "{kind}: {bad}");
    }
}

/// Pushes pieces and checks at each that nothing of a finding left before it was told.
fn in_pieces(finder: &Finder, pieces: &[&str]) -> Vec<Found> {
    let mut stream = Stream::new(finder);
    let (mut all, mut let_out) = (Vec::new(), 0);
    for piece in pieces {
        for found in stream.push(piece) {
            assert!(found.span.start >= let_out, "{found:?} left with {let_out}");
            all.push(found);
        }
        assert!(stream.held() <= finder.reach());
        let_out = let_out.max(stream.end() - stream.held());
    }
    for found in stream.finish() {
        assert!(found.span.start >= let_out, "{found:?} left with {let_out}");
        all.push(found);
    }
    all
}

#[test]
fn a_text_cut_anywhere_gives_the_findings_of_the_whole() {
    let finder = Finder::shared();
    for sample in SAMPLES {
        let (text, _) = text_of(*sample);
        let whole = finder.find(&text);
        for cut in (0..=text.len()).filter(|cut| text.is_char_boundary(*cut)) {
            let (first, second) = text.split_at(cut);
            assert_eq!(in_pieces(finder, &[first, second]), whole, "{first:?} | {second:?}");
            // A text that ends in the middle of a finding is one, too.
            assert_eq!(in_pieces(finder, &[first]), finder.find(first), "{first:?}");
        }
        let characters: Vec<_> = text.split_inclusive(|_: char| true).collect();
        assert_eq!(in_pieces(finder, &characters), whole, "{text:?}");
    }
}

/// Numbers that look random and are the same each time.
fn random(seed: &mut u64) -> usize {
    *seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    (*seed >> 33) as usize
}

#[test]
fn a_long_text_of_everything_gives_the_same_in_any_pieces() {
    let finder = Finder::shared();
    let mut seed = 7;
    for _ in 0..60 {
        let mut text = String::new();
        for _ in 0..40 {
            let (_, before, secret, behind) = SAMPLES[random(&mut seed) % SAMPLES.len()];
            // Halves of findings, next to each other: what overlaps and what does not end.
            let from = random(&mut seed) % 3 * secret.len() / 4;
            text.push_str(before);
            text.push_str(secret.get(from..).unwrap_or(secret));
            text.push_str([behind, "", " ", "@", "é", "-"][random(&mut seed) % 6]);
        }
        let whole = finder.find(&text);
        assert!(whole.windows(2).all(|pair| pair[0].span.end <= pair[1].span.start));
        let mut pieces = Vec::new();
        let mut rest = text.as_str();
        let most = 1 + random(&mut seed) % 60;
        while let Some((next, _)) = rest.char_indices().nth(1 + random(&mut seed) % most) {
            let (piece, behind) = rest.split_at(next);
            pieces.push(piece);
            rest = behind;
        }
        pieces.push(rest);
        assert_eq!(in_pieces(finder, &pieces), whole, "{text:?}");
    }
}

#[test]
fn what_is_longer_than_the_window_is_found_to_its_end() {
    let line = format!("{}\n", "aB3+".repeat(16));
    let token = "eyJhbGciOiJIUzI1NiJ9.eyJhIjoi";
    let cases = [
        (format!("-----BEGIN PRIVATE KEY-----\n{}-----END PRIVATE KEY-----", line.repeat(400)), 4),
        (format!("{token}{}.c2ln", "YWFh".repeat(5000)), 3),
    ];
    for (secret, pieces) in cases {
        let text = format!("before {secret} behind");
        let found = Finder::shared().find(&text);
        assert_eq!(found.len(), pieces, "{:?}", found);
        assert_eq!((found[0].span.start, found[pieces - 1].span.end), (7, 7 + secret.len()));
        assert_eq!(mask(&text, &found), format!("before [{}] behind", found[0].kind));
        let pieces: Vec<_> =
            text.as_bytes().chunks(997).map(|b| str::from_utf8(b).unwrap()).collect();
        assert_eq!(in_pieces(Finder::shared(), &pieces), found);
    }
}

#[test]
fn ordinary_text_has_no_findings_and_is_not_held() {
    let text = "It costs 12.50 EUR, on 2024-05-17 at 10:30. The 3 tokens: 4096 max_tokens=100. Set \
        password = os.environ['X'], token: string, api_key = \"<your key>\", secret=${SECRET}. A uuid \
        550e8400-e29b-41d4-a716-446655440000, a hash d41d8cd98f00b204e9800998ecf8427e, 1.2.3-beta4, \
        user:password@host, https://example.com/a:b@c?d=e, 192.168.0.1, 1700000000000, AKIA, sk-learn, \
        hf_hub_download, secret_key: /run/secrets/a1b2c3d4e5f6g7h8, sk-ab12ab12ab12ab12ab12ab12ab12ab12, \
        const x = y + 12345678; the basic principles; bearer of bad news; 0x1F600. ";
    assert_eq!(Finder::shared().find(text), []);
    assert_eq!(in_pieces(Finder::shared(), &text.split_inclusive(' ').collect::<Vec<_>>()), []);
    let mut stream = Stream::new(Finder::shared());
    stream.push(text);
    assert_eq!(stream.held(), 0, "nothing begins here");
    for (begun, held) in [("word", 4), (" and ", 0), ("4111 11", 7), (" x ", 0), ("password=", 9)] {
        stream.push(begun);
        assert_eq!(stream.held(), held, "{begun}");
    }
}

#[test]
fn overlapping_findings_are_one() {
    let jwt = "eyJhbGciOiJIUzI1NiJ9.eyJhIjoiYiJ9.c2lnbmF0dXJl";
    let text = format!("Authorization: Bearer {jwt}, token={jwt}");
    let found = Finder::shared().find(&text);
    assert_eq!(found.iter().map(|found| found.kind).collect::<Vec<_>>(), [Kind::Jwt; 2]);
    assert_eq!(mask(&text, &found), "Authorization: Bearer [jwt], token=[jwt]");
}

#[test]
fn three_parts_are_no_token_unless_the_first_names_an_algorithm() {
    let cases = [
        // {"alg":"HS256"}, {"typ":"JWT"}, {"alg":1}, and no JSON.
        ("eyJhbGciOiJIUzI1NiJ9.eyJhIjoiYiJ9.c2lnbmF0dXJl", true),
        ("eyJhbGciOiJub25lIn0.eyJhIjoiYiJ9.", true),
        ("eyJ0eXAiOiJKV1QifQ.eyJhIjoiYiJ9.c2lnbmF0dXJl", false),
        ("eyJhbGciOjF9.eyJhIjoiYiJ9.c2lnbmF0dXJl", false),
        ("eyJhbGciOiJIUzI1NiJ.eyJhIjoiYiJ9.c2lnbmF0dXJl", false),
        ("eyJhbGciOiJIUzI1NiJ9.eyJhIjoiYiJ9", false),
        ("xeyJhbGciOiJIUzI1NiJ9.eyJhIjoiYiJ9.c2lnbmF0dXJl", false),
    ];
    for (text, good) in cases {
        let expected = good.then_some(Found { kind: Kind::Jwt, span: 0..text.len() });
        assert_eq!(Finder::shared().find(text), Vec::from_iter(expected), "{text}");
    }
}

#[test]
fn masking_leaves_what_was_not_found_and_bears_anything() {
    let found = |kind, span| Found { kind, span };
    let text = "aé b c";
    let cases: &[(Vec<Found>, &str)] = &[
        (vec![], "aé b c"),
        (vec![found(Kind::Jwt, 0..1)], "[jwt]é b c"),
        (vec![found(Kind::Jwt, 0..1), found(Kind::Jwt, 1..3)], "[jwt] b c"),
        (vec![found(Kind::Jwt, 0..1), found(Kind::Iban, 1..3)], "[jwt][iban] b c"),
        // In the middle of a character, behind the end, out of order.
        (vec![found(Kind::Jwt, 0..2)], "aé b c"),
        (vec![found(Kind::Jwt, 5..99)], "aé b c"),
        (vec![found(Kind::Jwt, 4..5), found(Kind::Jwt, 0..1)], "aé [jwt] c"),
    ];
    for (found, masked) in cases {
        assert_eq!(mask(text, found), *masked);
    }
}

#[test]
fn a_finder_of_nothing_finds_nothing() {
    let none = Finder::of([]);
    assert_eq!(none.find("4111111111111111 jane@example.org"), []);
    assert_eq!(in_pieces(&none, &["4111111111111111 ", "jane@example.org"]), []);
}

#[test]
fn texts_made_to_cost_much_give_the_same_in_pieces() {
    let bad = [
        "A",
        "1",
        "1 ",
        "4111 ",
        "-----BEGIN ",
        "-----BEGIN PRIVATE KEY-----",
        "eyJ",
        "eyJ.",
        "://",
        "a@",
        "a@b.co",
        "token=",
        "aws ",
        "aws AKIA",
        "password=\"",
        "A: -----BEGIN PRIVATE KEY-----\n",
        "+1 ",
        "é",
        "Q~",
        "1:AA",
        "basic a:",
        "ab@cd.ef.",
        "http://a:b@",
    ];
    for unit in bad {
        let text = unit.repeat(20_000 / unit.len());
        let whole = Finder::shared().find(&text);
        let mut pieces = Vec::new();
        let mut rest = text.as_str();
        while let Some((next, _)) = rest.char_indices().nth(61) {
            let (piece, behind) = rest.split_at(next);
            pieces.push(piece);
            rest = behind;
        }
        pieces.push(rest);
        assert_eq!(in_pieces(Finder::shared(), &pieces), whole, "{unit:?}");
    }
}
