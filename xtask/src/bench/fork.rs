//! `bench fork`: runs the program that starts idle instances, and makes a report of its output.

use std::fmt;

use bellows_bench::cost::Cost;
use bellows_bench::fork::{PARTITION_MIB, Sample, Way};
use bellows_lab::{Clock, Host};
use serde::Serialize;

use super::figure::{Better, Figure, median_cost};
use super::program::{ClockArgs, Program, lab_note};
use super::statistics::{median, ms, sorted, spread};
use crate::error::{Error, Result};

/// Longest time that a fork may take to its first line, in counted time.
const AIM_MS: f64 = 5.0;
/// Most memory that a further idle fork may take.
const AIM_MIB: f64 = 4.0;

#[derive(Debug, clap::Args)]
pub struct Options {
    /// VMs for each way of starting.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..))]
    vms: u16,
    /// Instances in each VM.
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u16).range(2..=64))]
    instances: u16,
    #[command(flatten)]
    clock: ClockArgs,
}

pub fn run(options: &Options, install: bool) -> Result<()> {
    let program = Program::build("fork", options.clock, install)?;
    let mut samples = Vec::new();
    let arguments = [options.vms.to_string(), options.instances.to_string()];
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    program.run(
        &arguments,
        |lab| lab,
        |sample: Sample| {
            eprintln!("{:<10} {:>3} {:>3} {:>9.3} ms", sample.way, sample.vm, sample.number, ms(sample.time));
            samples.push(sample);
        },
    )?;
    let report = Report::new(program.host, program.clock, &samples)?;
    super::keep("fork", &report, figures(&samples))?;
    print!("{report}");
    Ok(())
}

/// What `target/bench/fork.json` holds.
#[derive(Debug, Serialize)]
struct Report {
    host: Host,
    clock: Clock,
    rows: Vec<Row>,
}

/// One way of starting.
#[derive(Debug, Serialize)]
struct Row {
    way: Way,
    /// Instances, of all VMs.
    n: usize,
    /// Until the first line: median, and distance between the quartiles.
    ms: f64,
    spread_ms: f64,
    /// Median, where time is counted.
    cost: Option<Cost>,
    /// What a further idle instance takes of the host's memory, all in all: median of the VMs, and the most and least of them.
    mib: f64,
    most_mib: f64,
    least_mib: f64,
    /// Of that, in base memory.
    base_mib: f64,
}

impl Report {
    fn new(host: Host, clock: Clock, samples: &[Sample]) -> Result<Self> {
        let rows = Way::ALL.into_iter().map(|way| Row::new(way, samples)).collect::<Result<_>>()?;
        Ok(Self { host, clock, rows })
    }
}

impl Row {
    fn new(way: Way, samples: &[Sample]) -> Result<Self> {
        let all: Vec<&Sample> = samples.iter().filter(|sample| sample.way == way).collect();
        let none = || Error::other(format!("the benchmark printed too few samples of a {way}"));
        let times = sorted(all.iter().map(|sample| ms(sample.time)).collect());
        let middle = median(&times).ok_or_else(none)?;
        let bytes = further(&all, |sample| sample.partition_bytes + sample.base_bytes);
        let base = further(&all, |sample| sample.base_bytes);
        Ok(Self {
            way,
            n: all.len(),
            ms: middle,
            spread_ms: spread(&times).unwrap_or_default(),
            cost: median_cost(&all.iter().filter_map(|sample| sample.cost).collect::<Vec<_>>()),
            mib: median(&bytes).ok_or_else(none)?,
            most_mib: bytes.last().copied().ok_or_else(none)?,
            least_mib: bytes.first().copied().ok_or_else(none)?,
            base_mib: median(&base).ok_or_else(none)?,
        })
    }
}

/// What an instance after the first one adds to `bytes`, in MiB: the mean of each VM, in order.
fn further(samples: &[&Sample], bytes: fn(&Sample) -> u64) -> Vec<f64> {
    let vms = samples.iter().map(|sample| sample.vm).max().map_or(0, |last| last + 1);
    let mean = |vm| {
        let of_vm: Vec<&&Sample> = samples.iter().filter(|sample| sample.vm == vm).collect();
        let (first, last) = (of_vm.first()?, of_vm.last()?);
        let count = last.number.checked_sub(first.number).filter(|count| *count > 0)?;
        Some((bytes(last) as f64 - bytes(first) as f64) / count as f64 / f64::from(1 << 20))
    };
    sorted((0..vms).filter_map(mean).collect())
}

