//! Network interfaces of a guest at a TAP of the host.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::Command;
use std::sync::mpsc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use bellows_block::Digest;
use bellows_vmm::{GuestNetwork, InstanceNetwork, InstanceSpec, NetConfig, Tap};

use crate::fixture::{Guest, Job, PATIENCE, Running, image_id};

/// A TAP of the host, until this is dropped. Needs root, and iproute2's `ip`, which the lab has.
pub struct HostTap(String);

impl HostTap {
    pub fn new(name: &str) -> Self {
        Self::of_mode(name, "tap")
    }

    /// One that may have several queues.
    pub fn with_queues(name: &str) -> Self {
        Self::of_mode(name, "tap multi_queue")
    }

    fn of_mode(name: &str, mode: &str) -> Self {
        let name = format!("{name}{}", std::process::id());
        // Not by the lab's shell, which has an `ip` of its own.
        let output = Command::new("ip").args(format!("tuntap add {name} mode {mode}").split(' ')).output().unwrap();
        assert!(output.status.success(), "{name}, {mode}: {}", String::from_utf8_lossy(&output.stderr));
        // Its IPv6 addresses can be used at once.
        sh(&format!("echo 0 > /proc/sys/net/ipv6/conf/{name}/accept_dad; ip link set {name} up"));
        Self(name)
    }

    /// The same with addresses, which are the host's.
    pub fn at(name: &str, addresses: &[&str]) -> Self {
        let tap = Self::new(name);
        tap.set_addresses(addresses);
        tap
    }

    pub fn set_addresses(&self, addresses: &[&str]) {
        for address in addresses {
            sh(&format!("ip address add {address} dev {}", self.0));
        }
    }

    pub fn config(&self, id: &str) -> NetConfig {
        NetConfig::new(id, Tap::Name(self.0.clone()))
    }

    pub fn name(&self) -> &str {
        &self.0
    }

    pub fn delete(&self) {
        sh(&format!("ip link delete {}", self.0));
    }
}

impl Drop for HostTap {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["link", "delete", &self.0]).output();
    }
}

pub fn sh(line: &str) {
    let output = Command::new("sh").args(["-c", line]).output().unwrap();
    assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
}

/// The features that the guest's drivers of network devices have accepted, by device: a character for each bit.
fn accepted(guest: &Running, id: &str) -> Vec<String> {
    let features = guest.shell(id, "cat /sys/bus/virtio/drivers/virtio_net/virtio*/features");
    features.lines().map(str::to_owned).collect()
}

pub fn guest_network(addresses: &[&str], gateway: &str) -> GuestNetwork {
    GuestNetwork {
        addresses: addresses.iter().map(|address| address.parse().unwrap()).collect(),
        gateways: vec![gateway.parse().unwrap()],
        name_servers: vec![gateway.parse().unwrap()],
        search_domains: vec!["bellows.test".parse().unwrap()],
    }
}

/// A program in Python that shares the VM's network.
pub fn python(id: &str, program: &str, arguments: &[&str]) -> InstanceSpec {
    let command = [&["python3", "-c", program], arguments].concat();
    InstanceSpec::new(id.parse().unwrap(), image_id(), command).on_network(InstanceNetwork::Vm)
}

/// A shell line that shares the VM's network.
pub fn shell(id: &str, line: &str) -> InstanceSpec {
    InstanceSpec::new(id.parse().unwrap(), image_id(), ["/bin/sh", "-c", line]).on_network(InstanceNetwork::Vm)
}

impl Running {
    /// Has it run to its end; returns what it has printed.
    pub fn ends_well(&self, job: Job) -> String {
        let (status, output) = job.finish();
        assert_eq!(status.code, 0, "{output}\n{}", self.console());
        output
    }
}

/// A server of the host that serves `count` clients, one after the other.
pub fn serve(count: usize, mut client: impl FnMut(TcpStream) + Send + 'static) -> (u16, JoinHandle<()>) {
    let listener = TcpListener::bind("[::]:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let serve = move || {
        for _ in 0..count {
            let (stream, _) = listener.accept().unwrap();
            patient(&stream);
            client(stream);
        }
    };
    (port, thread::spawn(serve))
}

fn patient(stream: &TcpStream) {
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
}

pub fn connect(address: &str, port: u16) -> TcpStream {
    let address = SocketAddr::new(address.parse::<IpAddr>().unwrap(), port);
    let stream = TcpStream::connect_timeout(&address, PATIENCE).unwrap();
    patient(&stream);
    stream
}

