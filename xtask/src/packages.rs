//! The Debian packages that a command needs: lists the missing ones with a reason for each, then installs them.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::Command;

use bellows_lab::Host;
use tempfile::NamedTempFile;

use crate::error::{Error, Result};
use crate::progress;
use crate::run;

/// A package and the reason for it.
#[derive(Debug, Clone, Copy)]
pub struct Package {
    name: &'static str,
    /// Oldest version that suffices, if not every one does.
    at_least: Option<&'static str>,
    why: &'static str,
}

pub const fn package(name: &'static str, why: &'static str) -> Package {
    Package { name, at_least: None, why }
}

/// Packages to build the guest kernel.
pub const KERNEL: &[Package] = &[
    package("linux-source-6.12", "source of the guest kernel"),
    package("gcc", "compiles the guest kernel"),
    package("libc6-dev", "the kernel's build tools"),
    package("make", "builds the guest kernel"),
    package("patch", "applies the guest kernel's patches"),
    package("flex", "the kernel's configuration tool"),
    package("bison", "the kernel's configuration tool"),
    package("bc", "the kernel's build"),
    package("libelf-dev", "the kernel's objtool"),
    package("xz-utils", "unpacks the kernel's source and modules"),
];

/// Packages for the emulated host.
pub const LAB: &[Package] = &[
    // Before 8.1 its translator could miss that a processor rewrites code which another is about to run, as Linux often
    // does: now and then the emulated host or its guest crashed. Before 9.2 it does not take the lab's plugin.
    Package {
        name: "qemu-system-x86",
        at_least: Some("1:9.2"),
        why: "emulates a host with AMD-V, because this machine has no usable KVM",
    },
    package("busybox-static", "user space of the emulated host"),
    package("e2fsprogs", "makes the emulated host's disk"),
    package("xz-utils", "unpacks kernel modules"),
];

/// Packages to make and import images.
pub const IMAGE: &[Package] = &[
    package("mmdebstrap", "makes the root file system of the demo's container image"),
    package("uidmap", "lets mmdebstrap work without root"),
    package("erofs-utils", "checks what the layer store writes"),
    package("docker-registry", "a registry on this machine for the tests to import from"),
    package("openssl", "makes that registry's certificate"),
    package("e2fsprogs", "makes the disks that shared layers are compared with"),
    package("dmsetup", "makes a disk with bad sectors for the tests"),
    package("prometheus", "has promtool, which checks the figures of VMs"),
];

/// Packages to test a guest's network.
pub const NETWORK: &[Package] = &[
    package("passt", "connects guests of the tests to the host's network"),
    package("containernetworking-plugins", "does the same by plugins of CNI"),
    package("iproute2", "makes TAPs for guests of the tests"),
];

/// Packages to run the guest kernel's own tests.
pub const KERNEL_TESTS: &[Package] = &[
    package("python3", "plays the host of the guest kernel's tests"),
    Package { name: "qemu-system-x86", at_least: Some("1:8.1"), why: "boots the guest kernel's tests" },
];

/// Packages to build Linux's selftests of memory management.
pub const SELFTESTS: &[Package] = &[
    package("libcap-dev", "a library of the kernel's selftests"),
    package("libnuma-dev", "a library of the kernel's selftests"),
    package("liburing-dev", "a library of the kernel's selftests"),
];

/// The peers that Bellows is compared with.
pub const BENCH: &[Package] = &[package("qemu-system-x86", "the monitor that Bellows is measured against")];

/// Packages to measure imports, and to compare them.
pub const BENCH_IMPORT: &[Package] = &[
    package("time", "measures the memory that programs take"),
    package("erofs-utils", "makes the images that Bellows's are compared with"),
];

/// Packages to test the agent's containers.
pub const CONTAINERS: &[Package] = &[
    package("busybox-static", "runs in the containers of the agent's tests"),
    package("runc", "makes the containers that the agent's are compared with"),
];

/// All packages for the artefacts and the tests on this machine.
pub fn all(host: Host) -> Vec<&'static [Package]> {
    match host {
        Host::Kvm => vec![KERNEL, IMAGE, NETWORK, CONTAINERS],
        Host::Lab => vec![KERNEL, IMAGE, NETWORK, CONTAINERS, LAB],
    }
}

