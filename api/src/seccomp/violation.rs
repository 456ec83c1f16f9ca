//! What happens at a system call that is not allowed: the kernel sends SIGSYS to the thread, whose handler says which call it was, and
//! ends the process by the same signal.

use std::io;
use std::mem;
use std::ptr;

use nix::libc;

use super::names::name_of;

/// What `siginfo_t` is for SIGSYS (sigaction(2)).
#[repr(C)]
struct Violation {
    signal: libc::c_int,
    errno: libc::c_int,
    code: libc::c_int,
    _alignment: libc::c_int,
    _address: *mut libc::c_void,
    call: libc::c_int,
    _architecture: libc::c_uint,
}

/// Installs the handler.
///
/// # Errors
/// The system refused.
pub(super) fn install() -> io::Result<()> {
    // SAFETY: zero is a value of each of its fields.
    let mut action: libc::sigaction = unsafe { mem::zeroed() };
    action.sa_sigaction = report as *const () as usize;
    // The signal's default action comes back as the handler begins, and is not held up.
    action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_RESETHAND | libc::SA_NODEFER;
    // SAFETY: `action` lives through the call. The handler makes only calls that may be made in one (signal-safety(7)).
    let result = unsafe { libc::sigaction(libc::SIGSYS, &action, ptr::null_mut()) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

extern "C" fn report(_: libc::c_int, info: *const Violation, _: *mut libc::c_void) {
    // SAFETY: the kernel passes a `siginfo_t`, which is larger than its fields for SIGSYS, and lives as long as the handler runs.
    let call = unsafe { info.as_ref() }.map_or(-1, |info| info.call);
    let mut text = Text::default();
    text.add(b"bellows: the process ends: its filter of system calls does not allow ");
    text.add(name_of(call.into()).as_bytes());
    text.add(b" (");
    text.number(call.unsigned_abs());
    text.add(b")\n");
    let text = text.bytes();
    // SAFETY: the buffer lives through the call. That it is written is only hoped for. The second call takes a number.
    unsafe {
        libc::write(libc::STDERR_FILENO, text.as_ptr().cast(), text.len());
        libc::raise(libc::SIGSYS);
    }
}

/// A line without an allocation.
struct Text {
    buffer: [u8; 160],
    used: usize,
}

impl Default for Text {
    fn default() -> Self {
        Self { buffer: [0; 160], used: 0 }
    }
}

impl Text {
    /// Adds as much as there is room for.
    fn add(&mut self, bytes: &[u8]) {
        let room = self.buffer.get_mut(self.used..).unwrap_or_default();
        let count = bytes.len().min(room.len());
        room.iter_mut().zip(bytes).for_each(|(to, from)| *to = *from);
        self.used += count;
    }

    fn number(&mut self, number: u32) {
        if number >= 10 {
            self.number(number / 10);
        }
        self.add(&[b'0' + (number % 10) as u8]);
    }

    fn bytes(&self) -> &[u8] {
        self.buffer.get(..self.used).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_has_what_fits() {
        let mut text = Text::default();
        text.number(4_294_967_295);
        text.add(b" of ");
        text.number(0);
        assert_eq!(text.bytes(), b"4294967295 of 0");
        text.add(&[b'x'; 200]);
        assert_eq!(text.bytes().len(), 160);
        assert_eq!((mem::size_of::<Violation>(), name_of(libc::SYS_reboot), name_of(-1)), (32, "reboot", "unknown"));
    }
}
