//! The line with which the agent says that it can be called.
//!
//! ```
//! use bellows_protocol::ready::{BootTimes, parse_ready_line, ready_line};
//!
//! let times = BootTimes::default();
//! assert_eq!(parse_ready_line(ready_line(times).as_bytes())?, times);
//! assert!(parse_ready_line(b"hello\n").is_err());
//! # Ok::<(), bellows_protocol::ready::ReadyError>(())
//! ```

use std::time::Duration;

use thiserror::Error;

use crate::PROTOCOL_VERSION;

/// Longest ready line in bytes, with its newline. A reader stops there.
pub const MAX_READY_LINE: usize = 64;

/// Why a line is not a ready line.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum ReadyError {
    /// The line does not have the form `ready <version> <init> <ready>\n`.
    #[error("{0:?} is not a ready line")]
    Malformed(String),
    /// The agent is of another version, whose lines may go on in another way.
    #[error("protocol version {0}, expected {PROTOCOL_VERSION}")]
    Version(u32),
}

/// When a guest was how far, by the clock of its kernel, which starts early in the kernel's own start.
///
/// The clock is the guest's: to add these to times of the host is to trust it.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct BootTimes {
    /// The kernel handed over to the agent.
    pub init: Duration,
    /// The agent could be called.
    pub ready: Duration,
}

/// The line that an agent of this protocol version sends, with its times in microseconds.
pub fn ready_line(times: BootTimes) -> String {
    format!("ready {PROTOCOL_VERSION} {} {}\n", times.init.as_micros(), times.ready.as_micros())
}

/// The times in a ready line.
///
/// # Errors
/// [`ReadyError::Version`] where an agent of another version sent it, [`ReadyError::Malformed`] where the line, up to its
/// newline, is anything else.
pub fn parse_ready_line(line: &[u8]) -> Result<BootTimes, ReadyError> {
    let malformed = || ReadyError::Malformed(String::from_utf8_lossy(&line[..line.len().min(MAX_READY_LINE)]).into());
    let text = std::str::from_utf8(line).map_err(|_| malformed())?;
    let rest = text.strip_prefix("ready ").and_then(|rest| rest.strip_suffix('\n')).ok_or_else(malformed)?;
    let mut fields = rest.split(' ');
    let mut number = || {
        let field = fields.next().filter(|field| field.bytes().all(|byte| byte.is_ascii_digit()));
        field.and_then(|field| field.parse::<u64>().ok()).ok_or_else(malformed)
    };
    match u32::try_from(number()?).map_err(|_| malformed())? {
        PROTOCOL_VERSION => {}
        other => return Err(ReadyError::Version(other)),
    }
    let times = BootTimes { init: Duration::from_micros(number()?), ready: Duration::from_micros(number()?) };
    if fields.next().is_some() { Err(malformed()) } else { Ok(times) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ready_line_is_understood() {
        let times = BootTimes { init: Duration::from_micros(1500), ready: Duration::from_micros(2750) };
        assert_eq!(ready_line(times), format!("ready {PROTOCOL_VERSION} 1500 2750\n"));
        assert_eq!(parse_ready_line(ready_line(times).as_bytes()), Ok(times));
        let century = Duration::from_secs(100 * 366 * 24 * 3600);
        assert!(ready_line(BootTimes { init: century, ready: century }).len() <= MAX_READY_LINE);
    }

    #[test]
    fn another_version_is_told_whatever_follows_it() {
        for line in ["ready 77\n", "ready 77 whatever 1\n"] {
            assert_eq!(parse_ready_line(line.as_bytes()), Err(ReadyError::Version(77)), "{line:?}");
        }
    }

    #[test]
    fn anything_else_is_refused() {
        // With V for the version of this side.
        for line in [
            "",
            "ready",
            "ready \n",
            "ready V\n",
            "ready V 2\n",
            "ready V 2 3",
            "ready V 2 3 4\n",
            "ready V  2 3\n",
            "ready V 2 -3\n",
            "ready +V 2 3\n",
            "ready 99999999999 2 3\n",
            "ready V 2 99999999999999999999\n",
            "Ready V 2 3\n",
            "ready V 2 3\n\n",
        ] {
            let line = line.replace('V', &PROTOCOL_VERSION.to_string());
            assert!(matches!(parse_ready_line(line.as_bytes()), Err(ReadyError::Malformed(_))), "{line:?}");
        }
        assert!(parse_ready_line(b"ready \xff\n").is_err());
    }
}
