//! `cargo xtask tidy`: what ARCHITECTURE.md says of the tree, as far as a program can tell.

mod crates;
mod kvm;
mod length;
mod links;
mod modules;
mod rust;
mod unsafe_code;

use std::path::PathBuf;
use std::process::Command;

use crate::error::{Error, Result};
use crate::{run, workspace};

/// Holds the tree against the map.
///
/// # Errors
/// Names everything that differs.
pub fn check() -> Result<()> {
    let files = files()?;
    let sources = rust::read_all(&files)?;
    let wrong: Vec<String> = [
        length::check(&files)?,
        unsafe_code::check(&sources)?,
        kvm::check(&sources),
        modules::check(&sources),
        crates::check()?,
        links::check(&files)?,
    ]
    .concat();
    if wrong.is_empty() { Ok(()) } else { Err(Error::other(wrong.join("\n"))) }
}

/// The files of the checkout, relative to its root: those of git, and those that it does not ignore.
fn files() -> Result<Vec<PathBuf>> {
    let mut command = Command::new("git");
    command.args(["ls-files", "--cached", "--others", "--exclude-standard"]).current_dir(workspace::root());
    let list = run::capture(&mut command)?;
    Ok(list.lines().map(PathBuf::from).filter(|path| workspace::root().join(path).is_file()).collect())
}

/// Reads a file of the checkout as text.
fn read(path: &std::path::Path) -> Result<String> {
    std::fs::read_to_string(workspace::root().join(path)).map_err(Error::at(path))
}
