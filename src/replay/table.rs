//! Reports as one table for people.

use super::{
    load::{TTFT_BASE_S, TTFT_PREFILLS},
    measure::TPOT_MAX_S,
    plan::Plan,
    report::{Report, TenantReport},
};
use std::fmt::Write;

/// Tenants that have lines of their own under a policy; of more only the index is shown.
const TENANTS_SHOWN: usize = 16;
/// Widest name of a trace.
const NAME_MAX: usize = 60;

/// Which columns there are beyond those that are always there.
#[derive(Clone, Copy, Debug, Default)]
struct Extra {
    returns: bool,
    predicted: bool,
    lost: bool,
    tenants: bool,
    alone: bool,
}

/// What was replayed, a line for each policy, and what good means.
pub fn table(plan: &Plan, reports: &[Report]) -> String {
    let extra = Extra {
        returns: plan.returns.is_some(),
        predicted: reports.iter().any(|report| report.predicted_pct.is_some()),
        lost: reports.iter().any(|report| report.lost > 0),
        tenants: plan.tenants > 1 || plan.flood.is_some(),
        alone: plan.flood.is_some(),
    };
    let mut rows = vec![head(extra)];
    for report in reports {
        rows.push(line(report, extra));
        if extra.tenants && report.tenants.len() <= TENANTS_SHOWN {
            rows.extend(report.tenants.iter().map(|tenant| tenant_line(tenant, extra)));
        }
    }
    let mut out = heading(plan, reports);
    write(&rows, &mut out);
    let _ = writeln!(
        out,
        "\ngood: first token within {TTFT_BASE_S} s + {TTFT_PREFILLS} x the prompt's prefill on an idle server, then \
         at most {:.0} ms a token in the mean.",
        TPOT_MAX_S * 1e3
    );
    out
}

fn heading(plan: &Plan, reports: &[Report]) -> String {
    let letter = |letter: char| if letter.is_control() { '?' } else { letter };
    let trace: String = plan.trace.chars().take(NAME_MAX).map(letter).collect();
    let window_s = reports.first().map_or(0.0, |report| report.window_s);
    let mut text = format!(
        "{trace} at {} x, {} {} {}, seed {}, {window_s:.0} s measured",
        plan.speed,
        plan.servers,
        if plan.servers == 1 { "server" } else { "servers" },
        plan.profile_name,
        plan.seed,
    );
    if let Some(flood) = &plan.flood {
        let _ = write!(text, ": a flood of {} x from second {}", flood.factor, flood.start_s);
    }
    text.push_str("\n\n");
    text
}

fn head(extra: Extra) -> Vec<String> {
    let mut head = vec![
        "POLICY",
        "OFFERED",
        "GOOD %",
        "KTOK/S",
        "REJECTED %",
        "LATE %",
        "SLOW %",
        "TTFT p50",
        "p99 s",
        "TPOT p50",
        "p99 ms",
        "PREEMPTED",
        "HIT %",
    ];
    let optional = [
        (extra.predicted, "PREDICTED %"),
        (extra.returns, "BACK"),
        (extra.returns, "AFTER p50"),
        (extra.returns, "p99 s"),
        (extra.returns, "LET IN %"),
        (extra.alone, "ALONE p99 s"),
        (extra.tenants, "FAIR"),
        (extra.tenants, "JAIN"),
        (extra.lost, "LOST"),
    ];
    head.extend(optional.iter().filter(|(is, _)| *is).map(|(_, name)| *name));
    head.into_iter().map(str::to_owned).collect()
}

fn number(value: impl Into<Option<f64>>, digits: usize) -> String {
    value.into().map_or_else(|| "-".to_owned(), |value| format!("{value:.digits$}"))
}

fn line(report: &Report, extra: Extra) -> Vec<String> {
    let mut cells = vec![
        report.policy.clone(),
        report.offered.to_string(),
        number(report.good_pct, 1),
        number(report.good_ktok_s, 1),
        number(report.rejected_pct, 1),
        number(report.late_pct, 1),
        number(report.slow_pct, 1),
        number(report.ttft_p50_s, 2),
        number(report.ttft_p99_s, 2),
        number(report.tpot_p50_ms, 0),
        number(report.tpot_p99_ms, 0),
        report.preemptions.to_string(),
        number(report.prefix_hit_pct, 1),
    ];
    let optional = [
        (extra.predicted, number(report.predicted_pct, 0)),
        (extra.returns, report.returned.to_string()),
        (extra.returns, number(report.returned_after_p50_s, 1)),
        (extra.returns, number(report.returned_after_p99_s, 1)),
        (extra.returns, number(report.returned_admitted_pct, 0)),
        (extra.alone, String::new()),
        (extra.tenants, number(report.fair_least, 2)),
        (extra.tenants, number(report.jain, 3)),
        (extra.lost, report.lost.to_string()),
    ];
    cells.extend(optional.into_iter().filter(|(is, _)| *is).map(|(_, cell)| cell));
    cells
}

fn tenant_line(tenant: &TenantReport, extra: Extra) -> Vec<String> {
    let none = String::new;
    let mut cells = vec![
        format!("  {}, {}", tenant.name, tenant.tier),
        tenant.offered.to_string(),
        number(tenant.good_pct, 1),
        none(),
        number(tenant.rejected_pct, 1),
        none(),
        none(),
        number(tenant.ttft_p50_s, 2),
        number(tenant.ttft_p99_s, 2),
    ];
    let skipped = 4 + usize::from(extra.predicted) + 4 * usize::from(extra.returns);
    cells.extend((0..skipped).map(|_| none()));
    if extra.alone {
        cells.push(number(tenant.alone_ttft_p99_s, 2));
    }
    cells.push(number(tenant.fair_ratio, 2));
    cells
}

/// The first column to the left, all others to the right, each as wide as its longest cell.
fn write(rows: &[Vec<String>], out: &mut String) {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    for row in rows {
        let mut line = String::new();
        for (column, (cell, width)) in row.iter().zip(&widths).enumerate() {
            let _ = match column {
                0 => write!(line, "{cell:<width$}"),
                _ => write!(line, "  {cell:>width$}"),
            };
        }
        out.push_str(line.trim_end());
        out.push('\n');
    }
}
