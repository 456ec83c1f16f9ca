//! Another process in an instance, with its output as one answer.

use std::io::{Cursor, Read};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use bellows_vmm::{InstanceError, Process, ProcessId, ProcessSpec, Stdio, StreamName};

use super::bodies::{Exec, Executed};
use super::host::{LIMIT, of_instance, variables};
use super::table::Entry;
use crate::rest::fault::Fault;

/// Most bytes of each stream in an answer.
const MOST: usize = 1 << 20;

/// Numbers of processes, which are never used again.
static NEXT: AtomicU64 = AtomicU64::new(1);

/// The process of a request, for who has to end it early.
#[derive(Default)]
pub(crate) struct Running(Mutex<State>);

#[derive(Default)]
struct State {
    process: Option<Process>,
    is_unwanted: bool,
}

impl Running {
    /// Kills the process, or has it killed once it begins. Waits for the guest.
    pub(crate) fn end(&self) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.is_unwanted = true;
        if let Some(process) = state.process.take() {
            kill(&process);
        }
    }

    /// It has ended by itself.
    fn done(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).process = None;
    }

    fn begin(&self, process: &Process) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match state.is_unwanted {
            true => kill(process),
            false => state.process = Some(process.clone()),
        }
    }
}

pub(super) fn kill(process: &Process) {
    // It may have ended already.
    if let Err(error) = process.signal(9) {
        tracing::debug!(%error, process = %process.id(), "a process is not killed");
    }
}

/// Runs a process until it ends, or `running` is ended.
pub(crate) fn run(entry: &Entry, wanted: &Exec, running: &Running) -> Result<Executed, Fault> {
    let (process, stdio) = start(entry, wanted)?;
    running.begin(&process);
    let executed = attend(&process, stdio, wanted);
    if let Err(error) = process.remove(LIMIT) {
        tracing::debug!(%error, process = %process.id(), "a process is not removed");
    }
    running.done();
    executed.map_err(of_instance)
}

/// Starts the process; returns it with the kind of its streams.
pub(super) fn start(entry: &Entry, wanted: &Exec) -> Result<(Process, Stdio), Fault> {
    let instance = &entry.started()?.instance;
    let spec = spec(entry, wanted)?;
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let id: ProcessId = format!("exec-{number}").parse().map_err(|error: bellows_vmm::ValueError| Fault::of(&error))?;
    let process = instance.exec(id, &spec).map_err(of_instance)?;
    Ok((process, spec.stdio))
}

fn spec(entry: &Entry, wanted: &Exec) -> Result<ProcessSpec, Fault> {
    if wanted.argv.is_empty() {
        return Err(Fault::value("argv", "empty", "a command"));
    }
    let image = entry.image.get().map(|image| &image.defaults);
    let mut spec = ProcessSpec::new(wanted.argv.clone());
    let inherited = image.map(|image| variables(&image.env, &entry.wanted.env)).transpose()?.unwrap_or_default();
    spec.env = variables(&inherited, &wanted.env)?;
    let first =
        |given: &[Option<&String>]| given.iter().flatten().next().map(|text| (*text).clone()).unwrap_or_default();
    spec.cwd = first(&[wanted.cwd.as_ref(), entry.wanted.cwd.as_ref(), image.map(|image| &image.working_dir)]);
    let user = first(&[wanted.user.as_ref(), entry.wanted.user.as_ref(), image.map(|image| &image.user)]);
    spec.user = user.parse().map_err(|error| Fault::of(&error))?;
    spec.stdio = match wanted.tty {
        Some(size) => Stdio::Terminal(size.into()),
        None => Stdio::Pipes { stdin: wanted.stdin.is_some() || wanted.open_stdin },
    };
    Ok(spec)
}

fn attend(process: &Process, stdio: Stdio, wanted: &Exec) -> Result<Executed, InstanceError> {
    let typed = Cursor::new(wanted.stdin.clone().unwrap_or_default().into_bytes());
    let (input, stdout, stderr) = match stdio {
        Stdio::Terminal(_) => {
            let mut terminal = process.connect(StreamName::Terminal)?;
            (Some(terminal.feed(typed)?), capture(&mut terminal), Ok((Vec::new(), false)))
        }
        Stdio::Pipes { stdin } => {
            let input = stdin.then(|| process.connect(StreamName::Stdin)?.feed(typed)).transpose()?;
            let [stdout, stderr] = [StreamName::Stdout, StreamName::Stderr].map(|name| process.connect(name));
            let (mut stdout, mut stderr) = (stdout?, stderr?);
            let (stdout, stderr) = std::thread::scope(|scope| {
                let errors = scope.spawn(move || capture(&mut stderr));
                (capture(&mut stdout), errors.join())
            });
            (input, stdout, stderr)
        }
    };
    let status = process.wait()?;
    // What it has not read is nobody's.
    drop(input);
    let (stderr, stderr_lost) = stderr.unwrap_or_default();
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    Ok(Executed {
        ended: status.into(),
        stdout: text(stdout.0),
        stderr: text(stderr),
        truncated: stdout.1 || stderr_lost,
    })
}

/// The beginning of a stream, and whether there was more, or it broke off.
pub(super) fn capture(stream: &mut impl Read) -> (Vec<u8>, bool) {
    let (mut kept, mut is_cut) = (Vec::new(), false);
    let mut buffer = vec![0; 16 << 10];
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => return (kept, is_cut),
            Ok(count) => {
                let room = count.min(MOST - kept.len());
                kept.extend_from_slice(&buffer[..room]);
                is_cut |= room < count;
            }
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(_) => return (kept, true),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_is_kept_up_to_a_limit_and_read_to_its_end() {
        let mut all = Cursor::new(vec![1; MOST]);
        assert_eq!(capture(&mut all), (vec![1; MOST], false));
        let mut more = Cursor::new(vec![1; MOST + 1]);
        assert_eq!(capture(&mut more), (vec![1; MOST], true));
        assert_eq!(more.position(), MOST as u64 + 1);
    }
}
