//! The host's terminal, for a command that has one in the guest.

use std::io::{self, IsTerminal};
use std::os::fd::{AsFd, AsRawFd};
use std::thread;

use bellows_memory::sync::Mutex;
use bellows_vmm::{Process, Stdio, TerminalSize};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::termios::{SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};

use crate::error::{CliError, io_error};

/// What the command's standard streams are to be.
///
/// # Errors
/// The command is to read what is typed at a terminal, and standard input is none.
pub(crate) fn stdio(interactive: bool, tty: bool) -> Result<Stdio, CliError> {
    match tty {
        false => Ok(Stdio::Pipes { stdin: interactive }),
        true if interactive && !io::stdin().is_terminal() => {
            Err(CliError::Conflict("-t with -i wants a terminal on standard input: leave out -t".into()))
        }
        true => Ok(Stdio::Terminal(size().unwrap_or_default())),
    }
}

/// Size of the terminal, where one of the standard streams is one.
fn size() -> Option<TerminalSize> {
    let of = |stream: &dyn AsRawFd| {
        let mut size = libc::winsize { ws_row: 0, ws_col: 0, ws_xpixel: 0, ws_ypixel: 0 };
        // SAFETY: the request writes a `winsize`, which outlives the call.
        let result = unsafe { libc::ioctl(stream.as_raw_fd(), libc::TIOCGWINSZ, &raw mut size) };
        (result == 0).then_some(TerminalSize { columns: size.ws_col, rows: size.ws_row })
    };
    of(&io::stdout()).or_else(|| of(&io::stdin())).or_else(|| of(&io::stderr()))
}

/// Tells the guest when the terminal's size changes.
pub(crate) struct Resizes(SigSet);

impl Resizes {
    /// Takes SIGWINCH over for this process. To be called before any other thread is made.
    ///
    /// # Errors
    /// The signal can't be had.
    pub(crate) fn install() -> Result<Self, CliError> {
        let signals = SigSet::from(Signal::SIGWINCH);
        signals.thread_block().map_err(io::Error::from).map_err(io_error("wait for", "SIGWINCH"))?;
        Ok(Self(signals))
    }

    /// Makes the terminal of `process` as large as this one, now and whenever that changes.
    ///
    /// # Errors
    /// There is no thread to be had.
    pub(crate) fn follow(self, process: Process) -> Result<(), CliError> {
        let follow = move || {
            loop {
                if let Some(size) = size()
                    && let Err(error) = process.resize(size)
                {
                    // The command has ended.
                    tracing::debug!(%error, "the terminal's size is not passed on");
                    return;
                }
                // Other signals are not waited for, so that there is nothing to look at.
                let _ = self.0.wait();
            }
        };
        let thread = thread::Builder::new().name("resizes".into()).stack_size(256 << 10);
        thread.spawn(follow).map(drop).map_err(io_error("watch", "the terminal's size"))
    }
}

/// How the terminal was, while it is raw.
static SAVED: Mutex<Option<Termios>> = Mutex::new(None);

/// Standard input as a terminal that passes on what is typed as it is, until this is dropped.
pub(crate) struct Raw(());

impl Raw {
    /// Makes it raw.
    ///
    /// # Errors
    /// It is no terminal, or does not let itself be changed.
    pub(crate) fn enter() -> Result<Self, CliError> {
        let enter = || {
            let before = tcgetattr(io::stdin())?;
            let mut raw = before.clone();
            cfmakeraw(&mut raw);
            *SAVED.lock() = Some(before);
            tcsetattr(io::stdin(), SetArg::TCSADRAIN, &raw)
        };
        enter().map_err(io::Error::from).map_err(io_error("set up", "the terminal"))?;
        Ok(Self(()))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        restore();
    }
}

/// Makes the terminal what it was before [`Raw::enter`], for whoever ends the process without dropping anything.
pub(crate) fn restore() {
    if let Some(before) = SAVED.lock().take()
        && let Err(error) = tcsetattr(io::stdin().as_fd(), SetArg::TCSADRAIN, &before)
    {
        tracing::warn!(%error, "the terminal stays as it is");
    }
}
