//! HTTP on the Unix socket: one thread of its own with an asynchronous runtime, and bounds on all that a client can take.

use std::convert::Infallible;
use std::io;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use bellows_vmm::InstanceId;
use http_body_util::{BodyExt as _, Either, Full, LengthLimitError, Limited};
use hyper::body::{Body as _, Bytes, Incoming};
use hyper::header::{ALLOW, CONNECTION, CONTENT_TYPE, HeaderMap, HeaderValue, SERVER, UPGRADE};
use hyper::service::service_fn;
use hyper::{Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::Value;
use tokio::net::{UnixListener as Listener, UnixStream};
use tokio::sync::{Mutex, OwnedSemaphorePermit, Semaphore, oneshot, watch};
use tokio::time::{sleep, timeout};
use tokio_io_timeout::TimeoutStream;
use tracing::Instrument as _;

use super::control::Control;
use super::fault::Fault;
use super::frames::PROTOCOL;
use super::openapi;
use super::own::{self, Connection, Feed, Own, OwnApi, Reply, panicked};
use super::request::{Request, parse};
use super::socket::Socket;
use super::spans;

/// What clients may take.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Bytes of a body.
    pub(crate) body: usize,
    /// Bytes of a request's head.
    pub(crate) head: usize,
    /// Connections; further ones wait.
    pub(crate) connections: usize,
    /// Time for a head, for a body, and for a client to take an answer. An idle connection ends after it, too.
    pub(crate) patience: Duration,
    /// Time for answers to leave when the server ends.
    pub(crate) farewell: Duration,
    /// Time between two flushes of metrics.
    pub(crate) flush: Duration,
}

impl Limits {
    /// Those of Firecracker, where it has them.
    pub(crate) fn new(body: usize) -> Self {
        Self {
            body,
            head: 16 << 10,
            connections: 64,
            patience: Duration::from_secs(10),
            farewell: Duration::from_secs(1),
            flush: Duration::from_secs(60),
        }
    }
}

/// Most fields of a head.
const MAX_FIELDS: usize = 64;

/// The server. Dropping it ends it, and removes the socket.
pub(crate) struct Server {
    thread: Option<JoinHandle<()>>,
    stop: Option<oneshot::Sender<()>>,
    _socket: Socket,
}

impl Server {
    /// Begins to answer on `listener`.
    ///
    /// # Errors
    /// The system refused the thread, or what it needs.
    pub(crate) fn start(
        (socket, listener): (Socket, UnixListener),
        control: Arc<Control>,
        store: Option<PathBuf>,
        limits: Limits,
    ) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        let own = Arc::new(OwnApi::new(control.clone(), store));
        // What waits for the guest leaves the thread: a change at a time, and what is asked of instances.
        let mut builder = tokio::runtime::Builder::new_current_thread();
        let runtime = builder
            .enable_io()
            .enable_time()
            .max_blocking_threads(limits.connections + 2)
            .thread_name("api-change")
            .build()?;
        let (stop, stopped) = oneshot::channel();
        let serve = move || {
            if let Err(error) = runtime.block_on(serve(listener, (control, own), limits, stopped)) {
                tracing::error!(%error, "the API cannot listen");
            }
            // A change that waits for the guest goes on until the VM has ended.
            runtime.shutdown_timeout(limits.farewell);
        };
        let thread = thread::Builder::new().name("api".into()).spawn(serve)?;
        Ok(Self { thread: Some(thread), stop: Some(stop), _socket: socket })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Without a receiver, the thread has ended already.
        let _ = self.stop.take().map(|stop| stop.send(()));
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the thread of the API panicked");
        }
    }
}

/// What all connections share.
struct Shared {
    control: Arc<Control>,
    own: Arc<OwnApi>,
    limits: Limits,
    /// The turn to change the VM.
    turn: Arc<Mutex<()>>,
}

async fn serve(
    listener: UnixListener,
    (control, own): (Arc<Control>, Arc<OwnApi>),
    limits: Limits,
    mut stopped: oneshot::Receiver<()>,
) -> io::Result<()> {
    let listener = Listener::from_std(listener)?;
    let shared = Arc::new(Shared { control, own, limits, turn: Arc::default() });
    let permits = Arc::new(Semaphore::new(limits.connections));
    let (end, ended) = watch::channel(());
    tokio::spawn(flush(shared.clone()));
    loop {
        let (stream, permit) = tokio::select! {
            _ = &mut stopped => break,
            next = accept(&listener, &permits) => next,
        };
        tokio::spawn(connection(stream, permit, shared.clone(), ended.clone()));
    }
    drop(listener);
    let _ = end.send(());
    let all = u32::try_from(limits.connections).unwrap_or(u32::MAX);
    // Whoever does not take an answer by then has none.
    let _ = timeout(limits.farewell, permits.acquire_many(all)).await;
    Ok(())
}

