//! From the functions that ran and the memory held to a report.

use std::fmt;

use bellows_bench::load::{Line, Provision};
use bellows_lab::{Clock, Host};
use serde::Serialize;

use crate::bench::figure::{Better, Figure};
use crate::bench::load::Row;
use crate::bench::plot::page;
use crate::bench::program::lab_note;

/// The most that may be held of what is needed.
const AIM: f64 = 1.1;

const MIB: f64 = (1_u64 << 20) as f64;

/// What `target/bench/elastic.json` holds.
#[derive(Debug, Serialize)]
pub struct Report {
    pub host: Host,
    pub clock: Clock,
    minutes: u64,
    /// Time between arrivals on average.
    gap_ms: u64,
    rows: Vec<Row>,
}

impl Report {
    pub fn new(host: Host, clock: Clock, minutes: u64, gap_ms: u64, lines: &[Line]) -> Self {
        Self { host, clock, minutes, gap_ms, rows: Row::all(lines) }
    }

    /// The figures to compare two runs by.
    pub fn figures(&self) -> Vec<Figure> {
        let figures = |row: &Row| {
            let name = |what: &str| format!("{}, {what}", row.provision);
            let mut figures = vec![
                Figure::of(name("latency"), "ms", Better::Lower, row.latencies.iter().copied()),
                Figure::once(name("memory held, mean"), "bytes", Better::Lower, row.held_bytes),
                Figure::once(name("memory held, most"), "bytes", Better::Lower, row.held_max_bytes),
                Figure::once(name("memory held"), "of what is needed", Better::Lower, row.held_by_needed),
            ];
            figures.extend(Figure::of_costs(&name("all functions"), &row.cost.into_iter().collect::<Vec<_>>()));
            figures
        };
        self.rows.iter().flat_map(figures).collect()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { host, minutes, gap_ms, .. } = self;
        writeln!(f, "{minutes} minutes of functions that come {gap_ms} ms apart on average, on this host ({host}):\n")?;
        writeln!(
            f,
            "  memory        n   latency p50        p99   held: idle      mean       max    needed   held by needed   by peak"
        )?;
        for row in &self.rows {
            writeln!(
                f,
                "  {:<9} {:>5} {:>13.1} {:>10.1} {:>12.1} {:>9.1} {:>9.1} {:>9.1} {:>16.3} {:>9.3}",
                row.provision.to_string(),
                row.n,
                row.latency_ms.p50,
                row.latency_ms.p99,
                row.idle_bytes as f64 / MIB,
                row.held_bytes / MIB,
                row.held_max_bytes / MIB,
                row.needed_bytes / MIB,
                row.held_by_needed,
                row.held_by_needed_by_peak
            )?;
        }
        writeln!(
            f,
            "\n  Times in ms, memory in MiB: means over time.\n\n  held beyond the need:  idle      base  partitions"
        )?;
        for row in &self.rows {
            let [idle, base, partitions] = row.excess_bytes.parts().map(|bytes| bytes / MIB);
            writeln!(f, "  {:<20} {idle:>7.1} {base:>9.1} {partitions:>11.1}", row.provision.to_string())?;
        }
        writeln!(f)?;
        for row in &self.rows {
            row.write_looks(f)?;
        }
        lab_note(f, self.host, self.clock)?;
        for row in self.rows.iter().filter(|row| row.provision == Provision::Elastic) {
            let (ratio, met) = (row.held_by_needed, if row.held_by_needed <= AIM { "met" } else { "not met" });
            writeln!(f, "  {met:<7} {ratio:>6.3}  memory held over time at most {AIM:.2} times what is needed")?;
        }
        Ok(())
    }
}

/// A page with memory over time: held and needed for each guest.
pub fn html(report: &Report) -> String {
    let section = |row: &Row| {
        let [held, most, needed] = [row.held_bytes, row.held_max_bytes, row.needed_bytes].map(|bytes| bytes / MIB);
        format!(
            "<h2>{}</h2>\n<p>Held: {held:.0} MiB on average, {most:.0} MiB at most. Needed: {needed:.0} MiB on average. \
             Held by needed: {:.2}. Latency: p50 {:.0} ms, p99 {:.0} ms.</p>\n{}",
            row.provision,
            row.held_by_needed,
            row.latency_ms.p50,
            row.latency_ms.p99,
            row.plot()
        )
    };
    let body: String = report.rows.iter().map(section).collect();
    page("Memory that follows bursts of functions", report.host, &body)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use bellows_bench::cost::Cost;
    use bellows_bench::load::{Look, Ran};

    use super::*;

    const S: fn(u64) -> Duration = Duration::from_secs;

    /// One function, and looks at a guest that holds `held` MiB of which 150 MiB are needed.
    fn guest(provision: Provision, held: u64) -> Vec<Line> {
        let ran =
            Ran { at: S(0), admitted: S(1), done: S(5), unplugged: S(9), plug: S(0), unplug: S(0), peak: 50 << 20 };
        let look =
            |at| Look { at: S(at), held: held << 20, partitions: 60 << 20, allocated: 50 << 20, limited: 2 << 20 };
        let cost = Cost { instructions: 1000, waited_ns: 0, exits: 20 };
        let start = [Line::Guest { provision, base: 100 << 20 }, Line::Looks { count: 10, cost }];
        let end = [Line::Ran(ran), Line::Cost(cost)];
        start.into_iter().chain((0..9).map(|at| Line::Look(look(at)))).chain(end).collect()
    }

    fn report(held: u64) -> Report {
        let lines = [guest(Provision::Shared, 300), guest(Provision::Elastic, held)].concat();
        Report::new(Host::Lab, Clock::Counted, 2, 1500, &lines)
    }

    #[test]
    fn only_the_last_guest_has_an_aim() {
        let text = report(165).to_string();
        assert_eq!(text.matches("  met      1.100  memory held").count(), 1, "{text}");
        let text = report(168).to_string();
        assert!(text.contains("  not met  1.120  memory held") && text.contains("Counted time"), "{text}");
        // 165 MiB less the idle guest's 100, partitions' 60 and instances' 2; of partitions' 60 instances have 48.
        assert!(report(165).to_string().contains("elastic                  0.0       3.0        12.0"));
        assert!(
            text.contains("elastic, 9 looks at memory: 100 instructions, 0 ns waited, 2 exits each, 90.0 %"),
            "{text}"
        );
    }

    #[test]
    fn each_guest_has_a_plot_and_figures() {
        let report = report(165);
        assert_eq!(html(&report).matches("<polyline").count(), 4);
        let names: Vec<String> = report.figures().into_iter().map(|figure| figure.name).collect();
        assert_eq!(names.len(), 2 * 7);
        assert_eq!((names[0].as_str(), names[8].as_str()), ("shared, latency", "elastic, memory held, mean"));
    }
}
