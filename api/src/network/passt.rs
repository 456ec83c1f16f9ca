//! The process of passt.

use std::io::{self, BufRead as _, BufReader, Read};
use std::os::fd::{AsRawFd as _, RawFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::process::{Child, ChildStderr, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use bellows_vmm::MacAddress;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};

use super::plan::Plan;
use super::{guest_mac, probe};
use crate::error::{CliError, io_error};
use crate::output::say;

const PROGRAM: &str = "passt";
/// User and group that passt drops root's rights for: nobody and nogroup.
const NOBODY: &str = "65534:65534";
/// Longest line of passt's that is passed on.
const MAX_LINE: u64 = 1024;

/// A passt that serves one VM, and ends with it: at the latest when this is dropped, or the process ends in any way, because the
/// stream is closed then.
pub(crate) struct Passt {
    /// The VM's end of the stream, which has a copy.
    stream: UnixStream,
    process: Arc<Mutex<Process>>,
    /// What it says, as long as nobody listens.
    stderr: Option<ChildStderr>,
    /// Waits for passt's end.
    watcher: Option<JoinHandle<()>>,
}

struct Process {
    child: Child,
    /// The last line that it said.
    last: String,
    /// Its end is no surprise.
    ending: bool,
}

impl Passt {
    /// Starts it, and waits until it answers, for as long as `limit` at most.
    ///
    /// # Errors
    /// There is no such program, or it ends, with its own words.
    pub(super) fn start(plan: &Plan, limit: Duration) -> Result<Self, CliError> {
        let (ours, theirs) = UnixStream::pair().map_err(io_error("make a socket for", PROGRAM))?;
        let mut child = spawn(plan, &theirs)?;
        drop(theirs);
        let stderr = child.stderr.take();
        let process = Arc::new(Mutex::new(Process { child, last: String::new(), ending: true }));
        // From here on its end is seen to.
        let passt = Self { stream: ours, process, stderr, watcher: None };
        let answer = match plan.addresses.first() {
            Some(addresses) => probe::ask(&passt.stream, guest_mac(), addresses, limit),
            None => Ok(()),
        };
        match answer {
            Ok(()) => {
                // An end that came just now is found by the VM's interface, at the latest.
                passt.process().ending = false;
                Ok(passt)
            }
            Err(error) => Err(passt.refusal(error)),
        }
    }

    /// Has a thread pass on what it says from here on, and wait for its end. Call it once all is settled that threads have in common.
    ///
    /// # Errors
    /// The system has no thread.
    pub(crate) fn watch(&mut self) -> Result<(), CliError> {
        let (watched, stderr) = (self.process.clone(), self.stderr.take());
        let watcher = thread::Builder::new().name(PROGRAM.into()).spawn(move || watch(&watched, stderr));
        self.watcher = Some(watcher.map_err(io_error("make the thread of", PROGRAM))?);
        Ok(())
    }

    /// The VM's end of the stream, as long as this is kept.
    pub(super) fn descriptor(&self) -> RawFd {
        self.stream.as_raw_fd()
    }

    /// The number of its process.
    pub(crate) fn process_id(&self) -> u32 {
        self.process().child.id()
    }

    /// Has programs that this process starts from here on inherit the VM's end of the stream.
    ///
    /// # Errors
    /// The system's.
    pub(crate) fn bequeath(&self) -> Result<(), CliError> {
        inherit(&self.stream)
    }

    /// Leaves it to the programs that have inherited the VM's end of the stream: it ends with the last of them.
    pub(crate) fn leave(self) {
        self.process().ending = true;
        // Their copies are the same stream, which must not be shut down.
        std::mem::forget(self);
    }

    /// Why it did not answer.
    fn refusal(mut self, error: io::Error) -> CliError {
        let timed_out = error.kind() == io::ErrorKind::WouldBlock;
        let status = self.end();
        let message = std::mem::take(&mut self.process().last);
        match status {
            Some(status) if !timed_out && !message.is_empty() => {
                CliError::Program { program: PROGRAM, status, message }
            }
            _ => io_error("get an answer from", PROGRAM)(error),
        }
    }

    /// Ends it, unless it has ended, and waits for that.
    fn end(&mut self) -> Option<ExitStatus> {
        let _ = self.stream.shutdown(std::net::Shutdown::Both);
        let mut process = self.process();
        process.ending = true;
        // One that ends by itself may still have something to say, and be in the middle of it.
        let _ = process.child.kill();
        drop(process);
        match self.watcher.take() {
            Some(watcher) => drop(watcher.join()),
            None => watch(&self.process, self.stderr.take()),
        }
        self.process().child.try_wait().ok().flatten()
    }

    fn process(&self) -> MutexGuard<'_, Process> {
        lock(&self.process)
    }
}

impl Drop for Passt {
    fn drop(&mut self) {
        self.end();
    }
}

fn lock(process: &Mutex<Process>) -> MutexGuard<'_, Process> {
    process.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Starts passt with its end of the stream, which is for no other program.
