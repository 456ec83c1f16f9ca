//! The C library's allocator, which looks how many processors there are, in a file, when the ninth thread allocates.

use std::thread::available_parallelism;

use nix::libc;

/// The C library's own figure for each processor.
const ARENAS: usize = 8;

/// Tells the allocator how many arenas it may have, so that it asks nobody later.
pub(super) fn settle() {
    let processors = available_parallelism().map_or(1, usize::from);
    let arenas = libc::c_int::try_from(processors.saturating_mul(ARENAS)).unwrap_or(libc::c_int::MAX);
    // SAFETY: takes numbers only, and sets a value that the allocator reads under its own lock. If it does not take it, all stays.
    unsafe { libc::mallopt(libc::M_ARENA_MAX, arenas) };
}
