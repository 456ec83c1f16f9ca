use super::*;

const BLOCK: u64 = 128 << 20;

/// A guest with one memory block of 128 MiB at 4 GiB on `node`, in `zone`.
fn fixture(node: u32, zone: &str) -> (tempfile::TempDir, MemoryInfo) {
    let folder = tempfile::tempdir().unwrap();
    let system = folder.path().join("sys/devices/system");
    let block = system.join("memory/memory32");
    fs::create_dir_all(block.join(format!("node{node}"))).unwrap();
    fs::write(system.join("memory/block_size_bytes"), "8000000\n").unwrap();
    fs::write(block.join("state"), "online\n").unwrap();
    fs::write(block.join("valid_zones"), format!("{zone}\n")).unwrap();
    let node_folder = system.join(format!("node/node{node}"));
    fs::create_dir_all(node_folder.join("memory32")).unwrap();
    fs::write(
        node_folder.join("meminfo"),
        format!("Node {node} MemTotal: 131072 kB\nNode {node} MemFree: 131072 kB\n"),
    )
    .unwrap();
    let info = MemoryInfo::new(folder.path().join("sys"), folder.path().join("proc"));
    (folder, info)
}

fn await_on_node_2(info: &MemoryInfo, bytes: u64) -> Result<Option<Driver>> {
    let node = Node::try_from(2).unwrap();
    info.await_memory(&Uevents::default(), node, 32 * BLOCK, bytes, Duration::from_millis(5))
}

#[test]
fn memory_on_its_node_in_the_movable_zone_is_good() {
    let (_folder, info) = fixture(2, "Movable");
    assert_eq!(await_on_node_2(&info, BLOCK).unwrap(), None);
    assert_eq!(info.node(Node::try_from(2).unwrap()).unwrap().total_bytes, BLOCK);
}

#[test]
fn memory_on_another_node_fails_at_once() {
    let (_folder, info) = fixture(0, "Movable");
    let error = await_on_node_2(&info, BLOCK).unwrap_err();
    assert!(matches!(error, AgentError::WrongNode { found: 0, .. }), "{error}");
    assert!(error.to_string().contains("0x100000000"), "{error}");
}

#[test]
fn memory_in_another_zone_fails() {
    let (_folder, info) = fixture(2, "Normal");
    assert!(matches!(await_on_node_2(&info, BLOCK), Err(AgentError::WrongZone { block: 32, .. })));
}

#[test]
fn memory_that_does_not_come_times_out() {
    let (_folder, info) = fixture(2, "Movable");
    let error = await_on_node_2(&info, BLOCK + 1).unwrap_err();
    assert_eq!(error.to_string(), "no 134217729 bytes of memory on node 2 after 5 ms");
}

#[test]
fn a_node_without_memory_is_empty() {
    let (_folder, info) = fixture(2, "Movable");
    assert_eq!(info.node(Node::try_from(9).unwrap()).unwrap(), NodeMemory::default());
}

#[test]
fn holders_come_largest_first() {
    let (folder, info) = fixture(2, "Movable");
    for (pid, pages) in [(10, 1), (11, 7), (12, 0)] {
        let process = folder.path().join(format!("proc/{pid}"));
        fs::create_dir_all(&process).unwrap();
        fs::write(process.join("comm"), format!("task{pid}\n")).unwrap();
        fs::write(process.join("numa_maps"), format!("7f00 bind:2 anon={pages} N2={pages} kernelpagesize_kB=4\n"))
            .unwrap();
    }
    fs::create_dir_all(folder.path().join("proc/sys")).unwrap();
    fs::write(folder.path().join("proc/11/cgroup"), "0::/instances/f-1/instance\n").unwrap();
    fs::write(folder.path().join("proc/10/cgroup"), "0::/agent\n").unwrap();
    let holders = info.holders(Node::try_from(2).unwrap());
    let expected = [(11, 7 * 4096), (10, 4096)];
    assert_eq!(holders.iter().map(|holder| (holder.pid, holder.bytes)).collect::<Vec<_>>(), expected);
    assert_eq!(holders[0].command, "task11");
    let instances = [&holders[0], &holders[1]].map(|holder| holder.instance.as_ref().map(ToString::to_string));
    assert_eq!(instances, [Some("f-1".into()), None]);
}

/// A process chooses its own name and those of the files that it maps, and maps as many as it likes.
#[test]
fn a_holder_cannot_hide() {
    let (folder, info) = fixture(2, "Movable");
    let maps = b"7f00 bind:2 file=/tmp/\xff mapped=7 N2=7 kernelpagesize_kB=4\n";
    for (pid, length) in [(10, None), (11, Some(1 << 40))] {
        let process = folder.path().join(format!("proc/{pid}"));
        fs::create_dir_all(&process).unwrap();
        fs::write(process.join("comm"), b"task\xff\n").unwrap();
        fs::write(process.join("numa_maps"), maps).unwrap();
        if let Some(length) = length {
            File::options().write(true).open(process.join("numa_maps")).unwrap().set_len(length).unwrap();
        }
    }
    let holders = info.holders(Node::try_from(2).unwrap());
    let expected = [10, 11].map(|pid| Holder { pid, command: "task\u{fffd}".into(), instance: None, bytes: 7 * 4096 });
    assert_eq!(holders, expected);
}
