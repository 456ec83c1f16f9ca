//! The log of the monitor: where it goes, how much of it and in what form, as `/logger` says.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tracing::{Event, Metadata, Subscriber};
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::fmt::format::{FormatEvent, FormatFields, Writer};
use tracing_subscriber::fmt::time::{FormatTime as _, SystemTime};
use tracing_subscriber::fmt::{FmtContext, MakeWriter};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::reload;
use tracing_subscriber::util::SubscriberInitExt as _;

use super::bodies::{Level, Logger};
use super::fault::Fault;

type SetLevel = Box<dyn Fn(LevelFilter) + Send + Sync>;

/// A handle to the log. Cheap to clone; the default one is of a log that nobody writes.
#[derive(Clone, Default)]
pub(crate) struct Log {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    set_level: Mutex<Option<SetLevel>>,
}

#[derive(Default)]
struct State {
    id: String,
    /// Standard error without one.
    file: Option<File>,
    show_level: bool,
    show_origin: bool,
    /// Only what comes from here is logged.
    module: Option<String>,
}

impl Log {
    /// Takes over the log of this process, for the VM `id`.
    pub(crate) fn install(id: &str) -> Self {
        let log = Self::default();
        log.shared.state().id = id.to_owned();
        let (filter, handle) = reload::Layer::new(LevelFilter::INFO);
        let set_level: SetLevel = Box::new(move |level| {
            // It fails only without a subscriber, which stays as long as the process.
            let _ = handle.reload(level);
        });
        *log.shared.set_level.lock().unwrap_or_else(PoisonError::into_inner) = Some(set_level);
        // It may have no reader.
        let lines = tracing_subscriber::fmt::layer().with_ansi(false).log_internal_errors(false);
        let lines = lines.event_format(log.clone()).with_writer(log.clone());
        tracing_subscriber::registry().with(filter).with(lines).init();
        log
    }

    /// Changes what a request names. What it does not name stays, but for the level, which is `Info` then.
    ///
    /// # Errors
    /// The file cannot be opened; nothing has changed.
    pub(crate) fn change(&self, logger: &Logger) -> Result<(), Fault> {
        let file = logger.log_path.as_deref().map(|path| output("log_path", path)).transpose()?;
        let mut state = self.shared.state();
        if file.is_some() {
            state.file = file;
        }
        state.show_level = logger.show_level.unwrap_or(state.show_level);
        state.show_origin = logger.show_log_origin.unwrap_or(state.show_origin);
        if logger.module.is_some() {
            state.module.clone_from(&logger.module);
        }
        drop(state);
        let level = match logger.level.unwrap_or(Level::Info) {
            Level::Off => LevelFilter::OFF,
            Level::Error => LevelFilter::ERROR,
            Level::Warn => LevelFilter::WARN,
            Level::Info => LevelFilter::INFO,
            Level::Debug => LevelFilter::DEBUG,
            Level::Trace => LevelFilter::TRACE,
        };
        if let Some(set_level) = &*self.shared.set_level.lock().unwrap_or_else(PoisonError::into_inner) {
            set_level(level);
        }
        Ok(())
    }
}

/// Opens a file or a pipe for output. What it has stays; a pipe without a reader is fine.
pub(super) fn output(field: &str, path: &Path) -> Result<File, Fault> {
    let mut options = OpenOptions::new();
    // To write alone would wait for a reader.
    options.read(true).append(true).create(true).mode(0o600).custom_flags(libc::O_NONBLOCK);
    options.open(path).map_err(|error| {
        Fault::value(field, format!("`{}`", path.display()), format!("a file or pipe that Bellows can write: {error}"))
    })
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Writes a line, or drops it.
pub(crate) struct Line {
    shared: Arc<Shared>,
    is_wanted: bool,
}

impl Write for Line {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.is_wanted {
            // A full pipe loses the line: nothing waits for the reader of a log.
            let _ = match &mut self.shared.state().file {
                Some(file) => file.write_all(bytes),
                None => io::stderr().write_all(bytes),
            };
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl MakeWriter<'_> for Log {
    type Writer = Line;

    fn make_writer(&self) -> Line {
        Line { shared: self.shared.clone(), is_wanted: true }
    }

    fn make_writer_for(&self, metadata: &Metadata<'_>) -> Line {
        let is_wanted = self.shared.state().module.as_ref().is_none_or(|module| metadata.target().starts_with(module));
        Line { shared: self.shared.clone(), is_wanted }
    }
}

impl<S, N> FormatEvent<S, N> for Log
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, context: &FmtContext<'_, S, N>, mut writer: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        SystemTime.format_time(&mut writer)?;
        let metadata = event.metadata();
        {
            let state = self.shared.state();
            write!(writer, " [{}:{}", state.id, std::thread::current().name().unwrap_or("-"))?;
            if state.show_level {
                write!(writer, ":{}", metadata.level())?;
            }
            if let (true, Some(file), Some(line)) = (state.show_origin, metadata.file(), metadata.line()) {
                write!(writer, ":{file}:{line}")?;
            }
        }
        writer.write_str("] ")?;
        context.format_fields(writer.by_ref(), event)?;
        writeln!(writer)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_line_has_what_the_request_asks_for() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        let log = Log::default();
        log.shared.state().id = "vm".into();
        log.change(&Logger { log_path: Some(path.clone()), ..Logger::default() }).unwrap();
        let lines = tracing_subscriber::fmt().with_ansi(false).event_format(log.clone());
        let subscriber = lines.with_writer(log.clone()).finish();
        tracing::subscriber::with_default(subscriber, || {
            tracing::info!("plain");
            log.change(&Logger { show_level: Some(true), show_log_origin: Some(true), ..Logger::default() }).unwrap();
            tracing::warn!(size = 3, "full");
            log.change(&Logger { module: Some("elsewhere".into()), ..Logger::default() }).unwrap();
            tracing::info!("from another module");
        });
        let text = fs::read_to_string(&path).unwrap();
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines.len(), 2, "{text}");
        assert!(lines[0].contains(" [vm:") && lines[0].ends_with("] plain"), "{text}");
        assert!(!lines[0].contains("INFO"), "{text}");
        assert!(lines[1].contains(":WARN:") && lines[1].contains("log.rs:"), "{text}");
        assert!(lines[1].contains("full size=3"), "{text}");
    }

    #[test]
    fn a_file_that_cannot_be_opened_changes_nothing() {
        let log = Log::default();
        let logger = Logger { log_path: Some("/nowhere/log".into()), show_level: Some(true), ..Logger::default() };
        let message = log.change(&logger).unwrap_err().message;
        assert!(message.contains("`log_path` is `/nowhere/log`"), "{message}");
        assert!(!log.shared.state().show_level);
    }
}
