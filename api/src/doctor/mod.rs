//! `bellows doctor`: what this host lacks, and how to get it.

mod checks;
mod finding;

use std::env;
use std::path::{Path, PathBuf};

use bellows_vmm::HostReport;
use clap::Args;

use self::finding::Finding;
use crate::error::{CliError, with_causes};
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
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Looks at the host; prints what was found. The exit code is 0 if VMs can run.
///
/// # Errors
/// The report cannot be written.
pub(crate) fn run(args: &DoctorArgs) -> Result<u8, CliError> {
    let findings = all(args);
    let can_run = findings.iter().all(|finding| !finding.stops());
    if args.json {
        print_json_line(&serde_json::json!({ "can_run_vms": can_run, "findings": findings }))?;
    } else {
        findings.iter().try_for_each(print)?;
        print(if can_run { "VMs can run on this host." } else { "VMs cannot run on this host." })?;
    }
    Ok(if can_run { 0 } else { 1 })
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
        checks::passt(env::var_os("PATH").as_deref()),
        checks::verity(store::path(args.store.as_deref()).ok().as_deref()),
        checks::seccomp(root),
        checks::landlock(root),
        checks::jail(nix::unistd::geteuid().is_root()),
    ]);
    all
}
