//! From the functions that ran and the memory held to a report.

use std::fmt;
use std::time::Duration;

use bellows_bench::cost::Cost;
use bellows_bench::load::{Line, Provision, Ran};
use bellows_lab::{Clock, Host};
use serde::Serialize;

use crate::bench::figure::{Better, Figure};
use crate::bench::plot::{Plot, Scale, page};
use crate::bench::program::lab_note;
use crate::bench::statistics::{ms, percentile, sorted};

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

/// One guest.
#[derive(Debug, Serialize)]
pub struct Row {
    pub provision: Provision,
    pub n: usize,
    /// From arrival to result.
    pub latency_ms: Times,
    /// Of that, waiting for a place.
    pub waiting_ms: Times,
    pub plug_ms: Times,
    /// From the request until the guest could not reach the memory any more.
    pub reclaim_ms: Times,
    /// Memory that the host had under the guest, over time.
    pub held_byte_seconds: f64,
    /// Memory needed: that of the smallest guest without instances, and each live instance's peak.
    pub needed_byte_seconds: f64,
    pub held_by_needed: f64,
    /// Cost of everything that ran in the guest, if time is counted.
    pub cost: Option<Cost>,
    /// Seconds, bytes held and bytes needed.
    pub timeline: Vec<(f64, f64, f64)>,
    #[serde(skip)]
    latencies: Vec<f64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Times {
    pub p50: f64,
    pub p99: f64,
    pub max: f64,
}

impl Times {
    fn new(times: impl Iterator<Item = Duration>) -> Self {
        let times = sorted(times.map(ms).collect());
        let at = |p| percentile(&times, p).unwrap_or(f64::NAN);
        Self { p50: at(50), p99: at(99), max: at(100) }
    }
}

impl Report {
    pub fn new(host: Host, clock: Clock, gap_ms: u64, lines: &[Line]) -> Self {
        let guests = lines.chunk_by(|_, next| !matches!(next, Line::Guest { .. }));
        // Static memory stays with the guest once it was touched, so its base does not show the need of a guest.
        let bases =
            lines.iter().filter_map(|line| if let Line::Guest { base, .. } = line { Some(*base) } else { None });
        let base = bases.min().unwrap_or(0);
        let rows: Vec<Row> = guests.filter_map(|lines| Row::new(lines, base)).collect();
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
            figures.extend(Figure::of_costs(&name("all functions"), &row.cost.into_iter().collect::<Vec<_>>()));
        }
        figures
    }
}

impl Row {
    /// `None` if it is not a guest or no function ran in it.
    fn new(lines: &[Line], base: u64) -> Option<Self> {
        let Some(Line::Guest { provision, .. }) = lines.first() else { return None };
        let ran: Vec<Ran> =
            lines.iter().filter_map(|line| if let Line::Ran(ran) = line { Some(*ran) } else { None }).collect();
        let end = ran.iter().map(|ran| ran.unplugged).max()?.as_secs_f64();
        let needed = |at: f64| {
            let live = ran.iter().filter(|ran| ran.admitted.as_secs_f64() <= at && at < ran.done.as_secs_f64());
            base as f64 + live.map(|ran| ran.peak as f64).sum::<f64>()
        };
        let timeline: Vec<(f64, f64, f64)> = lines
            .iter()
            .filter_map(|line| match line {
                Line::Held { at, bytes } => {
                    let at = at.as_secs_f64();
                    (at <= end).then(|| (at, *bytes as f64, needed(at)))
                }
                _ => None,
            })
            .collect();
        // A value holds until the next one.
        let over_time = |value: &dyn Fn(&(f64, f64, f64)) -> f64| -> f64 {
            timeline.windows(2).map(|pair| value(&pair[0]) * (pair[1].0 - pair[0].0)).sum()
        };
        let (held, needed) = (over_time(&|point| point.1), over_time(&|point| point.2));
        Some(Self {
            provision: *provision,
            n: ran.len(),
            latency_ms: Times::new(ran.iter().map(|ran| ran.done.saturating_sub(ran.at))),
            waiting_ms: Times::new(ran.iter().map(|ran| ran.admitted.saturating_sub(ran.at))),
            plug_ms: Times::new(ran.iter().map(|ran| ran.plug)),
            reclaim_ms: Times::new(ran.iter().map(|ran| ran.unplug)),
            held_byte_seconds: held,
            needed_byte_seconds: needed,
            held_by_needed: held / needed,
            cost: lines.iter().find_map(|line| if let Line::Cost(cost) = line { Some(*cost) } else { None }),
            timeline,
            latencies: ran.iter().map(|ran| ms(ran.done.saturating_sub(ran.at))).collect(),
        })
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
            "  memory        n   latency p50        p99   waiting p99   plug p50   reclaim p50        p99        max   held by needed"
        )?;
        for row in &self.rows {
            writeln!(
                f,
                "  {:<9} {:>5} {:>13.1} {:>10.1} {:>13.1} {:>10.3} {:>13.3} {:>10.3} {:>10.3} {:>16.2}",
                row.provision.to_string(),
                row.n,
                row.latency_ms.p50,
                row.latency_ms.p99,
                row.waiting_ms.p99,
                row.plug_ms.p50,
                row.reclaim_ms.p50,
                row.reclaim_ms.p99,
                row.reclaim_ms.max,
                row.held_by_needed
            )?;
        }
        writeln!(f, "\n  Times in ms.")?;
        for row in &self.rows {
            if let Some(cost) = row.cost {
                writeln!(f, "  {}, all functions: {cost}.", row.provision)?;
            }
        }
        lab_note(f, self.host, self.clock)?;
        let (Some(ratio), Some(a_a)) = (self.extension_p99_by_static, self.a_a) else { return Ok(()) };
        let met = |met: bool| if met { "met" } else { "not met" };
        let spread = a_a.max(1.0 / a_a).max(1.05);
        writeln!(
            f,
            "  {:<7} {ratio:>6.3}  the extension's p99 latency at most 1.05 times that of static memory, or A/A ({a_a:.3})",
            met(ratio <= spread)
        )?;
        for row in self.rows.iter().filter(|row| row.provision == Provision::Extension) {
            let ratio = row.held_by_needed;
            writeln!(
                f,
                "  {:<7} {ratio:>6.3}  memory held over time at most 1.3 times what is needed",
                met(ratio <= 1.3)
            )?;
        }
        Ok(())
    }
}

