//! `bench api`: runs the program that asks VMs, and makes a report of its output.

use std::fmt;

use bellows_bench::api::{Call, Sample};
use bellows_bench::cost::Cost;
use bellows_lab::{Clock, Host, LabBuilder};
use serde::Serialize;

use super::boot::{QEMU, QEMU_FIRMWARE};
use super::figure::{Better, Figure, median_cost};
use super::program::{ClockArgs, Program, lab_note};
use super::statistics::{median, ms, sorted, spread};
use crate::error::{Error, Result};
use crate::packages;

/// Longest time that `GET /` may take in counted time.
const AIM_MS: f64 = 0.3;

#[derive(Debug, clap::Args)]
pub struct Options {
    /// Rounds; in each one a function runs twice, and quick requests come in bursts of 100.
    #[arg(long, default_value_t = 10)]
    rounds: u32,
    #[command(flatten)]
    clock: ClockArgs,
}

pub fn run(options: &Options, install: bool) -> Result<()> {
    packages::ensure(&[packages::BENCH], install)?;
    let program = Program::build("api", options.clock, install)?;
    let mut samples = Vec::new();
    let furnish = |lab: LabBuilder| lab.program(QEMU, QEMU).file(QEMU_FIRMWARE, QEMU_FIRMWARE);
    program.run(&[&options.rounds.to_string()], furnish, |sample: Sample| {
        eprintln!("{:>4}  {:<28} {:>9.3} ms", samples.len() + 1, sample.call.name(), ms(sample.time));
        samples.push(sample);
    })?;
    let report = Report::new(program.host, program.clock, &samples)?;
    super::keep("api", &report, figures(&samples))?;
    print!("{report}");
    Ok(())
}

/// What `target/bench/api.json` holds.
#[derive(Debug, Serialize)]
struct Report {
    host: Host,
    clock: Clock,
    rows: Vec<Row>,
}

/// One kind of request.
#[derive(Debug, Serialize)]
struct Row {
    call: Call,
    /// Samples: single requests, or means of bursts.
    n: usize,
    /// Median.
    ms: f64,
    /// Distance between the quartiles.
    spread_ms: f64,
    /// By a client that sends one after the other, on one processor.
    per_second: f64,
    /// Median, where time is counted.
    cost: Option<Cost>,
    /// Medians of what the answers tell.
    parts_ms: Vec<(String, f64)>,
}

impl Report {
    fn new(host: Host, clock: Clock, samples: &[Sample]) -> Result<Self> {
        let rows = Call::ALL.into_iter().map(|call| Row::new(call, samples)).collect::<Result<_>>()?;
        Ok(Self { host, clock, rows })
    }

    fn ms(&self, call: Call) -> f64 {
        self.rows.iter().find(|row| row.call == call).map_or(f64::NAN, |row| row.ms)
    }
}

impl Row {
    fn new(call: Call, samples: &[Sample]) -> Result<Self> {
        let all: Vec<&Sample> = samples.iter().filter(|sample| sample.call == call).collect();
        let none = || Error::other(format!("the benchmark printed no samples of {call}"));
        let times = sorted(all.iter().map(|sample| ms(sample.time)).collect());
        let middle = median(&times).ok_or_else(none)?;
        let names: Vec<&String> = all[0].parts_ms.iter().map(|(name, _)| name).collect();
        let part = |(index, name): (usize, &String)| {
            let values = all.iter().filter_map(|sample| sample.parts_ms.get(index)).map(|(_, value)| *value);
            (name.clone(), median(&sorted(values.collect())).unwrap_or(f64::NAN))
        };
        Ok(Self {
            call,
            n: all.len(),
            ms: middle,
            spread_ms: spread(&times).unwrap_or_default(),
            per_second: 1000.0 / middle,
            cost: median_cost(&all.iter().filter_map(|sample| sample.cost).collect::<Vec<_>>()),
            parts_ms: names.into_iter().enumerate().map(part).collect(),
        })
    }
}

/// The figures to compare two runs by.
fn figures(samples: &[Sample]) -> Vec<Figure> {
    let of = |call: Call| {
        let all: Vec<&Sample> = samples.iter().filter(|sample| sample.call == call).collect();
        let mut figures = vec![Figure::of(call.name(), "ms", Better::Lower, all.iter().map(|sample| ms(sample.time)))];
        figures.extend(Figure::of_costs(call.name(), &all.iter().filter_map(|sample| sample.cost).collect::<Vec<_>>()));
        figures
    };
    Call::ALL.into_iter().flat_map(of).collect()
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "Requests to a VM, on this host ({}), medians:\n", self.host)?;
        writeln!(
            f,
            "  request                         n         ms     spread   per second   instructions   waited us   exits"
        )?;
        for row in &self.rows {
            let Row { call, n, ms, spread_ms, per_second, .. } = row;
            write!(f, "  {:<28} {n:>4} {ms:>10.4} {spread_ms:>10.4} {per_second:>12.0}", call.name())?;
            if let Some(Cost { instructions, waited_ns, exits }) = row.cost {
                write!(f, "   {instructions:>12} {:>11.1} {exits:>7}", waited_ns as f64 / 1000.0)?;
            }
            writeln!(f)?;
            for (name, ms) in &row.parts_ms {
                writeln!(f, "      {name}: {ms:.3} ms")?;
            }
        }
        let kept = self.ms(Call::Get) / self.ms(Call::QmpStatus);
        let connected = self.ms(Call::ConnectAndGet) / self.ms(Call::QmpConnectAndStatus);
        writeln!(f, "\n  GET / takes {kept:.2} of QEMU's query-status, {connected:.2} with the connection.")?;
        lab_note(f, self.host, self.clock)?;
        if self.clock == Clock::Counted {
            let get = self.ms(Call::Get);
            let verdict = if get <= AIM_MS { "met" } else { "not met" };
            writeln!(f, "  {verdict}  {get:.3} ms  GET / takes at most {AIM_MS} ms")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn samples() -> Vec<Sample> {
        let sample = |call, micros| Sample {
            call,
            time: Duration::from_micros(micros),
            cost: Some(Cost { instructions: micros * 1000, waited_ns: 0, exits: 1 }),
            parts_ms: if call == Call::Start { vec![("all".into(), micros as f64 / 1000.0)] } else { Vec::new() },
        };
        Call::ALL.into_iter().flat_map(|call| [100, 300, 200].map(|micros| sample(call, micros))).collect()
    }

    #[test]
    fn a_report_has_medians_and_parts_of_each_request() {
        let report = Report::new(Host::Lab, Clock::Counted, &samples()).unwrap();
        let json = serde_json::to_value(&report).unwrap();
        assert_eq!((&json["rows"][0]["call"], &json["rows"][0]["n"]), (&"get".into(), &3.into()));
        assert_eq!((json["rows"][0]["ms"].as_f64(), json["rows"][0]["per_second"].as_f64()), (Some(0.2), Some(5000.0)));
        assert_eq!(json["rows"][0]["cost"]["instructions"], 200_000);
        assert_eq!(json["rows"][5]["parts_ms"], serde_json::json!([["all", 0.2]]));
        let text = report.to_string();
        assert!(text.contains("GET / takes 1.00 of QEMU's") && text.contains("  met  0.200 ms"), "{text}");
    }

    #[test]
    fn what_was_not_measured_is_an_error() {
        let rest: Vec<Sample> = samples().into_iter().filter(|sample| sample.call != Call::Remove).collect();
        let error = Report::new(Host::Kvm, Clock::Wall, &rest).unwrap_err().to_string();
        assert!(error.contains("DELETE /instances/{id}"), "{error}");
    }
}
