//! What sort of error it is, for callers that branch: a server that answers with a status code, a program that tries again.

use serde::Serialize;

/// The sort of an error. Every public error has one, beside its text.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorKind {
    /// The caller asked for something that no VM like this can do: a value, a file or a combination of them.
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

/// Says what sort of error each variant is.
macro_rules! kinds {
    ($($error:ty { $($pattern:pat => $kind:expr,)+ })+) => {
        $(impl $error {
            /// What sort of error it is.
            #[must_use]
            pub fn kind(&self) -> ErrorKind {
                #[allow(clippy::enum_glob_use, reason = "the variants of one error at a time")]
                use ErrorKind::{Conflict, Guest, Host, Internal, Invalid, NotFound};
                match self {
                    $($pattern => $kind,)+
                }
            }
        })+
    };
}
