use super::*;

#[test]
fn flat_keyed_files_are_read_by_whole_keys() {
    let events = "low 0\nhigh 0\nmax 12\noom 1\noom_kill 2\noom_group_kill 1\n";
    assert_eq!(flat_keyed(events, "oom_kill"), Some(2));
    assert_eq!(flat_keyed(events, "oom"), Some(1));
    assert_eq!(flat_keyed(events, "group_kill"), None);
    assert_eq!(flat_keyed("populated x\n", "populated"), None);
    assert_eq!(flat_keyed("populated 1\nfrozen 0\n", "populated"), Some(1));
}

#[test]
fn a_process_belongs_to_an_instance() {
    let id = |text| instance_of(text).map(|id| id.to_string());
    assert_eq!(id("0::/instances/f-1/instance\n").as_deref(), Some("f-1"));
    assert_eq!(id("1:cpu:/x\n0::/instances/f-2\n").as_deref(), Some("f-2"));
    for none in ["0::/agent\n", "0::/instances\n", "0::/\n", "0::/instances/A B/instance\n", "", "0::/x/instances/a\n"]
    {
        assert_eq!(id(none), None, "{none:?}");
    }
}

#[test]
fn instances_leave_tasks_to_the_agent() {
    let folder = tempfile::tempdir().unwrap();
    let hierarchy = Hierarchy::new(folder.path());
    std::fs::create_dir(folder.path().join(INSTANCES)).unwrap();
    for (threads, pids, most) in
        [("3970\n", "4194304\n", "3458"), ("63000\n", "32768\n", "32256"), ("600\n", "4194304\n", "300")]
    {
        std::fs::write(folder.path().join("threads-max"), threads).unwrap();
        std::fs::write(folder.path().join("pid_max"), pids).unwrap();
        std::fs::write(hierarchy.tasks(), "").unwrap();
        hierarchy.limit_tasks(folder.path()).unwrap();
        assert_eq!(std::fs::read_to_string(hierarchy.tasks()).unwrap(), most);
    }
}

#[test]
fn the_agent_does_not_go_on_without_that_limit() {
    let folder = tempfile::tempdir().unwrap();
    let hierarchy = Hierarchy::new(folder.path());
    std::fs::create_dir(folder.path().join(AGENT)).unwrap();
    std::fs::write(folder.path().join(AGENT).join("cgroup.procs"), "").unwrap();
    let error = hierarchy.confine_agent(4096).unwrap_err();
    assert!(error.to_string().contains("/instances/pids.max"), "{error}");
    std::fs::write(hierarchy.tasks(), "").unwrap();
    hierarchy.confine_agent(4096).unwrap();
}

/// Base memory, the same with less for the instance, a policy and a private node.
fn limits() -> [Limits; 4] {
    let node = bellows_protocol::values::Node::try_from(3).unwrap();
    let limits = |placement, memory_max, outer_max| Limits { placement, memory_max, outer_max, pids_max: Some(7) };
    [
        limits(Placement::Base, 4096, 4096),
        limits(Placement::Base, 2048, 4096),
        limits(Placement::Policy(node), 8192, 8192),
        limits(Placement::Private(node), 8192, 4096),
    ]
}

#[test]
fn the_base_limit_is_around_the_cgroup_that_the_instance_sees() {
    let id: InstanceId = "f-1".parse().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let cgroup = Hierarchy::new(folder.path()).cgroup(&id);
    std::fs::create_dir_all(&cgroup.outer).unwrap();
    for name in ["memory.max", "memory.cache_to_parent", "cgroup.max.descendants", "cgroup.subtree_control"] {
        std::fs::write(cgroup.outer.join(name), "").unwrap();
    }
    let [.., private] = limits();
    cgroup.bound(private.outer_max).unwrap();
    for name in ["cpuset.mems", "memory.private_node", "memory.max", "memory.oom.group", "pids.max"] {
        std::fs::write(cgroup.inner.join(name), "").unwrap();
    }
    cgroup.limit(&id, private, 7).unwrap();
    let read = |path: &Path, name| std::fs::read_to_string(path.join(name)).unwrap();
    assert_eq!(read(&cgroup.outer, "memory.max"), "4096");
    assert_eq!(read(&cgroup.outer, "memory.cache_to_parent"), "1");
    assert_eq!(read(&cgroup.outer, "cgroup.max.descendants"), "1");
    assert_eq!(read(&cgroup.inner, "memory.max"), "8192");
    assert_eq!(read(&cgroup.inner, "memory.private_node"), "3");
    assert_eq!(read(&cgroup.inner, "memory.oom.group"), "1");
}

