//! The images of the VM: those that requests have attached, and those that instances bring along.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bellows_block::{Store, oci};
use bellows_vmm::{ImageConfig, ImageId, ImageInfo, Vm};

use super::bodies::{NewImage, Source};
use crate::error::CliError;
use crate::rest::fault::Fault;
use crate::store;

/// Time for the guest to find or to leave the disks of an image.
const LIMIT: Duration = Duration::from_secs(60);

/// The images. Changes come one at a time, so that two instances that need an image attach it once.
pub(crate) struct Images {
    /// The layer store; the user's own without it.
    store: Option<PathBuf>,
    known: Mutex<BTreeMap<ImageId, Known>>,
}

/// An image that the VM has.
#[derive(Clone, Debug, Default)]
struct Known {
    /// What the image says of its command.
    defaults: oci::ImageConfig,
    /// Instances that have it or are getting it.
    users: usize,
}

/// An image in use.
pub(crate) struct Held {
    pub(crate) id: ImageId,
    pub(crate) defaults: oci::ImageConfig,
    /// It has come for this instance.
    is_new: bool,
}

impl Images {
    pub(crate) fn new(store: Option<PathBuf>) -> Self {
        Self { store, known: Mutex::default() }
    }

    /// Attaches an image; again is fine with the same name.
    pub(crate) fn attach(&self, vm: &Vm, id: &ImageId, wanted: &NewImage) -> Result<ImageInfo, Fault> {
        let mut known = self.known();
        if find(vm, id).is_some() {
            return Err(Fault::conflict(format!("the VM has an image `{id}`: expected another name")));
        }
        let (config, defaults) = match wanted.source()? {
            Source::Store(name) => self.stored(name, Some(id), wanted)?,
            Source::Files(layers) => (ImageConfig::new(id.clone(), layers.to_vec()), oci::ImageConfig::default()),
        };
        let config = ImageConfig {
            shape: wanted.shape.or(config.shape),
            transport: wanted.transport.unwrap_or(config.transport),
            ..config
        };
        let info = attach(vm, &config)?;
        known.insert(id.clone(), Known { defaults, users: 0 });
        Ok(info)
    }

    /// Takes an image out of the VM.
    pub(crate) fn detach(&self, vm: &Vm, id: &ImageId) -> Result<(), Fault> {
        let mut known = self.known();
        if find(vm, id).is_none() {
            return Err(Fault::missing(format!("there is no image `{id}`")));
        }
        if let Some(users) = known.get(id).map(|known| known.users).filter(|users| *users != 0) {
            return Err(Fault::conflict(format!("image `{id}` is in use by {users} instances")));
        }
        vm.detach_image(id, LIMIT).map_err(|error| Fault::of_kind(error.kind(), &error))?;
        known.remove(id);
        Ok(())
    }

    /// Finds an image for an instance, and attaches it if the VM does not have it.
    pub(crate) fn hold(&self, vm: &Vm, image: &str) -> Result<Held, Fault> {
        let mut known = self.known();
        let present = image.parse().ok().filter(|id| vm.images().iter().any(|image| image.id == *id));
        let (id, defaults, is_new) = match present {
            Some(id) => {
                if find(vm, &id).is_none() {
                    vm.mount_image(&id, LIMIT).map_err(|error| Fault::of_kind(error.kind(), &error))?;
                }
                let defaults = known.get(&id).map(|known| known.defaults.clone()).unwrap_or_default();
                (id, defaults, false)
            }
            None => {
                let (config, defaults) = self.stored(image, None, &NewImage::default())?;
                let id = config.id.clone();
                let is_new = find(vm, &id).is_none();
                if is_new {
                    attach(vm, &config)?;
                }
                (id, defaults, is_new)
            }
        };
        let entry = known.entry(id.clone()).or_insert_with(|| Known { defaults: defaults.clone(), users: 0 });
        entry.users += 1;
        Ok(Held { id, defaults, is_new })
    }

    /// An instance does not need the image any more. One that has come for an instance that did not start goes again.
    pub(crate) fn release(&self, vm: &Vm, held: &Held, has_started: bool) {
        let mut known = self.known();
        let Some(entry) = known.get_mut(&held.id) else { return };
        entry.users = entry.users.saturating_sub(1);
        if has_started || !held.is_new || entry.users != 0 {
            return;
        }
        match vm.detach_image(&held.id, LIMIT) {
            Ok(()) => drop(known.remove(&held.id)),
            Err(error) => tracing::warn!(%error, image = %held.id, "an image that no instance needs stays"),
        }
    }

    /// An image of the store, and what it says of its command. Nothing is imported.
    fn stored(
        &self,
        name: &str,
        id: Option<&ImageId>,
        wanted: &NewImage,
    ) -> Result<(ImageConfig, oci::ImageConfig), Fault> {
        let fault = |error: CliError| Fault::of_kind(error.kind(), &error);
        let store: Store = store::open(self.store.as_deref()).map_err(fault)?;
        let known = store::known_name(&store, name).map_err(fault)?;
        let image = store.image(&known).map_err(|error| {
            let mut fault = fault(error.into());
            fault.message = format!("{}: expected an image that was imported before", fault.message);
            fault
        })?;
        let by_digest = || image.digest.hex().parse().map_err(|error| fault(CliError::from(error)));
        let id = id.map_or_else(by_digest, |id| Ok(id.clone()))?;
        let config = store::of_store(&store, &image, id, wanted.shape).map_err(fault)?;
        Ok((config, image.config.clone()))
    }

    fn known(&self) -> MutexGuard<'_, BTreeMap<ImageId, Known>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn find(vm: &Vm, id: &ImageId) -> Option<ImageInfo> {
    vm.images().into_iter().find(|image| image.id == *id && image.mounted)
}

/// Attaches an image, or leaves nothing of it.
fn attach(vm: &Vm, config: &ImageConfig) -> Result<ImageInfo, Fault> {
    vm.attach_image(config, LIMIT).map_err(|error| {
        // What the guest has got stays otherwise.
        if vm.images().iter().any(|image| image.id == config.id)
            && let Err(error) = vm.detach_image(&config.id, LIMIT)
        {
            tracing::warn!(%error, image = %config.id, "an image that was not mounted stays");
        }
        Fault::of_kind(error.kind(), &error)
    })
}
