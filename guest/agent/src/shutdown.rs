//! The end of the guest, in good order.

use std::fs::OpenOptions;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::sync::Arc;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::reboot::{RebootMode, reboot};

use crate::image::Images;
use crate::instance::Instances;
use crate::sys;

/// Time for which the monitor may keep the connection after its answer, in milliseconds.
const ANSWER_LIMIT: u16 = 500;

/// Ends the guest once the monitor has its answer and closes `connection`, or after some time.
///
/// # Errors
/// No descriptor or no thread is left.
pub fn begin(connection: RawFd, instances: Arc<Instances>, images: Arc<Images>) -> io::Result<()> {
    // The library keeps the connection open while it answers a request; this call is part of one.
    let connection = sys::duplicate(connection)?;
    std::thread::Builder::new().name("shutdown".into()).spawn(move || end(&connection, &instances, &images))?;
    Ok(())
}

fn end(connection: &OwnedFd, instances: &Instances, images: &Images) {
    instances.remove_all();
    images.unmount_all();
    nix::unistd::sync();
    let timeout = PollTimeout::from(ANSWER_LIMIT);
    // The guest ends in any case.
    let _ = poll(&mut [PollFd::new(connection.as_fd(), PollFlags::from_bits_retain(libc::POLLRDHUP))], timeout);
    stop_machine();
}

/// Turns the machine off, or resets it if the kernel could only halt: a halted guest would stay for ever.
pub fn stop_machine() {
    let mode = if supports_soft_off(&kernel_log()) { RebootMode::RB_POWER_OFF } else { RebootMode::RB_AUTOBOOT };
    let Err(error) = reboot(mode);
    tracing::error!(%error, ?mode, "cannot end the guest");
    let Err(error) = reboot(RebootMode::RB_AUTOBOOT);
    tracing::error!(%error, "cannot end the guest");
}

fn kernel_log() -> String {
    let Ok(mut log) = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open("/dev/kmsg") else {
        return String::new();
    };
    // A read gives one record; the log's ring is far smaller than this many.
    const MAX_RECORDS: usize = 100_000;
    let mut text = String::new();
    let mut record = [0; 8192];
    for _ in 0..MAX_RECORDS {
        match log.read(&mut record) {
            Ok(0) => break,
            Ok(count) => {
                let line = String::from_utf8_lossy(&record[..count]);
                if line.contains(SLEEP_STATES) {
                    text.push_str(&line);
                }
            }
            // EPIPE: the record was overwritten; the next read goes on behind it.
            Err(error) if error.raw_os_error() == Some(libc::EPIPE) => {}
            Err(_) => break,
        }
    }
    text
}

/// ACPI's line about its abilities in the log (`drivers/acpi/sleep.c`). No file has them.
const SLEEP_STATES: &str = "PM: (supports";

fn supports_soft_off(log: &str) -> bool {
    log.lines().any(|line| {
        line.split_once(SLEEP_STATES).is_some_and(|(_, states)| states.split([' ', ')']).any(|state| state == "S5"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_log_says_whether_the_machine_can_be_turned_off() {
        assert!(supports_soft_off("6,1,2,-;ACPI: PM: (supports S0 S5)\n"));
        assert!(!supports_soft_off("6,1,2,-;ACPI: PM: (supports S0)\n"));
        assert!(!supports_soft_off("6,1,2,-;S5\n"));
        assert!(!supports_soft_off(""));
    }
}
