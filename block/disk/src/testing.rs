//! Block devices for tests.

#![allow(clippy::unwrap_used, reason = "a failure ends the test that uses it")]

use std::path::Path;
use std::process::Command;

/// A file as a block device, for as long as this lives.
pub struct LoopDevice(String);

impl LoopDevice {
    /// `None` where the system has no loop devices, or the test may not use them.
    ///
    /// # Panics
    /// `losetup` is not installed.
    #[must_use]
    pub fn new(file: &Path) -> Option<Self> {
        let output = Command::new("losetup").args(["--find", "--show", "--read-only"]).arg(file).output().unwrap();
        let name = String::from_utf8(output.stdout).unwrap().trim().to_owned();
        output.status.success().then_some(Self(name))
    }

    /// The path of the device.
    #[must_use]
    pub fn path(&self) -> &Path {
        Path::new(&self.0)
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        let status = Command::new("losetup").arg("--detach").arg(&self.0).status();
        assert!(status.is_ok_and(|status| status.success()) || std::thread::panicking());
    }
}
