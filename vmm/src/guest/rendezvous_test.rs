use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::thread;
use std::time::{Duration, Instant};

use bellows_protocol::ready::ready_line;
use bellows_protocol::{AGENT_PORT, READY_PORT};

use super::*;
use crate::end::VmEnd;
use crate::guest::agent::AgentError;

const LONG: Duration = Duration::from_secs(60);
const SHORT: Duration = Duration::from_millis(50);

/// A VM's sockets, and a rendezvous at them.
struct Place {
    directory: tempfile::TempDir,
    device: UnixListener,
    rendezvous: Rendezvous,
    end: Arc<EndSignal>,
}

impl Place {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("v");
        let rendezvous = Rendezvous::new(ReadyListener::bind(&path).unwrap());
        let device = UnixListener::bind(&path).unwrap();
        Self { directory, device, rendezvous, end: EndSignal::new().unwrap() }
    }

    /// The agent reports that it is ready.
    fn speak(&self) {
        let path = self.directory.path().join(format!("v_{READY_PORT}"));
        UnixStream::connect(path).unwrap().write_all(ready_line(BootTimes::default()).as_bytes()).unwrap();
    }

    /// The next client of the device, which connects to the agent.
    fn client(&self) -> UnixStream {
        let (stream, _) = self.device.accept().unwrap();
        let mut line = String::new();
        BufReader::new(&stream).read_line(&mut line).unwrap();
        assert_eq!(line, format!("CONNECT {AGENT_PORT}\n"));
        stream
    }

    fn reach(&self, limit: Duration) -> Result<&Arc<AgentClient>, ReadyError> {
        self.rendezvous.reach(&self.directory.path().join("v"), Deadline::after(limit), &self.end)
    }
}

#[test]
fn a_guest_that_answers_byte_by_byte_has_no_more_time_and_another_chance() {
    let place = Place::new();
    place.speak();
    thread::scope(|scope| {
        let (stop, stopped) = std::sync::mpsc::channel::<()>();
        let place = &place;
        scope.spawn(move || {
            let mut slow = place.client();
            // Each byte is in time, but all bytes together are not.
            for byte in b"OK 1073741824".iter().cycle() {
                if slow.write_all(&[*byte]).is_err() || stopped.recv_timeout(SHORT / 2).is_ok() {
                    break;
                }
            }
        });
        let start = Instant::now();
        let error = place.reach(SHORT).err().unwrap();
        assert!(matches!(error, ReadyError::Agent(AgentError::Connect { .. })), "{error}");
        assert!(start.elapsed() < LONG / 2, "{:?}", start.elapsed());
        drop(stop);
    });
    assert!(place.rendezvous.boot_times().is_some());
    // The agent does not repeat its line.
    thread::scope(|scope| {
        let prompt = scope.spawn(|| place.client().write_all(b"OK 1073741824\n").unwrap());
        assert!(place.reach(LONG).is_ok());
        prompt.join().unwrap();
    });
    assert!(place.reach(Duration::ZERO).is_ok(), "it is connected already");
}

#[test]
fn a_call_that_waits_for_another_has_its_own_limit() {
    let place = Place::new();
    thread::scope(|scope| {
        let first = scope.spawn(|| place.reach(LONG).err());
        while place.rendezvous.turns.take(Duration::ZERO).is_some() {
            thread::yield_now();
        }
        assert!(matches!(place.reach(SHORT), Err(ReadyError::NotReady(NotReady::Timeout(SHORT)))));
        place.end.report(VmEnd::Reset);
        assert!(matches!(first.join().unwrap(), Some(ReadyError::NotReady(NotReady::Ended(VmEnd::Reset)))));
    });
}

#[test]
fn a_handshake_ends_with_the_vm() {
    let place = Place::new();
    place.speak();
    thread::scope(|scope| {
        let waiter = scope.spawn(|| place.reach(LONG).err());
        let _silent = place.client();
        place.end.report(VmEnd::Reset);
        let error = waiter.join().unwrap().unwrap();
        assert!(matches!(error, ReadyError::Agent(AgentError::Connect { .. })), "{error}");
    });
}
