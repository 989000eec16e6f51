//! A time limit that moves with every piece of a stream, without a timer being set for each.
//!
//! Setting a timer takes the runtime's lock and a place in its wheel. A stream would pay for that at every
//! token, though it is the rare one that falls silent. So the timer stands still while the limit moves on,
//! and is set anew only when it rings too early.

use std::{
    future::{Future, poll_fn},
    pin::{Pin, pin},
    task::Poll,
};
use tokio::time::{Instant, Sleep, sleep_until};

/// One timer for many waits, one after another.
#[derive(Debug, Default)]
pub struct Alarm {
    sleep: Option<Pin<Box<Sleep>>>,
}

impl Alarm {
    /// Waits for `work`, but no longer than `until`; `None` if that passes first. Dropping the future
    /// drops `work` and leaves the alarm fit for the next wait.
    pub async fn within<T>(&mut self, until: Instant, work: impl Future<Output = T>) -> Option<T> {
        let mut work = pin!(work);
        poll_fn(|cx| {
            if let Poll::Ready(done) = work.as_mut().poll(cx) {
                return Poll::Ready(Some(done));
            }
            let sleep = self.sleep.get_or_insert_with(|| Box::pin(sleep_until(until)));
            // A limit may also move forward: from the first token's to the shorter one between tokens.
            if sleep.deadline() > until {
                sleep.as_mut().reset(until);
            }
            while sleep.as_mut().poll(cx).is_ready() {
                if sleep.deadline() >= until {
                    return Poll::Ready(None);
                }
                sleep.as_mut().reset(until);
            }
            Poll::Pending
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{future::pending, time::Duration};
    use tokio::time::{advance, sleep};

    #[tokio::test(start_paused = true)]
    async fn each_wait_has_its_own_limit_though_the_timer_is_shared() {
        let start = Instant::now();
        let mut alarm = Alarm::default();
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        // Set for second 100, not used.
        let soon = sleep(Duration::from_secs(1));
        assert_eq!(alarm.within(at(100), soon).await, Some(()));
        // Forward: an earlier limit than the timer's is kept.
        assert_eq!(alarm.within(at(5), pending::<()>()).await, None);
        assert_eq!(start.elapsed().as_secs(), 5);
        // Backward: the timer rings at 5 no more, the wait lasts to its own limit.
        assert_eq!(alarm.within(at(30), pending::<()>()).await, None);
        assert_eq!(start.elapsed().as_secs(), 30);
        // What is ready at once needs no timer, however late it is.
        advance(Duration::from_secs(100)).await;
        assert_eq!(alarm.within(at(31), async { 7 }).await, Some(7));
        assert_eq!(alarm.within(at(31), pending::<()>()).await, None);
    }
}
