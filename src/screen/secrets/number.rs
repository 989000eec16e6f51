//! Digits: which of the numbers that are given to people and accounts a run of them can be.
//!
//! A number with a strong check or a telling form is enough; one that chance passes too often (or that has
//! no check at all) must have a word near that names it.

use super::{
    alphabet::{ALNUM, Alphabet, DIGIT, LETTER, UPPER, WORD},
    bank,
    checks::{self, fiscal_code_letter},
    detect::Hit,
    kind::{Kind, Kinds},
    view::View,
};
use memchr::memmem;
use std::ops::Range;

/// All that digits can be.
pub(super) const KINDS: Kinds = Kinds::of(&[
    Kind::PaymentCard,
    Kind::Iban,
    Kind::UsSsn,
    Kind::CnResidentId,
    Kind::FrNir,
    Kind::PlPesel,
    Kind::BrCpf,
    Kind::DeTaxId,
    Kind::InAadhaar,
    Kind::NlBsn,
    Kind::EsDni,
    Kind::UkNino,
    Kind::ItFiscalCode,
]);

/// Most groups that are read, most digits of one, and most digits of all.
const GROUPS: usize = 8;
const GROUP_MAX: usize = 20;
const DIGITS_MAX: usize = 48;
/// Fewest digits of what is digits only.
const DIGITS_MIN: usize = 8;
/// How far before a number a word still names it, bytes.
const NEAR: usize = 48;
/// Most letters before the first digit: those of an Italian fiscal code.
const LETTERS: usize = 6;

/// Digits in groups with one separator between each two. Digits are everywhere, so nothing is allocated.
pub(super) struct Groups {
    start: usize,
    digits: ([u8; DIGITS_MAX], usize),
    sizes: ([usize; GROUPS], usize),
    separators: [u8; GROUPS],
}

impl Groups {
    /// Reads the groups from a digit on.
    fn read(view: &View<'_>, start: usize) -> Self {
        let mut groups = Self {
            start,
            digits: ([0; DIGITS_MAX], 0),
            sizes: ([0; GROUPS], 0),
            separators: [0; GROUPS],
        };
        let mut from = start;
        for (size, separator) in groups.sizes.0.iter_mut().zip(&mut groups.separators) {
            let to = view.run(from, DIGIT, GROUP_MAX);
            let (all, count) = &mut groups.digits;
            let free = all.get_mut(*count..).unwrap_or_default();
            for (place, byte) in free.iter_mut().zip(view.slice(from..to)) {
                *place = byte - b'0';
                *count += 1;
            }
            *size = to - from;
            groups.sizes.1 += 1;
            match view.get(to) {
                Some(byte @ (b' ' | b'-' | b'.')) if view.is(to + 1, DIGIT) => *separator = byte,
                _ => break,
            }
            from = to + 1;
        }
        groups
    }

    /// All digits, as numbers.
    pub(super) fn digits(&self) -> &[u8] {
        self.digits.0.get(..self.digits.1).unwrap_or_default()
    }

    /// Digits of each group.
    pub(super) fn sizes(&self) -> &[usize] {
        self.sizes.0.get(..self.sizes.1).unwrap_or_default()
    }

    /// The first separator, 0 if there is none.
    pub(super) fn separator(&self) -> u8 {
        self.separators.first().copied().unwrap_or(0)
    }

    /// The digits and the end of the first groups, if they have these sizes and these separators between.
    pub(super) fn like(&self, sizes: &[usize], separators: &[u8]) -> Option<(&[u8], usize)> {
        if !self.sizes().starts_with(sizes) || !self.separators.starts_with(separators) {
            return None;
        }
        let count: usize = sizes.iter().sum();
        let end = self.start + count + sizes.len().saturating_sub(1);
        Some((self.digits().get(..count)?, end))
    }

    /// Does another group of this size follow the first ones, with the same separator?
    pub(super) fn goes_on(&self, groups: usize, size: usize) -> bool {
        groups > 1
            && self.sizes().get(groups) == Some(&size)
            && self.separators.get(groups - 1) == self.separators.first()
    }
}

/// The number whose first digit is at `at`.
pub(super) fn detect(view: &View<'_>, at: usize) -> Option<Hit> {
    let letters = view.run_back(at, LETTER, LETTERS);
    view.begins(letters);
    if letters < at || view.was(at, Alphabet::of(b" ")) {
        let lettered = lettered(view, at, letters);
        if lettered.is_some() || letters < at {
            return lettered;
        }
        view.begins(at);
    }
    if !starts_number(view, at) {
        return None;
    }
    let groups = Groups::read(view, at);
    if groups.digits().len() < DIGITS_MIN {
        return None;
    }
    chinese_id(view, at, &groups)
        .or_else(|| bank::card(view, at, &groups))
        .or_else(|| dni(view, at, at, &groups))
        .or_else(|| national(view, at, &groups))
}

