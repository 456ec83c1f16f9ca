//! `cargo xtask tidy`: checks the rules of ARCHITECTURE.md for the tree that a program can check.

mod crates;
mod kvm;
mod length;
mod links;
mod modules;
mod rust;
mod unsafe_code;

use std::path::PathBuf;
use std::process::Command;

use crate::dependencies::{self, MANIFESTS, Metadata};
use crate::error::{Error, Result};
use crate::tally::Tally;
use crate::{progress, run, workspace};

/// Checks the tree against the map, and its dependencies against `deny.toml`.
pub fn run(tally: &mut Tally) {
    // The checks ask cargo about crates without the network, also about crates that no build has needed so far.
    tally.add(progress::step("fetch crates", |step| {
        let fetch =
            |manifest| run::quiet(step, workspace::cargo().args(["fetch", "--locked", "--manifest-path", manifest]));
        MANIFESTS.into_iter().try_for_each(fetch)
    }));
    let Some(workspaces) = tally.add(progress::step("ask cargo about crates", |_| Metadata::read_all())) else {
        return;
    };
    tally.add(progress::step("the tree", |_| check(&workspaces)));
    dependencies::check(tally, &workspaces);
}

/// Names everything in the tree that differs from the map.
fn check(workspaces: &[Metadata]) -> Result<()> {
    let files = files()?;
    let sources = rust::read_all(&files)?;
    let wrong: Vec<String> = [
        length::check(&files)?,
        unsafe_code::check(&sources)?,
        kvm::check(&sources),
        modules::check(&sources),
        crates::check(workspaces),
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
