//! A layer served by reading its file.

use std::fs::File;
use std::io;

use vm_memory::VolatileSlice;

use crate::digest::LayerDigest;
use crate::disk::{Disk, DiskError, DiskId, SECTOR_SIZE, open_layer_file};
use crate::guest_io::read_file;
use crate::profile::{Profile, TouchedPages};
use crate::store::Layer;

/// A read-only layer that is read with `preadv`: one copy, from the host's page cache, which all VMs share, to guest memory.
///
/// The kernel checks the file's size in the call that copies. So a file that was cut short or can't be read gives the
/// request an error at any moment, also in the middle of a page, and nothing else happens. Of the ways to serve a layer that
/// outlive a truncated file it is the fastest.
#[derive(Debug)]
pub struct PreadLayer {
    file: File,
    bytes: u64,
    digest: LayerDigest,
    /// What was read, if anybody wants to know.
    touched: Option<TouchedPages>,
}

impl PreadLayer {
    /// Opens a layer's file.
    ///
    /// # Errors
    /// It is missing, no regular file, or of another size than recorded.
    pub fn open(layer: &Layer) -> Result<Self, DiskError> {
        Ok(Self { file: open_layer_file(layer)?, bytes: layer.bytes, digest: layer.digest, touched: None })
    }

    /// The same, and it keeps account of what is read from now on ([`Disk::touched`]): a bit for each page.
    #[must_use]
    pub fn recorded(mut self) -> Self {
        self.touched = Some(TouchedPages::new(self.bytes));
        self
    }
}

impl Disk for PreadLayer {
    fn sectors(&self) -> u64 {
        self.bytes / SECTOR_SIZE
    }

    fn id(&self) -> DiskId {
        DiskId::from(&self.digest)
    }

    fn read_at(&self, offset: u64, buffers: &[VolatileSlice<'_>]) -> io::Result<()> {
        read_file(&self.file, offset, buffers)?;
        if let Some(touched) = &self.touched {
            let bytes = buffers.iter().map(|buffer| buffer.len() as u64).sum();
            touched.mark(offset..offset.saturating_add(bytes));
        }
        Ok(())
    }

    fn touched(&self) -> Profile {
        let mut profile = Profile::default();
        if let Some(touched) = &self.touched {
            profile.insert(self.digest, touched.pages());
        }
        profile
    }
}
