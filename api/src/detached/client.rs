//! A client of a VM's API.

use std::io::{self, BufWriter, Write};
use std::os::unix::net::UnixStream as StdStream;
use std::path::PathBuf;

use http_body_util::{BodyExt as _, Either, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1;
use hyper::header::{CONNECTION, UPGRADE};
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::UnixStream;
use tokio::sync::mpsc;

use crate::error::{CliError, io_error};
use crate::rest::Feed;
use crate::rest::frames::PROTOCOL;

/// Most bytes of an answer that is taken as a whole.
const MOST: usize = 64 << 20;

/// A client of one VM.
#[derive(Clone, Debug)]
pub(crate) struct Client {
    vm: String,
    socket: PathBuf,
}

impl Client {
    pub(crate) fn new(vm: String, socket: PathBuf) -> Self {
        Self { vm, socket }
    }

    /// Sends a request; returns the body of the answer, or null.
    ///
    /// # Errors
    /// The VM refused, or is gone.
    pub(crate) fn call(&self, method: &str, path: &str, body: Option<&Value>) -> Result<Value, CliError> {
        self.run(self.ask(method, path, body))
    }

    /// The same inside a runtime.
    pub(crate) async fn ask(&self, method: &str, path: &str, body: Option<&Value>) -> Result<Value, CliError> {
        let answer = Limited::new(self.send(method, path, body).await?.into_body(), MOST).collect().await;
        let answer = answer.map_err(|error| self.gone(io::Error::other(error)))?.to_bytes();
        if answer.is_empty() {
            return Ok(Value::Null);
        }
        serde_json::from_slice(&answer).map_err(|error| self.gone(error.into()))
    }

    /// Passes an answer on as it comes.
    ///
    /// # Errors
    /// As for [`Client::call`]; or `sink` fails.
    pub(crate) fn stream(&self, path: &str, sink: &mut impl Write) -> Result<(), CliError> {
        self.run(async {
            let mut answer = self.send("GET", path, None).await?.into_body();
            while let Some(part) = answer.frame().await {
                let part = part.map_err(|error| self.gone(io::Error::other(error)))?;
                if let Some(bytes) = part.data_ref() {
                    sink.write_all(bytes).and_then(|()| sink.flush()).map_err(CliError::Output)?;
                }
            }
            Ok(())
        })
    }

    /// Sends a body that `write` writes, on a thread of its own; errors of it are about `source`.
    ///
    /// # Errors
    /// `write` failed, or as for [`Client::call`].
    pub(crate) fn upload(
        &self,
        path: &str,
        write: impl FnOnce(&mut dyn Write) -> io::Result<()> + Send + 'static,
        source: &str,
    ) -> Result<(), CliError> {
        let (sender, feed) = Feed::new(4);
        let writing = std::thread::spawn(move || {
            let mut parts = BufWriter::with_capacity(64 << 10, Parts(sender));
            let written = write(&mut parts).and_then(|()| parts.flush());
            if written.is_err() {
                let (parts, _) = parts.into_parts();
                // It must not look whole.
                let _ = parts.0.blocking_send(Err(io::ErrorKind::Other.into()));
            }
            written
        });
        let sent = self.run(async { self.send_body("PUT", path, Either::Right(feed)).await.map(drop) });
        match writing.join() {
            // The VM has given up, and says why.
            Ok(Err(error)) if error.kind() != io::ErrorKind::BrokenPipe => Err(io_error("copy", source)(error)),
            _ => sent,
        }
    }

    /// Sends a request that has the connection upgraded; returns it, and what has come over it already.
    ///
    /// # Errors
    /// As for [`Client::call`].
    pub(crate) fn upgrade(&self, path: &str, body: &Value) -> Result<(StdStream, Vec<u8>), CliError> {
        self.run(async {
            let body = Either::Left(Full::new(Bytes::from(body.to_string())));
            let request = Request::builder().method("POST").uri(path).header("Host", "localhost");
            let request = request.header(CONNECTION, "upgrade").header(UPGRADE, PROTOCOL).body(body);
            let answer = self.send_request(request).await?;
            if answer.status() != StatusCode::SWITCHING_PROTOCOLS {
                return Err(self.gone(io::Error::other("it has answered without an upgrade: it is of another version")));
            }
            let upgraded = hyper::upgrade::on(answer).await.map_err(|error| self.gone(io::Error::other(error)))?;
            let parts = upgraded.downcast::<TokioIo<UnixStream>>();
            let parts = parts.map_err(|_| self.gone(io::Error::other("it is another connection")))?;
            let socket = parts.io.into_inner().into_std().and_then(|socket| {
                socket.set_nonblocking(false)?;
                Ok(socket)
            });
            Ok((socket.map_err(|error| self.gone(error))?, parts.read_buf.into()))
        })
    }

    /// Sends a request; returns the answer if it is a good one.
    async fn send(&self, method: &str, path: &str, body: Option<&Value>) -> Result<Response<Incoming>, CliError> {
        let body = body.map(ToString::to_string).unwrap_or_default();
        self.send_body(method, path, Either::Left(Full::new(Bytes::from(body)))).await
    }

    async fn send_body(
        &self,
        method: &str,
        path: &str,
        body: Either<Full<Bytes>, Feed>,
    ) -> Result<Response<Incoming>, CliError> {
        let request = Request::builder().method(method).uri(path).header("Host", "localhost");
        self.send_request(request.body(body)).await
    }

    async fn send_request(
        &self,
        request: hyper::http::Result<Request<Either<Full<Bytes>, Feed>>>,
    ) -> Result<Response<Incoming>, CliError> {
        let request = request.map_err(|error| self.gone(io::Error::other(error)))?;
        let stream = UnixStream::connect(&self.socket).await.map_err(|error| self.gone(error))?;
        let other = |error: hyper::Error| self.gone(io::Error::other(error));
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(other)?;
        tokio::spawn(connection.with_upgrades());
        let answer = sender.send_request(request).await.map_err(other)?;
        let status = answer.status().as_u16();
        if answer.status().is_success() || answer.status() == StatusCode::SWITCHING_PROTOCOLS {
            return Ok(answer);
        }
        let body = answer.into_body().collect().await.map_err(other)?.to_bytes();
        let said = serde_json::from_slice::<Value>(&body).ok();
        let said = said.as_ref().and_then(|said| said["fault_message"].as_str());
        let message = said.map_or_else(|| format!("it answered with status {status}"), str::to_owned);
        Err(CliError::Refused { vm: self.vm.clone(), status, message })
    }

    fn run<T>(&self, work: impl Future<Output = Result<T, CliError>>) -> Result<T, CliError> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build();
        runtime.map_err(|error| self.gone(error))?.block_on(work)
    }

    fn gone(&self, error: io::Error) -> CliError {
        io_error("talk to the VM at", &self.socket)(error)
    }
}

/// Passes what is written on as parts of a body.
struct Parts(mpsc::Sender<io::Result<Bytes>>);

impl Write for Parts {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let sent = self.0.blocking_send(Ok(Bytes::copy_from_slice(bytes)));
        sent.map(|()| bytes.len()).map_err(|_| io::ErrorKind::BrokenPipe.into())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