/// Waits for the next client that may be served.
async fn accept(listener: &Listener, permits: &Arc<Semaphore>) -> (UnixStream, Option<OwnedSemaphorePermit>) {
    // The semaphore is never closed.
    let permit = permits.clone().acquire_owned().await.ok();
    loop {
        match listener.accept().await {
            Ok((stream, _)) => return (stream, permit),
            Err(error) => {
                tracing::warn!(%error, "the API cannot take a connection");
                // Descriptors may be short for a while.
                sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

/// Serves one client until it leaves, is too slow, or the server ends.
async fn connection(
    stream: UnixStream,
    _permit: Option<OwnedSemaphorePermit>,
    shared: Arc<Shared>,
    mut ended: watch::Receiver<()>,
) {
    let limits = shared.limits;
    let mut stream = TimeoutStream::new(stream);
    stream.set_write_timeout(Some(limits.patience));
    let service = service_fn(move |request| answer(request, shared.clone()));
    let mut http = hyper::server::conn::http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(limits.patience);
    http.max_buf_size(limits.head).max_headers(MAX_FIELDS);
    let stream: Connection = TokioIo::new(Box::pin(stream));
    let mut serving = std::pin::pin!(http.serve_connection(stream, service).with_upgrades());
    let result = tokio::select! {
        result = serving.as_mut() => result,
        _ = ended.changed() => {
            serving.as_mut().graceful_shutdown();
            serving.await
        }
    };
    if let Err(error) = result {
        tracing::debug!(%error, "a connection of the API ended early");
    }
}

/// Answers a request. Its future ends with the client; a change that has begun goes on.
async fn answer(request: hyper::Request<Incoming>, shared: Arc<Shared>) -> Result<Response<AnswerBody>, Infallible> {
    let span = spans::request(request.method().as_str(), request.uri().path(), request.headers());
    let answer = async {
        let response = respond(request, &shared).await;
        spans::answered(response.status().as_u16());
        response
    };
    Ok(answer.instrument(span).await)
}

async fn respond(mut request: hyper::Request<Incoming>, shared: &Shared) -> Response<AnswerBody> {
    let upgrade = asks_for_streams(request.headers()).then(|| hyper::upgrade::on(&mut request));
    let (head, body) = request.into_parts();
    let (method, path) = (head.method.as_str().to_owned(), head.uri.path().to_owned());
    let target = head.uri.path_and_query().map_or(&*path, |target| target.as_str());
    if let Some(unpack) = unpack(&method, target) {
        return unpack_body(unpack, &method, &path, body, shared).await;
    }
    let read = read_body(body, shared.limits).await;
    let is_complete = read.is_ok();
    let request = read.and_then(|body| match own::parse(&method, target, &body) {
        Some(own) => own.map(Asked::Own),
        None => parse(&method, target, &body).map(Asked::Theirs),
    });
    let answer = match request {
        Err(fault) => Err(fault),
        Ok(Asked::Own(own)) => match (own, upgrade) {
            (Own::Exec(id, exec), Some(upgrade)) => shared.own.session(&id, *exec, upgrade).await,
            (own, _) => shared.own.answer(own).await,
        },
        Ok(Asked::Theirs(Request::Document)) => Ok(Reply::Json(openapi::document())),
        Ok(Asked::Theirs(Request::Read(read))) => shared.control.read(read).map(reply),
        Ok(Asked::Theirs(Request::Change(change))) => {
            let turn = shared.turn.clone().lock_owned().await;
            let control = shared.control.clone();
            let changed = spans::spawn_blocking(move || {
                let answer = control.change(change);
                drop(turn);
                answer
            });
            changed.await.unwrap_or_else(|error| Err(panicked(&error))).map(reply)
        }
    };
    note(shared, &method, &path, &answer);
    let mut response = response(answer);
    if !is_complete {
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

/// Whether a client asks for the streams of a process on its connection (RFC 9110, section 7.8).
fn asks_for_streams(headers: &HeaderMap) -> bool {
    let has = |name, wanted: &str| {
        let values = headers.get_all(name).iter().filter_map(|value: &HeaderValue| value.to_str().ok());
        values.flat_map(|value| value.split(',')).any(|token| token.trim().eq_ignore_ascii_case(wanted))
    };
    has(CONNECTION, "upgrade") && has(UPGRADE, PROTOCOL)
}

/// Counts a request and its answer.
fn note(shared: &Shared, method: &str, path: &str, answer: &Result<Reply, Fault>) {
    shared.control.counters.count(method, path, answer.is_err());
    match answer {
        Ok(_) => tracing::info!(method, path, "a request was carried out"),
        Err(fault) => tracing::error!(method, path, status = fault.status, "a request was refused: {fault}"),
    }
}

/// The instance and the path of a request whose body is an archive of any length.
fn unpack(method: &str, target: &str) -> Option<(InstanceId, String)> {
    match own::parse(method, target, b"") {
        Some(Ok(Own::Unpack(id, path))) => Some((id, path)),
        _ => None,
    }
}

/// Unpacks a body as it comes.
async fn unpack_body(
    (id, folder): (InstanceId, String),
    method: &str,
    path: &str,
    body: Incoming,
    shared: &Shared,
) -> Response<AnswerBody> {
    let answer = shared.own.unpack(&id, folder, body, shared.limits.patience).await;
    note(shared, method, path, &answer);
    let failed = answer.is_err();
    let mut response = response(answer);
    if failed {
        // Some of the body may still come.
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

/// A request in one of the two dialects.
enum Asked {
    Own(Own),
    Theirs(Request),
}

fn reply(body: Option<Value>) -> Reply {
    body.map_or(Reply::Nothing, Reply::Json)
}

async fn read_body(body: Incoming, limits: Limits) -> Result<Bytes, Fault> {
    if body.size_hint().lower() > limits.body as u64 {
        return Err(Fault::too_large(limits.body));
    }
    match timeout(limits.patience, Limited::new(body, limits.body).collect()).await {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(Fault::too_large(limits.body)),
        Ok(Err(error)) => Err(Fault::new(format!("cannot read the body: {error}"))),
        Err(_) => {
            let message = format!("the body was not there after {:?}", limits.patience);
            Err(Fault::with_status(408, message))
        }
    }
}

/// A body, whole or in parts.
type AnswerBody = Either<Full<Bytes>, Feed>;

fn response(answer: Result<Reply, Fault>) -> Response<AnswerBody> {
    const JSON: &str = "application/json";
    let whole = |bytes: Vec<u8>| Either::Left(Full::new(Bytes::from(bytes)));
    let allow = answer.as_ref().err().and_then(|fault| fault.allow);
    let (status, kind, body) = match answer {
        Ok(Reply::Nothing) => (StatusCode::NO_CONTENT, None, whole(Vec::new())),
        Ok(Reply::Json(value)) => (StatusCode::OK, Some(JSON), whole(value.to_string().into_bytes())),
        Ok(Reply::Text { kind, text }) => (StatusCode::OK, Some(kind), whole(text.into_bytes())),
        Ok(Reply::Stream { kind, feed }) => (StatusCode::OK, Some(kind), Either::Right(feed)),
        Ok(Reply::Upgrade) => (StatusCode::SWITCHING_PROTOCOLS, None, whole(Vec::new())),
        Err(fault) => {
            let status = StatusCode::from_u16(fault.status).unwrap_or(StatusCode::BAD_REQUEST);
            (status, Some(JSON), whole(fault.body()))
        }
    };
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response.headers_mut().insert(SERVER, HeaderValue::from_static("Bellows API"));
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("upgrade"));
        response.headers_mut().insert(UPGRADE, HeaderValue::from_static(PROTOCOL));
    }
    if let Some(kind) = kind {
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    }
    if let Some(methods) = allow {
        response.headers_mut().insert(ALLOW, HeaderValue::from_static(methods));
    }
    response
}

/// Flushes metrics now and then, once the VM runs.
async fn flush(shared: Arc<Shared>) {
    loop {
        sleep(shared.limits.flush).await;
        if let Err(error) = shared.control.flush() {
            tracing::warn!(%error, "the metrics are not flushed");
        }
    }
}

#[cfg(test)]
#[path = "server_test.rs"]
mod tests;
