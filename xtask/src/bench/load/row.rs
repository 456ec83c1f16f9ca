//! One guest: the functions that ran in it, and its memory meanwhile.

use std::fmt;
use std::time::Duration;

use bellows_bench::cost::Cost;
use bellows_bench::load::{Line, Look, Provision, Ran};
use serde::Serialize;

use super::timeline::{Excess, Timeline};
use crate::bench::plot::{Plot, Scale};
use crate::bench::statistics::{ms, percentile, sorted};

const GIB: f64 = (1_u64 << 30) as f64;

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
    /// What the host has under the guest without instances.
    pub idle_bytes: u64,
    /// Means over time, and the most.
    pub held_bytes: f64,
    pub held_max_bytes: f64,
    /// What the smallest guest takes without instances, and all that living instances have allocated: a mean over time.
    pub needed_bytes: f64,
    /// The same, if each instance had its peak for all of its life.
    pub needed_by_peak_bytes: f64,
    pub held_by_needed: f64,
    pub held_by_needed_by_peak: f64,
    /// What is held beyond the need: means over time.
    pub excess_bytes: Excess,
    /// Cost of everything that ran in the guest, if time is counted.
    pub cost: Option<Cost>,
    /// Looks at memory meanwhile.
    pub looks: usize,
    /// The cost of one at an idle guest, if time is counted.
    pub look_cost: Option<Cost>,
    pub timeline: Timeline,
    #[serde(skip)]
    pub latencies: Vec<f64>,
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

impl Row {
    /// The guests of a run in which functions ran, in order.
    pub fn all(lines: &[Line]) -> Vec<Self> {
        // Static memory stays with the guest once it was touched, so what it takes does not show the need of a guest.
        let idle = |line: &Line| if let Line::Guest { base, .. } = line { Some(*base) } else { None };
        let least = lines.iter().filter_map(idle).min().unwrap_or(0);
        let guests = lines.chunk_by(|_, next| !matches!(next, Line::Guest { .. }));
        guests.filter_map(|lines| Self::new(lines, least)).collect()
    }

    /// `None` if it is not a guest or no function ran in it.
    fn new(lines: &[Line], least: u64) -> Option<Self> {
        let Some(&Line::Guest { provision, base }) = lines.first() else { return None };
        let ran: Vec<Ran> =
            lines.iter().filter_map(|line| if let Line::Ran(ran) = line { Some(*ran) } else { None }).collect();
        if ran.is_empty() {
            return None;
        }
        let looks: Vec<Look> =
            lines.iter().filter_map(|line| if let Line::Look(look) = line { Some(*look) } else { None }).collect();
        let apart = matches!(provision, Provision::Extension | Provision::Elastic);
        let timeline = Timeline::new(&looks, &ran, base, least, apart);
        let (held, needed) = (timeline.mean(|point| point.held), timeline.mean(|point| point.needed));
        let needed_by_peak = timeline.mean(|point| point.needed_by_peak);
        let look_cost = lines.iter().find_map(|line| match line {
            Line::Looks { count, cost } => Some(of_each(*cost, *count)),
            _ => None,
        });
        Some(Self {
            provision,
            n: ran.len(),
            latency_ms: Times::new(ran.iter().map(|ran| ran.done.saturating_sub(ran.at))),
            waiting_ms: Times::new(ran.iter().map(|ran| ran.admitted.saturating_sub(ran.at))),
            plug_ms: Times::new(ran.iter().map(|ran| ran.plug)),
            reclaim_ms: Times::new(ran.iter().map(|ran| ran.unplug)),
            idle_bytes: base,
            held_bytes: held,
            held_max_bytes: timeline.max(|point| point.held),
            needed_bytes: needed,
            needed_by_peak_bytes: needed_by_peak,
            held_by_needed: held / needed,
            held_by_needed_by_peak: held / needed_by_peak,
            excess_bytes: timeline.excess(),
            cost: lines.iter().find_map(|line| if let Line::Cost(cost) = line { Some(*cost) } else { None }),
            looks: looks.len(),
            look_cost,
            timeline,
            latencies: ran.iter().map(|ran| ms(ran.done.saturating_sub(ran.at))).collect(),
        })
    }

    /// Says what looking at memory has cost, if time is counted.
    pub fn write_looks(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some((look, all)) = self.look_cost.zip(self.cost) else { return Ok(()) };
        let percent = look.instructions as f64 * self.looks as f64 / all.instructions as f64 * 100.0;
        let (provision, looks) = (self.provision, self.looks);
        writeln!(f, "  {provision}, {looks} looks at memory: {look} each, {percent:.1} % of all instructions.")
    }

    /// A plot of its memory over time.
    pub fn plot(&self) -> Plot {
        let mut plot = Plot::new(("s", Scale::Linear), ("GiB", Scale::Linear));
        let points = &self.timeline.0;
        plot.add("held".into(), "#d62728", false, points.iter().map(|point| (point.at, point.held / GIB)).collect());
        plot.add("needed".into(), "#1f77b4", true, points.iter().map(|point| (point.at, point.needed / GIB)).collect());
        plot
    }
}

/// A part of a cost of `count` equal parts.
fn of_each(cost: Cost, count: u32) -> Cost {
    let part = |all: u64| all / u64::from(count.max(1));
    Cost { instructions: part(cost.instructions), waited_ns: part(cost.waited_ns), exits: part(cost.exits) }
}
