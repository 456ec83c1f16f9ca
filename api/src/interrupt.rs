//! Signals. A running program gets them and has some time to end. Before and after it, a signal stops the VM and removes its
//! files; an import ends and leaves nothing behind.

use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use bellows_block::Cancel;
use bellows_vmm::{BuildError, Vm, VmBuilder, VmStopper};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::unistd::getpid;

use crate::exit::Failure;
use crate::terminal;

/// Signals that end a run.
const ENDING: [Signal; 4] = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGQUIT];
/// Signals that are only passed on to a program.
const OTHERS: [Signal; 2] = [Signal::SIGUSR1, Signal::SIGUSR2];
/// Wakes the thread that waits for signals.
const WAKING: Signal = Signal::SIGURG;
/// Time for a killed program to end, with its output passed on, before the VM is stopped.
const KILL_LIMIT: Duration = Duration::from_secs(10);
/// Time for the rest to end once the VM is stopped: unread output could block it for ever.
const STOP_LIMIT: Duration = Duration::from_secs(5);

/// The target of a signal.
#[derive(Clone, Default)]
pub(crate) struct Interrupts {
    shared: Arc<Shared>,
}

struct Shared {
    state: Mutex<State>,
    /// The program has ended.
    ended: Condvar,
    /// The thread that waits for signals, once they are taken over.
    waiting: Mutex<Waiting>,
    kill_limit: Duration,
    stop_limit: Duration,
    /// Ends this process.
    exit: fn(i32),
}

#[derive(Default)]
struct Waiting {
    signals: Option<SigSet>,
    thread: Option<JoinHandle<()>>,
    /// The thread is to end.
    ends: bool,
}

#[derive(Default)]
struct State {
    /// VMs are being made or run: they must be ended first.
    booting: usize,
    vms: Vec<VmStopper>,
    /// Ends the import.
    import: Option<Cancel>,
    /// Ends a server, which has a socket to remove.
    server: Option<Box<dyn Fn() + Send>>,
    /// A program that gets signals until it has ended and its output is passed on.
    program: Option<Program>,
    received: Option<u8>,
}

struct Program {
    send: Arc<dyn Fn(Signal) + Send + Sync>,
    /// Its time to end.
    limit: Duration,
    /// Whether it was asked to end.
    asked: bool,
}

/// A server that a signal ends as long as this is kept.
pub(crate) struct Serving(Interrupts);

/// A program that gets signals as long as this is kept.
pub(crate) struct PassingOn(Interrupts);

impl Interrupts {
    /// Takes over the signals for this process. Call it before any other thread is made.
    ///
    /// # Errors
    /// The system refused the signals, or the thread that waits for them.
    pub(crate) fn install() -> io::Result<Self> {
        let mut signals = SigSet::empty();
        let ignored = std::fs::read_to_string("/proc/self/status").is_ok_and(|status| ignores_hangup(&status));
        // nohup(1) may ignore SIGHUP.
        let wanted = ENDING.into_iter().chain(OTHERS).filter(|&signal| signal != Signal::SIGHUP || !ignored);
        wanted.chain([WAKING]).for_each(|signal| signals.add(signal));
        signals.thread_block()?;
        // A file that grows beyond the limit (RLIMIT_FSIZE) is an error of the write then, and no end of the process.
        SigSet::from(Signal::SIGXFSZ).thread_block()?;
        let interrupts = Self::default();
        interrupts.waiting().signals = Some(signals);
        interrupts.wait()?;
        Ok(interrupts)
    }

    /// Does `work` while no thread waits for signals, so that what it does to its own thread counts for the one that waits afterwards, too.
    /// A signal that comes meanwhile is received then.
    ///
    /// # Errors
    /// The system refused the thread, or the signal that ends it.
    pub(crate) fn with_no_thread<T>(&self, work: impl FnOnce() -> T) -> io::Result<T> {
        let thread = {
            let mut waiting = self.waiting();
            waiting.ends = true;
            waiting.thread.take()
        };
        if let Some(thread) = thread {
            // All threads hold it back, but for the one that waits.
            kill(getpid(), WAKING)?;
            if thread.join().is_err() {
                tracing::error!("the thread that waits for signals panicked");
            }
        }
        let result = work();
        self.wait()?;
        Ok(result)
    }

