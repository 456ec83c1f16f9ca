//! Carries bytes between the monitor's connection and our end of a stream, each stream on a thread of its own.
//!
//! Only `poll(2)` blocks here, and the end of the process's instance always wakes it. A direction has one buffer and reads
//! only when that is empty: a slow side makes the other wait.

use std::io::{self, Write};
use std::net::Shutdown;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread;
use std::time::Instant;

use bellows_protocol::DRAIN_LIMIT;
use bellows_protocol::stream::{StreamName, answer_line};
use nix::errno::Errno;
use nix::sys::eventfd::EventFd;
use nix::unistd::{read, write};

use crate::sys;

use super::permits::Permit;

/// Bytes of one read: the capacity of a pipe. Untouched memory costs nothing.
const BUFFER_BYTES: usize = 64 << 10;
/// Stack of a relay's thread, which needs little.
const STACK_BYTES: usize = 64 << 10;

/// The monitor has closed its end, or a half of it.
const GONE: Events = libc::POLLRDHUP;
const NOTHING: Events = 0;

/// `POLLIN` and the like. (`nix` has no `POLLRDHUP`.)
type Events = libc::c_short;

/// One connected stream.
#[derive(Debug)]
pub(super) struct Relay {
    /// To the monitor, which waits for the answer.
    pub connection: UnixStream,
    /// Our end of the pipe or terminal; does not block.
    pub end: Arc<OwnedFd>,
    /// Readable when the relay must stop, even with bytes left.
    pub stop: Arc<EventFd>,
    /// Readable when the process has ended.
    pub ended: Arc<OwnedFd>,
    /// The right to be connected.
    pub permit: Permit,
}

impl Relay {
    /// Carries stream `name` to its end, on a thread.
    ///
    /// # Errors
    /// No thread is left.
    pub(super) fn start(self, name: StreamName) -> io::Result<()> {
        let thread = thread::Builder::new().name("stream".into()).stack_size(STACK_BYTES);
        thread.spawn(move || {
            if let Err(error) = self.carry(name) {
                tracing::warn!(%name, %error, "a stream broke off");
            }
        })?;
        Ok(())
    }

    fn carry(self, name: StreamName) -> io::Result<()> {
        (&self.connection).write_all(answer_line(Ok(())).as_bytes())?;
        self.connection.set_nonblocking(true)?;
        let finished = match name {
            StreamName::Stdin => self.carry_input()?,
            StreamName::Stdout | StreamName::Stderr => self.carry_output(None)?,
            StreamName::Terminal => self.carry_output(Some(Flow::new()))?,
        };
        // The permit is the first here to be the last that is dropped: nobody else connects before this connection is closed.
        let Self { permit: _permit, connection, end, stop, .. } = self;
        // A process that still writes gets SIGPIPE, one that still reads gets the end of file; a terminal is hung up.
        drop(end);
        if finished {
            // The monitor recognises an end only while the connection stands, and then closes it.
            connection.shutdown(Shutdown::Write)?;
            wait([watch(&connection, GONE), watch(&stop, libc::POLLIN)], None)?;
        }
        Ok(())
    }

    /// Carries the monitor's input, until its end or until the reader is gone. Returns `false`: the monitor need not
    /// learn of the process's end.
    fn carry_input(&self) -> io::Result<bool> {
        let mut flow = Flow::new();
        loop {
            let (source, sink) = if flow.is_empty() {
                (watch(&self.connection, libc::POLLIN), watch(&self.end, NOTHING))
            } else {
                (self.stopped(), watch(&self.end, libc::POLLOUT))
            };
            let [stopped, _, sink] = wait([self.stopped(), source, sink], None)?;
            let unread = sink & libc::POLLERR != 0;
            if stopped != NOTHING || unread || flow.step(&self.connection, &self.end, usize::MAX)? != Step::Goes {
                return Ok(false);
            }
        }
    }

