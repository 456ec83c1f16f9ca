//! `bellows image mount` and `umount`: an image on the host, without a VM and with nothing unpacked.
//!
//! Metadata of the whole image and a read-only loop device for each layer make one EROFS mount (Linux 5.16 or later). The
//! kernel releases the devices at the unmount, so no record of them is needed.
//!
//! The devices read the layers through the host's page cache, which VMs use too: a layer comes from the disk once. The mount
//! keeps pages of its own beside these, for files read through it: [`HostMount::cached_bytes`].

use std::collections::HashSet;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use bellows_block::FlatImage;
use bellows_block::page_cache::resident;

use crate::error::{CliError, io_error};

/// Loop devices that are detached after their last use.
struct LoopDevices(Vec<OsString>);

impl Drop for LoopDevices {
    fn drop(&mut self) {
        for device in &self.0 {
            // A mounted device is released later.
            if let Err(error) = run("losetup", &["--detach".as_ref(), device]) {
                tracing::warn!(%error, "cannot detach a loop device");
            }
        }
    }
}

/// Mounts `image` at `directory`; returns the bytes that the mount itself keeps in memory at first.
///
/// # Errors
/// `losetup` or `mount` failed; their effects are undone.
pub(super) fn mount(image: &FlatImage, directory: &Path) -> Result<u64, CliError> {
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
    // No file has been read through it yet.
    page_cache_of(Path::new(&metadata))
}

/// Undoes [`mount`].
///
/// # Errors
/// `umount` failed.
pub(super) fn unmount(directory: &Path) -> Result<(), CliError> {
    run("umount", &[directory.as_os_str()]).map(drop)
}

/// An image that is mounted on this host.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct HostMount {
    pub(super) directory: PathBuf,
    /// The loop device of its metadata.
    device: PathBuf,
}

impl HostMount {
    /// All visible mounts of the image with this metadata.
    ///
    /// # Errors
    /// The kernel's list or the metadata's path cannot be read.
    pub(super) fn all_of(metadata: &Path) -> Result<Vec<Self>, CliError> {
        let list = "/proc/self/mountinfo";
        let metadata = match fs::canonicalize(metadata) {
            Ok(path) => path,
            // It is made on demand: the image was never mounted.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(io_error("find", metadata)(error)),
        };
        let mut mounts = erofs_mounts(&fs::read(list).map_err(io_error("read", list))?);
        mounts.retain(|mount| mount.backing_file().is_some_and(|file| file == metadata));
        Ok(mounts)
    }

    /// The file behind its device, as long as that has its name.
    fn backing_file(&self) -> Option<PathBuf> {
        let file = Path::new("/sys/block").join(self.device.file_name()?).join("loop/backing_file");
        let name = fs::read(file).ok()?;
        Some(OsString::from_vec(name.strip_suffix(b"\n")?.to_vec()).into())
    }

    /// Bytes that it keeps in memory by itself: pages of its files, and of the device with its metadata. Blocks of directories
    /// are not visible and do not count.
    ///
    /// # Errors
    /// A file cannot be opened, or the kernel refused.
    pub(super) fn cached_bytes(&self) -> Result<u64, CliError> {
        let device = fs::metadata(&self.directory).map_err(io_error("find", &self.directory))?.dev();
        let mut bytes = page_cache_of(&self.device)?;
        let mut seen = HashSet::new();
        let mut pending = vec![self.directory.clone()];
        while let Some(directory) = pending.pop() {
            let failed = || io_error("list", &directory);
            let entries = match fs::read_dir(&directory) {
                // Too far down for a path that begins at the root.
                Err(error) if error.kind() == io::ErrorKind::InvalidFilename => continue,
                entries => entries.map_err(failed())?,
            };
            for entry in entries {
                let entry = entry.map_err(failed())?;
                let Ok(metadata) = entry.metadata() else { continue };
                if metadata.dev() != device {
                    // Another mount covers it.
                } else if metadata.is_dir() {
                    pending.push(entry.path());
                } else if metadata.is_file() && seen.insert(metadata.ino()) {
                    bytes += page_cache_of(&entry.path())?;
                }
            }
        }
        Ok(bytes)
    }
}

fn page_cache_of(path: &Path) -> Result<u64, CliError> {
    Ok(resident(path).map_err(io_error("look into the page cache of", path))?.bytes())
}

/// The EROFS mounts of `/proc/<pid>/mountinfo`, whose lines are
/// `ID PARENT MAJOR:MINOR ROOT POINT OPTIONS [TAG...] - KIND SOURCE SUPER-OPTIONS`.
fn erofs_mounts(mountinfo: &[u8]) -> Vec<HostMount> {
    let mount = |line: &[u8]| {
        let words: Vec<_> = line.split(|byte| *byte == b' ').collect();
        let dash = words.iter().position(|word| *word == b"-")?;
        let (point, kind, source) = (words.get(4)?, words.get(dash + 1)?, words.get(dash + 2)?);
        (*kind == b"erofs").then(|| HostMount { directory: unescaped(point), device: unescaped(source) })
    };
    mountinfo.split(|byte| *byte == b'\n').filter_map(mount).collect()
}

/// Blanks, line feeds and backslashes are written as `\` and three octal digits there.
fn unescaped(word: &[u8]) -> PathBuf {
    let mut bytes = Vec::with_capacity(word.len());
    let mut rest = word;
    while let Some((&byte, after)) = rest.split_first() {
        let octal =
            (byte == b'\\').then(|| after.get(..3)).flatten().and_then(|digits| std::str::from_utf8(digits).ok());
        match octal.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(escaped) => {
                bytes.push(escaped);
                rest = &after[3..];
            }
            None => {
                bytes.push(byte);
                rest = after;
            }
        }
    }
    OsStr::from_bytes(&bytes).into()
}

/// Runs a program of the system; returns its output.
fn run(program: &'static str, arguments: &[&OsStr]) -> Result<String, CliError> {
    let output = Command::new(program).args(arguments).output();
    let output = output.map_err(|source| CliError::Io { action: "run", path: program.into(), source })?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let message = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(CliError::Program { program, status: output.status, message })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn erofs_mounts_are_found_with_any_name() {
        let text = b"30 1 0:25 / /run rw,nosuid shared:2 - tmpfs tmpfs rw\n\
                     31 1 7:3 / /mnt/a\\040b\\134c\\0 ro shared:3 master:1 - erofs /dev/loop3 ro,user_xattr\n\
                     32 1 7:4 / /mnt/- ro - erofs /dev/loop4 ro\n\
                     33 1 7:4 / /erofs ro - ext4 erofs ro\n\
                     34 - erofs\n\n";
        let mount = |directory: &str, device: &str| HostMount { directory: directory.into(), device: device.into() };
        assert_eq!(erofs_mounts(text), [mount("/mnt/a b\\c\\0", "/dev/loop3"), mount("/mnt/-", "/dev/loop4")]);
    }
}
