//! How turns are given: what servers owe, what is cached, what work costs.

use super::{FloatGauge, IntGauge, ServerLabel};
use crate::pipeline::dispatch::ServerView;
use prometheus_client::{
    metrics::family::Family,
    registry::{Registry, Unit},
};

/// The families.
#[derive(Debug)]
pub(super) struct Turns {
    debt: Family<ServerLabel, FloatGauge>,
    aim: Family<ServerLabel, FloatGauge>,
    blocks: Family<ServerLabel, IntGauge>,
    token: Family<ServerLabel, FloatGauge>,
}

impl Turns {
    pub(super) fn new(r: &mut Registry) -> Self {
        Self {
            debt: family!(
                r,
                "server_prefill_debt",
                "Prefill that the server was given and has not computed yet, and rest that it owes",
                Unit::Seconds
            ),
            aim: family!(
                r,
                "server_token_gap_aim_ratio",
                "Gap between tokens that is aimed at, over schedule.token_gap_s"
            ),
            blocks: family!(
                r,
                "server_prefix_blocks",
                "Blocks of prompts that are taken to be in the server's cache"
            ),
            token: family!(
                r,
                "server_prefill_token_cost",
                "What a prompt token is learned to cost; none while that is not known",
                Unit::Seconds
            ),
        }
    }

    pub(super) fn set(&self, servers: &[ServerView]) {
        for family in [&self.debt, &self.aim, &self.token] {
            family.clear();
        }
        self.blocks.clear();
        for view in servers {
            let Some(flow) = &view.flow else { continue };
            let labels = ServerLabel { server: view.state.id.to_string() };
            self.debt.get_or_create(&labels).set(flow.debt_s);
            self.aim.get_or_create(&labels).set(flow.aim);
            let blocks = i64::try_from(flow.prefix_blocks).unwrap_or(i64::MAX);
            self.blocks.get_or_create(&labels).set(blocks);
            if flow.costs_known {
                self.token.get_or_create(&labels).set(flow.token_s);
            }
        }
    }
}
