//! A VM whose monitor is in a jail.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::unistd::{chdir, chroot};
use serde_json::json;

use crate::api::client::Api;
use crate::api::wait_for;
use crate::fixture::{PATIENCE, artefact};

const UID: u32 = 1234;
const GROUPS: &str = "/sys/fs/cgroup";

/// The lab runs from its initramfs, which no process can leave by pivot_root(2). So what a switch to the root file system does on other hosts
/// happens here: the process gets a root that is mounted.
fn leave_initramfs(beside: &Path) -> nix::Result<()> {
    let none = None::<&str>;
    unshare(CloneFlags::CLONE_NEWNS)?;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
    mount(Some("/"), beside, none, MsFlags::MS_BIND | MsFlags::MS_REC, none)?;
    chdir(beside)?;
    mount(Some("."), "/", none, MsFlags::MS_MOVE, none)?;
    chroot(".")?;
    chdir("/")
}

/// All that the monitor opens is in its jail; it is an ordinary user there, in a control group of its own.
#[test]
fn a_jailed_vm_boots_by_requests() {
    let base = tempfile::tempdir().unwrap();
    let program = artefact("BELLOWS_BINARY");
    let root = base.path().join(program.file_name().unwrap()).join("vm-1/root");
    fs::create_dir_all(&root).unwrap();
    for (name, variable) in [("kernel", "BELLOWS_KERNEL"), ("initramfs", "BELLOWS_INITRAMFS")] {
        fs::copy(artefact(variable), root.join(name)).unwrap();
        fs::set_permissions(root.join(name), PermissionsExt::from_mode(0o444)).unwrap();
    }
    for name in ["data", "more"] {
        fs::write(root.join(name), vec![0; 8 << 20]).unwrap();
        chown(root.join(name), Some(UID), None).unwrap();
    }
    let mut command = Command::new(&program);
    command.args(["jail", "--id", "vm-1", "--uid", "1234", "--gid", "100", "--chroot-base-dir"]).arg(base.path());
    command.args([
        "--cgroup-version",
        "2",
        "--parent-cgroup",
        "bellows-test",
        "--cgroup",
        "memory.max=2G",
        "--exec-file",
    ]);
    command.arg(&program).args(["--", "api", "--api-sock", "/run/api.sock", "--level", "Debug"]);
    let beside = base.path().join("root");
    fs::create_dir(&beside).unwrap();
    // SAFETY: some system calls, in a process that is alone.
    unsafe { command.pre_exec(move || leave_initramfs(&beside).map_err(Into::into)) };
    let mut api = Api::start_by(command, tempfile::tempdir().unwrap(), root.join("run/api.sock"));

    api.put("/machine-config", json!({ "vcpu_count": 1, "mem_size_mib": 256 }));
    let arguments = "console=ttyS0 reboot=k panic=1";
    let source = json!({ "kernel_image_path": "/kernel", "initrd_path": "/initramfs", "boot_args": arguments });
    api.put("/boot-source", source);
    let outside = json!({ "drive_id": "outside", "path_on_host": artefact("BELLOWS_KERNEL"), "is_root_device": false });
    let refused = api.refused("PUT", "/drives/outside", &outside.to_string());
    assert!(refused.contains("outside") || refused.contains("No such file"), "{refused}");
    let drive = |name: &str| json!({ "drive_id": name, "path_on_host": format!("/{name}"), "is_root_device": false });
    api.put("/drives/data", drive("data"));
    api.put("/serial", json!({ "serial_out_path": "/run/console" }));
    api.put("/actions", json!({ "action_type": "InstanceStart" }));
    let console = || fs::read_to_string(root.join("run/console")).unwrap();
    wait_for("the guest sees the drive", || console().contains("[vda] 16384 512-byte"));
    wait_for("the guest's agent", || api.send("PUT", "/drives/more", &drive("more").to_string()).status == 204);

    let process = Path::new("/proc").join(api.process().to_string());
    assert_eq!(fs::metadata(&process).unwrap().uid(), UID);
    assert_eq!(fs::read_to_string(process.join("cgroup")).unwrap().trim(), "0::/bellows-test/vm-1");
    let group = Path::new(GROUPS).join("bellows-test/vm-1");
    assert_eq!(fs::read_to_string(group.join("memory.max")).unwrap().trim(), (2_u64 << 30).to_string());
    let mounts = fs::read_to_string(process.join("mounts")).unwrap();
    let mut points: Vec<_> = mounts.lines().filter_map(|line| line.split(' ').nth(1)).collect();
    points.sort_unstable();
    assert_eq!(points, ["/", "/dev", "/proc", "/proc/meminfo"], "{mounts}");

    api.put("/actions", json!({ "action_type": "SendCtrlAltDel" }));
    assert_eq!(api.wait(PATIENCE), Some(0));
    let left =
        |name: &str| fs::read_dir(root.join(name)).unwrap().map(|entry| entry.unwrap().file_name()).collect::<Vec<_>>();
    assert_eq!((left("run"), left("tmp")), (vec!["console".into()], vec![]), "no socket stays");
    fs::remove_dir(&group).unwrap();
}
