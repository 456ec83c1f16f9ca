//! The Debian packages that a command needs: says what is missing and why, then installs it.

use std::path::Path;
use std::process::Command;

use bellows_tests::lab::Host;

use crate::error::{Error, Result};
use crate::progress;
use crate::run;

/// A package and the reason for it.
#[derive(Debug, Clone, Copy)]
pub struct Package {
    name: &'static str,
    why: &'static str,
}

const fn package(name: &'static str, why: &'static str) -> Package {
    Package { name, why }
}

/// What makes the guest kernel.
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

/// What the emulated host is made of.
pub const LAB: &[Package] = &[
    package("qemu-system-x86", "emulates a host with AMD-V, because this machine has no usable KVM"),
    package("busybox-static", "user space of the emulated host"),
    package("e2fsprogs", "makes the emulated host's disk"),
    package("xz-utils", "unpacks kernel modules"),
];

/// What makes an image and imports it.
pub const IMAGE: &[Package] = &[
    package("mmdebstrap", "makes the root file system of the demo's container image"),
    package("uidmap", "lets mmdebstrap work without root"),
    package("erofs-utils", "checks what the layer store writes"),
];

/// All that the artefacts and the tests need on this machine.
pub fn all(host: Host) -> Vec<&'static [Package]> {
    match host {
        Host::Kvm => vec![KERNEL, IMAGE],
        Host::Lab => vec![KERNEL, IMAGE, LAB],
    }
}

/// Makes sure that all of `wanted` are installed. With `install` off, missing ones are an error that lists them.
pub fn ensure(wanted: &[&[Package]], install: bool) -> Result<()> {
    let mut missing: Vec<Package> = Vec::new();
    for package in wanted.iter().copied().flatten() {
        if !is_installed(package.name) && missing.iter().all(|known| known.name != package.name) {
            missing.push(*package);
        }
    }
    if missing.is_empty() {
        return Ok(());
    }
    let list: String = missing.iter().map(|package| format!("  {:<20} {}\n", package.name, package.why)).collect();
    let names: Vec<&str> = missing.iter().map(|package| package.name).collect();
    if !install {
        return Err(Error::other(format!(
            "missing Debian packages:\n{list}install: apt-get install {}",
            names.join(" ")
        )));
    }
    eprint!("These Debian packages are missing and get installed now:\n{list}");
    progress::step("update the package lists", |step| run::quiet(step, apt_get()?.arg("update")))?;
    progress::step("install packages", |step| {
        run::quiet(step, apt_get()?.args(["install", "-y", "--no-install-recommends"]).args(&names))
    })
}

fn is_installed(name: &str) -> bool {
    let status = run::capture(Command::new("dpkg-query").args(["-W", "-f", "${db:Status-Status}", name]));
    status.is_ok_and(|status| status == "installed")
}

fn apt_get() -> Result<Command> {
    // SAFETY: takes nothing and cannot fail.
    let root = unsafe { libc::geteuid() } == 0;
    let mut command = match (root, Path::new("/usr/bin/sudo").exists()) {
        (true, _) => Command::new("apt-get"),
        (false, true) => {
            let mut command = Command::new("sudo");
            command.args(["-n", "DEBIAN_FRONTEND=noninteractive", "apt-get"]);
            command
        }
        (false, false) => return Err(Error::other("installing packages needs root, and there is no sudo")),
    };
    command.env("DEBIAN_FRONTEND", "noninteractive");
    Ok(command)
}
