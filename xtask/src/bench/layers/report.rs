//! From the answers of VMs to a report.

use std::collections::BTreeMap;
use std::fmt;

use bellows_bench::layers::{Answer, Line, Started, Together, Way};
use bellows_lab::Host;
use serde::Serialize;

use crate::bench::figure::{Better, Figure};
use crate::bench::plot::{Plot, Scale, page};
use crate::bench::statistics::{median, ms, percentile, sorted};

/// Most that all VMs together may read, divided by the reads of one VM with a copy of its own.
const READS: f64 = 1.2;
/// Most that a guest may keep of layer files that it uses in place.
const PMEM_CACHE: u64 = 2 << 20;
/// Most time of a start from 40 layers, divided by that from a single layer.
const MANY_LAYERS: f64 = 1.1;

/// What `target/bench/layers.json` holds.
#[derive(Debug, Serialize)]
pub struct Report {
    host: Host,
    modes: Vec<Mode>,
    starts: Vec<Start>,
}

/// Many VMs at the same time.
#[derive(Debug, Serialize)]
struct Mode {
    name: Way,
    vms: usize,
    /// While all of them started.
    disk_bytes_read: u64,
    wall_s: f64,
    /// Share of the copies' reads that was saved; `null` without copies.
    reduction_vs_copies: Option<f64>,
    /// Median over all VMs of: the monitor's own memory, the guest's page cache, and the excess of its memory map over the
    /// smallest one.
    bytes_per_extra_vm: u64,
    monitor_bytes: u64,
    /// Largest of any VM.
    guest_cache_bytes: u64,
    memory_map_bytes: u64,
}

/// One VM at a time, from the start of the monitor to the function's first line.
#[derive(Debug, Serialize)]
struct Start {
    layers: u32,
    name: Way,
    cold: bool,
    n: usize,
    first_line_ms: Times,
    /// Divided by the same with one layer.
    by_one_layer: Option<f64>,
    /// Median of every other start divided by that of the rest.
    a_a: Option<f64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
struct Times {
    p50: f64,
    min: f64,
    max: f64,
}

/// The aims, and whether they are met.
struct Aim {
    met: bool,
    text: String,
}

/// The figures to compare two runs by.
pub fn figures(lines: &[Line]) -> Vec<Figure> {
    let mut figures = Vec::new();
    let mut starts: BTreeMap<String, Vec<f64>> = BTreeMap::new();
    for line in lines {
        match line {
            Line::Together(all) => {
                let name = |what: &str| format!("{}, {} VMs, {what}", all.way, all.answers.len());
                let bytes = all.disk_bytes_read as f64;
                figures.push(Figure::once(name("read from the disk"), "bytes", Better::Lower, bytes));
                let cached = all.answers.iter().map(|answer| answer.cached_bytes as f64);
                figures.push(Figure::of(name("guest's page cache"), "bytes", Better::Lower, cached));
                let own = all.overheads.iter().map(|overhead| overhead.total() as f64);
                figures.push(Figure::of(name("monitor's memory"), "bytes", Better::Lower, own));
            }
            Line::Started(one) => {
                let name = format!("{}, {} layers, {}, first line", one.way, one.layers, cache(one.cold));
                starts.entry(name).or_default().push(ms(one.time));
            }
            Line::Answered { .. } => {}
        }
    }
    figures.extend(starts.into_iter().map(|(name, times)| Figure::of(name, "ms", Better::Lower, times.into_iter())));
    figures
}

impl Report {
    pub fn new(host: Host, lines: &[Line]) -> Self {
        let all: Vec<&Together> =
            lines.iter().filter_map(|line| if let Line::Together(all) = line { Some(all) } else { None }).collect();
        let map = |all: &&Together| all.answers.iter().map(|answer| answer.memory_map_bytes).min();
        let map = all.iter().filter_map(map).min().unwrap_or(0);
        let copies = all.iter().find(|all| all.way == Way::Copies).map(|all| all.disk_bytes_read);
        let modes = all.iter().map(|all| Mode::new(all, map, copies)).collect();
        let started: Vec<Started> =
            lines.iter().filter_map(|line| if let Line::Started(one) = line { Some(*one) } else { None }).collect();
        let mut kinds: Vec<(Way, bool, u32)> = started.iter().map(|one| (one.way, one.cold, one.layers)).collect();
        kinds.sort_by_key(|kind| (Way::ALL.iter().position(|way| *way == kind.0), kind.1, kind.2));
        kinds.dedup();
        let times = |kind: (Way, bool, u32)| -> Vec<f64> {
            let same = |one: &&Started| (one.way, one.cold, one.layers) == kind;
            started.iter().filter(same).map(|one| ms(one.time)).collect()
        };
        let starts = kinds.iter().filter_map(|kind| Start::new(*kind, &times(*kind), &times((kind.0, kind.1, 1))));
        Self { host, modes, starts: starts.collect() }
    }

