//! Copies between an instance and the monitor, by a process in the container.

use std::fs;
use std::io::Write;
use std::net::Shutdown;

use bellows_agent::container::copy::{Copying, Direction};
use bellows_agent::container::{Joining, Process};
use bellows_agent::placement::Placement;
use bellows_archive::{Entries, EntryError, Owner, pack};
use bellows_protocol::stream::StreamName;

use crate::{Fixture, LIMIT, connect, finish, shell, text};

fn copy(fixture: &Fixture, id: &str, init: &Process, direction: Direction, path: &str) -> Process {
    let joining =
        Joining { hostname: id, cgroup: &Fixture::cgroup(id), placement: Placement::Base, init, shares_network: false };
    fixture.launcher.copy(&joining, &Copying { direction, path: path.into() }).unwrap()
}

pub fn files_go_both_ways(fixture: &Fixture) {
    let id = "copies";
    let script = "busybox mkdir -p /srv/tree && cd /srv && echo content >tree/file && busybox ln -s / tree/all && \
                  echo ready && sleep 300";
    let init = fixture.start(id, &shell(script));
    let stdout = connect(&init, StreamName::Stdout);
    crate::text_until(&stdout, "ready\n");
    let run = |direction, path: &str| finish(&copy(fixture, id, &init, direction, path));
    for (path, found) in
        [("/srv/tree", "folder"), ("/srv/tree/file", "file"), ("/srv/none", "nothing"), ("/", "folder")]
    {
        assert_eq!(run(Direction::Look, path), (0, format!("{found}\n"), String::new()), "{path}");
    }

    // Out: what a process of the container sees. `text` must be UTF-8, which this archive is.
    let (code, archive, errors) = run(Direction::Out, "/srv/tree");
    assert_eq!((code, errors.as_str()), (0, ""));
    let mut names = Vec::new();
    let each = |entry: &bellows_archive::Entry, content: &mut dyn std::io::Read| {
        let mut text = String::new();
        content.read_to_string(&mut text)?;
        names.push((entry.name.to_str().unwrap().to_owned(), text));
        Ok::<_, EntryError>(())
    };
    Entries::new(archive.as_bytes()).each(each).unwrap();
    let expected = [("tree", ""), ("tree/all", ""), ("tree/file", "content\n")];
    assert_eq!(names, expected.map(|(name, text)| (name.to_owned(), text.to_owned())));
    let (code, _, errors) = run(Direction::Out, "/srv/none");
    assert!(code == 1 && errors.contains("/srv/none"), "{errors}");

    // In: a link of the container leads within it.
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("new"), "from outside").unwrap();
    let send = |path: &str, whole: bool| {
        let mut stream = Vec::new();
        pack(folder.path(), "new-tree", Owner::Root, &mut stream).unwrap();
        let process = copy(fixture, id, &init, Direction::In, path);
        let mut stdin = connect(&process, StreamName::Stdin);
        let length = if whole { stream.len() } else { 1536 };
        // It may refuse before it has read all.
        let _ = stdin.write_all(&stream[..length]).and_then(|()| stdin.shutdown(Shutdown::Write));
        let errors = text(connect(&process, StreamName::Stderr));
        (process.exit.wait_for(LIMIT).unwrap(), errors)
    };
    assert_eq!(send("/srv/tree/all/srv", true), (0, String::new()));
    let read = fixture.join(id, &init, &shell("cat /srv/new-tree/new; stat -c ' %u %a' /srv/new-tree/new")).unwrap();
    assert_eq!(finish(&read), (0, "from outside 0 644\n".into(), String::new()));
    let (code, errors) = send("/srv/none", true);
    assert!(code == 1 && errors.contains("/srv/none"), "{errors}");
    let (code, errors) = send("/srv/tree", false);
    assert!(code == 1 && errors.contains("ends without"), "{errors}");

    // With the rights of the container's root, in its cgroup, and with nothing of the agent's open.
    let process = copy(fixture, id, &init, Direction::In, "/srv");
    let status = fs::read_to_string(format!("/proc/{}/status", process.pid)).unwrap();
    assert!(status.contains("CapBnd:\t00000000a00425fb") && status.contains("Seccomp:\t2"), "{status}");
    let cgroup = fs::read_to_string(format!("/proc/{}/cgroup", process.pid)).unwrap();
    assert!(cgroup.trim().ends_with(&format!("/{id}")), "{cgroup}");
    let open = || fs::read_dir(format!("/proc/{}/fd", process.pid)).unwrap().count();
    let begun = std::time::Instant::now();
    // The answer comes just before they are closed.
    while open() != 3 {
        assert!(begun.elapsed() < LIMIT, "{}", open());
        std::thread::yield_now();
    }
    drop(connect(&process, StreamName::Stdin));
    process.exit.wait_for(LIMIT).unwrap();
    nix::sys::signal::kill(init.pid, nix::sys::signal::Signal::SIGKILL).unwrap();
}
