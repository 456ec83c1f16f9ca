use super::*;

/// A host's files.
struct Files(tempfile::TempDir);

impl Files {
    fn new(files: &[(&str, &str)]) -> Self {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        Self(root)
    }

    fn finding(files: &[(&str, &str)], check: impl Fn(&Path) -> Finding) -> String {
        check(Self::new(files).0.path()).to_string()
    }
}

#[test]
fn a_host_without_kvm_stops_vms_and_says_why() {
    let missing = Files::finding(&[], |root| no_kvm(root, "`/dev/kvm` is missing"));
    assert!(missing.starts_with("STOPS  KVM") && missing.contains("firmware"), "{missing}");
    let denied = Files::finding(&[("dev/kvm", "")], |root| no_kvm(root, "no rights"));
    assert!(denied.contains("usermod -aG kvm"), "{denied}");
    assert!(no_kvm(Path::new("/"), "").stops());
    let amd = Files::finding(&[("sys/module/kvm_amd/x", "")], |root| kvm(root, 255, 48));
    let emulated = Files::finding(&[("sys/module/kvm_pvm/x", "")], |root| kvm(root, 255, 48));
    assert!(emulated.starts_with("STOPS") && emulated.contains("kvm_pvm"), "{emulated}");
    assert_eq!(amd, "ok     KVM             AMD, up to 255 vCPUs, guest addresses of 48 bits");
}

#[test]
fn what_is_missing_comes_with_a_remedy() {
    const THP: &str = "sys/kernel/mm/transparent_hugepage/enabled";
    let swaps = "Filename Type Size Used Priority\n";
    let zram = format!("{swaps}/dev/zram0 partition 1 0 100\n");
    /// The host's files, the check, its state, and a part of its line.
    type Case<'a> = (&'a [(&'a str, &'a str)], fn(&Path) -> Finding, &'a str, &'a str);
    let cases: [Case<'_>; 13] = [
        (&[(THP, "always [madvise] never\n")], huge_pages, "ok", "madvise"),
        (&[(THP, "always madvise [never]\n")], huge_pages, "lacks", "tee"),
        (&[], huge_pages, "lacks", "CONFIG_TRANSPARENT_HUGEPAGE"),
        (&[("proc/swaps", &zram)], swap, "ok", "/dev/zram0"),
        (&[("proc/swaps", swaps)], swap, "lacks", "zram"),
        (&[("dev/net/tun", "")], tun, "ok", "tun"),
        (&[], tun, "lacks", "modprobe tun"),
        (&[("dev/vhost-net", "")], vhost_net, "ok", "vhost-net"),
        (&[], vhost_net, "lacks", "modprobe vhost_net"),
        (&[("proc/sys/kernel/seccomp/actions_avail", "kill_process trap errno\n")], seccomp, "ok", ""),
        (&[], seccomp, "lacks", "--no-seccomp"),
        (&[("sys/kernel/security/lsm", "capability\n")], |root| landlock(false, root), "lacks", "`landlock` in `lsm=`"),
        (&[], |root| landlock(false, root), "lacks", "Linux 5.19"),
    ];
    for (files, check, state, part) in cases {
        let line = Files::finding(files, check);
        assert!(line.starts_with(state) && line.contains(part), "{line}");
    }
}

#[test]
fn control_groups_are_looked_at_where_they_are() {
    let mounts = ("proc/self/mounts", "cgroup2 /sys/fs/cgroup cgroup2 rw 0 0\n");
    let own = ("proc/self/cgroup", "0::/user\n");
    let line =
        Files::finding(&[mounts, own, ("sys/fs/cgroup/user/cgroup.controllers", "cpu memory\n")], control_groups);
    assert!(line.starts_with("ok") && line.contains("user"), "{line}");
    let line = Files::finding(&[mounts, own, ("sys/fs/cgroup/user/cgroup.controllers", "cpu\n")], control_groups);
    assert!(line.starts_with("lacks") && line.contains("Delegate"), "{line}");
    assert!(Files::finding(&[], control_groups).contains("not mounted"));
}

#[test]
fn a_program_is_found_in_the_path() {
    let files = Files::new(&[("bin/passt", "")]);
    let path = files.0.path().join("bin");
    assert!(passt(Some(path.as_os_str())).to_string().starts_with("ok"));
    assert!(passt(Some(files.0.path().as_os_str())).to_string().contains("apt install passt"));
    assert!(passt(None).to_string().contains("apt install passt"));
}

#[test]
fn a_report_for_programs_has_the_same() {
    let json = serde_json::to_value([Finding::ok("a", "b"), Finding::lacks("c", "d", "e")]).unwrap();
    let expected = serde_json::json!([
        { "name": "a", "state": "ok", "found": "b" },
        { "name": "c", "state": "lacks", "found": "d", "remedy": "e" },
    ]);
    assert_eq!(json, expected);
}
