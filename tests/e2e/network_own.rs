//! Instances with networks of their own, at a TAP of the host.

use std::io::Write as _;
use std::net::UdpSocket;
use std::thread;

use bellows_vmm::{InstanceNetwork, InstanceSpec, NetConfig, OwnNetwork, RateLimits};

use crate::fixture::{Guest, PATIENCE};
use crate::network::{FETCH, HostTap, SERVER, get, guest_network, head, python, serve, shell};
use crate::network_load::FLOOD;

/// A program in Python in an instance whose addresses end in `number`, and that may send to what is `allowed`.
fn own(id: &str, number: u8, program: &str, arguments: &[&str], allowed: &[&str]) -> InstanceSpec {
    let addresses = [format!("172.16.10.{number}"), format!("fd00:10::{number}")];
    let addresses = addresses.iter().map(|address| address.parse().unwrap()).collect();
    let mac = format!("02:00:00:00:00:{number}").parse().ok();
    let egress = allowed.iter().map(|rule| rule.parse().unwrap()).collect();
    let own = OwnNetwork { mac, egress, ..OwnNetwork::new(addresses) };
    python(id, program, arguments).on_network(InstanceNetwork::Own(own))
}

/// Two instances with networks of their own serve the same port; the host and an instance reach each by its address, over IPv4 and IPv6.
#[test]
fn instances_have_networks_of_their_own() {
    let tap = HostTap::at("blg", &["172.16.10.1/24", "fd00:10::1/64"]);
    let vm = guest_network(&["172.16.10.2/24", "fd00:10::2/64"], "172.16.10.1");
    let guest = Guest::ours().network(NetConfig { guest: Some(vm), ..tap.config("eth0") }).boot();
    let servers =
        [("first", 11), ("second", 12)].map(|(id, number)| guest.start_spec(&own(id, number, SERVER, &[], &[])));
    servers.iter().for_each(|server| server.wait_for("serving"));
    for number in [11, 12] {
        let body = get(&format!("172.16.10.{number}"), "/four");
        assert_eq!(body, "/four from ::ffff:172.16.10.1");
        assert_eq!(get(&format!("fd00:10::{number}"), "/six"), "/six from fd00:10::1");
    }
    let taken = guest.refused(&own("third", 12, SERVER, &[], &[]));
    assert!(taken.contains("the address 172.16.10.12 is in use by another instance"), "{taken}");

    let (port, served) = serve(1, |mut stream| {
        let peer = stream.peer_addr().unwrap().ip().to_canonical().to_string();
        head(&mut stream);
        write!(stream, "HTTP/1.0 200 OK\r\nContent-Length: {}\r\n\r\n{peer}", peer.len()).unwrap();
    });
    let urls = ["http://172.16.10.11:8080/a", "http://[fd00:10::12]:8080/b", &format!("http://172.16.10.1:{port}/")];
    let allowed = ["172.16.10.0/24", "[fd00:10::12]:8080/tcp"];
    let fetched = guest.ends_well(guest.start_spec(&own("client", 13, FETCH, &urls, &allowed)));
    assert_eq!(fetched, "/a from ::ffff:172.16.10.13\n/b from fd00:10::13\n172.16.10.13\n");
    served.join().unwrap();
    let files = InstanceSpec {
        process: shell("x", "cat /sys/class/net/eth0/address /etc/hosts /etc/resolv.conf").process,
        ..own("files", 14, "", &[], &[])
    };
    let files = guest.ends_well(guest.start_spec(&files));
    assert!(files.starts_with("02:00:00:00:00:14\n") && files.contains("\n172.16.10.14\tfiles\n"), "{files}");
    assert!(files.contains("nameserver 172.16.10.1\n"), "{files}");

    for server in servers {
        server.signal(9);
        server.finish();
    }
    // The addresses are free again.
    let again = guest.start_spec(&own("again", 11, SERVER, &[], &[]));
    again.wait_for("serving");
    assert_eq!(get("172.16.10.11", "/again"), "/again from ::ffff:172.16.10.1");
    again.signal(9);
    again.finish();
    guest.shutdown();
}

/// Connects to each `address/port`, and sends a datagram to each `address/port/udp`; prints what comes of it.
const TRY: &str = "
import errno, socket, sys
for text in sys.argv[1:]:
    address, port, *kind = text.split('/')
    family = socket.AF_INET6 if ':' in address else socket.AF_INET
    out = socket.socket(family, socket.SOCK_DGRAM if kind else socket.SOCK_STREAM)
    out.settimeout(250)
    try:
        if kind:
            out.sendto(b'hello', (address, int(port)))
        else:
            out.connect((address, int(port)))
        print('done', flush=True)
    except OSError as error:
        print(errno.errorcode.get(error.errno, error), flush=True)
";

