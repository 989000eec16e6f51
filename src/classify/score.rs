//! From a text to windows, and from windows' outputs to one row of scores.

use super::{Activation, Failure, Plan, Window};
use crate::tokens::Encoder;

/// A text cut into windows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cut {
    /// The windows, in order.
    pub windows: Vec<Window>,
    /// Some of the text is in no window: it had more than `most`.
    pub incomplete: bool,
}

/// Bytes that a token has at most, about: what is longer is cut into slices before it is encoded.
const TOKEN_BYTES: usize = 16;

/// Cuts a text into windows of the model's size that overlap. Where there are more than `most`, the first and
/// the last are kept and the rest are spread evenly between them: a payload may stand anywhere. Takes time in
/// proportion to what is kept, however long the text is.
///
/// # Errors
/// The tokenizer failed.
pub fn cut(encoder: &Encoder, plan: &Plan, text: &str, most: usize) -> Result<Cut, Failure> {
    let slice = plan.window_tokens.saturating_mul(TOKEN_BYTES);
    if text.len() / slice.max(1) > most.max(1) {
        return sliced(encoder, plan, text, most.max(1), slice);
    }
    let (inner, step) = sizes(encoder, plan);
    let cut = encoder.with_ids(text, |ids| {
        let all = match ids.len().checked_sub(inner) {
            None | Some(0) => 1,
            Some(beyond) => 1 + beyond.div_ceil(step),
        };
        let kept = all.min(most.max(1));
        let windows = (0..kept).map(|position| {
            let at = if kept == all { position } else { position * (all - 1) / (kept - 1).max(1) };
            let start = (at * step).min(ids.len());
            around(encoder, ids.get(start..(start + inner).min(ids.len())).unwrap_or_default())
        });
        Cut { windows: windows.collect(), incomplete: kept < all }
    });
    cut.map_err(|error| Failure::Broken(error.to_string()))
}

/// Tokens of text in a window, and from one window's begin to the next.
fn sizes(encoder: &Encoder, plan: &Plan) -> (usize, usize) {
    let special = encoder.before().len() + encoder.after().len();
    let inner = plan.window_tokens.saturating_sub(special).max(1);
    (inner, inner.saturating_sub(plan.overlap_tokens).max(1))
}

fn around(encoder: &Encoder, ids: &[u32]) -> Window {
    [encoder.before(), ids, encoder.after()].concat()
}

/// Windows of slices that are spread over a text which is much longer than what is kept of it.
fn sliced(
    encoder: &Encoder,
    plan: &Plan,
    text: &str,
    most: usize,
    slice: usize,
) -> Result<Cut, Failure> {
    let (inner, _) = sizes(encoder, plan);
    let border = |mut at: usize| {
        while !text.is_char_boundary(at) {
            at -= 1;
        }
        at
    };
    let mut windows = Vec::with_capacity(most);
    for position in 0..most {
        let start = (text.len() - slice) / (most - 1).max(1) * position;
        let part = text.get(border(start)..border(start + slice)).unwrap_or_default();
        let window = encoder.with_ids(part, |ids| {
            around(encoder, ids.get(..inner.min(ids.len())).unwrap_or_default())
        });
        windows.push(window.map_err(|error| Failure::Broken(error.to_string()))?);
    }
    Ok(Cut { windows, incomplete: true })
}

/// The strongest score of each label over all windows, as probabilities.
///
/// # Errors
/// [`Failure::NotANumber`]; [`Failure::Broken`] where rows have the wrong length.
pub fn strongest(plan: &Plan, rows: &[Vec<f32>]) -> Result<Vec<f32>, Failure> {
    let mut best = vec![0.0_f32; plan.labels.len()];
    for row in rows {
        if row.len() != plan.outputs {
            return Err(Failure::Broken(format!(
                "{} numbers instead of {}",
                row.len(),
                plan.outputs
            )));
        }
        if !row.iter().all(|number| number.is_finite()) {
            return Err(Failure::NotANumber);
        }
        for (best, score) in best.iter_mut().zip(probabilities(plan, row)) {
            *best = best.max(score);
        }
    }
    Ok(best)
}

/// Probabilities of the labels that count, from one row of raw outputs.
fn probabilities(plan: &Plan, row: &[f32]) -> Vec<f32> {
    let sigmoid = |logit: f32| 1.0 / (1.0 + (-logit).exp());
    match &plan.activation {
        Activation::Sigmoid(scales) => {
            let scale = |at: usize| scales.get(at).copied().unwrap_or((1.0, 0.0));
            let calibrated = row.iter().enumerate().map(|(at, logit)| {
                let (factor, offset) = scale(at);
                sigmoid(logit * factor + offset)
            });
            calibrated.collect()
        }
        Activation::Strongest(groups) => {
            let strongest = |members: &Vec<usize>| {
                let outputs = members.iter().filter_map(|at| row.get(*at));
                outputs.map(|logit| sigmoid(*logit)).fold(0.0, f32::max)
            };
            groups.iter().map(strongest).collect()
        }
        Activation::Softmax(groups) => {
            let top = row.iter().copied().fold(f32::MIN, f32::max);
            let powers: Vec<f32> = row.iter().map(|logit| (logit - top).exp()).collect();
            let sum: f32 = powers.iter().sum();
            let share = |members: &Vec<usize>| {
                members.iter().filter_map(|at| powers.get(*at)).sum::<f32>() / sum
            };
            groups.iter().map(share).collect()
        }
    }
}
