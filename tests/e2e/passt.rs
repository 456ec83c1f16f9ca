//! The network of a run, by passt.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use crate::command::{bellows_run, image};
use crate::fixture::{PATIENCE, artefact};

/// An interface with default routes, until this is dropped; needs root. passt serves only what the host has a route for. One at a time:
/// the addresses are always the same.
struct Routed {
    name: String,
    _alone: std::sync::MutexGuard<'static, ()>,
}

/// The host's addresses at it.
const HOST: &str = "10.77.0.1";
const HOST6: &str = "fd77::1";

impl Routed {
    fn new() -> Self {
        static ALONE: Mutex<()> = Mutex::new(());
        let alone = ALONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let name = format!("blr{}", std::process::id());
        sh(&format!("ip link add name {name} type dummy"));
        let routed = Self { name, _alone: alone };
        let name = &routed.name;
        // No address waits for others to object.
        let _ = fs::write(format!("/proc/sys/net/ipv6/conf/{name}/accept_dad"), "0");
        sh(&format!(
            "ip address add {HOST}/24 dev {name}; ip link set {name} up; ip -6 address add {HOST6}/64 dev {name}"
        ));
        // Those of a machine that has a network of its own win.
        sh(&format!("ip route add default via 10.77.0.2 dev {name} metric 99999"));
        sh(&format!("ip -6 route add default via fd77::2 dev {name} metric 99999"));
        routed
    }
}

impl Drop for Routed {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["link", "delete", &self.name]).output();
    }
}

fn sh(line: &str) {
    let output = Command::new("sh").args(["-ec", line]).output().unwrap();
    assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
}

/// `bellows run` with `options`, of a command in the demo's image.
fn run(options: &[&str], command: &[&str]) -> Command {
    let mut run = bellows_run();
    run.arg("--memory=256M").args(options).arg(image()).args(command);
    run
}

