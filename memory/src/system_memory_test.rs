use std::fs;

use super::*;

const MEMINFO: &str = "MemTotal: 24 kB\nMemAvailable:   4194304 kB\nHugePages_Total:      12\nHugePages_Free:       10\n\
                       HugePages_Rsvd:        4\nHugepagesize:       2048 kB\n";

/// The files of a system, in a folder of their own.
struct System(tempfile::TempDir);

impl System {
    fn new(mountinfo: &str, cgroup: &str) -> Self {
        let system = Self(tempfile::tempdir().unwrap());
        for (path, text) in
            [("proc/meminfo", MEMINFO), ("proc/self/mountinfo", mountinfo), ("proc/self/cgroup", cgroup)]
        {
            system.write(path, text);
        }
        system
    }

    fn write(&self, path: &str, text: &str) {
        let path = self.0.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn v2(&self, group: &str, max: &str, current: u64, inactive: u64) {
        let directory = format!("sys/fs/cgroup{group}");
        self.write(&format!("{directory}/memory.max"), &format!("{max}\n"));
        self.write(&format!("{directory}/memory.current"), &format!("{current}\n"));
        let stat = format!("anon 5\nfile 7\ninactive_file {inactive}\nactive_file 9\n");
        self.write(&format!("{directory}/memory.stat"), &stat);
    }

    fn available(&self) -> io::Result<u64> {
        Ok(SystemMemory::open_at(self.0.path())?.available(Backing::Thp)?.get())
    }
}

const V2_MOUNT: &str = "24 1 0:22 / /proc rw - proc proc rw\n\
                        30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n";
const MEM_AVAILABLE: u64 = 4 << 30;

#[test]
fn the_least_of_the_host_and_all_groups_on_the_way_up_counts() {
    let system = System::new(V2_MOUNT, "0::/a.slice/b.service\n");
    assert_eq!(system.available().unwrap(), MEM_AVAILABLE, "groups without files have no limit");
    system.v2("/a.slice/b.service", "max", 100, 0);
    system.v2("/a.slice", "max", 200, 0);
    assert_eq!(system.available().unwrap(), MEM_AVAILABLE);
    system.v2("/a.slice/b.service", "3000000000", 1_000_000_000, 0);
    assert_eq!(system.available().unwrap(), 2_000_000_000);
    system.v2("/a.slice", "3000000000", 1_500_000_000, 0);
    assert_eq!(system.available().unwrap(), 1_500_000_000, "the group above is fuller");
    system.v2("/a.slice", "3000000000", 1_500_000_000, 700_000_000);
    assert_eq!(system.available().unwrap(), 2_000_000_000, "files that can go leave room");
    system.v2("/a.slice/b.service", "1000", 2000, 0);
    assert_eq!(system.available().unwrap(), 0, "more is used than allowed");
    system.v2("/a.slice/b.service", "1000", 2000, 5000);
    assert_eq!(system.available().unwrap(), 1000);
    system.v2("/other", "1", 1, 0);
    assert_eq!(system.available().unwrap(), 1000);
}

#[test]
fn a_container_sees_its_group_as_the_root_or_by_its_host_s_path() {
    let system = System::new(V2_MOUNT, "0::/\n");
    system.v2("", "5000", 1000, 0);
    assert_eq!(system.available().unwrap(), 4000);

    let mount = "30 23 0:26 /docker/with\\040space /sys/fs/cgroup ro - cgroup2 cgroup rw\n";
    let system = System::new(mount, "0::/docker/with space/inner\n");
    system.v2("/inner", "5000", 2000, 0);
    assert_eq!(system.available().unwrap(), 3000);
    for elsewhere in ["0::/docker/with\n", "0::/docker/with space/../other\n", "0::/../x\n", "", "1:cpu:/\n"] {
        system.write("proc/self/cgroup", elsewhere);
        assert_eq!(system.available().unwrap(), MEM_AVAILABLE, "{elsewhere}");
    }
}

#[test]
fn version_1_counts_where_its_memory_controller_is_mounted() {
    let mounts = "31 23 0:27 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu,cpuacct\n\
                  32 23 0:28 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
                  33 23 0:29 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";
    let system = System::new(mounts, "5:cpu,cpuacct:/x\n4:memory:/user/vm\n0::/user\n");
    let group = |path: &str, limit: &str, usage: &str| {
        system.write(&format!("sys/fs/cgroup/memory{path}/memory.limit_in_bytes"), limit);
        system.write(&format!("sys/fs/cgroup/memory{path}/memory.usage_in_bytes"), usage);
    };
    group("", "9223372036854771712\n", "77\n");
    group("/user", "9223372036854771712\n", "77\n");
    group("/user/vm", "9223372036854771712\n", "77\n");
    assert_eq!(system.available().unwrap(), MEM_AVAILABLE);
    group("/user", "900\n", "300\n");
    assert_eq!(system.available().unwrap(), 600);
    system.write("sys/fs/cgroup/memory/user/memory.stat", "inactive_file 1\ntotal_inactive_file 100\n");
    assert_eq!(system.available().unwrap(), 700);
}

#[test]
fn what_makes_no_sense_is_an_error_that_names_it() {
    let system = System::new(V2_MOUNT, "0::/a\n");
    system.v2("/a", "lots", 1, 0);
    let error = system.available().unwrap_err().to_string();
    assert!(error.ends_with("sys/fs/cgroup/a/memory.max holds \"lots\": expected a number of bytes"), "{error}");
    system.write("proc/meminfo", "MemTotal: 1 kB\nMemAvailable: many\n");
    assert_eq!(system.available().unwrap_err().to_string(), "/proc/meminfo has no MemAvailable");
    fs::remove_file(system.0.path().join("proc/meminfo")).unwrap();
    assert!(system.available().unwrap_err().to_string().contains("proc/meminfo"));
    let broken = tempfile::tempdir().unwrap();
    fs::create_dir_all(broken.path().join("proc/self/mountinfo")).unwrap();
    assert!(SystemMemory::open_at(broken.path()).unwrap_err().to_string().contains("proc/self/mountinfo"));
}

#[test]
fn a_jail_shows_the_hosts_memory_alone() {
    let jail = tempfile::tempdir().unwrap();
    fs::create_dir(jail.path().join("proc")).unwrap();
    fs::write(jail.path().join("proc/meminfo"), "MemTotal: 2 kB\nMemAvailable: 1 kB\n").unwrap();
    let memory = SystemMemory::open_at(jail.path()).unwrap();
    assert_eq!(memory.available(Backing::Thp).unwrap().get(), 1024);
}

#[test]
fn huge_pages_are_the_pool_s() {
    let system = System::new(V2_MOUNT, "0::/a\n");
    system.v2("/a", "0", 0, 0);
    let memory = SystemMemory::open_at(system.0.path()).unwrap();
    assert_eq!(memory.available(Backing::Hugetlbfs).unwrap(), ByteSize::mib(12));
    assert_eq!(memory.available(Backing::None).unwrap(), ByteSize::bytes(0));
}

const SWAPS: &str = "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n\
                     /dev/zram0                              partition\t1048572\t\t1024\t\t100\n\
                     /swap\\040file                            file\t\t4\t\t4\t\t-2\n";

#[test]
fn swap_is_there_if_the_host_and_all_groups_leave_some() {
    let system = System::new(V2_MOUNT, "0::/a.slice/b.service\n");
    let swap = || SystemMemory::open_at(system.0.path()).unwrap().swap().unwrap();
    assert_eq!(swap(), Swap::Absent, "the kernel knows none");
    for none in ["", "Filename\tType\tSize\tUsed\tPriority\n"] {
        system.write("proc/swaps", none);
        assert_eq!(swap(), Swap::Absent);
    }
    system.write("proc/swaps", SWAPS);
    assert_eq!(swap(), Swap::Free(ByteSize::kib(1_048_572 - 1024)));
    let limit = |group: &str, max: &str, current: &str| {
        system.write(&format!("sys/fs/cgroup{group}/memory.swap.max"), max);
        system.write(&format!("sys/fs/cgroup{group}/memory.swap.current"), current);
    };
    limit("/a.slice/b.service", "max\n", "77\n");
    limit("/a.slice", "max\n", "77\n");
    assert_eq!(swap(), Swap::Free(ByteSize::kib(1_048_572 - 1024)));
    limit("/a.slice", "8192\n", "4096\n");
    assert_eq!(swap(), Swap::Free(ByteSize::bytes(4096)), "the group above leaves less");
    limit("/a.slice/b.service", "0\n", "0\n");
    let group = PathBuf::from("/sys/fs/cgroup/a.slice/b.service");
    assert_eq!(swap(), Swap::Limited { group, limit: ByteSize::bytes(0) });
    system.write("proc/swaps", "Filename\n/swap file 4096 4096 -2\n");
    assert_eq!(swap(), Swap::Full(ByteSize::kib(4096)));
}

#[test]
fn swap_that_makes_no_sense_is_an_error_that_names_it() {
    let system = System::new(V2_MOUNT, "0::/a\n");
    let swap = || SystemMemory::open_at(system.0.path()).unwrap().swap().unwrap_err().to_string();
    for bad in ["/dev/sda2 partition 12", "/dev/sda2 partition 12 many -2", "/x file 18446744073709551615 0 0"] {
        system.write("proc/swaps", &format!("Filename\n{bad}\n"));
        assert!(swap().contains(bad), "{}", swap());
    }
    system.write("proc/swaps", SWAPS);
    system.write("sys/fs/cgroup/a/memory.swap.max", "lots\n");
    assert!(swap().contains("memory.swap.max holds \"lots\""), "{}", swap());
}

#[test]
fn this_system_has_memory() {
    assert!(SystemMemory::open().unwrap().available(Backing::None).unwrap().get() > 0);
}
