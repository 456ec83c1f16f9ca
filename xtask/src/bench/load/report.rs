//! From the functions that ran and the memory held to a report.

use std::fmt;

use bellows_bench::load::{Line, Provision};
use bellows_lab::{Clock, Host};
use serde::Serialize;

use super::row::Row;
use crate::bench::figure::{Better, Figure};
use crate::bench::plot::page;
use crate::bench::program::lab_note;
use crate::bench::statistics::{percentile, sorted};

/// Most that the extension's 99th percentile of latency may be, by that of static memory. If static memory differs by more from itself,
/// the run cannot tell.
const MOST_BY_STATIC: f64 = 1.05;

/// What `target/bench/load.json` holds.
#[derive(Debug, Serialize)]
pub struct Report {
    pub host: Host,
    pub clock: Clock,
    /// Time between arrivals on average.
    gap_ms: u64,
    pub rows: Vec<Row>,
    /// 99th percentile of the extension's latency divided by that of static memory, both of whose runs count.
    extension_p99_by_static: Option<f64>,
    /// The same of the second run of static memory divided by the first: how far the same differs from itself.
    a_a: Option<f64>,
}

impl Report {
    pub fn new(host: Host, clock: Clock, gap_ms: u64, lines: &[Line]) -> Self {
        let rows = Row::all(lines);
        let of = |provision| rows.iter().filter(move |row: &&Row| row.provision == provision);
        let p99 = |latencies: Vec<f64>| percentile(&sorted(latencies), 99);
        let together = |provision| p99(of(provision).flat_map(|row| row.latencies.iter().copied()).collect());
        let extension_p99_by_static =
            together(Provision::Extension).zip(together(Provision::Static)).map(|(a, b)| a / b);
        let mut fixed = of(Provision::Static);
        let a_a = fixed.next().zip(fixed.next()).map(|(first, second)| second.latency_ms.p99 / first.latency_ms.p99);
        Self { host, clock, gap_ms, extension_p99_by_static, a_a, rows }
    }
}

impl Report {
    /// The figures to compare two runs by. Static memory comes twice.
    pub fn figures(&self) -> Vec<Figure> {
        let mut figures = Vec::new();
        for (number, row) in self.rows.iter().enumerate() {
            let name = |what: &str| format!("{}. {}, {what}", number + 1, row.provision);
            figures.push(Figure::of(name("latency"), "ms", Better::Lower, row.latencies.iter().copied()));
            figures.push(Figure::once(name("reclaim"), "ms", Better::Lower, row.reclaim_ms.p50));
            figures.push(Figure::once(name("memory held"), "of what is needed", Better::Lower, row.held_by_needed));
            let by_peak = row.held_by_needed_by_peak;
            figures.push(Figure::once(name("memory held"), "of what is needed by peak", Better::Lower, by_peak));
            figures.extend(Figure::of_costs(&name("all functions"), &row.cost.into_iter().collect::<Vec<_>>()));
        }
        figures
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "Functions that come in bursts, {} ms apart on average, on this host ({}):\n",
            self.gap_ms, self.host
        )?;
        writeln!(
            f,
            "  memory        n   latency p50        p99   waiting p99   plug p50   reclaim p50        p99        max   held by needed   by peak"
        )?;
        for row in &self.rows {
            writeln!(
                f,
                "  {:<9} {:>5} {:>13.1} {:>10.1} {:>13.1} {:>10.3} {:>13.3} {:>10.3} {:>10.3} {:>16.2} {:>9.2}",
                row.provision.to_string(),
                row.n,
                row.latency_ms.p50,
                row.latency_ms.p99,
                row.waiting_ms.p99,
                row.plug_ms.p50,
                row.reclaim_ms.p50,
                row.reclaim_ms.p99,
                row.reclaim_ms.max,
                row.held_by_needed,
                row.held_by_needed_by_peak
            )?;
        }
        writeln!(f, "\n  Times in ms.")?;
        for row in &self.rows {
            if let Some(cost) = row.cost {
                writeln!(f, "  {}, all functions: {cost}.", row.provision)?;
            }
            row.write_looks(f)?;
        }
        lab_note(f, self.host, self.clock)?;
        let (Some(ratio), Some(a_a)) = (self.extension_p99_by_static, self.a_a) else { return Ok(()) };
        let met = |met: bool| if met { "met" } else { "not met" };
        let p99 = if a_a.max(1.0 / a_a) > MOST_BY_STATIC { "unknown" } else { met(ratio <= MOST_BY_STATIC) };
        writeln!(
            f,
            "  {p99:<7} {ratio:>6.3}  the extension's p99 latency at most 1.05 times that of static memory (A/A {a_a:.3})"
        )?;
        for row in self.rows.iter().filter(|row| row.provision == Provision::Extension) {
            let ratio = row.held_by_needed_by_peak;
            writeln!(
                f,
                "  {:<7} {ratio:>6.3}  memory held over time at most 1.3 times what is needed by peak",
                met(ratio <= 1.3)
            )?;
        }
        Ok(())
    }
}

