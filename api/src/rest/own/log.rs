//! The last output of an instance. Writing never waits for readers: what is too old for the limit is lost.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use hyper::body::Bytes;
use tokio::sync::watch;
use tracing::Span;

use super::request::Output;

/// Bytes that are kept.
const LIMIT: usize = 1 << 20;
/// Longest piece that is put together from short ones.
const PIECE: usize = 4096;
/// What a piece costs beside its bytes.
const OVERHEAD: usize = 64;

/// The output of an instance, for one writer of each stream and any number of readers.
pub(crate) struct OutputLog {
    kept: Mutex<Kept>,
    /// Changes with each write, and at the end.
    changed: watch::Sender<()>,
}

#[derive(Default)]
struct Kept {
    pieces: VecDeque<(Output, Vec<u8>)>,
    /// The number of the first piece.
    first: u64,
    bytes: usize,
    ended: bool,
    /// The time until the first byte.
    awaited: Option<Span>,
}

/// What a reader gets at once.
pub(crate) struct Part {
    pub(crate) bytes: Bytes,
    /// Where to read on.
    pub(crate) next: Position,
    /// Nothing will follow.
    pub(crate) ended: bool,
}

/// How far a reader has come.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct Position {
    piece: u64,
    /// Bytes of that piece that were read.
    offset: usize,
}

impl Default for OutputLog {
    fn default() -> Self {
        Self { kept: Mutex::default(), changed: watch::Sender::new(()) }
    }
}

impl OutputLog {
    /// Ends `span` with the first byte of output.
    pub(crate) fn await_first(&self, span: Span) {
        self.kept().awaited = Some(span);
    }

    /// Adds output.
    pub(crate) fn add(&self, stream: Output, bytes: &[u8]) {
        let mut kept = self.kept();
        kept.awaited = None;
        for bytes in bytes.chunks(PIECE) {
            kept.add(stream, bytes);
        }
        drop(kept);
        self.changed.send_replace(());
    }

    /// Nothing will follow.
    pub(crate) fn end(&self) {
        let mut kept = self.kept();
        kept.ended = true;
        kept.awaited = None;
        drop(kept);
        self.changed.send_replace(());
    }

    /// What there is after `position`, or after what is lost, of one stream or of both.
    pub(crate) fn read(&self, position: Position, stream: Option<Output>) -> Part {
        self.kept().read(position, stream)
    }

    /// Learns of changes after this call.
    pub(crate) fn subscribe(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Kept {
    fn add(&mut self, stream: Output, bytes: &[u8]) {
        match self.pieces.back_mut() {
            Some((last, piece)) if *last == stream && piece.len() + bytes.len() <= PIECE => {
                piece.extend_from_slice(bytes);
                self.bytes += bytes.len();
            }
            _ => {
                self.pieces.push_back((stream, bytes.to_vec()));
                self.bytes += bytes.len() + OVERHEAD;
            }
        }
        while self.bytes > LIMIT {
            let Some((_, lost)) = self.pieces.pop_front() else { break };
            self.first += 1;
            self.bytes -= lost.len() + OVERHEAD;
        }
    }

    fn read(&self, position: Position, stream: Option<Output>) -> Part {
        let mut bytes = Vec::new();
        let from = if position.piece < self.first { Position { piece: self.first, offset: 0 } } else { position };
        let skipped = usize::try_from(from.piece - self.first).unwrap_or(usize::MAX);
        let mut next = from;
        for (index, (output, piece)) in self.pieces.iter().skip(skipped).enumerate() {
            let offset = if index == 0 { from.offset } else { 0 };
            if stream.is_none_or(|wanted| wanted == *output) {
                bytes.extend_from_slice(piece.get(offset..).unwrap_or_default());
            }
            // More may be added to this piece.
            next = Position { piece: from.piece + index as u64, offset: piece.len() };
        }
        Part { bytes: bytes.into(), next, ended: self.ended }
    }
}

/// Writes to a log, as one of its streams.
pub(crate) struct LogWriter {
    pub(crate) log: Arc<OutputLog>,
    pub(crate) stream: Output,
}

impl io::Write for LogWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.log.add(self.stream, bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::Output::{Stderr, Stdout};
    use super::*;

    fn all(log: &OutputLog, stream: Option<Output>) -> Vec<u8> {
        log.read(Position::default(), stream).bytes.to_vec()
    }

    #[test]
    fn streams_are_kept_in_order_and_apart() {
        let log = OutputLog::default();
        for (stream, text) in [(Stdout, "a"), (Stderr, "b"), (Stdout, "c")] {
            log.add(stream, text.as_bytes());
        }
        assert_eq!(all(&log, None), b"abc");
        assert_eq!(all(&log, Some(Stdout)), b"ac");
        assert_eq!(all(&log, Some(Stderr)), b"b");
        assert!(!log.read(Position::default(), None).ended);
        log.end();
        assert!(log.read(Position::default(), None).ended);
    }

    #[test]
    fn what_is_too_old_is_lost_and_memory_is_bounded() {
        let log = OutputLog::default();
        // The costliest way: pieces of one byte.
        for index in 0..200_000_u32 {
            log.add(if index % 2 == 0 { Stdout } else { Stderr }, &[u8::try_from(index % 251).unwrap()]);
        }
        let kept = log.kept();
        assert!(kept.pieces.len() * OVERHEAD <= LIMIT);
        drop(kept);
        let bytes = all(&log, None);
        assert!(bytes.len() > 10_000);
        assert_eq!(bytes.last(), Some(&u8::try_from(199_999 % 251).unwrap()));
        log.add(Stdout, &vec![7; 3 << 20]);
        let bytes = all(&log, None);
        assert!((LIMIT * 9 / 10..=LIMIT).contains(&bytes.len()) && bytes.iter().all(|byte| *byte == 7));
    }

    proptest! {
        /// However a reader's turns fall, it reads what was written, once.
        #[test]
        fn a_reader_that_keeps_up_reads_everything(writes in prop::collection::vec((any::<bool>(), 0..9000_usize, any::<bool>()), 0..40)) {
            let log = OutputLog::default();
            let (mut expected, mut read, mut position) = (Vec::new(), Vec::new(), Position::default());
            for (index, (is_error, length, reads)) in writes.into_iter().enumerate() {
                let bytes: Vec<u8> = (0..length).map(|at| u8::try_from((at + index) % 256).unwrap()).collect();
                log.add(if is_error { Stderr } else { Stdout }, &bytes);
                expected.extend(bytes);
                if reads {
                    let part = log.read(position, None);
                    position = part.next;
                    read.extend_from_slice(&part.bytes);
                }
            }
            read.extend_from_slice(&log.read(position, None).bytes);
            prop_assert_eq!(read, expected);
        }
    }
}
