//! The dependencies of Bellows: licences, sources, duplicates, advisories, unused dependencies, and the notices for a package.

mod licence;
mod metadata;
mod notices;
mod policy;
mod unused;

use std::fs;
use std::path::PathBuf;
use std::process::Command;

pub use self::metadata::{MANIFESTS, Metadata};
pub use self::notices::notices;
use self::policy::Policy;
use crate::error::{Error, Result};
use crate::tally::Tally;
use crate::{progress, run, workspace};

/// Checks all dependencies of `workspaces` against `deny.toml` and for use, without the network.
pub fn check(tally: &mut Tally, workspaces: &[Metadata]) {
    tally.add(progress::step("licences, sources and duplicates of dependencies", |_| {
        complain(Policy::read()?.check(workspaces))
    }));
    tally.add(progress::step("unused dependencies", |_| complain(unused::find(workspaces)?)));
    match advisories() {
        Some(mut command) => {
            tally.add(progress::step("advisories", |step| run::quiet(step, &mut command)));
        }
        None => eprintln!("advisories: not checked (they need cargo-deny, and its database: `cargo deny fetch`)"),
    }
}

fn complain(wrong: Vec<String>) -> Result<()> {
    if wrong.is_empty() { Ok(()) } else { Err(Error::other(wrong.join("\n"))) }
}

/// The command that checks advisories, if cargo-deny and its database are present.
fn advisories() -> Option<Command> {
    let variable = |name: &str| std::env::var_os(name).map(PathBuf::from);
    let cargo = variable("CARGO_HOME").or_else(|| Some(variable("HOME")?.join(".cargo")))?;
    fs::read_dir(cargo.join("advisory-dbs")).ok()?.next()?.ok()?;
    run::capture(workspace::cargo().args(["deny", "--version"])).ok()?;
    let mut command = workspace::cargo();
    command.args(["deny", "--offline", "--locked", "check", "advisories"]);
    Some(command)
}

/// Installs a subcommand of cargo if it is missing.
pub fn ensure_tool(name: &str) -> Result<()> {
    let subcommand = name.strip_prefix("cargo-").unwrap_or(name);
    if run::capture(workspace::cargo().args([subcommand, "--version"])).is_ok() {
        return Ok(());
    }
    progress::step(&format!("install {name}"), |step| {
        run::quiet(step, workspace::cargo().args(["install", "--locked", name]))
    })
}
