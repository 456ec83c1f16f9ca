//! Errors of calls to the guest.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use bellows_protocol::PROTOCOL_VERSION;
use bellows_protocol::ready::ReadyError as LineError;

use super::agent::AgentError;
use crate::end::VmEnd;
use crate::kind::ErrorKind;

/// Why the guest's agent cannot be called.
#[derive(Debug, thiserror::Error)]
pub enum NotRunning {
    /// [`Vm::wait_ready`](crate::Vm::wait_ready) has not returned yet.
    #[error("the guest's agent is not ready yet")]
    NotReady,
    /// The VM is paused: see [`Vm::resume`](crate::Vm::resume).
    #[error("the VM is paused")]
    Paused,
    /// The VM has ended.
    #[error("the VM has ended: {0}")]
    Ended(VmEnd),
}

impl NotRunning {
    /// The kind of this error.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::NotReady | Self::Paused | Self::Ended(_) => ErrorKind::Conflict,
        }
    }
}

/// Why the guest's agent did not become ready.
#[derive(Debug, thiserror::Error)]
pub enum NotReady {
    /// The socket for the agent's line could not be made.
    #[error("cannot listen on `{path}` for the guest's agent")]
    Bind {
        /// The socket.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// The time limit passed.
    #[error("the guest's agent was not ready after {0:?}")]
    Timeout(Duration),
    /// The VM ended first.
    #[error("the VM ended before the guest's agent was ready: {0}")]
    Ended(VmEnd),
    /// The guest sent another line.
    #[error("the guest's agent sent no ready line")]
    Line(#[source] LineError),
    /// The agent is of another version.
    #[error("the guest's agent speaks protocol version {0}: expected {PROTOCOL_VERSION}")]
    Version(u32),
    /// The connection failed.
    #[error("cannot read the ready line of the guest's agent")]
    Read(#[source] io::Error),
}

impl NotReady {
    /// The kind of this error.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Bind { .. } => ErrorKind::Host,
            Self::Ended(_) => ErrorKind::Conflict,
            Self::Timeout(_) | Self::Line(_) | Self::Version(_) | Self::Read(_) => ErrorKind::Guest,
        }
    }
}

/// Why there is no session with the guest.
#[derive(Debug, thiserror::Error)]
pub enum ReadyError {
    /// The agent did not become ready.
    #[error(transparent)]
    NotReady(#[from] NotReady),
    /// The agent became ready, but a call failed.
    #[error(transparent)]
    Agent(#[from] AgentError),
}

impl ReadyError {
    /// The kind of this error.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::NotReady(error) => error.kind(),
            Self::Agent(error) => error.kind(),
        }
    }
}

/// Why the counters could not be read.
#[derive(Debug, thiserror::Error)]
pub enum StatisticsError {
    /// The agent cannot be asked.
    #[error(transparent)]
    NotRunning(#[from] NotRunning),
    /// The agent failed.
    #[error(transparent)]
    Agent(#[from] AgentError),
}

impl StatisticsError {
    /// The kind of this error.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::NotRunning(error) => error.kind(),
            Self::Agent(error) => error.kind(),
        }
    }
}

/// Why the guest was not asked to switch itself off.
#[derive(Debug, thiserror::Error)]
pub enum PowerOffError {
    /// The agent cannot be asked.
    #[error(transparent)]
    NotRunning(#[from] NotRunning),
    /// The agent failed.
    #[error(transparent)]
    Agent(#[from] AgentError),
}

impl PowerOffError {
    /// The kind of this error.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::NotRunning(error) => error.kind(),
            Self::Agent(error) => error.kind(),
        }
    }
}
