//! The guest's memory map of a partition. It lies in base memory, and stays there while the partition is parked, for a time.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bellows_memory::sync::Mutex;
use bellows_memory::{ByteSize, Window};

/// A memory map takes this fraction of the memory that it describes: 64 bytes for each page of 4 KiB.
const FRACTION: u64 = 64;

/// The memory map of `added` bytes, which are whole memory blocks.
pub(crate) fn of(added: ByteSize) -> ByteSize {
    ByteSize::bytes(added.get() / FRACTION)
}

/// What a guest with memory blocks of `block` adds for a plug of `size`.
pub(crate) fn added_for(size: ByteSize, block: u64) -> ByteSize {
    ByteSize::bytes(size.get().checked_next_multiple_of(block.max(1)).unwrap_or(u64::MAX))
}

/// How much of a partition the guest has a memory map of, as far as the host can tell.
#[derive(Clone, Debug, Default)]
pub(crate) struct Added {
    state: Arc<Mutex<State>>,
    /// The guest removes the memory map of what has been parked for so long.
    removed_after: Option<Duration>,
}

#[derive(Clone, Copy, Debug, Default)]
struct State {
    bytes: ByteSize,
    /// When the guest removes all of it, as it is parked.
    gone_at: Option<Instant>,
}

impl State {
    fn at(&self, now: Instant) -> ByteSize {
        if self.gone_at.is_some_and(|gone| gone <= now) { ByteSize::bytes(0) } else { self.bytes }
    }
}

impl Added {
    /// The guest removes what has been parked for `removed_after`, or never.
    pub(crate) fn new(removed_after: Option<Duration>) -> Self {
        Self { removed_after, ..Self::default() }
    }

    /// The partition was plugged with `size`.
    pub(crate) fn plugged(&self, window: Window, size: ByteSize) {
        let mut state = self.state.lock();
        let present = state.at(Instant::now());
        *state = State { bytes: present.max(added_for(size, window.granule())), gone_at: None };
    }

    /// The guest has given memory back, `left` excepted. Its driver `keeps` the memory blocks, or has removed those that are empty.
    pub(crate) fn unplugged(&self, window: Window, left: ByteSize, keeps: bool) {
        let mut state = self.state.lock();
        if !keeps {
            *state = State { bytes: added_for(left, window.granule()), gone_at: None };
        } else if left.get() == 0 {
            // The guest counts from when it was parked first.
            state.gone_at = state.gone_at.or_else(|| self.removed_after.map(|after| Instant::now() + after));
        }
    }

    /// The bytes, in whole memory blocks.
    pub(crate) fn get(&self) -> ByteSize {
        self.state.lock().at(Instant::now())
    }
}

#[cfg(test)]
mod tests {
    use bellows_memory::{Layout, LayoutSpec};

    use super::*;

    #[test]
    fn a_memory_map_is_made_for_whole_memory_blocks() {
        let layout = Layout::new(&LayoutSpec::x86_64(ByteSize::mib(512), vec![ByteSize::gib(1)], 40)).unwrap();
        let window = layout.windows()[0];
        let added = Added::default();
        assert_eq!(added.get(), ByteSize::bytes(0));
        for (size, blocks) in [(2, 1), (128, 1), (130, 2), (64, 2), (1024, 8)] {
            added.plugged(window, ByteSize::mib(size));
            assert_eq!(added.get(), ByteSize::mib(128 * blocks), "after a plug of {size} MiB");
        }
        assert_eq!(of(added.get()), ByteSize::mib(16));
        added.unplugged(window, ByteSize::bytes(0), true);
        assert_eq!(added.get(), ByteSize::gib(1), "it is parked");
        added.unplugged(window, ByteSize::mib(130), false);
        assert_eq!(added.get(), ByteSize::mib(256), "it is not, and something stays");
        added.unplugged(window, ByteSize::bytes(0), false);
        assert_eq!(added.get(), ByteSize::bytes(0));
    }

    #[test]
    fn what_is_parked_for_long_is_gone() {
        let layout = Layout::new(&LayoutSpec::x86_64(ByteSize::mib(512), vec![ByteSize::gib(1)], 40)).unwrap();
        let window = layout.windows()[0];
        let (all, none) = (ByteSize::mib(256), ByteSize::bytes(0));
        let at = |added: &Added, now| added.state.lock().at(now);
        let later = |seconds| Instant::now() + Duration::from_secs(seconds);
        let added = Added::new(Some(Duration::from_secs(600)));
        added.plugged(window, all);
        assert_eq!(at(&added, later(10_000)), all, "it is in use");
        added.unplugged(window, ByteSize::mib(2), true);
        assert_eq!(at(&added, later(10_000)), all, "it is not parked");
        added.unplugged(window, none, true);
        assert_eq!((at(&added, later(500)), at(&added, later(700))), (all, none));
        let gone_at = added.state.lock().gone_at;
        added.unplugged(window, none, true);
        assert_eq!(added.state.lock().gone_at, gone_at, "it has been parked all the time");
        added.plugged(window, ByteSize::mib(1));
        assert_eq!(at(&added, later(10_000)), all, "it is in use again");

        let kept = Added::new(None);
        kept.plugged(window, all);
        kept.unplugged(window, none, true);
        assert_eq!(at(&kept, later(10_000)), all);
        let short = Added::new(Some(Duration::ZERO));
        short.plugged(window, all);
        short.unplugged(window, none, true);
        short.plugged(window, ByteSize::mib(1));
        assert_eq!(short.get(), ByteSize::mib(128), "all was added anew");
    }

    #[test]
    fn no_size_is_too_large() {
        assert_eq!(added_for(ByteSize::bytes(u64::MAX), 128 << 20), ByteSize::bytes(u64::MAX));
        assert_eq!(added_for(ByteSize::mib(1), 0), ByteSize::mib(1));
    }
}
