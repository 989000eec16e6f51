//! Numbers of states as people write them, and numbers that only look like them.

use super::super::{Finder, Kind};

fn found(text: &str) -> Vec<(Kind, &str)> {
    let all = Finder::shared().find(text);
    all.into_iter().map(|found| (found.kind, text.get(found.span).unwrap())).collect()
}

/// A text, and what is found in it.
const CASES: &[(&str, Option<(Kind, &str)>)] = &[
    ("123-45-6789", Some((Kind::UsSsn, "123-45-6789"))),
    ("social security number 123 45 6789", Some((Kind::UsSsn, "123 45 6789"))),
    ("order 123 45 6789", None),
    ("order 123456789", None),
    ("666-45-6789", None),
    ("123-45-6789-1", None),
    ("1123-45-6789", None),
    ("x-123-45-6789", None),
    ("44051401359", Some((Kind::PlPesel, "44051401359"))),
    ("44051401358", None),
    ("440514013590", None),
    ("044051401359", None),
    ("44051401359.5", None),
    ("44051401359.", Some((Kind::PlPesel, "44051401359"))),
    ("cpf: 52998224725", Some((Kind::BrCpf, "52998224725"))),
    ("no: 52998224725", None),
    ("529.982.247-25", Some((Kind::BrCpf, "529.982.247-25"))),
    ("529.982.247-24", None),
    ("86095742719", Some((Kind::DeTaxId, "86095742719"))),
    ("86 095 742 719", Some((Kind::DeTaxId, "86 095 742 719"))),
    ("2341 2341 2346", Some((Kind::InAadhaar, "2341 2341 2346"))),
    ("2341 2341 2346 1111", None),
    ("234123412346", None),
    ("aadhaar no. 234123412346", Some((Kind::InAadhaar, "234123412346"))),
    ("BSN: 111222333", Some((Kind::NlBsn, "111222333"))),
    ("111222333", None),
    ("185057800608491", Some((Kind::FrNir, "185057800608491"))),
    ("1850578006084 91", Some((Kind::FrNir, "1850578006084 91"))),
    ("185057800608492", None),
    ("11010519491231002x", Some((Kind::CnResidentId, "11010519491231002x"))),
    ("110105194912310021", None),
    ("440524188001010014", Some((Kind::CnResidentId, "440524188001010014"))),
    ("12345678Z", Some((Kind::EsDni, "12345678Z"))),
    ("12345678-Z", Some((Kind::EsDni, "12345678-Z"))),
    ("12345678A", None),
    ("12345678Zz", None),
    ("X1234567L", Some((Kind::EsDni, "X1234567L"))),
    ("AX1234567L", None),
    ("AB123456C", Some((Kind::UkNino, "AB123456C"))),
    ("ab123456c", None),
    ("AB 12 34 56 C", Some((Kind::UkNino, "AB 12 34 56 C"))),
    ("BG123456C", None),
    ("AB123456E", None),
    ("CAB123456C", None),
    ("RSSMRA85T10A562S", Some((Kind::ItFiscalCode, "RSSMRA85T10A562S"))),
    ("rssmra85t10a562s", Some((Kind::ItFiscalCode, "rssmra85t10a562s"))),
    ("RSSMRA85T10A562T", None),
    ("XRSSMRA85T10A562S", None),
];

#[test]
fn numbers_are_found_where_their_form_or_a_word_tells() {
    for (text, expected) in CASES {
        assert_eq!(found(text), expected.as_slice(), "{text}");
    }
}

#[test]
fn a_word_near_decides_between_kinds() {
    // Eleven digits that are right as a PESEL and as a German tax id.
    let number = "75061499823";
    assert_eq!(found(&format!("PESEL {number}")), [(Kind::PlPesel, number)]);
    assert_eq!(found(&format!("Steuer-ID {number}")), [(Kind::DeTaxId, number)]);
    assert_eq!(found(&format!("no. {number}")), [(Kind::DeTaxId, number)], "the rarer one");
    let far = format!("CPF {} 52998224725", "x".repeat(60));
    assert_eq!(found(&far), [], "the word is too far");
}

#[test]
fn a_kind_that_is_not_looked_for_hides_no_other() {
    for kind in [Kind::PlPesel, Kind::DeTaxId] {
        let found = Finder::of([kind]).find("PESEL, Steuer-ID: 75061499823");
        assert_eq!(found.iter().map(|found| found.kind).collect::<Vec<_>>(), [kind]);
    }
}
