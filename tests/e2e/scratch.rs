//! Scratch disks: instances write more than they have memory for, and nothing of it stays.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::process::Command;

use bellows_vmm::{ByteSize, InstanceSpec, ScratchSpec};

use crate::archives::scratch as disk_folder;
use crate::command::{bellows_run, image};
use crate::fixture::{Guest, image_id, partition};

/// What the instance may have of base memory, where its page cache is.
const LIMIT: ByteSize = ByteSize::mib(24);

/// Bytes of the host under files of this process that lie in a folder.
fn taken(folder: &Path) -> Vec<u64> {
    let open = fs::read_dir("/proc/self/fd").unwrap().flatten();
    let here = open.filter(|file| fs::read_link(file.path()).is_ok_and(|target| target.starts_with(folder)));
    here.map(|file| fs::metadata(file.path()).unwrap().blocks() * 512).collect()
}

#[test]
fn an_instance_writes_more_than_its_memory_and_nothing_of_it_stays() {
    let folder = disk_folder();
    let guest = Guest::ours().scratch_folder(folder.path()).partition(128).boot();
    guest.plug(1, 64);
    let before = guest.vm.disks();
    let spec = |id: &str, line: &str| {
        let mut spec = InstanceSpec::new(id.parse().unwrap(), image_id(), ["/bin/sh", "-c", line]);
        spec.scratch = Some(ScratchSpec::new(ByteSize::mib(160), "/new/place".parse().unwrap()).unwrap());
        (spec.process.user, spec.process.cwd) = ("1000".parse().unwrap(), "/new/place/below".into());
        spec.base_limit = Some(LIMIT);
        spec.in_partition(partition(1))
    };

    // A start that fails leaves no disk.
    let mut wrong = spec("wrong", "");
    wrong.process.argv = vec!["/nowhere".into()];
    assert!(guest.refused(&wrong).contains("/nowhere"));
    assert_eq!((guest.vm.disks(), taken(folder.path())), (before.clone(), vec![]));

    // The instance is its disk's only user, and has more on it than in memory; what it deletes goes back.
    let line = "pwd; cd ..; stat -c '%a %u' . below; grep ' /new/place ' /proc/mounts; \
        dd if=/dev/zero bs=1M count=96 of=big && sync big && wc -l <big && echo written; read x; \
        rm big; sync .; echo deleted; read x; dd if=/dev/zero bs=1M of=all; echo full; read x";
    let mut wanted = spec("writer", line);
    wanted.process.stdio = bellows_vmm::Stdio::Pipes { stdin: true };
    let job = guest.start_spec(&wanted);
    let mut input = job.instance.init().connect(bellows_vmm::StreamName::Stdin).unwrap();
    let mut next = || std::io::Write::write_all(&mut input, b"\n").unwrap();
    job.wait_for("written");
    let cached = guest.vm.measure_instances().unwrap()[0].limited;
    assert!(cached > ByteSize::mib(12) && cached <= LIMIT, "its page cache counts for it: {cached}");
    let [written] = taken(folder.path())[..] else { panic!("{:?}", taken(folder.path())) };
    assert!(written >= 96 << 20, "{written}");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0, "it has no name");
    let disk = guest.vm.disks().into_iter().find(|disk| !before.contains(disk)).unwrap();
    let busy = format!("{:?}", guest.vm.detach_disk(&disk.serial, crate::fixture::PATIENCE).unwrap_err());
    assert!(busy.contains("in use by instance writer"), "{busy}");
    next();
    job.wait_for("deleted");
    let left = taken(folder.path())[0];
    assert!(left < 8 << 20, "{left}");
    next();
    job.wait_for("full");
    let printed = job.printed();
    assert!(printed.starts_with("/new/place/below\n1777 0\n755 0\n"), "{printed}");
    assert!(printed.contains("ext4 rw,nosuid,nodev,noatime,discard"), "{printed}");
    assert!(printed.contains("No space left on device"), "{printed}");
    let used = guest.vm.measure_instances().unwrap();
    assert!(used[0].limited <= LIMIT, "{used:?}");

    next();
    let (status, output) = job.finish();
    assert_eq!((status.code, status.oom_killed), (0, false), "{output}");
    assert_eq!((guest.vm.disks(), taken(folder.path())), (before, vec![]));
    let console = guest.console();
    assert!(console.contains("shut down requested"), "what is not written yet is forgotten: {console}");
    assert!(!console.contains("WARNING:") && !console.contains("BUG:"), "{console}");
    assert_eq!(guest.unplug(1), 0);
    guest.shutdown();
}

#[test]
fn the_command_has_a_disk_to_write_on() {
    let folder = disk_folder();
    let run = |folder: &Path, options: &[&str]| {
        let mut command = bellows_run();
        command.args(["--memory=0", "--scratch-dir"]).arg(folder).args(options).arg(image());
        command.args(["/bin/sh", "-c", "echo x >/tmp/x && df -k /tmp | tail -n1"]).output().unwrap()
    };
    let output = run(folder.path(), &["--scratch=64M", "--user=1000"]);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let kib: u64 = text.split_whitespace().nth(1).and_then(|kib| kib.parse().ok()).unwrap_or_default();
    assert!(output.status.success() && text.contains("/tmp") && (56 << 10..=64 << 10).contains(&kib), "{output:?}");
    let refused = run(&folder.path().join("missing"), &["--scratch=64M"]);
    let text = String::from_utf8_lossy(&refused.stderr);
    assert!(refused.status.code() == Some(125) && text.contains("cannot make a scratch disk in"), "{text}");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
}

/// Disks take room as they are written to, so the host's file system can be full before they are.
#[test]
fn a_full_file_system_of_the_host_is_an_error_of_the_disk() {
    let folder = disk_folder();
    let line = "dd if=/dev/zero of=/tmp/big bs=1M count=56 conv=fsync || echo refused; ls /tmp; echo goes on";
    let mut bellows = bellows_run();
    bellows.args(["--memory=0", "--scratch=64M", "--scratch-dir"]).arg(folder.path()).arg(image());
    bellows.args(["/bin/sh", "-c", line]);
    // In namespaces of its own, any user may mount.
    let mut command = Command::new("unshare");
    command.args(["-rm", "sh", "-c", "mount -t tmpfs -o size=24M none \"$0\" && exec \"$@\""]).arg(folder.path());
    command.arg(bellows.get_program()).args(bellows.get_args());
    command.envs(bellows.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let output = command.output().unwrap();
    let printed = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && printed.ends_with("goes on\n"), "{output:?}");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(printed.contains("refused\n") && said.contains("Input/output error"), "{output:?}");
}
