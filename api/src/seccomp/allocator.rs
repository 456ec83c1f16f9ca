//! The C library's allocator, which reads files when it first needs to know something: how many processors there are, when the ninth
//! thread allocates; and whether memory is overcommitted, when the heap of a thread first shrinks.

use std::hint::black_box;
use std::io;
use std::thread::{self, available_parallelism};

use nix::libc;

/// The C library's own figure for each processor.
const ARENAS: usize = 8;
/// More than a heap keeps when it is free, in pieces that are too small to be mapped by themselves.
const PIECES: usize = 32;
const PIECE: usize = 64 << 10;

/// Has the allocator learn all that now, so that it opens nothing later.
///
/// # Errors
/// There can be no thread, whose heap would shrink.
pub(super) fn settle() -> io::Result<()> {
    let shrink = || drop(black_box((0..PIECES).map(|_| vec![1_u8; PIECE]).collect::<Vec<_>>()));
    // The first thread's heap is another one, and does not ask. A panic is out of the question here.
    let _ = thread::Builder::new().name("allocator".into()).spawn(shrink)?.join();
    let processors = available_parallelism().map_or(1, usize::from);
    let arenas = libc::c_int::try_from(processors.saturating_mul(ARENAS)).unwrap_or(libc::c_int::MAX);
    // SAFETY: takes numbers only, and sets a value that the allocator reads under its own lock. If it does not take it, all stays.
    unsafe { libc::mallopt(libc::M_ARENA_MAX, arenas) };
    Ok(())
}
