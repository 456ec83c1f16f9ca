//! `cargo xtask stress`: tests that take too long for every run. It continues where an earlier run of the same commit stopped.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, MutexGuard};

use bellows_lab::Host;
use clap::Args;
use serde::{Deserialize, Serialize};

use crate::cache::Cache;
use crate::error::{Error, Result};
use crate::{fuzz, kernel, packages, run, test, workspace};

/// Partitions of the guest in which tasks come and go.
const PARTITIONS: &str = "8";
/// MiB of base memory: KASAN takes an eighth of all memory that is plugged, 9 GiB at most.
const MEMORY: &str = "2560";
/// Longest time for one boot of the debug kernel on an emulated processor, beside the time that is asked for.
const LIMIT_SECONDS: u32 = 3600;
/// The same for all selftests, of which each has a limit of its own.
const SELFTESTS_LIMIT_SECONDS: u32 = 4 * LIMIT_SECONDS;
/// A fuzz target's progress is saved each time after this many seconds.
const SLICE_SECONDS: u64 = 300;

/// What to run, and for how long.
#[derive(Debug, Args)]
pub struct Options {
    /// Minutes for which partitions, instances and disks come and go at random, with each kernel, and for which each
    /// fuzz target runs.
    #[arg(long, default_value_t = 5)]
    minutes: u32,
    /// Run only the parts whose names contain this; may be given again.
    #[arg(long, value_name = "PART")]
    only: Vec<String>,
    /// Also run parts that an earlier run has finished.
    #[arg(long)]
    again: bool,
    /// Print the names of the parts.
    #[arg(long)]
    list: bool,
}

/// Boots of the guest kernel's tests, with a debug build of it: name, partitions, and what is appended to the command line.
/// All tests; leaks of a thousand plugs; and kernels that must keep the content of free memory.
const BOOTS: [(&str, &str, &str); 4] = [
    ("kernel-tests", "2", ""),
    ("kernel-cycles", "2", "cycles=1000"),
    ("kernel-init-on-free", "2", "init_on_free=1"),
    ("kernel-page-poison", "2", "page_poison=1"),
];
type BuildKernel = fn(&Cache) -> Result<PathBuf>;
/// Linux's own selftests of memory management, with a partition and without: name, the kernel that runs them, and MiB of base
/// memory.
const SELFTESTS: [(&str, BuildKernel, &str); 2] =
    [("mm-selftests", kernel::guest, "1536"), ("mm-selftests-debug", kernel::debug, MEMORY)];
/// Imports that are killed.
const IMPORTS: &str = "imports";
/// Devices that are suspended and resumed while a driver on another thread uses them, without a VM.
const CONTRACT: &str = "device-contract";
/// End-to-end tests that are not part of every run.
const END_TO_END: &str = "end-to-end";
/// VMs whose partitions, instances and disks come and go.
const VMS: &str = "vms";
/// Partitions of one guest that come and go, in the guest kernel's tests.
const KERNEL_STRESS: &str = "kernel-stress";
/// Prefix of the names of fuzz targets.
const FUZZ: &str = "fuzz-";

