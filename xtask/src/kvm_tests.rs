//! The tests that need KVM, here or in labs, each in a process of its own.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::thread;
use std::time::Instant;

use bellows_bench::layers::Way;
use bellows_lab::{Host, LabBuilder};

use crate::artefacts::Artefacts;
use crate::bench::layers;
use crate::cache::Cache;
use crate::clients::Clients;
use crate::error::{Error, Result};
use crate::kvm_host::KvmHost;
use crate::rights::Rights;
use crate::selection::Selection;
use crate::tally::Tally;
use crate::{run, workspace};

/// The test programs.
pub const PROGRAMS: [&str; 2] = ["machine", "e2e"];

/// How many labs run side by side. Each has one processor, and its tests run one after the other: guests that share one emulated
/// processor would only time out.
const LABS: usize = 2;

/// VMs of one image that run side by side, and how it reaches them; `cargo xtask bench layers` is for more.
const SHARING_VMS: u32 = 4;
const SHARING_WAYS: [Way; 3] = [Way::Copies, Way::BlkFlat, Way::PmemFlat];

/// Parts of the names of the longest tests. They run first, so that at the end neither lab waits for the other.
const LONGEST: [&str; 3] = ["the_guest_sees_the_files", "the_image_of_node", "an_attacker_meets"];

/// Has the tests' own monitors, which are in their process, confine the threads that serve guests, as the program's do.
const CONFINED: &str = "BELLOWS_TEST_CONFINED";
/// With `log`, monitors go on after a call that their filters do not allow: so a run finds all of them.
const LOG_ONLY: &str = "BELLOWS_SECCOMP";

/// One thing to run.
#[derive(Debug)]
enum Work<'a> {
    Test { program: &'a Path, name: String },
    Sharing { program: &'a Path, arguments: Vec<String> },
}

impl Work<'_> {
    /// The name of a test.
    fn name(&self) -> Option<&str> {
        match self {
            Self::Test { name, .. } => Some(name),
            Self::Sharing { .. } => None,
        }
    }
}

