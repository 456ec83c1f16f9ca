//! Volumes, and where an image's links may lead them.

use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::symlink;
use std::path::PathBuf;

use bellows_agent::container::plan::ProcessSpec;
use bellows_agent::container::{Mounted, Network, Process, Running, Site};
use bellows_agent::error::{AgentError, Result};
use bellows_agent::placement::Placement;
use bellows_agent::tmpfs::Capacities;
use bellows_protocol::values::VolumePath;

use crate::{Fixture, credentials, finish, shell};

impl Fixture {
    pub fn launch_with(
        &self,
        id: &str,
        process: &ProcessSpec,
        placement: Placement,
        running: Running<'_>,
        volumes: &[(PathBuf, VolumePath)],
    ) -> Result<(Process, OwnedFd)> {
        let cgroup = Self::cgroup(id);
        fs::create_dir_all(&cgroup).unwrap();
        let site = Site {
            hostname: id,
            root: &self.folder.path().join("root"),
            cgroup: &cgroup,
            placement,
            capacities: Capacities::within(placement, 64 << 20, 64 << 20),
            network: Network::Unconnected,
            volumes: volumes
                .iter()
                .map(|(source, place)| Mounted { source, place, writable: place.as_str() == "/scratch" })
                .collect(),
        };
        self.launcher.launch(&site, process, &credentials(process), running)
    }
}

pub fn is_mounted_read_only_within_the_image(fixture: &Fixture) {
    let (root, volumes) = (fixture.folder.path().join("root"), fixture.folder.path().join("volumes"));
    for name in ["a", "b"] {
        fs::create_dir_all(volumes.join(name)).unwrap();
        fs::write(volumes.join(name).join("name"), name).unwrap();
    }
    // Outside of the image, and in the same place of the machine.
    let outside = fixture.folder.path().join("outside");
    fs::create_dir_all(&outside).unwrap();
    fs::create_dir_all(root.join("srv/files")).unwrap();
    for (target, link) in
        [("/srv", "var"), ("../../../../srv", "up"), ("/", "all"), ("/proc", "process"), ("/nowhere", "lost")]
    {
        symlink(target, root.join(link)).unwrap();
    }
    symlink(&outside, root.join("out")).unwrap();

    let start = |id: &str, places: &[(&str, &str)], script: &str| {
        let volumes: Vec<(PathBuf, VolumePath)> =
            places.iter().map(|(name, place)| (volumes.join(name), place.parse().unwrap())).collect();
        let started = fixture.launch_with(id, &shell(script), Placement::Base, Running::Command, &volumes);
        started.map(|(process, _)| finish(&process))
    };
    let script = "cat /new/place/name /srv/files/name /srv/up/name; echo x >/new/place/name; ls /bin/sh";
    let places = [("a", "/new/place"), ("b", "/var/files"), ("a", "/up/up")];
    let (code, stdout, stderr) = start("volumes", &places, script).unwrap();
    assert_eq!((code, stdout.as_str()), (0, "aba/bin/sh\n"), "{stderr}");
    assert!(stderr.contains("Read-only file system"), "{stderr}");
    assert_eq!(fs::read_to_string(volumes.join("a/name")).unwrap(), "a");
    // One that it can write to, with another below.
    let script = "echo new >/scratch/new; echo x >/scratch/b/name; cat /scratch/name /scratch/b/name";
    let (_, stdout, stderr) = start("writable", &[("a", "/scratch"), ("b", "/scratch/b")], script).unwrap();
    assert_eq!(
        (stdout.as_str(), fs::read_to_string(volumes.join("a/new")).unwrap().as_str()),
        ("ab", "new\n"),
        "{stderr}"
    );

    // No link leads out of the image, over all of it, or over what the kernel says.
    for (number, place) in
        ["/all", "/process", "/process/tty", "/all/sys/kernel", "/lost", "/out/x", "/bin/sh"].iter().enumerate()
    {
        let refused = start(&format!("volume-{number}"), &[("a", place)], "").unwrap_err();
        let AgentError::Container(error) = refused else { panic!("{place}: {refused}") };
        assert!(error.contains(&format!("volume at {place}")), "{error}");
    }
    assert!(fs::read_dir(&outside).unwrap().next().is_none(), "nothing is made outside of the image");
}
