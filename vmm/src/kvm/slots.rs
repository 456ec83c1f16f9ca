//! The VM's memory slots in KVM.

use std::collections::BTreeMap;
use std::error::Error;
use std::io;
use std::sync::{Arc, OnceLock};

use bellows_memory::slots::{Slot, SlotError, SlotTable};
use bellows_memory::sync::Mutex;
use kvm_bindings::{KVM_MEM_READONLY, kvm_userspace_memory_region};
use kvm_ioctls::{Cap, VmFd};

use super::exit::{ExitNotice, ExitReason};
use super::gate::Gate;

/// The largest slot: `KVM_MEM_MAX_NR_PAGES`, 2^31 - 1 pages of 4 KiB.
pub(crate) const MAX_SLOT_BYTES: u64 = ((1 << 31) - 1) << 12;

/// [`SlotTable`] over `KVM_SET_USER_MEMORY_REGION`.
pub struct KvmSlots {
    vm: Arc<VmFd>,
    gate: Arc<Gate>,
    numbers: Mutex<SlotNumbers>,
    notice: OnceLock<ExitNotice>,
}

impl KvmSlots {
    pub(crate) fn new(vm: Arc<VmFd>, gate: Arc<Gate>) -> Self {
        // The reported count leaves out a slot that KVM itself uses on Intel hosts.
        let count = u32::try_from(vm.check_extension_int(Cap::NrMemslots)).unwrap_or(0);
        // A host that reports nothing has 32.
        let count = if count == 0 { 32 } else { count };
        Self { vm, gate, numbers: Mutex::new(SlotNumbers::new(count)), notice: OnceLock::new() }
    }

    /// Sets the `notice` that ends a VM that loses memory; the first one stands.
    pub fn end_with(&self, notice: ExitNotice) {
        let _ = self.notice.set(notice);
    }

    fn replace_closed(&self, old: Slot, new: &[Slot]) -> Result<(), SlotError> {
        let mut numbers = self.numbers.lock();
        self.delete_locked(&mut numbers, old)?;
        new.iter().try_for_each(|slot| self.set_locked(&mut numbers, *slot))
    }

    fn set_locked(&self, numbers: &mut SlotNumbers, slot: Slot) -> Result<(), SlotError> {
        let refused = |source| SlotError { action: "set", slot, source };
        let number = numbers.take(slot).map_err(refused)?;
        self.region(number, slot, slot.bytes).map_err(|source| {
            numbers.give_back(slot);
            refused(source)
        })
    }

    fn delete_locked(&self, numbers: &mut SlotNumbers, slot: Slot) -> Result<(), SlotError> {
        let refused = |source| SlotError { action: "delete", slot, source };
        let number = numbers.find(slot).map_err(refused)?;
        self.region(number, slot, 0).map_err(refused)?;
        numbers.give_back(slot);
        Ok(())
    }

    fn region(&self, number: u32, slot: Slot, bytes: u64) -> io::Result<()> {
        let region = kvm_userspace_memory_region {
            slot: number,
            flags: if slot.read_only { KVM_MEM_READONLY } else { 0 },
            guest_phys_addr: slot.guest.0,
            memory_size: bytes,
            userspace_addr: slot.host,
        };
        // SAFETY: KVM checks alignment and overlap itself. The guest reaches the memory mapped in the host range, which is
        // its own by the contract of `Slot`. When a range is unmapped, at the latest with the VM, the kernel notifies KVM,
        // which drops its page tables for it: a slot over an unmapped range gives the guest nothing.
        unsafe { self.vm.set_user_memory_region(region) }.map_err(io::Error::from)
    }
}

impl SlotTable for KvmSlots {
    fn set(&self, slot: Slot) -> Result<(), SlotError> {
        self.set_locked(&mut self.numbers.lock(), slot)
    }

    fn delete(&self, slot: Slot) -> Result<(), SlotError> {
        self.delete_locked(&mut self.numbers.lock(), slot)
    }

