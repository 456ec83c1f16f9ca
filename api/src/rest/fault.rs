//! Why a request was refused: a status code, and a text for people.

use std::error::Error;
use std::fmt;

use bellows_vmm::ErrorKind;

use crate::error::with_causes;

/// A refused request. Its body is `{"fault_message": "..."}`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Fault {
    pub(crate) status: u16,
    pub(crate) message: String,
    /// With status 405: the methods that the path has.
    pub(crate) allow: Option<&'static str>,
}

impl Fault {
    /// The request is wrong, or the VM's state excludes it: 400, as all of Firecracker's.
    pub(crate) fn new(message: impl Into<String>) -> Self {
        Self::with_status(400, message)
    }

    /// A refusal with a status of its own.
    pub(crate) fn with_status(status: u16, message: impl Into<String>) -> Self {
        Self { status, message: message.into(), allow: None }
    }

    /// Bellows' own resources: there is none of that name.
    pub(crate) fn missing(message: impl Into<String>) -> Self {
        Self::with_status(404, message)
    }

    /// Bellows' own resources: the request and what there is exclude each other.
    pub(crate) fn conflict(message: impl Into<String>) -> Self {
        Self::with_status(409, message)
    }

    /// Bellows' own resources: a status for each kind of error.
    pub(crate) fn of_kind(kind: ErrorKind, error: &dyn Error) -> Self {
        let status = match kind {
            ErrorKind::Invalid => 400,
            ErrorKind::NotFound => 404,
            ErrorKind::Conflict => 409,
            ErrorKind::Guest => 502,
            ErrorKind::Host => 503,
            ErrorKind::Internal => 500,
        };
        Self::with_status(status, with_causes(error))
    }

    /// The same with the causes of an error.
    pub(crate) fn of(error: &dyn Error) -> Self {
        Self::new(with_causes(error))
    }

    /// A field has a value that is not possible.
    pub(crate) fn value(field: &str, value: impl fmt::Display, expected: impl fmt::Display) -> Self {
        Self::new(format!("`{field}` is {value}: expected {expected}"))
    }

    /// A field asks for what Bellows does not have yet.
    pub(crate) fn unsupported(field: &str, value: impl fmt::Display, expected: impl fmt::Display) -> Self {
        Self::new(format!("`{field}` is {value}, which is not supported yet: expected {expected}"))
    }

    /// The body has more than `limit` bytes.
    pub(crate) fn too_large(limit: usize) -> Self {
        Self::with_status(413, format!("the body is too large: expected at most {limit} bytes"))
    }

    /// The body as JSON.
    pub(crate) fn body(&self) -> Vec<u8> {
        serde_json::json!({ "fault_message": self.message }).to_string().into_bytes()
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl Error for Fault {}
