//! The log of the monitor: where it goes, how much of it and in what form, as `/logger` says.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
#[cfg(feature = "otlp")]
use std::sync::OnceLock;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde_json::{Map, Value, json};
use tracing::field::{Field, Visit};
use tracing::{Event, Metadata, Subscriber};
use tracing_subscriber::Layer as _;
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
#[cfg(feature = "otlp")]
use crate::traces::Traces;

/// The form of a line.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, clap::ValueEnum)]
pub(crate) enum Form {
    /// As Firecracker writes it.
    #[default]
    Text,
    /// An object, for programs that collect logs.
    Json,
}

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
    #[cfg(feature = "otlp")]
    traces: OnceLock<Traces>,
}

#[derive(Default)]
struct State {
    id: String,
    form: Form,
    /// Standard error without one.
    file: Option<File>,
    show_level: bool,
    show_origin: bool,
    /// Only what comes from here is logged.
    module: Option<String>,
}

impl Log {
    /// Takes over the log of this process, for the VM `id`.
    pub(crate) fn install(id: &str, form: Form, #[cfg(feature = "otlp")] traces: Option<Traces>) -> Self {
        let log = Self::default();
        {
            let mut state = log.shared.state();
            state.id = id.to_owned();
            state.form = form;
        }
        let (filter, handle) = reload::Layer::new(LevelFilter::INFO);
        let set_level: SetLevel = Box::new(move |level| {
            // It fails only without a subscriber, which stays as long as the process.
            let _ = handle.reload(level);
        });
        *log.shared.set_level.lock().unwrap_or_else(PoisonError::into_inner) = Some(set_level);
        // It may have no reader.
        let lines = tracing_subscriber::fmt::layer().with_ansi(false).log_internal_errors(false);
        let lines = lines.event_format(log.clone()).with_writer(log.clone()).with_filter(filter);
        let all = tracing_subscriber::registry().with(lines);
        #[cfg(feature = "otlp")]
        let all = all.with(traces.as_ref().map(Traces::layer));
        all.init();
        #[cfg(feature = "otlp")]
        if let Some(traces) = traces {
            // There is one log.
            let _ = log.shared.traces.set(traces);
        }
        log
    }

    /// What sends spans, if something does.
    #[cfg(feature = "otlp")]
    pub(crate) fn traces(&self) -> Option<&Traces> {
        self.shared.traces.get()
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
        let metadata = event.metadata();
        let thread = std::thread::current();
        let thread = thread.name().unwrap_or("-");
        let state = self.shared.state();
        if state.form == Form::Json {
            let id = state.id.clone();
            drop(state);
            return write_object(&mut writer, &id, thread, event);
        }
        SystemTime.format_time(&mut writer)?;
        write!(writer, " [{}:{thread}", state.id)?;
        if state.show_level {
            write!(writer, ":{}", metadata.level())?;
        }
        if let (true, Some(file), Some(line)) = (state.show_origin, metadata.file(), metadata.line()) {
            write!(writer, ":{file}:{line}")?;
        }
        // What a field says of itself may take a while.
        drop(state);
        writer.write_str("] ")?;
        context.format_fields(writer.by_ref(), event)?;
        writeln!(writer)
    }
}

/// Writes an event as one line of JSON: what every event has, then its own fields, such as `instance` or `path`.
fn write_object(writer: &mut Writer<'_>, id: &str, thread: &str, event: &Event<'_>) -> fmt::Result {
    let mut time = String::new();
    SystemTime.format_time(&mut Writer::new(&mut time))?;
    let metadata = event.metadata();
    let mut fields = Fields::default();
    event.record(&mut fields);
    let Fields(mut line) = fields;
    for (name, value) in [
        ("time", json!(time)),
        ("level", json!(metadata.level().as_str())),
        ("vm", json!(id)),
        ("thread", json!(thread)),
        ("module", json!(metadata.target())),
    ] {
        line.insert(name.to_owned(), value);
    }
    writeln!(writer, "{}", Value::Object(line))
}

/// The fields of an event, by name.
#[derive(Default)]
struct Fields(Map<String, Value>);

impl Fields {
    fn set(&mut self, field: &Field, value: Value) {
        self.0.insert(field.name().to_owned(), value);
    }
}

impl Visit for Fields {
    fn record_f64(&mut self, field: &Field, value: f64) {
        self.set(field, json!(value));
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.set(field, json!(value));
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.set(field, json!(value));
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.set(field, json!(value));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.set(field, json!(value));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.set(field, json!(format!("{value:?}")));
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
    fn a_line_of_json_has_the_vm_and_all_fields_whatever_they_say() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        let log = Log::default();
        {
            let mut state = log.shared.state();
            state.id = "vm-1".into();
            state.form = Form::Json;
        }
        log.change(&Logger { log_path: Some(path.clone()), ..Logger::default() }).unwrap();
        let lines = tracing_subscriber::fmt().with_ansi(false).event_format(log.clone());
        let subscriber = lines.with_writer(log.clone()).finish();
        tracing::subscriber::with_default(subscriber, || {
            tracing::warn!(instance = %"a\n\"b", size = 3, vm = "other", "two\nlines");
            tracing::info!("next");
        });
        let text = fs::read_to_string(&path).unwrap();
        let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(lines.len(), 2, "{text}");
        let said = ["level", "vm", "instance", "size", "message"].map(|name| lines[0][name].clone());
        assert_eq!(said, [json!("WARN"), json!("vm-1"), json!("a\n\"b"), json!(3), json!("two\nlines")]);
        assert!(lines[1]["time"].as_str().unwrap().ends_with('Z') && lines[1]["module"] == module_path!(), "{text}");
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
