//! Payment cards and bank accounts.

use super::{
    alphabet::{ALNUM, Alphabet, LETTER, WORD},
    checks::{luhn, mod_97, number},
    detect::Hit,
    kind::Kind,
    number::{Groups, ends_number},
    view::View,
};

/// A range of card numbers: the first digits from and to, and how many digits such a card has.
struct Issuer {
    from: u64,
    to: u64,
    sizes: &'static [usize],
}

const fn issuer(from: u64, to: u64, sizes: &'static [usize]) -> Issuer {
    Issuer { from, to, sizes }
}

const UP_TO_19: &[usize] = &[16, 17, 18, 19];

/// Who issues which numbers (ISO/IEC 7812 ranges as the networks publish them).
static ISSUERS: &[Issuer] = &[
    // Visa.
    issuer(4, 4, &[13, 16, 19]),
    // Mastercard.
    issuer(51, 55, &[16]),
    issuer(2221, 2720, &[16]),
    // American Express.
    issuer(34, 34, &[15]),
    issuer(37, 37, &[15]),
    // Discover.
    issuer(6011, 6011, UP_TO_19),
    issuer(644, 649, UP_TO_19),
    issuer(65, 65, UP_TO_19),
    // Diners Club.
    issuer(300, 305, &[14, 16, 19]),
    issuer(36, 36, &[14, 16, 19]),
    issuer(38, 39, &[14, 16, 19]),
    // JCB.
    issuer(3528, 3589, UP_TO_19),
    // UnionPay.
    issuer(62, 62, UP_TO_19),
    // Mir.
    issuer(2200, 2204, UP_TO_19),
    // Maestro.
    issuer(5018, 5018, UP_TO_19),
    issuer(5020, 5020, UP_TO_19),
    issuer(5038, 5038, UP_TO_19),
    issuer(5893, 5893, UP_TO_19),
    issuer(6304, 6304, UP_TO_19),
    issuer(6759, 6763, UP_TO_19),
    // RuPay.
    issuer(508, 508, &[16]),
    issuer(60, 60, &[16]),
    issuer(81, 82, &[16]),
    // Troy.
    issuer(9792, 9792, &[16]),
];

/// How cards' digits are grouped.
static SHAPES: &[&[usize]] = &[
    &[13],
    &[14],
    &[15],
    &[16],
    &[17],
    &[18],
    &[19],
    &[4, 4, 4, 4],
    &[4, 6, 5],
    &[4, 6, 4],
    &[4, 4, 4, 4, 3],
];

/// The card's number whose first digit is at `at`.
pub(super) fn card(view: &View<'_>, at: usize, groups: &Groups) -> Option<Hit> {
    if !view.wants(Kind::PaymentCard) {
        return None;
    }
    let separator = groups.separator();
    // Columns of numbers with four digits are no card.
    let inside = view.was(at, Alphabet::of(b" -")) && {
        let start = view.run_back(at - 1, super::alphabet::DIGIT, 5);
        at - 1 - start == 4
    };
    let found = |shape: &&[usize]| {
        let between = [separator; 4];
        let (digits, end) = groups.like(shape, between.get(..shape.len() - 1)?)?;
        let good = separator != b'.'
            && !(shape.len() > 1 && inside)
            && !groups.goes_on(shape.len(), 4)
            && ends_number(view, end)
            && is_card(digits);
        good.then(|| Hit::new(Kind::PaymentCard, at..end))
    };
    // The longest first: one with 19 digits starts like one with 16.
    SHAPES.iter().rev().find_map(found)
}

fn is_card(digits: &[u8]) -> bool {
    let issued = |issuer: &Issuer| {
        let known = issuer.to.ilog10() as usize + 1;
        let first = digits.get(..known).map_or(0, number);
        (issuer.from..=issuer.to).contains(&first) && issuer.sizes.contains(&digits.len())
    };
    luhn(digits) && ISSUERS.iter().any(issued)
}

/// How long the account numbers of each country are (the IBAN registry), all characters counted: the
/// country's two letters and two digits of length.
const LENGTHS: &str = "\
    AD24 AE23 AL28 AT20 AZ28 BA20 BE16 BG22 BH22 BI27 BR29 BY28 CH21 CR22 CY28 CZ24 \
    DE22 DJ27 DK18 DO28 EE20 EG29 ES24 FI18 FK18 FO18 FR27 GB22 GE22 GI23 GL18 GR27 \
    GT28 HN28 HR21 HU28 IE22 IL23 IQ23 IS26 IT27 JO30 KW30 KZ20 LB28 LC32 LI21 LT20 \
    LU20 LV21 LY25 MC27 MD24 ME22 MK19 MN20 MR27 MT31 MU30 NI28 NL18 NO15 OM23 PK24 \
    PL28 PS29 PT25 QA29 RO24 RS22 RU33 SA24 SC31 SD18 SE24 SI19 SK24 SM27 SO23 ST25 \
    SV28 TL23 TN24 TR26 UA29 VA22 VG24 XK20 YE30";