#[test]
fn a_kill_says_which_limit_was_met() {
    use OomLimit::{Base, Guest, Memory, Partition};
    let folder = tempfile::tempdir().unwrap();
    let cgroup = Hierarchy::new(folder.path()).cgroup(&"f-1".parse().unwrap());
    std::fs::create_dir_all(&cgroup.inner).unwrap();
    let expected = [
        ((0, 0), [Guest, Guest, Guest, Partition]),
        ((1, 0), [Base, Memory, Memory, Base]),
        ((0, 1), [Base, Base, Memory, Base]),
        ((1, 1), [Base, Base, Memory, Base]),
    ];
    for ((inner, outer), met) in expected {
        std::fs::write(cgroup.inner.join("memory.events.local"), format!("oom {inner}\n")).unwrap();
        std::fs::write(cgroup.outer.join("memory.events.local"), format!("oom {outer}\n")).unwrap();
        for (limits, met) in limits().into_iter().zip(met) {
            std::fs::write(cgroup.outer.join("memory.events"), "oom 1\noom_kill 2\n").unwrap();
            assert_eq!(cgroup.oom_killed(limits).unwrap(), Some(met), "{limits:?} {inner} {outer}");
            std::fs::write(cgroup.outer.join("memory.events"), "oom 1\noom_kill 0\n").unwrap();
            assert_eq!(cgroup.oom_killed(limits).unwrap(), None);
        }
    }
}

#[test]
fn memory_of_an_instance_is_what_it_sees_and_what_is_limited() {
    let folder = tempfile::tempdir().unwrap();
    let cgroup = Hierarchy::new(folder.path()).cgroup(&"f-1".parse().unwrap());
    assert_eq!(cgroup.allocated().unwrap(), None);
    std::fs::create_dir_all(&cgroup.inner).unwrap();
    std::fs::write(cgroup.outer.join("memory.current"), "4096\n").unwrap();
    assert_eq!(cgroup.allocated().unwrap(), None, "half of it is made");
    std::fs::write(cgroup.inner.join("memory.current"), "12288\n").unwrap();
    assert_eq!(cgroup.allocated().unwrap(), Some(Allocated { bytes: 12288, limited: 4096 }));
    std::fs::write(cgroup.inner.join("memory.current"), "0\n").unwrap();
    assert_eq!(cgroup.allocated().unwrap(), Some(Allocated { bytes: 4096, limited: 4096 }));
    std::fs::write(cgroup.inner.join("memory.current"), "max\n").unwrap();
    assert!(cgroup.allocated().unwrap_err().to_string().contains("memory.current"));
}

/// An instance's cgroups as plain files, `events` among them, of which a regular file never announces a change.
fn freezable(folder: &Path, events: &str) -> Cgroup {
    let cgroup = Hierarchy::new(folder).cgroup(&"f-1".parse().unwrap());
    std::fs::create_dir_all(&cgroup.inner).unwrap();
    std::fs::write(cgroup.outer.join("cgroup.freeze"), "0").unwrap();
    std::fs::write(cgroup.outer.join("cgroup.events"), events).unwrap();
    cgroup
}

#[test]
fn a_freeze_waits_until_all_processes_have_stopped() {
    let folder = tempfile::tempdir().unwrap();
    let cgroup = freezable(folder.path(), "populated 1\nfrozen 0\n");
    let wanted = || std::fs::read_to_string(cgroup.outer.join("cgroup.freeze")).unwrap();
    std::thread::scope(|scope| {
        let freeze = scope.spawn(|| cgroup.freeze(Duration::from_secs(2)));
        while wanted() != "1" {
            std::thread::yield_now();
        }
        assert!(!freeze.is_finished(), "one has not stopped");
        std::fs::write(cgroup.outer.join("cgroup.events"), "populated 1\nfrozen 1\n").unwrap();
        freeze.join().unwrap().unwrap();
    });
    assert_eq!(wanted(), "1");
    cgroup.thaw().unwrap();
    assert_eq!(wanted(), "0");
}

#[test]
fn processes_that_do_not_stop_in_time_go_on() {
    let folder = tempfile::tempdir().unwrap();
    let cgroup = freezable(folder.path(), "populated 1\nfrozen 0\n");
    let error = cgroup.freeze(Duration::from_millis(5)).unwrap_err();
    assert!(matches!(error, AgentError::TimedOut { .. }) && error.to_string().contains("stop of all"), "{error}");
    assert_eq!(std::fs::read_to_string(cgroup.outer.join("cgroup.freeze")).unwrap(), "0");
}
