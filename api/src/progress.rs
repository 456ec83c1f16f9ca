//! Progress of imports, on a terminal.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use bellows_block::oci::Retry;
use bellows_block::store::{Progress, ProgressKind};
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

/// With the size of the layer known, and without.
const BAR: &str = "{msg} [{bar:30}] {bytes}/{total_bytes} {bytes_per_sec}, {eta} left";
const COUNT: &str = "{msg} {bytes} {bytes_per_sec}";

/// A bar for each layer that is being read; nothing where standard error is no terminal.
#[derive(Default)]
pub(crate) struct ImportProgress {
    screen: MultiProgress,
    /// By the layer's index.
    bars: Mutex<BTreeMap<usize, ProgressBar>>,
}

impl ImportProgress {
    /// Says above the bars that something is waited for and tried again.
    pub(crate) fn retry(&self, retry: &Retry) {
        let text = format!("bellows: {retry}");
        if self.screen.is_hidden() || self.screen.println(&text).is_err() {
            eprintln!("{text}");
        }
    }

    pub(crate) fn show(&self, step: Progress) {
        let mut bars = self.bars.lock().unwrap_or_else(PoisonError::into_inner);
        match step.kind {
            ProgressKind::Present => {}
            ProgressKind::Reading { bytes, total } => {
                let new = || self.screen.add(bar(step.index, step.layers, total));
                bars.entry(step.index).or_insert_with(new).set_position(bytes);
            }
            ProgressKind::Done => {
                if let Some(bar) = bars.remove(&step.index) {
                    bar.finish_and_clear();
                    self.screen.remove(&bar);
                }
            }
        }
    }
}

fn bar(index: usize, layers: usize, total: Option<u64>) -> ProgressBar {
    let template = if total.is_some() { BAR } else { COUNT };
    // The default has no template that could be wrong.
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    let bar = total.map_or_else(ProgressBar::no_length, ProgressBar::new);
    bar.with_style(style.progress_chars("=> ")).with_message(format!("layer {} of {layers}", index + 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn templates_are_valid() {
        for template in [BAR, COUNT] {
            ProgressStyle::with_template(template).unwrap();
        }
    }

    #[test]
    fn there_is_a_bar_for_each_layer_that_is_read() {
        let progress = ImportProgress::default();
        let show = |index, kind| progress.show(Progress { index, layers: 3, kind });
        let bars = || progress.bars.lock().unwrap().keys().copied().collect::<Vec<_>>();
        show(0, ProgressKind::Present);
        show(1, ProgressKind::Reading { bytes: 1, total: Some(10) });
        show(2, ProgressKind::Reading { bytes: 5, total: None });
        show(1, ProgressKind::Reading { bytes: 7, total: Some(10) });
        assert_eq!(bars(), [1, 2]);
        assert_eq!(progress.bars.lock().unwrap()[&1].position(), 7);
        show(1, ProgressKind::Done);
        assert_eq!(bars(), [2]);
    }
}
