//! A partition's part in what devices see of guest memory.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use vm_memory::region::GuestRegionCollectionError;
use vm_memory::{GuestAddress, GuestRegionMmap};

use crate::blocks::{BLOCK, BlockRange, BlockSet};
use crate::host::{HostMapping, MapError};
use crate::sync::Mutex;
use crate::view::{FollowError, ReplaceError};
use crate::{GuestView, limited};

/// Keeps the plugged blocks of one window in a view, as one region for each run of neighbouring blocks.
pub(super) struct WindowView {
    view: GuestView,
    start: GuestAddress,
    mapping: Arc<HostMapping>,
    visible: Mutex<Visible>,
}

/// What devices see of the window.
struct Visible {
    blocks: BlockSet,
    /// A region for each run of the blocks, in order.
    regions: Vec<(BlockRange, Arc<GuestRegionMmap>)>,
}

impl WindowView {
    pub(super) fn new(view: GuestView, start: GuestAddress, mapping: Arc<HostMapping>) -> Self {
        let blocks = u32::try_from(mapping.bytes() / BLOCK.get()).unwrap_or(u32::MAX);
        let visible = Visible { blocks: BlockSet::new(blocks), regions: Vec::new() };
        Self { view, start, mapping, visible: Mutex::new(visible) }
    }

    /// Shows `ranges`, which are not visible yet.
    pub(super) fn reveal(&self, ranges: &[BlockRange]) -> Result<(), ViewError> {
        self.change(|visible| ranges.iter().for_each(|range| visible.insert(*range)))
    }

    /// Hides `ranges`, all of which are visible. Devices may still hold the old view: [`WindowView::drain`].
    pub(super) fn revoke(&self, ranges: &[BlockRange]) -> Result<(), ViewError> {
        self.change(|visible| ranges.iter().for_each(|range| visible.remove(*range)))
    }

    /// Waits until no device can reach `blocks`, which were revoked; false if one still can after `limit`.
    pub(super) fn drain(&self, blocks: BlockRange, limit: Duration) -> bool {
        let start = Instant::now();
        let mut pause = Duration::ZERO;
        // Snapshots first: a device that lets one go has pinned by then what it goes on using.
        while self.mapping.is_in_use_beside(blocks.offset(), blocks.bytes(), |mapping| self.view.pins_of(mapping))
            || self.view.is_pinned(self.at(blocks.first()), blocks.bytes())
        {
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
    pub(super) fn revoke_all(&self) {
        let all = BlockRange::between(0, u32::MAX);
        if let Err(error) = self.revoke(all.as_slice()) {
            limited!(error, %error, "cannot take a partition out of what devices see");
        }
    }

    /// Changes what is visible: regions of runs that changed go and new ones come, in one step for readers. Takes time in
    /// proportion to the number of runs.
    fn change(&self, change: impl FnOnce(&mut BlockSet)) -> Result<(), ViewError> {
        let mut visible = self.visible.lock();
        let mut blocks = visible.blocks.clone();
        change(&mut blocks);
        let mut old = visible.regions.iter().peekable();
        let mut regions = Vec::new();
        for run in blocks.runs() {
            while old.next_if(|(other, _)| other.first() < run.first()).is_some() {}
            let region = match old.next_if(|(other, _)| *other == run) {
                Some((_, region)) => region.clone(),
                None => {
                    let region = self.mapping.region(run.offset(), run.bytes(), self.at(run.first()));
                    region.map_err(|source| ViewError::Map { blocks: run, source })?
                }
            };
            regions.push((run, region));
        }
        let end = GuestAddress(self.start.0 + self.mapping.bytes());
        self.view.replace(self.start..end, regions.iter().map(|(_, region)| region.clone())).map_err(|error| {
            match error {
                ReplaceError::Regions(source) => ViewError::Regions(source),
                ReplaceError::Follower(source) => ViewError::Follower(source),
            }
        })?;
        *visible = Visible { blocks, regions };
        self.mapping.tidy();
        Ok(())
    }

    fn at(&self, block: u32) -> GuestAddress {
        GuestAddress(self.start.0 + u64::from(block) * BLOCK.get())
    }
}

/// Why a view could not be changed. It is as it was before.
#[derive(Debug, thiserror::Error)]
pub enum ViewError {
    /// No region could be made of host memory.
    #[error("cannot show {blocks} to devices")]
    Map {
        /// The blocks in question.
        blocks: BlockRange,
        /// The cause.
        #[source]
        source: MapError,
    },
    /// Something else lies in the window.
    #[error("a partition does not fit into what devices see of guest memory")]
    Regions(#[source] GuestRegionCollectionError),
    /// The host's kernel serves a device that cannot do with the memory there would be.
    #[error("a device cannot follow the change of guest memory")]
    Follower(#[source] FollowError),
}

#[cfg(test)]
#[path = "window_view_test.rs"]
mod tests;
