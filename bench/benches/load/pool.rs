//! Places for instances: a number of each size.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// Sizes of all places, in MiB, smallest first.
pub const SIZES_MIB: [u64; 6] = [256, 256, 256, 256, 512, 512];

/// Room that an interpreter and page tables need beside what a function fills, in MiB.
const ROOM_MIB: u64 = 40;

/// All places.
#[derive(Default)]
pub struct Pool {
    taken: Mutex<[bool; SIZES_MIB.len()]>,
    left: Condvar,
}

/// A place; it's free again when this is dropped.
pub struct Place<'a> {
    pub index: usize,
    pool: &'a Pool,
}

impl Pool {
    /// The smallest place for a function that fills `mib` MiB, once one is free.
    pub fn take(&self, memory_mib: u64) -> Place<'_> {
        let needed = memory_mib + ROOM_MIB;
        let free = |taken: &[bool; SIZES_MIB.len()]| (0..taken.len()).find(|&at| !taken[at] && SIZES_MIB[at] >= needed);
        let waited = self.left.wait_while(self.lock(), |taken| free(taken).is_none());
        let mut taken = waited.unwrap_or_else(PoisonError::into_inner);
        // The wait ended with a free place.
        let index = free(&taken).unwrap_or_default();
        taken[index] = true;
        Place { index, pool: self }
    }

    fn lock(&self) -> MutexGuard<'_, [bool; SIZES_MIB.len()]> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.pool.lock()[self.index] = false;
        self.pool.left.notify_all();
    }
}
