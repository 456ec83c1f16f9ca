//! Streams of processes, each over a connection of its own.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Weak};
use std::time::Duration;

use bellows_memory::sync::Mutex;
use bellows_protocol::stream::{
    AnswerError, MAX_ANSWER_LINE, StreamRequest, parse_answer_line, read_line, request_line,
};
use bellows_protocol::{STREAM_PORT, stream::StreamName};
use nix::poll::PollFlags;

use super::{AgentClient, AgentError, SHORT, handshake, shown};
use crate::kind::ErrorKind;
use crate::poll::poll;

/// A connected stream of a process: read the process's output from it, write the process's input to it.
///
/// It may be read and written at once, by clones or references. A reader that stops makes the process wait, as a full pipe does,
/// and a writer waits for the process. When the last clone is dropped, the process's end of a pipe is closed, and a terminal is
/// hung up (SIGHUP).
///
/// The end of the output differs from a stream that broke off, for example with the VM: then [`Read::read`] fails with
/// [`io::ErrorKind::UnexpectedEof`] and names the stream.
#[derive(Clone, Debug)]
pub struct Stream {
    socket: Arc<UnixStream>,
    request: Arc<StreamRequest>,
}

impl Stream {
    /// Which stream it is.
    #[must_use]
    pub fn name(&self) -> StreamName {
        self.request.stream
    }

    /// The process.
    pub(crate) fn request(&self) -> &StreamRequest {
        &self.request
    }

    /// Ends the input: the process reads the end of file after all that was written. A terminal has no such end and is hung up.
    ///
    /// # Errors
    /// Those of `shutdown(2)`.
    pub fn finish(&self) -> io::Result<()> {
        self.socket.shutdown(Shutdown::Write)
    }

    /// Whether the connection broke off, rather than ended.
    fn broke_off(&self) -> io::Result<bool> {
        let [events] = poll([(self.socket.as_fd(), PollFlags::empty())], Some(Duration::ZERO))?;
        Ok(events.contains(PollFlags::POLLHUP))
    }
}

impl Read for &Stream {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let count = (&*self.socket).read(bytes)?;
        if count == 0 && !bytes.is_empty() && self.broke_off()? {
            let StreamRequest { instance, process, stream } = &*self.request;
            let message = format!("{stream} of process {process} of instance {instance} broke off");
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, message));
        }
        Ok(count)
    }
}

impl Write for &Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        (&*self.socket).write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Read for Stream {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        (&*self).read(bytes)
    }
}

impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        (&*self).write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl AgentClient {
    /// Connects to a stream of a process. The connection ends with the VM.
    pub(crate) fn connect_stream(&self, request: StreamRequest) -> Result<Stream, AgentError> {
        self.connection("stream")?;
        let failed = |source| AgentError::Connect { path: self.uds_path.clone(), source };
        let socket = Arc::new(handshake(&self.uds_path, STREAM_PORT, SHORT).map_err(failed)?);
        self.streams.add(&socket);
        let lost = |message| AgentError::Lost { call: "stream", message };
        (&*socket).write_all(request_line(&request).as_bytes()).map_err(|error| lost(error.to_string()))?;
        let answer = read_line(&socket, MAX_ANSWER_LINE, SHORT).map_err(|error| match error.kind() {
            io::ErrorKind::TimedOut => AgentError::Timeout { call: "stream", limit: SHORT },
            _ => lost(error.to_string()),
        })?;
        match parse_answer_line(&answer) {
            Ok(()) => {}
            Err(AnswerError::Refused(why)) => {
                return Err(AgentError::Refused { call: "stream", message: shown(&why), reason: ErrorKind::Conflict });
            }
            Err(error) => return Err(lost(shown(&error.to_string()))),
        }
        socket.set_write_timeout(None).map_err(failed)?;
        Ok(Stream { socket, request: Arc::new(request) })
    }
}

/// The streams that are open, so that they end with the VM.
#[derive(Default)]
pub(super) struct OpenStreams(Mutex<Open>);

#[derive(Default)]
struct Open {
    ended: bool,
    sockets: Vec<Weak<UnixStream>>,
}

impl OpenStreams {
    fn add(&self, socket: &Arc<UnixStream>) {
        let mut open = self.0.lock();
        if open.ended {
            end(socket);
        }
        open.sockets.retain(|socket| socket.strong_count() > 0);
        open.sockets.push(Arc::downgrade(socket));
    }

    /// The VM has ended.
    pub(super) fn end(&self) {
        let mut open = self.0.lock();
        open.ended = true;
        open.sockets.drain(..).filter_map(|socket| socket.upgrade()).for_each(|socket| end(&socket));
    }
}

fn end(socket: &UnixStream) {
    // It may be closed already.
    let _ = socket.shutdown(Shutdown::Both);
}

#[cfg(test)]
#[path = "stream_test.rs"]
mod tests;
