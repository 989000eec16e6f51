//! Admission: may this tenant send this much now? Rates in requests and in tokens.
//!
//! What is admitted is held by a [`Reservation`]. Settling it replaces the estimate by what was really
//! used; dropping it unsettled charges only what was already spent and gives the rest back.

pub mod bucket;

use crate::{
    config::Tenant,
    error::{Reason, Refusal},
    ids::TenantId,
    units::Tokens,
};
use bucket::Bucket;
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};
use tokio::time::Instant;

/// The buckets of all tenants. Made anew on reload; old reservations settle with the old one.
#[derive(Debug, Default)]
pub struct Admission {
    tenants: HashMap<TenantId, Arc<Purse>>,
}

#[derive(Debug)]
struct Purse {
    /// Guards one tenant's levels; held for a few additions.
    levels: Mutex<Levels>,
}

#[derive(Debug)]
struct Levels {
    requests: Option<Bucket>,
    tokens: Option<Bucket>,
}

impl Purse {
    fn lock(&self) -> MutexGuard<'_, Levels> {
        self.levels.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Admission {
    /// Full buckets for these tenants. A tenant whose limits did not change keeps its levels from
    /// `before`, so that a reload forgives nothing.
    pub fn new(tenants: &[Tenant], before: Option<(&Self, &[Tenant])>, now: Instant) -> Self {
        let purse = |tenant: &Tenant| {
            let kept = before.and_then(|(old, olds)| {
                let was = olds.iter().find(|was| was.name == tenant.name)?;
                let same = was.requests_per_minute == tenant.requests_per_minute
                    && was.tokens_per_minute == tenant.tokens_per_minute;
                same.then(|| old.tenants.get(&tenant.name).cloned()).flatten()
            });
            kept.unwrap_or_else(|| {
                let requests = tenant.requests_per_minute;
                let tokens = tenant.tokens_per_minute.get();
                let bucket = |rate: u64| (rate > 0).then(|| Bucket::new(rate, now));
                let levels = Levels { requests: bucket(requests), tokens: bucket(tokens) };
                Arc::new(Purse { levels: Mutex::new(levels) })
            })
        };
        Self {
            tenants: tenants.iter().map(|tenant| (tenant.name.clone(), purse(tenant))).collect(),
        }
    }

    /// One request knocks: takes one unit of the tenant's request rate.
    ///
    /// # Errors
    /// The rate is used up; nothing was taken.
    pub fn knock(&self, tenant: &TenantId, now: Instant) -> Result<(), Refusal> {
        let Some(purse) = self.tenants.get(tenant) else { return Ok(()) };
        let mut levels = purse.lock();
        let Some(bucket) = levels.requests.as_mut() else { return Ok(()) };
        bucket.take(1, now).map_err(|wait| {
            let text = "This key's request rate is used up. Wait as Retry-After says, or ask the operator for a higher requests_per_minute.";
            Refusal::new(Reason::RequestRate, text).retry_after(wait)
        })
    }

    /// Reserves the estimated tokens of one request.
    ///
    /// # Errors
    /// The token rate is used up; nothing was taken.
    pub fn reserve(
        &self,
        tenant: &TenantId,
        estimate: Tokens,
        now: Instant,
    ) -> Result<Reservation, Refusal> {
        let purse = self.tenants.get(tenant).cloned();
        if let Some(purse) = &purse
            && let Some(bucket) = purse.lock().tokens.as_mut()
        {
            bucket.take(estimate.get(), now).map_err(|wait| {
                let text = format!(
                    "This key's token rate is used up ({estimate} tokens wanted). Wait as Retry-After says, lower max_tokens, or ask the operator for a higher tokens_per_minute."
                );
                Refusal::new(Reason::TokenRate, text).retry_after(wait)
            })?;
        }
        Ok(Reservation { purse, held: estimate, spent: Tokens::ZERO })
    }
}

/// Tokens of a tenant's rate, held for one request.
#[derive(Debug)]
pub struct Reservation {
    purse: Option<Arc<Purse>>,
    held: Tokens,
    spent: Tokens,
}

impl Reservation {
    /// Notes what has been used so far, in case the request ends here.
    pub fn spent(&mut self, tokens: Tokens) {
        self.spent = tokens;
    }

    /// Ends the reservation with what was really used.
    pub fn settle(mut self, used: Tokens) {
        self.spent = used;
        // Drop does the rest.
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        let Some(purse) = &self.purse else { return };
        if let Some(bucket) = purse.lock().tokens.as_mut() {
            bucket.refund(self.held.less(self.spent).get());
            bucket.charge(self.spent.less(self.held).get());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tenant(requests: u64, tokens: u64) -> Tenant {
        Tenant {
            requests_per_minute: requests,
            tokens_per_minute: Tokens(tokens),
            ..Tenant::example("t")
        }
    }

    #[test]
    fn a_dropped_reservation_charges_only_what_was_spent() {
        let now = Instant::now();
        let id = TenantId::from("t");
        let admission = Admission::new(&[tenant(0, 1000)], None, now);
        let mut first = admission.reserve(&id, Tokens(900), now).unwrap();
        assert_eq!(admission.reserve(&id, Tokens(200), now).unwrap_err().reason, Reason::TokenRate);
        first.spent(Tokens(100));
        drop(first);
        admission.reserve(&id, Tokens(900), now).unwrap().settle(Tokens(950));
        // 1000 - 100 - 950 = -50: the next 10 tokens wait for 60.
        let wait = admission.reserve(&id, Tokens(10), now).unwrap_err().retry_after.unwrap();
        assert_eq!(wait.as_millis(), 60 * 60);
    }

    #[test]
    fn a_reload_keeps_levels_unless_limits_changed() {
        let now = Instant::now();
        let id = TenantId::from("t");
        let old = [tenant(1, 0)];
        let admission = Admission::new(&old, None, now);
        admission.knock(&id, now).unwrap();
        let same = Admission::new(&old, Some((&admission, &old)), now);
        assert_eq!(same.knock(&id, now).unwrap_err().reason, Reason::RequestRate);
        let changed = Admission::new(&[tenant(2, 0)], Some((&admission, &old)), now);
        changed.knock(&id, now).unwrap();
    }
}
