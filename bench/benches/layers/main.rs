//! Runs VMs of one image, many side by side and one at a time, and prints a JSON object a line: see
//! [`bellows_bench::layers`]. `cargo xtask bench layers` runs it where KVM is.

mod disk;
mod monitor;
mod together;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use bellows_bench::layers::{Line, Started, Way};
use bellows_bench::print;

use crate::disk::evict;
use crate::monitor::{Launcher, Source};

/// Layers of the images that single VMs are started from.
const LAYERS: [u32; 3] = [1, 10, 40];

type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

fn main() -> ExitCode {
    bellows_bench::end("layers", run())
}

fn run() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let mut next = |name: &str| arguments.next().ok_or_else(|| format!("expected {name}"));
    let directory = PathBuf::from(next("the directory of images")?);
    let mut number = |name: &str| {
        let text = next(name)?;
        text.parse::<usize>().map_err(|error| format!("{name}, {text:?}: {error}"))
    };
    let (vms, rounds) = (number("how many VMs")?, number("how many rounds")?);
    let ways: Vec<Way> = serde_json::from_str(&next("how images reach the VMs, in JSON")?)?;
    let launcher = Launcher::from_environment(&directory)?;
    if vms > 0 {
        for way in ways {
            print(&Line::Together(together::run(&launcher, &directory, way, vms)?))?;
        }
    }
    if rounds > 0 {
        // Everything that is made once for an image exists before the first counted start.
        for layers in LAYERS {
            start(&launcher, layers, Way::BlkFlat, false)?;
        }
    }
    for _ in 0..rounds {
        for layers in LAYERS {
            for way in Way::OURS {
                for cold in [true, false] {
                    if cold {
                        evict(&directory.join("store"))?;
                    }
                    print(&Line::Started(start(&launcher, layers, way, cold)?))?;
                }
            }
        }
    }
    Ok(())
}

/// Starts one VM of the image with `layers` layers.
fn start(launcher: &Launcher, layers: u32, way: Way, cold: bool) -> Result<Started> {
    let source = Source::Image { name: layers.to_string(), way };
    let start = Instant::now();
    let mut monitor = launcher.start(&source)?;
    monitor.answer()?;
    Ok(Started { layers, way, cold, time: start.elapsed() })
}
