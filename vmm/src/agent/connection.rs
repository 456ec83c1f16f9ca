//! A ttrpc client connection to a peer that is not trusted.
//!
//! The wire format is the ttrpc library's; the connection is ours because the library's client wakes up a hundred times a
//! second, and lets calls wait for ever on a stream that the guest closed halfway. Here every call ends when the peer stops
//! talking, and dropping the connection joins its thread.

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{self, RecvTimeoutError, SyncSender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use protobuf::{EnumOrUnknown, Message};
use ttrpc::proto::{
    Code, MESSAGE_HEADER_LENGTH, MESSAGE_LENGTH_MAX, MESSAGE_TYPE_RESPONSE, MessageHeader, Request, Response, Status,
};

/// How long the peer may leave a request unread.
const WRITE_LIMIT: Duration = Duration::from_secs(30);

/// Why a call has no answer.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum CallError {
    /// Time is up; the answer is dropped if it still comes.
    Timeout,
    /// The peer answered with this status.
    Refused { code: EnumOrUnknown<Code>, message: String },
    /// The connection is no more.
    Lost(String),
}

/// A connection on which any number of threads may call at once.
pub(super) struct Connection {
    shared: Arc<Shared>,
    writer: Mutex<UnixStream>,
    reader: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    last_stream: u32,
    waiting: HashMap<u32, SyncSender<Result<Vec<u8>, CallError>>>,
    lost: Option<String>,
}

impl Connection {
    /// Takes a connected stream, whose next bytes are the peer's first answer.
    ///
    /// # Errors
    /// No thread could be made, or the stream can't be shared with it.
    pub(super) fn new(stream: UnixStream) -> io::Result<Self> {
        stream.set_read_timeout(None)?;
        stream.set_write_timeout(Some(WRITE_LIMIT))?;
        let mut input = stream.try_clone()?;
        let shared = Arc::new(Shared::default());
        let reader = thread::Builder::new().name("agent".into()).stack_size(256 << 10).spawn({
            let shared = shared.clone();
            move || {
                let error = read_answers(&mut input, &shared);
                shared.end(error.to_string());
                // The peer must not believe that anybody listens.
                let _ = input.shutdown(Shutdown::Both);
            }
        })?;
        Ok(Self { shared, writer: Mutex::new(stream), reader: Some(reader) })
    }

    /// Calls `method` of `service`; without a limit the call ends with the connection.
    pub(super) fn call<Answer: Message>(
        &self,
        service: &str,
        method: &str,
        request: &impl Message,
        limit: Option<Duration>,
    ) -> Result<Answer, CallError> {
        let lost = |error: protobuf::Error| CallError::Lost(error.to_string());
        let envelope = Request {
            service: service.into(),
            method: method.into(),
            payload: request.write_to_bytes().map_err(lost)?,
            timeout_nano: limit.and_then(|limit| i64::try_from(limit.as_nanos()).ok()).unwrap_or(0),
            ..Default::default()
        };
        let body = envelope.write_to_bytes().map_err(lost)?;
        let length = u32::try_from(body.len()).ok().filter(|_| body.len() <= MESSAGE_LENGTH_MAX);
        let length = length.ok_or_else(|| CallError::Lost(format!("a request of {} bytes is too long", body.len())))?;

        let (sender, receiver) = mpsc::sync_channel(1);
        let stream = self.shared.open(sender)?;
        let mut frame = Vec::from(MessageHeader::new_request(stream, length));
        frame.extend(body);
        self.send(&frame).map_err(|error| self.shared.give_up(stream).unwrap_or(error))?;

        let answer = match limit {
            None => receiver.recv().map_err(|_| RecvTimeoutError::Disconnected),
            Some(limit) => receiver.recv_timeout(limit),
        };
        let answer = answer.unwrap_or_else(|error| {
            self.shared.give_up(stream);
            Err(match error {
                RecvTimeoutError::Timeout => CallError::Timeout,
                RecvTimeoutError::Disconnected => CallError::Lost("the connection has ended".into()),
            })
        })?;
        let answer = Response::parse_from_bytes(&answer).map_err(lost)?;
        match answer.status.into_option() {
            Some(Status { code, message, .. }) if code != Code::OK.into() => Err(CallError::Refused { code, message }),
            _ => Answer::parse_from_bytes(&answer.payload).map_err(lost),
        }
    }

    /// Ends the connection and all calls in progress.
    pub(super) fn close(&self) {
        // It may be closed already.
        let _ = self.writer.lock().unwrap_or_else(PoisonError::into_inner).shutdown(Shutdown::Both);
    }

    fn send(&self, frame: &[u8]) -> Result<(), CallError> {
        let mut writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        writer.write_all(frame).map_err(|error| {
            // Part of a frame may be out: nothing that comes after it would be understood.
            let _ = writer.shutdown(Shutdown::Both);
            CallError::Lost(error.to_string())
        })
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
    fn open(&self, sender: SyncSender<Result<Vec<u8>, CallError>>) -> Result<u32, CallError> {
        let mut state = self.lock();
        if let Some(error) = &state.lost {
            return Err(CallError::Lost(error.clone()));
        }
        // A client's streams have odd numbers.
        let stream = if state.last_stream == 0 { 1 } else { state.last_stream.wrapping_add(2) };
        state.last_stream = stream;
        state.waiting.insert(stream, sender);
        Ok(stream)
    }

    /// Expects no answer any more; says why there can't be one if that is known.
    fn give_up(&self, stream: u32) -> Option<CallError> {
        let mut state = self.lock();
        state.waiting.remove(&stream);
        state.lost.clone().map(CallError::Lost)
    }

    fn end(&self, error: String) {
        let mut state = self.lock();
        for (_, sender) in state.waiting.drain() {
            // Whoever waited may have just given up.
            let _ = sender.try_send(Err(CallError::Lost(error.clone())));
        }
        state.lost = Some(error);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Hands out answers until there are no more; says why.
fn read_answers(input: &mut UnixStream, shared: &Shared) -> io::Error {
    loop {
        match read_answer(input) {
            Ok((header, body)) => {
                // An answer to a call that nobody waits for any more is dropped.
                if let Some(sender) = shared.lock().waiting.remove(&header.stream_id) {
                    let _ = sender.try_send(Ok(body));
                }
            }
            Err(error) => return error,
        }
    }
}

fn read_answer(input: &mut UnixStream) -> io::Result<(MessageHeader, Vec<u8>)> {
    let mut header = [0; MESSAGE_HEADER_LENGTH];
    input.read_exact(&mut header)?;
    let header = MessageHeader::from(header);
    let length = header.length as usize;
    if header.type_ != MESSAGE_TYPE_RESPONSE || length > MESSAGE_LENGTH_MAX {
        let message = format!("a frame of type {} and {length} bytes is no answer", header.type_);
        return Err(io::Error::new(io::ErrorKind::InvalidData, message));
    }
    // Memory follows what really comes, not what the header claims.
    let mut body = Vec::new();
    if input.take(header.length.into()).read_to_end(&mut body)? != length {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok((header, body))
}
