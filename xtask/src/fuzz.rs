//! `cargo xtask fuzz`: builds and runs every cargo-fuzz target.

use std::process::Command;

use crate::error::{Error, Result};
use crate::{progress, run, workspace};

/// The names of all targets. Builds them, and installs cargo-fuzz where it is missing.
pub fn build() -> Result<Vec<String>> {
    if run::capture(workspace::cargo().args(["fuzz", "--version"])).is_err() {
        progress::step("install cargo-fuzz", |step| {
            run::quiet(step, workspace::cargo().args(["install", "--locked", "cargo-fuzz"]))
        })?;
    }
    let targets = run::capture(&mut cargo_fuzz("list"))?;
    progress::step("build the fuzz targets", |step| run::quiet(step, &mut cargo_fuzz("build")))?;
    Ok(targets.lines().map(|line| line.trim().to_owned()).filter(|line| !line.is_empty()).collect())
}

/// Runs one target for some time, starting from its saved corpus. What it finds goes below the target directory, so that
/// a run doesn't change the checkout.
pub fn run_target(target: &str, seconds: u64) -> Result<()> {
    let found = workspace::target_directory().join("fuzz-corpus").join(target);
    std::fs::create_dir_all(&found).map_err(Error::at(&found))?;
    let saved = workspace::root().join("fuzz/corpus").join(target);
    progress::step(&format!("fuzz {target}"), |step| {
        let mut command = cargo_fuzz("run");
        command.arg(target).arg(found);
        if saved.exists() {
            command.arg(saved);
        }
        command.args(["--", &format!("-max_total_time={seconds}"), "-rss_limit_mb=2048", "-print_final_stats=1"]);
        run::quiet(step, &mut command)
    })
}

/// Runs all targets, one after the other, to the end even where one fails.
pub fn run_all(seconds: u64) -> Result<()> {
    let mut failed = Vec::new();
    for target in build()? {
        if let Err(error) = run_target(&target, seconds) {
            eprintln!("{error}");
            failed.push(target);
        }
    }
    if failed.is_empty() { Ok(()) } else { Err(Error::other(format!("failed: {}", failed.join(", ")))) }
}

/// Sanitizers are an unstable feature of the compiler; this lets the stable one have it.
fn cargo_fuzz(subcommand: &str) -> Command {
    let mut command = workspace::cargo();
    command.args(["fuzz", subcommand, "--fuzz-dir", "fuzz"]).env("RUSTC_BOOTSTRAP", "1");
    command
}
