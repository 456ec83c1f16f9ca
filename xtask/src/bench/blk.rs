//! `bench blk`: runs the benchmark of virtio-blk, which needs no VM, and makes a report of criterion's estimates.

use std::fmt;
use std::fs;

use serde::{Deserialize, Serialize};

use super::figure::{Better, Figure};
use crate::error::{Error, Result};
use crate::{progress, run, workspace};

/// Requests in each of criterion's iterations (`devices/benches/blk.rs`).
const REQUESTS: f64 = 64.0;

#[derive(Debug, clap::Args)]
pub struct Options {
    /// The processor that everything runs on.
    #[arg(long, default_value_t = 0)]
    cpu: u32,
}

/// What `target/bench/blk.json` holds.
#[derive(Debug, Serialize)]
struct Report {
    rows: Vec<Row>,
    ratios: Vec<Ratios>,
}

#[derive(Debug, Serialize)]
struct Row {
    request_bytes: u32,
    side: Side,
    /// By the median of both of its turns.
    requests_per_s: f64,
    gb_per_s: f64,
    /// Criterion's 95 % confidence intervals of both turns' medians.
    requests_per_s_min: f64,
    requests_per_s_max: f64,
    /// Speed in the first turn divided by that in the second: how far the same differs from itself.
    a_a: f64,
}

