//! `cargo xtask test`: everything that must pass, in one command that ends with a count.

use std::path::Path;
use std::process::Command;

use bellows_tests::lab::Host;

use crate::artefacts::{Artefacts, run_where_kvm_is};
use crate::cache::Cache;
use crate::error::{Error, Result};
use crate::{fuzz, packages, progress, run, workspace};

/// Seconds each fuzz target gets here; `cargo xtask fuzz` is for more.
const FUZZ_SECONDS: u64 = 5;

/// How many checks passed and failed so far.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Tally {
    passed: u64,
    failed: u64,
}

impl Tally {
    /// Adds what a line of a Rust test program says: `test result: ok. 5 passed; 0 failed; ...`.
    fn add_line(&mut self, line: &str) {
        let Some((_, counts)) = line.strip_prefix("test result: ").and_then(|rest| rest.split_once(". ")) else {
            return;
        };
        for count in counts.split("; ") {
            match count.split_once(' ').map(|(number, what)| (number.parse::<u64>(), what)) {
                Some((Ok(number), "passed")) => self.passed += number,
                Some((Ok(number), "failed")) => self.failed += number,
                _ => {}
            }
        }
    }

    /// Adds one check that is not a Rust test.
    fn add<T>(&mut self, result: Result<T>) -> Option<T> {
        match result {
            Ok(value) => {
                self.passed += 1;
                Some(value)
            }
            Err(error) => {
                eprintln!("{error}");
                self.failed += 1;
                None
            }
        }
    }
}

/// Runs all checks, whatever fails on the way.
pub fn run(install: bool) -> Result<()> {
    let host = Host::detect();
    packages::ensure(&packages::all(host), install)?;
    let mut tally = Tally::default();
    check(&mut tally, "formatting", workspace::cargo().args(["fmt", "--all", "--check"]));
    check(
        &mut tally,
        "clippy",
        workspace::cargo().args(["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"]),
    );
    // Not among all targets, because only KVM runs it.
    check(
        &mut tally,
        "clippy of the end-to-end tests",
        workspace::cargo().args(["clippy", "-p", "bellows-tests", "--test", "e2e", "--", "-D", "warnings"]),
    );
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
    if workspace::root().join("fuzz").exists() {
        for target in tally.add(fuzz::build()).unwrap_or_default() {
            tally.add(fuzz::run_target(&target, FUZZ_SECONDS));
        }
    }
    end_to_end(&mut tally, host, install);

    println!("{} passed, {} failed", tally.passed, tally.failed);
    if tally.failed == 0 { Ok(()) } else { Err(Error::other("not everything passed")) }
}

/// The tests that need KVM, here or in the lab.
fn end_to_end(tally: &mut Tally, host: Host, install: bool) {
    let prepared = Cache::open().and_then(|cache| {
        let artefacts = Artefacts::build(&cache, host, install)?;
        let program = workspace::end_to_end_tests()?;
        Ok((cache, artefacts, program))
    });
    let Some((cache, artefacts, program)) = tally.add(prepared) else { return };
    eprintln!("end-to-end tests, host: {host}");
    let result = run_end_to_end(tally, host, &cache, &artefacts, &program);
    if let Err(error) = result {
        tally.add::<()>(Err(error));
    }
}

fn run_end_to_end(tally: &mut Tally, host: Host, cache: &Cache, artefacts: &Artefacts, program: &Path) -> Result<()> {
    // Nested guests share two emulated processors: tests that run beside each other would only time out.
    let arguments = ["--test-threads=1"];
    let before = *tally;
    let code = run_where_kvm_is(host, cache, artefacts, program, &arguments, |line| {
        eprintln!("{line}");
        tally.add_line(line);
    })?;
    // A program that died says nothing of failed tests.
    if code != 0 && tally.failed == before.failed {
        return Err(Error::other(format!("end-to-end tests ended with exit code {code}")));
    }
    Ok(())
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
        if tally.failed == before.failed {
            tally.add::<()>(Err(error));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_what_test_programs_say() {
        let mut tally = Tally::default();
        tally.add_line("test result: ok. 5 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.00s");
        tally.add_line("test result: FAILED. 2 passed; 3 failed; 0 ignored; 0 measured; 0 filtered out");
        tally.add_line("running 5 tests");
        assert_eq!(tally, Tally { passed: 7, failed: 3 });
    }
}
