//! The host's terminal, for a command that has one in the guest.

use std::fmt::Display;
use std::io::{self, IsTerminal};
use std::os::fd::{AsFd, AsRawFd};
use std::thread;

use bellows_memory::sync::Mutex;
use bellows_vmm::{Stdio, TerminalSize};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::termios::{SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};

use crate::error::{CliError, io_error};

/// The kind of the command's standard streams.
///
/// # Errors
/// The command needs a terminal on standard input, and standard input is not one.
pub(crate) fn stdio(interactive: bool, tty: bool) -> Result<Stdio, CliError> {
    match tty {
        false => Ok(Stdio::Pipes { stdin: interactive }),
        true if interactive && !io::stdin().is_terminal() => {
            Err(CliError::Conflict("-t with -i needs a terminal on standard input: leave out -t".into()))
        }
        true => Ok(Stdio::Terminal(size().unwrap_or_default())),
    }
}

/// Size of the terminal, if one of the standard streams is one.
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
    /// Takes over SIGWINCH for this process. Call it before any other thread is made.
    ///
    /// # Errors
    /// The system refused the signal.
    pub(crate) fn install() -> Result<Self, CliError> {
        let signals = SigSet::from(Signal::SIGWINCH);
        signals.thread_block().map_err(io::Error::from).map_err(io_error("wait for", "SIGWINCH"))?;
        Ok(Self(signals))
    }

    /// Keeps the command's terminal as large as this one, by `resize`, until that fails.
    ///
    /// # Errors
    /// The system has no thread.
    pub(crate) fn follow<E: Display>(
        self,
        resize: impl Fn(TerminalSize) -> Result<(), E> + Send + 'static,
    ) -> Result<(), CliError> {
        let follow = move || {
            loop {
                if let Some(size) = size()
                    && let Err(error) = resize(size)
                {
                    // The command has ended.
                    tracing::debug!(%error, "cannot pass on the terminal's size");
                    return;
                }
                // This is the only signal awaited, so its number needs no check.
                let _ = self.0.wait();
            }
        };
        let thread = thread::Builder::new().name("resizes".into()).stack_size(256 << 10);
        thread.spawn(follow).map(drop).map_err(io_error("watch", "the terminal's size"))
    }
}

/// The terminal's old settings, while it is raw.
static SAVED: Mutex<Option<Termios>> = Mutex::new(None);

/// Standard input as a raw terminal, which passes keys on unchanged, until this is dropped.
pub(crate) struct Raw(());

impl Raw {
    /// Makes it raw.
    ///
    /// # Errors
    /// It is not a terminal, or the system refused the change.
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

/// Restores the terminal's settings from before [`Raw::enter`], for an end of the process that drops nothing.
pub(crate) fn restore() {
    if let Some(before) = SAVED.lock().take()
        && let Err(error) = tcsetattr(io::stdin().as_fd(), SetArg::TCSADRAIN, &before)
    {
        tracing::warn!(%error, "cannot restore the terminal");
    }
}