/// What an HTTP server at port 8080 of the guest answers.
pub fn get(address: &str, path: &str) -> String {
    let mut stream = connect(address, 8080);
    write!(stream, "GET {path} HTTP/1.0\r\n\r\n").unwrap();
    let head = head(&mut stream);
    assert!(head.starts_with("HTTP/1.0 200"), "{head}");
    let mut body = String::new();
    stream.read_to_string(&mut body).unwrap();
    body
}

/// The head of an HTTP request or response, to its empty line.
pub fn head(stream: &mut TcpStream) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        head.push(byte[0]);
    }
    String::from_utf8(head).unwrap()
}

/// Answers each of `count` questions of the guest's with the host's address, as a name server (RFC 1035); returns the names.
fn answer_names(host: &str, count: usize) -> JoinHandle<Vec<String>> {
    let socket = UdpSocket::bind((host, 53)).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let IpAddr::V4(address) = host.parse().unwrap() else { panic!("{host}") };
    thread::spawn(move || {
        let mut names = Vec::new();
        while names.len() < count {
            let mut buffer = [0; 512];
            let (length, sender) = socket.recv_from(&mut buffer).unwrap();
            let (mut name, mut position) = (String::new(), 12);
            while buffer[position] != 0 {
                let end = position + 1 + usize::from(buffer[position]);
                name += std::str::from_utf8(&buffer[position + 1..end]).unwrap();
                name.push('.');
                position = end;
            }
            let question = &buffer[12..position + 5];
            let is_v4 = question.ends_with(&[0, 1, 0, 1]);
            // Identifier, that it is a response, one question, perhaps one answer: to the name at byte 12, for a minute.
            let mut response = [&buffer[..2], &[0x81, 0x80, 0, 1, 0, u8::from(is_v4), 0, 0, 0, 0], question].concat();
            if is_v4 {
                response.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4]);
                response.extend(address.octets());
            }
            socket.send_to(&response, sender).unwrap();
            assert!(length >= position + 5);
            names.push(name);
        }
        names
    })
}

/// Fetches each of its arguments, as a URL.
pub const FETCH: &str = "
import sys, urllib.request
for url in sys.argv[1:]:
    print(urllib.request.urlopen(url, timeout=250).read().decode(), flush=True)
";

/// Serves HTTP at both families of addresses, until it is ended.
pub const SERVER: &str = "
import http.server, socket
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = ('%s from %s' % (self.path, self.client_address[0])).encode()
        self.send_response(200)
        self.send_header('Content-Length', str(len(body)))
        self.end_headers()
        self.wfile.write(body)
class Server(http.server.ThreadingHTTPServer):
    address_family = socket.AF_INET6
server = Server(('::', 8080), Handler)
print('serving', flush=True)
server.serve_forever()
";

/// What an instance cannot do in the VM's network namespace.
const REFUSED: &str = "
import socket, fcntl, struct
def refused(call):
    try:
        call()
    except PermissionError:
        return
    raise SystemExit('%s is allowed' % call)
refused(lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0x300))
refused(lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, 1))
refused(lambda: socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM))
control = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
# SIOCSIFFLAGS, with no flag: down.
refused(lambda: fcntl.ioctl(control, 0x8914, struct.pack('16sH14x', b'eth0', 0)))
try:
    open('/proc/sys/net/ipv4/ip_forward', 'w')
    raise SystemExit('settings can be written')
except OSError:
    print('refused')
";

