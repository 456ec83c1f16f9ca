//! `bellows exec`: a further process of an instance, with its streams.

use std::io::{self, Read as _, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use bellows_vmm::{Stdio, TerminalSize};
use serde_json::{Value, json};

use super::{exit_code, find};
use crate::error::{CliError, io_error};
use crate::interrupt::Interrupts;
use crate::options::detached::ExecArgs;
use crate::output::{Lenient, print};
use crate::rest::frames::{Frame, Kind, MOST};
use crate::terminal::{self, Raw, Resizes};

/// Runs the command; returns its exit code.
pub(crate) fn exec(args: &ExecArgs) -> Result<u8, CliError> {
    let resizes = args.tty.then(Resizes::install).transpose()?;
    let interrupts = Interrupts::install().map_err(io_error("wait for", "signals"))?;
    let result = if args.json { whole(args) } else { streamed(args, &interrupts, resizes) };
    match (result, interrupts.received()) {
        // The failure follows from the end of the connection.
        (Err(_), Some(signal)) => Err(CliError::Interrupted(signal)),
        (result, _) => result,
    }
}

/// Asks for all that the command prints as one answer.
fn whole(args: &ExecArgs) -> Result<u8, CliError> {
    let found = find(&args.name)?;
    let mut request = request(args);
    let stdin = args.interactive.then(|| io::read_to_string(io::stdin())).transpose();
    request["stdin"] = json!(stdin.map_err(io_error("read", "standard input"))?);
    let done = found.client().call("POST", &found.path("/exec"), Some(&request))?;
    print(&done)?;
    Ok(exit_code(&done))
}

/// Passes streams on as they come.
fn streamed(args: &ExecArgs, interrupts: &Interrupts, resizes: Option<Resizes>) -> Result<u8, CliError> {
    let found = find(&args.name)?;
    let mut request = request(args);
    match terminal::stdio(args.interactive, args.tty)? {
        Stdio::Terminal(size) => request["tty"] = said(size),
        Stdio::Pipes { stdin } => request["open_stdin"] = json!(stdin),
    }
    let (socket, early) = found.client().upgrade(&found.path("/exec"), &request)?;
    let copy = || socket.try_clone().map_err(io_error("talk to", "the VM"));
    let ending = copy()?;
    // The process ends with the connection.
    let serving = interrupts.serve(move || drop(ending.shutdown(Shutdown::Both)));
    let vm = Vm(Arc::new(Mutex::new(copy()?)));
    let raw = (args.tty && args.interactive).then(Raw::enter).transpose()?;
    if let Some(resizes) = resizes {
        let vm = vm.clone();
        resizes.follow(move |size| vm.send(Kind::Size, said(size).to_string().as_bytes()))?;
    }
    if args.interactive {
        vm.feed()?;
    }
    let ended = output(io::Cursor::new(early).chain(socket));
    drop((raw, serving));
    Ok(exit_code(&ended?))
}

fn request(args: &ExecArgs) -> Value {
    json!({ "argv": args.command, "env": args.env, "cwd": args.cwd, "user": args.user })
}

fn said(size: TerminalSize) -> Value {
    json!({ "columns": size.columns, "rows": size.rows })
}

/// Prints what the process prints; returns how it has ended.
fn output(mut source: impl io::Read) -> Result<Value, CliError> {
    let (mut stdout, mut stderr) = (io::stdout().lock(), Lenient(io::stderr()));
    loop {
        let frame = Frame::read(&mut source).map_err(io_error("talk to", "the VM"))?;
        let Some(Frame { kind, bytes }) = frame else {
            return Err(CliError::NotThere("the VM has ended, or has left the command alone".into()));
        };
        let parsed = || serde_json::from_slice::<Value>(&bytes).unwrap_or_default();
        match kind {
            Kind::Stdout => stdout.write_all(&bytes).and_then(|()| stdout.flush()).map_err(CliError::Output)?,
            // It may have no reader.
            Kind::Stderr => drop(stderr.write_all(&bytes)),
            Kind::Ended => return Ok(parsed()),
            Kind::Fault => {
                let message = parsed()["fault_message"].as_str().unwrap_or("no reason").to_owned();
                return Err(CliError::Conflict(format!("the VM cannot go on: {message}")));
            }
            Kind::Stdin | Kind::Size => return Err(CliError::Conflict(format!("the VM sends {kind:?}"))),
        }
    }
}

/// The way to the process.
#[derive(Clone)]
struct Vm(Arc<Mutex<UnixStream>>);

impl Vm {
    fn send(&self, kind: Kind, bytes: &[u8]) -> io::Result<()> {
        Frame::write(kind, bytes, &mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Passes standard input on, on a thread that nobody waits for: it may wait for a key.
    fn feed(self) -> Result<(), CliError> {
        let feed = move || {
            let mut buffer = vec![0; MOST];
            loop {
                match io::stdin().read(&mut buffer) {
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    // To the process it is the end of its input.
                    Ok(0) | Err(_) => return drop(self.send(Kind::Stdin, b"")),
                    // The process has ended.
                    Ok(count) if self.send(Kind::Stdin, &buffer[..count]).is_err() => return,
                    Ok(_) => {}
                }
            }
        };
        let thread = thread::Builder::new().name("input".into()).stack_size(256 << 10);
        thread.spawn(feed).map(drop).map_err(io_error("read", "standard input"))
    }
}
