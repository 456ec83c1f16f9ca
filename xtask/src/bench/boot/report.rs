//! From the lines that the benchmark's program prints to a report.

use std::collections::BTreeMap;
use std::fmt;

use bellows_bench::boot::{Boot, Line, Monitor, Phase, Traced};
use bellows_bench::cost::Cost;
use bellows_bench::smaps::Overhead;
use bellows_lab::{Clock, Host};
use serde::Serialize;

use crate::bench::figure::{Better, Figure, median_cost};
use crate::bench::program::lab_note;
use crate::bench::statistics::{median, ms, percentile, sorted};
use crate::error::{Error, Result};

/// What `target/bench/boot.json` holds.
#[derive(Debug, Serialize)]
pub struct Report {
    host: Host,
    clock: Clock,
    rows: Vec<Row>,
    /// Median time of Bellows divided by that of QEMU.
    ratio: f64,
    breakdown: Vec<Breakdown>,
}

/// One monitor.
#[derive(Debug, Serialize)]
struct Row {
    vmm: Monitor,
    /// Boots.
    n: usize,
    boot_ms: Times,
    /// Median, where time is counted.
    cost: Option<Cost>,
    /// Median time of the first boots of all rounds divided by that of the second ones: how far the same differs from itself.
    a_a: f64,
    /// Median.
    overhead_bytes: u64,
    /// The boot whose overhead is the median one, in parts.
    overhead: Overhead,
}

#[derive(Debug, Serialize)]
struct Times {
    p50: f64,
    p99: f64,
    max: f64,
}

/// Where one monitor's boots spent their time; medians of boots under the tracer.
#[derive(Debug, Serialize)]
struct Breakdown {
    vmm: Monitor,
    n: usize,
    phases: Vec<PhaseRow>,
}

#[derive(Debug, Serialize)]
struct PhaseRow {
    name: String,
    ms: f64,
    exits: BTreeMap<String, u64>,
}

impl Report {
    /// Makes a report of all lines of a run.
    pub fn new(host: Host, clock: Clock, lines: &[Line]) -> Result<Self> {
        let rows = Monitor::ALL.map(|monitor| Row::new(monitor, lines)).into_iter().collect::<Result<Vec<_>>>()?;
        let ratio = match rows.as_slice() {
            [bellows, qemu] => bellows.boot_ms.p50 / qemu.boot_ms.p50,
            _ => f64::NAN,
        };
        let breakdown = Monitor::ALL.into_iter().filter_map(|monitor| Breakdown::new(monitor, lines)).collect();
        Ok(Self { host, clock, rows, ratio, breakdown })
    }
}

/// The figures to compare two runs by.
pub fn figures(lines: &[Line]) -> Vec<Figure> {
    let of = |monitor: Monitor| {
        let boots: Vec<&Boot> = lines
            .iter()
            .filter_map(|line| match line {
                Line::Boot(boot) if boot.monitor == monitor => Some(boot),
                _ => None,
            })
            .collect();
        let name = |what: &str| format!("{monitor}, {what}");
        let overhead = boots.iter().map(|boot| boot.overhead.total() as f64);
        let mut figures = vec![
            Figure::of(name("boot"), "ms", Better::Lower, boots.iter().map(|boot| ms(boot.time))),
            Figure::of(name("own memory"), "bytes", Better::Lower, overhead),
        ];
        let costs: Vec<Cost> = boots.iter().filter_map(|boot| boot.cost).collect();
        figures.extend(Figure::of_costs(&name("boot"), &costs));
        figures
    };
    Monitor::ALL.into_iter().flat_map(of).collect()
}

