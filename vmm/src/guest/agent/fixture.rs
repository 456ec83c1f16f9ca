//! Agents for tests, hostile ones among them.

use std::io::{self, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use bellows_protocol::agent_ttrpc::{Agent, create_agent};
use bellows_protocol::stream::{MAX_STREAM_LINE, read_line};
use bellows_protocol::{AGENT_PORT, PROTOCOL_VERSION, STREAM_PORT};

use super::{AgentClient, AgentError, SHORT};
use crate::deadline::Deadline;
use crate::end::EndSignal;

/// A stand-in for the vsock device.
pub(crate) struct Fixture {
    _directory: tempfile::TempDir,
    pub(super) path: PathBuf,
    pub(crate) end: Arc<EndSignal>,
    device: Option<JoinHandle<()>>,
}

/// The end of a connection.
type Serve = Box<dyn FnOnce(UnixStream) + Send>;

impl Fixture {
    /// A device that answers `CONNECT` with `answer` and then calls `serve`.
    pub(super) fn new(answer: &'static [u8], serve: impl FnOnce(UnixStream) + Send + 'static) -> Self {
        Self::with_connections(vec![(AGENT_PORT, answer, Box::new(serve))])
    }

    /// The same for several connections, in the order in which they come, each to a port.
    fn with_connections(expected: Vec<(u32, &'static [u8], Serve)>) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("vsock");
        let listener = UnixListener::bind(&path).unwrap();
        let device = thread::spawn(move || {
            thread::scope(|scope| {
                for (port, answer, serve) in expected {
                    let (mut stream, _) = listener.accept().unwrap();
                    let line = read_line(&stream, 64, Duration::from_secs(30)).unwrap();
                    assert_eq!(String::from_utf8(line).unwrap(), format!("CONNECT {port}\n"));
                    stream.write_all(answer).unwrap();
                    scope.spawn(move || serve(stream));
                }
            });
        });
        Self { _directory: directory, path, end: EndSignal::new().unwrap(), device: Some(device) }
    }

    /// A guest's agent behind the device, served by the ttrpc library.
    pub(crate) fn with_agent(fake: Arc<dyn Agent + Send + Sync>) -> Self {
        Self::new(b"OK 1073741824\n", move |stream| serve(&stream, fake))
    }

    /// An agent that only answers a stream: after `line`, which names it, it calls `serve`.
    pub(super) fn with_stream(line: &'static str, serve: impl FnOnce(UnixStream) + Send + 'static) -> Self {
        let silent = |mut stream: UnixStream| drop(io::copy(&mut stream, &mut io::sink()));
        let serve_stream = move |stream: UnixStream| {
            let asked = read_line(&stream, MAX_STREAM_LINE, Duration::from_secs(30)).unwrap();
            assert_eq!(String::from_utf8(asked).unwrap(), format!("stream {PROTOCOL_VERSION} {line}\n"));
            serve(stream);
        };
        Self::with_connections(vec![
            (AGENT_PORT, b"OK 1073741824\n", Box::new(silent)),
            (STREAM_PORT, b"OK 1073741825\n", Box::new(serve_stream)),
        ])
    }

    pub(crate) fn connect(&self) -> Result<AgentClient, AgentError> {
        AgentClient::connect(&self.path, Deadline::after(SHORT), &self.end)
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        if let Some(device) = self.device.take()
            && device.join().is_err()
            && !thread::panicking()
        {
            panic!("the stand-in for the device failed");
        }
    }
}

/// Answers requests one by one, with the library's dispatch.
fn serve(mut stream: &UnixStream, fake: Arc<dyn Agent + Send + Sync>) {
    let directory = tempfile::tempdir().unwrap();
    let address = format!("unix://{}", directory.path().join("agent").display());
    let mut server = ttrpc::Server::new().bind(&address).unwrap().register_service(create_agent(fake));
    server.start().unwrap();
    let mut agent = UnixStream::connect(directory.path().join("agent")).unwrap();
    let mut answers = agent.try_clone().unwrap();
    thread::scope(|scope| {
        scope.spawn(|| {
            let _ = io::copy(&mut answers, &mut &*stream);
        });
        let _ = io::copy(&mut stream, &mut agent);
        agent.shutdown(Shutdown::Both).unwrap();
    });
    server.shutdown();
}
