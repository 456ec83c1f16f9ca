//! Bounds of counted figures, and the test whether a figure is within its bound.

use std::collections::BTreeMap;

use bellows_bench::cost::Cost;
use bellows_bench::counted::Operation;
use serde::{Deserialize, Serialize};

use crate::bench::statistics::{deviation, median, sorted};

/// Least tolerance, as a part of the median.
const LEAST: f64 = 0.03;

/// Least tolerance in instructions: one more switch to another thread and back. The order in which two threads run is the scheduler's choice, and it can change
/// with each build.
const SWITCH: f64 = 10_000.0;

/// Tolerance in standard deviations of medians from one boot of the lab to the next.
const DEVIATIONS: f64 = 3.0;

/// What `bench/bounds.json` holds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Bounds {
    /// Versions that the figures were taken with. With others they are not comparable.
    pub versions: BTreeMap<String, String>,
    /// Boots of the lab.
    pub boots: usize,
    /// Rounds in each.
    pub rounds: usize,
    /// By operation.
    pub operations: BTreeMap<Operation, Bound>,
}

/// The usual cost of an operation.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Bound {
    pub instructions: Level,
    pub waited_ns: Level,
    pub exits: Level,
}

/// A usual value.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Level {
    /// Of the medians of all boots.
    pub median: f64,
    /// Their standard deviation.
    pub deviation: f64,
}

/// The place of a value relative to its bound.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    Within,
    /// Above the bound: the operation costs more.
    Above,
    /// Below the median by more than the tolerance: the operation costs less, and a new bound is due.
    Below,
}

impl Bounds {
    /// Makes bounds of the medians of several boots of the lab; `None` without a boot.
    pub fn new(versions: BTreeMap<String, String>, rounds: usize, boots: &[BTreeMap<Operation, Cost>]) -> Option<Self> {
        let operations = boots.first()?.keys().map(|operation| {
            let level = |value: fn(&Cost) -> u64| {
                Level::new(boots.iter().filter_map(|boot| boot.get(operation)).map(|cost| value(cost) as f64).collect())
            };
            let bound = Bound {
                instructions: level(|cost| cost.instructions)?,
                waited_ns: level(|cost| cost.waited_ns)?,
                exits: level(|cost| cost.exits)?,
            };
            Some((*operation, bound))
        });
        let operations = operations.collect::<Option<_>>()?;
        Some(Self { versions, boots: boots.len(), rounds, operations })
    }

    /// The versions that differ from `now`, each as `name: then, now`.
    pub fn differences(&self, now: &BTreeMap<String, String>) -> Vec<String> {
        let names = self.versions.keys().chain(now.keys().filter(|name| !self.versions.contains_key(*name)));
        let text = |version: Option<&String>| version.cloned().unwrap_or_else(|| "unknown".to_owned());
        names
            .filter(|name| self.versions.get(*name) != now.get(*name))
            .map(|name| format!("{name}: {}, now {}", text(self.versions.get(name)), text(now.get(name))))
            .collect()
    }
}

impl Level {
    /// `None` without a value.
    pub fn new(values: Vec<f64>) -> Option<Self> {
        let values = sorted(values);
        Some(Self { median: median(&values)?, deviation: deviation(&values).round() })
    }

    /// The largest allowed distance from the median, for instructions.
    pub fn tolerance(&self) -> f64 {
        (self.median * LEAST).max(self.deviation * DEVIATIONS).max(SWITCH)
    }

    pub fn judge(&self, value: f64) -> Verdict {
        match value - self.median {
            more if more > self.tolerance() => Verdict::Above,
            less if less < -self.tolerance() => Verdict::Below,
            _ => Verdict::Within,
        }
    }
}

#[cfg(test)]
#[path = "bounds_test.rs"]
mod tests;
