//! `cargo xtask test`: everything that must pass, in one command that ends with a count.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;

use bellows_tests::bench::layers::Way;
use bellows_tests::lab::{Host, LabBuilder};

use crate::artefacts::Artefacts;
use crate::bench::layers;
use crate::cache::Cache;
use crate::error::{Error, Result};
use crate::kvm_host::KvmHost;
use crate::{fuzz, packages, progress, run, workspace};

/// Seconds each fuzz target gets here; `cargo xtask fuzz` is for more.
const FUZZ_SECONDS: u64 = 5;

/// How many imports `cargo xtask stress` kills.
const KILLED_IMPORTS: u32 = 200;

/// Test programs that need KVM, by package.
const WITH_KVM: [(&str, &str); 2] = [("bellows-vmm", "machine"), END_TO_END];
const END_TO_END: (&str, &str) = ("bellows-tests", "e2e");

/// End-to-end tests that `cargo xtask stress` runs and not every run. Those of `stress` take long; the others belong into every run, but
/// one attacker's and one program's fail, and the rest has not been seen to pass.
const LONG: [&str; 6] =
    ["stress::", "base_memory::an_attacker", "base_memory::with_a_stock", "streams::", "programs::", "goes_as"];

/// VMs of one image that run side by side, and how it reaches them; `cargo xtask bench layers` is for more.
const SHARING_VMS: u32 = 8;
const SHARING_WAYS: [Way; 3] = [Way::Copies, Way::BlkFlat, Way::PmemFlat];

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

    /// Says how many there were.
    fn conclude(self) -> Result<()> {
        println!("{} passed, {} failed", self.passed, self.failed);
        if self.failed == 0 { Ok(()) } else { Err(Error::other("not everything passed")) }
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
    // They are not among all targets, because only KVM runs them.
    let mut clippy = workspace::cargo();
    clippy.arg("clippy");
    for (package, name) in WITH_KVM {
        clippy.args(["-p", package, "--test", name]);
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
    if workspace::root().join("fuzz").exists() {
        let targets = tally.add(fuzz::build()).unwrap_or_default();
        let counted = Mutex::new(&mut tally);
        let lock = || counted.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        // What fails is counted.
        let _ = fuzz::each(&targets, |target| {
            let result = fuzz::run_target(target, FUZZ_SECONDS);
            lock().add(result);
            Ok(())
        });
    }
    let skipped = LONG.map(|name| format!("--skip={name}"));
    with_kvm(&mut tally, &[], &skipped.each_ref().map(String::as_str), true, install);
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

/// Runs the tests that are about chance, for so many `minutes` of VMs' life.
pub fn stress(minutes: u32, install: bool) -> Result<()> {
    packages::ensure(&packages::all(Host::detect()), install)?;
    let mut tally = Tally::default();
    let environment = [("BELLOWS_STRESS_MINUTES", minutes.to_string())];
    let arguments: Vec<&str> = ["--nocapture"].into_iter().chain(LONG).collect();
    with_kvm(&mut tally, &environment, &arguments, false, install);
    tally.conclude()
}

/// Runs the tests that need KVM whose names contain `name`.
pub fn run_with_kvm(name: &str, install: bool) -> Result<()> {
    let mut tally = Tally::default();
    with_kvm(&mut tally, &[], &["--nocapture", name], false, install);
    tally.conclude()
}

/// The tests that need KVM, here or in the lab, and if wanted a look at what VMs share. `arguments` go to each test program.
fn with_kvm(
    tally: &mut Tally,
    environment: &[(&'static str, String)],
    arguments: &[&str],
    sharing: bool,
    install: bool,
) {
    let host = Host::detect();
    let prepared = Cache::open().and_then(|cache| {
        let artefacts = Artefacts::build(&cache, host, install)?;
        let build = |(package, name)| workspace::test_program(package, name);
        let tests = WITH_KVM.into_iter().map(build).collect::<Result<Vec<_>>>()?;
        let shared = if sharing {
            Some((workspace::benchmark("bellows-tests", layers::NAME)?, layers::Inputs::make(&cache, &artefacts)?))
        } else {
            None
        };
        Ok((cache, artefacts, tests, shared))
    });
    let Some((cache, artefacts, tests, shared)) = tally.add(prepared) else { return };
    eprintln!("tests that need KVM, host: {host}");
    let programs: Vec<PathBuf> = tests.iter().chain(shared.iter().map(|(program, _)| program)).cloned().collect();
    let furnish = |lab| shared.iter().fold(furnish(lab), |lab, (_, inputs)| inputs.furnish(lab));
    let result = KvmHost::start(host, &cache, &artefacts, &programs, furnish).and_then(|kvm_host| {
        let kvm_host = environment.iter().fold(kvm_host, |host, (variable, value)| host.env(variable, value));
        for program in &tests {
            run_program(tally, &kvm_host, program, arguments)?;
        }
        if let Some((program, inputs)) = &shared {
            let arguments = inputs.arguments(host, SHARING_VMS, 0, &SHARING_WAYS);
            tally.add(check_sharing(&kvm_host, program, &arguments, host));
        }
        kvm_host.stop()
    });
    if let Err(error) = result {
        tally.add::<()>(Err(error));
    }
}

/// One test at a time: guests share two processors where they are emulated, and tests that run beside each other would only
/// time out.
fn run_program(tally: &mut Tally, host: &KvmHost, program: &Path, arguments: &[&str]) -> Result<()> {
    let before = *tally;
    let arguments: Vec<&str> = ["--test-threads=1"].into_iter().chain(arguments.iter().copied()).collect();
    let code = host.run(program, &arguments, |line| {
        eprintln!("{line}");
        tally.add_line(line);
    })?;
    // A program that died says nothing of failed tests.
    if code != 0 && tally.failed == before.failed {
        tally.add::<()>(Err(Error::other(format!("{} ended with exit code {code}", program.display()))));
    }
    Ok(())
}

/// Some VMs of one image must read hardly more from the disk than one does, whichever way the image reaches them.
fn check_sharing(kvm_host: &KvmHost<'_>, program: &Path, arguments: &[String], host: Host) -> Result<()> {
    let mut lines = Vec::new();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let code = kvm_host.run(program, &arguments, |line| match serde_json::from_str(line) {
        Ok(line) => lines.push(line),
        Err(_) => eprintln!("{line}"),
    })?;
    let report = layers::Report::new(host, &lines);
    eprint!("{report}");
    match (code, report.shortfalls()) {
        (0, shortfalls) if shortfalls.is_empty() => Ok(()),
        (0, shortfalls) => Err(Error::other(shortfalls.join("\n"))),
        (code, _) => Err(Error::other(format!("{} ended with exit code {code}", program.display()))),
    }
}

/// The tests compare with what GNU tar does, and make file systems; busybox's tar knows no extended attributes.
fn furnish(lab: LabBuilder) -> LabBuilder {
    lab.program("/usr/bin/tar", "/usr/local/bin/tar").program("/usr/sbin/mkfs.ext4", "/usr/local/bin/mkfs.ext4")
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
