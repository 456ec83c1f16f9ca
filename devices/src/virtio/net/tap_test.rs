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
