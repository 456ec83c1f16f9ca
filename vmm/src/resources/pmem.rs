//! Files of the layer store in the guest's address space: read-only memory slots over mappings of the files.
//!
//! A guest's write there exits to the monitor, which drops it and counts it as unclaimed. If a file was truncated, KVM
//! finds no page and the vCPU cannot go on; this module adds the layer's name to that end of the VM.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use bellows_block::{Digest, ImageMapping, ReadSet, StoredFile};
use bellows_memory::device_area::{DeviceArea, DeviceMemory};
use bellows_memory::slots::{Slot, SlotTable};
use bellows_memory::sync::Mutex;
use bellows_memory::{ByteSize, GuestAddress};

use super::error::PmemError;
use crate::kind::ErrorKind;
use crate::kvm::{ExitReason, VcpuError};

/// A layer's file failed under a guest that had it as memory.
#[derive(Debug, thiserror::Error)]
#[error("the layer {digest} in `{}` was truncated or cannot be read any more", path.display())]
pub struct LostLayer {
    /// The layer, or the flat image whose metadata it was.
    pub digest: Digest,
    /// Its file.
    pub path: PathBuf,
    /// The vCPU's error.
    #[source]
    pub source: VcpuError,
}

impl LostLayer {
    /// The kind of this error.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        ErrorKind::Host
    }
}

/// All windows of a VM.
pub(crate) struct PmemWindows {
    area: Arc<DeviceArea>,
    slots: Arc<dyn SlotTable>,
    /// By guest-physical address.
    mappings: Mutex<BTreeMap<u64, Arc<ImageMapping>>>,
}

/// A window; the guest has it until this is dropped.
pub(crate) struct PmemWindow {
    windows: Arc<PmemWindows>,
    mapping: Arc<ImageMapping>,
    slot: Slot,
    /// Its addresses.
    _memory: DeviceMemory,
}

impl PmemWindows {
    pub(crate) fn new(area: Arc<DeviceArea>, slots: Arc<dyn SlotTable>) -> Arc<Self> {
        Arc::new(Self { area, slots, mappings: Mutex::default() })
    }

    /// Maps a layer or flat image into the guest.
    pub(crate) fn open(self: &Arc<Self>, mapping: ImageMapping) -> Result<PmemWindow, PmemError> {
        let memory = self.area.take(ByteSize::bytes(mapping.bytes()))?;
        let slot = Slot { guest: memory.start(), host: mapping.address(), bytes: mapping.bytes(), read_only: true };
        self.slots.set(slot)?;
        let mapping = Arc::new(mapping);
        self.mappings.lock().insert(slot.guest.0, mapping.clone());
        Ok(PmemWindow { windows: self.clone(), mapping, slot, _memory: memory })
    }

    /// Adds the layer's name to an end of the VM that a layer's file caused.
    pub(crate) fn explain(&self, reason: ExitReason) -> ExitReason {
        let ExitReason::Error(error) = reason else { return reason };
        let error = match error.downcast::<VcpuError>() {
            Ok(error) => *error,
            Err(other) => return ExitReason::Error(other),
        };
        let lost = match &error {
            VcpuError::HostMemory { guest_address, .. } => self.lost(*guest_address),
            _ => None,
        };
        ExitReason::Error(match lost {
            Some(StoredFile { digest, path, .. }) => Box::new(LostLayer { digest, path, source: error }),
            None => Box::new(error),
        })
    }

    /// The layer that the guest could not read at `address`. Most hosts do not report the address (Linux 6.12 does not for
    /// truncated files, nor for bad sectors): then the first truncated layer, or the first that cannot be read.
    fn lost(&self, address: Option<u64>) -> Option<StoredFile> {
        if let Some(address) = address {
            let mappings = self.mappings.lock();
            let (start, mapping) = mappings.range(..=address).next_back()?;
            return mapping.file_at(address - start).cloned();
        }
        // Reading them takes long, so nobody waits for it.
        let mappings: Vec<_> = self.mappings.lock().values().cloned().collect();
        let cut_short = mappings.iter().find_map(|mapping| mapping.cut_short());
        cut_short.or_else(|| mappings.iter().find_map(|mapping| mapping.unreadable())).cloned()
    }
}

impl PmemWindow {
    /// Its addresses in the guest.
    pub(crate) fn start(&self) -> GuestAddress {
        self.slot.guest
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.slot.bytes
    }

    /// The pages of its files that the guest has touched, with some of their neighbours.
    pub(crate) fn touched(&self) -> io::Result<ReadSet> {
        self.mapping.read_set()
    }
}

impl Drop for PmemWindow {
    fn drop(&mut self) {
        if let Err(error) = self.windows.slots.delete(self.slot) {
            tracing::error!(%error, "a layer stays mapped: the guest may still reach it");
            // Leaked, so that no other mapping takes an address that the guest can reach.
            std::mem::forget(self.mapping.clone());
        }
        self.windows.mappings.lock().remove(&self.slot.guest.0);
    }
}

#[cfg(test)]
#[path = "pmem_test.rs"]
mod tests;
