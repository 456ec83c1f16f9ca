//! `bench --compare FILE`: the figures that moved since an earlier report.

use std::fmt;
use std::fs;
use std::path::Path;

use serde::Deserialize;

use super::figure::{Better, Figure};
use crate::error::{Error, Result};

/// Least change that counts, as a part of the earlier value, for a figure that was measured once and has no spread.
const LEAST: f64 = 0.03;

/// Compares the report at `path` with the last one of the same benchmark, and prints the figures that moved by more
/// than the spread.
pub fn run(path: &Path) -> Result<()> {
    let earlier = read(path)?;
    let latest = read(&super::directory()?.join(format!("{}.json", earlier.benchmark)))?;
    print!("{}", Comparison::new(&earlier.figures, &latest.figures));
    Ok(())
}

/// The figures of a report.
#[derive(Deserialize)]
struct Report {
    benchmark: String,
    figures: Vec<Figure>,
}

fn read(path: &Path) -> Result<Report> {
    let text = fs::read_to_string(path).map_err(Error::at(path))?;
    serde_json::from_str(&text).map_err(|error| Error::other(format!("{}: not a report: {error}", path.display())))
}

/// Two reports, figure by figure.
#[derive(Debug, PartialEq)]
struct Comparison<'a> {
    moved: Vec<(&'a Figure, &'a Figure)>,
    still: usize,
    /// Names that one of the reports lacks.
    unpaired: Vec<&'a str>,
}

impl<'a> Comparison<'a> {
    fn new(earlier: &'a [Figure], latest: &'a [Figure]) -> Self {
        let find = |figures: &'a [Figure], name: &str| figures.iter().find(|figure| figure.name == name);
        let pairs = earlier.iter().filter_map(|old| Some((old, find(latest, &old.name)?)));
        let (moved, still): (Vec<_>, Vec<_>) = pairs.partition(|(old, new)| has_moved(old, new));
        let lacks = |figures: &'a [Figure], others: &'a [Figure]| {
            figures.iter().map(|figure| figure.name.as_str()).filter(move |name| find(others, name).is_none())
        };
        let unpaired = lacks(earlier, latest).chain(lacks(latest, earlier)).collect();
        Self { moved, still: still.len(), unpaired }
    }
}

/// Whether two figures differ by more than the larger spread of both.
fn has_moved(old: &Figure, new: &Figure) -> bool {
    let spread = match (old.spread, new.spread) {
        (None, None) => old.value.abs() * LEAST,
        (old, new) => old.unwrap_or(0.0).max(new.unwrap_or(0.0)),
    };
    (new.value - old.value).abs() > spread
}

impl fmt::Display for Comparison<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (old, new) in &self.moved {
            let lower = new.value < old.value;
            let word = if lower == (old.better == Better::Lower) { "better" } else { "worse" };
            writeln!(
                f,
                "  {word:<6}  {}: {:.4} to {:.4} {} ({:+.1} %)",
                old.name,
                old.value,
                new.value,
                old.unit,
                100.0 * (new.value / old.value - 1.0)
            )?;
        }
        for name in &self.unpaired {
            writeln!(f, "  {name}: in one of the reports only")?;
        }
        writeln!(f, "  {} figures moved by more than the spread, {} did not.", self.moved.len(), self.still)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figure(name: &str, better: Better, value: f64, spread: Option<f64>) -> Figure {
        Figure { name: name.to_owned(), unit: "ms".to_owned(), better, value, spread }
    }

    #[test]
    fn only_what_moved_by_more_than_the_larger_spread_is_shown() {
        let earlier = [
            figure("boot", Better::Lower, 280.0, Some(1.0)),
            figure("plug", Better::Lower, 10.0, Some(0.5)),
            figure("speed", Better::Higher, 100.0, Some(5.0)),
        ];
        let latest = [
            figure("boot", Better::Lower, 284.0, Some(5.0)),
            figure("plug", Better::Lower, 9.0, Some(0.2)),
            figure("speed", Better::Higher, 80.0, Some(1.0)),
        ];
        let text = Comparison::new(&earlier, &latest).to_string();
        assert!(!text.contains("boot"), "{text}");
        assert!(text.contains("better  plug: 10.0000 to 9.0000 ms (-10.0 %)"), "{text}");
        assert!(text.contains("worse   speed: 100.0000 to 80.0000 ms (-20.0 %)"), "{text}");
        assert!(text.contains("2 figures moved by more than the spread, 1 did not"), "{text}");
    }

    #[test]
    fn a_figure_without_a_spread_moves_by_three_percent() {
        let old = figure("bytes", Better::Lower, 100.0, None);
        assert!(!has_moved(&old, &figure("bytes", Better::Lower, 102.0, None)));
        assert!(has_moved(&old, &figure("bytes", Better::Lower, 104.0, None)));
    }

    #[test]
    fn a_figure_that_one_report_lacks_is_named() {
        let (old, new) = ([figure("a", Better::Lower, 1.0, None)], [figure("b", Better::Lower, 1.0, None)]);
        assert_eq!(Comparison::new(&old, &new).unpaired, ["a", "b"]);
    }
}
