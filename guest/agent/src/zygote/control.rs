//! The control socket of a zygote:
//!
//! ```text
//! zygote: ready\n        or        error <reason>\n
//! agent:  fork\n
//! ```
//!
//! From then on its `fork()` waits for instances.

use std::io;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use bellows_protocol::stream::read_line;

use super::ZygoteError;
use crate::error::{AgentError, Result};

/// The answer of the agent.
pub(super) const FORK: &[u8] = b"fork\n";
/// Longest line that a zygote writes, in bytes.
const MAX_LINE: usize = 512;
/// Most characters of a line that are shown.
const MAX_SHOWN: usize = 200;

/// Waits for the zygote's line.
///
/// # Errors
/// [`AgentError::ZygoteUnfit`] and [`AgentError::ZygoteFailed`] unless it is ready; [`AgentError::TimedOut`], [`AgentError::System`].
pub(super) fn await_ready(control: &UnixStream, limit: Duration) -> Result<()> {
    let line = read_line(control, MAX_LINE, limit).map_err(|error| match error.kind() {
        io::ErrorKind::TimedOut => AgentError::TimedOut { what: "word from the zygote".into(), after: limit },
        io::ErrorKind::ConnectionReset => ZygoteError::Ended.into(),
        _ => AgentError::system("read")(error),
    })?;
    Ok(parse(&line)?)
}

/// What a zygote's line says.
pub(super) fn parse(line: &[u8]) -> std::result::Result<(), ZygoteError> {
    let shown = |line: &[u8]| -> String {
        let text = String::from_utf8_lossy(line);
        text.chars().map(|character| if character.is_control() { ' ' } else { character }).take(MAX_SHOWN).collect()
    };
    match line {
        b"ready\n" => Ok(()),
        b"" => Err(ZygoteError::Ended),
        _ => Err(match line.strip_prefix(b"error ").and_then(|rest| rest.strip_suffix(b"\n")) {
            Some(reason) => ZygoteError::Said(shown(reason)),
            None => ZygoteError::Malformed(shown(line)),
        }),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn a_zygote_is_ready_or_says_why_not() {
        assert_eq!(parse(b"ready\n"), Ok(()));
        assert_eq!(parse(b""), Err(ZygoteError::Ended));
        assert_eq!(parse(b"error no module\x1b\n"), Err(ZygoteError::Said("no module ".into())));
        for bad in
            [&b"ready"[..], b"ready \n", b"READY\n", b"\n", b"error no newline", b"\xff\xfe\n", &[b'x'; MAX_LINE]]
        {
            let Err(ZygoteError::Malformed(text)) = parse(bad) else { panic!("{bad:?}") };
            assert!(text.chars().count() <= MAX_SHOWN && !text.contains(char::is_control), "{text:?}");
        }
    }

    #[test]
    fn the_wait_for_a_zygote_ends() {
        let (short, long) = (Duration::from_millis(5), Duration::from_secs(30));
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        assert!(matches!(await_ready(&ours, short), Err(AgentError::TimedOut { .. })));
        theirs.write_all(&[b'x'; 2 * MAX_LINE]).unwrap();
        assert!(matches!(await_ready(&ours, long), Err(AgentError::ZygoteFailed(text)) if text.contains("xxx")));
        let (ours, theirs) = UnixStream::pair().unwrap();
        drop(theirs);
        assert!(matches!(await_ready(&ours, long), Err(AgentError::ZygoteFailed(text)) if text.contains("ended")));
    }
}
