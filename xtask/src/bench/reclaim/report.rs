//! From samples to rows, and from rows to the aims.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use bellows_bench::cost::Cost;
use bellows_bench::reclaim::{Group, Load, Mode, Neighbour, Sample};
use bellows_lab::{Clock, Host};
use serde::Serialize;

use crate::bench::figure::{Better, Figure, median_cost};
use crate::bench::program::lab_note;
use crate::bench::statistics::{median, ms, percentile, sorted};

/// Least number of samples for a 99th percentile.
const FOR_P99: usize = 200;

/// What `target/bench/reclaim.json` holds.
#[derive(Debug, Serialize)]
pub struct Report {
    pub host: Host,
    pub clock: Clock,
    pub rows: Vec<Row>,
    pub aims: Vec<Aim>,
}

/// One mode in one group. Figures without `p50` are medians, except `guest_cpu_ms`, which is the mean; figures that a peer
/// does not report are `null`.
#[derive(Debug, Serialize)]
pub struct Row {
    pub mode: Mode,
    #[serde(flatten)]
    pub group: Group,
    pub n: usize,
    /// Until the guest has accepted the memory; with the extension, memory that was parked.
    pub plug_ms: Times,
    /// Until the agent has seen that an instance can use it.
    pub usable_ms: f64,
    /// With the extension, of memory that was not parked, or parked with another size.
    pub first_plug_ms: Option<f64>,
    /// Before the unplug: removing the instance, its page cache included.
    pub remove_ms: f64,
    pub unplug_ms: Times,
    pub guest_ms: f64,
    pub slot_ms: f64,
    pub discard_ms: f64,
    pub guest_cpu_ms: f64,
    /// Costs of the whole calls, if time is counted; the unplug's includes the agent's counts of pages before and after it.
    pub plug_cost: Option<Cost>,
    pub unplug_cost: Option<Cost>,
    pub migrated_pages: u64,
    /// Medians by reason.
    pub migrated_by_reason: BTreeMap<String, u64>,
    /// The largest number in any sample.
    pub migrated_pages_max: u64,
    pub zeroed_pages: u64,
    pub zeroed_pages_max: u64,
    pub discarded_bytes: u64,
    /// Bytes that the guest kept although it should not; the largest of any sample.
    pub left_bytes_max: u64,
    /// Share of its speed that the neighbour lost in the 4 s that began with the unplug.
    pub neighbour_slowdown: Option<f64>,
    /// The same for 4 s in which nothing happened: median of the absolute values.
    pub neighbour_a_a: Option<f64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Times {
    pub p50: f64,
    pub p99: Option<f64>,
    pub max: f64,
}

/// The aims, and whether they are met.
#[derive(Debug, Serialize)]
pub struct Aim {
    pub aim: String,
    pub value: f64,
    pub met: bool,
}

impl Report {
    pub fn new(host: Host, clock: Clock, samples: &[Sample]) -> Self {
        let mut cells: BTreeMap<(Group, Mode), Vec<&Sample>> = BTreeMap::new();
        for sample in samples {
            cells.entry((sample.group, sample.mode)).or_default().push(sample);
        }
        let rows: Vec<Row> = cells.iter().map(|((group, mode), samples)| Row::new(*group, *mode, samples)).collect();
        let aims = aims(&rows);
        Self { host, clock, rows, aims }
    }
}

/// The figures to compare two runs by.
pub fn figures(samples: &[Sample]) -> Vec<Figure> {
    let mut cells: BTreeMap<(Group, Mode), Vec<&Sample>> = BTreeMap::new();
    for sample in samples {
        cells.entry((sample.group, sample.mode)).or_default().push(sample);
    }
    let mut figures = Vec::new();
    for ((group, mode), samples) in cells {
        let name = |call: &str| name_of(mode, group, call);
        let usual = || samples.iter().filter(move |sample| sample.parked || mode != Mode::Extension);
        figures.push(Figure::of(name("plug"), "ms", Better::Lower, usual().map(|sample| ms(sample.plug))));
        for (call, time) in
            [("unplug", (|sample| sample.unplug) as fn(&Sample) -> Duration), ("discard", |sample| sample.discard)]
        {
            figures.push(Figure::of(name(call), "ms", Better::Lower, samples.iter().map(|sample| ms(time(sample)))));
        }
        let migrated = samples.iter().map(|sample| sample.migrated_pages() as f64);
        figures.push(Figure::of(name("unplug, migrated"), "pages", Better::Lower, migrated));
        let costs =
            |cost: fn(&Sample) -> Option<Cost>| samples.iter().filter_map(|sample| cost(sample)).collect::<Vec<_>>();
        let plugs: Vec<Cost> = usual().filter_map(|sample| sample.plug_cost).collect();
        figures.extend(Figure::of_costs(&name("plug"), &plugs));
        figures.extend(Figure::of_costs(&name("unplug"), &costs(|sample| sample.unplug_cost)));
    }
    figures
}

fn name_of(mode: Mode, group: Group, call: &str) -> String {
    let Group { init_on_alloc, size_mib, load } = group;
    format!("{mode}, {size_mib} MiB, init_on_alloc={}, {load}, {call}", u8::from(init_on_alloc))
}

impl Times {
    fn new(times: impl Iterator<Item = Duration>) -> Self {
        let times = sorted(times.map(ms).collect());
        let p99 = if times.len() >= FOR_P99 { percentile(&times, 99) } else { None };
        Self { p50: median(&times).unwrap_or(f64::NAN), p99, max: percentile(&times, 100).unwrap_or(f64::NAN) }
    }
}

impl Row {
    fn new(group: Group, mode: Mode, samples: &[&Sample]) -> Self {
        let usual: Vec<&Sample> =
            samples.iter().copied().filter(|sample| sample.parked || mode != Mode::Extension).collect();
        let first: Vec<&Sample> = samples.iter().copied().filter(|sample| !sample.parked).collect();
        let middle = |value: &dyn Fn(&Sample) -> f64| {
            median(&sorted(samples.iter().map(|sample| value(sample)).collect())).unwrap_or(f64::NAN)
        };
        let time = |value: &dyn Fn(&Sample) -> Duration| middle(&|sample| ms(value(sample)));
        let told = |value: &dyn Fn(&Sample) -> Duration| if mode.is_peer() { f64::NAN } else { time(value) };
        let most = |value: &dyn Fn(&Sample) -> u64| samples.iter().map(|sample| value(sample)).max().unwrap_or(0);
        let reasons = samples.iter().flat_map(|sample| sample.migrated.keys());
        let by_reason = |reason: &String| {
            let pages = middle(&|sample| sample.migrated.get(reason).copied().unwrap_or(0) as f64);
            (reason.clone(), pages as u64)
        };
        let neighbours: Vec<Neighbour> = samples.iter().filter_map(|sample| sample.neighbour).collect();
        let of_neighbours = |value: &dyn Fn(&Neighbour) -> f64| median(&sorted(neighbours.iter().map(value).collect()));
        let cpu: f64 = samples.iter().map(|sample| ms(sample.vcpus)).sum();
        Self {
            mode,
            group,
            n: samples.len(),
            plug_ms: Times::new(usual.iter().map(|sample| sample.plug)),
            usable_ms: median(&sorted(usual.iter().map(|sample| ms(sample.usable)).collect())).unwrap_or(f64::NAN),
            first_plug_ms: (mode == Mode::Extension)
                .then(|| median(&sorted(first.iter().map(|sample| ms(sample.plug)).collect())))
                .flatten(),
            remove_ms: told(&|sample| sample.remove),
            unplug_ms: Times::new(samples.iter().map(|sample| sample.unplug)),
            guest_ms: told(&|sample| sample.guest),
            slot_ms: told(&|sample| sample.slots),
            discard_ms: told(&|sample| sample.discard),
            guest_cpu_ms: cpu / samples.len() as f64,
            plug_cost: median_cost(&usual.iter().filter_map(|sample| sample.plug_cost).collect::<Vec<_>>()),
            unplug_cost: median_cost(&samples.iter().filter_map(|sample| sample.unplug_cost).collect::<Vec<_>>()),
            migrated_pages: middle(&|sample| sample.migrated_pages() as f64) as u64,
            migrated_by_reason: reasons.map(by_reason).filter(|(_, pages)| *pages > 0).collect(),
            migrated_pages_max: most(&Sample::migrated_pages),
            zeroed_pages: middle(&|sample| sample.zeroed as f64) as u64,
            zeroed_pages_max: most(&|sample| sample.zeroed),
            discarded_bytes: middle(&|sample| sample.discarded as f64) as u64,
            left_bytes_max: most(&|sample| sample.left),
            neighbour_slowdown: of_neighbours(&Neighbour::slowdown),
            neighbour_a_a: of_neighbours(&|neighbour| neighbour.a_a().abs()),
        }
    }
}

/// The aims that the rows cover.
fn aims(rows: &[Row]) -> Vec<Aim> {
    let row = |mode: Mode, init_on_alloc: bool, size_mib: u64, load: Load| {
        rows.iter().find(|row| row.mode == mode && row.group == Group { init_on_alloc, size_mib, load })
    };
    let mut aims = Vec::new();
    let mut add = |aim: String, value: Option<f64>, met: &dyn Fn(f64) -> bool| {
        if let Some(value) = value.filter(|value| value.is_finite()) {
            aims.push(Aim { aim, value, met: met(value) });
        }
    };
    for init in [false, true] {
        for load in [Load::Quiet, Load::Busy] {
            let place = format!("2 GiB, init_on_alloc={}, {load}", u8::from(init));
            let at_2g = |mode| row(mode, init, 2048, load);
            let (shared, stock, extension) = (at_2g(Mode::Shared), at_2g(Mode::Stock), at_2g(Mode::Extension));
            let faster = |by: Option<&Row>, time: &dyn Fn(&Row) -> f64| Some(shared?.unplug_ms.p50 / time(by?));
            let floor = if init { 500.0 } else { 200.0 };
            add(
                format!("{place}: extension unplugs at least {floor} times faster than shared"),
                faster(extension, &|row| row.unplug_ms.p50),
                &|value| value >= floor,
            );
            if !init {
                add(
                    format!("{place}: stock, page cache dropped, at least 10 times faster than shared"),
                    faster(stock, &|row| row.unplug_ms.p50 + row.remove_ms),
                    &|value| value >= 10.0,
                );
            }
            add(
                format!("{place}: extension's unplug p99 at most 3 times p50"),
                extension.and_then(|row| Some(row.unplug_ms.p99? / row.unplug_ms.p50)),
                &|value| value <= 3.0,
            );
            add(
                format!("{place}: a parked plug at least 50 times faster than a first one (stock's)"),
                extension.and_then(|row| Some(stock?.plug_ms.p50 / row.plug_ms.p50)),
                &|value| value >= 50.0,
            );
            add(
                format!("{place}: the neighbour loses less than 2 % or A/A"),
                extension.and_then(|row| row.neighbour_slowdown),
                &|value| value < 0.02_f64.max(extension.and_then(|row| row.neighbour_a_a).unwrap_or(0.0)),
            );
            let guest = |size| row(Mode::Extension, init, size, load).map(|row| row.guest_ms);
            add(
                format!(
                    "init_on_alloc={}, {load}: guest work of 8 GiB at most 1.5 times that of 512 MiB",
                    u8::from(init)
                ),
                guest(8192).and_then(|large| Some(large / guest(512)?)),
                &|value| value <= 1.5,
            );
        }
    }
    let extension = || rows.iter().filter(|row| row.mode == Mode::Extension);
    let touched = extension().map(|row| row.migrated_pages_max + row.zeroed_pages_max).max();
    add("extension: nothing migrated or zeroed, in any sample".into(), touched.map(|pages| pages as f64), &|value| {
        value == 0.0
    });
    aims
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "Memory of an instance that has ended goes back, on this host ({}):\n", self.host)?;
        writeln!(
            f,
            "  mode          MiB  init  load      n     plug   unplug      p99      max    guest    slots  discard  \
             migrated   zeroed  neighbour"
        )?;
        for row in &self.rows {
            let Group { init_on_alloc, size_mib, load } = row.group;
            let p99 = row.unplug_ms.p99.map_or("-".to_owned(), |time| format!("{time:.3}"));
            let told = |time: f64| if time.is_nan() { "-".to_owned() } else { format!("{time:.3}") };
            let slowdown = row.neighbour_slowdown.map_or("-".to_owned(), |part| format!("{:.1} %", 100.0 * part));
            writeln!(
                f,
                "  {:<12} {size_mib:>4}     {}  {load:<5} {:>4} {:>8.3} {:>8.3} {p99:>8} {:>8.3} {:>8} {:>8} {:>8}  \
                 {:>8} {:>8}  {slowdown:>9}",
                row.mode,
                u8::from(init_on_alloc),
                row.n,
                row.plug_ms.p50,
                row.unplug_ms.p50,
                row.unplug_ms.max,
                told(row.guest_ms),
                told(row.slot_ms),
                told(row.discard_ms),
                row.migrated_pages,
                row.zeroed_pages,
            )?;
        }
        writeln!(f, "\n  Times in ms, medians; of the slots' change and the discard on the host.")?;
        for row in &self.rows {
            for (call, cost) in [("plug", row.plug_cost), ("unplug", row.unplug_cost)] {
                if let Some(cost) = cost {
                    writeln!(f, "  {}: {cost}.", name_of(row.mode, row.group, call))?;
                }
            }
        }
        lab_note(f, self.host, self.clock)?;
        for aim in &self.aims {
            writeln!(f, "  {:<7} {:>8.2}  {}", if aim.met { "met" } else { "not met" }, aim.value, aim.aim)?;
        }
        Ok(())
    }
}

#[cfg(test)]
#[path = "report_test.rs"]
pub mod tests;