    /// Carries the process's output, and for a terminal its input, to the end. Returns `false` if the output is
    /// incomplete: the monitor is gone, or the relay must stop.
    fn carry_output(&self, mut typed: Option<Flow>) -> io::Result<bool> {
        let mut flow = Flow::new();
        let mut deadline = None;
        // Bytes left to take, once known.
        let mut last = u64::MAX;
        loop {
            let mut at_connection = GONE;
            let mut at_end = NOTHING;
            if flow.is_empty() {
                at_end |= libc::POLLIN;
            } else {
                at_connection |= libc::POLLOUT;
            }
            match &typed {
                Some(typed) if typed.is_empty() => at_connection |= libc::POLLIN,
                Some(_) => at_end |= libc::POLLOUT,
                None => {}
            }
            let ended = if deadline.is_none() { watch(&self.ended, libc::POLLIN) } else { self.stopped() };
            let watched =
                [self.stopped(), self.watch(&self.connection, at_connection), self.watch(&self.end, at_end), ended];
            let pause = deadline.filter(|_| last == u64::MAX);
            let [stopped, connection, _, ended] = wait(watched, pause)?;
            if stopped != NOTHING || connection & (GONE | libc::POLLHUP | libc::POLLERR) != 0 {
                return Ok(false);
            }
            if let Some(flow) = &mut typed
                && flow.step(&self.connection, &self.end, usize::MAX)? != Step::Goes
            {
                // The reader is gone; there may still be output.
                typed = None;
            }
            match flow.step(&self.end, &self.connection, usize::try_from(last - flow.taken).unwrap_or(usize::MAX))? {
                Step::Goes => {}
                Step::SourceEnded => return Ok(true),
                Step::SinkGone => return Ok(false),
            }
            // Processes that it has left behind may hold the stream for ever. Its own output is still taken.
            if deadline.is_none() && ended != NOTHING {
                deadline = Some(Instant::now() + DRAIN_LIMIT);
            }
            if last == u64::MAX && deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                last = flow.taken + sys::bytes_waiting(&self.end)?;
            }
            if flow.taken >= last && flow.is_empty() {
                return Ok(true);
            }
        }
    }

    fn stopped(&self) -> Watched<'_> {
        watch(&self.stop, libc::POLLIN)
    }

    /// Watches `descriptor`, unless no event of it is awaited: `poll` would report a hang-up again and again.
    fn watch<'a>(&'a self, descriptor: &'a impl AsFd, wanted: Events) -> Watched<'a> {
        if wanted == NOTHING { self.stopped() } else { watch(descriptor, wanted) }
    }
}

/// Bytes on their way in one direction.
#[derive(Debug)]
struct Flow {
    buffer: Vec<u8>,
    pending: Range<usize>,
    /// Number of bytes read so far.
    taken: u64,
}

#[derive(Debug, Eq, PartialEq)]
enum Step {
    /// More bytes may come.
    Goes,
    /// Everything was read.
    SourceEnded,
    /// The reader is gone.
    SinkGone,
}

impl Flow {
    fn new() -> Self {
        Self { buffer: vec![0; BUFFER_BYTES], pending: 0..0, taken: 0 }
    }

    fn is_empty(&self) -> bool {
        self.pending.is_empty()
    }

    /// Reads up to `most` bytes if nothing is pending, and writes the pending bytes, both without blocking.
    fn step(&mut self, source: &impl AsFd, sink: &impl AsFd, most: usize) -> io::Result<Step> {
        if self.is_empty() {
            let most = most.min(BUFFER_BYTES);
            if most == 0 {
                return Ok(Step::Goes);
            }
            match read(source, &mut self.buffer[..most]) {
                // A terminal whose other end is closed gives EIO.
                Ok(0) | Err(Errno::EIO | Errno::ECONNRESET) => return Ok(Step::SourceEnded),
                Ok(count) => {
                    self.pending = 0..count;
                    self.taken += count as u64;
                }
                Err(Errno::EAGAIN | Errno::EINTR) => return Ok(Step::Goes),
                Err(error) => return Err(error.into()),
            }
        }
        match write(sink, &self.buffer[self.pending.clone()]) {
            Ok(count) => self.pending.start += count,
            Err(Errno::EPIPE | Errno::ECONNRESET | Errno::EIO) => return Ok(Step::SinkGone),
            Err(Errno::EAGAIN | Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
        Ok(Step::Goes)
    }
}

/// A descriptor and the awaited events.
#[derive(Clone, Copy)]
struct Watched<'a>(BorrowedFd<'a>, Events);

fn watch(descriptor: &impl AsFd, wanted: Events) -> Watched<'_> {
    Watched(descriptor.as_fd(), wanted)
}

/// Waits for an event of one of `watched`, or for `deadline`; returns the events of each.
fn wait<const N: usize>(watched: [Watched<'_>; N], deadline: Option<Instant>) -> io::Result<[Events; N]> {
    let entry = |Watched(descriptor, events)| libc::pollfd { fd: descriptor.as_raw_fd(), events, revents: NOTHING };
    let mut entries = watched.map(entry);
    loop {
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        // Rounded up, so that this does not spin through the last millisecond.
        let timeout = left.map_or(-1, |left| i32::try_from(left.as_millis().saturating_add(1)).unwrap_or(i32::MAX));
        match sys::poll(&mut entries, timeout) {
            Ok(()) => return Ok(entries.map(|entry| entry.revents)),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
#[path = "relay_test.rs"]
mod tests;
