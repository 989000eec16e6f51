//! Check digits and checksums. All take digits as numbers 0 to 9, most significant first, unless said
//! otherwise; none panics whatever it is given.

/// The weighted sum of digits. Digits without a weight count nothing.
fn weigh(digits: &[u8], weights: &[u32]) -> u32 {
    digits.iter().zip(weights).map(|(digit, weight)| u32::from(*digit) * weight).sum()
}

/// Luhn's check digit (ISO/IEC 7812): every second digit from the right counts twice.
pub(super) fn luhn(digits: &[u8]) -> bool {
    let value = |(place, digit): (usize, &u8)| {
        let doubled = u32::from(*digit) << (place % 2);
        doubled - if doubled > 9 { 9 } else { 0 }
    };
    !digits.is_empty() && digits.iter().rev().enumerate().map(value).sum::<u32>() % 10 == 0
}

/// Verhoeff's check digit: digits are elements of the dihedral group of ten, permuted by their place.
pub(super) fn verhoeff(digits: &[u8]) -> bool {
    // One step of the permutation; it is applied as often as the digit's place from the right says.
    const STEP: [u8; 10] = [1, 5, 7, 6, 2, 8, 3, 0, 9, 4];
    let permuted = |digit: u8, times: usize| {
        (0..times % 8).fold(digit, |digit, _| STEP.get(usize::from(digit)).copied().unwrap_or(0))
    };
    let sum = digits
        .iter()
        .rev()
        .enumerate()
        .fold(0, |sum, (place, digit)| dihedral(sum, permuted(*digit, place)));
    !digits.is_empty() && sum == 0
}

/// The product in the group of a pentagon's symmetries: 0 to 4 turn it, 5 to 9 flip it.
fn dihedral(a: u8, b: u8) -> u8 {
    match (a < 5, b < 5) {
        (true, true) => (a + b) % 5,
        (true, false) => 5 + (a + b - 5) % 5,
        (false, true) => 5 + (a - 5 + 5 - b) % 5,
        (false, false) => (a + 5 - b) % 5,
    }
}

/// The rest that letters and digits leave divided by 97, as in ISO/IEC 7064 (`A` is 10). A number that
/// carries its check digits leaves 1.
pub(super) fn mod_97(characters: impl Iterator<Item = u8>) -> u32 {
    characters.fold(0, |rest, byte| match byte {
        b'0'..=b'9' => (rest * 10 + u32::from(byte - b'0')) % 97,
        _ => (rest * 100 + u32::from(byte.to_ascii_uppercase().wrapping_sub(b'A')) + 10) % 97,
    })
}

/// The number that digits write.
pub(super) fn number(digits: &[u8]) -> u64 {
    digits.iter().fold(0_u64, |sum, digit| sum.wrapping_mul(10).wrapping_add(u64::from(*digit)))
}

/// Is this a day of the Gregorian calendar?
pub(super) fn is_date(year: u64, month: u64, day: u64) -> bool {
    let leap = year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    let days = match month {
        4 | 6 | 9 | 11 => 30,
        2 if leap => 29,
        2 => 28,
        1..=12 => 31,
        _ => 0,
    };
    (1..=days).contains(&day)
}

/// Is every digit the same? Such numbers pass some checks and are never given out.
pub(super) fn all_same(digits: &[u8]) -> bool {
    digits.windows(2).all(|pair| pair.first() == pair.last())
}

/// Polish PESEL, 11 digits: a birthday whose month tells the century, and a weighted sum.
pub(super) fn pesel(digits: &[u8]) -> bool {
    let &[y1, y2, m1, m2, d1, d2, ..] = digits else { return false };
    let coded = number(&[m1, m2]);
    let century = match coded / 20 {
        0 => 1900,
        1 => 2000,
        2 => 2100,
        3 => 2200,
        _ => 1800,
    };
    let sum = weigh(digits, &[1, 3, 7, 9, 1, 3, 7, 9, 1, 3, 1]);
    digits.len() == 11
        && is_date(century + number(&[y1, y2]), coded % 20, number(&[d1, d2]))
        && sum.is_multiple_of(10)
}

/// Brazilian CPF, 11 digits, the last two of them weighted sums.
pub(super) fn cpf(digits: &[u8]) -> bool {
    let right = |counted: usize| {
        let sum: u32 = digits
            .iter()
            .take(counted)
            .zip((2..=counted as u32 + 1).rev())
            .map(|(digit, weight)| u32::from(*digit) * weight)
            .sum();
        digits.get(counted).is_some_and(|check| u32::from(*check) == sum * 10 % 11 % 10)
    };
    digits.len() == 11 && right(9) && right(10) && !all_same(digits)
}

/// German tax identification number, 11 digits: among the first ten one digit comes twice or three times
/// and no other more than once; ISO/IEC 7064 MOD 11,10.
pub(super) fn german_tax_id(digits: &[u8]) -> bool {
    let Some((check, body)) = digits.split_last().filter(|(_, body)| body.len() == 10) else {
        return false;
    };
    let times = |digit: u8| body.iter().filter(|other| **other == digit).count();
    let repeated = (0..10).filter(|digit| times(*digit) > 1).count();
    let most = (0..10).map(times).max().unwrap_or(0);
    let product = body.iter().fold(10, |product, digit| {
        let sum = (u32::from(*digit) + product) % 10;
        (if sum == 0 { 10 } else { sum }) * 2 % 11
    });
    body.first() != Some(&0)
        && repeated == 1
        && most <= 3
        && u32::from(*check) == (11 - product) % 10
}

