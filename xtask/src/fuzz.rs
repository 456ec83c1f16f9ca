//! `cargo xtask fuzz`: builds and runs cargo-fuzz targets, and keeps their findings.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::thread;

use crate::error::{Error, Result};
use crate::{dependencies, progress, run, workspace};

/// Number of targets that run side by side.
const SIDE_BY_SIDE: usize = 2;
/// Most memory of a target, in MiB.
const MEMORY: u32 = 2048;
/// Seconds after which one input takes too long.
const INPUT_SECONDS: u32 = 60;
/// libFuzzer's name for the number of inputs tried.
const EXECUTIONS: &str = "stat::number_of_executed_units:";

/// The names of all targets. Installs cargo-fuzz if it is missing.
pub fn names() -> Result<Vec<String>> {
    dependencies::ensure_tool("cargo-fuzz")?;
    let targets = run::capture(&mut cargo_fuzz("list"))?;
    Ok(targets.lines().map(|line| line.trim().to_owned()).filter(|line| !line.is_empty()).collect())
}

/// Builds all targets; returns their names.
pub fn build() -> Result<Vec<String>> {
    let targets = names()?;
    progress::step("build the fuzz targets", |step| run::quiet(step, &mut cargo_fuzz("build")))?;
    Ok(targets)
}

/// Runs one target for some time, starting from its saved corpus; returns the number of inputs tried. Its findings go below
/// the target directory, so that a run does not change the checkout.
pub fn run_target(target: &str, seconds: u64) -> Result<u64> {
    let mut executions = 0;
    progress::step(&format!("fuzz {target}"), |step| {
        let mut command = cargo_fuzz("run");
        command.arg(target).args(corpora(target)?).arg("--").arg(format!("-max_total_time={seconds}"));
        command.args([format!("-rss_limit_mb={MEMORY}"), format!("-timeout={INPUT_SECONDS}")]);
        // A thread that is about to end after an input looks like a leak; real leaks meet the limit above.
        command.args(["-print_final_stats=1", "-detect_leaks=0"]);
        let mut output = String::new();
        let status = run::lines(&mut command, |line| {
            step.line(line);
            output.push_str(line);
            output.push('\n');
            if let Some(count) = line.strip_prefix(EXECUTIONS).and_then(|count| count.trim().parse().ok()) {
                executions = count;
            }
        })?;
        if status.success() { Ok(()) } else { Err(Error::other(format!("{output}\nfuzz {target}: {status}"))) }
    })?;
    Ok(executions)
}

/// Calls `work` with each of `targets`, some side by side, to the end even if one fails.
pub fn each(targets: &[String], work: impl Fn(&str) -> Result<()> + Sync) -> Result<()> {
    let (next, failed) = (Mutex::new(targets.iter()), Mutex::new(Vec::new()));
    let take = || run::lock(&next).next();
    thread::scope(|scope| {
        for _ in 0..SIDE_BY_SIDE {
            scope.spawn(|| {
                while let Some(target) = take() {
                    if let Err(error) = work(target) {
                        eprintln!("{error}");
                        run::lock(&failed).push(target.as_str());
                    }
                }
            });
        }
    });
    let failed = run::lock(&failed);
    if failed.is_empty() { Ok(()) } else { Err(Error::other(format!("failed: {}", failed.join(", ")))) }
}

/// Runs the targets whose names contain `only`; with `keep` the inputs that they then have become their saved corpora.
pub fn run_all(seconds: u64, only: &str, keep: bool) -> Result<()> {
    let targets: Vec<String> = build()?.into_iter().filter(|target| target.contains(only)).collect();
    if targets.is_empty() {
        return Err(Error::other(format!("no fuzz target's name contains `{only}`")));
    }
    each(&targets, |target| {
        if seconds > 0 {
            let executions = run_target(target, seconds)?;
            eprintln!("fuzz {target}: {executions} inputs in {seconds} s");
        }
        if keep { minimise(target) } else { Ok(()) }
    })
}

/// Replaces a target's saved corpus by the fewest inputs with the same coverage.
fn minimise(target: &str) -> Result<()> {
    let fewest = workspace::target_directory().join("fuzz-minimised").join(target);
    if fewest.exists() {
        fs::remove_dir_all(&fewest).map_err(Error::at(&fewest))?;
    }
    fs::create_dir_all(&fewest).map_err(Error::at(&fewest))?;
    progress::step(&format!("minimise the corpus of {target}"), |step| {
        let mut command = cargo_fuzz("run");
        command.arg(target).arg(&fewest).args(corpora(target)?).args(["--", "-merge=1"]);
        run::quiet(step, &mut command)
    })?;
    let saved = saved(target);
    if saved.exists() {
        fs::remove_dir_all(&saved).map_err(Error::at(&saved))?;
    }
    fs::create_dir_all(&saved).map_err(Error::at(&saved))?;
    for entry in fs::read_dir(&fewest).map_err(Error::at(&fewest))? {
        let from = entry.map_err(Error::at(&fewest))?.path();
        let to = saved.join(from.file_name().unwrap_or_default());
        fs::copy(&from, &to).map_err(Error::at(&to))?;
    }
    Ok(())
}

/// The folder for a target's findings, which is made, and that of its saved corpus, if there is one.
fn corpora(target: &str) -> Result<Vec<PathBuf>> {
    let found = workspace::target_directory().join("fuzz-corpus").join(target);
    fs::create_dir_all(&found).map_err(Error::at(&found))?;
    Ok([found, saved(target)].into_iter().filter(|folder| Path::exists(folder)).collect())
}

fn saved(target: &str) -> PathBuf {
    workspace::root().join("fuzz/corpus").join(target)
}

/// Sanitizers are an unstable feature of the compiler; this lets the stable one have it.
fn cargo_fuzz(subcommand: &str) -> Command {
    let mut command = workspace::cargo();
    command.args(["fuzz", subcommand, "--fuzz-dir", "fuzz/libfuzzer"]).env("RUSTC_BOOTSTRAP", "1");
    command
}
