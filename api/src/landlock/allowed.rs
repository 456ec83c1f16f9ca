//! What a monitor opens once it is restricted: the doors of `docs/confinement.md`, as paths and rights.

use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use bellows_block::{Store, StoreError};
use bellows_vmm::{HostEnd, SerialOutput, Tap, VmConfig};
use landlock::{AccessFs, BitFlags, make_bitflags};
use tempfile::TempDir;

use super::LandlockError;
use super::rule::PathRule;

const READ: BitFlags<AccessFs> = make_bitflags!(AccessFs::{ReadFile | ReadDir});
const CHANGE: BitFlags<AccessFs> = make_bitflags!(AccessFs::{
    WriteFile | Truncate | IoctlDev | MakeReg | MakeDir | MakeSock | MakeFifo | MakeSym | RemoveFile | RemoveDir | Refer
});
/// Of a file or a device that guests write to.
const FILE: BitFlags<AccessFs> = make_bitflags!(AccessFs::{ReadFile | WriteFile | Truncate | IoctlDev});
const DEVICE: BitFlags<AccessFs> = make_bitflags!(AccessFs::{ReadFile | WriteFile | IoctlDev});
/// Of the folder that a socket is made in, and removed from.
const SOCKETS: BitFlags<AccessFs> = make_bitflags!(AccessFs::{MakeSock | RemoveFile});

/// Devices of every monitor.
const DEVICES: [&str; 4] = ["/dev/kvm", "/dev/userfaultfd", "/dev/urandom", "/dev/null"];
/// Where TAPs come from.
const TUN: &str = "/dev/net/tun";
/// Where the host's kernel serves network interfaces.
const VHOST_NET: &str = "/dev/vhost-net";
/// How much memory the host has, its own page map, and what the kernel says of disks. Of other processes, only what anybody may read.
const KERNEL: [&str; 2] = ["/proc", "/sys"];

/// What a process may do once it is restricted ([`super::restrict`]).
#[derive(Debug)]
pub struct Allowed {
    pub(super) paths: Vec<(PathBuf, BitFlags<AccessFs>)>,
    /// Whether it may send signals to processes outside.
    pub(super) signals: bool,
}

impl Allowed {
    /// What every monitor needs.
    #[must_use]
    pub fn new() -> Self {
        let mut allowed = Self { paths: Vec::new(), signals: false };
        for path in DEVICES {
            allowed.add(path, DEVICE);
        }
        for path in KERNEL {
            allowed.add(path, READ);
        }
        allowed
    }

    /// What a VM's configuration names. If that is no path for the vsock device's socket, one is made in a folder, which is removed with the
    /// result.
    ///
    /// # Errors
    /// The folder, or a file for output, cannot be made.
    pub(crate) fn configuration(&mut self, config: &mut VmConfig) -> Result<Option<TempDir>, LandlockError> {
        self.vm(config)?;
        if config.vsock.uds_path.is_some() {
            return Ok(None);
        }
        let folder = self.private_folder()?;
        config.vsock.uds_path = Some(folder.path().join("vsock"));
        Ok(Some(folder))
    }

    /// What a VM's configuration names. Its output goes to files that are there: one that is missing is made.
    ///
    /// # Errors
    /// A file for output cannot be made.
    pub fn vm(&mut self, config: &VmConfig) -> Result<(), LandlockError> {
        self.read(&config.kernel);
        config.initramfs.iter().for_each(|path| self.read(path));
        for drive in &config.drives {
            self.add(&drive.path, if drive.read_only { READ | AccessFs::IoctlDev } else { FILE });
        }
        for image in &config.images {
            image.layers.iter().chain(&image.fixup).for_each(|layer| self.read(&layer.path));
            image.flat.iter().for_each(|flat| self.read(&flat.path));
        }
        if config.network_interfaces.iter().any(|interface| matches!(interface.host, HostEnd::Tap(Tap::Name(_)))) {
            self.taps();
        }
        if config.network_interfaces.iter().any(|interface| interface.vhost) {
            self.add(VHOST_NET, DEVICE);
        }
        config.scratch_folder.iter().for_each(|folder| self.scratch(folder));
        config.vsock.uds_path.iter().for_each(|path| self.socket(path));
        match &config.serial {
            SerialOutput::File(path) => self.output(path),
            SerialOutput::Off | SerialOutput::Stdout => Ok(()),
        }
    }

    /// A file, or a folder and all below it, to be read.
    pub fn read(&mut self, path: impl Into<PathBuf>) {
        self.add(path, READ);
    }