/// A page with memory over time, for each guest.
pub fn html(report: &Report) -> String {
    let section = |row: &Row| {
        let (provision, by_needed) = (row.provision, row.held_by_needed);
        format!("<h2>{provision}</h2>\n<p>{by_needed:.2} times what is needed.</p>\n{}", row.plot())
    };
    let body: String = report.rows.iter().map(section).collect();
    page("Memory held and needed while functions come in bursts", report.host, &body)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use bellows_bench::load::{Look, Ran};

    use super::*;

    const S: fn(u64) -> Duration = Duration::from_secs;

    /// Two functions that take `latency` seconds, and looks at memory each second.
    fn guest(provision: Provision, latency: u64) -> Vec<Line> {
        let ran = |at: u64| {
            Line::Ran(Ran {
                at: S(at),
                admitted: S(at + 1),
                done: S(at + latency),
                unplugged: S(at + latency + 1),
                plug: S(0),
                unplug: S(1),
                peak: 300,
            })
        };
        let looks =
            (0..20).map(|at| Line::Look(Look { at: S(at), held: 500, partitions: 0, allocated: 25, limited: 25 }));
        [Line::Guest { provision, base: 100 }, ran(0), ran(10)].into_iter().chain(looks).collect()
    }

    #[test]
    fn memory_is_compared_with_both_needs() {
        let lines = [guest(Provision::Static, 5), vec![Line::Guest { provision: Provision::Stock, base: 75 }]].concat();
        let report = Report::new(Host::Kvm, Clock::Wall, 1, &lines);
        assert_eq!(report.rows.len(), 1, "no function ran in the other");
        let row = &report.rows[0];
        assert_eq!((row.idle_bytes, row.held_bytes, row.needed_bytes, row.held_by_needed), (100, 500.0, 100.0, 5.0));
        // Up to the last unplug, after 16 s, an instance lives for half of the time.
        assert_eq!((row.needed_by_peak_bytes, row.held_max_bytes), (75.0 + 150.0, 500.0));
        assert_eq!((row.latency_ms.p99, row.waiting_ms.p50, row.reclaim_ms.max), (5000.0, 1000.0, 1000.0));
    }

    #[test]
    fn the_extension_is_compared_with_static_memory_and_that_with_itself() {
        let guests = [(Provision::Static, 4), (Provision::Extension, 5), (Provision::Static, 5)];
        let lines: Vec<Line> = guests.into_iter().flat_map(|(provision, latency)| guest(provision, latency)).collect();
        let report = Report::new(Host::Lab, Clock::Wall, 1, &lines);
        assert_eq!((report.extension_p99_by_static, report.a_a), (Some(1.0), Some(1.25)));
        let text = report.to_string();
        assert!(text.contains("unknown  1.000") && text.contains("only ratios"), "{text}");
        assert_eq!(html(&report).matches("<polyline").count(), 6);
        for (extension, said) in [(5, "met      1.000"), (6, "not met  1.200")] {
            let guests = [(Provision::Static, 5), (Provision::Extension, extension), (Provision::Static, 5)];
            let lines =
                guests.into_iter().flat_map(|(provision, latency)| guest(provision, latency)).collect::<Vec<_>>();
            let text = Report::new(Host::Lab, Clock::Wall, 1, &lines).to_string();
            assert!(text.contains(said), "{text}");
        }
    }
}
