//! Arguments that several parts of the program read.

pub mod detached;
pub mod scratch;
pub mod volume;

use std::time::Duration;

/// A whole number of seconds.
pub(crate) fn any_seconds(text: &str) -> Result<Duration, String> {
    let seconds = text.parse::<u32>().map_err(|_| "expected a whole number of seconds")?;
    Ok(Duration::from_secs(seconds.into()))
}
