//! Calls an agent with arbitrary answers, for fuzzing and property tests.

// Assertions state what must always hold.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::error::Error;
use std::io::Write as _;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bellows_memory::ByteSize;
use bellows_protocol::agent;
use bellows_protocol::values::ProcessId;
use protobuf::Message as _;
use ttrpc::proto::{MESSAGE_HEADER_LENGTH, MESSAGE_TYPE_RESPONSE, MessageHeader, Response};

use super::{AgentClient, MAX_TEXT, SERVICE, WRITE_LIMIT};
use crate::causes::chain;
use crate::end::EndSignal;
use crate::guest::agent::connection::Connection;

/// Longest message of an error: an escaped excerpt of the guest's text, in a sentence of ours.
const MAX_MESSAGE: usize = 12 * MAX_TEXT + 200;
/// A limit that no call reaches, since the agent's answers are there before it is asked.
const LIMIT: Duration = Duration::from_secs(60);

/// Takes `bytes` as the answers of the guest's agent, and makes calls until they run out.
///
/// # Panics
/// An invariant is broken: a call does not end, or an error's message is too long or not printable.
pub fn exercise(bytes: &[u8]) {
    let (ours, mut theirs) = UnixStream::pair().expect("a pair of sockets");
    // At most what a socket holds, since all of it is written before the calls.
    let answers = frames(&bytes[..bytes.len().min(64 << 10)]);
    theirs.write_all(&answers).expect("it fits");
    theirs.shutdown(Shutdown::Write).expect("it is open");
    let connection = Connection::new(ours, SERVICE, WRITE_LIMIT).expect("a thread");
    let vm = EndSignal::new().expect("a descriptor");
    let client = AgentClient { connection, uds_path: PathBuf::new(), streams: Arc::default(), vm };
    let instance = "a".parse().expect("an identifier");
    let calls: [&dyn Fn() -> Option<String>; 12] = [
        &|| said(client.hello(0, ByteSize::bytes(0), LIMIT)),
        &|| said(client.inspect_partition(1)),
        &|| said(client.await_driver(1, true, LIMIT)),
        &|| said(client.start_instance_plugged(agent::StartInstanceRequest::new(), 1, 1, LIMIT)),
        &|| said(client.wait_process(&instance, &ProcessId::init())),
        &|| said(client.remove_instance(&instance, LIMIT)),
        &|| said(client.statistics(LIMIT)),
        &|| said(client.count_reclaim(LIMIT)),
        &|| said(client.freeze_instance(&instance, 1, LIMIT)),
        &|| said(client.resize_base(ByteSize::mib(2), ByteSize::mib(1), LIMIT)),
        &|| said(client.await_base_pressure(LIMIT)),
        &|| said(client.measure_instances(LIMIT)),
    ];
    for index in 0..=answers.len() / MESSAGE_HEADER_LENGTH {
        if let Some(message) = calls[index % calls.len()]() {
            assert!(message.len() <= MAX_MESSAGE, "{} bytes: {message}", message.len());
            assert!(!message.chars().any(char::is_control), "{message:?}");
        }
    }
}

/// An error with all its causes.
fn said<T, E: Error>(result: Result<T, E>) -> Option<String> {
    result.err().map(|error| chain(&error))
}

/// The bytes on the wire: each piece of `bytes` says whether it is sent as it is, or as an answer to the next call.
fn frames(bytes: &[u8]) -> Vec<u8> {
    let mut frames = Vec::new();
    let mut stream = 1;
    let mut rest = bytes;
    while let Some((&[kind, length], after)) = rest.split_first_chunk() {
        let (piece, after) = after.split_at(usize::from(length).min(after.len()));
        rest = after;
        let body = match kind % 8 {
            0 => {
                frames.extend(piece);
                continue;
            }
            // With a status, if the piece has one.
            1 => piece.to_owned(),
            _ => {
                let response = Response { payload: piece.to_owned(), ..Default::default() };
                response.write_to_bytes().expect("it is short")
            }
        };
        let length = u32::try_from(body.len()).expect("it is short");
        let header = MessageHeader { length, stream_id: stream, type_: MESSAGE_TYPE_RESPONSE, flags: 0 };
        frames.extend(Vec::from(header));
        frames.extend(body);
        stream += 2;
    }
    frames
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arbitrary_answers_break_no_invariant() {
        for seed in 0..=255_u8 {
            let bytes: Vec<u8> = (0..200_u8).map(|index| index.wrapping_mul(seed | 1).wrapping_add(seed)).collect();
            exercise(&bytes);
        }
    }
}
