//! From counted samples and bounds to a report.

use std::collections::BTreeMap;
use std::fmt;

use bellows_bench::cost::Cost;
use bellows_bench::counted::{Operation, Sample};
use serde::Serialize;

use super::bounds::{Bounds, Level, Verdict};
use super::medians;
use crate::bench::figure::Figure;
use crate::error::{Error, Result};

/// What `target/bench/counted.json` holds.
#[derive(Debug, Serialize)]
pub struct Report {
    rounds: usize,
    versions: BTreeMap<String, String>,
    /// Why the figures are not comparable with the bounds; empty if they are.
    not_comparable: Vec<String>,
    rows: Vec<Row>,
    #[serde(skip)]
    bounds: Bounds,
    #[serde(skip)]
    samples: Vec<Sample>,
}

/// An operation: medians of a boot of the lab.
#[derive(Debug, Serialize)]
struct Row {
    operation: Operation,
    #[serde(flatten)]
    cost: Cost,
}

impl Report {
    pub fn new(samples: Vec<Sample>, versions: BTreeMap<String, String>, bounds: Bounds) -> Self {
        let row = |(operation, cost)| Row { operation, cost };
        let rows: Vec<Row> = medians(&samples).into_iter().map(row).collect();
        let rounds = rows.first().map_or(0, |row| samples.iter().filter(|one| one.operation == row.operation).count());
        Self { rounds, not_comparable: bounds.differences(&versions), versions, rows, bounds, samples }
    }

    /// Fails if an operation costs more than its bound, or was not counted.
    pub fn verdict(&self) -> Result<()> {
        if !self.not_comparable.is_empty() {
            return Ok(());
        }
        let found = self.findings();
        let missing =
            self.bounds.operations.keys().filter(|operation| !self.rows.iter().any(|row| row.operation == **operation));
        let missing = missing.map(|operation| format!("{operation}: not counted"));
        let above =
            found.into_iter().filter(|finding| finding.verdict == Verdict::Above).map(|finding| finding.to_string());
        let failures: Vec<String> = missing.chain(above).collect();
        if failures.is_empty() { Ok(()) } else { Err(Error::other(failures.join("\n"))) }
    }

    /// Operations whose instructions have left their bound.
    fn findings(&self) -> Vec<Finding> {
        let finding = |row: &Row| {
            let level = self.bounds.operations.get(&row.operation)?.instructions;
            let (operation, instructions) = (row.operation, row.cost.instructions);
            let verdict = level.judge(instructions as f64);
            (verdict != Verdict::Within).then_some(Finding { operation, instructions, level, verdict })
        };
        self.rows.iter().filter_map(finding).collect()
    }

    /// One figure for each operation and part of its cost.
    pub fn figures(&self) -> Vec<Figure> {
        let costs = |operation| -> Vec<Cost> {
            self.samples.iter().filter(|sample| sample.operation == operation).map(|sample| sample.cost).collect()
        };
        let figures = |row: &Row| Figure::of_costs(&row.operation.to_string(), &costs(row.operation));
        self.rows.iter().flat_map(figures).collect()
    }
}

/// An operation whose instructions have left their bound.
struct Finding {
    operation: Operation,
    instructions: u64,
    level: Level,
    verdict: Verdict,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { operation, instructions, level, .. } = self;
        let change = 100.0 * (*instructions as f64 / level.median - 1.0);
        write!(
            f,
            "{operation}: {instructions} instructions, {change:+.1} %: expected {:.0} with a tolerance of {:.0}",
            level.median,
            level.tolerance()
        )
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "Counted time, medians of {} (lower is better):\n", self.rounds)?;
        writeln!(f, "  operation           instructions   waited ns   exits   instructions, bound")?;
        for row in &self.rows {
            let (operation, Cost { instructions, waited_ns, exits }) = (row.operation, row.cost);
            write!(f, "  {operation:<17} {instructions:>14} {waited_ns:>11} {exits:>7}")?;
            match self.bounds.operations.get(&operation).map(|bound| bound.instructions) {
                Some(level) => {
                    let change = 100.0 * (instructions as f64 / level.median - 1.0);
                    writeln!(f, "   {:.0} ({change:+.2} %)", level.median + level.tolerance())?;
                }
                None => writeln!(f, "   none")?,
            }
        }
        if !self.not_comparable.is_empty() {
            writeln!(f, "\n  not comparable with bench/bounds.json, which was taken with other versions:")?;
            self.not_comparable.iter().try_for_each(|difference| writeln!(f, "    {difference}"))?;
            return writeln!(f, "  `cargo xtask bench counted --take-bounds` takes new bounds.");
        }
        for finding in self.findings() {
            match finding.verdict {
                Verdict::Below => writeln!(f, "  better than its bound; take new ones: {finding}")?,
                _ => writeln!(f, "  over its bound: {finding}")?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
#[path = "report_test.rs"]
mod tests;
