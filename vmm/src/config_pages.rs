//! Configuration space as pages that the guest reads: it looks for devices and their capabilities without an exit.

use std::sync::Arc;

use bellows_devices::pci::{CONVENTIONAL_BYTES, ConfigMirror, PciAddress};
use bellows_memory::slots::{SlotError, SlotTable};
use bellows_memory::sync::Mutex;
use bellows_memory::{GuestAddress, ShownPages};

/// The pages of the ECAM window, and the slot in which the guest has them.
pub(crate) struct ConfigPages {
    pages: ShownPages,
    slots: Arc<dyn SlotTable>,
    has_slot: Mutex<bool>,
}

/// Why there are no such pages.
#[derive(Debug, thiserror::Error)]
#[error("cannot show the guest configuration space")]
pub enum ConfigPagesError {
    /// No memory.
    Memory(#[source] std::io::Error),
    /// No slot.
    Slot(#[source] SlotError),
}

impl ConfigPages {
    /// Pages for the ECAM window of `bytes` at `guest`.
    pub(crate) fn new(guest: GuestAddress, bytes: u64, slots: Arc<dyn SlotTable>) -> Result<Self, ConfigPagesError> {
        let pages = ShownPages::new(guest, bytes, CONVENTIONAL_BYTES).map_err(ConfigPagesError::Memory)?;
        slots.set(pages.slot()).map_err(ConfigPagesError::Slot)?;
        Ok(Self { pages, slots, has_slot: Mutex::new(true) })
    }

    /// Without the slot all reads exit, and are answered. Returns whether it was there.
    fn delete_slot(&self) -> bool {
        let mut has_slot = self.has_slot.lock();
        let had_it = std::mem::take(&mut *has_slot);
        if had_it && let Err(error) = self.slots.delete(self.pages.slot()) {
            // The guest would go on with what is no longer true.
            self.slots.lost(Box::new(error));
        }
        had_it
    }

    fn change(&self, address: PciAddress, change: impl FnOnce(u64) -> std::io::Result<()>) {
        // Not locked while it is used, since the slot may have to go.
        let has_slot = *self.has_slot.lock();
        if has_slot
            && let Err(error) = change(address.ecam_offset())
            && self.delete_slot()
        {
            tracing::warn!(%address, %error, "configuration space is read by exits from now on");
        }
    }
}

impl ConfigMirror for ConfigPages {
    fn show(&self, address: PciAddress, registers: &[u8; CONVENTIONAL_BYTES]) {
        self.change(address, |offset| self.pages.show(offset, registers));
    }

    fn hide(&self, address: PciAddress) {
        self.change(address, |offset| self.pages.hide(offset));
    }

    fn end(&self) {
        if self.delete_slot() {
            tracing::debug!("configuration space is read by exits from now on");
        }
    }
}

#[cfg(test)]
mod tests {
    use bellows_memory::testing::RecordedSlots;

    use super::*;

    const SLOT: &str = "0xe0000000+0x200000 read-only";

    fn pages(slots: &Arc<RecordedSlots>) -> Result<ConfigPages, ConfigPagesError> {
        ConfigPages::new(GuestAddress(0xe000_0000), 2 << 20, slots.clone())
    }

    #[test]
    fn the_slot_goes_once() {
        let slots = Arc::new(RecordedSlots::default());
        let pages = pages(&slots).unwrap();
        pages.show(PciAddress::new(1, 31, 0).unwrap(), &[1; CONVENTIONAL_BYTES]);
        pages.hide(PciAddress::new(1, 31, 0).unwrap());
        assert_eq!(slots.calls(), [format!("set {SLOT}")]);
        pages.end();
        pages.end();
        pages.show(PciAddress::new(0, 1, 0).unwrap(), &[1; CONVENTIONAL_BYTES]);
        assert_eq!(slots.calls(), [format!("delete {SLOT}")]);
        assert_eq!(slots.lost_memory(), None);
    }

    #[test]
    fn what_cannot_be_shown_is_read_by_exits() {
        let slots = Arc::new(RecordedSlots::default());
        let pages = pages(&slots).unwrap();
        assert_eq!(slots.calls(), [format!("set {SLOT}")]);
        pages.show(PciAddress::new(2, 0, 0).unwrap(), &[1; CONVENTIONAL_BYTES]);
        assert_eq!(slots.calls(), [format!("delete {SLOT}")]);
    }

    #[test]
    fn a_slot_that_cannot_go_ends_the_vm() {
        let slots = Arc::new(RecordedSlots::default());
        let pages = pages(&slots).unwrap();
        slots.fail(Some("delete"));
        pages.end();
        assert!(slots.lost_memory().unwrap().contains("cannot delete"));
        slots.fail(Some("set"));
        let error = ConfigPages::new(GuestAddress(0xf000_0000), 1 << 20, slots).map(drop).unwrap_err();
        assert!(matches!(error, ConfigPagesError::Slot(_)), "{error:?}");
    }
}
