//! The program of a benchmark, which runs on a host with KVM, and its output.

use std::fmt;
use std::path::PathBuf;

use bellows_lab::{Clock, Host, LabBuilder};
use serde::de::DeserializeOwned;

use crate::artefacts::Artefacts;
use crate::cache::Cache;
use crate::error::{Error, Result};
use crate::kvm_host::KvmHost;
use crate::workspace;

/// How time passes while a benchmark runs.
#[derive(Debug, Clone, Copy, clap::Args)]
pub struct ClockArgs {
    /// Measure by the wall clock in the lab too, instead of counting time.
    #[arg(long)]
    wall_clock: bool,
}

impl ClockArgs {
    /// The clock of `host`: only the lab can count time.
    fn clock(self, host: Host) -> Clock {
        match host {
            Host::Lab if !self.wall_clock => Clock::Counted,
            _ => Clock::Wall,
        }
    }
}

/// A program with all its files.
pub struct Program {
    pub host: Host,
    pub clock: Clock,
    pub artefacts: Artefacts,
    pub path: PathBuf,
    pub cache: Cache,
}

impl Program {
    /// Prints where it will run, and builds it.
    pub fn build(name: &str, clock: ClockArgs, install: bool) -> Result<Self> {
        let host = Host::detect();
        Self::build_for(host, clock.clock(host), name, install)
    }

    /// Builds it for the host and the clock that are named.
    pub fn build_for(host: Host, clock: Clock, name: &str, install: bool) -> Result<Self> {
        eprintln!("host: {host}, time: {clock}");
        let cache = Cache::open()?;
        let artefacts = Artefacts::build(&cache, host, install)?;
        Ok(Self { host, clock, artefacts, path: workspace::benchmark("bellows-bench", name)?, cache })
    }

    /// Runs it to its end and passes on its results; its other lines are for people. For a run in the lab, `furnish` adds
    /// further files beside the artefacts.
    pub fn run<T: DeserializeOwned>(
        &self,
        arguments: &[&str],
        furnish: impl FnOnce(LabBuilder) -> LabBuilder,
        mut on_line: impl FnMut(T),
    ) -> Result<()> {
        let programs = std::slice::from_ref(&self.path);
        let furnish = |lab: LabBuilder| furnish(lab).clock(self.clock);
        let kvm_host = KvmHost::start(self.host, &self.cache, &self.artefacts, programs, furnish)?;
        let code = kvm_host.run(&self.path, arguments, |line| match serde_json::from_str(line) {
            Ok(line) => on_line(line),
            Err(_) => eprintln!("{line}"),
        })?;
        kvm_host.stop()?;
        if code == 0 { Ok(()) } else { Err(Error::other(format!("the benchmark ended with exit code {code}"))) }
    }
}

/// Explains the times of a report that were taken in the lab.
pub fn lab_note(f: &mut fmt::Formatter<'_>, host: Host, clock: Clock) -> fmt::Result {
    match (host, clock) {
        (Host::Kvm, _) => Ok(()),
        (Host::Lab, Clock::Wall) => {
            writeln!(f, "  By the wall clock in the lab, an emulated host: only ratios and counts mean anything.")
        }
        (Host::Lab, Clock::Counted) => {
            writeln!(
                f,
                "  Counted time: a nanosecond for each instruction, and the time waited for timers. Caches and exits cost nothing."
            )
        }
    }
}