/// The account number whose country stands at `start`, in one piece or in groups of four.
pub(super) fn iban(view: &View<'_>, start: usize) -> Option<Hit> {
    if !view.wants(Kind::Iban) || view.was(start, WORD) {
        return None;
    }
    if !view.is(start + 3, super::alphabet::DIGIT) {
        return None;
    }
    let country = view.slice(start..start + 2).to_ascii_uppercase();
    let length = LENGTHS.split(' ').find_map(|entry| {
        entry.as_bytes().strip_prefix(country.as_slice())?.iter().try_fold(0, |length, byte| {
            byte.checked_sub(b'0').map(|digit| length * 10 + usize::from(digit))
        })
    })?;
    let mut characters = Vec::with_capacity(length);
    let mut at = start;
    while characters.len() < length {
        let space = characters.len() % 4 == 0 && !characters.is_empty();
        match view.get(at) {
            Some(byte) if ALNUM.has(byte) => characters.push(byte),
            Some(b' ') if space && view.is(at + 1, ALNUM) => {}
            _ => return None,
        }
        at += 1;
    }
    let (head, body) = characters.split_at_checked(4)?;
    let one_case = |lower: fn(&u8) -> bool| !characters.iter().any(lower);
    let good = !view.is(at, WORD)
        && head.get(2..)?.iter().all(u8::is_ascii_digit)
        && body.iter().any(|byte| !LETTER.has(*byte))
        && (one_case(u8::is_ascii_lowercase) || one_case(u8::is_ascii_uppercase))
        && mod_97(body.iter().chain(head).copied()) == 1;
    good.then(|| Hit::new(Kind::Iban, start..at))
}

#[cfg(test)]
mod tests {
    use super::super::{Finder, Kind};

    fn found(text: &str) -> Vec<(Kind, &str)> {
        let only = Finder::of([Kind::PaymentCard, Kind::Iban]);
        only.find(text)
            .into_iter()
            .map(|found| (found.kind, text.get(found.span).unwrap()))
            .collect()
    }

    #[test]
    fn cards_are_found_as_people_write_them() {
        let cases = [
            ("4111111111111111", Some("4111111111111111")),
            ("card 4111 1111 1111 1111 12/27", Some("4111 1111 1111 1111")),
            ("card: 5500-0055-5555-5559.", Some("5500-0055-5555-5559")),
            ("3782 822463 10005", Some("3782 822463 10005")),
            ("378282246310005", Some("378282246310005")),
            ("30569309025904", Some("30569309025904")),
            ("3530111333300000", Some("3530111333300000")),
            ("2223003122003222", Some("2223003122003222")),
            ("no 12: 4111 1111 1111 1111", Some("4111 1111 1111 1111")),
            // The check digit, the issuer, the length.
            ("4111111111111112", None),
            ("9111111111111111", None),
            ("411111111111116", None),
            // The middle of something else.
            ("41111111111111112", None),
            ("0.4111111111111111", None),
            ("id4111111111111111", None),
            ("550e8400-e29b-41d4-a716-4111111111111111", None),
            ("4111111111111111a", None),
            ("4111.1111.1111.1111", None),
            ("4111 1111-1111 1111", None),
            ("2048 4111 1111 1111 1111", None),
            ("4111 1111 1111 1111 2048", None),
            ("0000000000000000", None),
        ];
        for (text, expected) in cases {
            let expected: Vec<_> =
                expected.map(|span| (Kind::PaymentCard, span)).into_iter().collect();
            assert_eq!(found(text), expected, "{text}");
        }
    }

    #[test]
    fn account_numbers_have_their_country_s_length_and_sum() {
        let cases = [
            ("DE89370400440532013000", Some("DE89370400440532013000")),
            ("IBAN DE89 3704 0044 0532 0130 00.", Some("DE89 3704 0044 0532 0130 00")),
            ("gb82west12345698765432", Some("gb82west12345698765432")),
            ("GB82 WEST 1234 5698 7654 32", Some("GB82 WEST 1234 5698 7654 32")),
            ("FR1420041010050500013M02606", Some("FR1420041010050500013M02606")),
            ("NO9386011117947", Some("NO9386011117947")),
            ("DE88370400440532013000", None),
            ("DE8937040044053201300", None),
            ("DE893704004405320130001", None),
            ("XX89370400440532013000", None),
            ("ADE89370400440532013000", None),
            ("DE893 70400440532013000", None),
            ("Gb82West12345698765432", None),
        ];
        for (text, expected) in cases {
            let expected: Vec<_> = expected.map(|span| (Kind::Iban, span)).into_iter().collect();
            assert_eq!(found(text), expected, "{text}");
        }
    }
}
