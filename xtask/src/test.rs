//! `cargo xtask test`: everything that must pass, in one command that ends with a count.

use std::process::Command;

use bellows_lab::Host;

use crate::error::{Error, Result};
use crate::selection::Selection;
use crate::tally::Tally;
use crate::{bench, kvm_tests, package, packages, progress, run, tidy, workspace};

/// How many imports `cargo xtask stress` kills.
const KILLED_IMPORTS: u32 = 200;

/// How long `cargo xtask stress` suspends and resumes each device: ten minutes for all.
const CONTRACT_MINUTES: u32 = 2;

/// The crates that programs can build on, and the programs: each can be packaged for a registry.
const PACKAGED: [&str; 9] = [
    "bellows",
    "bellows-agent",
    "bellows-archive",
    "bellows-block",
    "bellows-devices",
    "bellows-disk",
    "bellows-memory",
    "bellows-protocol",
    "bellows-vmm",
];

/// Runs all checks, whatever fails on the way.
pub fn run(install: bool) -> Result<()> {
    let host = Host::detect();
    packages::ensure(&packages::all(host), install)?;
    let mut tally = Tally::default();
    tidy::run(&mut tally);
    check(&mut tally, "formatting", workspace::cargo().args(["fmt", "--all", "--check"]));
    check(
        &mut tally,
        "clippy",
        workspace::cargo().args(["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"]),
    );
    // They are not among all targets, because only KVM runs them. With the whole workspace no dependency is built anew.
    let mut clippy = workspace::cargo();
    clippy.args(["clippy", "--workspace"]);
    for name in kvm_tests::PROGRAMS {
        clippy.args(["--test", name]);
    }
    check(&mut tally, "clippy of the tests that need KVM", clippy.args(["--", "-D", "warnings"]));
    rust_tests(
        &mut tally,
        "unit, property and device tests",
        workspace::cargo().args(["test", "--workspace", "--no-fail-fast"]),
    );
    check(
        &mut tally,
        "documentation",
        workspace::cargo().args(["doc", "--workspace", "--no-deps"]).env("RUSTDOCFLAGS", "-D warnings"),
    );
    // What they are made of has been built and tested: that their files are all there is left.
    let mut packaging = workspace::cargo();
    packaging.args(["package", "--no-verify", "--allow-dirty", "--offline"]);
    for name in PACKAGED {
        packaging.args(["--package", name]);
    }
    check(&mut tally, "packages of crates", &mut packaging);
    tally.add(package::test(install));
    tally.add(bench::counted::check(install));
    kvm_tests::run(&mut tally, &[], Selection::EachRun, install);
    tally.conclude()
}

/// Runs the end-to-end tests that are not part of every run.
pub fn end_to_end(install: bool) -> Result<()> {
    packages::ensure(&packages::all(Host::detect()), install)?;
    let mut tally = Tally::default();
    kvm_tests::run(&mut tally, &[], Selection::Others, install);
    tally.conclude()
}

/// Kills imports at random moments and looks at the store after each.
pub fn killed_imports(install: bool) -> Result<()> {
    packages::ensure(&packages::all(Host::detect()), install)?;
    let mut tally = Tally::default();
    rust_tests(
        &mut tally,
        &format!("{KILLED_IMPORTS} killed imports"),
        workspace::cargo()
            .args(["test", "-p", "bellows-block", "killed_imports"])
            .env("BELLOWS_TEST_KILLS", KILLED_IMPORTS.to_string()),
    );
    tally.conclude()
}

/// Suspends and resumes each device while a driver on another thread uses it. Both threads get a processor: one test at a time.
pub fn device_contract(install: bool) -> Result<()> {
    packages::ensure(&packages::all(Host::detect()), install)?;
    let mut tally = Tally::default();
    rust_tests(
        &mut tally,
        &format!("{CONTRACT_MINUTES} minutes of suspending for each device"),
        workspace::cargo()
            .args(["test", "--workspace", "--lib", "loses_nothing_to_threads_that_race", "--", "--test-threads=1"])
            .env("BELLOWS_CONTRACT_MINUTES", CONTRACT_MINUTES.to_string()),
    );
    tally.conclude()
}

/// Runs the tests that are about chance, for so many `minutes` of VMs' life.
pub fn stress(minutes: u32, install: bool) -> Result<()> {
    packages::ensure(&packages::all(Host::detect()), install)?;
    let mut tally = Tally::default();
    let environment = [("BELLOWS_STRESS_MINUTES", minutes.to_string())];
    kvm_tests::run(&mut tally, &environment, Selection::ByChance, install);
    tally.conclude()
}

/// Runs the tests that need KVM whose names contain one of `names`.
pub fn run_with_kvm(names: &[String], install: bool) -> Result<()> {
    let mut tally = Tally::default();
    kvm_tests::run(&mut tally, &[], Selection::Named(names), install);
    tally.conclude()
}

fn check(tally: &mut Tally, title: &str, command: &mut Command) {
    tally.add(progress::step(title, |step| run::quiet(step, command)));
}

fn rust_tests(tally: &mut Tally, title: &str, command: &mut Command) {
    let before = *tally;
    let mut output = String::new();
    let result = progress::step(title, |step| {
        let status = run::lines(command, |line| {
            step.line(line);
            tally.add_line(line);
            output.push_str(line);
            output.push('\n');
        })?;
        if status.success() { Ok(()) } else { Err(Error::other(format!("{title}: {status}"))) }
    });
    if let Err(error) = result {
        eprintln!("{output}");
        if tally.failed() == before.failed() {
            tally.add::<()>(Err(error));
        }
    }
}
