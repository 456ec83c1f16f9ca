//! The system call that installs a filter. `seccompiler` has none that has the kernel log what a filter does not allow.

use std::io;

use nix::libc;
use nix::sys::prctl::set_no_new_privs;
use seccompiler::BpfProgram;

/// Which threads get a filter.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Threads {
    /// The one that calls.
    This,
    /// All of the process.
    All,
}

/// Installs a filter, whose violations the kernel logs.
///
/// # Errors
/// The kernel has no filters, or refused this one; or a thread has one of its own.
pub(super) fn install(filter: &BpfProgram, threads: Threads) -> io::Result<()> {
    let Ok(length @ 1..) = u16::try_from(filter.len()) else { return Err(io::ErrorKind::InvalidInput.into()) };
    set_no_new_privs()?;
    let program = libc::sock_fprog { len: length, filter: filter.as_ptr().cast_mut().cast() };
    let flags = match threads {
        Threads::This => libc::SECCOMP_FILTER_FLAG_LOG,
        Threads::All => libc::SECCOMP_FILTER_FLAG_LOG | libc::SECCOMP_FILTER_FLAG_TSYNC,
    };
    // SAFETY: `program` and the instructions that it points to live through the call, which only reads them: `seccompiler`'s instructions
    // have the layout of `sock_filter`.
    let result = unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, &raw const program) };
    match result {
        0 => Ok(()),
        1.. => Err(io::Error::other(format!("thread {result} has a filter of its own"))),
        _ => Err(io::Error::last_os_error()),
    }
}
