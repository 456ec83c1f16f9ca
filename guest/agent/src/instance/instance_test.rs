use std::path::Path;
use std::time::Duration;

use bellows_protocol::user::User;
use bellows_protocol::values::Node;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

use super::request::below_partition;
use super::table::Slot;
use super::*;
use crate::base_memory::BaseMemory;
use crate::cgroup::Hierarchy;
use crate::container::Launcher;
use crate::container::plan::ProcessSpec;
use crate::error::AgentError;
use crate::image::Images;
use crate::mounts::mount_at;
use crate::network::Network;
use crate::partition::MemoryInfo;
use crate::pci::Sysfs;
use crate::reaper::Reaper;
use crate::streams::StdioSpec;
use crate::uevent::Uevents;

fn request() -> Request {
    Request {
        id: "f-1".parse().unwrap(),
        image: "demo".parse().unwrap(),
        role: Role::Plain,
        process: ProcessSpec {
            arguments: vec!["true".into()],
            environment: Vec::new(),
            working_directory: "/".into(),
            user: User::default(),
            stdio: StdioSpec::Pipes { stdin: false },
        },
        node: Node::try_from(0).unwrap(),
        memory_max: None,
        base_limit: None,
        pids_max: None,
        network: InstanceNetwork::Unconnected,
        volumes: Vec::new(),
        scratch: None,
    }
}

/// An image, and instances whose start fails, because `folder` has no cgroups.
fn fixture(folder: &Path) -> (Arc<Images>, Instances) {
    let images = Arc::<Images>::default();
    images.mount(&Sysfs::default(), &Uevents::default(), &request().image, &[]).unwrap();
    let reaper = Arc::<Reaper>::default();
    let launcher = Launcher::new("/no/such/agent", Arc::clone(&reaper));
    let hierarchy = Hierarchy::new(folder.join("cgroup"));
    let base = Arc::new(BaseMemory::new(1 << 30));
    let network = Arc::new(Network::of_this_process().unwrap());
    let (images_too, memory) = (Arc::clone(&images), MemoryInfo::default());
    let mut instances = Instances::new(images_too, hierarchy, launcher, network, memory, base, reaper);
    instances.folder = folder.join("i");
    (images, instances)
}

/// Runs a test that mounts, which needs root, in a namespace of its own.
fn in_mount_namespace(test: fn()) {
    let thread = std::thread::spawn(move || {
        let none: Option<&str> = None;
        unshare(CloneFlags::CLONE_NEWNS).unwrap();
        mount(none, "/", none, MsFlags::MS_PRIVATE | MsFlags::MS_REC, none).unwrap();
        test();
    });
    thread.join().unwrap();
}

#[test]
fn remains_of_a_failed_start_can_be_removed() {
    in_mount_namespace(|| {
        let folder = tempfile::tempdir().unwrap();
        let (images, instances) = fixture(folder.path());
        let Request { id, image, .. } = request();
        // A mount in use cannot be taken apart.
        let scratch = folder.path().join("i/f-1/s");
        mount_at(Some("scratch"), &scratch, "tmpfs", MsFlags::empty(), "").unwrap();
        let used = std::fs::File::create(scratch.join("file")).unwrap();

        let error = instances.start(&request(), None).unwrap_err();
        assert!(error.to_string().contains("cgroup"), "{error}");
        assert!(scratch.join("file").exists(), "files on a mounted file system are not removed");
        assert!(matches!(instances.start(&request(), None), Err(AgentError::Exists { .. })));
        assert!(matches!(instances.get(&id), Err(AgentError::Unknown { .. })));
        let error = instances.remove(&id).unwrap_err();
        assert!(error.to_string().contains("unmount"), "{error}");
        assert!(matches!(images.unmount(&image), Err(AgentError::InUse { .. })));

        drop(used);
        instances.remove_all();
        assert!(!folder.path().join("i/f-1").exists());
        images.unmount(&image).unwrap();
        assert_eq!(instances.remove(&id).unwrap_err().code(), ttrpc::Code::NOT_FOUND);
    });
}

/// An instance whose last process does not end, by its cgroup.
#[test]
fn remains_with_processes_stay_until_these_have_ended() {
    let folder = tempfile::tempdir().unwrap();
    let (images, mut instances) = fixture(folder.path());
    instances.kill_limit = Duration::from_millis(5);
    let Request { id, image, .. } = request();
    let cgroup = folder.path().join("cgroup/instances/f-1");
    let own = folder.path().join("i/f-1");
    for path in [&cgroup, &own] {
        std::fs::create_dir_all(path).unwrap();
    }
    let populated = |count| std::fs::write(cgroup.join("cgroup.events"), format!("populated {count}\n")).unwrap();
    std::fs::write(cgroup.join("cgroup.kill"), "").unwrap();
    populated(1);
    images.begin_use(&image).unwrap();
    let parts = Parts {
        id: id.clone(),
        image: image.clone(),
        volumes: Vec::new(),
        limits: instances.limits(&request(), 1 << 20).unwrap(),
        cgroup: Some(instances.hierarchy.cgroup(&id)),
        rootfs: RootFs::below(&own),
        scratch: None,
        shares_network: false,
        own_network: None,
        folder: own.clone(),
        claim: instances.base.claim(None, false).unwrap(),
    };
    instances.finish(&id, Some(Slot::Remains(Box::new(parts))));

    assert!(matches!(instances.remove(&id), Err(AgentError::TimedOut { .. })));
    assert!(own.exists() && matches!(images.unmount(&image), Err(AgentError::InUse { .. })));
    populated(0);
    // A folder of files, unlike a cgroup, must be removed.
    assert!(instances.remove(&id).unwrap_err().to_string().contains("remove"));
    std::fs::remove_dir_all(&cgroup).unwrap();
    instances.remove(&id).unwrap();
    assert!(!own.exists());
    images.unmount(&image).unwrap();
}

#[test]
fn a_failed_start_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let (images, instances) = fixture(folder.path());
    for _ in 0..2 {
        let error = instances.start(&request(), None).unwrap_err();
        assert!(error.to_string().contains("cgroup"), "{error}");
        assert!(!folder.path().join("i/f-1").exists());
    }
    images.unmount(&request().image).unwrap();
}

#[test]
fn the_limit_is_met_before_the_partition_is_full() {
    const GIB: u64 = 1 << 30;
    assert_eq!(below_partition(GIB, None), GIB - (16 << 20));
    assert_eq!(below_partition(GIB, Some(GIB)), GIB - (16 << 20));
    assert_eq!(below_partition(GIB, Some(1 << 20)), 1 << 20);
    assert_eq!(below_partition(128 << 20, None), 120 << 20);
    assert_eq!(below_partition(1, None), 1);
}
