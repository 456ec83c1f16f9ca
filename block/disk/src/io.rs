//! System calls on guest memory. The kernel copies, so that neither a shrinking file nor vanishing memory raises a signal in this
//! process.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::AsRawFd;

use vm_memory::VolatileSlice;

/// Buffers passed to one system call. Linux drivers send less; longer requests take several calls.
const BATCH: usize = 64;

/// Reads from a file into guest memory until `buffers` are full.
///
/// # Errors
/// Reading failed, or the file ends early.
pub fn read_file(file: &impl AsRawFd, offset: u64, buffers: &[VolatileSlice<'_>]) -> io::Result<()> {
    let fd = file.as_raw_fd();
    transfer(offset, buffers, io::ErrorKind::UnexpectedEof, |iovecs, offset| {
        match iovecs {
            // Most requests are one piece: then the kernel does not copy a list.
            // SAFETY: as below, for the one entry.
            [one] => unsafe { libc::pread(fd, one.iov_base, one.iov_len, offset) },
            // SAFETY: the entries point into guest memory, which `buffers` keeps mapped; the guest may change it at any
            // time, but nothing here reads it as Rust values.
            many => unsafe { libc::preadv(fd, many.as_ptr(), count(many), offset) },
        }
    })
}

/// Writes guest memory to a file until `buffers` are written.
///
/// # Errors
/// Writing failed.
pub fn write_file(file: &impl AsRawFd, offset: u64, buffers: &[VolatileSlice<'_>]) -> io::Result<()> {
    let fd = file.as_raw_fd();
    transfer(offset, buffers, io::ErrorKind::WriteZero, |iovecs, offset| {
        // SAFETY: as in `read_file`.
        unsafe { libc::pwritev(fd, iovecs.as_ptr(), count(iovecs), offset) }
    })
}

/// Copies from a mapping of this process into guest memory until `buffers` are full, as a guest reads it: the kernel looks the pages up.
///
/// # Errors
/// The mapping lacks a page (`EFAULT`): it is beyond the end of its file, or unreadable.
#[cfg(any(test, feature = "testing"))]
pub fn copy_mapping(address: u64, offset: u64, buffers: &[VolatileSlice<'_>]) -> io::Result<()> {
    transfer(offset, buffers, io::ErrorKind::UnexpectedEof, |iovecs, offset| {
        let bytes = iovecs.iter().map(|iovec| iovec.iov_len).sum();
        // Saturates: an address that overflows `usize` is never mapped, so the copy fails.
        let start =
            address.checked_add_signed(offset).and_then(|start| usize::try_from(start).ok()).unwrap_or(usize::MAX);
        let source = libc::iovec { iov_base: start as *mut libc::c_void, iov_len: bytes };
        // SAFETY: the destination is guest memory as in `read_file`. The source is not read by this process: the kernel
        // checks each page and answers EFAULT for a missing one.
        unsafe { libc::process_vm_readv(libc::getpid(), iovecs.as_ptr(), iovecs.len() as libc::c_ulong, &source, 1, 0) }
    })
}

/// Length of a list for a system call.
#[allow(clippy::cast_possible_truncation, clippy::cast_possible_wrap, reason = "at most BATCH")]
fn count(iovecs: &[libc::iovec]) -> libc::c_int {
    iovecs.len() as libc::c_int
}

/// Calls `call` with as many buffers as fit in one call, and again until all are done.
fn transfer(
    mut offset: u64,
    mut buffers: &[VolatileSlice<'_>],
    end: io::ErrorKind,
    mut call: impl FnMut(&[libc::iovec], libc::off_t) -> isize,
) -> io::Result<()> {
    // Bytes of the first buffer that are done.
    let mut done = 0;
    // Uninitialised: clearing a kibibyte for each request would cost measurable time.
    let mut iovecs = [const { MaybeUninit::uninit() }; BATCH];
    loop {
        while buffers.first().is_some_and(|buffer| buffer.len() == done) {
            (buffers, done) = (&buffers[1..], 0);
        }
        if buffers.is_empty() {
            return Ok(());
        }
        let filled = iovecs.iter_mut().zip(buffers).enumerate().map(|(index, (iovec, buffer))| {
            let skip = if index == 0 { done } else { 0 };
            let address = buffer.ptr_guard_mut().as_ptr().wrapping_add(skip);
            iovec.write(libc::iovec { iov_base: address.cast(), iov_len: buffer.len() - skip });
        });
        let filled = filled.count();
        // SAFETY: the loop above has written the first `filled` entries, and `MaybeUninit` has the layout of what it holds.
        let entries = unsafe { std::slice::from_raw_parts(iovecs.as_ptr().cast::<libc::iovec>(), filled) };
        let position = libc::off_t::try_from(offset).map_err(|_| io::ErrorKind::InvalidInput)?;
        let mut moved = match usize::try_from(call(entries, position)) {
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

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// However little a call moves, every byte gets to its place.
        #[test]
        fn short_calls_are_continued(lengths in vec(0_usize..40, 0..200), moves in vec(1_usize..90, 1..8)) {
            const OFFSET: usize = 7;
            let total: usize = lengths.iter().sum();
            let source: Vec<u8> = (0..OFFSET + total).map(|n| (n % 251) as u8).collect();
            let mut buffers: Vec<Vec<u8>> = lengths.into_iter().map(|length| vec![0; length]).collect();
            let slices: Vec<_> = buffers.iter_mut().map(|buffer| VolatileSlice::from(&mut buffer[..])).collect();
            let mut moves = moves.iter().cycle();
            transfer(OFFSET as u64, &slices, io::ErrorKind::UnexpectedEof, |iovecs, offset| {
                let (mut left, mut moved) = (*moves.next().unwrap(), 0);
                for iovec in iovecs {
                    let count = left.min(iovec.iov_len);
                    let from = &source[usize::try_from(offset).unwrap() + moved..][..count];
                    // SAFETY: the entry names a buffer of the test, or the rest of one.
                    unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), iovec.iov_base.cast(), count) };
                    (left, moved) = (left - count, moved + count);
                }
                isize::try_from(moved).unwrap()
            })
            .unwrap();
            prop_assert_eq!(buffers.concat(), &source[OFFSET..]);
        }
    }
}
