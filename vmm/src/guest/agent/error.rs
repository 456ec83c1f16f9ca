//! Why a call to the agent failed.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use protobuf::EnumOrUnknown;
use ttrpc::Code;

use crate::kind::ErrorKind;

/// Why a call to the agent failed.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// The vsock device's socket cannot be reached, or no program listens in the guest.
    #[error("cannot connect to the guest's agent through `{path}`")]
    Connect {
        /// The socket.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The VM is paused, so the agent was not asked.
    #[error("the guest's agent cannot be asked for `{call}` while the VM is paused")]
    Paused {
        /// The call.
        call: &'static str,
    },
    /// The agent did not answer in time.
    #[error("the guest's agent did not answer `{call}` within {limit:?}")]
    Timeout {
        /// The call.
        call: &'static str,
        /// The time limit.
        limit: Duration,
    },
    /// The agent refused.
    #[error("the guest's agent refused `{call}`: {message}")]
    Refused {
        /// The call.
        call: &'static str,
        /// Its message.
        message: String,
        /// The kind of its reason, in its own judgement.
        reason: ErrorKind,
    },
    /// The instance could not be started.
    #[error("{message}")]
    NotStarted {
        /// The reason.
        reason: StartFailure,
        /// The agent's error.
        message: String,
    },
    /// The connection failed, or ended with the VM.
    #[error("`{call}` failed on the way to the guest's agent: {message}")]
    Lost {
        /// The call.
        call: &'static str,
        /// The cause.
        message: String,
    },
    /// The answer is impossible.
    #[error("the guest's agent answered `{call}` with {what} {value}: expected {expected}")]
    Answer {
        /// The call.
        call: &'static str,
        /// The field of the answer.
        what: &'static str,
        /// Its value.
        value: String,
        /// The valid values.
        expected: String,
    },
}

impl AgentError {
    /// The kind of this error.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Paused { .. } => ErrorKind::Conflict,
            Self::Refused { reason, .. } => *reason,
            Self::NotStarted { reason: StartFailure::CommandNotFound | StartFailure::CommandNotExecutable, .. } => {
                ErrorKind::Invalid
            }
            Self::NotStarted { reason: StartFailure::Other(kind), .. } => *kind,
            Self::Connect { .. } | Self::Timeout { .. } | Self::Lost { .. } | Self::Answer { .. } => ErrorKind::Guest,
        }
    }
}

/// Why an instance could not be started.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum StartFailure {
    /// Its command, or the interpreter of that, is not in the image.
    CommandNotFound,
    /// Its command is there, but is not executable.
    CommandNotExecutable,
    /// Another reason, of this kind in the agent's judgement.
    Other(ErrorKind),
}

/// The kind of a refusal, by the agent's code.
pub(super) fn reason(code: EnumOrUnknown<Code>) -> ErrorKind {
    match code.enum_value() {
        Ok(Code::INVALID_ARGUMENT) => ErrorKind::Invalid,
        Ok(Code::NOT_FOUND) => ErrorKind::NotFound,
        Ok(Code::ALREADY_EXISTS | Code::FAILED_PRECONDITION | Code::RESOURCE_EXHAUSTED) => ErrorKind::Conflict,
        _ => ErrorKind::Guest,
    }
}
