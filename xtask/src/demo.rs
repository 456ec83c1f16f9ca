//! `cargo xtask demo`: the whole way, from a container image to memory that is back with the host.

use std::fs;
use std::path::Path;
use std::process::Command;

use bellows_lab::{DISK, Host, Job};

use crate::artefacts::Artefacts;
use crate::cache::Cache;
use crate::error::{Error, Result};
use crate::{lab, workspace};

/// Memory of the emulated host: two VMs with two partitions each, and the layers.
const LAB_MEMORY_MIB: u64 = 12 << 10;

/// Time limit of every step of a guest, on an emulated CPU.
const TIMEOUT_SECONDS: u32 = 300;

/// Gives the emulated host a network that leads nowhere, and becomes the demonstration.
const ROUTE: &str = "PATH=/usr/local/bin:$PATH; ip link add name outside0 type dummy; ip address add 10.77.0.1/24 dev outside0; ip link set outside0 up; \
    ip route add default via 10.77.0.2 dev outside0; exec bellows \"$@\"";

/// Builds what is missing, runs the demonstration on a host with KVM and keeps its report in `target/demo/report.json`.
/// Returns the demonstration's exit code.
pub fn run(json: bool, install: bool) -> Result<i32> {
    let host = Host::detect();
    eprintln!("host: {host}");
    let cache = Cache::open()?;
    let artefacts = Artefacts::build(&cache, host, install)?;
    let directory = workspace::target_directory().join("demo");
    fs::create_dir_all(&directory).map_err(Error::at(&directory))?;
    let report = directory.join("report.json");
    let arguments = |kernel: String, initramfs: String, image: String, store: String, report: String| {
        let mut arguments = ["demo", "--base=512M"].map(str::to_owned).to_vec();
        arguments.extend([format!("--host={host}"), format!("--timeout={TIMEOUT_SECONDS}")]);
        let paths =
            [("kernel", kernel), ("initramfs", initramfs), ("image", image), ("store", store), ("report", report)];
        arguments.extend(paths.map(|(option, path)| format!("--{option}={path}")));
        arguments.extend(json.then(|| "--json".to_owned()));
        arguments
    };
    match host {
        Host::Kvm => {
            let text = |path: &Path| path.display().to_string();
            let Artefacts { bellows, kernel, initramfs, image, .. } = &artefacts;
            let store = directory.join("store");
            let mut command = Command::new(bellows);
            command.args(arguments(text(kernel), text(initramfs), text(image), text(&store), text(&report)));
            let status = command.status().map_err(Error::at(bellows))?;
            Ok(status.code().unwrap_or(-1))
        }
        Host::Lab => {
            let builder = artefacts.add_to(lab::builder(&cache)?).memory_mib(LAB_MEMORY_MIB);
            let builder =
                builder.program("/usr/bin/passt", "/usr/bin/passt").program("/usr/sbin/ip", "/usr/local/bin/ip");
            let lab = lab::boot(builder)?;
            let on_disk = |name: &str| format!("{DISK}/{name}");
            let [kernel, initramfs, image, store] = ["vmlinux", "initramfs.cpio", "image", "store"].map(on_disk);
            // passt serves only what the host has a route for.
            let mut argv = ["sh", "-ec", ROUTE, "bellows"].map(str::to_owned).to_vec();
            argv.extend(arguments(kernel, initramfs, image, store, on_disk("report.json")));
            let code = lab.exec(&Job::new(argv), lab::print)?;
            if code == 0 {
                fs::write(&report, lab.read_file(&on_disk("report.json"))?).map_err(Error::at(&report))?;
            }
            lab.shutdown()?;
            Ok(code)
        }
    }
}
