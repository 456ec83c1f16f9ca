//! `bellows doctor`: what this host lacks, and how to get it; how confined its VMs are; and a self-test.

mod checks;
mod confined;
mod finding;
mod selftest;

use std::path::{Path, PathBuf};
use std::{env, fs};

use bellows_vmm::HostReport;
use clap::Args;
use serde_json::json;

use self::finding::Finding;
use self::selftest::SelfTest;
use crate::error::{CliError, io_error, with_causes};
use crate::landlock;
use crate::output::print;
use crate::places::Places;
use crate::report::print_json_line;
use crate::store;

/// `bellows doctor`.
#[derive(Args, Debug)]
pub struct DoctorArgs {
    /// Layer store to look at [default: $XDG_DATA_HOME/bellows/store]
    #[arg(long, value_name = "DIR")]
    pub store: Option<PathBuf>,
    /// Also boot a VM, and have memory and a disk come and go: takes some seconds
    #[arg(long)]
    pub selftest: bool,
    /// Write the report in JSON to a file, for a report of a fault
    #[arg(long, value_name = "FILE")]
    pub report: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Looks at the host and at its VMs; prints what was found. The exit code is 0 if VMs can run, and the self-test, if asked for, went well.
///
/// # Errors
/// The report cannot be written.
pub(crate) fn run(args: &DoctorArgs) -> Result<u8, CliError> {
    let findings = all(args);
    let can_run = findings.iter().all(|finding| !finding.stops());
    let monitors = confined::all(Path::new("/"));
    let selftest = (args.selftest && can_run).then(|| SelfTest::run(Path::new("/")));
    let report = json!({ "can_run_vms": can_run, "findings": findings, "monitors": monitors, "selftest": selftest });
    if let Some(path) = &args.report {
        let text = format!("{report:#}\n");
        fs::write(path, text).map_err(io_error("write the report", path))?;
    }
    if args.json {
        print_json_line(&report)?;
    } else {
        findings.iter().try_for_each(print)?;
        monitors.iter().try_for_each(print)?;
        selftest.iter().try_for_each(print)?;
        print(if can_run { "VMs can run on this host." } else { "VMs cannot run on this host." })?;
    }
    let passed = selftest.as_ref().is_none_or(SelfTest::passed);
    Ok(if can_run && passed { 0 } else { 1 })
}

fn all(args: &DoctorArgs) -> Vec<Finding> {
    let root = Path::new("/");
    let host = HostReport::read();
    let mut all = vec![match &host {
        Ok(host) => checks::kvm(root, host.max_vcpus, host.address_bits),
        Err(error) => checks::no_kvm(root, &with_causes(error)),
    }];
    if let Ok(host) = &host {
        all.push(checks::slots(host.removes_slots_alone));
    }
    let places = Places::of_user();
    all.push(checks::guest(places.kernel().and_then(|kernel| Ok((kernel, places.initramfs()?)))));
    all.extend([
        checks::huge_pages(root),
        checks::swap(root),
        checks::control_groups(root),
        checks::tun(root),
        checks::vhost_net(root),
        checks::passt(env::var_os("PATH").as_deref()),
        checks::verity(store::path(args.store.as_deref()).ok().as_deref()),
        checks::seccomp(root),
        checks::landlock(landlock::is_available(), root),
        checks::jail(nix::unistd::geteuid().is_root()),
    ]);
    all
}
