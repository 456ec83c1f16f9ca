//! Filters of system calls: what a program that a guest has taken over may still ask the kernel for.
//!
//! [`confine`] comes late: the arguments are read, images are imported and helper programs run. From then on the whole process has the list
//! of `lists::process`, and threads of the library get a shorter one as they begin. Filters never become wider again.

mod allocator;
mod install;
mod lists;
mod names;
mod violation;

use std::collections::HashMap;
use std::io::{self, Write};
use std::panic;
use std::process::abort;
use std::sync::OnceLock;

use bellows_vmm::{ThreadRole, on_thread_start};
use seccompiler::{BackendError, BpfProgram, SeccompAction, apply_filter_all_threads};

use self::install::{Threads, install};

/// The variable that has violations logged by the kernel, and otherwise allowed. It is for finding out what the lists lack.
const LOG_ONLY: &str = "BELLOWS_SECCOMP";

/// The filters of threads that begin.
static FILTERS: OnceLock<HashMap<ThreadRole, BpfProgram>> = OnceLock::new();

/// Why there is no filter.
#[derive(Debug, thiserror::Error)]
pub enum SeccompError {
    /// The list cannot be made into a filter.
    #[error("cannot make the filter of system calls")]
    Compile(#[from] BackendError),
    /// The kernel refused.
    #[error("cannot install the filter of system calls")]
    Install(#[source] io::Error),
    /// The kernel refused that `clone3` is hidden.
    #[error("cannot install the filter that hides `clone3`")]
    Hide(#[from] seccompiler::Error),
    /// The allocator cannot be asked to read its files.
    #[error("cannot have the allocator read its files")]
    Allocator(#[source] io::Error),
    /// The handler of violations.
    #[error("cannot install the handler of SIGSYS")]
    Handler(#[source] io::Error),
}

/// What threads without a list of their own may make sockets for. Threads that serve a guest make none beyond this host.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Reach {
    /// Unix sockets.
    Host,
    /// And those of the Internet, for what is sent to a collector.
    Internet,
}

/// Filters the system calls of this process from now on, in all its threads. It may still end its `children`, and connect as far as `reach`
/// says.
///
/// # Errors
/// The kernel has no such filters, or refused this one.
pub fn confine(children: &[u32], reach: Reach) -> Result<(), SeccompError> {
    let process = lists::process(otherwise(), std::process::id(), children, reach)?;
    confine_threads()?;
    // The standard one may look for symbols in files, which few threads may open.
    panic::set_hook(Box::new(|info| say(format_args!("internal error: {info}"))));
    apply_filter_all_threads(&lists::no_clone3()?)?;
    install(&process, Threads::All).map_err(SeccompError::Install)
}

/// Filters the system calls of threads that serve a guest and begin from now on; all others may do what they like. It is for a program
/// that embeds the library and does more than that, such as starting other programs.
///
/// # Errors
/// A filter cannot be made, or there is no handler of violations.
pub fn confine_threads() -> Result<(), SeccompError> {
    let mut filters = HashMap::new();
    for role in ThreadRole::ALL {
        if let Some(filter) = lists::of_role(role, otherwise(), std::process::id())? {
            filters.insert(role, filter);
        }
    }
    allocator::settle().map_err(SeccompError::Allocator)?;
    violation::install().map_err(SeccompError::Handler)?;
    if FILTERS.set(filters).is_ok() {
        on_thread_start(begin);
    }
    Ok(())
}

/// What becomes of a call that is not listed.
fn otherwise() -> SeccompAction {
    let log_only = std::env::var_os(LOG_ONLY).is_some_and(|value| value == "log");
    if log_only { SeccompAction::Log } else { SeccompAction::Trap }
}

/// Gives a thread that begins its own filter.
fn begin(role: ThreadRole) {
    let Some(filter) = FILTERS.get().and_then(|filters| filters.get(&role)) else { return };
    if let Err(error) = install(filter, Threads::This) {
        // A thread that does a guest's work without a filter must not be.
        say(format_args!("cannot install the filter of system calls of a thread: {error}"));
        abort();
    }
}

/// Prints a message on standard error, which may have no reader.
fn say(text: std::fmt::Arguments<'_>) {
    let _ = writeln!(io::stderr(), "bellows: {text}");
}

#[cfg(test)]
#[path = "seccomp_test.rs"]
mod tests;
