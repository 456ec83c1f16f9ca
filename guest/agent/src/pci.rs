//! PCI functions that come and go at run time.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bellows_protocol::values::PciAddress;

use crate::error::{AgentError, Result};
use crate::files;
use crate::uevent::Uevents;

/// `DRIVER_OK` of a virtio device's status (VIRTIO 1.2 section 2.1).
const DRIVER_OK: u32 = 4;

/// A disk that can be mounted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disk {
    /// Its block device's node.
    pub node: PathBuf,
    /// Whether it is memory, so that its files can be used in place.
    pub is_persistent_memory: bool,
}

/// sysfs, below which devices appear.
#[derive(Debug, Clone)]
pub struct Sysfs {
    root: PathBuf,
    dev: PathBuf,
}

impl Default for Sysfs {
    fn default() -> Self {
        Self::new("/sys", "/dev")
    }
}

impl Sysfs {
    /// sysfs mounted at `root`, device nodes in `dev`.
    pub fn new(root: impl Into<PathBuf>, dev: impl Into<PathBuf>) -> Self {
        Self { root: root.into(), dev: dev.into() }
    }

    fn function(&self, address: &PciAddress) -> PathBuf {
        self.root.join("bus/pci/devices").join(address.as_str())
    }

    /// Rescans the buses and waits until a driver runs each of `addresses`.
    ///
    /// # Errors
    /// [`AgentError::Path`]; [`AgentError::TimedOut`], which names a function and the part it lacks.
    pub fn attach(&self, uevents: &Uevents, addresses: &[PciAddress], limit: Duration) -> Result<()> {
        files::write(self.root.join("bus/pci/rescan"), "1")?;
        self.await_ready(uevents, addresses, limit)
    }

    /// Waits until a driver runs each of `addresses`.
    fn await_ready(&self, uevents: &Uevents, addresses: &[PciAddress], limit: Duration) -> Result<()> {
        let mut missing = String::new();
        uevents
            .wait_until(
                limit,
                || "ready devices".to_owned(),
                || {
                    for address in addresses {
                        if let Some(lack) = self.lack(address) {
                            missing = format!("{lack} of {address}");
                            return Ok(None);
                        }
                    }
                    Ok(Some(()))
                },
            )
            .map_err(|error| match error {
                AgentError::TimedOut { after, .. } => AgentError::TimedOut { what: missing, after },
                error => error,
            })
    }

    /// The part that a function lacks to be usable: `None` once its virtio driver runs and its block device has a node.
    fn lack(&self, address: &PciAddress) -> Option<&'static str> {
        let function = self.function(address);
        if !function.exists() {
            return Some("PCI function");
        }
        let Some(virtio) = child_named(&function, "virtio") else { return Some("virtio device") };
        // The link to the driver appears before the driver's probe has finished; the status is set after it.
        let status = files::read(virtio.join("status")).ok().and_then(|text| parse_hexadecimal(&text));
        if status.is_none_or(|status| status & DRIVER_OK == 0) {
            return Some("running driver");
        }
        if matches!(driver(&virtio).as_deref(), Some("virtio_blk" | "virtio_pmem")) {
            let Some(name) = block_name(&virtio) else { return Some("block device") };
            if !self.dev.join(name).exists() {
                return Some("device node");
            }
        }
        None
    }

    /// Waits until a function has a disk that can be mounted.
    ///
    /// # Errors
    /// [`AgentError::TimedOut`], which names the missing part; [`AgentError::Unknown`] for a function without a disk.
    pub fn await_disk(&self, uevents: &Uevents, address: &PciAddress, limit: Duration) -> Result<Disk> {
        self.await_ready(uevents, std::slice::from_ref(address), limit)?;
        self.disk(address)
            .ok_or_else(|| AgentError::Unknown { kind: "disk on PCI function", name: address.to_string() })
    }

    fn disk(&self, address: &PciAddress) -> Option<Disk> {
        let virtio = child_named(&self.function(address), "virtio")?;
        let node = self.dev.join(block_name(&virtio)?);
        Some(Disk { node, is_persistent_memory: driver(&virtio)? == "virtio_pmem" })
    }

    /// Removes functions; a missing one counts as removed.
    ///
    /// # Errors
    /// [`AgentError::Path`]; [`AgentError::InUse`] if it is still there afterwards.
    pub fn detach(&self, addresses: &[PciAddress]) -> Result<()> {
        for address in addresses {
            let function = self.function(address);
            if !function.exists() {
                continue;
            }
            // The write returns when the driver has let go and the function is out of sysfs.
            files::write(function.join("remove"), "1")?;
            if function.exists() {
                return Err(AgentError::InUse { what: format!("PCI function {address}"), by: "the kernel".into() });
            }
        }
        Ok(())
    }
}

/// Name of the driver of a virtio device.
fn driver(virtio: &Path) -> Option<String> {
    let driver = fs::read_link(virtio.join("driver")).ok()?;
    driver.file_name()?.to_str().map(str::to_owned)
}

/// Name of the block device of a virtio device, like `vda`; one of persistent memory (`pmem0`) is below
/// `ndbus0/region0/namespace0.0`.
fn block_name(virtio: &Path) -> Option<String> {
    let namespace = || {
        let region = child_named(&child_named(virtio, "ndbus")?, "region")?;
        children(&region, |name| name.starts_with("namespace")).find(|namespace| namespace.join("block").exists())
    };
    let owner = if driver(virtio)? == "virtio_pmem" { namespace()? } else { virtio.to_owned() };
    let name = fs::read_dir(owner.join("block")).ok()?.flatten().next()?.file_name();
    name.into_string().ok()
}

/// The first entry of `folder` whose name is `prefix` and a number.
fn child_named(folder: &Path, prefix: &str) -> Option<PathBuf> {
    let is_numbered = |name: &str| name.strip_prefix(prefix).is_some_and(|rest| rest.parse::<u32>().is_ok());
    children(folder, is_numbered).next()
}

/// The entries of `folder` with a name that `wanted` takes.
fn children(folder: &Path, wanted: impl Fn(&str) -> bool) -> impl Iterator<Item = PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.filter(move |entry| entry.file_name().to_str().is_some_and(&wanted)).map(|entry| entry.path())
}

fn parse_hexadecimal(text: &str) -> Option<u32> {
    u32::from_str_radix(text.strip_prefix("0x").unwrap_or(text), 16).ok()
}

#[cfg(test)]
#[path = "pci_test.rs"]
mod tests;
