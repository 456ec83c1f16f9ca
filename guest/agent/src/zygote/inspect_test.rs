use std::process::{Command, Stdio};

use proptest::prelude::*;

use super::*;

fn found(maps: &str) -> Vec<Obstacle> {
    mappings(maps.as_bytes()).unwrap()
}

#[test]
fn private_and_read_only_mappings_can_be_forked() {
    let maps = "55a4e6c00000-55a4e6c2d000 r--p 00000000 fe:00 1234                       /usr/bin/python3.11\n\
                7f10a0000000-7f10a0021000 rw-p 00000000 00:00 0 \n\
                7f10a4a3f000-7f10a4a46000 r--s 00000000 fe:00 99                         /usr/lib/gconv/gconv-modules.cache\n\
                7ffd0d9f4000-7ffd0da15000 rw-p 00000000 00:00 0                          [stack]\n\
                ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0                  [vsyscall]\n";
    assert_eq!(found(maps), []);
}

#[test]
fn what_forks_would_share_is_named() {
    let maps = "7f10a0000000-7f10a0001000 rw-s 00000000 00:01 1033                       /dev/zero (deleted)\n\
                7f10a0001000-7f10a0002000 -w-s 00003000 00:1a 7                          /dev/shm/a b\n\
                7f10a0002000-7f10a0003000 rw-s 00000000 00:01 32769                      /SYSV00000000 (deleted)\n\
                7f10a0003000-7f10a0004000 r--s 00000000 00:01 32770                      /SYSV0000abcd\n\
                7f10a0004000-7f10a0005000 rw-s 00000000 00:10 5                          /[aio] (deleted)\n";
    let shared = |path: &str, offset| Obstacle::SharedMapping { path: path.into(), offset };
    assert_eq!(
        found(maps),
        [
            shared("/dev/zero (deleted)", 0),
            shared("/dev/shm/a b", 0x3000),
            Obstacle::SharedMemory("/SYSV00000000 (deleted)".into()),
            Obstacle::SharedMemory("/SYSV0000abcd".into()),
            Obstacle::AsynchronousIo,
        ]
    );
}

#[test]
fn the_list_is_bounded() {
    let line = format!("0-1 rw-s 00000000 00:01 1 /{}\x1b\n", "x".repeat(4000));
    let found = found(&line.repeat(100));
    assert_eq!(found.len(), MAX_OBSTACLES + 1);
    let text = list(&found);
    assert!(text.ends_with(", and more") && text.len() < 2000 && !text.contains(char::is_control), "{text}");
    // A map without end is read up to a limit.
    assert_eq!(mappings(std::io::repeat(b'x')).unwrap(), [Obstacle::LongMap]);
}

#[test]
fn threads_and_descriptors_are_named() {
    let names = |count: usize| (0..count).map(|number| format!("t{number}")).collect::<Vec<_>>();
    assert_eq!(threads(names(1)), None);
    assert_eq!(threads(names(2)).unwrap().to_string(), "more than one thread (t0, t1)");
    let text = threads(names(MAX_THREADS + 1)).unwrap().to_string();
    assert!(text.contains("t7, ...") && !text.contains("t8"), "{text}");
    for own in [0, 1, 2, 3] {
        assert_eq!(descriptor(own, b"pipe:[1]"), None);
    }
    let text = descriptor(4, b"anon_inode:[eventpoll]").unwrap().to_string();
    assert_eq!(text, "descriptor 4 (anon_inode:[eventpoll])");
}

/// A process of this machine that the test has under control.
fn obstacles_of(command: &mut Command) -> Vec<Obstacle> {
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    // It runs its program, not a copy of this one.
    std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut [0]).unwrap();
    let found = obstacles(Path::new("/proc"), Pid::from_raw(child.id() as i32));
    child.kill().unwrap();
    child.wait().unwrap();
    found.unwrap()
}

#[test]
fn a_process_is_looked_at() {
    let shell = |script: &str| obstacles_of(Command::new("/bin/sh").args(["-c", script]));
    // What the test's own process was started with may be there, too.
    let plain = shell("echo; read line");
    assert!(plain.iter().all(|obstacle| matches!(obstacle, Obstacle::Descriptor { .. })), "{plain:?}");
    let found = shell("exec 7</dev/null 9</; echo; read line");
    let descriptor = |number, target: &str| Obstacle::Descriptor { number, target: target.into() };
    assert!(found.contains(&descriptor(7, "/dev/null")) && found.contains(&descriptor(9, "/")), "{found:?}");
    let python = "import mmap, threading\nkept = mmap.mmap(-1, 4096)\n\
                  threading.Thread(target=threading.Event().wait, daemon=True).start()\nprint(flush=True)\ninput()";
    let text = list(&obstacles_of(Command::new("python3").args(["-c", python])));
    assert!(text.contains("more than one thread (python3, ") && text.contains("/dev/zero (deleted) at 0x0"), "{text}");
}

proptest! {
    #[test]
    fn any_map_is_looked_at(text in "\\PC*", bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        for maps in [text.as_bytes(), &bytes[..]] {
            prop_assert!(mappings(maps).unwrap().len() <= MAX_OBSTACLES + 2);
        }
    }
}
