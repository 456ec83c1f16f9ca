//! The line with which the agent says that it can be called.

use thiserror::Error;

/// Longest ready line in bytes, with its newline. A reader stops there.
pub const MAX_READY_LINE: usize = 32;

/// Why a line is no ready line.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum ReadyError {
    /// The line does not have the form `ready <version>\n`.
    #[error("{0:?} is not a ready line")]
    Malformed(String),
}

/// The line that an agent of protocol version `version` sends.
pub fn ready_line(version: u32) -> String {
    format!("ready {version}\n")
}

/// The protocol version in a ready line.
///
/// # Errors
/// [`ReadyError::Malformed`] where the line, up to its newline, is anything else.
pub fn parse_ready_line(line: &[u8]) -> Result<u32, ReadyError> {
    let malformed = || ReadyError::Malformed(String::from_utf8_lossy(&line[..line.len().min(MAX_READY_LINE)]).into());
    let text = std::str::from_utf8(line).map_err(|_| malformed())?;
    let version = text.strip_prefix("ready ").and_then(|rest| rest.strip_suffix('\n')).ok_or_else(malformed)?;
    if version.is_empty() || !version.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(malformed());
    }
    version.parse().map_err(|_| malformed())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ready_line_is_understood() {
        assert_eq!(parse_ready_line(ready_line(7).as_bytes()), Ok(7));
        assert!(ready_line(u32::MAX).len() <= MAX_READY_LINE);
    }

    #[test]
    fn anything_else_is_refused() {
        for line in
            ["", "ready", "ready \n", "ready 1", "ready +1\n", "ready 99999999999\n", "Ready 1\n", "ready 1\n\n"]
        {
            assert!(parse_ready_line(line.as_bytes()).is_err(), "{line:?}");
        }
        assert!(parse_ready_line(b"ready \xff\n").is_err());
    }
}
