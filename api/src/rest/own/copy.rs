//! Files of an instance as tar archives: `GET` and `PUT /instances/{id}/archive`, and what is there.

use std::io::{self, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bellows_vmm::{Copying, Process, ProcessId, StreamName};
use http_body_util::BodyExt as _;
use hyper::body::{Bytes, Incoming};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::exec::{capture, kill};
use super::host::{LIMIT, of_instance};
use super::panicked;
use super::reply::{Feed, Reply};
use super::table::Entry;
use crate::rest::fault::Fault;
use crate::rest::spans::spawn_blocking;

/// Bytes of a part of an archive.
const PART: usize = 64 << 10;
/// Parts that the other side has not taken.
const PARTS: usize = 4;

/// Numbers of processes, which are never used again.
static NEXT: AtomicU64 = AtomicU64::new(1);

/// A process that copies; it ends with this.
struct Running(Process);

impl Running {
    fn start(entry: &Entry, copying: Copying, path: &str) -> Result<Self, Fault> {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let id: ProcessId =
            format!("copy-{number}").parse().map_err(|error: bellows_vmm::ValueError| Fault::of(&error))?;
        entry.started()?.instance.copy(id, copying, path).map(Self).map_err(of_instance)
    }

    /// Waits for its end, after its output was read; what it says if it failed.
    fn end(&self, errors: &[u8]) -> Result<(), Fault> {
        let status = self.0.wait().map_err(of_instance)?;
        if status.code == 0 {
            return Ok(());
        }
        let said: String =
            String::from_utf8_lossy(errors).trim().chars().filter(|c| !c.is_control()).take(500).collect();
        let message = if status.oom_killed { "the instance lacks memory to copy".to_owned() } else { said };
        Err(Fault::new(message))
    }

    /// Its standard error.
    fn errors(&self) -> Vec<u8> {
        let connected = self.0.connect(StreamName::Stderr);
        connected.map(|mut stream| capture(&mut stream).0).unwrap_or_default()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Err(error) = self.0.remove(LIMIT) {
            tracing::debug!(%error, process = %self.0.id(), "a process is not removed");
        }
    }
}

/// What is at a path.
pub(super) fn look(entry: &Entry, path: &str) -> Result<Value, Fault> {
    let running = Running::start(entry, Copying::Look, path)?;
    let mut said = Vec::new();
    // One word.
    let output = running.0.connect(StreamName::Stdout).map_err(of_instance)?;
    output.take(64).read_to_end(&mut said).map_err(|error| broken(&error))?;
    running.end(&running.errors())?;
    match &*said {
        b"folder\n" => Ok(json!({ "kind": "folder" })),
        b"file\n" => Ok(json!({ "kind": "file" })),
        b"nothing\n" => Err(Fault::missing(format!("there is nothing at `{}`", path.escape_debug()))),
        _ => Err(Fault::with_status(502, "the guest does not say what is there")),
    }
}

/// An archive of what is at a path, from its first bytes on; it breaks off where it cannot be made whole.
pub(super) fn read(entry: &Entry, path: &str) -> Result<Reply, Fault> {
    let running = Running::start(entry, Copying::Out, path)?;
    let mut output = running.0.connect(StreamName::Stdout).map_err(of_instance)?;
    let (first, ended) = part(&mut output).map_err(|error| broken(&error))?;
    // All of it is here, then, and how it went: an archive of what is not there has its end.
    let is_whole = ended;
    if is_whole {
        running.end(&running.errors())?;
    }
    let (parts, feed) = Feed::new(PARTS);
    let pass_on = move || {
        let mut next = Ok((first, ended));
        loop {
            match next {
                Ok((bytes, ended)) => {
                    // A client that has left needs no more.
                    if !bytes.is_empty() && parts.blocking_send(Ok(bytes)).is_err() {
                        return;
                    }
                    if ended {
                        break;
                    }
                }
                Err(error) => return drop(parts.blocking_send(Err(error))),
            }
            next = part(&mut output);
        }
        if is_whole {
            return;
        }
        if let Err(fault) = running.end(&running.errors()) {
            let _ = parts.blocking_send(Err(io::Error::other(fault.message)));
        }
    };
    spawn_blocking(pass_on);
    Ok(Reply::Stream { kind: "application/x-tar", feed })
}

/// The next part of a stream, and whether it is the last.
fn part(stream: &mut impl Read) -> io::Result<(Bytes, bool)> {
    let mut bytes = vec![0; PART];
    let mut filled = 0;
    while filled < PART {
        match stream.read(&mut bytes[filled..]) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    bytes.truncate(filled);
    Ok((bytes.into(), filled < PART))
}

/// Unpacks the body of a request. A client that leaves, or is silent for `patience`, ends it.
pub(super) async fn write(
    entry: Arc<Entry>,
    path: String,
    mut body: Incoming,
    patience: Duration,
) -> Result<(), Fault> {
    let started = spawn_blocking(move || Running::start(&entry, Copying::In, &path)).await;
    let running = started.map_err(|error| panicked(&error))??;
    let (parts, received) = mpsc::channel(PARTS);
    // Also where this future is dropped, since its client has left.
    let unless_whole = Unfinished(Some(running.0.clone()));
    let unpacking = spawn_blocking(move || {
        let input = running.0.connect(StreamName::Stdin).map_err(of_instance)?;
        let fed = input.feed(Received { parts: received, part: Bytes::new() }).map_err(of_instance)?;
        let errors = running.errors();
        let result = running.end(&errors);
        drop(fed);
        result
    });
    loop {
        let frame = match timeout(patience, body.frame()).await {
            Ok(None) => break,
            Ok(Some(Ok(frame))) => frame,
            Ok(Some(Err(error))) => return Err(Fault::new(format!("cannot read the body: {error}"))),
            Err(_) => {
                let message = format!("the body did not go on within {patience:?}");
                return Err(Fault::with_status(408, message));
            }
        };
        // Whoever unpacks may have given up, and says why.
        if let Ok(bytes) = frame.into_data()
            && parts.send(bytes).await.is_err()
        {
            break;
        }
    }
    drop(parts);
    let result = unpacking.await.map_err(|error| panicked(&error))?;
    unless_whole.forget();
    result
}

/// Kills a process that would otherwise take the end of a request for the end of an archive.
struct Unfinished(Option<Process>);

impl Unfinished {
    fn forget(mut self) {
        self.0 = None;
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        if let Some(process) = self.0.take() {
            spawn_blocking(move || kill(&process));
        }
    }
}

/// What comes of a body, for a thread.
struct Received {
    parts: mpsc::Receiver<Bytes>,
    part: Bytes,
}

impl Read for Received {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        while self.part.is_empty() {
            match self.parts.blocking_recv() {
                Some(part) => self.part = part,
                None => return Ok(0),
            }
        }
        let count = self.part.len().min(into.len());
        into[..count].copy_from_slice(&self.part.split_to(count));
        Ok(count)
    }
}

fn broken(error: &io::Error) -> Fault {
    Fault::with_status(502, format!("the guest breaks off: {error}"))
}
