//! A ttrpc client connection to a peer that is not trusted.
//!
//! The wire format is the ttrpc library's. The connection is ours because the library's client wakes up a hundred times a
//! second, and lets calls wait for ever on a stream that the guest closed halfway. Here every call ends when the peer stops
//! talking, and dropping the connection joins its thread. That thread, which waits for answers anyway, also makes the calls
//! that keep the guest's clock right.

use std::collections::HashMap;
use std::io::{self, Read};
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, SyncSender, TryRecvError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bellows_memory::sync::Mutex;
use bellows_memory::threads::{self, ThreadRole};
use nix::poll::PollFlags;
use protobuf::{EnumOrUnknown, Message};
use ttrpc::proto::{
    Code, MESSAGE_HEADER_LENGTH, MESSAGE_LENGTH_MAX, MESSAGE_TYPE_RESPONSE, MessageHeader, Request, Response, Status,
};

use super::clock::{ClockKeeper, Timer};
use super::writer::{WriteError, Writer};
use crate::poll::poll;

/// Time that the reading thread gives the peer to take one of its own requests.
const OWN_WRITE_LIMIT: Duration = Duration::from_millis(100);

/// Why a call has no answer.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub(super) enum CallError {
    /// A late answer is dropped.
    #[error("no answer within {0:?}")]
    Timeout(Duration),
    /// The peer answered with this status.
    #[error("{message}")]
    Refused { code: EnumOrUnknown<Code>, message: String },
    /// The connection has ended.
    #[error("{0}")]
    Lost(String),
}

/// The result of a call: the answer as the peer sent it.
type Answered = Result<Vec<u8>, CallError>;

/// A request that was sent.
struct Pending {
    stream: u32,
    answer: Receiver<Answered>,
}

/// A connection on which any number of threads may call at once.
pub(super) struct Connection {
    shared: Arc<Shared>,
    write_limit: Duration,
    clock: Arc<Timer>,
    reader: Option<JoinHandle<()>>,
}

struct Shared {
    state: Mutex<State>,
    writer: Writer,
    service: &'static str,
}

#[derive(Default)]
struct State {
    last_stream: u32,
    waiting: HashMap<u32, SyncSender<Answered>>,
    lost: Option<String>,
}

impl Connection {
    /// Takes a connected stream, whose next bytes are the peer's first answer, for calls of `service`. Requests may take up to
    /// `write_limit` to be written.
    ///
    /// # Errors
    /// The system has no thread, or no descriptor to share the stream with it.
    pub(super) fn new(stream: UnixStream, service: &'static str, write_limit: Duration) -> io::Result<Self> {
        stream.set_read_timeout(None)?;
        let mut input = stream.try_clone()?;
        let shared = Arc::new(Shared { state: Mutex::default(), writer: Writer::new(stream), service });
        let clock = Arc::new(Timer::new()?);
        let mut own = OwnCalls { keeper: ClockKeeper::new(clock.clone()), pending: None };
        let reader = threads::spawn(ThreadRole::Agent, "agent", Some(256 << 10), {
            let shared = shared.clone();
            move || {
                let error = read_answers(&mut input, &shared, &mut own);
                shared.end(error.to_string());
                // The peer must see that this end no longer listens.
                let _ = input.shutdown(Shutdown::Both);
            }
        })?;
        Ok(Self { shared, write_limit, clock, reader: Some(reader) })
    }

    /// Starts to keep the guest's clock right, with a first look now.
    pub(super) fn keep_clock(&self) {
        self.clock.set(Duration::ZERO);
    }

    /// Calls `method`; without a limit the call ends with the connection.
    pub(super) fn call<Answer: Message>(
        &self,
        method: &str,
        request: &impl Message,
        limit: Option<Duration>,
    ) -> Result<Answer, CallError> {
        let start = Instant::now();
        let write_limit = limit.unwrap_or(Duration::MAX).min(self.write_limit);
        let Pending { stream, answer } = self.shared.send_request(method, request, limit, write_limit)?;
        let answer = match limit {
            None => answer.recv().map_err(|_| RecvTimeoutError::Disconnected),
            Some(limit) => answer.recv_timeout(limit.saturating_sub(start.elapsed())),
        };
        let answer = answer.unwrap_or_else(|error| {
            let error = match error {
                RecvTimeoutError::Timeout => CallError::Timeout(limit.unwrap_or_default()),
                RecvTimeoutError::Disconnected => CallError::Lost("the connection has ended".into()),
            };
            Err(self.shared.give_up(stream, error))
        })?;
        Answer::parse_from_bytes(&payload(&answer)?).map_err(lost)
    }

