//! `bench boot`: runs the program that boots guests, and makes a report of what it prints.

mod report;

use bellows_tests::bench::boot::Line;
use bellows_tests::lab::Host;

use crate::artefacts::Artefacts;
use crate::cache::Cache;
use crate::error::{Error, Result};
use crate::kvm_host::KvmHost;
use crate::{packages, workspace};

use self::report::Report;
use super::statistics::ms;

/// The peer, and where its firmware lies.
const QEMU: &str = "/usr/bin/qemu-system-x86_64";
const QEMU_FIRMWARE: &str = "/usr/share/qemu/qboot.rom";

#[derive(Debug, clap::Args)]
pub struct Options {
    /// Rounds; in each one both monitors boot twice.
    #[arg(long, default_value_t = 10)]
    rounds: u32,
}

pub fn run(options: &Options, install: bool) -> Result<()> {
    let host = Host::detect();
    eprintln!("host: {host}");
    packages::ensure(&[packages::BENCH], install)?;
    let cache = Cache::open()?;
    let artefacts = Artefacts::build(&cache, host, install)?;
    let program = workspace::benchmark("boot")?;
    let kvm_host = KvmHost::start(host, &cache, &artefacts, std::slice::from_ref(&program), |lab| {
        lab.program(QEMU, QEMU).file(QEMU_FIRMWARE, QEMU_FIRMWARE)
    })?;
    let mut lines = Vec::new();
    let code = kvm_host.run(&program, &[&options.rounds.to_string()], |line| match serde_json::from_str(line) {
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
    super::keep("boot.json", &report)?;
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
