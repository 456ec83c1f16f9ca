//! Lets the monitor connect to streams, each over its own vsock connection.

use std::io::{self, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use bellows_protocol::STREAM_PORT;
use bellows_protocol::stream::{MAX_STREAM_LINE, answer_line, parse_request_line, read_line};
use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, VsockAddr, bind, listen, socket};

use crate::error::{AgentError, Result};
use crate::instance::Instances;
use crate::streams::Permits;
use crate::{sys, vsock};

/// Streams that can be connected at a time: each takes a thread and up to two buffers of 64 KiB.
const MAX_STREAMS: usize = 256;
/// Time limit for the monitor to send its first line, and to read the answer.
const LINE_LIMIT: Duration = Duration::from_secs(5);
/// Connections that may wait to be accepted.
const BACKLOG: i32 = 64;
/// Delay before another attempt when no descriptor is left for a connection.
const RETRY: Duration = Duration::from_millis(100);

/// Starts to accept the monitor's connections.
///
/// # Errors
/// The guest has no vsock, or no thread is left.
pub fn start(instances: Arc<Instances>) -> io::Result<()> {
    let listener = socket(AddressFamily::Vsock, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    bind(listener.as_raw_fd(), &VsockAddr::new(libc::VMADDR_CID_ANY, STREAM_PORT))?;
    listen(&listener, Backlog::new(BACKLOG)?)?;
    let permits = Permits::new(MAX_STREAMS);
    thread::Builder::new().name("streams".into()).spawn(move || {
        loop {
            match sys::accept(&listener) {
                Ok(connection) => admit(connection, &instances, &permits),
                Err(Errno::EINTR | Errno::ECONNABORTED) => {}
                Err(error) => {
                    tracing::error!(%error, "a stream cannot be connected");
                    thread::sleep(RETRY);
                }
            }
        }
    })?;
    Ok(())
}

/// Admits the host only.
fn admit(connection: OwnedFd, instances: &Instances, permits: &Permits) {
    match vsock::check_host(&connection) {
        // Any type of stream socket has read, write and shutdown.
        Ok(()) => serve(&UnixStream::from(connection), instances, permits),
        Err(error) => tracing::warn!(%error, "refused a stream that is not from the host"),
    }
}

/// Makes `connection` the stream that its first line asks for, or sends the refusal.
fn serve(connection: &UnixStream, instances: &Instances, permits: &Permits) {
    if let Err(error) = connect(connection, instances, permits) {
        tracing::debug!(%error, "refused a stream");
        // The monitor may be gone.
        let _ = (&*connection).write_all(answer_line(Err(&error)).as_bytes());
    }
}

fn connect(connection: &UnixStream, instances: &Instances, permits: &Permits) -> Result<()> {
    connection.set_write_timeout(Some(LINE_LIMIT)).map_err(AgentError::system("setsockopt"))?;
    let line = read_line(connection, MAX_STREAM_LINE, LINE_LIMIT).map_err(AgentError::system("read"))?;
    let request = parse_request_line(&line)?;
    let permit = permits.take().ok_or_else(|| AgentError::InUse {
        what: "every stream that can be connected".into(),
        by: format!("{MAX_STREAMS} others"),
    })?;
    let process = instances.get(&request.instance)?.process(&request.process)?;
    process.streams.connect(request.stream, connection, &process.ended, permit)
}
