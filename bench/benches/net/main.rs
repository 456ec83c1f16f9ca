//! Sends packets to guests of Bellows and of QEMU and takes theirs, and prints a JSON object for each run: see [`bellows_bench::net`].
//! `cargo xtask bench net` runs it where KVM is.

mod guest;
mod traffic;

use std::path::PathBuf;
use std::time::Duration;

use bellows_bench::net::{Side, Work};

use crate::guest::{Guest, Tap};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// Time limit of every step, even on an emulated processor.
const PATIENCE: Duration = Duration::from_secs(600);

fn main() -> std::process::ExitCode {
    bellows_bench::end("net", run())
}

fn run() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let (rounds, initramfs) = arguments.next().zip(arguments.next()).ok_or("expected rounds and an initramfs")?;
    let rounds: usize = rounds.parse().map_err(|error| format!("{rounds:?} rounds: {error}"))?;
    let initramfs = PathBuf::from(initramfs);
    let tap = Tap::new()?;
    for side in Side::ALL {
        if side.has_vhost() && !std::path::Path::new("/dev/vhost-net").exists() {
            eprintln!("no /dev/vhost-net: {side} is left out");
            continue;
        }
        // One guest at a time: events are those of all.
        let guest = Guest::boot(side, &tap, &initramfs)?;
        let mut ends = traffic::Ends::connect(guest.address())?;
        for round in 0..=rounds {
            for work in Work::ALL.into_iter().filter(|work| work.is_for(side)) {
                let sample = ends.run(side, work)?;
                // The first one warms up.
                if round > 0 {
                    bellows_bench::print(&sample)?;
                }
            }
        }
    }
    Ok(())
}