/// Runs all selected parts that are not done yet, even after failures.
pub fn run(options: &Options, install: bool) -> Result<()> {
    let targets = fuzz::names()?;
    let parts = [END_TO_END, IMPORTS, CONTRACT, VMS, KERNEL_STRESS]
        .into_iter()
        .chain(BOOTS.map(|(name, ..)| name))
        .chain(SELFTESTS.map(|(name, ..)| name))
        .map(str::to_owned);
    let parts: Vec<String> = parts.chain(targets.iter().map(|target| format!("{FUZZ}{target}"))).collect();
    let wanted = |part: &&String| options.only.is_empty() || options.only.iter().any(|only| part.contains(only));
    let wanted: Vec<&String> = parts.iter().filter(wanted).collect();
    if options.list || wanted.is_empty() {
        println!("{}", parts.join("\n"));
        return if options.list {
            Ok(())
        } else {
            Err(Error::other("no part has such a name; the list above has all"))
        };
    }
    let record = Record::open(options)?;
    let mut failed = Vec::new();
    let mut fuzzed = Vec::new();
    for part in wanted {
        if let Some(target) = part.strip_prefix(FUZZ) {
            fuzzed.push(target.to_owned());
        } else if record.lock().done.contains(part) {
            eprintln!("{part}: done by an earlier run");
        } else if let Err(error) = self::part(part, options.minutes, install) {
            eprintln!("{part}: {error}");
            failed.push(part.clone());
        } else {
            record.update(|progress| _ = progress.done.insert(part.clone()))?;
        }
    }
    if !fuzzed.is_empty() {
        fuzz::build()?;
        let result = fuzz::each(&fuzzed, |target| fuzz_in_slices(target, u64::from(options.minutes) * 60, &record));
        failed.extend(result.err().map(|error| format!("fuzz targets: {error}")));
        for (target, Fuzzed { seconds, executions }) in &record.lock().fuzzed {
            println!("{FUZZ}{target}: {executions} inputs in {:.1} minutes", *seconds as f64 / 60.0);
        }
    }
    if failed.is_empty() { Ok(()) } else { Err(Error::other(format!("failed: {}", failed.join("; ")))) }
}

fn part(name: &str, minutes: u32, install: bool) -> Result<()> {
    let seconds = minutes * 60;
    match name {
        END_TO_END => test::end_to_end(install),
        IMPORTS => test::killed_imports(install),
        CONTRACT => test::device_contract(install),
        VMS => test::stress(minutes, install),
        KERNEL_STRESS => boot(PARTITIONS, &format!("stress={seconds}"), LIMIT_SECONDS + seconds, install),
        name => {
            for (_, partitions, append) in BOOTS.iter().filter(|(known, ..)| *known == name) {
                boot(partitions, append, LIMIT_SECONDS, install)?;
            }
            for (_, kernel, memory) in SELFTESTS.iter().filter(|(known, ..)| *known == name) {
                selftests(*kernel, memory, install)?;
            }
            Ok(())
        }
    }
}

/// Runs a target for the rest of `seconds`.
fn fuzz_in_slices(target: &str, seconds: u64, record: &Record) -> Result<()> {
    loop {
        let done = record.lock().fuzzed.get(target).copied().unwrap_or_default();
        let slice = seconds.saturating_sub(done.seconds).min(SLICE_SECONDS);
        if slice == 0 {
            return Ok(());
        }
        let executions = fuzz::run_target(target, slice)?;
        record.update(|progress| {
            let fuzzed = progress.fuzzed.entry(target.to_owned()).or_default();
            fuzzed.seconds += slice;
            fuzzed.executions += executions;
        })?;
    }
}

fn boot(partitions: &str, append: &str, limit: u32, install: bool) -> Result<()> {
    packages::ensure(&[packages::KERNEL, packages::KERNEL_TESTS], install)?;
    let kernel = kernel::debug(&Cache::open()?)?;
    eprintln!("guest kernel's tests, {partitions} partitions {append}");
    host("qemu.py", limit, |command| {
        command.arg("--kernel").arg(kernel).args(["--partitions", partitions, "--append", append, "--memory", MEMORY])
    })
}

fn selftests(kernel: BuildKernel, memory: &str, install: bool) -> Result<()> {
    packages::ensure(&[packages::KERNEL, packages::KERNEL_TESTS, packages::SELFTESTS], install)?;
    let cache = Cache::open()?;
    let (programs, kernel) = (kernel::selftests(&cache)?, kernel(&cache)?);
    eprintln!("Linux's selftests of memory management, {}", kernel.display());
    host("selftests.py", SELFTESTS_LIMIT_SECONDS, |command| {
        command.args(["run", "--memory", memory, "--kernel"]).arg(kernel).arg("--programs").arg(programs)
    })
}

