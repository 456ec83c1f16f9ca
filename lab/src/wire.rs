//! The byte protocol between this machine and PID 1 of the lab, over one virtio-serial port.
//!
//! A frame is a header of nine bytes, little endian, and its payload: job number (4), kind (1), payload length (4).
//! Several jobs run at the same time; each has a number that the caller chose.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};

use serde::{Deserialize, Serialize};

/// Longest payload of a frame.
pub const MAX_PAYLOAD: usize = 64 << 10;

/// Name of the virtio-serial port, below `/dev/virtio-ports` in the lab.
pub const PORT: &str = "bellows.lab";

/// The kind of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// From the lab: it's up (payload empty).
    Ready,
    /// To the lab: start a job (payload: [`Job`] as JSON).
    Start,
    /// To the lab: bytes for the standard input; an empty payload closes it.
    Stdin,
    /// From the lab: bytes of the standard output.
    Stdout,
    /// From the lab: bytes of the standard error.
    Stderr,
    /// From the lab: the job ended (payload: exit code as `i32`; 128 + n after signal n).
    Exit,
    /// To the lab: send the job's process group a signal (payload: `i32`).
    Signal,
    /// To the lab: power off.
    PowerOff,
}

impl Kind {
    const ALL: [Self; 8] =
        [Self::Ready, Self::Start, Self::Stdin, Self::Stdout, Self::Stderr, Self::Exit, Self::Signal, Self::PowerOff];
}

/// A program to run in the lab.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Job {
    /// The program and its arguments; the program is looked up in `PATH`.
    pub argv: Vec<String>,
    /// Environment on top of the lab's own.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// Working directory.
    #[serde(default)]
    pub cwd: Option<String>,
}

/// One frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// The job it belongs to.
    pub job: u32,
    /// What it carries.
    pub kind: Kind,
    /// Its bytes, at most [`MAX_PAYLOAD`].
    pub payload: Vec<u8>,
}

impl Frame {
    /// A frame of `job`.
    pub fn new(job: u32, kind: Kind, payload: impl Into<Vec<u8>>) -> Self {
        Self { job, kind, payload: payload.into() }
    }

    /// The payload as a number, for [`Kind::Exit`] and [`Kind::Signal`].
    pub fn number(&self) -> io::Result<i32> {
        match self.payload.as_slice() {
            &[a, b, c, d] => Ok(i32::from_le_bytes([a, b, c, d])),
            other => Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("{:?} frame of {} bytes: expected 4", self.kind, other.len()),
            )),
        }
    }

    /// Writes the frame in one piece.
    pub fn write(&self, mut to: impl Write) -> io::Result<()> {
        let length = u32::try_from(self.payload.len()).map_err(|_| invalid("payload too long"))?;
        if self.payload.len() > MAX_PAYLOAD {
            return Err(invalid(&format!("payload of {length} bytes: expected at most {MAX_PAYLOAD}")));
        }
        let mut bytes = Vec::with_capacity(9 + self.payload.len());
        bytes.extend(self.job.to_le_bytes());
        bytes.push(self.kind as u8);
        bytes.extend(length.to_le_bytes());
        bytes.extend(&self.payload);
        to.write_all(&bytes)?;
        to.flush()
    }

    /// Reads the next frame; an end of file between two frames is `None`.
    pub fn read(mut from: impl Read) -> io::Result<Option<Self>> {
        let mut header = [0; 9];
        match from.read(&mut header[..1])? {
            0 => return Ok(None),
            _ => from.read_exact(&mut header[1..])?,
        }
        let [j0, j1, j2, j3, kind, l0, l1, l2, l3] = header;
        let job = u32::from_le_bytes([j0, j1, j2, j3]);
        let length = u32::from_le_bytes([l0, l1, l2, l3]) as usize;
        let kind = *Kind::ALL.get(usize::from(kind)).ok_or_else(|| invalid(&format!("frame of kind {kind}")))?;
        if length > MAX_PAYLOAD {
            return Err(invalid(&format!("frame of {length} bytes: expected at most {MAX_PAYLOAD}")));
        }
        let mut payload = vec![0; length];
        from.read_exact(&mut payload)?;
        Ok(Some(Self { job, kind, payload }))
    }
}

fn invalid(message: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_survive_the_wire() {
        let mut bytes = Vec::new();
        let frames = Kind::ALL.map(|kind| Frame::new(7, kind, [1, 2, 3, 255]));
        for frame in &frames {
            frame.write(&mut bytes).unwrap();
        }
        let mut from = bytes.as_slice();
        for frame in &frames {
            assert_eq!(Frame::read(&mut from).unwrap().as_ref(), Some(frame));
        }
        assert_eq!(Frame::read(&mut from).unwrap(), None);
    }

    #[test]
    fn refuses_unknown_kinds_and_lengths() {
        assert!(Frame::read([0, 0, 0, 0, 99, 0, 0, 0, 0].as_slice()).is_err());
        assert!(Frame::read([0, 0, 0, 0, 1, 255, 255, 255, 255].as_slice()).is_err());
        assert!(Frame::new(0, Kind::Stdin, vec![0; MAX_PAYLOAD + 1]).write(Vec::new()).is_err());
    }
}
