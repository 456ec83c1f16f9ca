//! `bench boot`: runs the program that boots guests, and makes a report of its output.

mod report;

use bellows_bench::boot::Line;
use bellows_lab::LabBuilder;

use crate::error::Result;
use crate::packages;

use self::report::Report;
use super::program::{ClockArgs, Program};
use super::statistics::ms;

/// The peer, and the path of its firmware.
pub const QEMU: &str = "/usr/bin/qemu-system-x86_64";
pub const QEMU_FIRMWARE: &str = "/usr/share/qemu/qboot.rom";

#[derive(Debug, clap::Args)]
pub struct Options {
    /// Rounds; in each one both monitors boot twice.
    #[arg(long, default_value_t = 10)]
    rounds: u32,
    #[command(flatten)]
    clock: ClockArgs,
}

pub fn run(options: &Options, install: bool) -> Result<()> {
    packages::ensure(&[packages::BENCH], install)?;
    let program = Program::build("boot", options.clock, install)?;
    let mut lines = Vec::new();
    let furnish = |lab: LabBuilder| lab.program(QEMU, QEMU).file(QEMU_FIRMWARE, QEMU_FIRMWARE);
    program.run(&[&options.rounds.to_string()], furnish, |line| {
        lines.push(line);
        tell(&lines);
    })?;
    let report = Report::new(program.host, program.clock, &lines)?;
    super::keep("boot", &report, report::figures(&lines))?;
    print!("{report}");
    Ok(())
}

/// Shows progress: a boot in the lab takes seconds.
fn tell(lines: &[Line]) {
    match lines.last() {
        Some(Line::Boot(boot)) => eprintln!("{:>4}  {:<8} {:>8.1} ms", lines.len(), boot.monitor, ms(boot.time)),
        Some(Line::Traced(traced)) => eprintln!("{:>4}  {:<8} traced", lines.len(), traced.monitor),
        None => {}
    }
}
