//! Tells language from letters: by how well letters follow each other, and by words that are common. It
//! knows languages that are written in Latin letters.

use std::{collections::HashSet, sync::LazyLock};

/// How often one letter follows another, from 0 for hardly ever to 9: 9 + 0.85 * log2 of the probability.
/// Rows are the first letter, columns the second; the first of each stands for a word's end. Counted in the
/// messages of common programs in eleven languages: English (a third of it), German, French, Spanish,
/// Italian, Portuguese, Dutch, Polish, Indonesian, Turkish and Swedish.
static FOLLOWS: [&[u8; 27]; 27] = [
    b"065565544624555562566554233",
    b"745550343425657141656432233",
    b"563217210741632610643600051",
    b"570416007635400720536500024",
    b"762238010601313620443512032",
    b"743554442424556132765332422",
    b"761136520701511720545500030",
    b"761137054603435520654600000",
    b"770118002602423600436401010",
    b"654556451134657642566241224",
    b"671158330605325630053642004",
    b"772317032603514620456521000",
    b"772157232702633620245520040",
    b"775227110601454660132510010",
    b"762566462613324620256440032",
    b"724553440303567450755534102",
    b"670437233502612750645510031",
    b"500010000000500000203904000",
    b"763457241603354622455533043",
    b"751517224604322552157512042",
    b"761327215702322630644512042",
    b"654446441524667350666232222",
    b"571118100600122710431320010",
    b"770237015702205620541300052",
    b"853526211702230370127300342",
    b"863525330433465560355304001",
    b"673337030702445520124505054",
];

/// Words of such languages that are common, or commonly said to a model. Left out are those that read
/// backwards or by ROT13 are words too.
const COMMON: &str = "\
    aber about above account act adalah after again akan all alle alles also anche and answer \
    anteriores anweisungen ask assistant atau auch aux avant avec because been before being \
    below between bij bitte bypass can cette change character che code com come command comme \
    como con content conversation could czy daha dans dari data dei dein deine del delete dell \
    della delle dengan der desde det developer deze die diese dime disregard dla does donde \
    donne door dos earlier eller else email esta estas este every everything execute fait file \
    first foi follow following for forget from geen give given gli hasta have hay hello here het \
    hidden him his hoe how human ich ignora ignore ignorez ignoriere important information \
    instead instrucciones instructies instruction instructions into isso ist istruzioni jest \
    just kann keep kein keine kepada key keys know language les leur like list longer look maar \
    mais make message messages mit model more must naar nach name need negeer never new nicht \
    niet noch not nothing nous now obey och olarak only ook oraz order other our output over \
    override pada par para pas password pelo people pero peut play please plus por pour \
    precedenti pretend previous print prior prompt provide przed przez puede qualche quando que \
    quem questa question questo qui quoi read regeln reglas reply respond response restrictions \
    return reveal role rules run safety sans say schreibe sebelumnya secret secrets semua send \
    sensitive seu should show sie sind sistema sobre som some sono sont start stop system task \
    tego tell than that the their them then there these they this tidak tidigare till time todas \
    todo todos token tool tools tous tout toutes translate tutte tutti two tylko uma und under \
    until untuk use user users usted very veya voor vorherigen vorige vos votre vous waar want \
    was wat werden what when where which who wie will wird with without word worden words work \
    world would write wszystkie yang you your zeige zijn zum zur";

static COMMON_SET: LazyLock<HashSet<&'static [u8]>> =
    LazyLock::new(|| COMMON.split_ascii_whitespace().map(str::as_bytes).collect());

/// Letters of the longest common word.
const COMMON_MAX: usize = 16;
/// How well letters follow each other in language, at the least, on the mean. Of sentences in any of the
/// languages 99 in 100 reach it; of the same by ROT13 fewer than 1 in 10.
pub(super) const FLUENT: f32 = 4.9;

/// A letter's place in [`FOLLOWS`]: 0 is a word's end.
pub(super) type Place = u8;
/// The place of a letter that is not ASCII: what follows it is not known.
const UNKNOWN: Place = 27;

/// The place of a byte.
pub(super) fn place(byte: u8) -> Place {
    match byte {
        b'a'..=b'z' => byte - b'a' + 1,
        b'A'..=b'Z' => byte - b'A' + 1,
        0x80.. => UNKNOWN,
        _ => 0,
    }
}

/// How often one follows the other. `None` where that is not known, or there is nothing.
pub(super) fn follows(first: Place, second: Place) -> Option<i32> {
    let often = FOLLOWS.get(usize::from(first))?.get(usize::from(second))?;
    (first > 0 || second > 0).then_some(i32::from(*often) - i32::from(b'0'))
}

/// How well a text's letters follow each other, on the mean, and how many pairs there are.
pub(super) fn fluency(text: &str) -> (f32, u32) {
    let (mut sum, mut pairs) = (0, 0_u32);
    let mut before = 0;
    for place in text.bytes().map(place).chain([0]) {
        if let Some(often) = follows(before, place) {
            sum += often;
            pairs += 1;
        }
        before = place;
    }
    (sum as f32 / pairs.max(1) as f32, pairs)
}

/// Whether these letters are a common word.
pub(super) fn is_common(letters: impl Iterator<Item = u8>) -> bool {
    let mut word = [0; COMMON_MAX];
    let mut len = 0;
    for letter in letters {
        let Some(slot) = word.get_mut(len) else { return false };
        *slot = letter.to_ascii_lowercase();
        len += 1;
    }
    word.get(..len).is_some_and(|word| COMMON_SET.contains(word))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_and_letters_are_told_from_others() {
        for word in ["ignore", "Instructions", "PASSWORD", "nicht", "instrucciones"] {
            assert!(is_common(word.bytes()) && fluency(word).0 >= FLUENT, "{word}");
        }
        for word in ["vtaber", "xkcdq", "", "internationalization-of-everything"] {
            assert!(!is_common(word.bytes()), "{word}");
        }
        for text in ["qxzv kjq wvx", "xqjz", "", "0123"] {
            assert!(fluency(text).0 < 3.0, "{text}");
        }
        assert!(FOLLOWS.iter().flat_map(|row| row.iter()).all(u8::is_ascii_digit));
        for word in &*COMMON_SET {
            let mut back = word.to_vec();
            back.reverse();
            assert!(word.len() <= COMMON_MAX && (2..).contains(&word.len()));
            assert!(!COMMON_SET.contains(&*back), "{}", String::from_utf8_lossy(word));
        }
    }
}
