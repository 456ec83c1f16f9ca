//! A program's environment, as `docker run` puts it together: the image's, then files of variables, then single variables; the
//! last of a name wins.

use std::collections::HashSet;
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

/// Longest file of variables, in bytes: the kernel's limit on arguments and environment together.
const MAX_FILE: u64 = 1 << 20;

/// Why an environment cannot be put together.
#[derive(Debug, thiserror::Error)]
pub enum EnvironmentError {
    /// On the command line.
    #[error(transparent)]
    Variable(#[from] EnvError),
    /// In a file.
    #[error(transparent)]
    Line(#[from] EnvFileError),
    /// The file itself.
    #[error("cannot read the environment file `{path}`")]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
}

/// Why a text is not an environment variable.
#[derive(Debug, Eq, PartialEq, thiserror::Error)]
pub enum EnvError {
    /// The name before the `=` is empty.
    #[error("`{0}` is not an environment variable: expected NAME=VALUE, or NAME")]
    NoName(String),
    /// Only in files, where white space is usually a mistake.
    #[error("`{0}` is not a name of an environment variable: expected no white space")]
    WhiteSpace(String),
    /// The value on this host is not text.
    #[error("the value of `{0}` on this host is not UTF-8")]
    Value(String),
    /// Not a text.
    #[error("not UTF-8")]
    Utf8,
    /// Too large for a hand-written file.
    #[error("the file has more than {MAX_FILE} bytes")]
    TooLong,
}

/// One line of a file of variables that is not understood.
#[derive(Debug, thiserror::Error)]
#[error("cannot understand line {line} of `{path}`")]
pub struct EnvFileError {
    /// The file.
    pub path: PathBuf,
    /// From 1.
    pub line: usize,
    /// The cause.
    #[source]
    pub source: EnvError,
}

/// The effect on a variable.
#[derive(Clone, Debug, Eq, PartialEq)]
struct Variable {
    name: String,
    /// Without one it is removed.
    value: Option<String>,
}

/// Puts an environment together. `host` gives this process's own variables, for those given by name alone.
pub(crate) fn environment(
    image: &[String],
    files: &[PathBuf],
    given: &[String],
    host: impl Fn(&str) -> Option<OsString>,
) -> Result<Vec<String>, EnvironmentError> {
    let mut wanted = Vec::new();
    for path in files {
        wanted.extend(read_file(path, &host)?);
    }
    for text in given {
        wanted.push(variable(text, &host)?);
    }
    Ok(merged(image, &wanted))
}

/// The image's variables, overridden by others. A variable without a value is invalid, and Docker leaves it out, too.
fn merged(image: &[String], wanted: &[Variable]) -> Vec<String> {
    if let Some(variable) = image.iter().find(|text| !text.contains('=')) {
        tracing::warn!(variable, "the image has environment variables without a value: left out");
    }
    let image = image.iter().filter_map(|text| text.split_once('=')).map(|(name, value)| (name, Some(value)));
    let wanted = wanted.iter().map(|variable| (variable.name.as_str(), variable.value.as_deref()));
    let all: Vec<_> = image.chain(wanted).collect();
    let mut names = HashSet::new();
    let last = all.into_iter().rev().filter(|(name, _)| names.insert(*name));
    let mut variables: Vec<_> = last.filter_map(|(name, value)| Some(format!("{name}={}", value?))).collect();
    variables.reverse();
    variables
}

/// `NAME=VALUE`, or `NAME` for the value that it has on this host.
fn variable(text: &str, host: impl Fn(&str) -> Option<OsString>) -> Result<Variable, EnvError> {
    let (name, value) = match text.split_once('=') {
        Some((name, value)) => (name, Some(value.to_owned())),
        None => {
            let value = host(text).map(OsString::into_string).transpose();
            (text, value.map_err(|_| EnvError::Value(text.to_owned()))?)
        }
    };
    if name.is_empty() {
        return Err(EnvError::NoName(text.to_owned()));
    }
    Ok(Variable { name: name.to_owned(), value })
}

fn read_file(path: &Path, host: impl Fn(&str) -> Option<OsString>) -> Result<Vec<Variable>, EnvironmentError> {
    let mut content = Vec::new();
    File::open(path)
        .and_then(|file| file.take(MAX_FILE + 1).read_to_end(&mut content))
        .map_err(|source| EnvironmentError::Read { path: path.to_owned(), source })?;
    parse_file(&content, host).map_err(|(line, source)| EnvFileError { path: path.to_owned(), line, source }.into())
}

/// Docker's format: a variable a line, without empty lines and comments (`#`, perhaps after white space); the value is
/// everything behind the first `=`, quotes included. A name alone without a value on this host is left out. Errors come with
/// their line.
fn parse_file(content: &[u8], host: impl Fn(&str) -> Option<OsString>) -> Result<Vec<Variable>, (usize, EnvError)> {
    // The byte order mark that some editors write.
    let content = content.strip_prefix(b"\xef\xbb\xbf").unwrap_or(content);
    let mut variables = Vec::new();
    for (index, line) in content.split(|&byte| byte == b'\n').enumerate() {
        let at = |error| (index + 1, error);
        if content.len() as u64 > MAX_FILE {
            return Err(at(EnvError::TooLong));
        }
        let line = std::str::from_utf8(line.strip_suffix(b"\r").unwrap_or(line)).map_err(|_| at(EnvError::Utf8))?;
        let line = line.trim_start();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let variable = variable(line, &host).map_err(at)?;
        if variable.name.contains(char::is_whitespace) {
            return Err(at(EnvError::WhiteSpace(variable.name)));
        }
        variables.extend(Some(variable).filter(|variable| variable.value.is_some()));
    }
    Ok(variables)
}

#[cfg(test)]
#[path = "environment_test.rs"]
mod tests;