    /// Starts the thread that waits for signals.
    fn wait(&self) -> io::Result<()> {
        let mut waiting = self.waiting();
        waiting.ends = false;
        let Some(signals) = waiting.signals else { return Ok(()) };
        let interrupts = self.clone();
        waiting.thread = Some(start_thread("signals", move || {
            loop {
                match signals.wait() {
                    Ok(WAKING) if interrupts.waiting().ends => return,
                    Ok(WAKING) | Err(nix::Error::EINTR) => {}
                    Ok(signal) => interrupts.receive(signal),
                    Err(error) => {
                        tracing::error!(%error, "cannot wait for signals any more");
                        return;
                    }
                }
            }
        })?);
        Ok(())
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.shared.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Boots a VM that a signal will stop.
    pub(crate) fn boot(&self, builder: VmBuilder) -> Result<Vm, BuildError> {
        self.state().booting += 1;
        let vm = builder.boot();
        let mut state = self.state();
        state.booting -= 1;
        if let Ok(vm) = &vm {
            let stopper = vm.stopper();
            if state.received.is_some() {
                stopper.stop();
            }
            state.vms.push(stopper);
        }
        vm
    }

    /// Runs `work`, which a signal ends through the [`Cancel`].
    pub(crate) fn import<T>(&self, import: impl FnOnce(Cancel) -> T) -> T {
        let cancel = Cancel::default();
        self.state().import = Some(cancel.clone());
        let result = import(cancel);
        self.state().import = None;
        result
    }

    /// From here on a signal calls `end`, which must not block, beside stopping VMs.
    pub(crate) fn serve(&self, end: impl Fn() + Send + 'static) -> Serving {
        self.state().server = Some(Box::new(end));
        Serving(self.clone())
    }

    /// From here on a program gets the signals, through `send`, which may block. If a signal has not ended it after
    /// `limit`, SIGKILL follows; a second signal stops the VM at once. Keep the result until the output is passed on.
    pub(crate) fn pass_on(&self, limit: Duration, send: impl Fn(Signal) + Send + Sync + 'static) -> PassingOn {
        self.state().program = Some(Program { send: Arc::new(send), limit, asked: false });
        PassingOn(self.clone())
    }

    /// The signal that ended something other than a program, if one did.
    pub(crate) fn received(&self) -> Option<u8> {
        self.state().received
    }

    fn receive(&self, signal: Signal) {
        let mut state = self.state();
        if state.received.is_none()
            && let Some(program) = &mut state.program
        {
            let (send, limit) = (program.send.clone(), program.limit);
            let ends = ENDING.contains(&signal);
            let first = ends && !program.asked;
            program.asked |= ends;
            if !ends || first {
                drop(state);
                self.spawn("signal", move || send(signal));
                if ends {
                    let interrupts = self.clone();
                    self.spawn("stop", move || interrupts.kill_after(limit, signal));
                }
                return;
            }
        }
        // Nothing to end, or a second signal.
        let idle = state.vms.is_empty() && state.booting == 0 && state.import.is_none() && state.server.is_none();
        if idle || state.received.is_some() {
            drop(state);
            return (self.shared.exit)(exit_code(signal));
        }
        self.stop(state, signal);
    }

    /// Kills the program unless it ends by itself.
    fn kill_after(&self, limit: Duration, signal: Signal) {
        if let Some(state) = self.still_there(self.state(), limit)
            && let Some(program) = &state.program
        {
            let send = program.send.clone();
            self.spawn("signal", move || send(Signal::SIGKILL));
            // The guest no longer responds, or the output has no reader.
            if let Some(state) = self.still_there(state, self.shared.kill_limit) {
                self.stop(state, signal);
            }
        }
    }

    /// Ends the current target.
    fn stop(&self, mut state: MutexGuard<'_, State>, signal: Signal) {
        state.received = Some(signal as u8);
        state.import.iter().for_each(Cancel::cancel);
        state.server.iter().for_each(|end| end());
        // Threads that wait for the guest now fail, and stop the VMs.
        state.vms.iter().for_each(VmStopper::stop);
        if state.program.is_some() {
            let shared = self.shared.clone();
            self.spawn("exit", move || {
                thread::sleep(shared.stop_limit);
                (shared.exit)(exit_code(signal));
            });
        }
    }

    /// Waits for the end of the program, but not for longer than `limit`.
    fn still_there<'a>(&'a self, state: MutexGuard<'a, State>, limit: Duration) -> Option<MutexGuard<'a, State>> {
        let there = |state: &mut State| state.program.is_some();
        let (state, wait) =
            self.shared.ended.wait_timeout_while(state, limit, there).unwrap_or_else(PoisonError::into_inner);
        wait.timed_out().then_some(state)
    }

    fn spawn(&self, name: &str, work: impl FnOnce() + Send + 'static) {
        if let Err(error) = start_thread(name, work) {
            tracing::error!(%error, "cannot pass a signal on to the program");
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for Shared {
    fn default() -> Self {
        Self {
            state: Mutex::default(),
            ended: Condvar::new(),
            waiting: Mutex::default(),
            kill_limit: KILL_LIMIT,
            stop_limit: STOP_LIMIT,
            exit: |code| {
                terminal::restore();
                std::process::exit(code)
            },
        }
    }
}

impl Drop for PassingOn {
    fn drop(&mut self) {
        self.0.state().program = None;
        self.0.shared.ended.notify_all();
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        // Outside the lock, for the server's VM may go with it.
        let server = self.0.state().server.take();
        drop(server);
    }
}

fn exit_code(signal: Signal) -> i32 {
    Failure::Signal(signal as u8).exit_code(true).into()
}

fn start_thread(name: &str, work: impl FnOnce() + Send + 'static) -> io::Result<JoinHandle<()>> {
    thread::Builder::new().name(name.into()).stack_size(256 << 10).spawn(work)
}

/// Whether a process with this `/proc/PID/status` ignores SIGHUP.
fn ignores_hangup(status: &str) -> bool {
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    mask.is_some_and(|mask| mask & 1 << (Signal::SIGHUP as u64 - 1) != 0)
}

#[cfg(test)]
#[path = "interrupt_test.rs"]
mod tests;