    fn replace(&self, old: Slot, new: &[Slot]) -> Result<(), SlotError> {
        let _closed = self.gate.close();
        // The guest must not run without memory that it relies on.
        self.replace_closed(old, new).inspect_err(|_| self.gate.stop())
    }

    fn lost(&self, error: Box<dyn Error + Send + Sync>) {
        match self.notice.get() {
            Some(notice) => notice.report(ExitReason::Error(error)),
            None => self.gate.stop(),
        }
    }
}

/// The number of each slot.
struct SlotNumbers {
    used: BTreeMap<u64, (Slot, u32)>,
    free: Vec<u32>,
    next: u32,
    count: u32,
}

impl SlotNumbers {
    fn new(count: u32) -> Self {
        Self { used: BTreeMap::new(), free: Vec::new(), next: 0, count }
    }

    fn take(&mut self, slot: Slot) -> io::Result<u32> {
        if slot.bytes > MAX_SLOT_BYTES {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("KVM takes at most {MAX_SLOT_BYTES} bytes in one slot"),
            ));
        }
        if self.used.contains_key(&slot.guest.0) {
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, "a slot begins at that address already"));
        }
        let number = match self.free.pop() {
            Some(number) => number,
            None if self.next < self.count => {
                self.next += 1;
                self.next - 1
            }
            None => return Err(io::Error::other(format!("all {} slots of KVM are in use", self.count))),
        };
        self.used.insert(slot.guest.0, (slot, number));
        Ok(number)
    }

    fn find(&self, slot: Slot) -> io::Result<u32> {
        match self.used.get(&slot.guest.0) {
            Some((known, number)) if *known == slot => Ok(*number),
            Some((known, _)) => Err(io::Error::new(
                io::ErrorKind::NotFound,
                format!("the slot there has {} bytes from host address {:#x}", known.bytes, known.host),
            )),
            None => Err(io::Error::new(io::ErrorKind::NotFound, "no slot has that address")),
        }
    }

    fn give_back(&mut self, slot: Slot) {
        if let Some((_, number)) = self.used.remove(&slot.guest.0) {
            self.free.push(number);
        }
    }
}

#[cfg(test)]
mod tests {
    use vm_memory::GuestAddress;

    use super::*;

    fn slot(guest: u64) -> Slot {
        Slot { guest: GuestAddress(guest), host: 0x7000_0000, bytes: 0x1000, read_only: false }
    }

    #[test]
    fn numbers_are_used_again_and_run_out() {
        let mut numbers = SlotNumbers::new(2);
        assert_eq!(numbers.take(slot(0)).unwrap(), 0);
        assert_eq!(numbers.take(slot(0x1000)).unwrap(), 1);
        assert!(numbers.take(slot(0x2000)).unwrap_err().to_string().contains("all 2 slots"));
        numbers.give_back(slot(0));
        assert_eq!(numbers.take(slot(0x2000)).unwrap(), 0);
        assert_eq!(numbers.find(slot(0x2000)).unwrap(), 0);
    }

    #[test]
    fn a_slot_too_large_for_kvm_is_refused_with_the_limit() {
        let mut numbers = SlotNumbers::new(2);
        let error = numbers.take(Slot { bytes: 8 << 40, ..slot(0) }).unwrap_err();
        assert!(error.to_string().contains("8796093018112"), "{error}");
        assert_eq!(numbers.take(Slot { bytes: (8 << 40) - 4096, ..slot(0) }).unwrap(), 0);
    }

    #[test]
    fn a_slot_is_found_only_as_it_was_set() {
        let mut numbers = SlotNumbers::new(2);
        numbers.take(slot(0x1000)).unwrap();
        assert_eq!(numbers.find(slot(0)).unwrap_err().kind(), io::ErrorKind::NotFound);
        assert!(numbers.find(Slot { bytes: 0x2000, ..slot(0x1000) }).unwrap_err().to_string().contains("4096 bytes"));
        assert_eq!(numbers.take(slot(0x1000)).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
    }
}
