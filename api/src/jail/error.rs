//! Why there is no jail.

use std::io;
use std::path::{Path, PathBuf};

use bellows_vmm::ErrorKind;

/// Why a jail could not be made.
#[derive(Debug, thiserror::Error)]
pub enum JailError {
    /// An argument.
    #[error("{option} is `{value}`: expected {expected}")]
    Argument {
        /// Its name.
        option: &'static str,
        /// What was given.
        value: String,
        /// What would be right.
        expected: &'static str,
    },
    /// The rights of the process.
    #[error("only the superuser can make a jail: the process is user {0}")]
    NotRoot(u32),
    /// The monitor's program.
    #[error("`{path}` is no program for this system: {reason}")]
    Program {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A directory that somebody else could change.
    #[error(
        "`{path}` belongs to user {found}, with mode {mode:03o}: expected user {expected}, and nobody else to write"
    )]
    Owner {
        /// The directory.
        path: PathBuf,
        /// Whose it is.
        found: u32,
        /// Its mode.
        mode: u32,
        /// Whose it should be.
        expected: u32,
    },
    /// A control group's controller.
    #[error("the control groups of this host have no controller `{controller}`: there are {available}")]
    Controller {
        /// What was asked for.
        controller: String,
        /// What there is.
        available: String,
    },
    /// Control groups of version 2 are not mounted.
    #[error("no control groups of version 2 are mounted")]
    NoCgroups,
    /// The system refused an action.
    #[error("cannot {action} `{path}`")]
    System {
        /// The action.
        action: &'static str,
        /// Its file.
        path: PathBuf,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// The process of the monitor could not begin.
    #[error("the jailed process cannot begin: {0}")]
    Child(String),
}

impl JailError {
    /// The text, with the system's answer.
    pub(super) fn with_cause(&self) -> String {
        match self {
            Self::System { source, .. } => format!("{self}: {source}"),
            _ => self.to_string(),
        }
    }

    /// What sort of error it is.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Argument { .. } | Self::Program { .. } => ErrorKind::Invalid,
            Self::NotRoot(_)
            | Self::Owner { .. }
            | Self::Controller { .. }
            | Self::NoCgroups
            | Self::System { .. }
            | Self::Child(_) => ErrorKind::Host,
        }
    }
}

/// For `map_err`: the system's refusal of `action` with `path`.
pub(super) fn system<E: Into<io::Error>>(action: &'static str, path: impl AsRef<Path>) -> impl FnOnce(E) -> JailError {
    let path = path.as_ref().to_path_buf();
    move |source| JailError::System { action, path, source: source.into() }
}
