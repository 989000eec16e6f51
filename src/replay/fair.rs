//! What would have been fair, and how near to it the tenants came.

/// What one tenant wants and is due.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Claim {
    /// Tokens that it asked for.
    pub demand: f64,
    /// Its share relative to others', above 0.
    pub weight: f64,
}

/// Divides so many tokens by weighted max-min fairness: nobody gets more than was asked for, and what one leaves
/// goes to the others by weight. One figure for each claim, in their order.
pub fn max_min(claims: &[Claim], tokens: f64) -> Vec<f64> {
    let mut order: Vec<(usize, &Claim)> = claims.iter().enumerate().collect();
    // Who wants least for its weight is satisfied first.
    order.sort_by(|(_, a), (_, b)| (a.demand / a.weight).total_cmp(&(b.demand / b.weight)));
    let mut weights: f64 = claims.iter().map(|claim| claim.weight).sum();
    let mut left = tokens.max(0.0);
    let mut shares = vec![0.0; claims.len()];
    for (at, claim) in order {
        let due = if weights > 0.0 { left * (claim.weight / weights).min(1.0) } else { left };
        let share = claim.demand.min(due);
        if let Some(place) = shares.get_mut(at) {
            *place = share;
        }
        left -= share;
        weights -= claim.weight;
    }
    shares
}

/// Jain's index: 1.0 when all are equal, 1/n when one of n has everything. 1.0 of none.
pub fn jain(values: &[f64]) -> f64 {
    let sum: f64 = values.iter().sum();
    let squares: f64 = values.iter().map(|value| value * value).sum();
    if squares > 0.0 { sum * sum / (values.len() as f64 * squares) } else { 1.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shares(claims: &[(f64, f64)], tokens: f64) -> Vec<f64> {
        let claims: Vec<Claim> = claims
            .iter()
            .map(|(demand, weight)| Claim { demand: *demand, weight: *weight })
            .collect();
        max_min(&claims, tokens).iter().map(|share| (share * 1e6).round() / 1e6).collect()
    }

    #[test]
    fn what_one_leaves_goes_to_the_others() {
        // 30 each would be equal; the second wants 10, so 40 each are left for the others.
        assert_eq!(shares(&[(100.0, 1.0), (10.0, 1.0), (40.0, 1.0)], 90.0), [40.0, 10.0, 40.0]);
        // By weight: 90 in four parts; the second needs 20 of its 22.5, the first has the rest.
        assert_eq!(shares(&[(100.0, 3.0), (20.0, 1.0)], 90.0), [70.0, 20.0]);
        assert_eq!(shares(&[(100.0, 3.0), (100.0, 1.0)], 80.0), [60.0, 20.0]);
    }

    #[test]
    fn nobody_gets_more_than_was_asked_for() {
        assert_eq!(shares(&[(5.0, 1.0), (7.0, 1.0)], 100.0), [5.0, 7.0]);
        assert_eq!(shares(&[(5.0, 1.0), (0.0, 1.0)], 0.0), [0.0, 0.0]);
        assert_eq!(shares(&[], 10.0), [0.0; 0]);
    }

    #[test]
    fn jains_index_is_as_its_authors_say() {
        assert_eq!(jain(&[1.0]), 1.0);
        assert_eq!(jain(&[0.5, 0.5, 0.5]), 1.0);
        assert_eq!(jain(&[1.0, 0.0, 0.0, 0.0]), 0.25);
        // (1 + 0.5)^2 / (2 x (1 + 0.25)) = 2.25 / 2.5
        assert_eq!(jain(&[1.0, 0.5]), 0.9);
        assert_eq!((jain(&[]), jain(&[0.0, 0.0])), (1.0, 1.0));
    }
}
