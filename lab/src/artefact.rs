//! Artefacts that `cargo xtask` makes for the programs that run on a host with KVM.

use std::io;
use std::path::PathBuf;

/// The path of an artefact, from the environment variable that `cargo xtask` sets.
///
/// # Errors
/// The variable is not set.
pub fn artefact(variable: &str) -> io::Result<PathBuf> {
    let path = std::env::var_os(variable).map(PathBuf::from);
    path.ok_or_else(|| {
        io::Error::other(format!("{variable} is not set: run `cargo xtask test` or `cargo xtask bench`"))
    })
}
