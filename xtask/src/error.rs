//! The one error of the developer commands.

use std::io;
use std::path::Path;

/// An error, for a person to read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file or directory could not be used.
    #[error("{path}: {source}")]
    File {
        /// Its path.
        path: String,
        /// The system's error.
        source: io::Error,
    },
    /// A program failed; `output` is the end of what it printed.
    #[error("{program} failed ({status})\n{output}")]
    Command {
        /// The program and its arguments.
        program: String,
        /// Its exit status.
        status: std::process::ExitStatus,
        /// Its last lines.
        output: String,
    },
    /// The lab.
    #[error("lab: {}", chain(.0))]
    Lab(#[from] bellows_lab::Error),
    /// Anything else.
    #[error("{0}")]
    Other(String),
}

/// Result of the developer commands.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// For `map_err`: an I/O error of `path`.
    pub fn at(path: impl AsRef<Path>) -> impl FnOnce(io::Error) -> Self {
        let path = path.as_ref().display().to_string();
        move |source| Self::File { path, source }
    }

    /// An error that is just a message.
    pub fn other(message: impl Into<String>) -> Self {
        Self::Other(message.into())
    }
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        text.push_str(&format!(": {source}"));
        next = source.source();
    }
    text
}
