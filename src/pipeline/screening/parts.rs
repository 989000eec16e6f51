//! Where in a text its odd windows are: for a second look that costs too much for all of it.

use crate::classify::Plan;

/// Windows that get a second look.
const SUSPECTS_MAX: usize = 2;

/// The parts of texts around the windows with the highest first output, strongest first. A window's place in its
/// text is told by its number: tokens are spread evenly enough over bytes, and a part reaches half a window beyond
/// its window on both sides.
pub(super) fn strongest<'a>(
    plan: &Plan,
    texts: &[&'a str],
    rows: &[Vec<f32>],
    counts: &[usize],
) -> Vec<&'a str> {
    let mut places: Vec<(f32, usize, usize)> = Vec::with_capacity(rows.len());
    let mut scores = rows.iter().map(|row| row.first().copied().unwrap_or(f32::MIN));
    for (text, count) in counts.iter().enumerate() {
        places
            .extend(scores.by_ref().take(*count).enumerate().map(|(at, score)| (score, text, at)));
    }
    places.sort_by(|one, other| other.0.total_cmp(&one.0));
    let part = |(_, text, at): &(f32, usize, usize)| {
        let count = counts.get(*text).copied().unwrap_or(1);
        texts.get(*text).map(|text| around(plan, text, *at, count))
    };
    let mut found: Vec<&str> = Vec::new();
    for part in places.iter().take(SUSPECTS_MAX).filter_map(part) {
        // Both windows of a short text are the text.
        if !found.iter().any(|known| std::ptr::eq(*known, part)) {
            found.push(part);
        }
    }
    found
}

/// The part of a text around one of its windows.
fn around<'a>(plan: &Plan, text: &'a str, at: usize, count: usize) -> &'a str {
    if count <= 2 {
        return text;
    }
    let step = plan.window_tokens.saturating_sub(plan.overlap_tokens).max(1) as f64;
    let window = plan.window_tokens as f64;
    let all = step * (count - 1) as f64 + window;
    let share = |tokens: f64| ((tokens / all).clamp(0.0, 1.0) * text.len() as f64) as usize;
    let start = share(step * at as f64 - window / 2.0);
    let end = share(step * at as f64 + 1.5 * window);
    let border = |mut at: usize| {
        while !text.is_char_boundary(at) {
            at -= 1;
        }
        at
    };
    text.get(border(start)..border(end.min(text.len()))).unwrap_or(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::classify::{Activation, Architecture};

    #[test]
    fn parts_hold_their_window_and_no_letter_is_cut() {
        let plan = Plan {
            architecture: Architecture::Cnn { hidden: 1, filters: 1 },
            labels: vec!["injection".into()],
            outputs: 1,
            activation: Activation::Sigmoid(vec![(1.0, 0.0)]),
            window_tokens: 10,
            overlap_tokens: 2,
            vocabulary: None,
        };
        // A token is a word of four letters in two bytes each: eight bytes and a space.
        let words: Vec<String> =
            (0..90).map(|at| format!("\u{44f}\u{44f}\u{44f}{at:02}")).collect();
        let text = words.join(" ");
        let count = 11;
        let rows: Vec<Vec<f32>> = (0..count).map(|at| vec![f32::from(at == 5)]).collect();
        let found =
            strongest(&plan, &["short", &text], &[vec![vec![0.5]], rows].concat(), &[1, count]);
        assert_eq!(found.len(), 2);
        // Window 5 has words 40 to 49.
        for word in words.iter().skip(40).take(10) {
            assert!(found[0].contains(word.as_str()), "{word}: {}", found[0]);
        }
        assert!(found[0].len() < text.len() / 3);
        assert_eq!(found[1], "short");
    }
}
