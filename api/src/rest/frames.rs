//! What goes over a connection with the streams of a process, both ways: frames, after the answer to a request that asks for an upgrade
//! to [`PROTOCOL`].
//!
//! | bytes | |
//! |---|---|
//! | 0 | the kind of the frame ([`Kind`]) |
//! | 1 to 3 | 0 |
//! | 4 to 7 | how many bytes follow, at most [`MOST`], the most significant first |
//! | 8 on | these bytes |
//!
//! So output looks as Docker's does where several streams share a connection.

use std::io::{self, Read, Write};

/// The name in the header `Upgrade`.
pub(crate) const PROTOCOL: &str = "bellows-exec";
/// Most bytes of a frame after its head.
pub(crate) const MOST: usize = 64 << 10;

/// What a frame is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Kind {
    /// To the process: its input. Without bytes: the end of it.
    Stdin = 0,
    /// From the process: its output, which of a terminal is all.
    Stdout = 1,
    /// From the process: its standard error.
    Stderr = 2,
    /// From the VM, the last: how the process has ended, as in the answer to an exec, in JSON.
    Ended = 3,
    /// From the VM, the last: it cannot go on. `fault_message` in JSON says why.
    Fault = 4,
    /// To the process: the size of its terminal, `columns` and `rows` in JSON.
    Size = 5,
}

/// A frame.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Frame {
    pub(crate) kind: Kind,
    pub(crate) bytes: Vec<u8>,
}

impl Frame {
    /// Reads one; `None` at the end.
    ///
    /// # Errors
    /// It breaks off, or is none.
    pub(crate) fn read(source: &mut impl Read) -> io::Result<Option<Self>> {
        let mut head = [0; 8];
        let first = loop {
            match source.read(&mut head) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                result => break result?,
            }
        };
        if first == 0 {
            return Ok(None);
        }
        source.read_exact(&mut head[first..])?;
        let [kind, zeros @ .., a, b, c, d] = head;
        let length = u32::from_be_bytes([a, b, c, d]);
        let kind = [Kind::Stdin, Kind::Stdout, Kind::Stderr, Kind::Ended, Kind::Fault, Kind::Size]
            .into_iter()
            .find(|known| *known as u8 == kind)
            .filter(|_| zeros == [0; 3])
            .ok_or_else(|| wrong(format!("{kind} is the kind of no frame: expected 0 to 5, and three zeros")))?;
        let length = usize::try_from(length).ok().filter(|length| *length <= MOST);
        let length = length.ok_or_else(|| wrong(format!("a frame is too long: expected at most {MOST} bytes")))?;
        let mut bytes = vec![0; length];
        source.read_exact(&mut bytes)?;
        Ok(Some(Self { kind, bytes }))
    }

    /// Writes `bytes` as one frame, or as several where they are many.
    ///
    /// # Errors
    /// Those of `sink`.
    pub(crate) fn write(kind: Kind, bytes: &[u8], sink: &mut impl Write) -> io::Result<()> {
        let mut rest = bytes;
        loop {
            let (part, after) = rest.split_at(rest.len().min(MOST));
            // At most `MOST`.
            let [a, b, c, d] = (part.len() as u32).to_be_bytes();
            let mut frame = Vec::with_capacity(8 + part.len());
            frame.extend([kind as u8, 0, 0, 0, a, b, c, d]);
            frame.extend(part);
            sink.write_all(&frame)?;
            rest = after;
            if rest.is_empty() {
                return Ok(());
            }
        }
    }
}

fn wrong(what: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read_all(mut bytes: &[u8]) -> io::Result<Vec<Frame>> {
        std::iter::from_fn(|| Frame::read(&mut bytes).transpose()).collect()
    }

    #[test]
    fn a_frame_is_a_head_and_bytes() {
        let mut written = Vec::new();
        Frame::write(Kind::Stderr, b"ab", &mut written).unwrap();
        assert_eq!(written, [2, 0, 0, 0, 0, 0, 0, 2, b'a', b'b']);
        written.clear();
        Frame::write(Kind::Stdin, b"", &mut written).unwrap();
        assert_eq!(written, [0; 8]);
    }

    #[test]
    fn what_is_no_frame_is_refused() {
        for (bytes, part) in [
            (&[6, 0, 0, 0, 0, 0, 0, 0][..], "6 is the kind of no frame"),
            (&[1, 0, 1, 0, 0, 0, 0, 0], "three zeros"),
            (&[1, 0, 0, 0, 0, 1, 0, 1], "at most 65536 bytes"),
            (&[1, 0, 0, 0, 255, 255, 255, 255], "at most 65536 bytes"),
            (&[1, 0, 0], "fill"),
            (&[1, 0, 0, 0, 0, 0, 0, 1], "fill"),
        ] {
            let error = read_all(bytes).unwrap_err().to_string();
            assert!(error.contains(part), "{bytes:?}: {error}");
        }
    }

    proptest! {
        #[test]
        fn all_bytes_arrive(bytes in prop::collection::vec(any::<u8>(), 0..3 * MOST)) {
            let mut written = Vec::new();
            Frame::write(Kind::Stdout, &bytes, &mut written).unwrap();
            let frames = read_all(&written).unwrap();
            prop_assert_eq!(frames.len(), bytes.len().div_ceil(MOST).max(1));
            prop_assert!(frames.iter().all(|frame| frame.kind == Kind::Stdout));
            prop_assert_eq!(frames.into_iter().flat_map(|frame| frame.bytes).collect::<Vec<_>>(), bytes);
        }

        #[test]
        fn nothing_panics(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            let _ = read_all(&bytes);
        }
    }
}
