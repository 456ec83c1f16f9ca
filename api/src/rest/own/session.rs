//! A process whose streams go over the connection of the request that has started it: `POST /instances/{id}/exec` with an upgrade.
//!
//! It ends with the connection. A client that reads slowly makes the process wait, as one that writes slowly does.

use std::io::{self, BufReader, Cursor, Read, Write};
use std::net::Shutdown;
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use bellows_vmm::{Forwarding, InstanceError, Process, Stdio, Stream, StreamName};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use serde_json::json;
use tokio_io_timeout::TimeoutStream;

use super::bodies::{Ended, Exec, Terminal};
use super::exec::{kill, start};
use super::host::{LIMIT, of_instance};
use super::table::Entry;
use crate::rest::fault::Fault;
use crate::rest::frames::{Frame, Kind};

/// What the server reads from and writes to.
pub(crate) type Connection = TokioIo<Pin<Box<TimeoutStream<tokio::net::UnixStream>>>>;

/// A process that ends with this.
pub(crate) struct Session {
    process: Process,
    stdio: Stdio,
}

impl Session {
    /// Starts the process. Its output waits.
    pub(crate) fn start(entry: &Entry, wanted: &Exec) -> Result<Self, Fault> {
        if wanted.stdin.is_some() {
            return Err(Fault::new("`stdin` comes over the connection where that is upgraded: expected `open_stdin`"));
        }
        let (process, stdio) = start(entry, wanted)?;
        Ok(Self { process, stdio })
    }

    /// Passes everything on until the process has ended, or the client has left. On threads of its own; `guard` is dropped at the end.
    ///
    /// # Errors
    /// The system has no descriptor or no thread. The process ends then.
    pub(crate) fn run(self, upgraded: Upgraded, guard: impl Send + 'static) -> io::Result<()> {
        let parts = upgraded.downcast::<Connection>().map_err(|_| io::Error::other("it is another connection"))?;
        let stream = parts.io.into_inner();
        let socket = UnixStream::from(stream.as_ref().get_ref().get_ref().as_fd().try_clone_to_owned()?);
        // Its runtime needs it no more.
        drop(stream);
        socket.set_nonblocking(false)?;
        let source = Cursor::new(parts.read_buf).chain(socket.try_clone()?);
        let session = Arc::new(self);
        let client = Client { socket: Arc::new(Mutex::new(socket)) };
        let ending = session.clone();
        let (tell, told) = (client.clone(), client);
        thread::Builder::new().name("session".into()).stack_size(256 << 10).spawn(move || {
            let end = ending.serve(source, &tell);
            told.end(end);
            drop((ending, guard));
        })?;
        Ok(())
    }

    /// Returns how the process has ended.
    fn serve(self: &Arc<Self>, source: impl Read + Send + 'static, client: &Client) -> Result<Ended, Fault> {
        let connect = |name| self.process.connect(name).map_err(of_instance);
        let (outputs, input) = match self.stdio {
            Stdio::Terminal(_) => {
                let terminal = connect(StreamName::Terminal)?;
                (vec![client.forward(&terminal, Kind::Stdout)?], Some(terminal))
            }
            Stdio::Pipes { stdin } => {
                let stdout = client.forward(&connect(StreamName::Stdout)?, Kind::Stdout)?;
                let stderr = client.forward(&connect(StreamName::Stderr)?, Kind::Stderr)?;
                (vec![stdout, stderr], stdin.then(|| connect(StreamName::Stdin)).transpose()?)
            }
        };
        let listening = self.clone();
        let listen = move || {
            if let Err(error) = listening.listen(source, input) {
                tracing::debug!(%error, process = %listening.process.id(), "a client is not heard any more");
            }
            kill(&listening.process);
        };
        let thread = thread::Builder::new().name("session-input".into()).stack_size(256 << 10).spawn(listen);
        thread.map_err(|error| Fault::with_status(503, format!("cannot make a thread: {error}")))?;
        let status = self.process.wait().map_err(of_instance)?;
        for output in outputs {
            // The client has left.
            if let Err(error) = output.join() {
                tracing::debug!(%error, process = %self.process.id(), "output of a process is lost");
            }
        }
        Ok(status.into())
    }

    /// Passes what the client sends on until it leaves.
    fn listen(&self, source: impl Read, mut input: Option<Stream>) -> io::Result<()> {
        let mut source = BufReader::new(source);
        while let Some(Frame { kind, bytes }) = Frame::read(&mut source)? {
            match kind {
                Kind::Stdin if bytes.is_empty() => match (&self.stdio, input.take()) {
                    // A terminal has no end of input, but for a key.
                    (Stdio::Terminal(_), terminal) => input = terminal,
                    (Stdio::Pipes { .. }, stdin) => stdin.iter().try_for_each(Stream::finish)?,
                },
                // What the process does not read is nobody's.
                Kind::Stdin => input = input.and_then(|mut input| input.write_all(&bytes).is_ok().then_some(input)),
                Kind::Size => {
                    let size: Terminal = serde_json::from_slice(&bytes)?;
                    if let Err(error) = self.process.resize(size.into()) {
                        tracing::debug!(%error, process = %self.process.id(), "a terminal is not resized");
                    }
                }
                other => return Err(io::Error::other(format!("a client sends {other:?}"))),
            }
        }
        Ok(())
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        if let Err(error) = self.process.remove(LIMIT) {
            tracing::debug!(%error, process = %self.process.id(), "a process is not removed");
        }
    }
}

/// The way to the client.
#[derive(Clone)]
struct Client {
    socket: Arc<Mutex<UnixStream>>,
}

impl Client {
    fn send(&self, kind: Kind, bytes: &[u8]) -> io::Result<()> {
        Frame::write(kind, bytes, &mut *self.socket.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn forward(&self, stream: &Stream, kind: Kind) -> Result<Forwarding, Fault> {
        stream.forward(Output { client: self.clone(), kind }).map_err(|error: InstanceError| of_instance(error))
    }

    /// Says how the process has ended; nothing follows.
    fn end(&self, end: Result<Ended, Fault>) {
        let (kind, said) = match end {
            Ok(ended) => (Kind::Ended, json!(ended)),
            Err(fault) => (Kind::Fault, json!({ "fault_message": fault.message })),
        };
        let sent = self.send(kind, said.to_string().as_bytes());
        let socket = self.socket.lock().unwrap_or_else(PoisonError::into_inner);
        // It has left, or hears no more from here on.
        if let Err(error) = sent.and_then(|()| socket.shutdown(Shutdown::Both)) {
            tracing::debug!(%error, "a client has left before the end");
        }
    }
}

/// Output of a process.
struct Output {
    client: Client,
    kind: Kind,
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.client.send(self.kind, bytes).map(|()| bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
