//! Progress of imports, on a terminal.

use bellows_block::store::{Progress, ProgressKind};
use indicatif::{ProgressBar, ProgressStyle};

/// A bar for each layer that is read; nothing where standard error is no terminal.
pub(crate) struct ImportProgress {
    bar: Option<ProgressBar>,
}

impl ImportProgress {
    pub(crate) fn new() -> Self {
        Self { bar: None }
    }

    pub(crate) fn show(&mut self, step: Progress) {
        match step.kind {
            ProgressKind::Present => {}
            ProgressKind::Reading { bytes, total } => {
                let bar = self.bar.get_or_insert_with(|| bar(step.index, step.layers, total));
                bar.set_position(bytes);
            }
            ProgressKind::Done => {
                if let Some(bar) = self.bar.take() {
                    bar.finish_and_clear();
                }
            }
        }
    }
}

fn bar(index: usize, layers: usize, total: u64) -> ProgressBar {
    // The default has no template that could be wrong.
    let style = ProgressStyle::with_template("{msg} [{bar:30}] {bytes}/{total_bytes}")
        .unwrap_or_else(|_| ProgressStyle::default_bar())
        .progress_chars("=> ");
    ProgressBar::new(total).with_style(style).with_message(format!("importing layer {} of {layers}", index + 1))
}
