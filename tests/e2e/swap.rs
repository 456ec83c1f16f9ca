//! Swap for the host that the tests run on: in its own memory, compressed.

use std::path::{Path, PathBuf};
use std::process::Command;

/// A zram device that the host swaps to, until this is dropped. Needs root and the module `zram`, which the lab has.
///
/// By hand it is `modprobe zram; zramctl --find --size 256M; mkswap /dev/zram0; swapon /dev/zram0`.
pub struct Zram {
    number: String,
    device: PathBuf,
}

const CONTROL: &str = "/sys/class/zram-control";

impl Zram {
    /// Swap of `mib` MiB, as it is before compression.
    pub fn new(mib: u64) -> Self {
        let number = std::fs::read_to_string(Path::new(CONTROL).join("hot_add"));
        let number = number.unwrap_or_else(|error| panic!("the host has no zram: {error}"));
        let number = number.trim().to_owned();
        let device = PathBuf::from(format!("/dev/zram{number}"));
        let zram = Self { number, device };
        std::fs::write(format!("/sys/block/zram{}/disksize", zram.number), format!("{mib}M")).unwrap();
        zram.run("mkswap");
        zram.run("swapon");
        assert!(is_on(), "the host swaps to {}", zram.device.display());
        zram
    }

    fn run(&self, program: &str) {
        let output = Command::new(program).arg(&self.device).output();
        let output = output.unwrap_or_else(|error| panic!("{program}: {error}"));
        assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
    }
}

impl Drop for Zram {
    fn drop(&mut self) {
        if std::thread::panicking() {
            // What swapped to it may still be there, and says more.
            let _ = Command::new("swapoff").arg(&self.device).output();
            return;
        }
        self.run("swapoff");
        std::fs::write(Path::new(CONTROL).join("hot_remove"), &self.number).unwrap();
    }
}

/// Whether the host has swap.
pub fn is_on() -> bool {
    std::fs::read_to_string("/proc/swaps").unwrap_or_default().lines().count() > 1
}
