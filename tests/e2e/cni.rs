//! The network of a run, by plugins of CNI.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use crate::command::{bellows_run, image};
use crate::fixture::PATIENCE;

/// A network with a bridge, whose gateway is the host, until this is dropped; needs root, and Debian's plugins.
struct Network {
    bridge: String,
    directory: tempfile::TempDir,
}

impl Network {
    /// Its addresses are 10.NUMBER.0.0/24 and fdNUMBER::/64.
    fn new(number: u8) -> Self {
        let bridge = format!("blc{number}-{}", std::process::id());
        let network = Self { bridge, directory: tempfile::tempdir().unwrap() };
        let list = serde_json::json!({
            "cniVersion": "0.4.0",
            "name": "functions",
            "plugins": [{
                "type": "bridge",
                "bridge": network.bridge,
                "isGateway": true,
                "mtu": 1400,
                "ipam": {
                    "type": "host-local",
                    "dataDir": network.leases().parent().unwrap(),
                    "ranges": [[{ "subnet": format!("10.{number}.0.0/24") }], [{ "subnet": format!("fd{number}::/64") }]],
                    "routes": [{ "dst": "0.0.0.0/0" }, { "dst": "::/0" }],
                },
                "dns": { "nameservers": [format!("10.{number}.0.1")], "search": ["bellows.test"] },
            }],
        });
        fs::write(network.directory.path().join("net.conflist"), list.to_string()).unwrap();
        network
    }

    fn leases(&self) -> PathBuf {
        self.directory.path().join("leases/functions")
    }

    /// The addresses that are in use.
    fn leased(&self) -> Vec<String> {
        let Ok(entries) = fs::read_dir(self.leases()) else { return Vec::new() };
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut leased: Vec<String> = names.filter(|name| name.starts_with("10.") || name.starts_with("fd")).collect();
        leased.sort();
        leased
    }

    /// The interfaces at the bridge.
    fn ports(&self) -> usize {
        let ports = format!("/sys/class/net/{}/brif", self.bridge);
        fs::read_dir(ports).map_or(0, Iterator::count)
    }

    /// `bellows run` of a command in the demo's image, in this network.
    fn run(&self, command: &[&str]) -> Command {
        let mut run = bellows_run();
        run.args(["--memory=256M", "--network", "cni=functions"]).arg(image()).args(command);
        run.env("NETCONFPATH", self.directory.path()).env("CNI_PATH", "/usr/lib/cni");
        run
    }

    fn await_end(&self) {
        let begun = Instant::now();
        while !self.leased().is_empty() || self.ports() > 0 {
            assert!(begun.elapsed() < PATIENCE, "the network keeps {:?} and {} ports", self.leased(), self.ports());
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["link", "delete", &self.bridge]).output();
    }
}

fn said(output: &Output) -> String {
    format!("{}\n{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// Reads from the host by both protocols, then serves one request, and says what names are looked for.
const GUEST: &str = r#"
import http.server, sys, urllib.request
for host in sys.argv[2:]:
    print(len(urllib.request.urlopen(f"http://{host}:{sys.argv[1]}/", timeout=300).read()), flush=True)
print(open("/etc/resolv.conf").read().replace("\n", " "), flush=True)
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"from the guest")
    def log_message(self, *_):
        pass
server = http.server.HTTPServer(("", 8080), Handler)
print("listening", flush=True)
server.handle_request()
"#;

/// Answers every request of HTTP with so many bytes.
fn serve(listener: TcpListener, bytes: usize) {
    std::thread::spawn(move || {
        for client in listener.incoming().map_while(Result::ok) {
            let mut lines = BufReader::new(&client).lines();
            while lines.next().is_some_and(|line| line.is_ok_and(|line| !line.is_empty())) {}
            let head = format!("HTTP/1.0 200 OK\r\nContent-Length: {bytes}\r\n\r\n");
            let _ = (&client).write_all(&[head.as_bytes(), &vec![b'x'; bytes]].concat());
        }
    });
}

/// A command has an address of the plugins', reaches the host and is reached, and leaves nothing.
#[test]
fn a_command_is_in_a_network_of_cni_until_it_ends() {
    let network = Network::new(91);
    let listener = TcpListener::bind("[::]:0").unwrap();
    let port = listener.local_addr().unwrap().port().to_string();
    serve(listener, 300_000);
    let mut command = network.run(&["python3", "-c", GUEST, &port, "10.91.0.1", "[fd91::1]"]);
    let mut monitor = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut stdout = BufReader::new(monitor.stdout.take().unwrap()).lines();
    let mut next = || match stdout.next() {
        Some(line) => line.unwrap(),
        None => {
            let mut heard = String::new();
            monitor.stderr.take().unwrap().read_to_string(&mut heard).unwrap();
            panic!("{heard}");
        }
    };
    assert_eq!([next(), next()], ["300000", "300000"]);
    let resolver = next();
    assert!(resolver.contains("nameserver 10.91.0.1") && resolver.contains("search bellows.test"), "{resolver}");
    assert_eq!(next(), "listening");
    let leased = network.leased();
    assert_eq!((leased.len(), network.ports()), (2, 1), "{leased:?}");
    let mut stream = TcpStream::connect((leased[0].as_str(), 8080)).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.ends_with("from the guest"), "{answer}");
    assert!(monitor.wait().unwrap().success());
    // The command ends after its network.
    assert_eq!((network.leased(), network.ports()), (Vec::new(), 0));
}

/// So does a monitor that is killed.
#[test]
fn a_killed_monitor_leaves_nothing_in_a_network_of_cni() {
    let network = Network::new(92);
    let mut command = network.run(&["/bin/sh", "-c", "echo up; exec sleep 3600"]);
    let mut monitor = command.stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(monitor.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "up\n");
    assert_eq!(network.leased().len(), 2);
    monitor.kill().unwrap();
    monitor.wait().unwrap();
    network.await_end();
}

#[test]
fn a_network_of_cni_that_cannot_be_is_refused_before_anything_boots() {
    let network = Network::new(93);
    let mut other = bellows_run();
    other.args(["--network", "cni=other"]).arg(image()).arg("true").env("NETCONFPATH", network.directory.path());
    let output = other.output().unwrap();
    let text = said(&output);
    assert!(output.status.code() == Some(125) && text.contains("has no network `other`: it has functions"), "{text}");
    let output = network.run(&["true"]).env("CNI_PATH", "/nowhere").output().unwrap();
    let text = said(&output);
    assert!(output.status.code() == Some(125) && text.contains("`bridge` is in none of /nowhere"), "{text}");
}