    /// The aims for reads and memory of many VMs, if measured.
    fn sharing(&self) -> Vec<Aim> {
        let mut aims = Vec::new();
        for mode in self.modes.iter().filter(|mode| mode.name != Way::Copies) {
            if let Some(reduction) = mode.reduction_vs_copies {
                let vms = mode.vms as f64;
                let least = 1.0 - READS / vms;
                let limit = 1.0 - 1.0 / vms;
                let text = format!(
                    "{:<12} reads {:.2} % less from the disk than copies: at least {:.2} % (limit {:.2} %)",
                    mode.name,
                    reduction * 100.0,
                    least * 100.0,
                    limit * 100.0
                );
                aims.push(Aim { met: reduction >= least, text });
            }
            if mode.name.is_pmem() {
                let text =
                    format!("{:<12} guests keep {} bytes of files: less than 2 MiB", mode.name, mode.guest_cache_bytes);
                aims.push(Aim { met: mode.guest_cache_bytes < PMEM_CACHE, text });
            }
        }
        aims
    }

    fn starting(&self) -> Vec<Aim> {
        let flat = |start: &&Start| matches!(start.name, Way::BlkFlat | Way::PmemFlat) && start.layers == 40;
        let aim = |start: &Start| {
            let (ratio, a_a) = (start.by_one_layer?, start.a_a.unwrap_or(1.0));
            let text = format!(
                "{:<12} starts from 40 layers in {ratio:.3} of the time from 1 ({}): at most {MANY_LAYERS}, or A/A ({a_a:.3})",
                start.name,
                cache(start.cold)
            );
            Some(Aim { met: ratio <= MANY_LAYERS.max(a_a).max(1.0 / a_a), text })
        };
        self.starts.iter().filter(flat).filter_map(aim).collect()
    }

    /// The unmet aims of sharing, or the lack of measurements.
    pub fn shortfalls(&self) -> Vec<String> {
        let aims = self.sharing();
        if aims.is_empty() {
            return vec!["no VMs ran side by side".to_owned()];
        }
        aims.into_iter().filter(|aim| !aim.met).map(|aim| aim.text).collect()
    }

