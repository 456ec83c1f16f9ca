//! Shared code of the benchmarks that run instances.

use std::time::Duration;

use bellows_block::oci::{OciLayout, Platform};
use bellows_block::{ImportOptions, Store};
use bellows_lab::artefact;
use bellows_vmm::{ImageConfig, ImageId, PartitionId, Vm, VmBuilder, VmEnd};

pub type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// Time limit of every step, even on an emulated processor.
pub const PATIENCE: Duration = Duration::from_secs(600);

/// The demo's image in a store. The store's lock goes with it.
pub struct Image {
    _store: Store,
    config: ImageConfig,
}

impl Image {
    pub fn import() -> Result<Self> {
        let source = artefact("BELLOWS_IMAGE")?;
        let store = Store::open(source.with_file_name("bench-store"))?;
        let oci = OciLayout::open(source)?.image(&Platform::host(), None)?;
        let image = store.import(&oci, None, &ImportOptions::default())?;
        Ok(Self { config: ImageConfig::flat(image_id()?, &store.flat(&image)?), _store: store })
    }

    /// Boots a guest that has the image as a disk.
    pub fn boot(&self, builder: VmBuilder) -> Result<Vm> {
        let builder = builder.initramfs(artefact("BELLOWS_INITRAMFS")?).vcpus(vcpus());
        let vm = builder.image(self.config.clone()).boot()?;
        vm.wait_ready(PATIENCE)?;
        Ok(vm)
    }

    /// Mounts the image in a guest.
    pub fn mount(&self, vm: &Vm) -> Result<()> {
        vm.mount_image(&self.config.id, PATIENCE)?;
        Ok(())
    }
}

/// The image's name in the guest.
pub fn image_id() -> Result<ImageId> {
    Ok("demo".parse()?)
}

pub fn partition(number: u16) -> Result<PartitionId> {
    Ok(PartitionId::new(number).ok_or("partitions are numbered from 1")?)
}

/// Has the guest switch itself off.
pub fn shutdown(vm: &Vm) -> Result<()> {
    match vm.shutdown(PATIENCE) {
        VmEnd::PoweredOff | VmEnd::Reset => Ok(()),
        end => Err(format!("the guest ended wrongly: {end}").into()),
    }
}

/// Two, so that a neighbour can run beside a reclaim, but no more than the processors of this host: vCPUs that share a
/// processor wait for each other's locks.
pub fn vcpus() -> u8 {
    std::thread::available_parallelism().map_or(1, |count| count.get().min(2) as u8)
}
