//! The only place that waits for processes.
//!
//! PID 1 inherits every orphan, so it must wait for *any* child; but that steals the exit status of a child that other
//! code waits for by number. So one thread does all the waiting and hands out statuses by number.
//!
//! - It first only peeks (`WNOWAIT`), then takes the lock, then collects exactly the process it saw. [`Reaper::spawn`]
//!   holds that lock, so a child whose `exec` failed is still there for the standard library to collect.
//! - A process is collected under the lock, so its number stays its own while the lock is held: [`Reaper::signal`] cannot
//!   hit a stranger.
//! - Without children the wait would not block; the thread then sleeps until the next [`Reaper::spawn`]. Orphans can only
//!   come from a living descendant, hence while there is a child.

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid, waitpid};
use nix::unistd::Pid;

use crate::sync::{Condvar, Mutex};

/// The exit of a process, once it has ended.
#[derive(Debug, Default)]
pub struct Exit {
    code: Mutex<Option<i32>>,
    changed: Condvar,
}

impl Exit {
    /// The exit code, or 128 + the number of the signal that ended it; `None` while it runs.
    pub fn get(&self) -> Option<i32> {
        *self.code.lock()
    }

    /// Blocks until it has ended.
    pub fn wait(&self) -> i32 {
        let mut code = self.code.lock();
        loop {
            match *code {
                Some(code) => return code,
                None => code = self.changed.wait(code),
            }
        }
    }

    /// Blocks until it has ended, for at most `limit`.
    pub fn wait_for(&self, limit: Duration) -> Option<i32> {
        let deadline = Instant::now() + limit;
        let mut code = self.code.lock();
        while code.is_none() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            code = self.changed.wait_timeout(code, left);
        }
        *code
    }

    fn set(&self, code: i32) {
        *self.code.lock() = Some(code);
        self.changed.notify_all();
    }
}

/// Waits for all children of this process.
#[derive(Debug, Default)]
pub struct Reaper {
    state: Mutex<State>,
    spawned: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// Counts children started here.
    spawns: u64,
    watched: HashMap<i32, Arc<Exit>>,
    /// Number of the last expectation of a child that is not known yet, and all that are still there.
    last: u64,
    expecting: BTreeSet<u64>,
    /// Statuses of children that nobody watched, each with the last expectation at that time. Only direct children are here:
    /// orphans of a container go to its own first process.
    unclaimed: HashMap<i32, (i32, u64)>,
}

impl State {
    fn expect(&mut self) -> u64 {
        self.last += 1;
        self.expecting.insert(self.last);
        self.last
    }

    /// Ends an expectation, and drops the statuses that none of the others can be about.
    fn expect_no_more(&mut self, number: u64) {
        self.expecting.remove(&number);
        match self.expecting.first() {
            Some(&oldest) => self.unclaimed.retain(|_, (_, last)| *last >= oldest),
            None => self.unclaimed = HashMap::new(),
        }
    }

    /// Keeps the status of a child that nobody watches, if it may be an expected one.
    fn keep(&mut self, pid: Pid, code: i32) {
        if self.expecting.is_empty() {
            tracing::debug!(%pid, code, "orphan ended");
        } else {
            self.unclaimed.insert(pid.as_raw(), (code, self.last));
        }
    }
}

/// The right to a child that another process makes.
#[derive(Debug)]
pub struct Expected<'a> {
    reaper: &'a Reaper,
    number: u64,
}

impl Expected<'_> {
    /// Watches child `pid`, which was made after [`Reaper::expect`].
    pub fn watch(&self, pid: Pid) -> Arc<Exit> {
        let exit = Arc::<Exit>::default();
        let mut state = self.reaper.state.lock();
        match state.unclaimed.remove(&pid.as_raw()) {
            Some((code, _)) => exit.set(code),
            None => drop(state.watched.insert(pid.as_raw(), Arc::clone(&exit))),
        }
        exit
    }
}

