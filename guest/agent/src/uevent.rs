//! Waiting for the kernel to announce device changes, without polling and without missing one.
//!
//! A waiter never looks at an announcement's content. It checks its condition in sysfs; if that does not hold yet, it
//! sleeps until *anything* has been announced since before the check. Lost announcements (a full socket buffer) count as
//! one more announcement.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, setsockopt, socket, sockopt,
};

use crate::error::{AgentError, Result};
use crate::sync::{Condvar, Mutex};

/// Netlink group of the kernel's own announcements, as opposed to udev's.
const KERNEL_GROUP: u32 = 1;
/// Time between two looks at what need not be announced.
const UNANNOUNCED: Duration = Duration::from_millis(100);
/// A burst: 256 memory blocks going online are about 40 KiB.
const RECEIVE_BUFFER: usize = 1 << 20;

/// Counts announcements.
#[derive(Debug, Default)]
pub struct Uevents {
    count: Mutex<u64>,
    announced: Condvar,
}

impl Uevents {
    /// Subscribes, and starts the thread that counts.
    ///
    /// # Errors
    /// The system has no socket or no thread.
    pub fn start() -> io::Result<Arc<Self>> {
        let socket =
            socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkKObjectUEvent)?;
        // Without the privilege to raise it the default stays; a loss is detected.
        let _ = setsockopt(&socket, sockopt::RcvBufForce, &RECEIVE_BUFFER);
        bind(socket.as_raw_fd(), &NetlinkAddr::new(0, KERNEL_GROUP))?;
        let uevents = Arc::new(Self::default());
        let counting = Arc::clone(&uevents);
        std::thread::Builder::new().name("uevents".into()).spawn(move || counting.run(&socket))?;
        Ok(uevents)
    }

    fn run(&self, socket: &OwnedFd) {
        let mut message = [0_u8; 1];
        loop {
            match recv(socket.as_raw_fd(), &mut message, MsgFlags::MSG_TRUNC) {
                Ok(_) | Err(Errno::ENOBUFS) => self.announce(),
                Err(Errno::EINTR) => {}
                Err(error) => {
                    tracing::error!(%error, "cannot read uevents any more");
                    return;
                }
            }
        }
    }

    /// Wakes all waiters for another look.
    pub fn announce(&self) {
        *self.count.lock() += 1;
        self.announced.notify_all();
    }

    /// Calls `check` now and after announcements until it has a value.
    ///
    /// # Errors
    /// Errors of `check`; [`AgentError::TimedOut`] with `what` if it has no value after `limit`.
    pub fn wait_until<T>(
        &self,
        limit: Duration,
        what: impl FnOnce() -> String,
        mut check: impl FnMut() -> Result<Option<T>>,
    ) -> Result<T> {
        let deadline = Instant::now().checked_add(limit);
        loop {
            let seen = *self.count.lock();
            if let Some(value) = check()? {
                return Ok(value);
            }
            let mut count = self.count.lock();
            while *count == seen {
                let left =
                    deadline.map_or(Duration::MAX, |deadline| deadline.saturating_duration_since(Instant::now()));
                if left.is_zero() {
                    return Err(AgentError::TimedOut { what: what(), after: limit });
                }
                count = self.announced.wait_timeout(count, left);
            }
        }
    }

    /// The same for what need not be announced: `check` is also called each tenth of a second.
    ///
    /// # Errors
    /// As for [`Uevents::wait_until`].
    pub fn watch_until<T>(
        &self,
        limit: Duration,
        what: impl Fn() -> String,
        mut check: impl FnMut() -> Result<Option<T>>,
    ) -> Result<T> {
        let deadline = Instant::now() + limit;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.wait_until(left.min(UNANNOUNCED), &what, &mut check) {
                Err(AgentError::TimedOut { .. }) if left > UNANNOUNCED => {}
                Err(AgentError::TimedOut { what, .. }) => return Err(AgentError::TimedOut { what, after: limit }),
                result => return result,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_waiter_looks_again_after_each_announcement() {
        let uevents = Arc::new(Uevents::default());
        let announcer = Arc::clone(&uevents);
        let mut looks = 0;
        let value = uevents.wait_until(
            Duration::from_secs(30),
            || "value".into(),
            || {
                looks += 1;
                if looks == 3 {
                    return Ok(Some(42));
                }
                // An announcement between the look and the sleep must not be missed.
                announcer.announce();
                Ok(None)
            },
        );
        assert_eq!(value.unwrap(), 42);
        assert_eq!(looks, 3);
    }

    #[test]
    fn a_time_out_names_the_missing_value() {
        let uevents = Uevents::default();
        let result = uevents.wait_until(Duration::from_millis(5), || "driver".into(), || Ok(None::<()>));
        assert_eq!(result.unwrap_err().to_string(), "no driver after 5 ms");
    }

    #[test]
    fn a_failed_look_ends_the_wait() {
        let result = Uevents::default().wait_until(Duration::from_secs(30), String::new, || {
            Err::<Option<()>, _>(AgentError::Unsupported("sysfs"))
        });
        assert!(matches!(result, Err(AgentError::Unsupported("sysfs"))));
    }
}
