//! What the states of all components have in common.
//!
//! A component's state is a plain type beside it, with a [`Version`]. A component is restored by making it as ever and then
//! handing it the state that another one like it saved. States come from the host and may be wrong: whatever a component
//! could not have saved is a [`RestoreError`].

use std::fmt::Debug;

pub use bellows_memory::Version;

/// A value that a component like this one cannot have saved.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{what} is {value}: expected {expected}")]
pub struct RestoreError {
    /// Which value.
    pub what: String,
    /// The value.
    pub value: String,
    /// What it has to be.
    pub expected: String,
}

impl RestoreError {
    /// Says that `what` is `value` where it has to be `expected`.
    pub fn new(what: impl Into<String>, value: impl Debug, expected: impl Into<String>) -> Self {
        Self { what: what.into(), value: format!("{value:?}"), expected: expected.into() }
    }
}

/// Checks that `what` has the value that it must have.
///
/// # Errors
/// It has another.
pub fn expect<T: Debug + PartialEq + ?Sized>(what: &str, value: &T, expected: &T) -> Result<(), RestoreError> {
    if value == expected { Ok(()) } else { Err(RestoreError::new(what, value, format!("{expected:?}"))) }
}
