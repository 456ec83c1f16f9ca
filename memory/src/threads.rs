//! The one door through which the library makes threads. A program can have something done at the start of each, such as taking
//! rights away from it.

use std::io;
use std::sync::OnceLock;
use std::thread::{self, JoinHandle};

/// What a thread is for, and so what it asks of the system.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum ThreadRole {
    /// Runs a vCPU.
    Vcpu,
    /// Serves devices on an event loop.
    Device,
    /// Gives memory back to the host.
    Discard,
    /// Reads what the guest's agent says.
    Agent,
    /// Writes the guest's serial console.
    Console,
    /// Makes changes to a VM, as callers of the library do.
    Control,
}

impl ThreadRole {
    /// All roles.
    pub const ALL: [Self; 6] = [Self::Vcpu, Self::Device, Self::Discard, Self::Agent, Self::Console, Self::Control];
}

/// What is done at the start of each thread.
static START: OnceLock<fn(ThreadRole)> = OnceLock::new();

/// Has each thread that the library makes from now on, in all VMs of this process, call `start` first. Only the first call counts;
/// returns whether this is it.
///
/// It is for programs, not for libraries: it is the one thing that all VMs of the process have in common.
pub fn on_thread_start(start: fn(ThreadRole)) -> bool {
    START.set(start).is_ok()
}

/// Starts a thread with a stack of `stack` bytes, or of the default size.
///
/// # Errors
/// The system has no thread.
pub fn spawn<T: Send + 'static>(
    role: ThreadRole,
    name: impl Into<String>,
    stack: Option<usize>,
    work: impl FnOnce() -> T + Send + 'static,
) -> io::Result<JoinHandle<T>> {
    let builder = thread::Builder::new().name(name.into());
    let builder = stack.into_iter().fold(builder, thread::Builder::stack_size);
    builder.spawn(move || {
        if let Some(start) = START.get() {
            start(role);
        }
        work()
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    #[test]
    fn a_thread_begins_with_what_the_program_wants() {
        static SEEN: Mutex<Vec<(ThreadRole, Option<String>)>> = Mutex::new(Vec::new());
        let note = |role| {
            let name = thread::current().name().map(str::to_owned);
            if name.as_deref() == Some("of-this-test") {
                SEEN.lock().unwrap().push((role, name));
            }
        };
        assert!(on_thread_start(note) && !on_thread_start(|_| {}));
        let thread = spawn(ThreadRole::Vcpu, "of-this-test", Some(256 << 10), || SEEN.lock().unwrap().len()).unwrap();
        assert_eq!(thread.join().unwrap(), 1, "before its work");
        assert_eq!(SEEN.lock().unwrap()[0], (ThreadRole::Vcpu, Some("of-this-test".into())));
    }
}
