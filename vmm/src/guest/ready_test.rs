use std::io::Write;
use std::thread;
use std::time::Duration;

use bellows_protocol::PROTOCOL_VERSION;

use super::*;
use crate::end::VmEnd;

const SOON: Duration = Duration::from_secs(20);

struct Fixture {
    directory: tempfile::TempDir,
    listener: ReadyListener,
    end: std::sync::Arc<EndSignal>,
}

fn fixture() -> Fixture {
    let directory = tempfile::tempdir().unwrap();
    let listener = ReadyListener::bind(&directory.path().join("v")).unwrap();
    Fixture { directory, listener, end: EndSignal::new().unwrap() }
}

impl Fixture {
    fn guest_sends(&self, line: &[u8]) -> UnixStream {
        let mut stream = UnixStream::connect(self.directory.path().join(format!("v_{READY_PORT}"))).unwrap();
        stream.write_all(line).unwrap();
        stream
    }

    fn wait(&self, timeout: Duration) -> Result<BootTimes, NotReady> {
        self.listener.wait(Deadline::after(timeout), &self.end)
    }
}

#[test]
fn the_agents_line_may_come_before_or_during_the_wait() {
    let early = fixture();
    let _stream = early.guest_sends(format!("ready {PROTOCOL_VERSION} 2 3\n").as_bytes());
    let times = BootTimes { init: Duration::from_micros(2), ready: Duration::from_micros(3) };
    assert_eq!(early.wait(SOON).unwrap(), times);

    let late = fixture();
    thread::scope(|scope| {
        let waiter = scope.spawn(|| late.wait(SOON));
        let mut stream = late.guest_sends(b"rea");
        stream.write_all(format!("dy {PROTOCOL_VERSION} 0 0\n").as_bytes()).unwrap();
        waiter.join().unwrap().unwrap();
    });
}

#[test]
fn another_line_of_the_guest_is_refused() {
    for line in [&b"hello\n"[..], b"", b"ready", &[b'x'; 4096]] {
        let fixture = fixture();
        drop(fixture.guest_sends(line));
        assert!(matches!(fixture.wait(SOON), Err(NotReady::Line(_))), "{line:?}");
    }
    let fixture = fixture();
    drop(fixture.guest_sends(b"ready 77\n"));
    assert!(matches!(fixture.wait(SOON), Err(NotReady::Version(77))));
}

#[test]
fn silence_ends_with_the_time_or_with_the_vm() {
    let fixture = fixture();
    let _silent = fixture.guest_sends(b"");
    assert!(matches!(fixture.wait(Duration::from_millis(5)), Err(NotReady::Timeout(_))));
    thread::scope(|scope| {
        let waiter = scope.spawn(|| fixture.wait(SOON));
        fixture.end.report(VmEnd::Reset);
        assert!(matches!(waiter.join().unwrap(), Err(NotReady::Ended(VmEnd::Reset))));
    });
}

#[test]
fn the_socket_is_removed_and_an_error_names_a_taken_path() {
    let fixture = fixture();
    let path = fixture.listener.0.path().to_owned();
    let taken = ReadyListener::bind(&fixture.directory.path().join("v")).unwrap_err();
    assert!(taken.to_string().contains(path.to_str().unwrap()), "{taken}");
    assert!(path.exists());
    drop(fixture.listener);
    assert!(!path.exists());
}
