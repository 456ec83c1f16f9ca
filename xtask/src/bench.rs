//! `cargo xtask bench`: comparisons, all sides in one run.

mod api;
mod blk;
mod boot;
mod compare;
pub mod counted;
mod elastic;
mod figure;
mod fork;
mod import;
pub mod layers;
mod load;
mod net;
mod plot;
mod program;
mod reclaim;
mod statistics;

use std::fs;
use std::path::PathBuf;

use serde::Serialize;

use crate::error::{Error, Result};
use crate::workspace;

use self::figure::Figure;

/// What to measure or to compare.
#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true, arg_required_else_help = true)]
pub struct Options {
    /// List the figures that moved by more than the spread since an earlier report: compare that file with the last
    /// report of its benchmark.
    #[arg(long, value_name = "FILE")]
    compare: Option<PathBuf>,
    #[command(subcommand)]
    benchmark: Option<Benchmark>,
}

/// A benchmark.
#[derive(Debug, clap::Subcommand)]
pub enum Benchmark {
    /// Requests to a VM by its API, from a question to a function's first output, compared with QEMU's monitor protocol.
    Api(api::Options),
    /// Reads of cached data through virtio-blk, without a VM, compared with a simple device and with copying alone.
    Blk(blk::Options),
    /// Time from the start of the monitor until the guest can be called, and the monitor's own memory, compared with QEMU.
    Boot(boot::Options),
    /// Cost of a short set of operations in counted time, held against committed bounds. Always runs in the lab.
    Counted(counted::Options),
    /// Memory of the host over time while functions come in bursts, in guests that follow them more or less.
    Elastic(elastic::Options),
    /// A further idle Python, as a container of its own and as a fork of a zygote: time until its first line, and memory.
    Fork(fork::Options),
    /// Import of a layer into the store: time, memory and size, compared with `tar -x` and `mkfs.erofs`.
    Import(import::Options),
    /// VMs of one image: their disk reads and memory, and the time until a function runs.
    Layers(layers::Options),
    /// Functions that come in bursts: their latency, and memory held against memory needed.
    Load(load::Options),
    /// Packets of a guest both ways: speed and cost, compared with QEMU, with and without vhost-net, and through passt.
    Net(net::Options),
    /// Time until the memory of an ended instance is back, for three ways to keep it apart in the guest.
    Reclaim(reclaim::Options),
}

/// Runs a benchmark on a host with KVM, prints its report and keeps it in `target/bench`; or compares two reports.
pub fn run(options: &Options, install: bool) -> Result<()> {
    if let Some(earlier) = &options.compare {
        return compare::run(earlier);
    }
    // Without an argument clap prints the help.
    let Some(benchmark) = &options.benchmark else { return Ok(()) };
    match benchmark {
        Benchmark::Api(options) => api::run(options, install),
        Benchmark::Blk(options) => blk::run(options),
        Benchmark::Boot(options) => boot::run(options, install),
        Benchmark::Counted(options) => counted::run(options, install),
        Benchmark::Elastic(options) => elastic::run(options, install),
        Benchmark::Fork(options) => fork::run(options, install),
        Benchmark::Import(options) => import::run(options, install),
        Benchmark::Layers(options) => layers::run(options, install),
        Benchmark::Load(options) => load::run(options, install),
        Benchmark::Net(options) => net::run(options, install),
        Benchmark::Reclaim(options) => reclaim::run(options, install),
    }
}

/// The directory of all reports.
fn directory() -> Result<PathBuf> {
    let directory = workspace::target_directory().join("bench");
    fs::create_dir_all(&directory).map_err(Error::at(&directory))?;
    Ok(directory)
}

/// Those that have a value: JSON has no other numbers, and what could not be measured compares with nothing.
fn comparable(figures: Vec<Figure>) -> Vec<Figure> {
    figures.into_iter().filter(|figure| figure.value.is_finite()).collect()
}

/// Keeps the report of a benchmark, and its figures for [`compare`].
fn keep(benchmark: &str, report: &impl Serialize, figures: Vec<Figure>) -> Result<()> {
    #[derive(Serialize)]
    struct Kept<'a, R> {
        benchmark: &'a str,
        #[serde(flatten)]
        report: &'a R,
        figures: Vec<Figure>,
    }
    let path = directory()?.join(format!("{benchmark}.json"));
    let figures = comparable(figures);
    let json = serde_json::to_string_pretty(&Kept { benchmark, report, figures })
        .map_err(|error| Error::other(format!("{benchmark}: {error}")))?;
    fs::write(&path, json + "\n").map_err(Error::at(&path))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::figure::Better;

    #[test]
    fn what_was_not_measured_is_no_figure() {
        let figures = [f64::NAN, 1.0].map(|value| Figure::once("held", "MiB", Better::Lower, value));
        let kept = comparable(figures.into());
        assert_eq!(kept.iter().map(|figure| figure.value).collect::<Vec<_>>(), [1.0]);
    }
}