/// The figures to compare two runs by.
fn figures(samples: &[Sample]) -> Vec<Figure> {
    let of = |way: Way| {
        let all: Vec<&Sample> = samples.iter().filter(|sample| sample.way == way).collect();
        let name = way.to_string();
        let mut figures = vec![Figure::of(&name, "ms", Better::Lower, all.iter().map(|sample| ms(sample.time)))];
        let bytes = further(&all, |sample| sample.partition_bytes + sample.base_bytes);
        figures.push(Figure::of(format!("{name}, held"), "MiB", Better::Lower, bytes.into_iter()));
        figures.extend(Figure::of_costs(&name, &all.iter().filter_map(|sample| sample.cost).collect::<Vec<_>>()));
        figures
    };
    Way::ALL.into_iter().flat_map(of).collect()
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "A further idle Python, in a parked partition of {PARTITION_MIB} MiB, on this host ({}):\n",
            self.host
        )?;
        writeln!(
            f,
            "  started as     n   first line     spread   instructions   exits        MiB   least .. most    in base memory"
        )?;
        for row in &self.rows {
            let Row { way, n, ms, spread_ms, mib, least_mib, most_mib, base_mib, .. } = row;
            let (instructions, exits) = row.cost.map_or(("-".to_owned(), "-".to_owned()), |cost| {
                (cost.instructions.to_string(), cost.exits.to_string())
            });
            writeln!(
                f,
                "  {way:<10} {n:>5} {ms:>9.3} ms {spread_ms:>7.3} ms   {instructions:>12} {exits:>7} {mib:>10.2}   {least_mib:.2} .. {most_mib:.2}     {base_mib:>10.2}"
            )?;
        }
        writeln!(f)?;
        lab_note(f, self.host, self.clock)?;
        let Some(fork) = self.rows.iter().find(|row| row.way == Way::Fork) else { return Ok(()) };
        let verdict = |met| if met { "met" } else { "not met" };
        if self.clock == Clock::Counted {
            writeln!(
                f,
                "  {}  {:.3} ms  a fork's first line comes within {AIM_MS} ms",
                verdict(fork.ms <= AIM_MS),
                fork.ms
            )?;
        }
        writeln!(
            f,
            "  {}  {:.2} MiB  a further idle fork takes at most {AIM_MIB} MiB",
            verdict(fork.mib <= AIM_MIB),
            fork.mib
        )
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// Two VMs each, in which a container adds 10 and 12 MiB, and a fork 3 and 5, one of them to base memory.
    fn samples() -> Vec<Sample> {
        let mut samples = Vec::new();
        for (way, millis, added) in [(Way::Container, 40, [10, 12]), (Way::Fork, 7, [3, 5])] {
            for (vm, mib) in added.into_iter().enumerate() {
                samples.extend((0..3).map(|number| Sample {
                    way,
                    vm,
                    number,
                    time: Duration::from_millis(millis + number as u64),
                    cost: Some(Cost { instructions: 7, waited_ns: 0, exits: 1 }),
                    partition_bytes: (100 + number as u64 * (mib - 1)) << 20,
                    base_bytes: (300 + number as u64) << 20,
                }));
            }
        }
        samples
    }

    #[test]
    fn a_further_instance_is_what_those_after_the_first_add() {
        let report = Report::new(Host::Lab, Clock::Counted, &samples()).unwrap();
        let fork = &report.rows[1];
        assert_eq!((fork.way, fork.n, fork.ms), (Way::Fork, 6, 8.0));
        assert_eq!((fork.mib, fork.least_mib, fork.most_mib, fork.base_mib), (4.0, 3.0, 5.0, 1.0));
        let text = report.to_string();
        assert!(text.contains("not met  8.000 ms") && text.contains("  met  4.00 MiB"), "{text}");
    }

    #[test]
    fn what_was_not_measured_is_an_error() {
        let containers: Vec<Sample> = samples().into_iter().filter(|sample| sample.way == Way::Container).collect();
        let error = Report::new(Host::Kvm, Clock::Wall, &containers).unwrap_err().to_string();
        assert!(error.contains("of a fork"), "{error}");
        let firsts: Vec<Sample> = samples().into_iter().filter(|sample| sample.number == 0).collect();
        assert!(Report::new(Host::Kvm, Clock::Wall, &firsts).is_err());
    }
}
