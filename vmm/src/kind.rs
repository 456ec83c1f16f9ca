//! What sort of error it is, for callers that branch: a server that answers with a status code, a program that tries again.

use std::io;

use serde::Serialize;

/// The sort of an error. Every error of the library has one, beside its text.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorKind {
    /// The caller asked for something that no VM like this can do: a value, a file, or several together.
    Invalid,
    /// The caller named something that the VM does not have.
    NotFound,
    /// The request and the state of the VM exclude each other: the same request may be right at another time.
    Conflict,
    /// The guest did not do its part, or not in time.
    Guest,
    /// The host refused: a file, memory, a descriptor, KVM.
    Host,
    /// A fault of the monitor.
    Internal,
}

impl ErrorKind {
    /// The sort of an error with a file that the caller named.
    pub(crate) fn of_file(error: &io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::NotFound
            | io::ErrorKind::NotADirectory
            | io::ErrorKind::IsADirectory
            | io::ErrorKind::InvalidInput
            | io::ErrorKind::PermissionDenied => Self::Invalid,
            _ => Self::Host,
        }
    }
}
