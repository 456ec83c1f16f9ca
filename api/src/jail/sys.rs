//! The system calls of a jail that have no safe wrapper.

use std::io;

use nix::libc;
use nix::unistd::{ForkResult, fork as nix_fork};

/// Makes a child of this process, which has one thread.
pub(super) fn fork() -> nix::Result<ForkResult> {
    // SAFETY: `bellows jail` makes no thread, so no lock is held by one that the child lacks.
    unsafe { nix_fork() }
}

/// Has all descriptors from `first` on close when a program is executed, those inherited included.
pub(super) fn close_on_exec(first: libc::c_uint) -> io::Result<()> {
    const CLOSE_RANGE_CLOEXEC: libc::c_int = 4;
    // SAFETY: takes numbers only, and closes nothing now: no owner of a descriptor loses it.
    let result = unsafe { libc::close_range(first, libc::c_uint::MAX, CLOSE_RANGE_CLOEXEC) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