/// Indian Aadhaar number, 12 digits: not from 0 or 1 on, and Verhoeff's check digit.
pub(super) fn aadhaar(digits: &[u8]) -> bool {
    digits.len() == 12 && digits.first() > Some(&1) && verhoeff(digits) && !all_same(digits)
}

/// Dutch citizen service number, 9 digits: the weighted sum whose last weight is -1 divides by 11.
pub(super) fn bsn(digits: &[u8]) -> bool {
    let Some((check, body)) = digits.split_last().filter(|(_, body)| body.len() == 8) else {
        return false;
    };
    let sum = weigh(body, &[9, 8, 7, 6, 5, 4, 3, 2]);
    sum > 0 && sum % 11 == u32::from(*check)
}

/// French social security number, 15 digits: sex, year, month, place, order, and what is missing to 97.
pub(super) fn nir(digits: &[u8]) -> bool {
    let &[sex, _, _, m1, m2, ..] = digits else { return false };
    let (body, key) = digits.split_at(digits.len().saturating_sub(2));
    digits.len() == 15
        && matches!(sex, 1..=4 | 7 | 8)
        && matches!(number(&[m1, m2]), 1..=12 | 20..=42 | 50..=99)
        && 97 - number(body) % 97 == number(key)
}

/// Chinese resident identity number: region, birthday, order (17 digits) and a check character (GB 11643).
pub(super) fn chinese_id(digits: &[u8], check: u8) -> bool {
    let &[r1, r2, _, _, _, _, y1, y2, y3, y4, m1, m2, d1, d2, ..] = digits else { return false };
    let year = number(&[y1, y2, y3, y4]);
    let sum = weigh(digits, &[7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2]);
    let expected = b"10X98765432".get(sum as usize % 11);
    digits.len() == 17
        && matches!(number(&[r1, r2]), 11..=65 | 71 | 81..=83 | 91)
        && (1850..=2099).contains(&year)
        && is_date(year, number(&[m1, m2]), number(&[d1, d2]))
        && expected == Some(&check.to_ascii_uppercase())
}

/// United States social security number, 9 digits: it has no check digit, but some are never given out.
pub(super) fn ssn(digits: &[u8]) -> bool {
    let (area, rest) = digits.split_at(digits.len().min(3));
    let (group, serial) = rest.split_at(rest.len().min(2));
    // The last two were printed in advertisements.
    digits.len() == 9
        && !matches!(number(area), 0 | 666 | 900..)
        && number(group) != 0
        && number(serial) != 0
        && !matches!(number(digits), 78_051_120 | 219_099_999)
}

/// The letter of a Spanish DNI or NIE, whose first letter `X`, `Y`, `Z` is given as 0, 1, 2.
pub(super) fn dni_letter(digits: &[u8]) -> Option<u8> {
    b"TRWAGMYFPDXBNJZSQVHLCKE".get((number(digits) % 23) as usize).copied()
}

/// The check letter of an Italian codice fiscale, of its first 15 characters (upper case).
pub(super) fn fiscal_code_letter(characters: &[u8]) -> u8 {
    // What a character at an odd place counts, by its place in the alphabet; digits count as A to J.
    const ODD: [u32; 26] = [
        1, 0, 5, 7, 9, 13, 15, 17, 19, 21, 2, 4, 18, 20, 11, 3, 6, 8, 12, 14, 16, 10, 22, 25, 24,
        23,
    ];
    let value = |(place, byte): (usize, &u8)| {
        let rank = if byte.is_ascii_digit() { byte - b'0' } else { byte.wrapping_sub(b'A') };
        match place % 2 {
            0 => ODD.get(usize::from(rank)).copied().unwrap_or(0),
            _ => u32::from(rank),
        }
    };
    let sum: u32 = characters.iter().enumerate().map(value).sum();
    b'A' + (sum % 26) as u8
}

/// CRC-32 (ISO 3309) of bytes.
fn crc32(bytes: &[u8]) -> u32 {
    let step = |crc: u32| if crc & 1 == 1 { crc >> 1 ^ 0xEDB8_8320 } else { crc >> 1 };
    let add = |crc: u32, byte: &u8| (0..8).fold(crc ^ u32::from(*byte), |crc, _| step(crc));
    !bytes.iter().fold(!0, add)
}

/// Do the last six characters hold the CRC-32 of those before, in base 62 (digits, upper case, lower case)?
/// GitHub and npm make their tokens so.
pub(super) fn crc_in_base_62(body: &[u8]) -> bool {
    let Some((text, check)) = body.split_last_chunk::<6>() else { return false };
    let digit = |byte: u8| match byte {
        b'0'..=b'9' => byte - b'0',
        b'A'..=b'Z' => byte - b'A' + 10,
        _ => byte.wrapping_sub(b'a').wrapping_add(36),
    };
    let value = check.iter().fold(0_u64, |sum, byte| sum * 62 + u64::from(digit(*byte)));
    value == u64::from(crc32(text))
}

/// Can this be an AWS key id? Of the 16 base-32 characters behind the prefix the first bit tells the newer
/// form, and in that the next 40 bits are the account's number, which has at most twelve digits.
pub(super) fn aws_account(body: &[u8]) -> bool {
    let digit = |byte: u8| match byte {
        b'A'..=b'Z' => u64::from(byte - b'A'),
        _ => u64::from(byte.wrapping_sub(b'2')) + 26,
    };
    // 50 bits: the form's bit, the account's 40, and nine that tell nothing.
    let bits = body.iter().take(10).fold(0, |sum, byte| sum << 5 | digit(*byte));
    let newer = bits >> 49 & 1 == 1;
    !newer || (bits >> 9 & ((1 << 40) - 1)) < 1_000_000_000_000
}

#[cfg(test)]
#[path = "checks_tests.rs"]
mod tests;
