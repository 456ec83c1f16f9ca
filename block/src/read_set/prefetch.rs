//! Brings the pages of a read set into the host's page cache.

use std::io;
use std::thread::{self, JoinHandle};

use bellows_disk::open_shared;

use super::ReadSet;
use crate::advice::will_need;
use crate::cancel::Cancel;
use crate::stored_file::StoredFile;

/// Bytes of one call: the kernel reads at most a disk's readahead or largest request ahead for one
/// (Linux, `mm/readahead.c`, `force_page_cache_ra`), and 128 KiB is its default for the former.
const PIECE: u64 = 128 << 10;

/// A thread that has the host read pages ahead. Dropping this ends the thread and waits for its end.
#[derive(Debug)]
pub struct Prefetch {
    cancel: Cancel,
    thread: Option<JoinHandle<()>>,
}

impl Prefetch {
    /// Begins to read what `read_set` has of `files`, in their order. Pages that are in the page cache cost no reading.
    ///
    /// # Errors
    /// The system refuses another thread.
    pub fn start(files: Vec<StoredFile>, read_set: ReadSet) -> io::Result<Self> {
        let cancel = Cancel::default();
        let wish = cancel.clone();
        let thread = thread::Builder::new()
            .name("prefetch".into())
            .stack_size(256 << 10)
            .spawn(move || read_all(&files, &read_set, &wish))?;
        Ok(Self { cancel, thread: Some(thread) })
    }

    /// Waits until the host has been asked for all pages; some may still be on their way.
    pub fn finish(mut self) {
        self.join();
    }

    fn join(&mut self) {
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the thread that reads ahead has panicked");
        }
    }
}

impl Drop for Prefetch {
    fn drop(&mut self) {
        self.cancel.cancel();
        self.join();
    }
}

fn read_all(files: &[StoredFile], read_set: &ReadSet, cancel: &Cancel) {
    for layer in files {
        let Some(pages) = read_set.pages(&layer.digest) else { continue };
        let file = match open_shared(&layer.path, layer.bytes) {
            Ok(file) => file,
            Err(error) => {
                tracing::warn!(%error, "a layer is not read ahead");
                continue;
            }
        };
        for bytes in pages.pieces(layer.bytes, PIECE) {
            if cancel.is_cancelled() {
                return;
            }
            if let Err(error) = will_need(&file, &bytes) {
                tracing::warn!(path = %layer.path.display(), %error, "the rest of a layer is not read ahead");
                break;
            }
        }
    }
}