/// Answers the first datagram, from whomever it comes; then tries to send one to somebody else.
const ANSWER: &str = "
import socket, sys
server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
server.bind(('', 5353))
print('serving', flush=True)
data, client = server.recvfrom(100)
server.sendto(data.upper(), client)
try:
    server.sendto(b'gossip', (sys.argv[1], int(sys.argv[2])))
    print('sent')
except PermissionError:
    print('refused')
";

/// An instance sends to what it may and to nothing else, whichever way it tries; it answers all the same.
#[test]
fn an_instance_sends_only_where_it_may() {
    let tap = HostTap::at("blk", &["172.16.10.1/24", "172.16.10.3/24", "fd00:10::1/64"]);
    let vm = guest_network(&["172.16.10.2/24", "fd00:10::2/64"], "172.16.10.1");
    let guest = Guest::ours().network(NetConfig { guest: Some(vm), ..tap.config("eth0") }).boot();
    let (port, served) = serve(2, |_| ());
    let receiver = UdpSocket::bind("172.16.10.1:0").unwrap();
    receiver.set_read_timeout(Some(PATIENCE)).unwrap();
    let udp = receiver.local_addr().unwrap().port();

    let tried = [
        format!("172.16.10.1/{port}"),
        format!("fd00:10::1/{port}"),
        format!("::ffff:172.16.10.1/{port}"),
        format!("172.16.10.3/{port}"),
        format!("172.16.10.1/{}", port ^ 1),
        format!("172.16.10.1/{udp}/udp"),
        format!("172.16.10.3/{udp}/udp"),
        "172.16.10.2/53/udp".to_owned(),
    ];
    let tried = tried.each_ref().map(String::as_str);
    let refused = guest.ends_well(guest.start_spec(&own("nothing", 21, TRY, &tried, &[])));
    assert_eq!(refused, "EPERM\n".repeat(tried.len()));
    let allowed = [format!("172.16.10.1:{port}/tcp"), format!("172.16.10.1:{udp}/udp")];
    let some = own("some", 22, TRY, &tried, &allowed.each_ref().map(String::as_str));
    let some = guest.ends_well(guest.start_spec(&some));
    assert_eq!(some, "done\nEPERM\ndone\nEPERM\nEPERM\ndone\nEPERM\nEPERM\n");
    served.join().unwrap();
    let mut buffer = [0; 16];
    assert_eq!(receiver.recv(&mut buffer).unwrap(), 5);

    // Whoever turns to it is answered, and nobody else.
    let port = udp.to_string();
    let answering = guest.start_spec(&own("answering", 23, ANSWER, &["172.16.10.3", &port], &[]));
    answering.wait_for("serving");
    receiver.send_to(b"hello", "172.16.10.23:5353").unwrap();
    assert_eq!(receiver.recv(&mut buffer).unwrap(), 5);
    assert_eq!(buffer[..5], *b"HELLO");
    assert_eq!(guest.ends_well(answering), "serving\nrefused\n");
    guest.shutdown();
}

/// An instance that floods sends no more than it may, and its neighbour is heard.
#[test]
fn an_instance_has_limits_of_its_own() {
    let tap = HostTap::at("bln", &["172.16.10.1/24", "fd00:10::1/64"]);
    let vm = guest_network(&["172.16.10.2/24", "fd00:10::2/64"], "172.16.10.1");
    let guest = Guest::ours().vcpus(2).network(NetConfig { guest: Some(vm), ..tap.config("eth0") }).boot();
    let neighbour = guest.start_spec(&own("neighbour", 31, SERVER, &[], &[]));
    neighbour.wait_for("serving");
    let limits: RateLimits =
        serde_json::from_str(r#"{"transmit": {"operations": {"per_second": 200, "burst": 20}}}"#).unwrap();
    let mut spec = own("flood", 32, FLOOD, &["172.16.10.1"], &["172.16.10.1:9/udp"]);
    if let InstanceNetwork::Own(own) = &mut spec.network {
        own.limits = limits;
    }
    let sent = || guest.vm.network_statistics("eth0").unwrap().transmitted.packets;
    let flood = guest.start_spec(&spec);
    flood.wait_for("flooding");
    let (begun, before) = (std::time::Instant::now(), sent());
    let mut others = 0;
    while sent() - before < 600 {
        assert!(begun.elapsed() < PATIENCE, "{} packets", sent() - before);
        assert_eq!(get("172.16.10.31", "/heard"), "/heard from ::ffff:172.16.10.1");
        // What an answer takes, with those to its neighbours' questions.
        others += 40;
        thread::yield_now();
    }
    let most = 21 + begun.elapsed().as_millis() as u64 / 5 + others;
    let after = sent() - before;
    assert!(after <= most, "{after} packets in {:?}: at most {most}", begun.elapsed());
    for job in [flood, neighbour] {
        job.signal(9);
        job.finish();
    }
    guest.shutdown();
}
