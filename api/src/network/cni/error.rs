//! Why a VM is in no network of CNI.

use std::io;
use std::path::PathBuf;

/// Why a VM cannot be connected to a network of CNI.
#[derive(Debug, thiserror::Error)]
pub enum CniError {
    /// No configuration has the name.
    #[error("`{folder}` has no network `{name}`: it has {found}{}", unread.as_ref().map(|unread| format!("; {unread}")).unwrap_or_default())]
    NoNetwork {
        /// Where networks are configured.
        folder: PathBuf,
        /// The name that was asked for.
        name: String,
        /// The names of those that are there.
        found: String,
        /// A file that is no configuration.
        unread: Option<String>,
    },
    /// A file cannot be read.
    #[error("cannot read `{path}`")]
    Read {
        /// Its path.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// A configuration is not one.
    #[error("`{path}`: {what}")]
    Invalid {
        /// The file.
        path: PathBuf,
        /// What is wrong, and what was expected.
        what: String,
    },
    /// A plugin is missing.
    #[error("the plugin `{plugin}` is in none of {folders}")]
    NoPlugin {
        /// Its type.
        plugin: String,
        /// Where it was looked for.
        folders: String,
    },
    /// A plugin cannot be run.
    #[error("cannot run the plugin `{plugin}`")]
    Run {
        /// Its type.
        plugin: String,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// A plugin refused.
    #[error("the plugin `{plugin}` refused {command}: {message}")]
    Plugin {
        /// Its type.
        plugin: String,
        /// What it was asked.
        command: &'static str,
        /// Its words.
        message: String,
    },
    /// A plugin's answer is not one.
    #[error("the answer of the network's plugins: {0}")]
    Answer(String),
    /// Ports cannot be published in this network.
    #[error(
        "no plugin of the network `{0}` publishes ports: expected one with the capability `portMappings`, or no --publish"
    )]
    NoPorts(String),
    /// The network namespace.
    #[error("cannot {what}")]
    Namespace {
        /// What failed.
        what: &'static str,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The keeper could not connect the VM.
    #[error("{0}")]
    Refused(String),
    /// The keeper has sent no TAP.
    #[error("the process that keeps the network has sent no TAP")]
    NoTap,
    /// The keeper has not answered.
    #[error("the plugins of the network `{name}` have not answered")]
    NoAnswer {
        /// The network.
        name: String,
        /// The cause.
        #[source]
        source: io::Error,
    },
}

/// Says what failed in the network namespace.
pub(super) fn namespace(what: &'static str) -> impl FnOnce(io::Error) -> CniError {
    move |source| CniError::Namespace { what, source }
}
