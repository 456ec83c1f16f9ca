use std::fs::File;
use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, TcpListener, TcpStream};

use nix::sched::unshare;

use super::*;
use crate::settings::bring_up_loopback;

fn set_option(socket: &TcpStream, level: i32, name: i32, value: i32) {
    let length = size_of_val(&value) as libc::socklen_t;
    // SAFETY: the kernel reads `length` bytes at the address of `value`, which lives, and keeps no reference.
    let result = unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, (&raw const value).cast(), length) };
    assert_eq!(result, 0, "{}", io::Error::last_os_error());
}

/// Makes a socket that no process holds and that waits, with data sent, for an answer that never arrives: its hop limit is
/// too small.
fn make_orphan(address: IpAddr) {
    let listener = TcpListener::bind((address, 0)).unwrap();
    let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (server, _) = listener.accept().unwrap();
    match address {
        IpAddr::V4(_) => set_option(&client, libc::IPPROTO_IP, libc::IP_MINTTL, 255),
        IpAddr::V6(_) => set_option(&client, libc::IPPROTO_IPV6, IPV6_MINHOPCOUNT, 255),
    }
    set_option(&client, libc::IPPROTO_TCP, libc::TCP_USER_TIMEOUT, i32::MAX);
    client.write_all(b"data").unwrap();
    drop((client, server, listener));
}

/// linux/in6.h
const IPV6_MINHOPCOUNT: i32 = 73;

/// Needs root, and a kernel that can destroy sockets.
#[test]
fn orphans_are_destroyed() {
    let test = || {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        bring_up_loopback().unwrap();
        let network = || OwnedFd::from(File::open("/proc/thread-self/ns/net").unwrap());
        assert!(Diagnosis::of(network()).unwrap().is_none(), "there is no socket");
        for (family, address) in [
            (AddressFamily::Inet, IpAddr::from(Ipv4Addr::LOCALHOST)),
            (AddressFamily::Inet6, IpAddr::from(Ipv6Addr::LOCALHOST)),
        ] {
            make_orphan(address);
            make_orphan(address);
            // Long enough for sockets that would end by themselves.
            thread::sleep(Duration::from_millis(100));
            let diagnosis = Diagnosis::of(network()).unwrap().expect("there are sockets");
            assert_eq!(diagnosis.sockets(family).unwrap().len(), 2, "{address}");
            let sockets = Sockets::of(network());
            sockets.destroy().unwrap();
            assert_eq!(diagnosis.sockets(family).unwrap().len(), 0, "{address}");
            assert!(sockets.0.lock().is_none(), "the namespace is dropped");
            sockets.destroy().unwrap();
        }
    };
    thread::spawn(test).join().unwrap();
}

#[test]
fn a_namespace_is_kept_for_another_try() {
    let sockets = Sockets::of(File::open("/dev/null").unwrap().into());
    for _ in 0..2 {
        sockets.destroy().unwrap_err();
    }
}

#[test]
fn a_request_is_laid_out_as_the_kernel_reads_it() {
    let id = std::array::from_fn(|index| index as u8);
    let message = request(SOCK_DESTROY, libc::NLM_F_REQUEST | libc::NLM_F_ACK, AddressFamily::Inet6, &id);
    let (kind, body, rest) = first_message(&message).unwrap();
    assert_eq!((message.len(), kind, rest), (72, 21, &[][..]));
    assert_eq!((body[..4].to_vec(), &body[8..]), (vec![10, 6, 0, 0], &id[..]));
}

#[test]
fn malformed_bytes_are_not_a_message() {
    for nonsense in [&[][..], &[16, 0, 0, 0], &[0; 16], &[15; 16], &[255; 64]] {
        assert!(first_message(nonsense).is_none(), "{nonsense:?}");
    }
}

#[test]
fn an_error_says_that_the_kernel_cannot_destroy_sockets() {
    for (code, result) in [(0_i32, None), (-libc::EOPNOTSUPP, Some(libc::EOPNOTSUPP))] {
        assert_eq!(status(&code.to_ne_bytes()).err().and_then(|error| error.raw_os_error()), result);
    }
}

#[test]
fn sockets_are_counted_where_the_kernel_counts_them() {
    let four = "sockets: used 5\nTCP: inuse 0 orphan 2 tw 3 alloc 4 mem 5\nUDP: inuse 7 mem 0\nRAW: inuse 1\n";
    let six = "TCP6: inuse 0\nUDP6: inuse 3\nRAW6: inuse 0\n";
    assert!(!counts_any(four) && !counts_any(six));
    assert!(
        counts_any(&four.replace("TCP: inuse 0", "TCP: inuse 1"))
            && counts_any(&six.replace("TCP6: inuse 0", "TCP6: inuse 10"))
    );
    for unknown in ["", "UDP: inuse 0\n", "TCP: orphan 0\n", "TCP: inuse\n"] {
        assert!(counts_any(unknown), "{unknown:?}");
    }
}