/// Is this a number's start, and not the middle of a decimal fraction, an identifier or a longer number?
fn starts_number(view: &View<'_>, at: usize) -> bool {
    let Some(before) = view.before(at) else { return true };
    let second = at.checked_sub(2).and_then(|at| view.get(at));
    let inside = match before {
        b'+' => true,
        b'.' | b',' | b':' => second.is_some_and(|byte| DIGIT.has(byte)),
        b'-' => second.is_some_and(|byte| ALNUM.has(byte)),
        byte => WORD.has(byte),
    };
    !inside
}

/// Does a number end here, and not in the middle of a decimal fraction, an identifier or a longer number?
pub(super) fn ends_number(view: &View<'_>, at: usize) -> bool {
    match view.get(at) {
        None => true,
        Some(b'.' | b',' | b':') => !view.is(at + 1, DIGIT),
        Some(b'-' | b'@') => !view.is(at + 1, ALNUM),
        Some(byte) => !WORD.has(byte),
    }
}

/// Does one of the words stand near before `at`? Words are in lower case, as far as ASCII goes.
fn named(view: &View<'_>, at: usize, words: &[&str]) -> bool {
    let before = view.behind(at, NEAR).to_ascii_lowercase();
    words.iter().any(|word| memmem::rfind(&before, word.as_bytes()).is_some())
}

// === Numbers that start with letters ===

fn lettered(view: &View<'_>, at: usize, letters: usize) -> Option<Hit> {
    match at - letters {
        0 => insurance_number(view, at),
        1 if view.was(at, Alphabet::of(b"XYZ")) && !view.was(letters, WORD) => {
            dni(view, letters, at, &Groups::read(view, at))
        }
        2 => bank::iban(view, letters).or_else(|| insurance_number(view, at)),
        6 => fiscal_code(view, letters),
        _ => None,
    }
}

/// `AB 12 34 56 C` and the same without spaces.
fn insurance_number(view: &View<'_>, at: usize) -> Option<Hit> {
    if !view.wants(Kind::UkNino) {
        return None;
    }
    let behind = if view.was(at, Alphabet::of(b" ")) { at - 1 } else { at };
    let start = view.run_back(behind, UPPER, 2);
    let &[first, second] = view.slice(start..behind) else { return None };
    view.begins(start);
    let groups = Groups::read(view, at);
    let (_, end) = groups.like(&[6], b"").or_else(|| groups.like(&[2, 2, 2], b"  "))?;
    let letter = end + usize::from(view.is(end, Alphabet::of(b" ")));
    let good = !view.was(start, WORD)
        && !b"DFIQUV".contains(&first)
        && !b"DFIOQUV".contains(&second)
        && ![b"BG", b"GB", b"NK", b"KN", b"TN", b"NT", b"ZZ"].contains(&&[first, second])
        && view.is(letter, Alphabet::of(b"ABCD"))
        && ends_number(view, letter + 1);
    good.then(|| Hit::new(Kind::UkNino, start..letter + 1))
}

/// Six letters of a name, then birthday, place and a check letter; digits may have become letters where two
/// people would have had the same code.
fn fiscal_code(view: &View<'_>, start: usize) -> Option<Hit> {
    let end = view.run(start, ALNUM, 17);
    if end - start != 16 || !view.wants(Kind::ItFiscalCode) || view.was(start, WORD) {
        return None;
    }
    let code = view.slice(start..end).to_ascii_uppercase();
    let (check, body) = code.split_last()?;
    let fits = |(place, byte): (usize, &u8)| match place {
        0..=5 | 11 => UPPER.has(*byte),
        8 => b"ABCDEHLMPRST".contains(byte),
        _ => DIGIT.has(*byte) || b"LMNPQRSTUV".contains(byte),
    };
    let good = body.iter().enumerate().all(fits) && *check == fiscal_code_letter(body);
    (good && !view.is(end, WORD)).then(|| Hit::new(Kind::ItFiscalCode, start..end))
}

/// Eight digits and a letter, or `X`, `Y`, `Z`, seven digits and a letter. `start` is where it starts, `at`
/// where its digits do.
fn dni(view: &View<'_>, start: usize, at: usize, groups: &Groups) -> Option<Hit> {
    let size = 8 - (at - start);
    if !view.wants(Kind::EsDni) || groups.sizes().first() != Some(&size) {
        return None;
    }
    let end = at + size;
    let letter = end + usize::from(view.is(end, Alphabet::of(b"-")));
    let found = view.get(letter).filter(|byte| UPPER.has(*byte))?;
    let first = view.slice(start..at).iter().map(|byte| byte - b'X');
    let digits: Vec<u8> = first.chain(groups.digits().iter().copied().take(size)).collect();
    let good = checks::dni_letter(&digits) == Some(found) && ends_number(view, letter + 1);
    good.then(|| Hit::new(Kind::EsDni, start..letter + 1))
}

