//! `cargo xtask bench`: comparisons with other monitors, both sides in one run.

mod report;

use std::fs;

use bellows_tests::bench::Line;
use bellows_tests::lab::Host;

use crate::artefacts::Artefacts;
use crate::cache::Cache;
use crate::error::{Error, Result};
use crate::kvm_host::KvmHost;
use crate::{packages, workspace};

use self::report::Report;

/// The peer, and where its firmware lies.
const QEMU: &str = "/usr/bin/qemu-system-x86_64";
const QEMU_FIRMWARE: &str = "/usr/share/qemu/qboot.rom";

/// A benchmark.
#[derive(Debug, clap::Subcommand)]
pub enum Benchmark {
    /// Time from the start of the monitor to a guest that can be called, and the monitor's own memory, beside QEMU's.
    Boot {
        /// Rounds; in each one both monitors boot twice.
        #[arg(long, default_value_t = 10)]
        rounds: u32,
    },
}

/// Runs a benchmark where KVM is, prints its report and keeps it in `target/bench`.
pub fn run(benchmark: &Benchmark, install: bool) -> Result<()> {
    let Benchmark::Boot { rounds } = benchmark;
    let host = Host::detect();
    eprintln!("host: {host}");
    packages::ensure(&[packages::BENCH], install)?;
    let cache = Cache::open()?;
    let artefacts = Artefacts::build(&cache, host, install)?;
    let program = workspace::boot_benchmark()?;
    let kvm_host = KvmHost::start(host, &cache, &artefacts, std::slice::from_ref(&program), |lab| {
        lab.program(QEMU, QEMU).file(QEMU_FIRMWARE, QEMU_FIRMWARE)
    })?;
    let mut lines = Vec::new();
    let code = kvm_host.run(&program, &[&rounds.to_string()], |line| match serde_json::from_str(line) {
        Ok(line) => {
            lines.push(line);
            tell(&lines);
        }
        Err(_) => eprintln!("{line}"),
    })?;
    kvm_host.stop()?;
    if code != 0 {
        return Err(Error::other(format!("the benchmark ended with exit code {code}")));
    }
    let report = Report::new(host, &lines)?;
    let directory = workspace::target_directory().join("bench");
    fs::create_dir_all(&directory).map_err(Error::at(&directory))?;
    let path = directory.join("boot.json");
    let json = serde_json::to_string_pretty(&report).map_err(|error| Error::other(format!("boot.json: {error}")))?;
    fs::write(&path, json + "\n").map_err(Error::at(&path))?;
    print!("{report}");
    Ok(())
}

/// A boot in the lab takes seconds: shows that something goes on.
fn tell(lines: &[Line]) {
    match lines.last() {
        Some(Line::Boot(boot)) => eprintln!("{:>4}  {:<8} {:>8.1} ms", lines.len(), boot.monitor, ms(boot.time)),
        Some(Line::Traced(traced)) => eprintln!("{:>4}  {:<8} traced", lines.len(), traced.monitor),
        None => {}
    }
}

/// Milliseconds, to the microsecond.
fn ms(time: std::time::Duration) -> f64 {
    time.as_micros() as f64 / 1000.0
}
