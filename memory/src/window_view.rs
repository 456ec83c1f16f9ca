//! A partition's part in what devices see of guest memory.

use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use vm_memory::region::GuestRegionCollectionError;
use vm_memory::{GuestAddress, GuestAddressSpace};

use crate::blocks::{BLOCK, BlockRange, BlockSet};
use crate::mapping::{HostMapping, MapError};
use crate::{GuestMemory, GuestView, limited};

/// Keeps the plugged blocks of one window in a view, as one region for each run of neighbouring blocks.
pub(crate) struct WindowView {
    view: GuestView,
    start: GuestAddress,
    mapping: Arc<HostMapping>,
    /// Each run of these has a region.
    visible: Mutex<BlockSet>,
}

/// Why a view could not be changed. It is as it was before.
#[derive(Debug, thiserror::Error)]
pub enum ViewError {
    /// No region could be made of host memory.
    #[error("cannot show {blocks} to devices")]
    Map {
        /// The blocks in question.
        blocks: BlockRange,
        /// What went wrong.
        #[source]
        source: MapError,
    },
    /// Something else lies in the window.
    #[error("{blocks} do not fit into what devices see of guest memory")]
    Regions {
        /// The blocks in question.
        blocks: BlockRange,
        /// What went wrong.
        #[source]
        source: GuestRegionCollectionError,
    },
}

impl WindowView {
    pub(crate) fn new(view: GuestView, start: GuestAddress, mapping: Arc<HostMapping>) -> Self {
        let blocks = u32::try_from(mapping.bytes() / BLOCK.get()).unwrap_or(u32::MAX);
        Self { view, start, mapping, visible: Mutex::new(BlockSet::new(blocks)) }
    }

    /// Shows `ranges`, none of which is visible.
    pub(crate) fn reveal(&self, ranges: &[BlockRange]) -> Result<(), ViewError> {
        self.change(|visible| ranges.iter().for_each(|range| visible.insert(*range)))
    }

    /// Hides `ranges`, all of which are visible. Devices may still hold the old view: [`WindowView::drain`].
    pub(crate) fn revoke(&self, ranges: &[BlockRange]) -> Result<(), ViewError> {
        self.change(|visible| ranges.iter().for_each(|range| visible.remove(*range)))
    }

    /// Waits until no device can reach `blocks`, which were revoked; false if one still can after `limit`.
    pub(crate) fn drain(&self, blocks: BlockRange, limit: Duration) -> bool {
        let start = Instant::now();
        let mut pause = Duration::ZERO;
        while self.mapping.is_in_use(blocks.offset(), blocks.bytes()) {
            if start.elapsed() >= limit {
                return false;
            }
            // A device holds a view for one batch of requests, so mostly for microseconds.
            if start.elapsed() < Duration::from_micros(50) {
                thread::yield_now();
            } else {
                pause = (pause * 2).clamp(Duration::from_micros(20), Duration::from_millis(1));
                thread::sleep(pause);
            }
        }
        true
    }

    /// Hides everything.
    pub(crate) fn revoke_all(&self) {
        let all = BlockRange::between(0, u32::MAX);
        if let Err(error) = self.revoke(all.as_slice()) {
            limited!(error, %error, "cannot take a partition out of what devices see");
        }
    }

    /// Changes what is visible: runs that are no longer what they were go, and new ones come, at once for who looks.
    fn change(&self, change: impl FnOnce(&mut BlockSet)) -> Result<(), ViewError> {
        let mut visible = self.visible.lock().unwrap_or_else(PoisonError::into_inner);
        let mut wanted = visible.clone();
        change(&mut wanted);
        let guard = self.view.lock().unwrap_or_else(PoisonError::into_inner);
        let mut memory = GuestMemory::clone(&self.view.memory());
        for blocks in visible.runs().filter(|run| !wanted.is_run(*run)) {
            let refused = |source| ViewError::Regions { blocks, source };
            memory = memory.remove_region(self.at(blocks), blocks.bytes()).map_err(refused)?.0;
        }
        for blocks in wanted.runs().filter(|run| !visible.is_run(*run)) {
            let region = self.mapping.region(blocks.offset(), blocks.bytes(), self.at(blocks));
            let region = region.map_err(|source| ViewError::Map { blocks, source })?;
            memory = memory.insert_region(region).map_err(|source| ViewError::Regions { blocks, source })?;
        }
        guard.replace(memory);
        *visible = wanted;
        Ok(())
    }

    fn at(&self, blocks: BlockRange) -> GuestAddress {
        GuestAddress(self.start.0 + blocks.offset())
    }
}
