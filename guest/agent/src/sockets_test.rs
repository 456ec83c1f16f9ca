use std::fs::File;
use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, TcpListener, TcpStream};

use nix::sched::unshare;

use super::*;
use crate::settings::bring_up_loopback;
use crate::sys;

/// Makes a socket that no process holds and that waits, with data sent, for an answer that never arrives: its hop limit is
/// too small.
fn make_orphan(address: IpAddr) {
    let listener = TcpListener::bind((address, 0)).unwrap();
    let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (server, _) = listener.accept().unwrap();
    match address {
        IpAddr::V4(_) => sys::set_option(&client, libc::IPPROTO_IP, libc::IP_MINTTL, 255).unwrap(),
        IpAddr::V6(_) => sys::set_option(&client, libc::IPPROTO_IPV6, IPV6_MINHOPCOUNT, 255).unwrap(),
    }
    sys::set_option(&client, libc::IPPROTO_TCP, libc::TCP_USER_TIMEOUT, i32::MAX).unwrap();
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
            assert_eq!(diagnosis.sockets(family, None).unwrap().len(), 2, "{address}");
            let sockets = Sockets::of(network());
            sockets.destroy().unwrap();
            assert_eq!(diagnosis.sockets(family, None).unwrap().len(), 0, "{address}");
            assert!(sockets.network.lock().is_none(), "the namespace is dropped");
            sockets.destroy().unwrap();
        }
    };
    thread::spawn(test).join().unwrap();
}

/// Of a namespace that others use, too.
#[test]
fn another_cgroups_sockets_stay() {
    let test = || {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        bring_up_loopback().unwrap();
        let network = || OwnedFd::from(File::open("/proc/thread-self/ns/net").unwrap());
        make_orphan(Ipv4Addr::LOCALHOST.into());
        let diagnosis = Diagnosis::of(network()).unwrap().expect("there are sockets");
        let count = |owner| diagnosis.sockets(AddressFamily::Inet, owner).unwrap().len();
        let all = count(None);
        let folder = tempfile::tempdir().unwrap();
        let other = Sockets::of_cgroup(network(), folder.path()).unwrap();
        other.destroy().unwrap();
        assert_eq!((count(None), count(other.owner)), (all, 0));
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
    let message = request(SOCK_DESTROY, libc::NLM_F_ACK, AddressFamily::Inet6, &id);
    assert_eq!((message.len(), &message[4..6]), (72, &[21, 0][..]));
    assert_eq!((message[16..20].to_vec(), &message[24..]), (vec![10, 6, 0, 0], &id[..]));
}

#[test]
fn the_kernel_says_whose_a_socket_is() {
    let [other, cgroup] = [netlink::attribute(8, &[0]), netlink::attribute(CGROUP_ID, &77_u64.to_ne_bytes())];
    assert_eq!(cgroup_of(&[&[0; MESSAGE][..], &other, &cgroup].concat()), Some(77));
    assert_eq!(cgroup_of(&[&[0; MESSAGE][..], &other].concat()), None);
    assert_eq!(cgroup_of(&[0; MESSAGE - 1]), None);
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