    /// The folder of scratch disks: files without names, which no right to make files is needed for.
    pub fn scratch(&mut self, folder: impl Into<PathBuf>) {
        self.add(folder, FILE);
    }

    /// TAPs, by their names.
    pub fn taps(&mut self) {
        self.add(TUN, DEVICE);
    }

    /// A socket that is made and removed.
    pub fn socket(&mut self, path: &Path) {
        self.add(parent(path), SOCKETS);
    }

    /// A file or a pipe that something is written to. A file that is missing is made.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn output(&mut self, path: &Path) -> Result<(), LandlockError> {
        let mut options = OpenOptions::new();
        // To write alone would wait for a pipe's reader.
        options.read(true).append(true).create(true).mode(0o600).custom_flags(libc::O_NONBLOCK);
        drop(options.open(path).map_err(failed("write", path))?);
        self.add(path, FILE);
        Ok(())
    }

    /// A folder that is made for sockets, and removed with the result.
    ///
    /// # Errors
    /// It cannot be made.
    pub(crate) fn private_folder(&mut self) -> Result<TempDir, LandlockError> {
        let made = tempfile::Builder::new().prefix("bellows-").tempdir();
        let folder = made.map_err(failed("make a folder in", &std::env::temp_dir()))?;
        self.add(folder.path(), SOCKETS | READ);
        self.add(parent(folder.path()), AccessFs::RemoveDir.into());
        Ok(folder)
    }

    /// The layers of a store, and what runs add to it.
    ///
    /// # Errors
    /// A folder of the store cannot be made.
    pub fn store(&mut self, store: &Store) -> Result<(), StoreError> {
        self.read(store.path());
        self.add(store.lock_path(), FILE);
        for folder in store.folders_of_runs()? {
            self.add(folder, READ | CHANGE);
        }
        Ok(())
    }

    /// What the user allows.
    pub fn rule(&mut self, rule: &PathRule) {
        let read = if rule.read { READ | AccessFs::IoctlDev } else { BitFlags::EMPTY };
        let write = if rule.write { CHANGE } else { BitFlags::EMPTY };
        self.add(&rule.path, read | write);
    }

    /// Signals to other processes.
    pub fn signals(&mut self) {
        self.signals = true;
    }

    fn add(&mut self, path: impl Into<PathBuf>, access: BitFlags<AccessFs>) {
        self.paths.push((path.into(), access));
    }
}

impl Default for Allowed {
    fn default() -> Self {
        Self::new()
    }
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> LandlockError {
    let path = path.to_owned();
    move |source| LandlockError::File { action, path, source }
}

/// The folder that a file is in.
fn parent(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

#[cfg(test)]
mod tests {
    use bellows_vmm::{ByteSize, DriveConfig, NetConfig, VsockConfig};

    use super::*;

    fn access(allowed: &Allowed, path: &str) -> BitFlags<AccessFs> {
        let found = allowed.paths.iter().filter(|(known, _)| known == Path::new(path));
        found.fold(BitFlags::EMPTY, |all, (_, access)| all | *access)
    }

    #[test]
    fn a_configuration_allows_what_it_names() {
        let folder = tempfile::tempdir().unwrap();
        let serial = folder.path().join("serial");
        let mut config = VmConfig::new("/k", ByteSize::mib(128));
        config.initramfs = Some("/i".into());
        config.drives = vec![DriveConfig::new("/ro", true), DriveConfig::new("/rw", false)];
        config.vsock = VsockConfig { uds_path: Some("v.sock".into()), ..VsockConfig::default() };
        config.serial = SerialOutput::File(serial.clone());
        config.scratch_folder = Some("/scratch".into());
        let mut allowed = Allowed::new();
        allowed.vm(&config).unwrap();
        assert!(serial.is_file(), "it is made where it is missing");
        for path in ["/k", "/i"] {
            assert_eq!(access(&allowed, path), READ, "{path}");
        }
        assert_eq!(access(&allowed, "/ro"), READ | AccessFs::IoctlDev);
        assert_eq!((access(&allowed, "/rw"), access(&allowed, "/scratch")), (FILE, FILE));
        assert_eq!(access(&allowed, "."), SOCKETS);
        assert_eq!(access(&allowed, TUN), BitFlags::EMPTY);
        config.network_interfaces = vec![NetConfig::new("eth0", Tap::Name("tap0".into()))];
        allowed.vm(&config).unwrap();
        assert_eq!(access(&allowed, TUN), DEVICE);
        let executes = allowed.paths.iter().any(|(_, access)| access.contains(AccessFs::Execute));
        assert!(!executes, "nothing is to be executed");
    }
}
