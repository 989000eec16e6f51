//! How far estimates of first tokens are off, by their size: what is always off by the same is no news.

use tokio::time::Instant;

/// Buckets by powers of two, from a hundredth of a second to five minutes.
const BUCKETS: usize = 15;
const FIRST_S: f64 = 0.01;
/// Weight of the newest.
const NEWEST: f64 = 0.03;
/// How far an estimate is corrected at most, as a logarithm: three times.
const MOST: f64 = 1.1;

/// What was foreseen of a request, to be compared.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Foreseen {
    pub(super) at: Instant,
    pub(super) ttft_s: f64,
    pub(super) waits: bool,
}

/// Mean logarithms of what was over what was foreseen, apart for those who wait.
#[derive(Clone, Debug, Default)]
pub(super) struct Bias {
    means: [[f64; BUCKETS]; 2],
}

impl Bias {
    /// The factor for an estimate.
    pub(super) fn factor(&self, ttft_s: f64, waits: bool) -> f64 {
        let of = self.means.get(usize::from(waits)).and_then(|of| of.get(bucket(ttft_s)));
        of.copied().unwrap_or(0.0).exp()
    }

    /// The first token of a request came.
    pub(super) fn saw(&mut self, foreseen: Foreseen, now: Instant) {
        let took_s = now.saturating_duration_since(foreseen.at).as_secs_f64();
        if took_s <= 0.0 || foreseen.ttft_s <= 0.0 {
            return;
        }
        let of = self.means.get_mut(usize::from(foreseen.waits));
        if let Some(mean) = of.and_then(|of| of.get_mut(bucket(foreseen.ttft_s))) {
            let ratio = (took_s / foreseen.ttft_s).ln().clamp(-MOST, MOST);
            *mean += NEWEST * (ratio - *mean);
        }
    }
}

fn bucket(seconds: f64) -> usize {
    let at = (seconds.max(FIRST_S) / FIRST_S).log2();
    (at as usize).min(BUCKETS - 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn what_is_always_off_is_corrected_for_its_size_alone() {
        let (mut bias, now) = (Bias::default(), Instant::now());
        for _ in 0..300 {
            let foreseen = Foreseen { at: now, ttft_s: 1.0, waits: false };
            bias.saw(foreseen, now + Duration::from_millis(1500));
        }
        assert!((bias.factor(1.0, false) - 1.5).abs() < 0.01);
        assert_eq!(bias.factor(1.0, true), 1.0);
        assert_eq!(bias.factor(10.0, false), 1.0);
        // One that stalls does not spoil it.
        bias.saw(Foreseen { at: now, ttft_s: 1.0, waits: false }, now + Duration::from_secs(3600));
        assert!(bias.factor(1.0, false) < 1.6);
        bias.saw(Foreseen { at: now, ttft_s: 0.0, waits: false }, now);
        assert!(bias.factor(0.0, false).is_finite());
    }
}
