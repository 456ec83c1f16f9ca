//! A partition's part in what devices see of guest memory.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use vm_memory::region::GuestRegionCollectionError;
use vm_memory::{GuestAddress, GuestAddressSpace};

use crate::blocks::BlockRange;
use crate::mapping::{HostMapping, MapError};
use crate::{GuestMemory, GuestView};

/// Keeps the plugged blocks of one window in a view, as one region for each run of neighbouring blocks.
pub(crate) struct WindowView {
    view: GuestView,
    start: GuestAddress,
    mapping: Arc<HostMapping>,
    /// The regions there are, by blocks.
    runs: Mutex<Vec<BlockRange>>,
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
        Self { view, start, mapping, runs: Mutex::new(Vec::new()) }
    }

    /// Shows `blocks`, none of which is visible.
    pub(crate) fn reveal(&self, blocks: BlockRange) -> Result<(), ViewError> {
        let mut runs = self.runs();
        let (joined, others): (Vec<_>, Vec<_>) = runs.iter().partition(|run| run.touches(blocks));
        let run = joined.iter().copied().fold(blocks, BlockRange::join);
        self.exchange(&joined, &[run])?;
        *runs = others;
        runs.push(run);
        Ok(())
    }

    /// Hides `blocks`, all of which are visible. Devices may still hold the old view: [`WindowView::drain`].
    pub(crate) fn revoke(&self, blocks: BlockRange) -> Result<(), ViewError> {
        let mut runs = self.runs();
        let (cut, mut others): (Vec<_>, Vec<_>) = runs.iter().partition(|run| run.overlaps(blocks));
        let parts = |run: &BlockRange| {
            let before = BlockRange::between(run.first(), blocks.first().max(run.first()));
            before.into_iter().chain(BlockRange::between(blocks.end().min(run.end()), run.end()))
        };
        let rest: Vec<_> = cut.iter().flat_map(parts).collect();
        self.exchange(&cut, &rest)?;
        others.extend(rest);
        *runs = others;
        Ok(())
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
        let mut runs = self.runs();
        if let Err(error) = self.exchange(&runs, &[]) {
            tracing::error!(%error, "cannot take a partition out of what devices see");
        }
        runs.clear();
    }

    fn runs(&self) -> MutexGuard<'_, Vec<BlockRange>> {
        self.runs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn exchange(&self, old: &[BlockRange], new: &[BlockRange]) -> Result<(), ViewError> {
        let guard = self.view.lock().unwrap_or_else(PoisonError::into_inner);
        let at = |blocks: BlockRange| GuestAddress(self.start.0 + blocks.offset());
        let mut memory = GuestMemory::clone(&self.view.memory());
        for &blocks in old {
            let refused = |source| ViewError::Regions { blocks, source };
            memory = memory.remove_region(at(blocks), blocks.bytes()).map_err(refused)?.0;
        }
        for &blocks in new {
            let region = self.mapping.region(blocks.offset(), blocks.bytes(), at(blocks));
            let region = region.map_err(|source| ViewError::Map { blocks, source })?;
            memory = memory.insert_region(region).map_err(|source| ViewError::Regions { blocks, source })?;
        }
        guard.replace(memory);
        Ok(())
    }
}
