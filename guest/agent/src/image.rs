//! Images: ordered layers, each an EROFS file system on a disk of its own. A flat image has a single layer.
//!
//! A layer is mounted once, however many images use it, on `/run/l/<serial>`. The path is short because overlayfs takes
//! all lower folders in one mount option of at most a page: [`MAX_LAYERS`](bellows_protocol::values::MAX_LAYERS) paths of
//! this length fit.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use bellows_protocol::DISK_LIMIT;
use bellows_protocol::values::{ImageId, PciAddress, Serial};
use bellows_protocol::volume::Volume;
use nix::mount::MsFlags;

use crate::error::{AgentError, Result};
use crate::mounts;
use crate::pci::Sysfs;
use crate::sync::Mutex;
use crate::uevent::Uevents;

/// Mount points of layers.
pub const LAYERS: &str = "/run/l";

/// The images and layers that are mounted.
#[derive(Debug, Default)]
pub struct Images {
    tables: Mutex<Tables>,
}

#[derive(Debug, Default)]
struct Tables {
    images: HashMap<ImageId, Image>,
    layers: HashMap<Serial, Mounted>,
}

#[derive(Debug)]
struct Image {
    /// Lowest layer first.
    layers: Vec<Serial>,
    instances: usize,
}

#[derive(Debug)]
struct Mounted {
    /// The function of its disk.
    address: PciAddress,
    images: usize,
}

/// A layer of an image.
#[derive(Debug, Clone)]
pub struct Layer {
    /// Its serial number.
    pub serial: Serial,
    /// The function of its disk.
    pub address: PciAddress,
}

impl Images {
    /// Mounts the layers of an image, lowest first, unless they are mounted already. An existing image with the same layers
    /// is a success: the answer to an earlier request may have come too late.
    ///
    /// # Errors
    /// [`AgentError::Exists`] for an image with other layers; [`AgentError::TimedOut`] for a disk that does not appear; [`AgentError::Path`] for a layer
    /// that cannot be mounted. Layers that were mounted for this image are unmounted again.
    pub fn mount(&self, sysfs: &Sysfs, uevents: &Uevents, id: &ImageId, layers: &[Layer]) -> Result<()> {
        // One image at a time: two with a common layer must not both mount it.
        let mut tables = self.tables.lock();
        let serials: Vec<_> = layers.iter().map(|layer| layer.serial.clone()).collect();
        match tables.images.get(id) {
            Some(image) if image.layers == serials => return Ok(()),
            Some(_) => return Err(AgentError::Exists { kind: "image", name: id.to_string() }),
            None => {}
        }
        for (mounted, layer) in layers.iter().enumerate() {
            if let Err(error) = tables.acquire(sysfs, uevents, layer) {
                tables.release_all(&serials[..mounted]);
                return Err(error);
            }
        }
        tables.images.insert(id.clone(), Image { layers: serials, instances: 0 });
        Ok(())
    }

    /// Removes an image and unmounts the layers that no other image uses.
    ///
    /// # Errors
    /// [`AgentError::Gone`]; [`AgentError::InUse`] while it has an instance.
    pub fn unmount(&self, id: &ImageId) -> Result<()> {
        let mut tables = self.tables.lock();
        let gone = || AgentError::Gone { kind: "image", name: id.to_string() };
        let image = tables.images.get(id).ok_or_else(gone)?;
        if image.instances > 0 {
            let by = format!("{} instances", image.instances);
            return Err(AgentError::InUse { what: format!("image {id}"), by });
        }
        if let Some(image) = tables.images.remove(id) {
            tables.release_all(&image.layers);
        }
        Ok(())
    }

    /// Registers an instance's use of an image; returns the mounted layers, lowest first.
    ///
    /// # Errors
    /// [`AgentError::Unknown`].
    pub fn begin_use(&self, id: &ImageId) -> Result<Vec<PathBuf>> {
        let mut tables = self.tables.lock();
        let image = tables.images.get_mut(id).ok_or_else(|| unknown(id))?;
        image.instances += 1;
        Ok(image.layers.iter().map(mount_point).collect())
    }

    /// Registers an instance's use of the images of its volumes, all of them or none; returns the mounted layer of each.
    ///
    /// # Errors
    /// [`AgentError::Unknown`]; [`AgentError::Volume`] for an image of several layers.
    pub fn begin_volumes(&self, volumes: &[Volume]) -> Result<Vec<PathBuf>> {
        let mut tables = self.tables.lock();
        let layer = |volume: &Volume| {
            let image = tables.images.get(&volume.image).ok_or_else(|| unknown(&volume.image))?;
            match &image.layers[..] {
                [layer] => Ok(mount_point(layer)),
                layers => Err(AgentError::Volume { image: volume.image.to_string(), layers: layers.len() }),
            }
        };
        let layers = volumes.iter().map(layer).collect::<Result<Vec<_>>>()?;
        for volume in volumes {
            if let Some(image) = tables.images.get_mut(&volume.image) {
                image.instances += 1;
            }
        }
        Ok(layers)
    }

