//! Figures for Prometheus, in its text format 0.0.4.

use std::fmt::{Display, Write as _};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Upper bounds of the buckets of all histograms, in microseconds.
const BOUNDS: [u64; 14] =
    [50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 500_000, 2_500_000, 10_000_000];

/// Times that requests took.
#[derive(Default)]
pub(crate) struct Figures {
    /// From the request until an instance could use the memory.
    pub(crate) plug: Histogram,
    /// From the request until memory was unreachable for the guest.
    pub(crate) unplug: Histogram,
    /// From then until the host had it.
    pub(crate) discard: Histogram,
    /// Of whole instances.
    pub(crate) start: Histogram,
    /// Of further processes, until they had ended.
    pub(crate) exec: Histogram,
}

/// How often something took how long.
#[derive(Default)]
pub(crate) struct Histogram {
    buckets: [AtomicU64; BOUNDS.len() + 1],
    microseconds: AtomicU64,
}

impl Histogram {
    /// Counts one.
    pub(crate) fn add(&self, time: Duration) {
        let microseconds = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        let bucket = BOUNDS.iter().position(|bound| microseconds <= *bound).unwrap_or(BOUNDS.len());
        self.buckets[bucket].fetch_add(1, Ordering::Relaxed);
        self.microseconds.fetch_add(microseconds, Ordering::Relaxed);
    }
}

/// A page of figures.
#[derive(Default)]
pub(crate) struct Page(String);

impl Page {
    /// Begins a group of figures: `name` without the prefix, which ends in the unit, and in `_total` for counters.
    pub(crate) fn group(&mut self, name: &'static str, help: &str) -> Group<'_> {
        let kind = if name.ends_with("_total") { "counter" } else { "gauge" };
        self.head(name, help, kind);
        Group { page: self, name }
    }

    /// Adds a histogram.
    pub(crate) fn histogram(&mut self, name: &str, help: &str, histogram: &Histogram) {
        self.head(name, help, "histogram");
        let mut count = 0;
        let counts = histogram.buckets.iter().map(|bucket| bucket.load(Ordering::Relaxed));
        let bounds = BOUNDS.iter().map(|bound| seconds(*bound)).chain(["+Inf".to_owned()]);
        for (bound, found) in bounds.zip(counts) {
            count += found;
            self.line(format_args!("bellows_{name}_bucket{{le=\"{bound}\"}} {count}"));
        }
        let sum = seconds(histogram.microseconds.load(Ordering::Relaxed));
        self.line(format_args!("bellows_{name}_sum {sum}"));
        self.line(format_args!("bellows_{name}_count {count}"));
    }

    /// The page as text.
    pub(crate) fn text(self) -> String {
        self.0
    }

    fn head(&mut self, name: &str, help: &str, kind: &str) {
        self.line(format_args!("# HELP bellows_{name} {help}"));
        self.line(format_args!("# TYPE bellows_{name} {kind}"));
    }

    fn line(&mut self, line: std::fmt::Arguments<'_>) {
        // A `String` takes everything.
        let _ = writeln!(self.0, "{line}");
    }
}

/// Figures of one name.
pub(crate) struct Group<'a> {
    page: &'a mut Page,
    name: &'static str,
}

impl Group<'_> {
    /// Adds a figure with its labels.
    pub(crate) fn add(&mut self, labels: &[(&str, &dyn Display)], value: impl Display) -> &mut Self {
        let label = |(name, value): &(&str, &dyn Display)| format!("{name}=\"{}\"", escaped(&value.to_string()));
        let labels: Vec<_> = labels.iter().map(label).collect();
        let labels = if labels.is_empty() { String::new() } else { format!("{{{}}}", labels.join(",")) };
        let name = self.name;
        self.page.line(format_args!("bellows_{name}{labels} {value}"));
        self
    }
}

fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

/// Microseconds as seconds.
fn seconds(microseconds: u64) -> String {
    format!("{}.{:06}", microseconds / 1_000_000, microseconds % 1_000_000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_histogram_counts_each_time_once_and_adds_up() {
        let histogram = Histogram::default();
        for micros in [0, 50, 51, 3_000_000, 60_000_000] {
            histogram.add(Duration::from_micros(micros));
        }
        let mut page = Page::default();
        page.histogram("plug_seconds", "Time.", &histogram);
        let text = page.text();
        assert!(
            text.starts_with("# HELP bellows_plug_seconds Time.\n# TYPE bellows_plug_seconds histogram\n"),
            "{text}"
        );
        for line in [
            "bellows_plug_seconds_bucket{le=\"0.000050\"} 2",
            "bellows_plug_seconds_bucket{le=\"0.000100\"} 3",
            "bellows_plug_seconds_bucket{le=\"2.500000\"} 3",
            "bellows_plug_seconds_bucket{le=\"10.000000\"} 4",
            "bellows_plug_seconds_bucket{le=\"+Inf\"} 5",
            "bellows_plug_seconds_sum 63.000101",
            "bellows_plug_seconds_count 5",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}: {text}");
        }
    }

    #[test]
    fn figures_have_their_kind_and_labels_are_escaped() {
        let mut page = Page::default();
        page.group("exits_total", "Exits.").add(&[("vcpu", &0), ("name", &"a\"b\\c\nd")], 7).add(&[], 1.5);
        page.group("resident_bytes", "Memory.").add(&[], 1);
        let expected = "# HELP bellows_exits_total Exits.\n# TYPE bellows_exits_total counter\n\
            bellows_exits_total{vcpu=\"0\",name=\"a\\\"b\\\\c\\nd\"} 7\nbellows_exits_total 1.5\n\
            # HELP bellows_resident_bytes Memory.\n# TYPE bellows_resident_bytes gauge\nbellows_resident_bytes 1\n";
        assert_eq!(page.text(), expected);
    }
}
