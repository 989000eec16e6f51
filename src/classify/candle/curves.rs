//! The curves of a network, made for rows of numbers: no call into a mathematics library for each.

use std::sync::LazyLock;

/// Beyond this GELU is zero or the number itself, to within a float's precision.
const GELU_REACH: f32 = 6.0;
/// Steps of its table. Between two steps a line errs by less than 3e-7, a float's own precision there.
const GELU_STEPS: usize = 16 * 1024;

static GELU: LazyLock<Vec<f32>> = LazyLock::new(|| {
    let step = 2.0 * f64::from(GELU_REACH) / GELU_STEPS as f64;
    let at = |position: usize| {
        let number = position as f64 * step - f64::from(GELU_REACH);
        (number * normal_below(number)) as f32
    };
    (0..=GELU_STEPS + 1).map(at).collect()
});

/// Share of the normal distribution below `x`, by the power series of the error function, which converges
/// everywhere and is short enough within the table's reach.
fn normal_below(x: f64) -> f64 {
    let (mut term, mut sum, mut place) = (x, x, 1.0);
    while term.abs() > 1e-17 {
        place += 2.0;
        term *= x * x / place;
        sum += term;
    }
    0.5 + sum * (-0.5 * x * x).exp() / (2.0 * std::f64::consts::PI).sqrt()
}

/// GELU in its exact form (Hendrycks and Gimpel 2016): `x` times the share of the normal distribution below it.
pub(super) fn gelu(numbers: &mut [f32]) {
    let table = GELU.as_slice();
    let scale = GELU_STEPS as f32 / (2.0 * GELU_REACH);
    for number in numbers {
        let place = (*number + GELU_REACH) * scale;
        *number = if place <= 0.0 {
            0.0
        } else if place >= GELU_STEPS as f32 {
            *number
        } else {
            let at = place as usize;
            match table.get(at..at + 2) {
                Some([low, high]) => low + (high - low) * (place - at as f32),
                // Only what is no number gets here.
                _ => *number,
            }
        };
    }
}

/// Turns rows of `width` scores, each times `scale`, into shares of one.
pub(super) fn softmax(rows: &mut [f32], width: usize, scale: f32) {
    for row in rows.chunks_exact_mut(width.max(1)) {
        let top = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        row.iter_mut().for_each(|number| *number = power((*number - top) * scale));
        let sum: f32 = row.iter().sum();
        row.iter_mut().for_each(|number| *number /= sum);
    }
}

/// `e` to the power of a number that is not above zero: two to the whole part by way of the exponent's bits, the
/// rest by its Taylor series, which errs by less than 2e-7 within half a step.
fn power(number: f32) -> f32 {
    let twos = (number * std::f32::consts::LOG2_E).max(-126.0);
    let whole = (twos - 0.5) as i32;
    let rest = (twos - whole as f32) * std::f32::consts::LN_2;
    let series = 1.0
        + rest
            * (1.0
                + rest
                    * (0.5
                        + rest
                            * (1.0 / 6.0
                                + rest * (1.0 / 24.0 + rest * (1.0 / 120.0 + rest / 720.0)))));
    series * f32::from_bits(((whole + 127) as u32) << 23)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn curves_are_those_of_the_books() {
        // x, GELU(x): from the error function to twelve digits.
        for (x, wanted) in [
            (-7.0, 0.0),
            (-3.0, -0.004_049_694),
            (-1.0, -0.158_655_26),
            (-0.3, -0.114_626_7),
            (0.0, 0.0),
            (0.5, 0.345_731_23),
            (1.0, 0.841_344_7),
            (2.5, 2.484_475_6),
            (9.0, 9.0),
        ] {
            let mut one = [x];
            gelu(&mut one);
            assert!((one[0] - wanted).abs() < 1e-6, "{x}: {} {wanted}", one[0]);
        }
        for step in 0..2000 {
            let number = -0.05 * step as f32;
            let (ours, theirs) = (power(number), number.exp());
            assert!((ours - theirs).abs() <= 1e-5 * theirs + 1e-37, "{number}: {ours} {theirs}");
        }
        let mut row = [0.0, f32::ln(3.0), -1e30];
        softmax(&mut row, 3, 1.0);
        assert!((row[0] - 0.25).abs() < 1e-6 && (row[1] - 0.75).abs() < 1e-6 && row[2] < 1e-30);
    }

    #[test]
    fn what_is_no_number_stays_none() {
        let mut numbers = [f32::NAN, f32::INFINITY];
        gelu(&mut numbers);
        assert!(numbers[0].is_nan() && numbers[1] == f32::INFINITY);
    }
}
