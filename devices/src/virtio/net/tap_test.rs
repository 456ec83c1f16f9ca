use std::os::unix::net::UnixDatagram;

use super::*;

#[test]
fn what_is_no_interface_is_refused_with_its_name() {
    for name in ["", "a/b", "a b", "tap%d", "a:1", "..", "abcdefghijklmnop", "a\u{0}b"] {
        let error = Tap::open(name).unwrap_err();
        assert!(matches!(&error, TapError::Name(found) if found == name), "{error}");
        assert!(error.to_string().contains("1 to 15 bytes"), "{error}");
    }
    let error = Tap::open("bellows-nothing").unwrap_err();
    assert_eq!(error.to_string(), "no interface is called `bellows-nothing`: expected a TAP that exists");
}

#[test]
fn a_descriptor_that_is_no_tap_is_refused_with_its_number() {
    let (socket, _other) = UnixDatagram::pair().unwrap();
    let file = File::open("/dev/null").unwrap();
    for fd in [socket.as_raw_fd(), file.as_raw_fd()] {
        let error = Tap::from_descriptor(fd).unwrap_err();
        assert!(matches!(error, TapError::NotTap { fd: found, .. } if found == fd), "{error}");
        assert!(error.to_string().contains(&format!("descriptor {fd} is not a TAP")), "{error}");
    }
    assert!(matches!(Tap::from_descriptor(-1), Err(TapError::Descriptor { fd: -1, .. })));
}

/// Needs the right to make interfaces: without it, or without the device, there is nothing to test here.
#[test]
fn a_tap_is_taken_only_as_it_has_to_be() {
    let Ok(file) = OpenOptions::new().read(true).write(true).open(DEVICE) else { return };
    let fd = file.as_raw_fd();
    assert!(matches!(Tap::from_descriptor(fd), Err(TapError::NotTap { .. })), "it is attached to nothing");
    let mut wrong = request("bellows-t0", (libc::IFF_TAP | libc::IFF_NO_PI) as i16);
    if attach(&file, &mut wrong).is_err() {
        return;
    }
    let error = Tap::from_descriptor(fd).unwrap_err();
    assert!(matches!(&error, TapError::Flags { name, .. } if name == "bellows-t0"), "{error}");
    assert!(matches!(Tap::open("bellows-t0"), Err(TapError::Attach { .. })), "it is in use");

    let file = OpenOptions::new().read(true).write(true).open(DEVICE).unwrap();
    let mut right = request("bellows-t1", NEEDED);
    attach(&file, &mut right).unwrap();
    let tap = Tap::from_descriptor(file.as_raw_fd()).unwrap();
    assert_eq!(tap.name(), "bellows-t1");
    tap.set_offloads(Offloads { checksum: true, tcp4: true, tcp6: true }).unwrap();
    let mut room = crate::virtio::net::pieces::Room::empty();
    let mut bytes = [0; 64];
    assert!(room.push(&mut bytes));
    assert_eq!(tap.read(&mut VirtioNetHdr::default(), &mut room).unwrap_err().kind(), io::ErrorKind::WouldBlock);
}

#[test]
fn a_request_holds_every_name_there_can_be() {
    for name in ["a", "abcdefghijklmno"] {
        assert!(is_name(name));
        assert_eq!(name_of(&request(name, 0)), name);
    }
}

/// A descriptor of a queue of the TAP `name`, which may have several; `None` without the right to make one.
fn queue(name: &str) -> Option<File> {
    let file = OpenOptions::new().read(true).write(true).open(DEVICE).ok()?;
    attach(&file, &mut request(name, NEEDED | SEVERAL)).ok()?;
    Some(file)
}

#[test]
fn queues_of_one_tap_are_taken_together() {
    let Some(first) = queue("bellows-t2") else { return };
    let files = [first, queue("bellows-t2").unwrap(), queue("bellows-t2").unwrap(), queue("bellows-t3").unwrap()];
    let [a, b, c, other] = files.each_ref().map(|file| file.as_raw_fd());
    let queues = Tap::from_descriptors(&[a, b, c]).unwrap();
    assert!(queues.iter().all(|queue| queue.name() == "bellows-t2"));
    let attached = || queues.iter().map(Tap::is_attached).collect::<Vec<_>>();
    assert_eq!(attached(), [true, false, false]);
    for (index, used, after) in [
        (1, true, [true, true, false]),
        (1, true, [true, true, false]),
        (2, true, [true, true, true]),
        (1, false, [true, false, true]),
        (1, false, [true, false, true]),
        (1, true, [true, true, true]),
    ] {
        queues[index].set_used(used).unwrap();
        assert_eq!(attached(), after);
    }
    queues[0].set_offloads(Offloads { checksum: true, tcp4: true, tcp6: true }).unwrap();

    let error = Tap::from_descriptors(&[a, other]).unwrap_err();
    assert!(matches!(&error, TapError::Another { fd, first, .. } if (*fd, *first) == (other, a)), "{error}");
    for twice in [vec![a, a], vec![a, b, a], vec![a, b, b]] {
        let error = Tap::from_descriptors(&twice).unwrap_err();
        assert!(matches!(&error, TapError::Twice(fds) if *fds == twice), "{error}");
        assert_eq!(attached(), [true; 3], "it is as it was");
    }
    let single = OpenOptions::new().read(true).write(true).open(DEVICE).unwrap();
    attach(&single, &mut request("bellows-t4", NEEDED)).unwrap();
    let error = Tap::from_descriptors(&[a, single.as_raw_fd()]).unwrap_err();
    assert!(matches!(&error, TapError::Flags { name, .. } if name == "bellows-t4"), "{error}");
    // One queue of several is one.
    Tap::from_descriptor(other).unwrap();
}

#[test]
fn a_tap_by_name_has_the_queues_that_it_was_made_for() {
    let Some(first) = queue("bellows-t5") else { return };
    let maker = Tap { file: first, name: "bellows-t5".into(), attached: AtomicBool::new(true) };
    // It outlives its queues.
    maker.set(libc::TUNSETPERSIST, 1).unwrap();
    drop(maker);
    let queues = Tap::open_queues("bellows-t5", 3).unwrap();
    assert_eq!(queues.iter().map(Tap::is_attached).collect::<Vec<_>>(), [true, false, false]);
    let error = Tap::open("bellows-t5").unwrap_err().to_string();
    assert!(error.contains("`bellows-t5`: expected a TAP with one queue"), "{error}");
    queues[0].set(libc::TUNSETPERSIST, 0).unwrap();

    let single = OpenOptions::new().read(true).write(true).open(DEVICE).unwrap();
    attach(&single, &mut request("bellows-t6", NEEDED)).unwrap();
    let error = Tap::open_queues("bellows-t6", 2).unwrap_err().to_string();
    assert!(error.contains("several queues (multi_queue)"), "{error}");
}
