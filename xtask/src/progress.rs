//! Shows progress: a spinner or a bar with the time taken on a terminal, plain lines elsewhere.

use std::io::{IsTerminal, stderr};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::error::Result;

/// Shorter steps print nothing.
const WORTH_TELLING: Duration = Duration::from_secs(1);

/// One step while it runs.
#[derive(Debug)]
pub struct Step {
    bar: ProgressBar,
}

impl Step {
    /// Shows a line, and advances the bar.
    pub fn line(&self, line: &str) {
        self.bar.inc(1);
        self.bar.set_message(line.trim().replace('\t', " "));
    }
}

/// Runs one step under a title.
pub fn step<T>(title: &str, work: impl FnOnce(&Step) -> Result<T>) -> Result<T> {
    show(title, ProgressBar::new_spinner(), "{spinner} {prefix}  {elapsed}  {wide_msg:.dim}", work)
}

/// Runs one step that is about `lines` calls of [`Step::line`] long.
pub fn bar<T>(title: &str, lines: u64, work: impl FnOnce(&Step) -> Result<T>) -> Result<T> {
    show(title, ProgressBar::new(lines), "{spinner} {prefix}  {elapsed}  {bar:30} {percent}%  {wide_msg:.dim}", work)
}

fn show<T>(title: &str, bar: ProgressBar, template: &str, work: impl FnOnce(&Step) -> Result<T>) -> Result<T> {
    let terminal = stderr().is_terminal();
    let started = Instant::now();
    if terminal {
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        bar.set_prefix(title.to_owned());
        bar.enable_steady_tick(Duration::from_millis(120));
    } else {
        bar.set_draw_target(ProgressDrawTarget::hidden());
    }
    let result = work(&Step { bar: bar.clone() });
    bar.finish_and_clear();
    let (took, outcome) = (started.elapsed(), if result.is_ok() { "done" } else { "FAILED" });
    if took >= WORTH_TELLING || result.is_err() {
        eprintln!("{title}: {outcome} in {:.1} s", took.as_secs_f64());
    }
    result
}