// === Numbers of digits only ===

/// 17 digits and a digit or `X`.
fn chinese_id(view: &View<'_>, at: usize, groups: &Groups) -> Option<Hit> {
    if !view.wants(Kind::CnResidentId) || !matches!(groups.sizes().first(), Some(17 | 18)) {
        return None;
    }
    let check = view.get(at + 17)?;
    let digits = groups.digits().get(..17)?;
    let good = checks::chinese_id(digits, check) && ends_number(view, at + 18);
    good.then(|| Hit::new(Kind::CnResidentId, at..at + 18))
}

/// One way to write a kind of number.
struct Form {
    kind: Kind,
    sizes: &'static [usize],
    separators: &'static [u8],
    check: fn(&[u8]) -> bool,
    /// Words one of which must stand near before it; none if the form is telling.
    names: &'static [&'static str],
}

const fn form(
    kind: Kind,
    sizes: &'static [usize],
    separators: &'static [u8],
    check: fn(&[u8]) -> bool,
    names: &'static [&'static str],
) -> Form {
    Form { kind, sizes, separators, check, names }
}

const SSN: &[&str] = &["ssn", "social security", "social-security"];
const PESEL: &[&str] = &["pesel"];
const CPF: &[&str] = &["cpf"];
const TAX_ID: &[&str] = &["steuer", "idnr", "tax id"];
const AADHAAR: &[&str] = &["aadhaar", "aadhar", "uidai", "आधार"];
const BSN: &[&str] = &["bsn", "burgerservice", "sofinummer", "sofi-nummer"];

/// Those with a name near come first: eleven digits can be three things.
static FORMS: &[Form] = &[
    form(Kind::PlPesel, &[11], b"", checks::pesel, PESEL),
    form(Kind::BrCpf, &[11], b"", checks::cpf, CPF),
    form(Kind::DeTaxId, &[11], b"", checks::german_tax_id, TAX_ID),
    form(Kind::UsSsn, &[9], b"", checks::ssn, SSN),
    form(Kind::UsSsn, &[3, 2, 4], b"  ", checks::ssn, SSN),
    form(Kind::InAadhaar, &[12], b"", checks::aadhaar, AADHAAR),
    form(Kind::NlBsn, &[9], b"", checks::bsn, BSN),
    form(Kind::NlBsn, &[4, 2, 3], b"..", checks::bsn, BSN),
    form(Kind::NlBsn, &[3, 3, 3], b"  ", checks::bsn, BSN),
    form(Kind::UsSsn, &[3, 2, 4], b"--", checks::ssn, &[]),
    form(Kind::BrCpf, &[3, 3, 3, 2], b"..-", checks::cpf, &[]),
    form(Kind::InAadhaar, &[4, 4, 4], b"  ", checks::aadhaar, &[]),
    form(Kind::InAadhaar, &[4, 4, 4], b"--", checks::aadhaar, &[]),
    form(Kind::FrNir, &[15], b"", checks::nir, &[]),
    form(Kind::FrNir, &[13, 2], b" ", checks::nir, &[]),
    form(Kind::FrNir, &[1, 2, 2, 2, 3, 3, 2], b"      ", checks::nir, &[]),
    form(Kind::DeTaxId, &[2, 3, 3, 3], b"   ", checks::german_tax_id, &[]),
    form(Kind::DeTaxId, &[11], b"", checks::german_tax_id, &[]),
    form(Kind::PlPesel, &[11], b"", checks::pesel, &[]),
];

fn national(view: &View<'_>, at: usize, groups: &Groups) -> Option<Hit> {
    let found = |form: &Form| -> Option<Range<usize>> {
        let (digits, end) = groups.like(form.sizes, form.separators)?;
        let last = form.sizes.last().copied().unwrap_or(0);
        let good = view.wants(form.kind)
            && (form.check)(digits)
            && ends_number(view, end)
            && !groups.goes_on(form.sizes.len(), last)
            && (form.names.is_empty() || named(view, at, form.names));
        good.then_some(at..end)
    };
    FORMS.iter().find_map(|form| Some(Hit::new(form.kind, found(form)?)))
}

#[cfg(test)]
#[path = "number_tests.rs"]
mod tests;
