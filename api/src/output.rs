//! The output of a program, and the command's own messages. Readers may close their end first.

use std::fmt::Display;
use std::io::{self, Write};

use crate::error::CliError;

/// Prints a line of the result.
///
/// # Errors
/// Standard output cannot be written to; see [`CliError::Output`].
pub(crate) fn print(line: impl Display) -> Result<(), CliError> {
    writeln!(io::stdout(), "{line}").map_err(CliError::Output)
}

/// Prints a message on standard error; ignores a missing reader.
pub(crate) fn say(text: impl Display) {
    say_plainly(format_args!("bellows: {text}"));
}

/// The same, without the program's name.
pub(crate) fn say_plainly(text: impl Display) {
    let _ = writeln!(io::stderr(), "{text}");
}

/// A program's output, with a callback for the moment that it can no longer be written.
pub(crate) struct Watched<W, F> {
    sink: W,
    on_failure: Option<F>,
}

impl<W: Write, F: FnOnce()> Watched<W, F> {
    pub(crate) fn new(sink: W, on_failure: F) -> Self {
        Self { sink, on_failure: Some(on_failure) }
    }

    fn watch<T>(&mut self, result: io::Result<T>) -> io::Result<T> {
        if let Err(error) = &result
            && error.kind() != io::ErrorKind::Interrupted
            && let Some(on_failure) = self.on_failure.take()
        {
            on_failure();
        }
        result
    }
}

impl<W: Write, F: FnOnce()> Write for Watched<W, F> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.sink.write(bytes);
        self.watch(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        let flushed = self.sink.flush();
        self.watch(flushed)
    }
}

/// A writer that drops its output once the reader is gone.
pub(crate) struct Lenient<W>(pub(crate) W);

impl<W: Write> Write for Lenient<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self.0.write(bytes) {
            Err(error) if error.kind() != io::ErrorKind::Interrupted => Ok(bytes.len()),
            written => written,
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        let _ = self.0.flush();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::os::unix::net::UnixStream;

    use super::*;

    /// A pipe whose reader has gone.
    fn broken() -> UnixStream {
        UnixStream::pair().unwrap().0
    }

    #[test]
    fn messages_without_a_reader_are_not_a_failure() {
        let mut words = Lenient(broken());
        words.write_all(b"anybody there?").unwrap();
        words.flush().unwrap();
    }

    #[test]
    fn the_end_of_output_is_reported_once() {
        let told = Cell::new(0);
        let mut output = Watched::new(broken(), || told.set(told.get() + 1));
        for _ in 0..2 {
            assert_eq!(output.write_all(b"x").unwrap_err().kind(), io::ErrorKind::BrokenPipe);
        }
        assert_eq!(told.get(), 1);
        let mut output = Watched::new(Vec::new(), || told.set(9));
        output.write_all(b"x").unwrap();
        output.flush().unwrap();
        assert_eq!((told.get(), output.sink), (1, b"x".to_vec()));
    }
}
