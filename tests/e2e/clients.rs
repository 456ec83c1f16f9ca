//! Third parties' clients, as they are published, take a VM through its life: configure, boot, limits, pause, balloon, vsock, metrics,
//! shutdown. Their programs are in `tests/clients`.

use std::os::unix::fs::symlink;
use std::process::{Command, Output};
use std::{env, fs};

use tempfile::TempDir;

use crate::fixture::artefact;
use crate::network::HostTap;

/// What a client has to work with.
struct Host {
    /// Sockets and logs of the client.
    directory: TempDir,
    /// A folder with `firecracker`, and the disks.
    files: TempDir,
    tap: HostTap,
}

impl Host {
    fn new(tap: &str) -> Self {
        let (directory, files) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        symlink(artefact("BELLOWS_BINARY"), files.path().join("firecracker")).unwrap();
        for (name, mib) in [("disk", 8), ("other-disk", 16)] {
            fs::File::create(files.path().join(name)).unwrap().set_len(mib << 20).unwrap();
        }
        Self { directory, files, tap: HostTap::new(tap) }
    }

    /// Runs a client to its end.
    fn run(&self, mut command: Command) -> Output {
        let mut path = self.files.path().as_os_str().to_owned();
        path.push(":");
        path.push(env::var_os("PATH").unwrap());
        command.env("PATH", path).env("DIRECTORY", self.directory.path()).env("TAP", self.tap.name());
        command.env("DISK", self.files.path().join("disk")).env("OTHER_DISK", self.files.path().join("other-disk"));
        command.env("KERNEL", artefact("BELLOWS_KERNEL")).env("INITRD", artefact("BELLOWS_ECHO_INITRAMFS"));
        command.output().unwrap()
    }

    /// Names of what the client has left.
    fn left(&self) -> Vec<String> {
        let names = fs::read_dir(self.directory.path()).unwrap();
        let mut names: Vec<_> = names.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

#[test]
fn the_go_sdk_takes_a_vm_through_its_life() {
    // It leaves its own output.
    let client = Command::new(artefact("BELLOWS_GO_CLIENT"));
    assert_eq!(take_through_a_life("blg", client), ["log", "metrics"], "no socket stays");
}

#[test]
fn firecracker_python_takes_a_vm_through_its_life() {
    let program = artefact("BELLOWS_PYTHON_CLIENT").join("life.py");
    let mut client = Command::new("/usr/bin/python3");
    client.arg("-B").arg(program).env("PYTHONPATH", artefact("BELLOWS_FIRECRACKER_PYTHON"));
    assert_eq!(take_through_a_life("blp", client), ["log", "metrics"], "no socket stays");
}

#[test]
fn fctools_takes_a_vm_through_its_life() {
    let client = Command::new(artefact("BELLOWS_FCTOOLS_CLIENT"));
    assert_eq!(take_through_a_life("blf", client), [""; 0], "it removes all that it has made");
}

/// Runs a client, and returns what it has left.
fn take_through_a_life(tap: &str, client: Command) -> Vec<String> {
    let host = Host::new(tap);
    let output = host.run(client);
    let (said, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    let log = || fs::read_to_string(host.directory.path().join("log")).unwrap_or_default();
    assert!(output.status.success() && said.ends_with("the VM has lived\n"), "{said}\n{errors}\n{}", log());
    // No process has the disks any more, for their locks are free.
    for disk in ["disk", "other-disk"] {
        fs::File::open(host.files.path().join(disk)).unwrap().try_lock().unwrap();
    }
    host.left()
}