/// Runs a program that boots the guest kernel's tests, and is their host.
fn host(program: &str, limit: u32, arguments: impl FnOnce(&mut Command) -> &mut Command) -> Result<()> {
    let program = kernel::directory().join("tests").join(program);
    let mut command = Command::new("python3");
    command.arg(&program);
    arguments(&mut command).args(["--timeout", &limit.to_string()]);
    if Host::detect() == Host::Kvm {
        command.arg("--accel=-accel kvm -cpu host");
    }
    let status = run::lines(&mut command, |line| eprintln!("{line}"))?;
    if status.success() { Ok(()) } else { Err(Error::other(format!("{} failed: {status}", program.display()))) }
}

/// The progress of a commit, kept below the target directory.
struct Record {
    path: PathBuf,
    progress: Mutex<Progress>,
}

#[derive(Default, Deserialize, Serialize)]
struct Progress {
    commit: String,
    minutes: u32,
    /// Parts that passed.
    done: BTreeSet<String>,
    fuzzed: BTreeMap<String, Fuzzed>,
}

/// The time a target ran without a finding, and the number of inputs it tried.
#[derive(Clone, Copy, Default, Deserialize, Serialize)]
struct Fuzzed {
    seconds: u64,
    executions: u64,
}

impl Record {
    /// The record of this commit and number of minutes; empty if it is missing.
    fn open(options: &Options) -> Result<Self> {
        let commit = run::capture(Command::new("git").args(["rev-parse", "HEAD"]).current_dir(workspace::root()))?;
        let path = workspace::target_directory().join("stress.json");
        let (commit, minutes) = (commit.trim().to_owned(), options.minutes);
        Ok(Self { progress: Mutex::new(known(&path, commit, minutes, options.again)), path })
    }

    fn lock(&self) -> MutexGuard<'_, Progress> {
        run::lock(&self.progress)
    }

    /// Changes and saves it.
    fn update(&self, change: impl FnOnce(&mut Progress)) -> Result<()> {
        let mut progress = self.lock();
        change(&mut progress);
        let text = serde_json::to_string_pretty(&*progress).map_err(|error| Error::other(error.to_string()))?;
        let new = self.path.with_extension("new");
        fs::write(&new, text).and_then(|()| fs::rename(&new, &self.path)).map_err(Error::at(&self.path))
    }
}

/// The record of `commit` and `minutes` in `path`.
fn known(path: &Path, commit: String, minutes: u32, again: bool) -> Progress {
    let kept = fs::read(path).ok().and_then(|data| serde_json::from_slice(&data).ok());
    let same = |progress: &Progress| !again && progress.commit == commit && progress.minutes == minutes;
    kept.filter(same).unwrap_or(Progress { commit, minutes, ..Progress::default() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_counts_only_for_its_commit() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("stress.json");
        let progress = known(&path, "a".into(), 5, false);
        assert!(progress.done.is_empty());
        let record = Record { path: path.clone(), progress: Mutex::new(progress) };
        record.update(|progress| _ = progress.done.insert(IMPORTS.into())).unwrap();
        let fuzzed = Fuzzed { seconds: 300, executions: 7 };
        record.update(|progress| _ = progress.fuzzed.insert("vsock".into(), fuzzed)).unwrap();

        let again = known(&path, "a".into(), 5, false);
        assert!(again.done.contains(IMPORTS) && again.fuzzed["vsock"].executions == 7);
        for other in
            [known(&path, "b".into(), 5, false), known(&path, "a".into(), 6, false), known(&path, "a".into(), 5, true)]
        {
            assert!(other.done.is_empty() && other.fuzzed.is_empty());
        }
        fs::write(&path, "{").unwrap();
        assert!(known(&path, "a".into(), 5, false).done.is_empty());
    }
}
