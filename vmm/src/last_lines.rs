//! What the kernel of a guest has printed last, for the error when it dies.

use std::collections::VecDeque;
use std::fmt;
use std::io::{self, Write};
use std::sync::Arc;

use bellows_memory::sync::Mutex;

/// Bytes that are kept: an oops with its call trace, and the panic after it.
const KEPT: usize = 8 << 10;
/// Most characters of a line.
const MAX_LINE: usize = 160;
/// Lines of an error, with that of the panic.
const SHOWN: usize = 6;
/// How the line begins that says why (kernel/panic.c), behind the time.
const PANIC: &str = "Kernel panic - not syncing";

/// The end of a kernel's console. Cheap to clone.
#[derive(Clone, Default)]
pub(crate) struct LastLines(Arc<Mutex<VecDeque<u8>>>);

/// A panic of a guest's kernel, in its own words: whatever a guest says, printable and in bounds.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct GuestPanic {
    lines: Arc<[String]>,
    /// The line that says why.
    why: usize,
}

impl Write for LastLines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut kept = self.0.lock();
        let last = &bytes[bytes.len().saturating_sub(KEPT)..];
        let surplus = (kept.len() + last.len()).saturating_sub(KEPT);
        kept.drain(..surplus);
        kept.extend(last);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl LastLines {
    /// The panic that it tells of, if it does.
    pub(crate) fn panic(&self) -> Option<GuestPanic> {
        let bytes: Vec<u8> = self.0.lock().iter().copied().collect();
        let text = String::from_utf8_lossy(&bytes);
        let lines = text.lines().map(printable).filter(|line| !line.is_empty());
        let lines: Arc<[String]> = lines.collect();
        let why = lines.iter().position(|line| line.contains(PANIC))?;
        Some(GuestPanic { lines, why })
    }
}

impl GuestPanic {
    /// The last lines of the console.
    #[must_use]
    pub fn lines(&self) -> &[String] {
        &self.lines
    }
}

/// On one line: why, and what came just before.
impl fmt::Display for GuestPanic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = &self.lines[(self.why + 1).saturating_sub(SHOWN)..=self.why];
        write!(f, "the guest's kernel panicked: {}", shown.join(" | "))
    }
}

fn printable(line: &str) -> String {
    line.trim().chars().map(|c| if c.is_control() { '?' } else { c }).take(MAX_LINE).collect()
}

/// Passes on to two writers.
pub(crate) struct Both<A, B>(pub(crate) A, pub(crate) B);

impl<A: Write, B: Write> Write for Both<A, B> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write_all(bytes)?;
        self.1.write_all(bytes)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()?;
        self.1.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(text: &[u8]) -> Option<GuestPanic> {
        let mut last = LastLines::default();
        // As a port gives it.
        text.iter().for_each(|byte| last.write_all(&[*byte]).unwrap());
        last.panic()
    }

    #[test]
    fn a_panic_is_told_with_what_came_before() {
        let text = b"[    0.1] one\r\n[    0.2] two\r\n\r\n[    0.3] Kernel panic - not syncing: no init\r\n[    0.4] CPU: 0\r\n";
        let panic = said(text).unwrap();
        assert_eq!(panic.lines().len(), 4);
        let shown = "the guest's kernel panicked: [    0.1] one | [    0.2] two | [    0.3] Kernel panic - not syncing: no init";
        assert_eq!(panic.to_string(), shown);
        assert_eq!(said(b"[    0.1] reboot: Restarting system\r\n"), None);
        assert_eq!(said(b""), None);
    }

    #[test]
    fn whatever_a_guest_says_is_bounded_and_printable() {
        let mut text = b"Kernel panic - not syncing: lost\n".repeat(1000);
        text.extend(b"Kernel panic - not syncing: \x1b[31m\xff\xfe".iter().chain(&[b'x'; 500]));
        let panic = said(&text).unwrap();
        assert!(panic.lines().iter().map(String::len).sum::<usize>() <= KEPT, "{panic}");
        let last = panic.lines().last().unwrap();
        assert!(last.chars().count() == MAX_LINE && last.contains("?[31m"), "{last}");
        let mut last = LastLines::default();
        last.write_all(&vec![b'x'; 3 * KEPT]).unwrap();
        assert_eq!(last.0.lock().len(), KEPT);
    }
}
