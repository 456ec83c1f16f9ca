//! `cargo xtask stress`: what takes too long for every run.

use std::path::Path;
use std::process::Command;

use bellows_tests::lab::Host;

use crate::cache::Cache;
use crate::error::{Error, Result};
use crate::{kernel, packages, run, test};

/// Partitions of the guest in which tasks come and go.
const PARTITIONS: &str = "8";
/// MiB of base memory: KASAN takes an eighth of all memory that is plugged, 9 GiB at most.
const MEMORY: &str = "2560";
/// Longest time for one boot of the debug kernel on an emulated processor, beside the time that is asked for.
const LIMIT_SECONDS: u32 = 3600;

/// Runs what lasts so many `minutes`, wherever chance rules, and all else once.
pub fn run(minutes: u32, install: bool) -> Result<()> {
    test::stress(minutes, install)?;
    guest_kernel(minutes, install)
}

/// The guest kernel's tests with a debug build, in guests of QEMU: all of them; partitions that come and go by chance; what a
/// thousand plugs leave behind; and a kernel that has to keep what is in free memory.
fn guest_kernel(minutes: u32, install: bool) -> Result<()> {
    packages::ensure(&[packages::KERNEL, packages::KERNEL_TESTS], install)?;
    let kernel = kernel::debug(&Cache::open()?)?;
    let seconds = minutes * 60;
    for (partitions, append) in [
        ("2", String::new()),
        (PARTITIONS, format!("stress={seconds}")),
        ("2", "cycles=1000".to_owned()),
        ("2", "init_on_free=1".to_owned()),
        ("2", "page_poison=1".to_owned()),
    ] {
        eprintln!("guest kernel's tests, {partitions} partitions {append}");
        boot(&kernel, partitions, &append, LIMIT_SECONDS + seconds)?;
    }
    Ok(())
}

fn boot(kernel: &Path, partitions: &str, append: &str, limit: u32) -> Result<()> {
    let program = kernel::directory().join("tests/qemu.py");
    let mut command = Command::new("python3");
    command.arg(&program).arg("--kernel").arg(kernel).args(["--partitions", partitions, "--append", append]);
    command.args(["--memory", MEMORY]);
    command.args(["--timeout", &limit.to_string()]);
    if Host::detect() == Host::Kvm {
        command.arg("--accel=-accel kvm -cpu host");
    }
    let status = run::lines(&mut command, |line| eprintln!("{line}"))?;
    if status.success() { Ok(()) } else { Err(Error::other(format!("{} failed: {status}", program.display()))) }
}
