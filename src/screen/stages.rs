//! How the scores of two models become one.

/// The scores of one text: what each model said, and what that comes to.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Scores {
    /// The first stage's probability of an injection.
    pub first: Option<f32>,
    /// The second stage's, where it was asked.
    pub second: Option<f32>,
    /// What other models say, by label.
    pub others: Vec<(String, f32)>,
    /// Both stages together.
    pub injection: Option<f32>,
    /// Windows that the first stage saw: a long text has many chances of an odd one.
    pub windows: usize,
}

/// Joins both stages: the mean of their logits, the second's counting `weight` of 1. Where one did not speak, the
/// other's word holds.
pub fn join(first: Option<f32>, second: Option<f32>, weight: f32) -> Option<f32> {
    let (Some(first), Some(second)) = (first, second) else { return second.or(first) };
    let logit = |share: f32| {
        let share = share.clamp(1e-7, 1.0 - 1e-7);
        (share / (1.0 - share)).ln()
    };
    let mixed = (1.0 - weight) * logit(first) + weight * logit(second);
    Some(1.0 / (1.0 + (-mixed).exp()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_stage_can_overrule_the_first() {
        let join = |first, second| join(first, second, 0.7);
        assert_eq!(join(Some(0.9), None), Some(0.9));
        assert_eq!(join(None, Some(0.2)), Some(0.2));
        assert_eq!(join(None, None), None);
        assert!((join(Some(0.5), Some(0.5)).unwrap() - 0.5).abs() < 1e-6);
        assert!(join(Some(0.9), Some(0.1)).unwrap() < 0.5);
        assert!(join(Some(0.1), Some(0.9)).unwrap() > 0.5);
        let surest = join(Some(1.0), Some(1.0)).unwrap();
        assert!(surest.is_finite() && surest > 0.999);
    }
}