    /// Ends the connection and all calls in progress.
    pub(super) fn close(&self) {
        self.shared.writer.shutdown();
    }
}

fn lost(error: protobuf::Error) -> CallError {
    CallError::Lost(error.to_string())
}

/// The body of an answer, unless it is a refusal.
fn payload(answer: &[u8]) -> Result<Vec<u8>, CallError> {
    let answer = Response::parse_from_bytes(answer).map_err(lost)?;
    match answer.status.into_option() {
        Some(Status { code, message, .. }) if code != Code::OK.into() => Err(CallError::Refused { code, message }),
        _ => Ok(answer.payload),
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.close();
        if let Some(reader) = self.reader.take()
            && reader.join().is_err()
        {
            tracing::error!("the thread that reads the agent's answers panicked");
        }
    }
}

impl Shared {
    /// Sends a request, which may take `write_limit`.
    fn send_request(
        &self,
        method: &str,
        request: &impl Message,
        limit: Option<Duration>,
        write_limit: Duration,
    ) -> Result<Pending, CallError> {
        let start = Instant::now();
        let envelope = Request {
            service: self.service.into(),
            method: method.into(),
            payload: request.write_to_bytes().map_err(lost)?,
            timeout_nano: limit.and_then(|limit| i64::try_from(limit.as_nanos()).ok()).unwrap_or(0),
            ..Default::default()
        };
        let body = envelope.write_to_bytes().map_err(lost)?;
        let length = u32::try_from(body.len()).ok().filter(|_| body.len() <= MESSAGE_LENGTH_MAX);
        let length = length.ok_or_else(|| CallError::Lost(format!("a request of {} bytes is too long", body.len())))?;

        let (sender, receiver) = mpsc::sync_channel(1);
        let stream = self.open(sender)?;
        let mut frame = Vec::from(MessageHeader::new_request(stream, length));
        frame.extend(body);
        self.send(&frame, start, write_limit).map_err(|error| self.give_up(stream, error))?;
        Ok(Pending { stream, answer: receiver })
    }

    fn send(&self, frame: &[u8], start: Instant, limit: Duration) -> Result<(), CallError> {
        let deadline = start + limit;
        let turn = self.writer.turn(deadline).ok_or(CallError::Timeout(limit))?;
        // The turn ends after the connection, so that no other thread goes on after half a frame.
        self.writer.write(&turn, frame, deadline).map_err(|error| match error {
            WriteError::NotBegun => CallError::Timeout(limit),
            WriteError::Broken(error) => {
                self.end(error.to_string());
                self.writer.shutdown();
                match error.kind() {
                    io::ErrorKind::TimedOut => CallError::Timeout(limit),
                    _ => CallError::Lost(error.to_string()),
                }
            }
        })
    }

    fn open(&self, sender: SyncSender<Answered>) -> Result<u32, CallError> {
        let mut state = self.state.lock();
        if let Some(error) = &state.lost {
            return Err(CallError::Lost(error.clone()));
        }
        // A client's streams have odd numbers.
        let stream = if state.last_stream == 0 { 1 } else { state.last_stream.wrapping_add(2) };
        state.last_stream = stream;
        state.waiting.insert(stream, sender);
        Ok(stream)
    }

    /// Stops waiting for the answer. If `error` is that the connection ended, the first known reason replaces it.
    fn give_up(&self, stream: u32, error: CallError) -> CallError {
        let mut state = self.state.lock();
        state.waiting.remove(&stream);
        match (error, &state.lost) {
            (CallError::Lost(_), Some(known)) => CallError::Lost(known.clone()),
            (error, _) => error,
        }
    }

    /// The first reason stands.
    fn end(&self, error: String) {
        let mut state = self.state.lock();
        let error = state.lost.get_or_insert(error).clone();
        for (_, sender) in state.waiting.drain() {
            // The waiter may have just given up.
            let _ = sender.try_send(Err(CallError::Lost(error.clone())));
        }
    }
}

/// Hands out answers until the connection ends; returns the reason. Also makes the clock's calls.
fn read_answers(input: &mut UnixStream, shared: &Shared, own: &mut OwnCalls) -> io::Error {
    loop {
        let answered = match wait(input, own).map(|came| came.then(|| read_answer(input)).transpose()) {
            Ok(Ok(Some((header, body)))) => Some((header.stream_id, body)),
            Ok(Ok(None)) => None,
            Ok(Err(error)) | Err(error) => return error,
        };
        match answered {
            None => own.begin(shared),
            // The caller may have stopped waiting: then the answer is dropped.
            Some((stream, body)) => {
                if let Some(sender) = shared.state.lock().waiting.remove(&stream) {
                    let _ = sender.try_send(Ok(body));
                }
                own.go_on(shared);
            }
        }
    }
}

