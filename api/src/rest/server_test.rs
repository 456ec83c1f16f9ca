use std::io::{Read as _, Write as _};
use std::net::Shutdown;
use std::os::unix::net::UnixStream as Client;
use std::path::PathBuf;
use std::sync::mpsc::{self, Receiver, Sender};
use std::time::Instant;

use bellows_vmm::{ByteSize, VmBuilder, VmConfig};
use tempfile::TempDir;

use super::*;
use crate::rest::log::Log;
use crate::rest::metrics::Counters;

/// A server whose VM begins to boot, and fails when the test says so.
struct Lab {
    server: Option<Server>,
    directory: TempDir,
    booting: Receiver<()>,
    go_on: Sender<()>,
}

impl Lab {
    fn start(limits: Limits) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let (begun, booting) = mpsc::channel();
        let (go_on, may_go_on) = mpsc::channel::<()>();
        let may_go_on = std::sync::Mutex::new(may_go_on);
        let boot = move |_| {
            begun.send(()).unwrap();
            may_go_on.lock().unwrap().recv().unwrap();
            VmBuilder::from(VmConfig::new("", ByteSize::mib(128))).boot()
        };
        let control = Control::new(
            "test".into(),
            Box::new(boot),
            false,
            bellows_vmm::Metadata::new(100),
            Log::default(),
            Counters::default(),
        );
        let bound = Socket::bind(&directory.path().join("api")).unwrap();
        let server = Server::start(bound, Arc::new(control), None, limits).unwrap();
        Self { server: Some(server), directory, booting, go_on }
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("api")
    }

    fn connect(&self) -> Client {
        let client = Client::connect(self.path()).unwrap();
        client.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        client
    }

    /// Sends a request on a connection of its own.
    fn send(&self, method: &str, path: &str, body: &str) -> Client {
        let mut client = self.connect();
        let length = body.len();
        let request =
            format!("{method} {path} HTTP/1.1\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}");
        client.write_all(request.as_bytes()).unwrap();
        client
    }

    fn answer(mut client: Client) -> String {
        let mut answer = String::new();
        client.read_to_string(&mut answer).unwrap();
        answer
    }

    /// Begins a boot, and waits until it is under way.
    fn boot(&self) -> Client {
        let source = r#"{"kernel_image_path": "/proc/version"}"#;
        assert!(Self::answer(self.send("PUT", "/boot-source", source)).starts_with("HTTP/1.1 204"));
        let client = self.send("PUT", "/actions", r#"{"action_type": "InstanceStart"}"#);
        self.booting.recv().unwrap();
        client
    }
}

const MACHINE: &str = r#"{"vcpu_count": 3, "mem_size_mib": 128}"#;

fn limits() -> Limits {
    Limits { farewell: Duration::from_millis(200), ..Limits::new(1000) }
}

#[test]
fn a_change_goes_on_without_its_client_and_the_next_one_waits_for_it() {
    let lab = Lab::start(limits());
    drop(lab.boot());
    let mut next = lab.send("PUT", "/machine-config", MACHINE);
    assert!(Lab::answer(lab.send("GET", "/", "")).contains("Not started"), "a question does not wait");
    next.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    assert!(next.read(&mut [0; 1]).is_err(), "a change does");
    next.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    lab.go_on.send(()).unwrap();
    assert!(Lab::answer(next).starts_with("HTTP/1.1 204"));
}

#[test]
fn a_change_whose_client_leaves_before_its_turn_never_happens() {
    let lab = Lab::start(limits());
    let boot = lab.boot();
    drop(lab.send("PUT", "/machine-config", MACHINE));
    // A question on the same thread is answered after the client's end was seen.
    for _ in 0..3 {
        assert!(Lab::answer(lab.send("GET", "/", "")).contains("Not started"));
    }
    lab.go_on.send(()).unwrap();
    assert!(Lab::answer(boot).starts_with("HTTP/1.1 400"));
    // Its turn comes after all that have waited longer.
    assert!(Lab::answer(lab.send("PUT", "/entropy", "{}")).starts_with("HTTP/1.1 204"));
    assert!(Lab::answer(lab.send("GET", "/machine-config", "")).contains("\"vcpu_count\":1"));
}

#[test]
fn connections_beyond_the_limit_wait_for_others_to_end() {
    let lab = Lab::start(Limits { connections: 2, ..limits() });
    let idle = [lab.connect(), lab.connect()];
    let mut third = lab.send("GET", "/version", "");
    third.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    assert!(third.read(&mut [0; 1]).is_err());
    third.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    drop(idle);
    assert!(Lab::answer(third).contains("1.16.1"));
}

#[test]
fn a_client_that_takes_no_answers_is_sent_away() {
    let lab = Lab::start(Limits { connections: 1, patience: Duration::from_millis(500), ..limits() });
    let mut deaf = lab.connect();
    deaf.set_write_timeout(Some(Duration::from_secs(5))).unwrap();
    let request = b"GET /vm/config HTTP/1.1\r\n\r\n".repeat(100);
    // Until both directions are full, or the server has gone.
    while deaf.write_all(&request).is_ok() {}
    assert!(Lab::answer(lab.send("GET", "/version", "")).contains("1.16.1"));
}

/// Each holds a connection for as long as it may, with half a request. No more of them than the limit take room at a time.
#[test]
fn a_thousand_slow_clients_are_sent_away_and_others_get_their_turn() {
    let lab = Lab::start(Limits { patience: Duration::from_millis(50), ..limits() });
    let half = b"PUT /vsock HTTP/1.1\r\nHost: l\r\nContent-Length: 10\r\n\r\n{";
    let slow: Vec<Client> = (0..1000)
        .map(|_| {
            let mut client = lab.connect();
            client.write_all(half).unwrap();
            client
        })
        .collect();
    let next = lab.send("GET", "/version", "");
    for client in slow {
        let answer = Lab::answer(client);
        assert!(answer.starts_with("HTTP/1.1 408"), "{answer}");
    }
    assert!(Lab::answer(next).contains("1.16.1"));
}

#[test]
fn a_server_that_ends_answers_what_it_can_and_leaves_no_socket() {
    let mut lab = Lab::start(limits());
    let mut idle = lab.connect();
    assert!(Lab::answer(lab.send("GET", "/version", "")).contains("1.16.1"));
    let begun = Instant::now();
    drop(lab.server.take());
    assert!(begun.elapsed() < Duration::from_secs(5));
    assert_eq!(idle.read(&mut [0; 1]).unwrap(), 0);
    assert!(!lab.path().exists());
    let _ = idle.shutdown(Shutdown::Both);
}