    /// Ends an instance's use of an image.
    pub fn end_use(&self, id: &ImageId) {
        if let Some(image) = self.tables.lock().images.get_mut(id) {
            image.instances = image.instances.saturating_sub(1);
        }
    }

    /// Refuses if a layer is mounted from one of these functions.
    ///
    /// # Errors
    /// [`AgentError::InUse`].
    pub fn check_unused(&self, addresses: &[PciAddress]) -> Result<()> {
        let tables = self.tables.lock();
        for address in addresses {
            if let Some((serial, _)) = tables.layers.iter().find(|(_, layer)| layer.address == *address) {
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
        let mut tables = self.tables.lock();
        tables.images.clear();
        for (serial, _) in tables.layers.drain() {
            log_unmount(&mount_point(&serial));
        }
    }
}

impl Tables {
    fn acquire(&mut self, sysfs: &Sysfs, uevents: &Uevents, layer: &Layer) -> Result<()> {
        let Layer { serial, address } = layer;
        if let Some(mounted) = self.layers.get_mut(serial) {
            mounted.images += 1;
            return Ok(());
        }
        let disk = sysfs.await_disk(uevents, address, DISK_LIMIT)?;
        let flags = MsFlags::MS_RDONLY | MsFlags::MS_NODEV | MsFlags::MS_NOATIME;
        // Persistent memory is read in place, without the page cache.
        let options = if disk.is_persistent_memory { "dax=always" } else { "" };
        mounts::mount_at(disk.node.to_str(), mount_point(serial), "erofs", flags, options)?;
        self.layers.insert(serial.clone(), Mounted { address: address.clone(), images: 1 });
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
        tracing::error!(%error, "cannot unmount a layer");
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Layers that are mounted already, for another image.
    fn fixture() -> (Images, [Layer; 2]) {
        let images = Images::default();
        let layers = [("base", "0000:01:04.0"), ("top", "0000:01:05.0")]
            .map(|(serial, address)| Layer { serial: serial.parse().unwrap(), address: address.parse().unwrap() });
        for Layer { serial, address } in layers.clone() {
            images.tables.lock().layers.insert(serial, Mounted { address, images: 1 });
        }
        (images, layers)
    }

    fn users(images: &Images) -> Vec<usize> {
        images.tables.lock().layers.values().map(|layer| layer.images).collect()
    }

    #[test]
    fn volumes_are_used_all_or_none() {
        let (images, layers) = fixture();
        let mount = |id: &str, layers: &[Layer]| {
            images.mount(&Sysfs::default(), &Uevents::default(), &id.parse().unwrap(), layers).unwrap();
        };
        mount("data", &layers[..1]);
        mount("stack", &layers);
        let volume = |image: &str| Volume { image: image.parse().unwrap(), path: format!("/{image}").parse().unwrap() };
        let error = images.begin_volumes(&[volume("data"), volume("stack")]).unwrap_err();
        assert!(error.to_string().contains("2 layers"), "{error}");
        images.begin_volumes(&[volume("data"), volume("none")]).unwrap_err();
        images.unmount(&"data".parse().unwrap()).unwrap();
        mount("data", &layers[..1]);
        assert_eq!(
            images.begin_volumes(&[volume("data"), volume("data")]).unwrap(),
            vec![mount_point(&layers[0].serial); 2]
        );
        images.end_use(&"data".parse().unwrap());
        assert!(matches!(images.unmount(&"data".parse().unwrap()), Err(AgentError::InUse { .. })));
        images.end_use(&"data".parse().unwrap());
        images.unmount(&"data".parse().unwrap()).unwrap();
    }

    #[test]
    fn a_request_can_come_again() {
        let (images, layers) = fixture();
        let id: ImageId = "demo".parse().unwrap();
        let mount = |layers: &[Layer]| images.mount(&Sysfs::default(), &Uevents::default(), &id, layers);
        for _ in 0..2 {
            mount(&layers).unwrap();
            assert_eq!(users(&images), [2, 2], "it is one image");
        }
        assert_eq!(mount(&layers[..1]).unwrap_err().code(), ttrpc::Code::ALREADY_EXISTS);
        images.unmount(&id).unwrap();
        assert_eq!(users(&images), [1, 1]);
        assert_eq!(images.unmount(&id).unwrap_err().code(), ttrpc::Code::NOT_FOUND);
        let error = images.begin_use(&id).unwrap_err();
        assert_eq!(error.code(), ttrpc::Code::FAILED_PRECONDITION, "NOT_FOUND is for the command of an instance");
    }
}
