//! How a connection becomes a stream of a process.
//!
//! ```text
//! monitor: stream <version> <instance> <process> <stream>\n
//! agent:   ok\n                  or                refused <why>\n
//! ```
//!
//! After `ok` the connection carries the stream's bytes and nothing else: from the monitor where it is `stdin`, to it where it is
//! `stdout` or `stderr`, both ways where it is `terminal`. A direction that is shut down has ended; a connection that breaks
//! without that has not carried all there was.

use std::fmt;
use std::io::{self, Read};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use thiserror::Error;

use crate::PROTOCOL_VERSION;
use crate::values::{InstanceId, ProcessId};

/// Longest first line in bytes, with its newline: longer than any that is right.
pub const MAX_STREAM_LINE: usize = 192;
/// Longest answer in bytes, with its newline.
pub const MAX_ANSWER_LINE: usize = 512;

const OK: &str = "ok\n";
const REFUSED: &str = "refused ";

/// Which stream of a process.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum StreamName {
    /// Standard input, where it is a pipe.
    Stdin,
    /// Standard output, where it is a pipe.
    Stdout,
    /// Standard error, where it is a pipe.
    Stderr,
    /// All three, where they are a terminal.
    Terminal,
}

impl StreamName {
    /// The name on the wire.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Stdin => "stdin",
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
            Self::Terminal => "terminal",
        }
    }

    fn parse(text: &str) -> Option<Self> {
        [Self::Stdin, Self::Stdout, Self::Stderr, Self::Terminal].into_iter().find(|name| name.as_str() == text)
    }
}

impl fmt::Display for StreamName {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.as_str())
    }
}

/// What the monitor wants of a connection.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct StreamRequest {
    /// The instance.
    pub instance: InstanceId,
    /// The process in it.
    pub process: ProcessId,
    /// The stream of it.
    pub stream: StreamName,
}

/// Why a line is not a request.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum StreamLineError {
    /// The line does not have the form `stream <version> <instance> <process> <stream>\n`.
    #[error("{0:?} asks for no stream")]
    Malformed(String),
    /// The monitor is of another version, whose lines may go on in another way.
    #[error("protocol version {0}, expected {PROTOCOL_VERSION}")]
    Version(u32),
}

/// Why a stream was refused.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum AnswerError {
    /// The agent says so.
    #[error("{0}")]
    Refused(String),
    /// The line is not an answer.
    #[error("{0:?} instead of `ok` or `refused <why>`")]
    Malformed(String),
}

/// The first line of a connection.
pub fn request_line(request: &StreamRequest) -> String {
    let StreamRequest { instance, process, stream } = request;
    format!("stream {PROTOCOL_VERSION} {instance} {process} {stream}\n")
}

/// What the first line of a connection asks for.
///
/// # Errors
/// [`StreamLineError`].
pub fn parse_request_line(line: &[u8]) -> Result<StreamRequest, StreamLineError> {
    let malformed = || StreamLineError::Malformed(excerpt(line, MAX_STREAM_LINE));
    let text = std::str::from_utf8(line).map_err(|_| malformed())?;
    let rest = text.strip_prefix("stream ").and_then(|rest| rest.strip_suffix('\n')).ok_or_else(malformed)?;
    let (version, rest) = rest.split_once(' ').unwrap_or((rest, ""));
    let version = Some(version).filter(|version| version.bytes().all(|byte| byte.is_ascii_digit()));
    match version.and_then(|version| version.parse().ok()).ok_or_else(malformed)? {
        PROTOCOL_VERSION => {}
        other => return Err(StreamLineError::Version(other)),
    }
    let mut fields = rest.split(' ');
    let mut field = || fields.next().ok_or_else(malformed);
    let request = StreamRequest {
        instance: field()?.parse().map_err(|_| malformed())?,
        process: field()?.parse().map_err(|_| malformed())?,
        stream: StreamName::parse(field()?).ok_or_else(malformed)?,
    };
    if fields.next().is_some() { Err(malformed()) } else { Ok(request) }
}

/// The answer to a request: whether it is met, or why not.
pub fn answer_line(answer: Result<(), &dyn fmt::Display>) -> String {
    let Err(why) = answer else { return OK.to_owned() };
    let mut line = format!("{REFUSED}{}", why.to_string().replace(|character: char| character.is_control(), " "));
    let most = (0..MAX_ANSWER_LINE).rev().find(|at| line.is_char_boundary(*at));
    line.truncate(most.unwrap_or_default());
    line.push('\n');
    line
}

/// What an answer says.
///
/// # Errors
/// [`AnswerError`].
pub fn parse_answer_line(line: &[u8]) -> Result<(), AnswerError> {
    let malformed = || AnswerError::Malformed(excerpt(line, MAX_ANSWER_LINE));
    match std::str::from_utf8(line).map_err(|_| malformed())? {
        OK => Ok(()),
        text => match text.strip_prefix(REFUSED).and_then(|rest| rest.strip_suffix('\n')) {
            Some(why) => Err(AnswerError::Refused(why.to_owned())),
            None => Err(malformed()),
        },
    }
}

/// Reads a line with its newline, no more than `most` bytes of it, and nothing of what follows it. A stream that ends or a
/// line that is too long leaves it without a newline.
///
/// # Errors
/// [`io::ErrorKind::TimedOut`] where it is not there within `limit`; those of `read(2)`.
pub fn read_line(mut stream: &UnixStream, most: usize, limit: Duration) -> io::Result<Vec<u8>> {
    let deadline = Instant::now() + limit;
    let mut line = Vec::new();
    while line.last() != Some(&b'\n') && line.len() < most {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        stream.set_read_timeout(Some(left))?;
        // One by one: what follows the line is the stream's.
        let mut byte = [0];
        match stream.read(&mut byte) {
            Ok(0) => break,
            Ok(_) => line.push(byte[0]),
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
            Err(error) => return Err(error),
        }
    }
    stream.set_read_timeout(None)?;
    Ok(line)
}

fn excerpt(line: &[u8], most: usize) -> String {
    String::from_utf8_lossy(&line[..line.len().min(most)]).into()
}

#[cfg(test)]
#[path = "stream_test.rs"]
mod tests;