/// A page with memory over time, for each guest.
pub fn html(report: &Report) -> String {
    const GIB: f64 = (1_u64 << 30) as f64;
    let mut body = String::new();
    for row in &report.rows {
        let mut plot = Plot::new(("s", Scale::Linear), ("GiB", Scale::Linear));
        let line = |value: &dyn Fn(&(f64, f64, f64)) -> f64| {
            row.timeline.iter().map(|point| (point.0, value(point) / GIB)).collect()
        };
        plot.add("held".into(), "#d62728", false, line(&|point| point.1));
        plot.add("needed".into(), "#1f77b4", true, line(&|point| point.2));
        body += &format!("<h2>{}</h2>\n<p>{:.2} times what is needed.</p>\n{plot}", row.provision, row.held_by_needed);
    }
    page("Memory held and needed while functions come in bursts", report.host, &body)
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: fn(u64) -> Duration = Duration::from_secs;

    fn guest(provision: Provision, latency: u64, held: u64) -> Vec<Line> {
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
        let held = (0..20).map(|at| Line::Held { at: S(at), bytes: held });
        [Line::Guest { provision, base: 100 }, ran(0), ran(10)].into_iter().chain(held).collect()
    }

    #[test]
    fn memory_needed_is_the_base_and_the_peaks_of_live_instances() {
        let report = Report::new(Host::Kvm, Clock::Wall, 1, &guest(Provision::Extension, 5, 500));
        let row = &report.rows[0];
        // Up to the last unplug, after 16 s: twice 4 s of 400 bytes, 8 s of 100 bytes.
        assert_eq!((row.needed_byte_seconds, row.held_byte_seconds), (8.0 * 400.0 + 8.0 * 100.0, 16.0 * 500.0));
        assert_eq!((row.latency_ms.p99, row.waiting_ms.p50, row.reclaim_ms.max), (5000.0, 1000.0, 1000.0));
    }

    #[test]
    fn the_extension_is_compared_with_static_memory_and_that_with_itself() {
        let guests = [(Provision::Static, 4), (Provision::Extension, 5), (Provision::Static, 5)];
        let lines: Vec<Line> =
            guests.into_iter().flat_map(|(provision, latency)| guest(provision, latency, 1)).collect();
        let report = Report::new(Host::Lab, Clock::Wall, 1, &lines);
        assert_eq!((report.extension_p99_by_static, report.a_a), (Some(1.0), Some(1.25)));
        let text = report.to_string();
        assert!(text.contains("met      1.000") && text.contains("only ratios"), "{text}");
        assert_eq!(html(&report).matches("<polyline").count(), 6);
    }
}
