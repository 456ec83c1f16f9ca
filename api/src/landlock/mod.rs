//! Landlock: the files that a monitor may still open, and what it may do with them, where no jail keeps the rest away.
//!
//! [`Allowed`] is plain data, which is gathered from a VM's configuration and from options. [`restrict`] takes the rest away for
//! good. A program that embeds the library decides by itself whether it wants any of this.

mod allowed;
mod rule;

use std::fs;
use std::io;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use landlock::{
    ABI, Access, AccessFs, AccessNet, CompatLevel, Compatible, PathBeneath, PathFd, Ruleset, RulesetAttr,
    RulesetCreatedAttr, RulesetError, RulesetStatus, Scope,
};

pub use self::allowed::Allowed;
pub use self::rule::PathRule;

/// Rights of kernels after this one have not been tried: they are left as they are.
const TRIED: ABI = ABI::V7;
/// Before it, no file can get another directory, as those of a layer store do.
const LEAST: ABI = ABI::V2;
/// Time for threads that have been joined to leave the kernel's list.
const THREADS_LIMIT: Duration = Duration::from_secs(5);
const THREADS: &str = "/proc/self/task";

/// Why a process is not restricted.
#[derive(Debug, thiserror::Error)]
pub enum LandlockError {
    /// The kernel.
    #[error("the kernel has no Landlock: expected Linux 5.19 or later, with `landlock` in `lsm=`")]
    Missing,
    /// Those that are there would keep their rights.
    #[error("the process has {0} threads: expected one when it restricts itself")]
    Threads(usize),
    /// The threads cannot be counted.
    #[error("cannot count the threads in `{THREADS}`")]
    Count(#[source] io::Error),
    /// A file that is to be allowed.
    #[error("cannot {action} `{path}`")]
    File {
        /// The action.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// The kernel refused.
    #[error("cannot restrict the process")]
    Refused(#[from] RulesetError),
}

/// Whether this kernel can restrict a process.
#[must_use]
pub fn is_available() -> bool {
    let ruleset = Ruleset::default().set_compatibility(CompatLevel::HardRequirement);
    ruleset.handle_access(AccessFs::from_all(LEAST)).and_then(Ruleset::create).is_ok()
}

/// As [`restrict`], for the whole process, which must have one thread.
///
/// # Errors
/// As there, or the process has other threads. Then nothing is restricted.
pub(crate) fn restrict_process(allowed: &Allowed) -> Result<(), LandlockError> {
    await_single_thread()?;
    restrict(allowed)
}

/// Leaves this thread, and those that it makes from now on, what is `allowed`: no other file, no program to execute, no TCP, and, from Linux
/// 6.12 on, no abstract socket and no process outside. Descriptors that are open stay.
///
/// # Errors
/// The kernel has no Landlock, or refused. Then nothing is restricted.
pub fn restrict(allowed: &Allowed) -> Result<(), LandlockError> {
    if !is_available() {
        return Err(LandlockError::Missing);
    }
    let scopes = if allowed.signals { Scope::AbstractUnixSocket.into() } else { Scope::from_all(TRIED) };
    let mut ruleset = Ruleset::default()
        .handle_access(AccessFs::from_all(TRIED))?
        .handle_access(AccessNet::from_all(TRIED))?
        .scope(scopes)?
        .create()?;
    for (path, access) in &allowed.paths {
        // What is missing cannot be opened in any case, and the error of whoever tries says why.
        match PathFd::new(path) {
            Ok(found) => ruleset = ruleset.add_rule(PathBeneath::new(found, *access))?,
            Err(error) => tracing::debug!(%error, path = %path.display(), "nothing is there to be allowed"),
        }
    }
    match ruleset.restrict_self()?.ruleset {
        RulesetStatus::FullyEnforced | RulesetStatus::PartiallyEnforced => Ok(()),
        RulesetStatus::NotEnforced => Err(LandlockError::Missing),
    }
}

/// Waits until threads that have been joined are gone: the kernel says so first to whoever joins them.
fn await_single_thread() -> Result<(), LandlockError> {
    let begun = Instant::now();
    loop {
        match fs::read_dir(THREADS).map_err(LandlockError::Count)?.count() {
            1 => return Ok(()),
            count if begun.elapsed() > THREADS_LIMIT => return Err(LandlockError::Threads(count)),
            _ => thread::yield_now(),
        }
    }
}
