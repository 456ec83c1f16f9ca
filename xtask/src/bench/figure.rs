//! Single numbers of reports, so that two reports can be compared.

use bellows_bench::cost::Cost;
use serde::{Deserialize, Serialize};

use super::statistics::{median, sorted, spread};

/// A number of a report.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Figure {
    pub name: String,
    pub unit: String,
    pub better: Better,
    /// The median.
    pub value: f64,
    /// Distance between the quartiles of the measurements; `null` for a single one.
    pub spread: Option<f64>,
}

/// The better direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Better {
    Lower,
    Higher,
}

impl Figure {
    /// The median of measurements.
    pub fn of(name: impl Into<String>, unit: &str, better: Better, values: impl Iterator<Item = f64>) -> Self {
        let values = sorted(values.collect());
        Self {
            name: name.into(),
            unit: unit.to_owned(),
            better,
            value: median(&values).unwrap_or(f64::NAN),
            spread: spread(&values).filter(|_| values.len() > 1),
        }
    }

    /// A single measurement.
    pub fn once(name: impl Into<String>, unit: &str, better: Better, value: f64) -> Self {
        Self { name: name.into(), unit: unit.to_owned(), better, value, spread: None }
    }

    /// The parts of the costs of some operations.
    pub fn of_costs(name: &str, costs: &[Cost]) -> Vec<Self> {
        let part = |part: &str, unit: &str, value: fn(&Cost) -> u64| {
            Self::of(format!("{name}, {part}"), unit, Better::Lower, costs.iter().map(|cost| value(cost) as f64))
        };
        if costs.is_empty() {
            return Vec::new();
        }
        vec![
            part("instructions", "instructions", |cost| cost.instructions),
            part("waited", "ns", |cost| cost.waited_ns),
            part("exits", "exits", |cost| cost.exits),
        ]
    }
}

/// The median cost, part by part; `None` without any.
pub fn median_cost(costs: &[Cost]) -> Option<Cost> {
    let middle = |value: fn(&Cost) -> u64| {
        Some(median(&sorted(costs.iter().map(|cost| value(cost) as f64).collect()))?.round() as u64)
    };
    Some(Cost {
        instructions: middle(|cost| cost.instructions)?,
        waited_ns: middle(|cost| cost.waited_ns)?,
        exits: middle(|cost| cost.exits)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_figure_has_the_distance_between_its_quartiles() {
        let figure = Figure::of("boot", "ms", Better::Lower, (1..=100).map(f64::from));
        assert_eq!((figure.value, figure.spread), (50.5, Some(50.0)));
        assert_eq!(Figure::of("boot", "ms", Better::Lower, [7.0].into_iter()).spread, None);
    }

    #[test]
    fn costs_are_taken_apart() {
        let costs = [1, 2, 9].map(|number| Cost { instructions: number, waited_ns: number * 10, exits: 5 });
        assert_eq!(median_cost(&costs), Some(Cost { instructions: 2, waited_ns: 20, exits: 5 }));
        assert_eq!(median_cost(&[]), None);
        let figures = Figure::of_costs("unplug", &costs);
        let seen: Vec<_> = figures.iter().map(|figure| (figure.name.as_str(), figure.value)).collect();
        assert_eq!(seen, [("unplug, instructions", 2.0), ("unplug, waited", 20.0), ("unplug, exits", 5.0)]);
        assert!(Figure::of_costs("unplug", &[]).is_empty());
    }
}
