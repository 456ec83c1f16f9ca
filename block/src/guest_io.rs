//! System calls on guest memory: the kernel copies, so that neither a file that shrinks nor memory that goes away can
//! raise a signal in this process.

use std::io;
use std::os::fd::AsRawFd;

use vm_memory::VolatileSlice;

/// Buffers passed to one system call. Linux drivers send less; longer requests take several calls.
const BATCH: usize = 64;

/// Reads from a file into guest memory until `buffers` are full.
///
/// # Errors
/// Reading failed, or the file ends before.
pub(crate) fn read_file(file: &impl AsRawFd, offset: u64, buffers: &[VolatileSlice<'_>]) -> io::Result<()> {
    let fd = file.as_raw_fd();
    transfer(offset, buffers, io::ErrorKind::UnexpectedEof, |iovecs, count, offset| {
        // SAFETY: `iovecs` holds `count` entries that point into guest memory, which `buffers` keeps mapped; the guest
        // may change it at any time, but nothing here reads it as Rust values.
        unsafe { libc::preadv(fd, iovecs.as_ptr(), count, offset) }
    })
}

/// Writes guest memory to a file until `buffers` are written.
///
/// # Errors
/// Writing failed.
pub(crate) fn write_file(file: &impl AsRawFd, offset: u64, buffers: &[VolatileSlice<'_>]) -> io::Result<()> {
    let fd = file.as_raw_fd();
    transfer(offset, buffers, io::ErrorKind::WriteZero, |iovecs, count, offset| {
        // SAFETY: as in `read_file`.
        unsafe { libc::pwritev(fd, iovecs.as_ptr(), count, offset) }
    })
}

/// Copies from a mapping of this process into guest memory until `buffers` are full.
///
/// # Errors
/// A page of the mapping is not there (`EFAULT`): beyond the end of its file, or unreadable.
pub(crate) fn copy_mapping(address: u64, offset: u64, buffers: &[VolatileSlice<'_>]) -> io::Result<()> {
    transfer(offset, buffers, io::ErrorKind::UnexpectedEof, |iovecs, count, offset| {
        let slots = usize::try_from(count).unwrap_or(0);
        let bytes = iovecs[..slots].iter().map(|iovec| iovec.iov_len).sum();
        // An address beyond what pointers can say is none that anything is mapped at.
        let start =
            address.checked_add_signed(offset).and_then(|start| usize::try_from(start).ok()).unwrap_or(usize::MAX);
        let source = libc::iovec { iov_base: start as *mut libc::c_void, iov_len: bytes };
        // SAFETY: the destination is guest memory as in `read_file`. The source is not read by this process: the kernel
        // checks each page and answers EFAULT for one that is not there.
        unsafe { libc::process_vm_readv(libc::getpid(), iovecs.as_ptr(), slots as libc::c_ulong, &source, 1, 0) }
    })
}

/// Calls `call` with as many buffers as fit in one call, and again until all are done.
fn transfer(
    mut offset: u64,
    mut buffers: &[VolatileSlice<'_>],
    end: io::ErrorKind,
    mut call: impl FnMut(&[libc::iovec; BATCH], libc::c_int, libc::off_t) -> isize,
) -> io::Result<()> {
    // Bytes of the first buffer that are done.
    let mut done = 0;
    loop {
        while buffers.first().is_some_and(|buffer| buffer.len() == done) {
            (buffers, done) = (&buffers[1..], 0);
        }
        if buffers.is_empty() {
            return Ok(());
        }
        let mut iovecs = [libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 }; BATCH];
        let count = buffers.len().min(BATCH);
        for (index, (iovec, buffer)) in iovecs.iter_mut().zip(buffers).enumerate() {
            let skip = if index == 0 { done } else { 0 };
            let address = buffer.ptr_guard_mut().as_ptr().wrapping_add(skip);
            *iovec = libc::iovec { iov_base: address.cast(), iov_len: buffer.len() - skip };
        }
        let position = libc::off_t::try_from(offset).map_err(|_| io::ErrorKind::InvalidInput)?;
        #[allow(clippy::cast_possible_truncation, clippy::cast_possible_wrap, reason = "at most BATCH")]
        let result = call(&iovecs, count as libc::c_int, position);
        let mut moved = match usize::try_from(result) {
            Ok(0) => return Err(end.into()),
            Ok(moved) => moved,
            Err(_) => match io::Error::last_os_error() {
                error if error.kind() == io::ErrorKind::Interrupted => continue,
                error => return Err(error),
            },
        };
        offset += moved as u64;
        while let Some(buffer) = buffers.first() {
            let left = buffer.len() - done;
            if moved < left {
                done += moved;
                break;
            }
            moved -= left;
            (buffers, done) = (&buffers[1..], 0);
        }
    }
}