/// Speed of Bellows divided by that of others.
#[derive(Debug, Serialize)]
struct Ratios {
    request_bytes: u32,
    to_pread: f64,
    to_plain: f64,
    to_memcpy: f64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Side {
    /// The device
    Bellows,
    /// The device, with a disk that makes a `pread` for each piece of memory
    Pread,
    /// A device that makes a `pread` for each descriptor and checks nothing, on the same queue
    Plain,
    /// Copying alone, without a device
    Memcpy,
}

/// A part of criterion's `estimates.json`; nanoseconds of one iteration.
#[derive(Debug, Clone, Copy, Deserialize)]
struct Estimates {
    median: Estimate,
}

#[derive(Debug, Clone, Copy, Deserialize)]
struct Estimate {
    point_estimate: f64,
    confidence_interval: Interval,
}

#[derive(Debug, Clone, Copy, Deserialize)]
struct Interval {
    lower_bound: f64,
    upper_bound: f64,
}

pub fn run(options: &Options) -> Result<()> {
    let program = workspace::benchmark("bellows-devices", "blk")?;
    let home = super::directory()?.join("criterion");
    progress::step("read through virtio-blk", |step| {
        let mut command = std::process::Command::new("taskset");
        command.args(["--cpu-list", &options.cpu.to_string()]).arg(program).arg("--bench").env("CRITERION_HOME", &home);
        run::quiet(step, &mut command)
    })?;
    let report = Report::new(|group, name| {
        let path = home.join(group).join(name).join("new/estimates.json");
        let data = fs::read(&path).map_err(Error::at(&path))?;
        serde_json::from_slice(&data).map_err(|error| Error::other(format!("{}: {error}", path.display())))
    })?;
    super::keep("blk", &report, report.figures())?;
    print!("{report}");
    Ok(())
}

impl Report {
    /// Makes a report of the estimates that `read` finds by group and name.
    fn new(read: impl Fn(&str, &str) -> Result<Estimates>) -> Result<Self> {
        let mut rows = Vec::new();
        let mut ratios = Vec::new();
        for (group, request_bytes) in [("blk-4k", 4 << 10), ("blk-128k", 128 << 10)] {
            let row = |side: Side| {
                let turn = |turn: u32| Ok::<_, Error>(read(group, &format!("{side}-{turn}"))?.median);
                Ok::<_, Error>(Row::new(request_bytes, side, turn(1)?, turn(2)?))
            };
            let (bellows, others) = (row(Side::Bellows)?, [row(Side::Pread)?, row(Side::Plain)?, row(Side::Memcpy)?]);
            let [to_pread, to_plain, to_memcpy] =
                others.each_ref().map(|other| bellows.requests_per_s / other.requests_per_s);
            ratios.push(Ratios { request_bytes, to_pread, to_plain, to_memcpy });
            rows.push(bellows);
            rows.extend(others);
        }
        Ok(Self { rows, ratios })
    }
}

impl Report {
    /// The figures to compare two runs by.
    fn figures(&self) -> Vec<Figure> {
        let figure = |row: &Row| Figure {
            name: format!("{}, {} K", row.side, row.request_bytes >> 10),
            unit: "requests/s".to_owned(),
            better: Better::Higher,
            value: row.requests_per_s,
            spread: Some(row.requests_per_s_max - row.requests_per_s_min),
        };
        self.rows.iter().map(figure).collect()
    }
}

impl Row {
    fn new(request_bytes: u32, side: Side, first: Estimate, second: Estimate) -> Self {
        let speed = |nanoseconds: f64| REQUESTS * 1e9 / nanoseconds;
        let bounds = [first, second].map(|turn| turn.confidence_interval);
        let slowest = bounds.map(|interval| interval.upper_bound).into_iter().fold(0.0, f64::max);
        let fastest = bounds.map(|interval| interval.lower_bound).into_iter().fold(f64::INFINITY, f64::min);
        let requests_per_s = speed((first.point_estimate + second.point_estimate) / 2.0);
        Self {
            request_bytes,
            side,
            requests_per_s,
            gb_per_s: requests_per_s * f64::from(request_bytes) / 1e9,
            requests_per_s_min: speed(slowest),
            requests_per_s_max: speed(fastest),
            a_a: second.point_estimate / first.point_estimate,
        }
    }
}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Bellows => "bellows",
            Self::Pread => "pread",
            Self::Plain => "plain",
            Self::Memcpy => "memcpy",
        })
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "Reads of cached data through virtio-blk, {REQUESTS} at a time, on one processor:\n")?;
        writeln!(f, "  size    side       requests/s   (min to max)             GB/s     A/A")?;
        for row in &self.rows {
            writeln!(
                f,
                "  {:>4} K  {:<8} {:>12.0}   ({:>9.0} to {:>9.0})   {:>6.2}   {:>5.3}",
                row.request_bytes >> 10,
                row.side,
                row.requests_per_s,
                row.requests_per_s_min,
                row.requests_per_s_max,
                row.gb_per_s,
                row.a_a
            )?;
        }
        for ratios in &self.ratios {
            let Ratios { request_bytes, to_pread, to_plain, to_memcpy } = ratios;
            writeln!(
                f,
                "\n  {} K: bellows has {to_pread:.2} of the speed of pread, {to_plain:.2} of plain's and {to_memcpy:.2} of memcpy's.",
                request_bytes >> 10
            )?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn speeds_are_of_requests_and_compared() {
        let report = Report::new(|group, name| {
            let time = if name.starts_with("memcpy") { 1000.0 } else { 2000.0 };
            let time = if name.ends_with("-2") { time * 1.5 } else { time };
            assert!(group.starts_with("blk-"));
            let text = format!(
                r#"{{"mean": {{}}, "median": {{"point_estimate": {time}, "standard_error": 1,
                "confidence_interval": {{"confidence_level": 0.95, "lower_bound": 900, "upper_bound": 4000}}}}}}"#
            );
            Ok(serde_json::from_str(&text).unwrap())
        })
        .unwrap();
        let row = &report.rows[0];
        assert_eq!((row.request_bytes, row.side, row.a_a), (4096, Side::Bellows, 1.5));
        assert_eq!(row.requests_per_s, 64e9 / 2500.0);
        assert_eq!(row.requests_per_s_min, 64e9 / 4000.0);
        assert_eq!((report.ratios[0].to_pread, report.ratios[1].to_memcpy), (1.0, 0.5));
    }
}
