//! The gate's synchronisation types. Its model has types of the same names, whose steps it orders.

pub(super) use std::sync::atomic::{AtomicBool, Ordering};
pub(super) use std::sync::{Arc, Condvar, Mutex, MutexGuard};
pub(super) use std::thread::{self, ThreadId};
