//! Errors of the command: what is printed, and with which exit code it ends.

use std::error::Error;
use std::path::PathBuf;

use bellows_block::StoreError;
use bellows_block::oci::{OciError, ParseProxyError, ParseReferenceError};
use bellows_block::store::ParseImageNameError;
use bellows_vmm::{
    AgentError, BuildError, ConfigError, ImageError, InstanceError, PartitionError, ReadyError, StartFailure,
    ValueError, VmEnd,
};
use nix::sys::signal::Signal;

use crate::environment::EnvironmentError;

/// Exit code of failures.
pub const RUNTIME: u8 = 1;
/// Exit code of invalid arguments and configurations.
pub const USAGE: u8 = 2;
/// Exit code of `bellows run` where it fails itself: codes below may be the program's.
pub const RUN: u8 = 125;
/// Exit code of `bellows run` if the program cannot be executed.
const NOT_EXECUTABLE: u8 = 126;
/// Exit code of `bellows run` if the image does not have the program.
const NOT_FOUND: u8 = 127;
/// Exit code if the reader of standard output has gone, as if SIGPIPE had ended the command.
pub(crate) const CLOSED_OUTPUT: u8 = 128 + Signal::SIGPIPE as u8;

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    /// The VM's configuration is invalid.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The configuration file.
    #[error("cannot understand the configuration `{path}`")]
    Json {
        /// The file.
        path: PathBuf,
        /// Where and why.
        #[source]
        source: serde_json::Error,
    },
    /// A missing argument.
    #[error("{0} is missing: give {1}")]
    Missing(&'static str, &'static str),
    /// A command line of an earlier version.
    #[error(
        "`bellows run` takes the image and its command at the end, without `--image` and `--`: \
         bellows run [OPTION]... IMAGE [CMD]...; `--partition` is `--memory` now, the memory of the instance, and the VM's own, which \
         `--memory` was, is `--base`; `scratch` is the empty image below `--layer`"
    )]
    Former,
    /// A file of the guest that no argument names, and that is in no usual place.
    #[error(
        "{description} is missing: looked for {places}; `cargo xtask guest` in a checkout of Bellows makes it and puts it into the \
         first of them, the Debian package has it, and {option} or ${variable} names another one"
    )]
    NoGuestFile {
        /// Which.
        description: &'static str,
        /// Where it could be.
        places: String,
        /// The option that names it.
        option: &'static str,
        /// The variable that names it.
        variable: &'static str,
    },
    /// Two things that exclude each other.
    #[error("{0}")]
    Conflict(String),
    /// Neither a file with an image nor the name of an image.
    #[error("`{image}` is neither a path of an image (which begins with / or .) nor the name of one")]
    NoImage {
        /// What was given.
        image: String,
        /// Why it is no name.
        #[source]
        source: Option<ParseImageNameError>,
    },
    /// A malformed name of an image in a registry.
    #[error(transparent)]
    Reference(#[from] ParseReferenceError),
    /// A malformed proxy.
    #[error(transparent)]
    Proxy(#[from] ParseProxyError),
    /// A root file system where an image is meant.
    #[error("`{path}` has no image in it; `bellows image import` takes it as a root file system")]
    RootFs {
        /// The file or directory.
        path: PathBuf,
    },
    /// The command's environment.
    #[error(transparent)]
    Environment(#[from] EnvironmentError),
    /// A value that the guest would not take.
    #[error(transparent)]
    Value(#[from] ValueError),
    /// A partition number beyond the last.
    #[error("there are no partitions beyond {0}")]
    PartitionNumber(usize),
    /// The image's documents.
    #[error(transparent)]
    Oci(#[from] OciError),
    /// The layer store failed.
    #[error(transparent)]
    Store(Box<StoreError>),
    /// The VM could not be made.
    #[error(transparent)]
    Build(#[from] BuildError),
    /// The guest is not usable.
    #[error(transparent)]
    Ready(#[from] ReadyError),
    /// A partition failed.
    #[error(transparent)]
    Partition(#[from] PartitionError),
    /// An image failed.
    #[error(transparent)]
    Image(Box<ImageError>),
    /// An instance failed.
    #[error(transparent)]
    Instance(#[from] InstanceError),
    /// The VM was to end in good order and did not.
    #[error("the VM did not shut down: {0}")]
    End(VmEnd),
    /// The demo found what should not be.
    #[error("{0}")]
    Unexpected(String),
    /// The report does not fit JSON.
    #[error("cannot write the report")]
    Report(#[source] serde_json::Error),
    /// The system refused something.
    #[error("cannot {action} `{path}`")]
    Io {
        /// The action.
        action: &'static str,
        /// Its file.
        path: PathBuf,
        /// The system's answer.
        #[source]
        source: std::io::Error,
    },
    /// Standard output.
    #[error("cannot write to standard output")]
    Output(#[source] std::io::Error),
    /// A program of the system failed.
    #[error("`{program}` failed ({status}): {message}")]
    Program {
        /// The program.
        program: &'static str,
        /// How it ended.
        status: std::process::ExitStatus,
        /// What it said.
        message: String,
    },
    /// A signal ended it.
    #[error("ended by signal {0}")]
    Interrupted(u8),
    /// Layers are damaged, each of which was named.
    #[error("{damaged} of {layers} layers are damaged")]
    Damaged {
        /// How many are.
        damaged: usize,
        /// How many there are.
        layers: usize,
    },
}

impl From<ImageError> for CliError {
    fn from(error: ImageError) -> Self {
        Self::Image(Box::new(error))
    }
}

impl From<StoreError> for CliError {
    fn from(error: StoreError) -> Self {
        Self::Store(Box::new(error))
    }
}

impl CliError {
    /// The exit code: 1 for failures, 2 for invalid input, as a shell has it for signals.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Config(_)
            | Self::Json { .. }
            | Self::Missing(..)
            | Self::Former
            | Self::NoGuestFile { .. }
            | Self::Conflict(_)
            | Self::NoImage { .. }
            | Self::Reference(_)
            | Self::Proxy(_)
            | Self::RootFs { .. }
            | Self::Environment(EnvironmentError::Variable(_) | EnvironmentError::Line(_))
            | Self::Value(_)
            | Self::PartitionNumber(_)
            | Self::Build(BuildError::Config(_) | BuildError::Layout(_) | BuildError::CommandLine(_))
            | Self::Instance(InstanceError::Spec { .. }) => USAGE,
            Self::Interrupted(signal) => 128_u8.saturating_add(*signal),
            _ if self.is_closed_output() => CLOSED_OUTPUT,
            _ => RUNTIME,
        }
    }

    /// The exit code of `bellows run`, in Docker's words: 127 and 126 for a program that is missing or cannot be executed, 125 for all
    /// other failures, as a shell has it for signals.
    #[must_use]
    pub fn run_exit_code(&self) -> u8 {
        match self {
            Self::Instance(InstanceError::Agent { source: AgentError::NotStarted { reason, .. }, .. }) => {
                match reason {
                    StartFailure::CommandNotFound => NOT_FOUND,
                    StartFailure::CommandNotExecutable => NOT_EXECUTABLE,
                    StartFailure::Other => RUN,
                }
            }
            Self::Interrupted(_) => self.exit_code(),
            _ if self.is_closed_output() => CLOSED_OUTPUT,
            _ => RUN,
        }
    }

    /// Whether the reader of standard output has gone: a silent end, not a failure.
    #[must_use]
    pub fn is_closed_output(&self) -> bool {
        matches!(self, Self::Output(error) if error.kind() == std::io::ErrorKind::BrokenPipe)
    }

    /// The error and what caused it, on one line.
    #[must_use]
    pub fn chain(&self) -> String {
        let mut text = self.to_string();
        let mut cause = self.source();
        while let Some(error) = cause {
            let next = error.to_string();
            // Some errors show their cause themselves.
            if !text.ends_with(&next) {
                text = format!("{text}: {next}");
            }
            cause = error.source();
        }
        // An image's own words may be for a terminal's ears.
        let words = text.split(|c: char| c.is_whitespace() || c.is_control()).filter(|word| !word.is_empty());
        words.collect::<Vec<_>>().join(" ")
    }
}

pub(crate) fn io_error(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> CliError {
    let path = path.into();
    move |source| CliError::Io { action, path, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_one_line_that_names_its_causes_once() {
        let error = io_error("open", "/nowhere")(std::io::Error::other("a\n\u{1b}b"));
        assert_eq!(error.chain(), "cannot open `/nowhere`: a b");
        assert_eq!(error.exit_code(), RUNTIME);
        let source = serde_json::from_str::<bellows_vmm::VmConfig>("{").unwrap_err();
        let error = CliError::Json { path: "vm.json".into(), source };
        assert!(error.chain().starts_with("cannot understand the configuration `vm.json`: EOF"), "{}", error.chain());
        assert_eq!(error.exit_code(), USAGE);
        assert_eq!(CliError::Interrupted(15).exit_code(), 143);
    }

    #[test]
    fn a_run_ends_with_dockers_codes() {
        let not_started = |reason| {
            let source = AgentError::NotStarted { reason, message: "\"x\" is not there".into() };
            CliError::Instance(InstanceError::Agent { action: "start", id: "main".parse().unwrap(), source })
        };
        for (reason, code) in [
            (StartFailure::CommandNotFound, 127),
            (StartFailure::CommandNotExecutable, 126),
            (StartFailure::Other, 125),
        ] {
            let error = not_started(reason);
            assert_eq!((error.run_exit_code(), error.exit_code()), (code, RUNTIME));
            assert_eq!(error.chain(), "cannot start instance main: \"x\" is not there");
        }
        assert_eq!(CliError::Missing("the command", "-- CMD").run_exit_code(), 125);
        assert_eq!(io_error("open", "/nowhere")(std::io::Error::other("x")).run_exit_code(), 125);
        assert_eq!(CliError::Interrupted(2).run_exit_code(), 130);
    }
}