fn said(output: &Output) -> String {
    format!("{}\n{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// The number of the passt that `monitor` has started.
fn passt_of(monitor: &Child) -> i32 {
    let children = format!("/proc/{0}/task/{0}/children", monitor.id());
    let children = fs::read_to_string(children).unwrap();
    let is_passt =
        |id: &&str| fs::read_to_string(format!("/proc/{id}/comm")).is_ok_and(|name| name.starts_with("passt"));
    children.split_whitespace().find(is_passt).expect("passt is a child").parse().unwrap()
}

#[test]
fn a_network_that_cannot_be_is_refused_before_anything_boots() {
    // A port that is taken.
    let routed = Routed::new();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = format!("127.0.0.1:{}:80", taken.local_addr().unwrap().port());
    let output = run(&["-p", &port], &["true"]).output().unwrap();
    let text = said(&output);
    assert!(
        output.status.code() == Some(125) && text.contains("`passt` failed") && text.contains("ailed to bind"),
        "{text}"
    );
    // No program.
    let output = run(&["--net"], &["true"]).env("PATH", "/nowhere").output().unwrap();
    let text = said(&output);
    assert!(output.status.code() == Some(125) && text.contains("install the Debian package `passt`"), "{text}");
    // No way out, in a network namespace of its own.
    drop(routed);
    let inside = run(&["--net"], &["true"]);
    let mut alone = Command::new("unshare");
    alone.arg("-n").arg(inside.get_program()).args(inside.get_args());
    let output = alone.output().unwrap();
    let text = said(&output);
    assert!(output.status.code() == Some(125) && text.contains("no default route"), "{text}");
}

/// passt ends, and the VM goes on; passt ends with the VM.
#[test]
fn passt_and_a_vm_end_one_after_the_other() {
    let _routed = Routed::new();
    let mut command = run(&["--net", "-i"], &["/bin/sh", "-c", "echo up; read line; echo $line"]);
    let mut monitor = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut stdout = BufReader::new(monitor.stdout.take().unwrap());
    let mut stderr = BufReader::new(monitor.stderr.take().unwrap());
    let (mut line, mut heard) = (String::new(), String::new());
    stdout.read_line(&mut line).unwrap();
    if line != "up\n" {
        stderr.read_to_string(&mut heard).unwrap();
        panic!("{line}{heard}");
    }
    let passt = nix::unistd::Pid::from_raw(passt_of(&monitor));
    nix::sys::signal::kill(passt, nix::sys::signal::Signal::SIGKILL).unwrap();
    // Between the two stands what passt has said last, if anything.
    while !(heard.contains("passt has ended (signal: 9 (SIGKILL))") && heard.contains("the VM goes on")) {
        assert_ne!(stderr.read_line(&mut heard).unwrap(), 0, "{heard}");
    }
    monitor.stdin.take().unwrap().write_all(b"still here\n").unwrap();
    line.clear();
    stdout.read_to_string(&mut line).unwrap();
    assert_eq!(line, "still here\n");
    assert!(monitor.wait().unwrap().success());

    let mut command = run(&["--net"], &["/bin/sh", "-c", "echo up; exec sleep 3600"]);
    let mut monitor = command.stdout(Stdio::piped()).spawn().unwrap();
    let mut stdout = BufReader::new(monitor.stdout.take().unwrap());
    line.clear();
    stdout.read_line(&mut line).unwrap();
    assert_eq!(line, "up\n");
    let program = format!("/proc/{}/exe", passt_of(&monitor));
    monitor.kill().unwrap();
    monitor.wait().unwrap();
    let begun = Instant::now();
    while fs::read_link(&program).is_ok() {
        assert!(begun.elapsed() < PATIENCE, "passt stays");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// What crosses the network: more than a packet holds, and than a socket takes at once.
fn body() -> Vec<u8> {
    (0..700_000_u32).map(|n| (n * 7 + n / 251) as u8).collect()
}

/// Answers every request of HTTP with [`body`].
fn serve(listener: TcpListener) {
    std::thread::spawn(move || {
        for client in listener.incoming().map_while(Result::ok) {
            let mut lines = BufReader::new(&client).lines();
            // Up to the empty line.
            while lines.next().is_some_and(|line| line.is_ok_and(|line| !line.is_empty())) {}
            let head = format!("HTTP/1.0 200 OK\r\nContent-Length: {}\r\n\r\n", body().len());
            let _ = (&client).write_all(&[head.as_bytes(), &body()].concat());
        }
    });
}

/// A name server at a loopback address, which knows one host for every name.
fn name_server() -> String {
    let socket = UdpSocket::bind("127.0.0.88:53").unwrap();
    std::thread::spawn(move || {
        let mut query = [0; 512];
        while let Ok((length, from)) = socket.recv_from(&mut query) {
            // The question alone, without what may follow it.
            let end = query[12..length].iter().position(|&byte| byte == 0).unwrap() + 12 + 5;
            let for_ipv4 = query[end - 4..end] == [0, 1, 0, 1];
            let mut answer = query[..end].to_vec();
            answer[2..12].copy_from_slice(&[0x81, 0x80, 0, 1, 0, u8::from(for_ipv4), 0, 0, 0, 0]);
            if for_ipv4 {
                // The name of the question, an address, for a minute.
                answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 10, 77, 0, 1]);
            }
            socket.send_to(&answer, from).unwrap();
        }
    });
    "nameserver 127.0.0.88\n".to_owned()
}

/// The same command with another `/etc/resolv.conf`.
fn with_resolver(command: &Command, directory: &Path, text: &str) -> Command {
    let file = directory.join("resolv.conf");
    fs::write(&file, text).unwrap();
    fs::set_permissions(&file, PermissionsExt::from_mode(0o644)).unwrap();
    if !Path::new("/etc/resolv.conf").exists() {
        fs::write("/etc/resolv.conf", "").unwrap();
    }
    let mut inside = Command::new("unshare");
    inside.args(["-m", "sh", "-ec", "mount --bind \"$0\" /etc/resolv.conf; exec \"$@\""]).arg(file);
    inside.arg(command.get_program()).args(command.get_args());
    inside
}

/// What the guest does. It prints a line after each step.
const GUEST: &str = r#"
import http.server, socket, sys, urllib.request, zlib
port, closed = sys.argv[1:]
def get(host, port=port, timeout=300):
    return zlib.crc32(urllib.request.urlopen(f"http://{host}:{port}/", timeout=timeout).read())
print(get("10.77.0.1"), get("[fd77::1]"), get("host.example"), flush=True)
try:
    print(get("10.0.2.2", closed, 5), flush=True)
except OSError:
    print("closed", flush=True)
class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.end_headers()
        self.wfile.write(str(zlib.crc32(body)).encode())
    def log_message(self, *_):
        pass
class Server(http.server.HTTPServer):
    address_family = socket.AF_INET6
server = Server(("::", 8080), Handler)
names = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
names.bind(("", 5353))
print("listening", flush=True)
server.handle_request()
server.handle_request()
data, sender = names.recvfrom(65536)
names.sendto(data[::-1], sender)
"#;

/// Posts [`body`] to a published port: the last line of the answer.
fn post(address: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let head = format!("POST / HTTP/1.0\r\nContent-Length: {}\r\n\r\n", body().len());
    stream.write_all(&[head.as_bytes(), &body()].concat()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer.lines().last().unwrap_or_default().to_owned()
}

/// A command reaches the host over both protocols and by name, but not its loopback, and is reached at its published ports.
#[test]
fn a_command_reaches_out_and_is_reached() {
    let _routed = Routed::new();
    let directory = tempfile::tempdir().unwrap();
    let (open, closed) = (TcpListener::bind("[::]:0").unwrap(), TcpListener::bind("127.0.0.1:0").unwrap());
    let port = |listener: &TcpListener| listener.local_addr().unwrap().port().to_string();
    let (open_port, closed_port) = (port(&open), port(&closed));
    serve(open);
    closed.set_nonblocking(true).unwrap();
    // Free a moment ago.
    let published = port(&TcpListener::bind("[::]:0").unwrap());
    let names = UdpSocket::bind(format!("{HOST}:0")).unwrap().local_addr().unwrap();
    let ports = ["-p", &format!("{published}:8080"), "-p", &format!("{names}:5353/udp")].map(str::to_owned);
    let command = run(&ports.each_ref().map(String::as_str), &["python3", "-c", GUEST, &open_port, &closed_port]);
    let mut command = with_resolver(&command, directory.path(), &name_server());
    let mut monitor = command.stdout(Stdio::piped()).spawn().unwrap();
    let mut stdout = BufReader::new(monitor.stdout.take().unwrap()).lines();
    let mut sum = flate2::Crc::new();
    sum.update(&body());
    let expected = sum.sum().to_string();
    assert_eq!(stdout.next().unwrap().unwrap(), [expected.as_str(); 3].join(" "));
    assert_eq!(stdout.next().unwrap().unwrap(), "closed");
    assert_eq!(closed.accept().unwrap_err().kind(), std::io::ErrorKind::WouldBlock, "the host's loopback is its own");
    assert_eq!(stdout.next().unwrap().unwrap(), "listening");
    assert_eq!(post(&format!("127.0.0.1:{published}")), expected);
    assert_eq!(post(&format!("[::1]:{published}")), expected);
    let client = UdpSocket::bind(format!("{HOST}:0")).unwrap();
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    client.send_to(b"datagram", names).unwrap();
    let mut answer = [0; 100];
    let length = client.recv(&mut answer).unwrap();
    assert_eq!(&answer[..length], b"margatad");
    assert!(monitor.wait().unwrap().success());
}

#[test]
fn the_hosts_loopback_is_open_on_request() {
    let _routed = Routed::new();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://10.0.2.2:{}/", listener.local_addr().unwrap().port());
    serve(listener);
    let line = "import sys, urllib.request; print(len(urllib.request.urlopen(sys.argv[1]).read()))";
    let output = run(&["--host-loopback"], &["python3", "-c", line, &url]).output().unwrap();
    assert!(output.status.success() && output.stdout == b"700000\n", "{}", said(&output));
}

/// In the background, too: passt outlives the command that has started it, and ends with the VM.
#[test]
fn a_published_port_leads_to_a_detached_vm() {
    let _routed = Routed::new();
    let session = tempfile::tempdir().unwrap();
    // Free a moment ago.
    let port = TcpListener::bind("[::]:0").unwrap().local_addr().unwrap().port();
    let ports = format!("127.0.0.1:{port}:8000");
    let server = "import http.server as h; s = h.HTTPServer(('', 8000), h.SimpleHTTPRequestHandler); print('listening', flush=True); \
                  s.serve_forever()";
    let mut command = run(&["--detach", "--name", "web", "-p", &ports], &["python3", "-c", server]);
    let output = command.env("XDG_RUNTIME_DIR", session.path()).output().unwrap();
    assert!(output.status.success(), "{}", said(&output));
    let bellows = |words: &[&str]| {
        let mut command = Command::new(artefact("BELLOWS_BINARY"));
        command.args(words).env("XDG_RUNTIME_DIR", session.path());
        command
    };
    let mut logs = bellows(&["logs", "--follow", "web"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(logs.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "listening\n");
    logs.kill().unwrap();
    logs.wait().unwrap();
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.0 200"), "{answer}");
    let output = bellows(&["rm", "--force", "web"]).output().unwrap();
    assert!(output.status.success(), "{}", said(&output));
    // The port is free again when passt has ended.
    let begun = Instant::now();
    while TcpListener::bind(("127.0.0.1", port)).is_err() {
        assert!(begun.elapsed() < PATIENCE, "passt stays");
        std::thread::sleep(Duration::from_millis(50));
    }
}
