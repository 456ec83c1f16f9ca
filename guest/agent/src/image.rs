//! Images: ordered layers, each an EROFS file system on a block device of its own.
//!
//! A layer is mounted once, however many images use it, on `/run/l/<serial>`. The path is short because overlayfs takes
//! all lower folders in one mount option of at most a page: [`MAX_LAYERS`](bellows_protocol::values::MAX_LAYERS) paths of
//! this length fit.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use bellows_protocol::values::{ImageId, PciAddress, Serial};
use nix::mount::MsFlags;

use crate::error::{AgentError, Result};
use crate::mounts;
use crate::pci::Sysfs;
use crate::uevent::Uevents;

/// Where layers are mounted.
pub const LAYERS: &str = "/run/l";
/// How long a layer's block device may take to appear.
const DEVICE_LIMIT: Duration = Duration::from_secs(10);

/// The images and layers that are mounted.
#[derive(Debug, Default)]
pub struct Images {
    tables: Mutex<Tables>,
}

#[derive(Debug, Default)]
struct Tables {
    images: HashMap<ImageId, Image>,
    layers: HashMap<Serial, Layer>,
}

#[derive(Debug)]
struct Image {
    /// Lowest layer first.
    layers: Vec<Serial>,
    instances: usize,
}

#[derive(Debug)]
struct Layer {
    /// Its block device's node.
    device: PathBuf,
    images: usize,
}

impl Images {
    /// Mounts the layers of an image, lowest first, those of them that are not mounted yet.
    ///
    /// # Errors
    /// [`AgentError::Exists`]; [`AgentError::TimedOut`] for a device that does not appear; [`AgentError::Path`] for a layer
    /// that cannot be mounted. What was mounted for this image is unmounted again.
    pub fn mount(&self, sysfs: &Sysfs, uevents: &Uevents, id: &ImageId, serials: Vec<Serial>) -> Result<()> {
        // One image at a time: two that share a layer must not both mount it.
        let mut tables = self.lock();
        if tables.images.contains_key(id) {
            return Err(AgentError::Exists { kind: "image", name: id.to_string() });
        }
        for (mounted, serial) in serials.iter().enumerate() {
            if let Err(error) = tables.acquire(sysfs, uevents, serial) {
                tables.release_all(&serials[..mounted]);
                return Err(error);
            }
        }
        tables.images.insert(id.clone(), Image { layers: serials, instances: 0 });
        Ok(())
    }

    /// Forgets an image and unmounts the layers that no other image uses.
    ///
    /// # Errors
    /// [`AgentError::Unknown`]; [`AgentError::InUse`] while an instance of it is there.
    pub fn unmount(&self, id: &ImageId) -> Result<()> {
        let mut tables = self.lock();
        let image = tables.images.get(id).ok_or_else(|| unknown(id))?;
        if image.instances > 0 {
            let by = format!("{} instances", image.instances);
            return Err(AgentError::InUse { what: format!("image {id}"), by });
        }
        if let Some(image) = tables.images.remove(id) {
            tables.release_all(&image.layers);
        }
        Ok(())
    }

    /// Registers an instance's use of an image; answers the mounted layers, lowest first.
    ///
    /// # Errors
    /// [`AgentError::Unknown`].
    pub fn begin_use(&self, id: &ImageId) -> Result<Vec<PathBuf>> {
        let mut tables = self.lock();
        let image = tables.images.get_mut(id).ok_or_else(|| unknown(id))?;
        image.instances += 1;
        Ok(image.layers.iter().map(mount_point).collect())
    }

    /// Ends an instance's use of an image.
    pub fn end_use(&self, id: &ImageId) {
        if let Some(image) = self.lock().images.get_mut(id) {
            image.instances = image.instances.saturating_sub(1);
        }
    }

    /// Refuses where a layer is mounted from one of these functions.
    ///
    /// # Errors
    /// [`AgentError::InUse`].
    pub fn check_unused(&self, sysfs: &Sysfs, addresses: &[PciAddress]) -> Result<()> {
        let tables = self.lock();
        for address in addresses {
            let Some(name) = sysfs.block_name(address) else { continue };
            let layer =
                tables.layers.iter().find(|(_, layer)| layer.device.file_name().is_some_and(|file| *file == *name));
            if let Some((serial, _)) = layer {
                return Err(AgentError::InUse {
                    what: format!("PCI function {address}"),
                    by: format!("layer {serial}"),
                });
            }
        }
        Ok(())
    }

    /// Unmounts everything, as far as it goes.
    pub fn unmount_all(&self) {
        let mut tables = self.lock();
        tables.images.clear();
        for (serial, _) in tables.layers.drain() {
            log_unmount(&mount_point(&serial));
        }
    }

    fn lock(&self) -> MutexGuard<'_, Tables> {
        self.tables.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl Tables {
    fn acquire(&mut self, sysfs: &Sysfs, uevents: &Uevents, serial: &Serial) -> Result<()> {
        if let Some(layer) = self.layers.get_mut(serial) {
            layer.images += 1;
            return Ok(());
        }
        let device = uevents.wait_until(
            DEVICE_LIMIT,
            || format!("block device with serial number {serial}"),
            || Ok(sysfs.block_by_serial(serial.as_str())),
        )?;
        let flags = MsFlags::MS_RDONLY | MsFlags::MS_NODEV | MsFlags::MS_NOATIME;
        mounts::mount_at(device.to_str(), mount_point(serial), "erofs", flags, "")?;
        self.layers.insert(serial.clone(), Layer { device, images: 1 });
        Ok(())
    }

    fn release_all(&mut self, serials: &[Serial]) {
        for serial in serials {
            let Some(layer) = self.layers.get_mut(serial) else { continue };
            layer.images = layer.images.saturating_sub(1);
            if layer.images == 0 {
                self.layers.remove(serial);
                log_unmount(&mount_point(serial));
            }
        }
    }
}

fn log_unmount(path: &Path) {
    if let Err(error) = mounts::unmount(path) {
        tracing::error!(%error, "layer stays mounted");
    }
    // An empty folder left behind does no harm.
    let _ = std::fs::remove_dir(path);
}

fn mount_point(serial: &Serial) -> PathBuf {
    Path::new(LAYERS).join(serial.as_str())
}

fn unknown(id: &ImageId) -> AgentError {
    AgentError::Unknown { kind: "image", name: id.to_string() }
}