/// Makes sure that all of `wanted` are installed. With `install` off, missing ones are an error that lists them.
///
/// Packages that are too old in the release come from its backports, which stay out of the system's list of sources.
pub fn ensure(wanted: &[&[Package]], install: bool) -> Result<()> {
    let mut missing: Vec<Package> = Vec::new();
    for package in wanted.iter().copied().flatten() {
        if !is_installed(package) && missing.iter().all(|known| known.name != package.name) {
            missing.push(*package);
        }
    }
    if missing.is_empty() {
        return Ok(());
    }
    let list: String = missing.iter().map(describe).collect();
    if !install {
        let names: Vec<&str> = missing.iter().map(|package| package.name).collect();
        return Err(Error::other(format!(
            "missing Debian packages:\n{list}install: apt-get install {}",
            names.join(" ")
        )));
    }
    eprint!("These Debian packages are missing and get installed now:\n{list}");
    progress::step("update the package lists", |step| run::quiet(step, apt_get()?.arg("update")))?;
    let (in_release, too_old): (Vec<_>, Vec<_>) = missing.into_iter().partition(candidate_will_do);
    if !in_release.is_empty() {
        progress::step("install packages", |step| {
            run::quiet(step, apt_get()?.args(INSTALL).args(in_release.iter().map(|package| package.name)))
        })?;
    }
    if !too_old.is_empty() {
        let backports = Backports::find()?;
        progress::step(&format!("install packages from {}", backports.suite), |step| {
            run::quiet(step, backports.apt_get()?.arg("update"))?;
            // The suite as the release to prefer, and not behind each name, so that what the packages depend on comes from it too.
            let names = too_old.iter().map(|package| package.name);
            run::quiet(step, backports.apt_get()?.args(INSTALL).args(["-t", &backports.suite]).args(names))
        })?;
    }
    Ok(())
}

const INSTALL: [&str; 3] = ["install", "-y", "--no-install-recommends"];

fn describe(package: &Package) -> String {
    let version = package.at_least.map(|version| format!(" ({version} or newer)")).unwrap_or_default();
    format!("  {:<20} {}{version}\n", package.name, package.why)
}

fn is_installed(package: &Package) -> bool {
    let format = "${db:Status-Status} ${Version}";
    let known = run::capture(Command::new("dpkg-query").args(["-W", "-f", format, package.name]));
    let version = known.as_deref().unwrap_or_default().strip_prefix("installed ");
    version.is_some_and(|version| will_do(package, version))
}

/// Whether the version that apt would install is new enough.
fn candidate_will_do(package: &Package) -> bool {
    let policy = run::capture(Command::new("apt-cache").args(["policy", package.name])).unwrap_or_default();
    let candidate = policy.lines().find_map(|line| line.trim().strip_prefix("Candidate: "));
    package.at_least.is_none() || candidate.is_some_and(|version| will_do(package, version))
}

fn will_do(package: &Package, version: &str) -> bool {
    let is_newer =
        |least| run::capture(Command::new("dpkg").args(["--compare-versions", version, "ge", least])).is_ok();
    package.at_least.is_none_or(is_newer)
}

/// The code name of this machine's release of Debian, and the mirror that it is taken from.
///
/// # Errors
/// The machine does not tell.
pub fn mirror() -> Result<(String, String)> {
    let os_release = Path::new("/etc/os-release");
    let release = fs::read_to_string(os_release).map_err(Error::at(os_release))?;
    let codename = release
        .lines()
        .find_map(|line| line.strip_prefix("VERSION_CODENAME="))
        .ok_or_else(|| Error::other("/etc/os-release: no VERSION_CODENAME"))?;
    let format = "$(CREATED_BY) $(CODENAME) $(COMPONENT) $(REPO_URI)";
    let targets = run::capture(Command::new("apt-get").args(["indextargets", "--format", format]))?;
    let mirror = targets
        .lines()
        .find_map(|line| line.strip_prefix(&format!("Packages {codename} main ")))
        .ok_or_else(|| Error::other(format!("apt has no source for {codename}")))?;
    Ok((codename.to_owned(), mirror.to_owned()))
}

/// The release's backports, as a list of sources for single commands.
struct Backports {
    suite: String,
    sources: NamedTempFile,
}

impl Backports {
    /// On the mirror that the system already uses for its release.
    fn find() -> Result<Self> {
        let (codename, mirror) = mirror()?;
        let suite = format!("{codename}-backports");
        let mut sources = NamedTempFile::new().map_err(Error::at(std::env::temp_dir()))?;
        // This file replaces sources.list; sources.list.d still counts.
        let system = fs::read_to_string("/etc/apt/sources.list").unwrap_or_default();
        write!(sources, "{system}\ndeb {mirror} {suite} main\n").map_err(Error::at(sources.path()))?;
        Ok(Self { suite, sources })
    }

    fn apt_get(&self) -> Result<Command> {
        let mut command = apt_get()?;
        command.arg("-o").arg(format!("Dir::Etc::SourceList={}", self.sources.path().display()));
        Ok(command)
    }
}

fn apt_get() -> Result<Command> {
    let root = nix::unistd::geteuid().is_root();
    let mut command = match (root, Path::new("/usr/bin/sudo").exists()) {
        (true, _) => Command::new("apt-get"),
        (false, true) => {
            let mut command = Command::new("sudo");
            command.args(["-n", "DEBIAN_FRONTEND=noninteractive", "apt-get"]);
            command
        }
        (false, false) => return Err(Error::other("installing packages needs root or sudo: neither was found")),
    };
    command.env("DEBIAN_FRONTEND", "noninteractive");
    Ok(command)
}