fn spawn(plan: &Plan, stream: &UnixStream) -> Result<Child, CliError> {
    // So would another program that this process started meanwhile; it starts none.
    inherit(stream)?;
    let user = nix::unistd::geteuid().is_root().then_some(NOBODY);
    let arguments = plan.arguments(stream.as_raw_fd(), gateway_mac(), user);
    let mut command = Command::new(PROGRAM);
    // A process group of its own: Ctrl-C is for the command in the VM, which may still need its network.
    command.args(arguments).process_group(0).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    command.spawn().map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => CliError::NoPasst,
        _ => io_error("start", PROGRAM)(error),
    })
}

/// Has programs that are started from here on inherit `stream`.
fn inherit(stream: &UnixStream) -> Result<(), CliError> {
    let set = fcntl(stream, FcntlArg::F_SETFD(FdFlag::empty()));
    set.map(drop).map_err(|error| io_error("pass on the socket of", PROGRAM)(error.into()))
}

/// passt's own hardware address.
fn gateway_mac() -> MacAddress {
    MacAddress::derived(PROGRAM, "gateway")
}

/// Reads what passt says until it ends, and says so if nobody wanted that.
fn watch(process: &Mutex<Process>, stderr: Option<ChildStderr>) {
    if let Some(stderr) = stderr {
        listen(stderr, |line| {
            tracing::debug!(line, "passt");
            line.clone_into(&mut lock(process).last);
        });
    }
    let mut process = lock(process);
    // It has closed its standard error, so it is ending.
    let _ = process.child.kill();
    let status = process.child.wait();
    if !process.ending {
        let how = status.map_or_else(|error| error.to_string(), |status| status.to_string());
        let last = if process.last.is_empty() { String::new() } else { format!(": {}", process.last) };
        say(format_args!("passt has ended ({how}){last}; the VM goes on without its network"));
    }
}

/// Calls `heard` with every line that says something.
fn listen(stderr: impl Read, mut heard: impl FnMut(&str)) {
    let mut stderr = BufReader::new(stderr);
    let mut line = Vec::new();
    loop {
        line.clear();
        match (&mut stderr).take(MAX_LINE).read_until(b'\n', &mut line) {
            Ok(0) | Err(_) => return,
            Ok(_) => {}
        }
        let text = String::from_utf8_lossy(&line);
        let text = text.trim();
        // Without a system logger it complains about every line.
        if !text.is_empty() && !text.starts_with("Failed to send") && !text.starts_with("Don't run as root") {
            heard(text);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::super::host::{NameServers, Routes};
    use super::*;

    const PATIENCE: Duration = Duration::from_secs(60);

    /// A passt with ports; `None` if this machine has none, or passt nothing to work with.
    fn passt(ports: &[String]) -> Option<Result<Passt, CliError>> {
        let read = |path| std::fs::read_to_string(path).unwrap_or_default();
        let routes = Routes::parse(&read("/proc/net/route"), &read("/proc/net/ipv6_route"));
        let ports = ports.iter().map(|text| text.parse().unwrap()).collect();
        let plan = Plan::new(routes, &NameServers::default(), ports, false)?;
        match Passt::start(&plan, PATIENCE) {
            Err(CliError::NoPasst) => None,
            started => Some(started),
        }
    }

    #[test]
    fn passt_answers_for_as_long_as_it_is_kept() {
        let Some(started) = passt(&[]) else { return };
        let passt = started.unwrap();
        let watched = passt.process.clone();
        assert_eq!(lock(&watched).child.try_wait().unwrap(), None);
        drop(passt);
        assert!(lock(&watched).child.try_wait().unwrap().is_some());
    }

    #[test]
    fn what_passt_refuses_is_said_in_its_words() {
        let taken = ["0.0.0.0", "[::]"].map(|address| TcpListener::bind(format!("{address}:0")).ok());
        let Some(port) = taken[0].as_ref().map(|listener| listener.local_addr().unwrap().port()) else { return };
        let port = format!("0.0.0.0:{port}:80");
        let Some(started) = passt(&[port]) else { return };
        let error = started.err().unwrap().chain();
        assert!(error.contains("`passt` failed") && error.contains("ailed to bind"), "{error}");
    }

    #[test]
    fn a_passt_that_ends_by_itself_is_noticed() {
        let Some(started) = passt(&[]) else { return };
        let mut passt = started.unwrap();
        passt.watch().unwrap();
        passt.process().child.kill().unwrap();
        // The watcher ends with it, and the VM's end of the stream is at its end.
        passt.watcher.take().unwrap().join().unwrap();
        assert_eq!((&passt.stream).read(&mut [0]).unwrap(), 0);
    }

    #[test]
    fn what_passt_says_is_heard_line_by_line() {
        let said = "Don't run as root. Changing to nobody...\nFailed to send 47 bytes to syslog\n\n  Failed to bind port 80 \nlast";
        let mut heard = Vec::new();
        listen(said.as_bytes(), |line| heard.push(line.to_owned()));
        assert_eq!(heard, ["Failed to bind port 80", "last"]);
        heard.clear();
        listen("x".repeat(3000).as_bytes(), |line| heard.push(line.to_owned()));
        assert_eq!(heard.iter().map(String::len).collect::<Vec<_>>(), [1024, 1024, 952]);
    }
}
