//! End-to-end tests, the lab they run in, and benchmarks.

pub mod bench;
pub mod lab;
pub mod mount;

use std::io;
use std::path::PathBuf;

/// The path of what a test or benchmark needs and `cargo xtask` has made; it is in the environment.
///
/// # Errors
/// It's not there.
pub fn artefact(variable: &str) -> io::Result<PathBuf> {
    let path = std::env::var_os(variable).map(PathBuf::from);
    path.ok_or_else(|| {
        io::Error::other(format!("{variable} is not set: run `cargo xtask test` or `cargo xtask bench`"))
    })
}
