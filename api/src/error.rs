//! Errors of the command: their texts, and their kinds.

use std::error::Error;
use std::path::PathBuf;

use bellows_archive::EntryError;
use bellows_block::StoreError;
use bellows_block::oci::{OciError, ParseProxyError, ParseReferenceError};
use bellows_block::store::ParseImageNameError;
use bellows_vmm::{
    AgentError, BuildError, ConfigError, ErrorKind, ImageError, InstanceError, PartitionError, ReadyError,
    StartFailure, ValueError, VmEnd,
};

use crate::environment::EnvironmentError;
use crate::exit::Failure;
use crate::jail::JailError;
use crate::landlock::LandlockError;
use crate::seccomp::SeccompError;
#[cfg(feature = "otlp")]
use crate::traces::TracesError;

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
    /// A file of the guest that no argument names, and that is missing in all usual places.
    #[error(
        "{description} is missing: looked for {places}; `cargo xtask guest` in a checkout of Bellows makes it and puts it into the \
         first of them, the Debian package has it, and {option} or ${variable} names another one"
    )]
    NoGuestFile {
        /// The file.
        description: &'static str,
        /// The usual places.
        places: String,
        /// The option that names it.
        option: &'static str,
        /// The variable that names it.
        variable: &'static str,
    },
    /// The program that makes networks.
    #[error(
        "`passt` is missing, which a VM's network needs: install the Debian package `passt`, or run without `--net` and `-p`"
    )]
    NoPasst,
    /// A network that leads nowhere.
    #[error(
        "this host has no default route, neither for IPv4 nor for IPv6, and passt needs one: run without `--net` and `-p`"
    )]
    NoRoute,
    /// A network of CNI.
    #[error("the VM is in no network")]
    Cni(#[source] Box<dyn Error + Send + Sync>),
    /// Two arguments that exclude each other.
    #[error("{0}")]
    Conflict(String),
    /// What an instance has given cannot be unpacked.
    #[error("cannot copy to `{path}`")]
    Unpack {
        /// The destination.
        path: PathBuf,
        /// The cause.
        #[source]
        source: Box<UnpackError>,
    },
    /// A VM's API refused.
    #[error("VM `{vm}`: {message}")]
    Refused {
        /// Its name.
        vm: String,
        /// Of the answer.
        status: u16,
        /// Its text.
        message: String,
    },
    /// A name that is in use, or a state that excludes the command.
    #[error("{0}")]
    Taken(String),
    /// Nothing has the name.
    #[error("{0}")]
    NotThere(String),
    /// Neither a file with an image nor the name of an image.
    #[error("`{image}` is neither a path of an image (which begins with / or .) nor the name of one")]
    NoImage {
        /// The argument.
        image: String,
        /// Why it is not a name.
        #[source]
        source: Option<ParseImageNameError>,
    },
    /// A malformed name of an image in a registry.
    #[error(transparent)]
    Reference(#[from] ParseReferenceError),
    /// A malformed proxy.
    #[error(transparent)]
    Proxy(#[from] ParseProxyError),
    /// A root file system instead of an image.
    #[error("`{path}` has no image in it; `bellows image import` takes it as a root file system")]
    RootFs {
        /// The file or directory.
        path: PathBuf,
    },
    /// The command's environment.
    #[error(transparent)]
    Environment(#[from] EnvironmentError),
    /// A value that the guest would refuse.
    #[error(transparent)]
    Value(#[from] ValueError),
    /// A partition number beyond the last.
    #[error("partition numbers end at {0}")]
    PartitionNumber(usize),
    /// The image's documents.
    #[error(transparent)]
    Oci(#[from] OciError),
    /// The layer store failed.
    #[error(transparent)]
    Store(Box<StoreError>),
    /// The system calls are not filtered.
    #[error("the monitor cannot be confined; with --no-seccomp it runs all the same")]
    Seccomp(#[from] SeccompError),
    /// The process is not restricted.
    #[error(transparent)]
    Landlock(#[from] LandlockError),
    /// Spans cannot be sent.
    #[cfg(feature = "otlp")]
    #[error(transparent)]
    Traces(#[from] TracesError),
    /// There is no jail.
    #[error(transparent)]
    Jail(#[from] JailError),
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
    /// The VM did not end in good order.
    #[error("the VM did not shut down: {0}")]
    End(VmEnd),
    /// The demonstration found a wrong result.
    #[error("{0}")]
    Unexpected(String),
    /// The report does not fit JSON.
    #[error("cannot write the report")]
    Report(#[source] serde_json::Error),
    /// The system refused an action.
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
        /// Its exit status.
        status: std::process::ExitStatus,
        /// Its output.
        message: String,
    },
    /// A signal ended it.
    #[error("ended by signal {0}")]
    Interrupted(u8),
    /// Layers are damaged; each was named.
    #[error("{damaged} of {layers} layers are damaged")]
    Damaged {
        /// Number of damaged layers.
        damaged: usize,
        /// Number of all layers.
        layers: usize,
    },
}

/// Why what an instance has given cannot be unpacked.
#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    /// The stream is damaged, or has what no stream may have.
    #[error(transparent)]
    Stream(#[from] EntryError),
    /// It does not fit the destination.
    #[error("{0}")]
    Place(String),
    /// An entry cannot be written.
    #[error("cannot write `{path}`")]
    Write {
        /// Its name.
        path: PathBuf,
        /// The cause.
        #[source]
        source: std::io::Error,
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
    /// What sort of error it is. What a file or a registry holds is the host's: the arguments are right.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Json { .. }
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
            | Self::PartitionNumber(_) => ErrorKind::Invalid,
            Self::Refused { status, .. } => match status {
                400..=403 | 405..=408 | 413 => ErrorKind::Invalid,
                404 => ErrorKind::NotFound,
                409 => ErrorKind::Conflict,
                502 => ErrorKind::Guest,
                503 => ErrorKind::Host,
                _ => ErrorKind::Internal,
            },
            Self::Unpack { source, .. } => match **source {
                UnpackError::Stream(_) => ErrorKind::Guest,
                UnpackError::Place(_) => ErrorKind::Conflict,
                UnpackError::Write { .. } => ErrorKind::Host,
            },
            Self::Taken(_) => ErrorKind::Conflict,
            Self::NotThere(_) => ErrorKind::NotFound,
            Self::Config(error) => error.kind(),
            Self::Jail(error) => error.kind(),
            Self::Build(error) => error.kind(),
            Self::Ready(error) => error.kind(),
            Self::Partition(error) => error.kind(),
            Self::Image(error) => error.kind(),
            Self::Instance(error) => error.kind(),
            Self::Store(error) => match **error {
                StoreError::NoLayer { .. } | StoreError::NoImage { .. } => ErrorKind::NotFound,
                StoreError::Busy { .. } => ErrorKind::Conflict,
                _ => ErrorKind::Host,
            },
            Self::End(VmEnd::PoweredOff | VmEnd::Reset | VmEnd::Panicked(_)) => ErrorKind::Guest,
            Self::End(VmEnd::Stopped | VmEnd::Failed(_))
            | Self::Environment(EnvironmentError::Read { .. })
            | Self::NoPasst
            | Self::NoRoute
            | Self::Cni(_)
            | Self::Oci(_)
            | Self::Io { .. }
            | Self::Output(_)
            | Self::Program { .. }
            | Self::Interrupted(_)
            | Self::Seccomp(_)
            | Self::Landlock(_)
            | Self::Damaged { .. } => ErrorKind::Host,
            #[cfg(feature = "otlp")]
            Self::Traces(_) => ErrorKind::Host,
            Self::Unexpected(_) | Self::Report(_) => ErrorKind::Internal,
        }
    }

    /// What the exit code says of it.
    #[must_use]
    pub fn failure(&self) -> Failure {
        match self {
            Self::Interrupted(signal) => Failure::Signal(*signal),
            _ if self.is_closed_output() => Failure::ClosedOutput,
            Self::Instance(InstanceError::Agent { source: AgentError::NotStarted { reason, .. }, .. }) => {
                match reason {
                    StartFailure::CommandNotFound => Failure::ProgramNotFound,
                    StartFailure::CommandNotExecutable => Failure::ProgramNotExecutable,
                    StartFailure::Other(kind) => Failure::Error(*kind),
                }
            }
            _ => Failure::Error(self.kind()),
        }
    }

    /// Whether the reader of standard output has gone: a silent end, not a failure.
    #[must_use]
    pub fn is_closed_output(&self) -> bool {
        matches!(self, Self::Output(error) if error.kind() == std::io::ErrorKind::BrokenPipe)
    }

    /// The error and its causes, on one line.
    #[must_use]
    pub fn chain(&self) -> String {
        let text = with_causes(self);
        // A text from an image may hold terminal control characters.
        let words = text.split(|c: char| c.is_whitespace() || c.is_control()).filter(|word| !word.is_empty());
        words.collect::<Vec<_>>().join(" ")
    }
}

/// An error and its causes.
pub(crate) fn with_causes(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = error.to_string();
        // Some errors show their cause themselves.
        if !text.ends_with(&next) {
            text = format!("{text}: {next}");
        }
        cause = error.source();
    }
    text
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
        assert_eq!(error.kind(), ErrorKind::Host);
        let source = serde_json::from_str::<bellows_vmm::VmConfig>("{").unwrap_err();
        let error = CliError::Json { path: "vm.json".into(), source };
        assert!(error.chain().starts_with("cannot understand the configuration `vm.json`: EOF"), "{}", error.chain());
        assert_eq!(error.kind(), ErrorKind::Invalid);
    }

    #[test]
    fn a_run_ends_with_dockers_codes() {
        let codes = |error: &CliError| [true, false].map(|run| error.failure().exit_code(run));
        for (reason, code) in [
            (StartFailure::CommandNotFound, 127),
            (StartFailure::CommandNotExecutable, 126),
            (StartFailure::Other(ErrorKind::Guest), 125),
        ] {
            let source = AgentError::NotStarted { reason, message: "\"x\" is not there".into() };
            let error = CliError::from(InstanceError::Agent { action: "start", id: "main".parse().unwrap(), source });
            assert_eq!(codes(&error), [code, 1]);
            assert_eq!(error.chain(), "cannot start instance main: \"x\" is not there");
        }
        let closed = |kind: std::io::ErrorKind| CliError::Output(kind.into());
        for (error, expected) in [
            (CliError::Missing("the command", "-- CMD"), [125, 2]),
            (io_error("open", "/nowhere")(std::io::Error::other("x")), [125, 1]),
            (closed(std::io::ErrorKind::BrokenPipe), [141, 141]),
            (closed(std::io::ErrorKind::StorageFull), [125, 1]),
            (CliError::Interrupted(2), [130, 130]),
            (CliError::Interrupted(15), [143, 143]),
        ] {
            assert_eq!(codes(&error), expected, "{error}");
        }
    }
}
