//! The host with KVM: this machine, or the lab, which boots once for many programs.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use bellows_lab::{Event, Host, Job, Lab, LabBuilder};

use crate::artefacts::Artefacts;
use crate::cache::Cache;
use crate::error::Result;
use crate::{lab, run};

/// Memory of the emulated host, in MiB.
const LAB_MEMORY_MIB: u64 = 12 << 10;

/// The programs print a line for each test or measurement, each of which takes some minutes at most. Longer silence means that
/// the emulated host hangs.
const SILENCE: Duration = Duration::from_secs(1500);

/// A host with KVM that has the artefacts.
pub struct KvmHost<'a> {
    artefacts: &'a Artefacts,
    lab: Option<Lab>,
    environment: Vec<(&'static str, String)>,
}

impl<'a> KvmHost<'a> {
    /// Prepares the host for `programs`. For the lab, `furnish` adds their further files beside the artefacts.
    pub fn start(
        host: Host,
        cache: &Cache,
        artefacts: &'a Artefacts,
        programs: &[PathBuf],
        furnish: impl FnOnce(LabBuilder) -> LabBuilder,
    ) -> Result<Self> {
        let lab = match host {
            Host::Kvm => None,
            Host::Lab => {
                let mut builder = artefacts.add_to(lab::builder(cache)?).memory_mib(LAB_MEMORY_MIB);
                for program in programs {
                    builder = builder.program(program, in_lab(program));
                }
                Some(lab::boot(furnish(builder))?)
            }
        };
        Ok(Self { artefacts, lab, environment: Vec::new() })
    }

    /// Sets a variable for all programs that run from now on.
    pub fn env(mut self, variable: &'static str, value: impl Into<String>) -> Self {
        self.environment.push((variable, value.into()));
        self
    }

    /// Runs one of the programs with the artefacts' paths in its environment, and hands each line it prints to `on_line`.
    /// Returns its exit code.
    pub fn run(&self, program: &Path, arguments: &[&str], mut on_line: impl FnMut(&str)) -> Result<i32> {
        let Some(lab) = &self.lab else {
            let mut command = Command::new(program);
            command.args(arguments).envs(self.artefacts.environment()).envs(self.environment.iter().cloned());
            return Ok(run::lines(&mut command, on_line)?.code().unwrap_or(-1));
        };
        let job = Job::new(std::iter::once(in_lab(program).as_str()).chain(arguments.iter().copied()));
        let variables = self.environment.iter().cloned();
        let job = variables.fold(self.artefacts.in_lab(job), |job, (variable, value)| job.env(variable, value));
        let mut lines = Lines::default();
        let running = lab.start(&job)?;
        running.stdin().close()?;
        let code = running.wait_while_it_speaks(SILENCE, |event| match event {
            Event::Stdout(bytes) | Event::Stderr(bytes) => lines.feed(&bytes, &mut on_line),
            Event::Exit(_) => {}
        })?;
        lines.feed(b"\n", &mut on_line);
        Ok(code)
    }

    /// Switches the lab off.
    pub fn stop(self) -> Result<()> {
        Ok(self.lab.map_or(Ok(()), Lab::shutdown)?)
    }
}

fn in_lab(program: &Path) -> String {
    format!("/usr/local/bin/{}", program.file_name().unwrap_or_default().to_string_lossy())
}

/// Cuts a stream of bytes into lines.
#[derive(Debug, Default)]
struct Lines {
    rest: Vec<u8>,
}

impl Lines {
    fn feed(&mut self, bytes: &[u8], mut on_line: impl FnMut(&str)) {
        self.rest.extend(bytes);
        while let Some(end) = self.rest.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.rest.drain(..=end).collect();
            on_line(String::from_utf8_lossy(&line[..end]).trim_end_matches('\r'));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_survive_any_cut() {
        let mut lines = Lines::default();
        let mut seen = Vec::new();
        for chunk in ["on", "e\ntwo\r\nth", "ree", "\n"] {
            lines.feed(chunk.as_bytes(), |line| seen.push(line.to_owned()));
        }
        assert_eq!(seen, ["one", "two", "three"]);
    }
}
