//! What tests need of a VM: slots that are only recorded, and a partition made of them.
//!
//! Panics freely: a fixture that cannot be built is a failed test.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::error::Error;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};

use vm_memory::GuestAddress;

use crate::admission::{Admission, HostMemory};
use crate::discard::Discarder;
use crate::host::Backing;
use crate::layout::{Layout, LayoutSpec};
use crate::partition::{PartitionMemory, PartitionSetup};
use crate::slots::{Slot, SlotError, SlotTable};
use crate::{ByteSize, GuestMemory, GuestView};

/// A slot table that checks its contract and records what happens to it.
#[derive(Debug, Default)]
pub struct RecordedSlots {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    slots: Vec<Slot>,
    calls: Vec<String>,
    fail: Option<&'static str>,
    /// Calls of that that still succeed, and what fails with it then.
    fail_after: Option<(&'static str, u32)>,
    lost: Option<String>,
}

impl RecordedSlots {
    /// The slots there are, by address, as (first guest address, bytes).
    #[must_use]
    pub fn slots(&self) -> Vec<(u64, u64)> {
        let mut slots: Vec<_> = self.state().slots.iter().map(|slot| (slot.guest.0, slot.bytes)).collect();
        slots.sort_unstable();
        slots
    }

    /// The calls so far, such as `set 0x0+0x200000` or `set 0x0+0x200000 read-only`; forgotten by this.
    #[must_use]
    pub fn calls(&self) -> Vec<String> {
        std::mem::take(&mut self.state().calls)
    }

    /// Has every call of `action` ("set", "delete" or "replace") refused from now on, or none.
    pub fn fail(&self, action: Option<&'static str>) {
        self.state().fail = action;
    }

    /// Has every call refused once `action` has succeeded `calls` times more.
    pub fn fail_after(&self, action: &'static str, calls: u32) {
        self.state().fail_after = Some((action, calls));
    }

    /// Why the VM was ended because of lost memory, if it was.
    #[must_use]
    pub fn lost_memory(&self) -> Option<String> {
        self.state().lost.clone()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }
}

impl State {
    fn call(&mut self, action: &'static str, slot: Slot) -> Result<(), SlotError> {
        let suffix = if slot.read_only { " read-only" } else { "" };
        self.calls.push(format!("{action} {:#x}+{:#x}{suffix}", slot.guest.0, slot.bytes));
        let refused = matches!(self.fail_after, Some((_, 0)));
        if let Some((first, left)) = &mut self.fail_after
            && *first == action
        {
            *left = left.saturating_sub(1);
        }
        if self.fail == Some(action) || refused {
            return Err(SlotError { action, slot, source: io::Error::other("refused by the test") });
        }
        Ok(())
    }

    fn add(&mut self, slot: Slot) {
        let apart =
            |other: &Slot| slot.guest.0 + slot.bytes <= other.guest.0 || other.guest.0 + other.bytes <= slot.guest.0;
        assert!(slot.bytes != 0 && self.slots.iter().all(apart), "{slot:?} overlaps one of {:?}", self.slots);
        self.slots.push(slot);
    }

    fn remove(&mut self, slot: Slot) {
        let index = self.slots.iter().position(|other| *other == slot).expect("only slots that were set are deleted");
        self.slots.remove(index);
    }
}

impl SlotTable for RecordedSlots {
    fn set(&self, slot: Slot) -> Result<(), SlotError> {
        let mut state = self.state();
        state.call("set", slot)?;
        state.add(slot);
        Ok(())
    }

    fn delete(&self, slot: Slot) -> Result<(), SlotError> {
        let mut state = self.state();
        state.call("delete", slot)?;
        state.remove(slot);
        Ok(())
    }

    fn replace(&self, old: Slot, new: &[Slot]) -> Result<(), SlotError> {
        let mut state = self.state();
        state.call("replace", old)?;
        state.remove(old);
        new.iter().for_each(|slot| state.add(*slot));
        Ok(())
    }

    fn lost(&self, error: Box<dyn Error + Send + Sync>) {
        self.state().lost = Some(error.to_string());
    }
}

/// A host with more memory than any test wants, until told otherwise.
#[derive(Clone, Debug)]
pub struct FakeHost(Arc<Mutex<ByteSize>>);

impl FakeHost {
    /// What is available from now on.
    pub fn set(&self, available: ByteSize) {
        *self.0.lock().unwrap() = available;
    }
}

impl Default for FakeHost {
    fn default() -> Self {
        Self(Arc::new(Mutex::new(ByteSize::bytes(u64::MAX))))
    }
}

impl HostMemory for FakeHost {
    fn available(&self, _: Backing) -> io::Result<ByteSize> {
        Ok(*self.0.lock().unwrap())
    }
}

/// One partition with nothing plugged, in a VM that is not there.
pub struct Fixture {
    /// The partition.
    pub partition: Arc<PartitionMemory>,
    /// Its slots.
    pub slots: Arc<RecordedSlots>,
    /// The VM's account, with the window's size for a limit.
    pub admission: Arc<Admission>,
    /// What the host has available.
    pub host: FakeHost,
    /// What devices see.
    pub view: GuestView,
    /// Where memory is discarded.
    pub discarder: Discarder,
}

impl Fixture {
    /// A partition whose window is `window`, a multiple of 128 MiB, beside 64 MiB of base memory.
    #[must_use]
    pub fn new(window: ByteSize) -> Self {
        let base = GuestMemory::from_ranges(&[(GuestAddress(0), 64 << 20)]).unwrap();
        Self::in_view(GuestView::new(base), window)
    }

    /// Such a partition in a view of up to 3 GiB of base memory.
    #[must_use]
    pub fn in_view(view: GuestView, window: ByteSize) -> Self {
        let layout = Layout::new(&LayoutSpec::x86_64(ByteSize::gib(3), vec![window], 40)).unwrap();
        let slots = Arc::new(RecordedSlots::default());
        let host = FakeHost::default();
        let admission = Admission::new(Some(window), host.clone());
        let discarder = Discarder::spawn().unwrap();
        let setup = PartitionSetup {
            backing: Backing::None,
            view: view.clone(),
            slots: slots.clone(),
            admission: admission.clone(),
            discards: discarder.queue(),
        };
        let partition = PartitionMemory::new(layout.windows()[0], setup).unwrap();
        Self { partition, slots, admission, host, view, discarder }
    }

    /// What the partition is made with, for another one in the same VM.
    #[must_use]
    pub fn setup(&self) -> PartitionSetup {
        PartitionSetup {
            backing: Backing::None,
            view: self.view.clone(),
            slots: self.slots.clone(),
            admission: self.admission.clone(),
            discards: self.discarder.queue(),
        }
    }

    /// First address of the window.
    #[must_use]
    pub fn start(&self) -> u64 {
        self.partition.window().range().start().0
    }
}
