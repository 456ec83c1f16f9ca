//! Boots the same guest under Bellows and under QEMU, in turn, and prints a JSON object a line: see [`bellows_bench::boot`].
//! `cargo xtask bench boot` runs it where KVM is.

mod launch;
mod trace;

use std::process::ExitCode;

use bellows_bench::boot::{Boot, Line, Monitor, Traced};
use bellows_bench::cost::Meter;
use bellows_bench::smaps::Overhead;
use bellows_bench::{exits, print};

use crate::launch::{Guest, Launcher};
use crate::trace::Tracer;

/// Boots of each monitor under the tracer.
const TRACED: usize = 3;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

fn main() -> ExitCode {
    bellows_bench::end("boot", run())
}

fn run() -> Result<()> {
    let rounds = std::env::args().nth(1).ok_or("expected the number of rounds")?;
    let rounds: usize = rounds.parse().map_err(|error| format!("{rounds:?} rounds: {error}"))?;
    let launcher = Launcher::new(Guest::from_environment()?)?;
    // Not counted: these boots read the files from the disk.
    for monitor in Monitor::ALL {
        launcher.boot(monitor)?.end()?;
    }
    for _ in 0..rounds {
        for turn in 0..2 {
            for monitor in Monitor::ALL {
                let meter = Meter::start_if_counted()?;
                let mut booted = launcher.boot(monitor)?;
                let cost = meter.map(Meter::stop).transpose()?;
                let overhead = Overhead::parse(&booted.smaps()?, launch::MEMORY)?;
                booted.end()?;
                print(&Line::Boot(Boot { monitor, turn, time: booted.time(), cost, overhead }))?;
            }
        }
    }
    let Some(tracer) = Tracer::open()? else {
        eprintln!("no phases: the kernel's tracer is not available (it needs root and tracefs)");
        return Ok(());
    };
    for _ in 0..TRACED {
        for monitor in Monitor::ALL {
            tracer.start()?;
            let mut booted = launcher.boot(monitor)?;
            tracer.stop()?;
            booted.end()?;
            print(&Line::Traced(Traced { monitor, phases: exits::phases(&tracer.exits()?, booted.moments) }))?;
        }
    }
    Ok(())
}