/// Waits for an answer (`true`), or until a call is due.
fn wait(input: &UnixStream, own: &OwnCalls) -> io::Result<bool> {
    let wanted = [input.as_fd(), own.keeper.as_fd()].map(|fd| (fd, PollFlags::POLLIN));
    loop {
        let [answer, due] = poll(wanted, None)?;
        if !(answer | due).is_empty() {
            return Ok(!answer.is_empty());
        }
    }
}

/// Calls of the thread that reads answers, one at a time.
struct OwnCalls {
    keeper: ClockKeeper,
    /// The last call, until it is answered.
    pending: Option<Pending>,
}

impl OwnCalls {
    /// Makes a call that is due. The last call, if still unanswered, is abandoned.
    fn begin(&mut self, shared: &Shared) {
        if let Some(late) = self.pending.take() {
            shared.state.lock().waiting.remove(&late.stream);
        }
        let request = self.keeper.due();
        self.call(shared, &request);
    }

    /// Takes the answer, if it has come, and makes the call that follows from it.
    fn go_on(&mut self, shared: &Shared) {
        let Some(pending) = &self.pending else { return };
        let answer = match pending.answer.try_recv() {
            Ok(answer) => answer,
            Err(TryRecvError::Empty) => return,
            Err(TryRecvError::Disconnected) => Err(CallError::Lost("the connection has ended".into())),
        };
        self.pending = None;
        let answer = answer.and_then(|answer| payload(&answer)).map_err(|error| error.to_string());
        if let Some(request) = self.keeper.answered(answer.as_deref().map_err(String::clone)) {
            self.call(shared, &request);
        }
    }

    fn call(&mut self, shared: &Shared, request: &impl Message) {
        match shared.send_request("Clock", request, None, OWN_WRITE_LIMIT) {
            Ok(pending) => self.pending = Some(pending),
            Err(_) => self.keeper.put_off(),
        }
    }
}

fn read_answer(input: &mut UnixStream) -> io::Result<(MessageHeader, Vec<u8>)> {
    let mut header = [0; MESSAGE_HEADER_LENGTH];
    input.read_exact(&mut header)?;
    let header = MessageHeader::from(header);
    let length = header.length as usize;
    if header.type_ != MESSAGE_TYPE_RESPONSE || length > MESSAGE_LENGTH_MAX {
        let message = format!("expected an answer, found a frame of type {} with {length} bytes", header.type_);
        return Err(io::Error::new(io::ErrorKind::InvalidData, message));
    }
    // The buffer grows with the bytes received, not with the length that the header claims.
    let mut body = Vec::new();
    if input.take(header.length.into()).read_to_end(&mut body)? != length {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok((header, body))
}

#[cfg(test)]
mod tests {
    use std::thread;

    use bellows_protocol::agent::{Empty, InstanceRequest};

    use super::*;

    #[test]
    fn a_slow_peer_delays_no_call_beyond_its_limit() {
        const WRITE_LIMIT: Duration = Duration::from_secs(1);
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let connection = Connection::new(ours, "service", WRITE_LIMIT).unwrap();
        let (begin, begun) = mpsc::channel();
        let (stop, stopped) = mpsc::channel::<()>();
        // 1 KiB each 2 ms: the part that the socket does not hold takes some 4 s.
        let reader = thread::spawn(move || {
            let mut bytes = [0; 1024];
            while stopped.recv_timeout(Duration::from_millis(2)) == Err(RecvTimeoutError::Timeout) {
                if theirs.read(&mut bytes).unwrap() == 0 {
                    break;
                }
                let _ = begin.send(());
            }
        });
        let call = |bytes, limit| {
            let request = InstanceRequest { instance_id: "a".repeat(bytes), ..Default::default() };
            connection.call::<Empty>("method", &request, Some(limit)).unwrap_err()
        };
        thread::scope(|scope| {
            let start = Instant::now();
            let first = scope.spawn(|| call(2 << 20, 2 * WRITE_LIMIT));
            begun.recv().unwrap();
            let limit = Duration::from_millis(20);
            assert_eq!(call(1, limit), CallError::Timeout(limit));
            assert!(!first.is_finished(), "the second does not wait for the first");
            assert_eq!(first.join().unwrap(), CallError::Timeout(WRITE_LIMIT));
            assert!(start.elapsed() < 2 * WRITE_LIMIT, "{:?}", start.elapsed());
        });
        assert_eq!(call(1, WRITE_LIMIT), CallError::Lost("the guest reads too slowly".into()));
        drop(stop);
        reader.join().unwrap();
    }
}
