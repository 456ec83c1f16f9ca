use std::fs::File;
use std::io::{ErrorKind, Read};
use std::time::Duration;

use nix::fcntl::OFlag;
use nix::sys::eventfd::EfdFlags;
use nix::unistd::pipe2;

use super::super::permits::Permits;
use super::super::set_nonblocking;
use super::*;

const LIMIT: Duration = Duration::from_secs(30);

/// A relay of a pipe, with both of its ends.
struct Around {
    monitor: UnixStream,
    /// The process's end.
    process: File,
    stop: Arc<EventFd>,
    /// Dropped when the process ends.
    running: Option<OwnedFd>,
    permits: Permits,
}

fn start(name: StreamName) -> Around {
    let (monitor, connection) = UnixStream::pair().unwrap();
    let (read, write) = pipe2(OFlag::O_CLOEXEC).unwrap();
    let (end, process) = if name == StreamName::Stdin { (write, read) } else { (read, write) };
    set_nonblocking(&end).unwrap();
    let (ended, running) = pipe2(OFlag::O_CLOEXEC).unwrap();
    let stop = Arc::new(EventFd::from_flags(EfdFlags::EFD_NONBLOCK).unwrap());
    let permits = Permits::new(1);
    let permit = permits.take().unwrap();
    let relay = Relay { connection, end: Arc::new(end), stop: stop.clone(), ended: Arc::new(ended), permit };
    relay.start(name).unwrap();
    monitor.set_read_timeout(Some(LIMIT)).unwrap();
    let mut answer = [0; 3];
    (&monitor).read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"ok\n");
    Around { monitor, process: process.into(), stop, running: Some(running), permits }
}

/// Writes until nothing more is taken; returns the bytes written.
fn fill(mut sink: impl Write + AsFd) -> usize {
    set_nonblocking(&sink).unwrap();
    let (block, mut taken) = ([7; 4096], 0);
    loop {
        match sink.write(&block) {
            Ok(count) => taken += count,
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                // The relay may just be about to make room.
                let soon = Instant::now() + Duration::from_millis(200);
                if wait([watch(&sink, libc::POLLOUT)], Some(soon)).unwrap() == [NOTHING] {
                    return taken;
                }
            }
            Err(error) => panic!("{error}"),
        }
    }
}

fn wait_for_permit(permits: &Permits) {
    let start = Instant::now();
    while permits.take().is_none() {
        assert!(start.elapsed() < LIMIT, "the relay stays");
        thread::yield_now();
    }
}

#[test]
fn a_stalled_monitor_makes_the_process_wait_and_loses_nothing() {
    let Around { mut monitor, process, running, permits, .. } = start(StreamName::Stdout);
    let written = fill(&process);
    // A pipe, a buffer, and what the connection holds.
    assert!((64 << 10..1 << 20).contains(&written), "{written}");
    // Long after the process has ended, it is all there.
    drop((process, running));
    let mut read = Vec::new();
    monitor.read_to_end(&mut read).unwrap();
    assert_eq!(read.len(), written);
    drop(monitor);
    wait_for_permit(&permits);
}

#[test]
fn other_holders_of_the_pipe_do_not_hold_the_stream() {
    let Around { mut monitor, mut process, running, .. } = start(StreamName::Stdout);
    process.write_all(b"mine").unwrap();
    let begin = Instant::now();
    drop(running);
    let mut read = String::new();
    monitor.read_to_string(&mut read).unwrap();
    assert_eq!(read, "mine");
    assert!(begin.elapsed() >= DRAIN_LIMIT, "others have some time");
    assert_eq!(process.write(b"x").unwrap_err().kind(), ErrorKind::BrokenPipe);
}

#[test]
fn a_monitor_that_is_gone_is_a_closed_pipe() {
    let Around { monitor, mut process, permits, running: _running, .. } = start(StreamName::Stdout);
    drop(monitor);
    wait_for_permit(&permits);
    assert_eq!(process.write(b"x").unwrap_err().kind(), ErrorKind::BrokenPipe);
}

#[test]
fn a_stalled_stream_does_not_delay_the_end_of_an_instance() {
    for name in [StreamName::Stdout, StreamName::Stdin] {
        let Around { monitor, process, stop, permits, .. } = start(name);
        // Neither side reads.
        if name == StreamName::Stdin {
            fill(&monitor)
        } else {
            fill(&process)
        };
        stop.write(1).unwrap();
        wait_for_permit(&permits);
    }
}

#[test]
fn input_arrives_with_its_end() {
    let Around { mut monitor, mut process, .. } = start(StreamName::Stdin);
    monitor.write_all(b"all of it").unwrap();
    // The monitor is gone before anything has read it.
    drop(monitor);
    let mut text = String::new();
    process.read_to_string(&mut text).unwrap();
    assert_eq!(text, "all of it");
}

#[test]
fn input_without_a_reader_is_refused() {
    let Around { mut monitor, process, permits, .. } = start(StreamName::Stdin);
    drop(process);
    wait_for_permit(&permits);
    assert_eq!(monitor.write(b"x").unwrap_err().kind(), ErrorKind::BrokenPipe);
    assert_eq!(monitor.read(&mut [0]).unwrap(), 0);
}
