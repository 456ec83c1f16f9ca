//! The program of a benchmark, which runs where KVM is, and what it prints.

use std::path::PathBuf;

use bellows_lab::{Host, LabBuilder};
use serde::de::DeserializeOwned;

use crate::artefacts::Artefacts;
use crate::cache::Cache;
use crate::error::{Error, Result};
use crate::kvm_host::KvmHost;
use crate::workspace;

/// A program with all that it works on.
pub struct Program {
    pub host: Host,
    pub artefacts: Artefacts,
    pub path: PathBuf,
    pub cache: Cache,
}

impl Program {
    /// Says where it will run, and builds it.
    pub fn build(name: &str, install: bool) -> Result<Self> {
        let host = Host::detect();
        eprintln!("host: {host}");
        let cache = Cache::open()?;
        let artefacts = Artefacts::build(&cache, host, install)?;
        Ok(Self { host, artefacts, path: workspace::benchmark("bellows-bench", name)?, cache })
    }

    /// Runs it to its end and hands on what it prints; lines that are none of its results are for people. Where it runs in the
    /// lab, `furnish` puts in it what is needed beside the artefacts.
    pub fn run<T: DeserializeOwned>(
        &self,
        arguments: &[&str],
        furnish: impl FnOnce(LabBuilder) -> LabBuilder,
        mut on_line: impl FnMut(T),
    ) -> Result<()> {
        let programs = std::slice::from_ref(&self.path);
        let kvm_host = KvmHost::start(self.host, &self.cache, &self.artefacts, programs, furnish)?;
        let code = kvm_host.run(&self.path, arguments, |line| match serde_json::from_str(line) {
            Ok(line) => on_line(line),
            Err(_) => eprintln!("{line}"),
        })?;
        kvm_host.stop()?;
        if code == 0 { Ok(()) } else { Err(Error::other(format!("the benchmark ended with exit code {code}"))) }
    }
}
