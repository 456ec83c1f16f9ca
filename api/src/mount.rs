//! `bellows image mount` and `umount`: an image on the host, without a VM and with nothing unpacked.
//!
//! Metadata of the whole image and a read-only loop device for each layer make one EROFS mount (Linux 5.16 or later). The
//! kernel lets go of the devices when the mount goes, so nobody has to remember them.

use std::ffi::{OsStr, OsString};
use std::path::Path;
use std::process::Command;

use bellows_block::FlatImage;

use crate::error::CliError;

/// Loop devices that go when nobody uses them any more.
struct LoopDevices(Vec<OsString>);

impl Drop for LoopDevices {
    fn drop(&mut self) {
        for device in &self.0 {
            // One that is mounted is let go of later.
            if let Err(error) = run("losetup", &["--detach".as_ref(), device]) {
                tracing::warn!(%error, "a loop device stays behind");
            }
        }
    }
}

/// Mounts `image` at `directory`.
///
/// # Errors
/// `losetup` or `mount` failed; nothing is left of what they did.
pub(crate) fn mount(image: &FlatImage, directory: &Path) -> Result<(), CliError> {
    let mut devices = LoopDevices(Vec::new());
    let mut attach = |path: &Path| {
        let attach = ["--find".as_ref(), "--show".as_ref(), "--read-only".as_ref(), path.as_os_str()];
        let device = OsString::from(run("losetup", &attach)?.trim());
        devices.0.push(device.clone());
        Ok::<_, CliError>(device)
    };
    let metadata = attach(&image.path)?;
    let mut options = OsString::from("ro");
    for (_, layer) in &image.layers {
        options.push(",device=");
        options.push(attach(&layer.path)?);
    }
    run(
        "mount",
        &["-t", "erofs", "-o"]
            .map(OsStr::new)
            .iter()
            .chain(&[&*options, &metadata, directory.as_os_str()])
            .copied()
            .collect::<Vec<_>>(),
    )?;
    Ok(())
}

/// Undoes [`mount`].
///
/// # Errors
/// `umount` failed.
pub(crate) fn unmount(directory: &Path) -> Result<(), CliError> {
    run("umount", &[directory.as_os_str()]).map(drop)
}

/// Runs a program of the system; what it printed.
fn run(program: &'static str, arguments: &[&OsStr]) -> Result<String, CliError> {
    let output = Command::new(program).args(arguments).output();
    let output = output.map_err(|source| CliError::Io { action: "run", path: program.into(), source })?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let message = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(CliError::Program { program, status: output.status, message })
}
