//! The host with KVM: this machine, or the lab, which boots once for many programs.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use bellows_lab::{Event, Host, Job, Lab, LabBuilder};

use crate::artefacts::Artefacts;
use crate::cache::Cache;
use crate::error::{Error, Result};
use crate::rights::{Rights, Violation};
use crate::{lab, run};

/// Memory of the emulated host, in MiB.
const LAB_MEMORY_MIB: u64 = 12 << 10;

/// The programs print a line for each test or measurement, each of which takes some minutes at most. Longer silence means that
/// the emulated host hangs.
const SILENCE: Duration = Duration::from_secs(1500);

/// Names and numbers of system calls.
const CALLS: &str = "/usr/include/x86_64-linux-gnu/asm/unistd_64.h";

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

    /// Runs one of the programs as the superuser of the lab, with the artefacts' paths in its environment, and hands each line it prints
    /// to `on_line`. Returns its exit code.
    pub fn run(&self, program: &Path, arguments: &[&str], on_line: impl FnMut(&str)) -> Result<i32> {
        self.run_with(Rights::Root, program, arguments, on_line)
    }

    /// The same with other rights, if it runs in the lab. Elsewhere it has those of this process.
    pub fn run_with(
        &self,
        rights: Rights,
        program: &Path,
        arguments: &[&str],
        mut on_line: impl FnMut(&str),
    ) -> Result<i32> {
        let Some(lab) = &self.lab else {
            let mut command = Command::new(program);
            command.args(arguments).envs(self.artefacts.environment()).envs(self.environment.iter().cloned());
            return Ok(run::lines(&mut command, on_line)?.code().unwrap_or(-1));
        };
        let job = rights.job(std::iter::once(in_lab(program).as_str()).chain(arguments.iter().copied()));
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

    /// The system calls that filters did not allow since this was asked last, as the log of the lab's kernel has them. Elsewhere that is for
    /// the superuser alone, and there are none.
    pub fn violations(&self) -> Result<Vec<String>> {
        let Some(lab) = &self.lab else { return Ok(Vec::new()) };
        let log = lab.output(&Job::new(["dmesg", "-c"]))?;
        if log.code != 0 {
            return Err(Error::other(format!("dmesg: {}", String::from_utf8_lossy(&log.stderr))));
        }
        // Comes with the C library's headers, without which nothing here could be built; without it there are numbers alone.
        let header = fs::read_to_string(CALLS).unwrap_or_default();
        let log = String::from_utf8_lossy(&log.stdout);
        Ok(log.lines().filter_map(Violation::read).map(|violation| violation.describe(&header)).collect())
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
