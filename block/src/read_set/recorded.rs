//! Disks that record what is read of them.

use std::io;
use std::ops::Range;
use std::sync::Arc;

use bellows_disk::{Disk, DiskId, SECTOR_SIZE};
use vm_memory::VolatileSlice;

use super::touched::TouchedPages;
use super::{PAGE_SIZE, ReadSet};
use crate::digest::Digest;

/// A disk that marks the pages of each successful read: a bit for each page.
#[derive(Debug)]
pub struct Recorded<D> {
    disk: D,
    reads: Arc<Reads>,
}

/// What was read of a [`Recorded`] disk.
#[derive(Debug)]
pub struct Reads {
    /// The files that the disk is made of, each with its bytes of the disk, which begin at a page.
    files: Vec<(Range<u64>, Digest)>,
    touched: TouchedPages,
}

impl<D: Disk> Recorded<D> {
    /// Records what is read of `disk`, which is made of `files`, each at its bytes of the disk. They begin at pages.
    pub(crate) fn new(disk: D, files: Vec<(Range<u64>, Digest)>) -> Self {
        let touched = TouchedPages::new(disk.sectors().saturating_mul(SECTOR_SIZE));
        Self { disk, reads: Arc::new(Reads { files, touched }) }
    }

    /// The record, which goes on while the disk is read.
    #[must_use]
    pub fn reads(&self) -> Arc<Reads> {
        self.reads.clone()
    }
}

impl Reads {
    /// The pages of the disk's files that were read by now.
    #[must_use]
    pub fn read_set(&self) -> ReadSet {
        let mut read_set = ReadSet::default();
        for (bytes, digest) in &self.files {
            read_set.insert(*digest, self.touched.pages(bytes.start / PAGE_SIZE..bytes.end.div_ceil(PAGE_SIZE)));
        }
        read_set
    }
}

impl<D: Disk> Disk for Recorded<D> {
    fn sectors(&self) -> u64 {
        self.disk.sectors()
    }

    fn read_only(&self) -> bool {
        self.disk.read_only()
    }

    fn id(&self) -> DiskId {
        self.disk.id()
    }

    fn read_at(&self, offset: u64, buffers: &[VolatileSlice<'_>]) -> io::Result<()> {
        self.disk.read_at(offset, buffers)?;
        let bytes = buffers.iter().map(|buffer| buffer.len() as u64).sum();
        self.reads.touched.mark(offset..offset.saturating_add(bytes));
        Ok(())
    }

    fn write_at(&self, offset: u64, buffers: &[VolatileSlice<'_>]) -> io::Result<()> {
        self.disk.write_at(offset, buffers)
    }

    fn flush(&self) -> io::Result<()> {
        self.disk.flush()
    }
}
