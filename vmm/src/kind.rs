//! Kinds of errors, for callers that branch: a server that answers with a status code, a program that tries again.

use std::io;

use serde::Serialize;

/// The kind of an error. Every error of the library has one, beside its text.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorKind {
    /// The request cannot succeed on any VM like this: a value, a file or a combination of them is invalid.
    Invalid,
    /// The VM does not have what the caller named.
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
    /// The kind of an error with a file that the caller named.
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
