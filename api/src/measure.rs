//! What processes cost the host: memory.

use std::fs;
use std::io;

const PAGE: u64 = 4096;

/// Resident memory of this process, shared pages included.
pub(crate) fn process_rss() -> io::Result<u64> {
    let text = fs::read_to_string("/proc/self/statm")?;
    let pages = text.split_whitespace().nth(1).and_then(|field| field.parse::<u64>().ok());
    Ok(pages.unwrap_or(0) * PAGE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_has_some() {
        assert!(process_rss().unwrap() > PAGE);
    }
}