impl Row {
    fn new(vmm: Monitor, lines: &[Line]) -> Result<Self> {
        let boots: Vec<&Boot> = lines
            .iter()
            .filter_map(|line| match line {
                Line::Boot(boot) if boot.monitor == vmm => Some(boot),
                _ => None,
            })
            .collect();
        let times = |turn: Option<usize>| {
            let wanted = boots.iter().filter(|boot| turn.is_none_or(|turn| boot.turn == turn));
            sorted(wanted.map(|boot| ms(boot.time)).collect())
        };
        let all = times(None);
        let none = || Error::other(format!("the benchmark printed no boots of {vmm}"));
        let percentile = |p| percentile(&all, p).ok_or_else(none);
        let (first, second) = (median(&times(Some(0))).ok_or_else(none)?, median(&times(Some(1))).ok_or_else(none)?);
        let mut overheads: Vec<Overhead> = boots.iter().map(|boot| boot.overhead).collect();
        overheads.sort_by_key(Overhead::total);
        let overhead = *overheads.get(overheads.len() / 2).ok_or_else(none)?;
        Ok(Self {
            vmm,
            n: boots.len(),
            boot_ms: Times { p50: median(&all).ok_or_else(none)?, p99: percentile(99)?, max: percentile(100)? },
            cost: median_cost(&boots.iter().filter_map(|boot| boot.cost).collect::<Vec<_>>()),
            a_a: first / second,
            overhead_bytes: overhead.total(),
            overhead,
        })
    }
}

impl Breakdown {
    /// `None` where nothing was traced.
    fn new(vmm: Monitor, lines: &[Line]) -> Option<Self> {
        let traced: Vec<&Traced> = lines
            .iter()
            .filter_map(|line| match line {
                Line::Traced(traced) if traced.monitor == vmm => Some(traced),
                _ => None,
            })
            .collect();
        let names = traced.first()?.phases.iter().map(|phase| phase.name.as_str());
        let phases = names.enumerate().map(|(index, name)| {
            let same: Vec<&Phase> = traced.iter().filter_map(|traced| traced.phases.get(index)).collect();
            let reasons = same.iter().flat_map(|phase| phase.exits.keys());
            let count = |reason: &String| {
                let counts = same.iter().map(|phase| phase.exits.get(reason).copied().unwrap_or(0) as f64).collect();
                (reason.clone(), median(&sorted(counts)).unwrap_or(0.0) as u64)
            };
            PhaseRow {
                name: name.to_owned(),
                ms: median(&sorted(same.iter().map(|phase| ms(phase.time)).collect())).unwrap_or(0.0),
                exits: reasons.map(count).filter(|(_, count)| *count > 0).collect(),
            }
        });
        Some(Self { vmm, n: traced.len(), phases: phases.collect() })
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const MIB: f64 = (1 << 20) as f64;
        writeln!(
            f,
            "Boot, from the start of the monitor to a guest that can be called, on this host ({}):\n",
            self.host
        )?;
        writeln!(f, "  vmm          n    p50 ms    p99 ms    max ms     A/A   overhead MiB")?;
        for row in &self.rows {
            let Times { p50, p99, max } = row.boot_ms;
            let overhead = row.overhead_bytes as f64 / MIB;
            let name = row.vmm.to_string();
            writeln!(
                f,
                "  {name:<8} {:>5} {p50:>9.1} {p99:>9.1} {max:>9.1}   {:>5.3}   {overhead:>12.2}",
                row.n, row.a_a
            )?;
        }
        writeln!(f, "\n  bellows takes {:.2} of qemu's time.", self.ratio)?;
        for row in &self.rows {
            if let Some(cost) = row.cost {
                writeln!(f, "  {}: {cost}.", row.vmm)?;
            }
        }
        lab_note(f, self.host, self.clock)?;
        for breakdown in &self.breakdown {
            let total: f64 = breakdown.phases.iter().map(|phase| phase.ms).sum();
            writeln!(
                f,
                "\nWhere {}'s time goes (medians of {} boots under the tracer):\n",
                breakdown.vmm, breakdown.n
            )?;
            for phase in &breakdown.phases {
                let share = 100.0 * phase.ms / total;
                let exits: u64 = phase.exits.values().sum();
                writeln!(f, "  {:<9} {share:>5.1} %  {exits:>6} exits  {}", phase.name, Exits(&phase.exits))?;
            }
        }
        Ok(())
    }
}

/// The most frequent reasons.
struct Exits<'a>(&'a BTreeMap<String, u64>);

impl fmt::Display for Exits<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SHOWN: usize = 6;
        let mut exits: Vec<_> = self.0.iter().collect();
        exits.sort_by_key(|(_, count)| std::cmp::Reverse(**count));
        let exits: Vec<String> = exits.iter().take(SHOWN).map(|(reason, count)| format!("{reason} {count}")).collect();
        f.write_str(&exits.join(", "))
    }
}

#[cfg(test)]
#[path = "report_test.rs"]
mod tests;
