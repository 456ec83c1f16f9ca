//! Clients of third parties for Firecracker's API, which take VMs through their lives in the end-to-end tests.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use bellows_lab::{DISK, Host, LabBuilder};

use crate::cache::{Cache, Key};
use crate::error::{Error, Result};
use crate::packages::{self, package};
use crate::{initramfs, progress, run, workspace};

/// Begins the names of the tests that need clients.
pub const TESTS: &str = "clients::";

const GO: &[packages::Package] = &[package("golang-go", "builds a client of Firecracker's API that is written in Go")];
/// The files of the program around the Go SDK, in `tests/clients/go`.
const GO_FILES: [&str; 3] = ["go.mod", "go.sum", "main.go"];

/// Paths on this machine.
#[derive(Debug)]
pub struct Clients {
    /// The initramfs of their guests: the agent, and an echo on vsock.
    initramfs: PathBuf,
    /// The program around the Go SDK.
    go: PathBuf,
}

impl Clients {
    /// Builds all of them, for guests with `agent`.
    pub fn build(cache: &Cache, agent: &Path, install: bool) -> Result<Self> {
        let initramfs = initramfs::with_echo(cache, agent, &workspace::echo_init()?)?;
        Ok(Self { initramfs, go: go(cache, install)? })
    }

    /// Name of the environment variable and path on `host`, for the tests.
    pub fn environment(&self, host: Host) -> impl Iterator<Item = (&'static str, String)> {
        self.named().into_iter().map(move |(variable, name, path)| {
            let path = match host {
                Host::Kvm => path.display().to_string(),
                Host::Lab => format!("{DISK}/{name}"),
            };
            (variable, path)
        })
    }

    /// Puts them on a lab's disk.
    pub fn add_to(&self, lab: LabBuilder) -> LabBuilder {
        self.named().into_iter().fold(lab, |lab, (_, name, path)| lab.on_disk(path, name))
    }

    fn named(&self) -> [(&'static str, &'static str, &PathBuf); 2] {
        [
            ("BELLOWS_ECHO_INITRAMFS", "echo-initramfs.cpio", &self.initramfs),
            ("BELLOWS_GO_CLIENT", "go-client", &self.go),
        ]
    }
}

/// Builds the program around the Go SDK. Modules come from Go's proxy into the cache, as `go.sum` pins them.
fn go(cache: &Cache, install: bool) -> Result<PathBuf> {
    if run::capture(Command::new("go").arg("version")).is_err() {
        packages::ensure(&[GO], install)?;
    }
    let source = workspace::root().join("tests/clients/go");
    let mut key = Key::default().with("go", run::capture(Command::new("go").arg("version"))?);
    for name in GO_FILES {
        key = key.with_file(&source.join(name))?;
    }
    let entry = cache.get("go-client", &key, |place| {
        progress::step("build the client in Go", |step| {
            let folder = cache.folder("go")?;
            let mut command = Command::new("go");
            command
                .args(["build", "-trimpath", "-mod=readonly", "-buildvcs=false", "-ldflags=-s -w", "-o"])
                .arg(place.join("go-client"))
                .current_dir(&source)
                // Without C, it needs no libraries in the lab.
                .envs([("CGO_ENABLED", "0"), ("GOTOOLCHAIN", "local"), ("GOFLAGS", ""), ("GOWORK", "off")])
                .env("GOMODCACHE", folder.join("modules"))
                .env("GOCACHE", folder.join("build"));
            run::quiet(step, &mut command)
        })
    })?;
    let program = entry.join("go-client");
    fs::metadata(&program).map_err(Error::at(&program))?;
    Ok(program)
}
