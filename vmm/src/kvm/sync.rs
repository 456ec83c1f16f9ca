//! What the gate synchronises with. Its model has the same names, of types whose steps it orders.

pub(super) use std::sync::atomic::{AtomicBool, Ordering};
pub(super) use std::sync::{Arc, Condvar, Mutex, MutexGuard};
pub(super) use std::thread::{self, ThreadId};
