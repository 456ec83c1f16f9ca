//! `cargo xtask bench`: comparisons, all sides in one run.

mod blk;
mod boot;
mod import;
pub mod layers;
mod load;
mod plot;
mod program;
mod reclaim;
mod statistics;

use std::fs;
use std::path::PathBuf;

use serde::Serialize;

use crate::error::{Error, Result};
use crate::workspace;

/// A benchmark.
#[derive(Debug, clap::Subcommand)]
pub enum Benchmark {
    /// Reads of cached data through virtio-blk, without a VM, beside a straightforward device and beside copying alone.
    Blk(blk::Options),
    /// Time from the start of the monitor to a guest that can be called, and the monitor's own memory, beside QEMU's.
    Boot(boot::Options),
    /// A layer into the store: time, memory and size, beside `tar -x` and `mkfs.erofs`.
    Import(import::Options),
    /// VMs of one image: what they read from the disk and keep in memory, and the time until a function runs.
    Layers(layers::Options),
    /// Functions that come in bursts: their latency, and memory held against memory needed.
    Load(load::Options),
    /// Time until memory of an instance that has ended is back, for three ways to keep it apart in the guest.
    Reclaim(reclaim::Options),
}

/// Runs a benchmark where KVM is, prints its report and keeps it in `target/bench`.
pub fn run(benchmark: &Benchmark, install: bool) -> Result<()> {
    match benchmark {
        Benchmark::Blk(options) => blk::run(options),
        Benchmark::Boot(options) => boot::run(options, install),
        Benchmark::Import(options) => import::run(options, install),
        Benchmark::Layers(options) => layers::run(options, install),
        Benchmark::Load(options) => load::run(options, install),
        Benchmark::Reclaim(options) => reclaim::run(options, install),
    }
}

/// The directory of all reports.
fn directory() -> Result<PathBuf> {
    let directory = workspace::target_directory().join("bench");
    fs::create_dir_all(&directory).map_err(Error::at(&directory))?;
    Ok(directory)
}

/// Keeps a report as `name`.
fn keep(name: &str, report: &impl Serialize) -> Result<()> {
    let path = directory()?.join(name);
    let json = serde_json::to_string_pretty(report).map_err(|error| Error::other(format!("{name}: {error}")))?;
    fs::write(&path, json + "\n").map_err(Error::at(&path))
}
