//! Splits a whole number by weights, so that the parts add up to it exactly.

/// The parts of `total` in the proportion of `weights`, in their order: each is rounded down, and what is
/// left goes one by one to those that lost most by it (largest remainder). Where all weights are zero, all
/// parts are alike. Empty only without weights.
pub fn split(total: u64, weights: &[u64]) -> Vec<u64> {
    let sum: u128 = weights.iter().map(|weight| u128::from(*weight)).sum();
    let (sum, alike) = if sum == 0 { (weights.len() as u128, true) } else { (sum, false) };
    let mut lost = Vec::with_capacity(weights.len());
    let mut parts: Vec<u64> = Vec::with_capacity(weights.len());
    let mut left = total;
    for (index, weight) in weights.iter().enumerate() {
        let product = u128::from(total) * if alike { 1 } else { u128::from(*weight) };
        // A part is never more than the total, so it fits.
        let part = u64::try_from(product / sum).unwrap_or(total);
        left = left.saturating_sub(part);
        parts.push(part);
        lost.push((product % sum, index));
    }
    // Fewer are left than there are parts.
    let left = usize::try_from(left).unwrap_or(usize::MAX).min(lost.len());
    if left > 0 && left < lost.len() {
        lost.select_nth_unstable_by(left - 1, |a, b| b.0.cmp(&a.0).then(a.1.cmp(&b.1)));
    }
    for (_, index) in lost.iter().take(left) {
        if let Some(part) = parts.get_mut(*index) {
            *part += 1;
        }
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_rounding_leaves_goes_to_those_who_lost_most() {
        assert_eq!(split(10, &[1, 1, 1]), [4, 3, 3]);
        assert_eq!(split(100, &[1, 2]), [33, 67]);
        assert_eq!(split(7, &[0, 5, 0]), [0, 7, 0]);
        assert_eq!(split(5, &[0, 0]), [3, 2], "nobody weighs anything: alike");
        assert_eq!(split(5, &[]), [0; 0]);
        assert_eq!(split(u64::MAX, &[u64::MAX, u64::MAX]), [u64::MAX / 2 + 1, u64::MAX / 2]);
    }

    proptest! {
        #[test]
        fn nothing_is_lost_and_no_part_is_off_by_one(
            total in any::<u64>(),
            weights in prop::collection::vec(prop_oneof![Just(0), 0..100_u64, any::<u64>()], 1..40),
        ) {
            let parts = split(total, &weights);
            prop_assert_eq!(parts.iter().map(|part| u128::from(*part)).sum::<u128>(), u128::from(total));
            let sum: u128 = weights.iter().map(|weight| u128::from(*weight)).sum();
            for (part, weight) in parts.iter().zip(&weights) {
                let product = u128::from(total) * u128::from(*weight);
                if let Some(below) = product.checked_div(sum) {
                    prop_assert!(u128::from(*part) == below || u128::from(*part) == below + 1);
                    prop_assert!(*weight > 0 || *part == 0);
                }
            }
        }
    }
}