/// HTTP in both directions over IPv4 and IPv6, by name and by address; what instances are told of the network; who is connected and who
/// is not.
#[test]
fn an_instance_and_its_host_talk() {
    let tap = HostTap::at("bld", &["172.16.7.1/30", "fd00:7::1/64"]);
    let guest = guest_network(&["172.16.7.2/30", "fd00:7::2/64"], "172.16.7.1");
    let guest = Guest::ours().network(NetConfig { guest: Some(guest), ..tap.config("net-7") }).boot();

    let files = shell("files", "cat /etc/resolv.conf /etc/hosts; ls /sys/class/net");
    let files = guest.ends_well(guest.start_spec(&files));
    assert!(files.starts_with("nameserver 172.16.7.1\nsearch bellows.test\n127.0.0.1\tlocalhost\n"), "{files}");
    assert!(files.contains("\n172.16.7.2\tfiles\nfd00:7::2\tfiles\n") && files.ends_with("\nlo\nnet-7\n"), "{files}");

    let server = guest.start_spec(&python("server", SERVER, &[]));
    server.wait_for("serving");
    assert_eq!(get("172.16.7.2", "/four"), "/four from ::ffff:172.16.7.1");
    assert_eq!(get("fd00:7::2", "/six"), "/six from fd00:7::1");

    let (port, served) = serve(3, |mut stream| {
        let peer = stream.peer_addr().unwrap().ip().to_canonical();
        let path = head(&mut stream).split(' ').nth(1).unwrap().to_owned();
        let body = format!("{path} for {peer}");
        write!(stream, "HTTP/1.0 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len()).unwrap();
    });
    // Of both families.
    let names = answer_names("172.16.7.1", 2);
    let urls = [
        format!("http://172.16.7.1:{port}/four"),
        format!("http://[fd00:7::1]:{port}/six"),
        format!("http://host:{port}/name"),
    ];
    let fetched = guest.ends_well(guest.start_spec(&python("fetch", FETCH, &urls.each_ref().map(String::as_str))));
    assert_eq!(fetched, "/four for 172.16.7.2\n/six for fd00:7::2\n/name for 172.16.7.2\n");
    served.join().unwrap();
    assert_eq!(names.join().unwrap(), ["host.bellows.test."; 2]);

    assert_eq!(guest.ends_well(guest.start_spec(&python("refused", REFUSED, &[]))), "refused\n");
    let lonely = "import socket\ntry:\n socket.create_connection(('172.16.7.1', 1))\nexcept OSError as error:\n print(error.strerror)";
    let lonely = python("lonely", lonely, &[]).on_network(InstanceNetwork::None);
    assert_eq!(guest.ends_well(guest.start_spec(&lonely)), "Network is unreachable\n");
    assert_eq!(guest.shell("alone", "ls /sys/class/net; cat /etc/resolv.conf | grep -c 172.16; true"), "lo\n0\n");

    // The end of others has not touched it.
    assert_eq!(get("172.16.7.2", "/again"), "/again from ::ffff:172.16.7.1");
    server.signal(9);
    server.finish();
    let traffic = guest.vm.network_statistics("net-7").unwrap();
    assert_eq!((traffic.received.malformed, traffic.transmitted.malformed), (0, 0), "{traffic:?}");
    guest.shutdown();
}

/// Takes MiB from a server and gives it as many; prints the digest of each.
pub const BULK: &str = "
import hashlib, os, socket, sys
host, port, mib = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
stream = socket.create_connection((host, port), timeout=250)
taken, left = hashlib.sha256(), mib << 20
while left:
    data = stream.recv(1 << 18)
    assert data, left
    taken.update(data)
    left -= len(data)
given = hashlib.sha256()
for _ in range(mib):
    data = os.urandom(1 << 20)
    given.update(data)
    stream.sendall(data)
print(taken.hexdigest(), given.hexdigest())
";

/// Sends the host datagrams of a size that are not to be cut into fragments; prints what comes of each.
const DATAGRAMS: &str = "
import errno, socket, sys
host, port = sys.argv[1], int(sys.argv[2])
for size in map(int, sys.argv[3:]):
    out = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    out.settimeout(250)
    # IP_MTU_DISCOVER, IP_PMTUDISC_DO
    out.setsockopt(socket.IPPROTO_IP, 10, 2)
    out.connect((host, port))
    try:
        out.send(bytes(size))
        print(size, len(out.recv(65536)), flush=True)
    except OSError as error:
        print(size, errno.errorcode[error.errno], flush=True)
";

/// MiB that go each way.
const BULK_MIB: usize = 12;

pub fn digest(bytes: &[u8]) -> String {
    Digest::of(bytes).hex()
}

/// A server of the host that sends one client these bytes, then takes as many, and tells their digest.
pub fn exchange(sent: Vec<u8>) -> (u16, JoinHandle<()>, mpsc::Receiver<String>) {
    let (tell, told) = mpsc::channel();
    let (port, served) = serve(1, move |mut stream| {
        stream.write_all(&sent).unwrap();
        let mut taken = vec![0; sent.len()];
        stream.read_exact(&mut taken).unwrap();
        tell.send(digest(&taken)).unwrap();
    });
    (port, served, told)
}

/// Bytes that differ from each other everywhere.
pub fn noise(count: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut bytes = Vec::with_capacity(count);
    while bytes.len() < count {
        // xorshift
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend(state.to_le_bytes());
    }
    bytes
}

/// Much data in both directions, over an interface with packets of the usual size and one with large ones: it comes as it was sent, and
/// both sides leave its division into packets to each other.
#[test]
fn much_data_comes_as_it_was_sent() {
    let taps = [HostTap::at("ble", &["172.16.8.1/30"]), HostTap::at("blf", &["172.16.9.1/30"])];
    sh(&format!("ip link set {} mtu 9000", taps[1].0));
    let guest = Guest::ours()
        .network(NetConfig { guest: Some(guest_network(&["172.16.8.2/30"], "172.16.8.1")), ..taps[0].config("eth0") })
        .network(NetConfig {
            guest: Some(guest_network(&["172.16.9.2/30"], "172.16.9.1")),
            mtu: Some(9000),
            ..taps[1].config("eth1")
        })
        .boot();
    let mtus = shell("mtus", "cat /sys/class/net/eth0/mtu /sys/class/net/eth1/mtu");
    let mtus = guest.ends_well(guest.start_spec(&mtus));
    assert_eq!(mtus, "1500\n9000\n");

    let sent = noise(BULK_MIB << 20);
    let expected = digest(&sent);
    for (index, host) in ["172.16.8.1", "172.16.9.1"].into_iter().enumerate() {
        let (port, served, told) = exchange(sent.clone());
        let arguments = [host, &port.to_string(), &BULK_MIB.to_string()];
        let printed = guest.ends_well(guest.start_spec(&python(&format!("bulk-{index}"), BULK, &arguments)));
        served.join().unwrap();
        assert_eq!(printed, format!("{expected} {}\n", told.recv().unwrap()));
        let statistics = guest.vm.network_statistics(&format!("eth{index}")).unwrap();
        for traffic in [statistics.received, statistics.transmitted] {
            assert_eq!(traffic.malformed, 0, "{statistics:?}");
            // Acknowledgements among them, which are small.
            assert!(traffic.bytes > (BULK_MIB as u64) << 20 && traffic.packets > 0, "{statistics:?}");
        }
        println!("{host}: {statistics:?}");
    }

    let echo = UdpSocket::bind("0.0.0.0:0").unwrap();
    echo.set_read_timeout(Some(PATIENCE)).unwrap();
    let port = echo.local_addr().unwrap().port().to_string();
    let echoing = thread::spawn(move || {
        let mut buffer = vec![0; 65536];
        for _ in 0..2 {
            let (length, sender) = echo.recv_from(&mut buffer).unwrap();
            echo.send_to(&buffer[..length], sender).unwrap();
        }
    });
    let send = |id: &str, host: &str, sizes: &[&str]| {
        let arguments = [&[host, &port], sizes].concat();
        guest.ends_well(guest.start_spec(&python(id, DATAGRAMS, &arguments)))
    };
    // An IPv4 header and a UDP header have 28 bytes.
    assert_eq!(send("usual", "172.16.8.1", &["1472", "1473"]), "1472 1472\n1473 EMSGSIZE\n");
    assert_eq!(send("jumbo", "172.16.9.1", &["8972", "8973"]), "8972 8972\n8973 EMSGSIZE\n");
    echoing.join().unwrap();
    guest.shutdown();
}

/// The guest's driver takes both interfaces, with the offloads of a TAP. One whose TAP is deleted goes down, and nothing else does.
#[test]
fn a_guest_has_interfaces_for_as_long_as_their_taps_are_there() {
    let taps = ["bla", "blb"].map(HostTap::new);
    let first = NetConfig { mtu: Some(1400), ..taps[0].config("eth0") };
    let guest = Guest::ours().network(first).network(taps[1].config("eth1")).boot();
    // Checksum, MTU, MAC, merged buffers, status: VIRTIO 1.2, section 5.1.3.
    let bits = |features: &String| [0, 3, 5, 15, 16].map(|bit| features.as_bytes()[bit] == b'1');
    let mut found: Vec<_> = accepted(&guest, "before").iter().map(bits).collect();
    found.sort_unstable();
    assert_eq!(found, [[true, false, true, true, true], [true; 5]]);
    assert!(guest.vm.network_interfaces().iter().all(|interface| interface.up));

    taps[0].delete();
    let begun = Instant::now();
    while guest.vm.network_interfaces()[0].up {
        assert!(begun.elapsed() < PATIENCE, "the interface stays up");
        std::thread::sleep(Duration::from_millis(50));
    }
    assert!(guest.vm.network_interfaces()[1].up);
    assert_eq!(accepted(&guest, "after").len(), 2, "the guest goes on");
    guest.shutdown();
}

/// A TAP that another VM has, or that is not there, is refused by name before anything boots.
#[test]
fn a_tap_belongs_to_one_vm() {
    let tap = HostTap::new("blc");
    let guest = || Guest::ours().network(tap.config("eth0"));
    let first = guest().boot();
    let error = guest().refused();
    assert!(error.contains(&tap.0) && error.contains("that this process may use and no other does"), "{error}");
    first.shutdown();
    guest().boot().shutdown();
    tap.delete();
    let error = guest().refused();
    assert!(error.contains(&format!("no interface is called `{}`", tap.0)), "{error}");
}