/// Runs the tests of a selection; with [`Selection::Others`] also looks at what VMs share.
pub fn run(tally: &mut Tally, environment: &[(&'static str, String)], selection: Selection<'_>, install: bool) {
    let host = Host::detect();
    let prepared = Cache::open().and_then(|cache| {
        let artefacts = Artefacts::build(&cache, host, install)?;
        let tests = PROGRAMS.into_iter().map(workspace::test_program).collect::<Result<Vec<_>>>()?;
        let shared = if matches!(selection, Selection::Others) {
            Some((workspace::benchmark("bellows-bench", layers::NAME)?, layers::Inputs::make(&cache, &artefacts)?))
        } else {
            None
        };
        Ok((cache, artefacts, tests, shared))
    });
    let Some((cache, artefacts, tests, shared)) = tally.add(prepared) else { return };
    let sharing = shared.iter().map(|(program, inputs)| Work::Sharing {
        program,
        arguments: inputs.arguments(host, SHARING_VMS, 0, &SHARING_WAYS).into(),
    });
    let mut work: VecDeque<Work<'_>> = sharing.collect();
    let mut known = Vec::new();
    for program in &tests {
        let Some(names) = tally.add(names(program)) else { return };
        known.extend(names.into_iter().map(|name| (program, name)));
    }
    let missing = selection.missing(&known.iter().map(|(_, name)| name.as_str()).collect::<Vec<_>>());
    if !missing.is_empty() {
        tally.add::<()>(Err(Error::other(format!("there are no tests {}", missing.join(", ")))));
    }
    let wanted = known.into_iter().filter(|(_, name)| selection.has(name));
    work.extend(wanted.map(|(program, name)| Work::Test { program, name }));
    let names: Vec<&str> = work.iter().filter_map(Work::name).collect();
    let clients = Clients::build(&cache, &artefacts.agent, &names, install);
    let Some(clients) = tally.add(clients) else { return };
    let is_long =
        |work: &Work<'_>| matches!(work, Work::Test { name, .. } if LONGEST.iter().any(|part| name.contains(part)));
    // Those that the superuser runs come last: they may leave files in the common store that the user cannot change.
    let is_roots = |work: &Work<'_>| work.name().is_some_and(|name| Rights::of(name) == Rights::Root);
    work.make_contiguous().sort_by_key(|work| (is_roots(work), !is_long(work)));
    let is_confined = selection.is_confined();
    let labs = if host == Host::Lab { LABS.min(work.len()) } else { 1 };
    eprintln!("{} tests that need KVM, host: {host}", work.len());
    let programs: Vec<PathBuf> = tests.iter().chain(shared.iter().map(|(program, _)| program)).cloned().collect();
    let (queue, tally) = (Mutex::new(work), Mutex::new(tally));
    let drain = || -> Result<()> {
        let furnish = |lab| clients.add_to(furnish(lab));
        let furnish = |lab| shared.iter().fold(furnish(lab), |lab, (_, inputs)| inputs.furnish(lab));
        let kvm_host = KvmHost::start(host, &cache, &artefacts, &programs, furnish)?;
        let kvm_host = clients.environment(host).fold(kvm_host, |host, (variable, value)| host.env(variable, value));
        let kvm_host = if is_confined { kvm_host.env(CONFINED, "1") } else { kvm_host };
        let log_only = std::env::var(LOG_ONLY).ok();
        let kvm_host = log_only.into_iter().fold(kvm_host, |host, value| host.env(LOG_ONLY, value));
        let kvm_host = environment.iter().fold(kvm_host, |host, (variable, value)| host.env(variable, value));
        loop {
            let Some(work) = run::lock(&queue).pop_front() else { break };
            match work {
                Work::Test { program, name } => {
                    let rights = if is_confined { Rights::of(&name) } else { Rights::Root };
                    run_test(&tally, &kvm_host, rights, program, &name)?;
                }
                Work::Sharing { program, arguments } => {
                    let result = check_sharing(&kvm_host, program, &arguments, host);
                    run::lock(&tally).add(result);
                }
            }
        }
        kvm_host.stop()
    };
    // A host that is lost fails the test that lost it; another one runs the rest.
    let drain_all = || {
        loop {
            let before = run::lock(&queue).len();
            let Err(error) = drain() else { break };
            run::lock(&tally).add::<()>(Err(error));
            if run::lock(&queue).len() == before {
                break;
            }
        }
    };
    thread::scope(|scope| {
        for _ in 0..labs {
            scope.spawn(drain_all);
        }
    });
    let left = run::lock(&queue).len();
    if left > 0 {
        run::lock(&tally).add::<()>(Err(Error::other(format!("{left} tests were not run"))));
    }
}

/// The names of a program's tests.
fn names(program: &Path) -> Result<Vec<String>> {
    let list = run::capture(Command::new(program).args(["--list", "--format=terse"]))?;
    Ok(list.lines().filter_map(|line| line.strip_suffix(": test")).map(str::to_owned).collect())
}

/// Shows what a test printed once it has ended, so that the output of two tests does not mix.
fn run_test(tally: &Mutex<&mut Tally>, host: &KvmHost<'_>, rights: Rights, program: &Path, name: &str) -> Result<()> {
    let started = Instant::now();
    let (mut said, mut result) = (String::new(), Tally::default());
    let ended = host.run_with(rights, program, &["--exact", "--nocapture", name], |line| {
        result.add_line(line);
        said.push_str(line);
        said.push('\n');
    });
    let violations = if ended.is_ok() { host.violations()? } else { Vec::new() };
    said.extend(violations.iter().map(|violation| format!("{violation}\n")));
    // A program that died says nothing of failed tests.
    let passed = matches!(ended, Ok(0)) && result == Tally::PASSED && violations.is_empty();
    let outcome = if passed { "ok" } else { "FAILED" };
    let mut tally = run::lock(tally);
    if !passed {
        eprint!("{said}");
    }
    eprintln!("test {name} ... {outcome} in {:.1} s", started.elapsed().as_secs_f64());
    let code = ended.map_err(|error| Error::other(format!("{name}: {error}")))?;
    let failed = || match violations.first() {
        Some(violation) => Error::other(format!("{name}: {violation}")),
        None => Error::other(format!("{name} ended with exit code {code}")),
    };
    tally.add(if passed { Ok(()) } else { Err(failed()) });
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

/// The tests compare with what GNU tar does, make file systems and disks, and connect guests to the host's network; busybox's tar knows no extended attributes,
/// its `ip` no TAPs, and its `unshare` no users but the superuser.
fn furnish(lab: LabBuilder) -> LabBuilder {
    lab.program("/usr/bin/tar", "/usr/local/bin/tar")
        .program("/usr/sbin/mkfs.ext4", "/usr/local/bin/mkfs.ext4")
        .program("/usr/sbin/dmsetup", "/usr/local/bin/dmsetup")
        .on_disk("/usr/bin/promtool", "promtool")
        .program("/usr/bin/passt", "/usr/bin/passt")
        .program("/usr/lib/cni/bridge", "/usr/lib/cni/bridge")
        .program("/usr/lib/cni/host-local", "/usr/lib/cni/host-local")
        .program("/usr/sbin/ip", "/usr/local/bin/ip")
        .program("/usr/bin/setpriv", "/usr/local/bin/setpriv")
        .program("/usr/bin/unshare", "/usr/local/bin/unshare")
}
