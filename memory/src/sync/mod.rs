//! Locks that do not fail, and the model in which tests explore how threads meet at them.
//!
//! The standard library poisons a lock when a thread panics while it holds it. Whatever these locks guard is whole after
//! every single step of every thread, so a panic leaves nothing half done behind: a poisoned lock is used like any other.
//!
//! In this crate's own tests the same types also take part in a *model* (`sync::model`), which runs the threads of a test
//! one at a time and decides at each lock, by chance, whose step comes next.

// What it exports is documented in `plain`.
#[cfg(test)]
#[allow(missing_docs)]
pub mod model;
#[cfg(not(test))]
mod plain;

#[cfg(test)]
pub use model::{Condvar, Mutex, MutexGuard};
#[cfg(not(test))]
pub use plain::{Condvar, Mutex, MutexGuard};