    /// A page with plots.
    pub fn html(&self) -> String {
        let mut body = format!("<pre>{self}</pre>\n");
        for cold in [true, false] {
            let mut plot = Plot::new(("layers", Scale::Decades), ("ms", Scale::Linear));
            for (way, colour) in Way::OURS.into_iter().zip(["#1f77b4", "#ff7f0e", "#2ca02c", "#d62728"]) {
                let points = self.starts.iter().filter(|start| start.name == way && start.cold == cold);
                let points = points.map(|start| (f64::from(start.layers), start.first_line_ms.p50));
                plot.add(way.to_string(), colour, way.is_pmem(), points.collect());
            }
            body += &format!("<h2>Time to the function's first line, {} cache</h2>\n{plot}", cache(cold));
        }
        page("Layers: what VMs share", self.host, &body)
    }
}

impl Mode {
    fn new(all: &Together, map: u64, copies: Option<u64>) -> Self {
        let middle =
            |values: &mut dyn Iterator<Item = u64>| median(&sorted(values.map(|value| value as f64).collect()));
        let middle = |values: &mut dyn Iterator<Item = u64>| middle(values).unwrap_or(0.0) as u64;
        let maps = |answer: &Answer| answer.memory_map_bytes.saturating_sub(map);
        let each = all.overheads.iter().zip(&all.answers);
        let mut each = each.map(|(overhead, answer)| overhead.total() + answer.cached_bytes + maps(answer));
        let by_copies = |copies: u64| 1.0 - all.disk_bytes_read as f64 / copies as f64;
        Self {
            name: all.way,
            vms: all.answers.len(),
            disk_bytes_read: all.disk_bytes_read,
            wall_s: all.wall.as_secs_f64(),
            reduction_vs_copies: copies.map(by_copies),
            bytes_per_extra_vm: middle(&mut each),
            monitor_bytes: middle(&mut all.overheads.iter().map(|overhead| overhead.total())),
            guest_cache_bytes: all.answers.iter().map(|answer| answer.cached_bytes).max().unwrap_or(0),
            memory_map_bytes: middle(&mut all.answers.iter().map(maps)),
        }
    }
}

impl Start {
    fn new((name, cold, layers): (Way, bool, u32), times: &[f64], one_layer: &[f64]) -> Option<Self> {
        let middle = |values: &mut dyn Iterator<Item = f64>| median(&sorted(values.collect()));
        let every_other = |first: usize| middle(&mut times.iter().skip(first).step_by(2).copied());
        let all = sorted(times.to_vec());
        let first_line_ms = Times { p50: median(&all)?, min: percentile(&all, 0)?, max: percentile(&all, 100)? };
        Some(Self {
            layers,
            name,
            cold,
            n: all.len(),
            first_line_ms,
            by_one_layer: median(&sorted(one_layer.to_vec())).map(|one| first_line_ms.p50 / one),
            a_a: every_other(0).zip(every_other(1)).map(|(first, second)| first / second),
        })
    }
}

fn cache(cold: bool) -> &'static str {
    if cold { "cold" } else { "hot" }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const MIB: f64 = (1 << 20) as f64;
        let mib = |bytes: u64| bytes as f64 / MIB;
        writeln!(f, "VMs of one image on this host ({}):\n", self.host)?;
        if !self.modes.is_empty() {
            writeln!(
                f,
                "  image         VMs   read from disk   less than copies    time   per extra VM   monitor   guest cache   memory map"
            )?;
        }
        for mode in &self.modes {
            let reduction = mode.reduction_vs_copies.map_or("-".to_owned(), |part| format!("{:.2} %", part * 100.0));
            writeln!(
                f,
                "  {:<12} {:>4} {:>12.1} MiB {:>18} {:>5.0} s {:>10.2} MiB {:>9.2} {:>13.2} {:>12.2}",
                mode.name,
                mode.vms,
                mib(mode.disk_bytes_read),
                reduction,
                mode.wall_s,
                mib(mode.bytes_per_extra_vm),
                mib(mode.monitor_bytes),
                mib(mode.guest_cache_bytes),
                mib(mode.memory_map_bytes)
            )?;
        }
        if !self.starts.is_empty() {
            writeln!(f, "\n  From the start of the monitor to the function's first line:\n")?;
            writeln!(f, "  image        cache  layers    n         p50         min         max   by 1 layer     A/A")?;
        }
        for start in &self.starts {
            let Times { p50, min, max } = start.first_line_ms;
            writeln!(
                f,
                "  {:<12} {:<5} {:>7} {:>4} {p50:>8.0} ms {min:>8.0} ms {max:>8.0} ms {:>12.3} {:>7.3}",
                start.name,
                cache(start.cold),
                start.layers,
                start.n,
                start.by_one_layer.unwrap_or(f64::NAN),
                start.a_a.unwrap_or(f64::NAN)
            )?;
        }
        writeln!(f)?;
        if self.host == Host::Lab {
            writeln!(f, "  The lab is an emulated host: only ratios and counts mean anything.")?;
        }
        for aim in self.sharing().into_iter().chain(self.starting()) {
            writeln!(f, "  {:<7} {}", if aim.met { "met" } else { "not met" }, aim.text)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use bellows_bench::smaps::Overhead;

    use super::*;

    fn together(way: Way, disk_bytes_read: u64, cached_bytes: u64, memory_map_bytes: u64) -> Line {
        let answers = vec![Answer { cached_bytes, memory_map_bytes }; 8];
        let overheads = vec![Overhead { heap: 100, ..Overhead::default() }; 8];
        Line::Together(Together { way, disk_bytes_read, wall: Duration::from_secs(1), overheads, answers })
    }

    fn started(layers: u32, milliseconds: u64) -> Line {
        Line::Started(Started { layers, way: Way::BlkFlat, cold: true, time: Duration::from_millis(milliseconds) })
    }

    #[test]
    fn memory_of_a_vm_is_its_monitors_its_page_cache_and_its_larger_memory_map() {
        let lines = [together(Way::Copies, 8000, 5000, 2000), together(Way::PmemFlat, 1100, 10, 2300)];
        let report = Report::new(Host::Lab, &lines);
        let modes: Vec<_> = report.modes.iter().map(|mode| (mode.bytes_per_extra_vm, mode.memory_map_bytes)).collect();
        assert_eq!(modes, [(5100, 0), (410, 300)]);
        assert_eq!(report.modes[1].reduction_vs_copies, Some(0.8625));
        assert!(report.shortfalls().is_empty());
    }

    #[test]
    fn reading_twice_or_keeping_files_misses_an_aim() {
        let lines = [together(Way::Copies, 8000, 0, 0), together(Way::PmemFlat, 1300, 3 << 20, 0)];
        let shortfalls = Report::new(Host::Lab, &lines).shortfalls();
        assert_eq!(shortfalls.len(), 2, "{shortfalls:?}");
        assert_eq!(Report::new(Host::Lab, &[]).shortfalls().len(), 1);
    }

    #[test]
    fn starts_are_compared_with_one_layer_and_with_themselves() {
        let times = [(1, 10), (40, 11), (1, 12), (40, 13), (1, 10), (40, 11)];
        let report = Report::new(Host::Kvm, &times.map(|(layers, time)| started(layers, time)));
        let starts: Vec<_> = report.starts.iter().map(|start| (start.layers, start.n, start.by_one_layer)).collect();
        assert_eq!(starts, [(1, 3, Some(1.0)), (40, 3, Some(1.1))]);
        assert_eq!(report.starts[0].a_a, Some(10.0 / 12.0));
        assert!(report.to_string().contains("met     blk-flat     starts from 40 layers in 1.100"), "{report}");
        assert_eq!(report.html().matches("<polyline").count(), 1);
    }
}
