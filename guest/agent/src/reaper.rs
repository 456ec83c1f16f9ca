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

use std::collections::HashMap;
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
    /// How many expect a child that they do not know yet.
    expecting: usize,
    /// Statuses of children that nobody watched, while somebody expects one. Only direct children are here: orphans of a
    /// container go to its own first process.
    unclaimed: HashMap<i32, i32>,
}

/// The right to a child that another process makes.
#[derive(Debug)]
pub struct Expected<'a> {
    reaper: &'a Reaper,
}

impl Expected<'_> {
    /// Watches child `pid`, which was made after [`Reaper::expect`].
    pub fn watch(&self, pid: Pid) -> Arc<Exit> {
        let exit = Arc::<Exit>::default();
        let mut state = self.reaper.state.lock();
        match state.unclaimed.remove(&pid.as_raw()) {
            Some(code) => exit.set(code),
            None => drop(state.watched.insert(pid.as_raw(), Arc::clone(&exit))),
        }
        exit
    }
}

impl Drop for Expected<'_> {
    fn drop(&mut self) {
        let mut state = self.reaper.state.lock();
        state.expecting -= 1;
        if state.expecting == 0 {
            state.unclaimed = HashMap::new();
        }
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
        self.state.lock().expecting += 1;
        Expected { reaper: self }
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
            None if state.expecting > 0 => drop(state.unclaimed.insert(pid.as_raw(), code)),
            None => tracing::debug!(%pid, code, "orphan ended"),
        }
    }
}
