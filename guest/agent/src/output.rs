//! An instance's output streams: pipes that the agent reads only when the monitor asks, so that an instance that writes
//! more than anybody reads waits, and costs no memory beyond the pipe.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::sync::Mutex;

use bellows_protocol::values::MAX_OUTPUT_READ;
use nix::fcntl::OFlag;

/// What a request that names no size reads at most, in bytes.
const DEFAULT_READ: u32 = 64 << 10;

/// The reading end of one stream.
#[derive(Debug)]
pub struct OutputStream {
    /// Readers take turns.
    pipe: Mutex<File>,
}

impl OutputStream {
    /// A stream and its writing end.
    ///
    /// # Errors
    /// There is no pipe to be had.
    pub fn new() -> io::Result<(Self, OwnedFd)> {
        let (read, write) = nix::unistd::pipe2(OFlag::O_CLOEXEC)?;
        Ok((Self { pipe: Mutex::new(read.into()) }, write))
    }

    /// Blocks until there is data; empty means that every writer is gone.
    ///
    /// # Errors
    /// Those of `read(2)`.
    pub fn read(&self, max_bytes: u32) -> io::Result<Vec<u8>> {
        let bytes = if max_bytes == 0 { DEFAULT_READ } else { max_bytes.min(MAX_OUTPUT_READ) };
        // Memory follows what comes, a pipe's worth at a time, not what was asked for.
        let mut data = vec![0; bytes.min(DEFAULT_READ) as usize];
        let mut pipe = self.pipe.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        loop {
            match pipe.read(&mut data) {
                Ok(count) => {
                    data.truncate(count);
                    return Ok(data);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn data_comes_in_order_and_ends_with_its_writer() {
        let (stream, write) = OutputStream::new().unwrap();
        let mut write = File::from(write);
        write.write_all(b"hello").unwrap();
        assert_eq!(stream.read(2).unwrap(), b"he");
        assert_eq!(stream.read(0).unwrap(), b"llo");
        drop(write);
        assert_eq!(stream.read(0).unwrap(), b"");
    }
}
