//! Exit codes, in one place: what failed decides, and whether it failed in `bellows run`, whose other codes are the program's.

use bellows_vmm::ErrorKind;
use nix::sys::signal::Signal;

/// How a command failed, as far as its exit code tells.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Failure {
    /// With an error of this sort.
    Error(ErrorKind),
    /// The image does not have the program.
    ProgramNotFound,
    /// The image has the program, and it cannot be executed.
    ProgramNotExecutable,
    /// The reader of standard output has gone: a silent end, as if SIGPIPE had ended the command.
    ClosedOutput,
    /// By the signal of this number.
    Signal(u8),
}

impl Failure {
    /// The exit code of `bellows run`, in Docker's words, or of any other command.
    #[must_use]
    pub fn exit_code(self, run: bool) -> u8 {
        match (self, run) {
            (Self::ClosedOutput, _) => 128 + Signal::SIGPIPE as u8,
            (Self::Signal(number), _) => 128_u8.saturating_add(number),
            (Self::ProgramNotFound, true) => 127,
            (Self::ProgramNotExecutable, true) => 126,
            (Self::Error(_), true) => 125,
            (Self::Error(ErrorKind::Invalid), false) => 2,
            (
                Self::Error(
                    ErrorKind::NotFound
                    | ErrorKind::Conflict
                    | ErrorKind::Guest
                    | ErrorKind::Host
                    | ErrorKind::Internal,
                )
                | Self::ProgramNotFound
                | Self::ProgramNotExecutable,
                false,
            ) => 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The tables of `docs/run.md` and `docs/image-reference.md`.
    #[test]
    fn every_kind_of_failure_has_the_exit_code_that_is_documented() {
        for (failure, run, other) in [
            (Failure::Error(ErrorKind::Invalid), 125, 2),
            (Failure::Error(ErrorKind::NotFound), 125, 1),
            (Failure::Error(ErrorKind::Conflict), 125, 1),
            (Failure::Error(ErrorKind::Guest), 125, 1),
            (Failure::Error(ErrorKind::Host), 125, 1),
            (Failure::Error(ErrorKind::Internal), 125, 1),
            (Failure::ProgramNotFound, 127, 1),
            (Failure::ProgramNotExecutable, 126, 1),
            (Failure::ClosedOutput, 141, 141),
            (Failure::Signal(2), 130, 130),
            (Failure::Signal(15), 143, 143),
        ] {
            assert_eq!([true, false].map(|of_run| failure.exit_code(of_run)), [run, other], "{failure:?}");
        }
    }
}
