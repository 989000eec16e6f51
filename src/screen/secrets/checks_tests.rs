//! Each checksum both ways: numbers that others published or computed pass, and each of their neighbours
//! with one digit changed does not.

use super::*;

type Check = fn(&[u8]) -> bool;

fn digits(text: &str) -> Vec<u8> {
    text.bytes().filter(u8::is_ascii_digit).map(|byte| byte - b'0').collect()
}

/// Every change of one digit.
fn neighbours(good: &[u8]) -> impl Iterator<Item = Vec<u8>> + '_ {
    (0..good.len()).flat_map(move |place| {
        (0..10).filter(move |digit| *digit != good[place]).map(move |digit| {
            let mut bad = good.to_vec();
            bad[place] = digit;
            bad
        })
    })
}

#[test]
fn good_numbers_pass_and_no_neighbour_does() {
    let cases: &[(&str, Check, &[&str])] = &[
        ("luhn", luhn, &["79927398713", "4111111111111111", "378282246310005", "0"]),
        ("verhoeff", verhoeff, &["2363", "758722", "1428570"]),
        ("cpf", cpf, &["52998224725", "11144477735"]),
        ("german tax id", german_tax_id, &["86095742719", "47036892816", "65929970489"]),
        ("aadhaar", aadhaar, &["234123412346", "999941057058"]),
        ("bsn", bsn, &["111222333", "123456782"]),
        ("nir", nir, &["185057800608491", "255081416802538"]),
        ("pesel", pesel, &["44051401359", "02070803628"]),
    ];
    for (name, check, good) in cases {
        for number in *good {
            let number = digits(number);
            assert!(check(&number), "{name} {number:?}");
            let passed = neighbours(&number).filter(|bad| check(bad)).count();
            assert_eq!(passed, 0, "{name} {number:?}");
            assert!(!check(&number[1..]) || name == &"luhn", "{name}: too short");
            assert!(!check(&[]), "{name}: nothing");
        }
    }
}

#[test]
fn numbers_that_pass_the_sum_and_mean_nothing_are_refused() {
    let cases: &[(&str, Check, &str)] = &[
        ("cpf of one digit", cpf, "11111111111"),
        ("tax id that starts with 0", german_tax_id, "01134567899"),
        ("tax id with no digit twice", german_tax_id, "12345678903"),
        ("pesel on the 30th of February", pesel, "44023001356"),
        ("pesel in the 13th month", pesel, "44131401350"),
        ("nir of a man of month 13", nir, "185137800608425"),
        ("aadhaar that starts with 1", aadhaar, "123412341234"),
        ("bsn of zeros", bsn, "000000000"),
    ];
    for (name, check, number) in cases {
        assert!(!check(&digits(number)), "{name}");
    }
}

#[test]
fn social_security_numbers_that_were_never_given_out_are_refused() {
    let cases = [
        ("123-45-6789", true),
        ("899-12-3456", true),
        ("000-45-6789", false),
        ("666-45-6789", false),
        ("900-45-6789", false),
        ("123-00-6789", false),
        ("123-45-0000", false),
        ("078-05-1120", false),
        ("12-45-6789", false),
    ];
    for (number, good) in cases {
        assert_eq!(ssn(&digits(number)), good, "{number}");
    }
}

#[test]
fn chinese_numbers_have_a_region_a_day_and_a_check_character() {
    let cases = [
        ("11010519491231002", b'X', true),
        ("11010519491231002", b'x', true),
        ("11010519491231002", b'1', false),
        ("44052418800101001", b'4', true),
        ("44052418800101001", b'5', false),
        ("10010519491231002", b'8', false),
        ("11010519490231002", b'6', false),
        ("1101051949123100", b'X', false),
    ];
    for (number, check, good) in cases {
        assert_eq!(chinese_id(&digits(number), check), good, "{number} {check}");
    }
}

#[test]
fn letters_that_check_are_computed() {
    assert_eq!(dni_letter(&digits("12345678")), Some(b'Z'));
    assert_eq!(dni_letter(&digits("12345679")), Some(b'S'));
    assert_eq!(dni_letter(&digits("01234567")), Some(b'L'), "X1234567L");
    assert_eq!(fiscal_code_letter(b"RSSMRA85T10A562"), b'S');
    assert_eq!(fiscal_code_letter(b"RSSMRA85T10A563"), b'U');
    assert_eq!(fiscal_code_letter(b"MRTMTT91D08F205"), b'J');
}

#[test]
fn mod_97_leaves_one_of_what_is_right() {
    let cases = [
        ("3704004405320130 00DE89", 1),
        ("WEST12345698765432GB82", 1),
        ("west12345698765432gb82", 1),
        ("WEST12345698765432GB83", 2),
        ("", 0),
    ];
    for (text, rest) in cases {
        assert_eq!(mod_97(text.bytes().filter(|byte| *byte != b' ')), rest, "{text}");
    }
}

#[test]
fn dates_are_those_of_the_calendar() {
    let cases = [
        ((2024, 2, 29), true),
        ((2023, 2, 29), false),
        ((1900, 2, 29), false),
        ((2000, 2, 29), true),
        ((2023, 4, 31), false),
        ((2023, 12, 31), true),
        ((2023, 0, 1), false),
        ((2023, 13, 1), false),
        ((2023, 1, 0), false),
        ((2023, 1, 32), false),
    ];
    for ((year, month, day), good) in cases {
        assert_eq!(is_date(year, month, day), good, "{year}-{month}-{day}");
    }
}

#[test]
fn tokens_carry_the_checksum_of_their_body() {
    assert_eq!(crc32(b"123456789"), 0xCBF4_3926, "the CRC's published check value");
    let good = b"zQWBuTSOoRi4A9spHcVY5ncnsDkxkJ0mLq17";
    assert!(crc_in_base_62(good));
    for place in 0..good.len() {
        let mut bad = *good;
        bad[place] = if bad[place] == b'x' { b'y' } else { b'x' };
        assert!(!crc_in_base_62(&bad), "{place}");
    }
    assert!(!crc_in_base_62(b"0mLq1"));
    assert!(crc_in_base_62(b"000000"), "of nothing, it is zero");
}

#[test]
fn key_ids_hold_an_account_number() {
    let cases: &[(&[u8], bool)] = &[
        // Published with the accounts they belong to.
        (b"Y34FZKBOKMUTVV7A", true),
        (b"QNZGKIQY56JQ7WML", true),
        // The older form holds none.
        (b"IOSFODNN7EXAMPLE", true),
        // The largest account of twelve digits, and two beyond it.
        (b"6RVFFB77QAAAAAAA", true),
        (b"7777777777777777", false),
        (b"6RVFFCAAAAAAAAAA", false),
    ];
    for (body, good) in cases {
        assert_eq!(aws_account(body), *good, "{}", String::from_utf8_lossy(body));
    }
}