impl Drop for Expected<'_> {
    fn drop(&mut self) {
        self.reaper.state.lock().expect_no_more(self.number);
    }
}

impl Reaper {
    /// Starts the waiting thread. From now on no other code of this process may wait for children.
    ///
    /// # Errors
    /// The thread could not be started.
    pub fn start() -> io::Result<Arc<Self>> {
        let reaper = Arc::new(Self::default());
        let waiting = Arc::clone(&reaper);
        std::thread::Builder::new().name("reaper".into()).spawn(move || waiting.run())?;
        Ok(reaper)
    }

    /// Starts a child and watches it.
    ///
    /// # Errors
    /// Those of [`Command::spawn`].
    pub fn spawn(&self, command: &mut Command) -> io::Result<(Pid, Arc<Exit>)> {
        let mut state = self.state.lock();
        let child = command.spawn();
        state.spawns += 1;
        self.spawned.notify_all();
        let pid = i32::try_from(child?.id()).map_err(io::Error::other)?;
        let exit = Arc::default();
        state.watched.insert(pid, Arc::clone(&exit));
        Ok((Pid::from_raw(pid), exit))
    }

    /// Keeps the statuses of children that nobody watches, until this is dropped: one of them will be watched by
    /// [`Expected::watch`], and may have ended before its number is known here.
    pub fn expect(&self) -> Expected<'_> {
        let number = self.state.lock().expect();
        Expected { reaper: self, number }
    }

    /// Sends a signal to a watched process; one that has ended ignores it.
    ///
    /// # Errors
    /// Those of `kill(2)`.
    pub fn signal(&self, pid: Pid, signal: Signal) -> nix::Result<()> {
        let state = self.state.lock();
        if state.watched.contains_key(&pid.as_raw()) { kill(pid, signal) } else { Ok(()) }
    }

    fn run(&self) {
        loop {
            let spawns = self.state.lock().spawns;
            match waitid(Id::All, WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT) {
                Ok(status) => {
                    if let Some(pid) = status.pid() {
                        self.collect(pid);
                    }
                }
                Err(Errno::EINTR) => {}
                Err(error) => {
                    if error != Errno::ECHILD {
                        tracing::error!(%error, "cannot wait for children");
                    }
                    let mut state = self.state.lock();
                    while state.spawns == spawns {
                        state = self.spawned.wait(state);
                    }
                }
            }
        }
    }

    fn collect(&self, pid: Pid) {
        let mut state = self.state.lock();
        let code = match waitpid(pid, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(_, code)) => code,
            Ok(WaitStatus::Signaled(_, signal, _)) => 128 + signal as i32,
            // Already collected: a child whose `exec` failed.
            _ => return,
        };
        match state.watched.remove(&pid.as_raw()) {
            Some(exit) => exit.set(code),
            None => state.keep(pid, code),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_child_that_has_ended_before_it_is_watched_is_not_missed() {
        let reaper = Reaper::default();
        let expected = reaper.expect();
        reaper.state.lock().keep(Pid::from_raw(7), 3);
        assert_eq!(expected.watch(Pid::from_raw(7)).get(), Some(3));
        assert_eq!(expected.watch(Pid::from_raw(8)).get(), None);
        assert!(reaper.state.lock().watched.contains_key(&8));
    }

    #[test]
    fn statuses_are_kept_for_those_alone_who_may_want_them() {
        let mut state = State::default();
        state.keep(Pid::from_raw(1), 0);
        assert!(state.unclaimed.is_empty(), "nobody expects one");
        let first = state.expect();
        state.keep(Pid::from_raw(2), 0);
        let second = state.expect();
        state.keep(Pid::from_raw(3), 0);
        // Children of the time before the second are of no use to it.
        state.expect_no_more(first);
        assert_eq!(state.unclaimed.keys().collect::<Vec<_>>(), [&3]);
        let third = state.expect();
        state.expect_no_more(second);
        assert!(state.unclaimed.is_empty());
        state.expect_no_more(third);
    }
}
