//! The artefacts of a demo, a benchmark or an end-to-end test, built or found in the cache.

use std::path::PathBuf;

use bellows_lab::{DISK, Host, Job, LabBuilder};

use crate::cache::Cache;
use crate::debian::{self, Series};
use crate::error::Result;
use crate::{image, initramfs, kernel, packages, workspace};

/// Paths on this machine.
#[derive(Debug, Clone)]
pub struct Artefacts {
    /// The monitor.
    pub bellows: PathBuf,
    /// PID 1 of guests, which the initramfs has.
    pub agent: PathBuf,
    /// Our guest kernel, an ELF `vmlinux`.
    pub kernel: PathBuf,
    /// The initramfs for it.
    pub initramfs: PathBuf,
    /// Debian's cloud kernel as a guest, a `bzImage`.
    pub debian_kernel: PathBuf,
    /// The initramfs for that one, with modules.
    pub debian_initramfs: PathBuf,
    /// Debian's older cloud kernel as a guest, which cannot mount flat images.
    pub old_kernel: PathBuf,
    /// The initramfs for that one, with modules.
    pub old_initramfs: PathBuf,
    /// The demo's image, an OCI image layout.
    pub image: PathBuf,
    /// An image of busybox and musl, an OCI image layout.
    pub alpine_like_image: PathBuf,
    /// An image of Node.js, an OCI image layout.
    pub node_image: PathBuf,
    /// An image of Java, an OCI image layout.
    pub java_image: PathBuf,
    /// The variables of the artefacts for a lab; all of them if `None`.
    only: Option<&'static [&'static str]>,
}

impl Artefacts {
    /// Installs what is missing and builds everything.
    pub fn build(cache: &Cache, host: Host, install: bool) -> Result<Self> {
        packages::ensure(&packages::all(host), install)?;
        let debian = debian::cloud_kernel(cache, Series::Linux6_12)?;
        let old = debian::cloud_kernel(cache, Series::Linux6_1)?;
        let image = image::demo(cache)?;
        let kernel = kernel::guest(cache)?;
        let agent = workspace::agent()?;
        Ok(Self {
            bellows: workspace::bellows()?,
            kernel,
            initramfs: initramfs::built_in(cache, &agent)?,
            debian_initramfs: initramfs::with_modules(cache, &agent, &debian)?,
            debian_kernel: debian.image,
            old_initramfs: initramfs::with_modules(cache, &agent, &old)?,
            old_kernel: old.image,
            image,
            alpine_like_image: image::alpine_like(cache)?,
            node_image: image::node(cache)?,
            java_image: image::java(cache)?,
            agent,
            only: None,
        })
    }

    /// Puts only the artefacts of these variables into a lab: files in memory take time to unpack.
    pub fn only(mut self, variables: &'static [&'static str]) -> Self {
        self.only = Some(variables);
        self
    }

    /// Name of the environment variable and path, for the programs that use the artefacts.
    pub fn environment(&self) -> [(&'static str, String); 11] {
        self.named().map(|(variable, _, path)| (variable, path.display().to_string()))
    }

    /// Has a job run in the lab where the artefacts are, with their paths there in its environment.
    pub fn in_lab(&self, job: Job) -> Job {
        let paths = self.named().map(|(variable, name, _)| (variable, format!("{DISK}/{name}")));
        // In the lab, tests must not skip.
        paths
            .into_iter()
            .fold(job, |job, (variable, path)| job.env(variable, path))
            .env("BELLOWS_IN_LAB", "1")
            .cwd(DISK)
    }

    /// Puts a lab's artefacts on its disk; the monitor also goes into `PATH`, with its libraries.
    pub fn add_to(&self, mut lab: LabBuilder) -> LabBuilder {
        let has = |variable: &str| self.only.is_none_or(|variables| variables.contains(&variable));
        for (_, name, path) in self.named().into_iter().filter(|(variable, ..)| has(variable)) {
            lab = lab.on_disk(path, name);
        }
        if has("BELLOWS_BINARY") { lab.program(&self.bellows, "/usr/local/bin/bellows") } else { lab }
    }

    fn named(&self) -> [(&'static str, &'static str, &PathBuf); 11] {
        [
            ("BELLOWS_BINARY", "bellows", &self.bellows),
            ("BELLOWS_KERNEL", "vmlinux", &self.kernel),
            ("BELLOWS_INITRAMFS", "initramfs.cpio", &self.initramfs),
            ("BELLOWS_DEBIAN_KERNEL", "debian-vmlinuz", &self.debian_kernel),
            ("BELLOWS_DEBIAN_INITRAMFS", "debian-initramfs.cpio", &self.debian_initramfs),
            ("BELLOWS_OLD_KERNEL", "old-vmlinuz", &self.old_kernel),
            ("BELLOWS_OLD_INITRAMFS", "old-initramfs.cpio", &self.old_initramfs),
            ("BELLOWS_IMAGE", "image", &self.image),
            ("BELLOWS_ALPINE_LIKE_IMAGE", "alpine-like-image", &self.alpine_like_image),
            ("BELLOWS_NODE_IMAGE", "node-image", &self.node_image),
            ("BELLOWS_JAVA_IMAGE", "java-image", &self.java_image),
        ]
    }
}
