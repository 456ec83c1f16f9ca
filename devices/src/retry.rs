//! System calls that a signal may interrupt.

use std::io;

/// Makes a system call that moves bytes, again for as long as a signal interrupts it: the bytes moved.
///
/// # Errors
/// The system's, of another kind.
pub(crate) fn retry(mut call: impl FnMut() -> isize) -> io::Result<usize> {
    loop {
        match usize::try_from(call()) {
            Ok(bytes) => return Ok(bytes),
            Err(_) => match io::Error::last_os_error() {
                error if error.kind() == io::ErrorKind::Interrupted => {}
                error => return Err(error),
            },
        }
    }
}
