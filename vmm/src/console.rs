//! Where the serial console goes: a file with its own writer thread, so that a slow or stalled reader delays neither the
//! guest nor the end of the VM.
//!
//! Unread output is kept up to a bound. Output beyond that is lost, and a line in the output says how much.

use std::fs::File;
use std::io::{self, Write};
use std::mem;
use std::os::fd::AsFd;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bellows_memory::threads::{self, ThreadRole};
use nix::poll::PollFlags;

use crate::poll::poll;

/// Most bytes that wait for the reader; as many again may be in the current write.
const MAX_WAITING: usize = 256 << 10;
/// Bytes that a guest may write to a regular file.
const MAX_FILE: u64 = 64 << 20;
/// How long the end of a VM waits for the reader to take the rest.
const FLUSH_LIMIT: Duration = Duration::from_secs(1);

/// The host's end of a console. Dropping it closes it.
pub(crate) struct Console {
    shared: Arc<Shared>,
}

/// The guest's end. Writing to it neither waits nor fails.
pub(crate) struct ConsoleInput {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    waiting: Vec<u8>,
    /// Bytes lost for lack of room after [`State::waiting`].
    lost: u64,
    /// Further output is dropped.
    closed: bool,
    /// The thread is done.
    ended: bool,
}

impl Console {
    /// Starts to write the guest's output to `output`. A regular file takes [`MAX_FILE`] of it.
    ///
    /// # Errors
    /// The thread could not be made.
    pub(crate) fn start(output: File) -> io::Result<(Self, ConsoleInput)> {
        let left = output.metadata()?.is_file().then_some(MAX_FILE);
        Self::with_limit(output, left)
    }

    fn with_limit(output: File, left: Option<u64>) -> io::Result<(Self, ConsoleInput)> {
        let shared = Arc::new(Shared::default());
        let mut output = Output { file: output, left };
        let thread = shared.clone();
        threads::spawn(ThreadRole::Console, "console", Some(256 << 10), move || {
            let ended = EndOnDrop(thread);
            if let Err(error) = ended.0.forward(&mut output) {
                tracing::warn!(%error, "cannot write the serial console any more");
            }
            drop(output);
        })?;
        Ok((Self { shared: shared.clone() }, ConsoleInput { shared }))
    }

    /// Drops further output, and waits a moment for the reader to take the rest. If the reader does not, the thread stays
    /// behind until the next read or the end of the process.
    pub(crate) fn close(&self) {
        let mut state = self.shared.state();
        if mem::replace(&mut state.closed, true) {
            return;
        }
        self.shared.changed.notify_all();
        let waited = self.shared.changed.wait_timeout_while(state, FLUSH_LIMIT, |state| !state.ended);
        if !waited.unwrap_or_else(PoisonError::into_inner).0.ended {
            tracing::warn!("the serial console has no reader: its last output is lost");
        }
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        self.close();
    }
}

impl Write for ConsoleInput {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.shared.push(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, bytes: &[u8]) {
        let mut state = self.state();
        if state.closed || state.ended {
            return;
        }
        // After a loss, later output must not take the place of the lost bytes.
        let room = if state.lost == 0 { MAX_WAITING - state.waiting.len() } else { 0 };
        let (kept, lost) = bytes.split_at(room.min(bytes.len()));
        if state.waiting.is_empty() {
            self.changed.notify_all();
        }
        state.waiting.extend_from_slice(kept);
        state.lost += lost.len() as u64;
    }

    /// Writes until the console is closed or the output fails.
    fn forward(&self, output: &mut Output) -> io::Result<()> {
        let mut batch = Vec::new();
        while self.take(&mut batch) {
            output.write(&batch)?;
        }
        Ok(())
    }

    /// Waits for output; `false` once no more will come.
    fn take(&self, batch: &mut Vec<u8>) -> bool {
        batch.clear();
        let waited = self.changed.wait_while(self.state(), |state| state.waiting.is_empty() && !state.closed);
        let mut state = waited.unwrap_or_else(PoisonError::into_inner);
        mem::swap(&mut state.waiting, batch);
        match mem::take(&mut state.lost) {
            0 => {}
            lost => {
                batch.extend(format!("\n[{lost} bytes of the console are lost: its reader was too slow]\n").bytes())
            }
        }
        !batch.is_empty()
    }
}

/// Wakes all waiters when the thread ends, even by a panic.
struct EndOnDrop(Arc<Shared>);

impl Drop for EndOnDrop {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.ended = true;
        state.waiting = Vec::new();
        self.0.changed.notify_all();
    }
}

/// A file with a limit.
struct Output {
    file: File,
    /// Bytes left of the limit, if there is one.
    left: Option<u64>,
}

impl Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        let Some(left) = self.left else { return write_all(&self.file, bytes) };
        let fits = usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len());
        write_all(&self.file, &bytes[..fits])?;
        self.left = Some(left - fits as u64);
        if fits < bytes.len() && left > 0 {
            self.left = Some(0);
            write_all(&self.file, b"\n[the console's file is full: later output is lost]\n")?;
        }
        Ok(())
    }
}

/// Writes all of `bytes`, even to a non-blocking descriptor.
fn write_all(mut file: &File, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match file.write(bytes) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => bytes = &bytes[written..],
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => await_room(file)?,
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn await_room(file: &File) -> io::Result<()> {
    poll([(file.as_fd(), PollFlags::POLLOUT)], None).map(drop)
}

/// This process's standard output, apart from the lock that its other writers take.
///
/// # Errors
/// No descriptor is left.
pub(crate) fn standard_output() -> io::Result<File> {
    Ok(io::stdout().as_fd().try_clone_to_owned()?.into())
}

#[cfg(test)]
#[path = "console_test.rs"]
mod tests;
