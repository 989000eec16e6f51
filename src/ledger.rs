//! What was used: totals per tenant and model since start.

use crate::{
    api::answer::Usage,
    energy::{Spent, price::FineCost},
    ids::{ModelName, TenantId},
    units::Tokens,
};
use serde::Serialize;
use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
};

/// One tenant's use of one model.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Total {
    /// Requests that reached a server.
    pub requests: u64,
    /// Input tokens.
    pub input_tokens: Tokens,
    /// Output tokens.
    pub output_tokens: Tokens,
    /// Energy and time of GPUs, of all attempts, as far as they were metered.
    #[serde(skip)]
    pub spent: Spent,
    /// What they cost at the prices of their time.
    #[serde(skip)]
    pub cost: FineCost,
}

/// Totals since start. Tenants and models both come from the configuration and from servers, never
/// from callers, so the map is bounded.
#[derive(Debug, Default)]
pub struct Ledger {
    /// Guards the totals; held for one addition or one copy.
    totals: Mutex<BTreeMap<(TenantId, ModelName), Total>>,
}

impl Ledger {
    /// Adds one request.
    pub fn add(&self, tenant: &TenantId, model: &ModelName, usage: Usage) {
        let mut totals = self.totals.lock().unwrap_or_else(PoisonError::into_inner);
        let total = totals.entry((tenant.clone(), model.clone())).or_default();
        total.requests += 1;
        total.input_tokens = total.input_tokens.plus(usage.prompt);
        total.output_tokens = total.output_tokens.plus(usage.completion);
    }

    /// Adds what requests took of GPUs.
    pub fn spend(&self, tenant: &TenantId, model: &ModelName, spent: Spent, cost: FineCost) {
        let mut totals = self.totals.lock().unwrap_or_else(PoisonError::into_inner);
        let total = totals.entry((tenant.clone(), model.clone())).or_default();
        total.spent = total.spent.plus(spent);
        total.cost = total.cost.plus(cost);
    }

    /// All totals.
    pub fn totals(&self) -> Vec<(TenantId, ModelName, Total)> {
        let totals = self.totals.lock().unwrap_or_else(PoisonError::into_inner);
        totals
            .iter()
            .map(|((tenant, model), total)| (tenant.clone(), model.clone(), *total))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn totals_add_up_per_tenant_and_model() {
        let ledger = Ledger::default();
        let usage = Usage { prompt: Tokens(10), completion: Tokens(5), cached: Tokens(0) };
        ledger.add(&"a".into(), &"m".into(), usage);
        ledger.add(&"a".into(), &"m".into(), usage);
        ledger.add(&"b".into(), &"m".into(), usage);
        let totals = ledger.totals();
        assert_eq!(totals.len(), 2);
        let want = Total {
            requests: 2,
            input_tokens: Tokens(20),
            output_tokens: Tokens(10),
            ..Total::default()
        };
        assert_eq!(totals[0].2, want);
    }
}
