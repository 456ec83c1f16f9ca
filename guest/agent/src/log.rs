//! Logging to the kernel's log, which is the console of a guest.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};

use tracing::Level;
use tracing_subscriber::fmt::MakeWriter;

use crate::sync::Mutex;

/// Sends `tracing` events up to `level` to `/dev/kmsg`, or to standard error without one.
pub fn start(level: Level) {
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(level)
        .without_time()
        .with_ansi(false)
        .with_target(false)
        .with_level(false)
        .with_writer(KernelLog::open());
    // A second call in the same process keeps the first subscriber.
    let _ = subscriber.try_init();
}

/// Makes a panic end the process, with its reason in the log: PID 1 ending ends the VM with an error, whereas a
/// half-dead agent would leave it hanging.
pub fn abort_on_panic() {
    std::panic::set_hook(Box::new(|panic| {
        tracing::error!("agent: {panic}");
        std::process::abort();
    }));
}

struct KernelLog(Option<Mutex<File>>);

impl KernelLog {
    fn open() -> Self {
        Self(OpenOptions::new().write(true).open("/dev/kmsg").ok().map(Mutex::new))
    }
}

impl<'a> MakeWriter<'a> for KernelLog {
    type Writer = Line<'a>;

    fn make_writer(&'a self) -> Line<'a> {
        Line { log: self, priority: 6 }
    }

    fn make_writer_for(&'a self, metadata: &tracing::Metadata<'_>) -> Line<'a> {
        let priority = match *metadata.level() {
            Level::ERROR => 3,
            Level::WARN => 4,
            Level::INFO => 6,
            _ => 7,
        };
        Line { log: self, priority }
    }
}

/// One record: `/dev/kmsg` takes one per write, and `tracing` writes an event at once.
struct Line<'a> {
    log: &'a KernelLog,
    priority: u8,
}

impl Write for Line<'_> {
    fn write(&mut self, text: &[u8]) -> io::Result<usize> {
        let record = record(self.priority, text);
        match &self.log.0 {
            Some(log) => log.lock().write_all(&record)?,
            None => io::stderr().write_all(text)?,
        }
        Ok(text.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Longest message: the kernel refuses records above about a kilobyte.
const MAX_MESSAGE: usize = 900;

fn record(priority: u8, text: &[u8]) -> Vec<u8> {
    let text = text.trim_ascii();
    let text = &text[..text.len().min(MAX_MESSAGE)];
    let mut record = format!("<{priority}>agent: ").into_bytes();
    record.extend(text.iter().map(|&byte| if byte == b'\n' { b' ' } else { byte }));
    record.push(b'\n');
    record
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_one_bounded_line() {
        assert_eq!(record(4, b"a\nb\n"), b"<4>agent: a b\n");
        assert!(record(6, &[b'x'; 5000]).len() < 1000);
    }
}
