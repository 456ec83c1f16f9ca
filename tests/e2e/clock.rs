//! The guest's clock follows the host's.

use std::io::{self, Write};
use std::process::Command;
use std::sync::mpsc::{self, Receiver, Sender};
use std::time::{Duration, Instant, SystemTime};

use bellows_vmm::{InstanceSpec, StreamName};
use nix::sys::time::TimeSpec;
use nix::time::{ClockId, clock_settime};

use crate::fixture::{Guest, PATIENCE, image_id};

const DAY: Duration = Duration::from_secs(24 * 3600);
/// Largest allowed error of the guest's clock.
const ALLOWED: Duration = Duration::from_millis(100);

/// Prints the time, for ever.
const TELL: &str = "import time
while True:
    print(time.time_ns(), flush=True)
    time.sleep(0.05)";

/// The lab's clock; set right at the end of the test, even after a failure.
struct HostClock {
    start: Instant,
    began: Duration,
}

impl HostClock {
    fn take() -> Self {
        Self { start: Instant::now(), began: now() }
    }

    /// Sets it off by this much; returns the time of that.
    fn set(&self, ahead: Duration) -> Instant {
        clock_settime(ClockId::CLOCK_REALTIME, TimeSpec::from(self.began + self.start.elapsed() + ahead)).unwrap();
        Instant::now()
    }
}

impl Drop for HostClock {
    fn drop(&mut self) {
        self.set(Duration::ZERO);
    }
}

fn now() -> Duration {
    SystemTime::UNIX_EPOCH.elapsed().unwrap()
}

/// A time of the guest's clock, with the moment of its arrival.
struct Word {
    at: Instant,
    /// Its error, with its time in transit.
    off: Duration,
}

/// Compares each word of the guest with the host's clock.
struct Compare(Sender<Word>);

impl Write for Compare {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let at = Instant::now();
        let last = bytes.strip_suffix(b"\n").and_then(|lines| lines.rsplit(|byte| *byte == b'\n').next());
        if let Some(guest) = last.and_then(|line| std::str::from_utf8(line).ok()).and_then(|line| line.parse().ok()) {
            // The test may have ended.
            let _ = self.0.send(Word { at, off: now().abs_diff(Duration::from_nanos(guest)) });
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Waits until the guest's clock is right, by a line from after `since`.
fn await_right(words: &Receiver<Word>, since: Instant) {
    let start = Instant::now();
    loop {
        let word = words.recv_timeout(PATIENCE).expect("the guest tells the time");
        if word.at >= since && word.off <= ALLOWED {
            return;
        }
        assert!(start.elapsed() < PATIENCE, "the guest's clock is {:?} off", word.off);
    }
}

/// Stops this process with its VM, has the shell do `meanwhile`, and lets it go on.
fn stand_still(meanwhile: &str) -> Instant {
    let id = std::process::id();
    let line = format!("kill -STOP {id}; {meanwhile}; kill -CONT {id}");
    assert!(Command::new("sh").args(["-c", &line]).status().unwrap().success());
    Instant::now()
}

#[test]
fn the_guests_clock_goes_as_the_hosts_whatever_happens_to_it() {
    let guest = Guest::ours().boot();
    let instance =
        guest.vm.start_instance(&InstanceSpec::new("clock".parse().unwrap(), image_id(), ["python3", "-c", TELL]));
    let instance = instance.unwrap();
    let (sender, words) = mpsc::channel();
    let forwarding = instance.forward(StreamName::Stdout, Compare(sender)).unwrap();
    await_right(&words, Instant::now());
    await_right(&words, stand_still("sleep 5"));
    // Only the lab's clock may be set.
    if std::env::var_os("BELLOWS_IN_LAB").is_some() {
        let host = HostClock::take();
        await_right(&words, host.set(DAY));
        // The error of a bad crystal in a day.
        await_right(&words, host.set(DAY + Duration::from_secs(2)));
        await_right(&words, stand_still("date -s @$(($(date +%s) - 86400))"));
        await_right(&words, host.set(Duration::ZERO));
    }
    instance.signal(9).unwrap();
    instance.wait().unwrap();
    forwarding.join().unwrap();
    instance.remove(PATIENCE).unwrap();
    guest.shutdown();
}
