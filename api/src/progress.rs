//! Progress of imports, on a terminal.

use std::collections::BTreeMap;

use bellows_block::Digest;
use bellows_block::oci::Retry;
use bellows_block::store::{Progress, ProgressKind};
use bellows_memory::sync::Mutex;
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use crate::output::say;

/// With the size of the layer known, and without.
const BAR: &str = "{msg} [{bar:30}] {bytes}/{total_bytes} {bytes_per_sec}, {eta} left";
const COUNT: &str = "{msg} {bytes} {bytes_per_sec}";

/// A bar for each layer that is being read; nothing if standard error is not a terminal.
#[derive(Default)]
pub(crate) struct ImportProgress {
    screen: MultiProgress,
    /// By the layer's index.
    bars: Mutex<BTreeMap<usize, Bar>>,
}

struct Bar {
    bar: ProgressBar,
    label: String,
    blob: Option<Digest>,
    /// Its message names the awaited event.
    waits: bool,
}

impl ImportProgress {
    /// Shows that an attempt is repeated after a wait: in the bar of its layer, or else above the bars.
    pub(crate) fn retry(&self, retry: &Retry) {
        if self.screen.is_hidden() {
            return say(retry);
        }
        let is_meant = |bar: &&mut Bar| bar.blob.is_some_and(|blob| retry.url.contains(&blob.to_string()));
        match self.bars.lock().values_mut().find(is_meant) {
            Some(bar) => bar.wait(retry),
            None => drop(self.screen.println(format!("bellows: {retry}"))),
        }
    }

    pub(crate) fn show(&self, step: Progress) {
        let mut bars = self.bars.lock();
        match step.kind {
            ProgressKind::Present => {}
            ProgressKind::Reading { bytes, total } => {
                let new = || {
                    let mut bar = Bar::new(&step);
                    bar.bar = self.screen.add(bar.bar);
                    bar
                };
                bars.entry(step.index).or_insert_with(new).advance(bytes, total);
            }
            ProgressKind::Done => {
                if let Some(Bar { bar, .. }) = bars.remove(&step.index) {
                    bar.finish_and_clear();
                    self.screen.remove(&bar);
                }
            }
        }
    }
}

impl Bar {
    fn new(step: &Progress) -> Self {
        let label = format!("layer {} of {}", step.index + 1, step.layers);
        let bar = ProgressBar::no_length().with_style(style(COUNT)).with_message(label.clone());
        Self { bar, label, blob: step.blob, waits: false }
    }

    fn advance(&mut self, bytes: u64, total: Option<u64>) {
        if let Some(total) = total.filter(|total| self.bar.length() != Some(*total)) {
            self.bar.set_style(style(BAR));
            self.bar.set_length(total);
        }
        if self.waits {
            self.waits = false;
            self.bar.set_message(self.label.clone());
        }
        self.bar.set_position(bytes);
    }

    fn wait(&mut self, retry: &Retry) {
        self.waits = true;
        self.bar.set_message(format!("{}: {};", self.label, retry.prospect()));
    }
}

fn style(template: &str) -> ProgressStyle {
    // The default template is always valid.
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()).progress_chars("=> ")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use indicatif::{InMemoryTerm, ProgressDrawTarget};

    use super::*;

    #[test]
    fn templates_are_valid() {
        for template in [BAR, COUNT] {
            ProgressStyle::with_template(template).unwrap();
        }
    }

    #[test]
    fn each_layer_that_is_read_has_a_bar() {
        let progress = ImportProgress::default();
        let show = |index, kind| progress.show(Progress { index, layers: 3, blob: None, kind });
        let bars = || progress.bars.lock().keys().copied().collect::<Vec<_>>();
        show(0, ProgressKind::Present);
        show(1, ProgressKind::Reading { bytes: 0, total: None });
        let length = || progress.bars.lock()[&1].bar.length();
        assert_eq!(length(), None);
        show(1, ProgressKind::Reading { bytes: 1, total: Some(10) });
        show(2, ProgressKind::Reading { bytes: 5, total: None });
        show(1, ProgressKind::Reading { bytes: 7, total: Some(10) });
        assert_eq!(bars(), [1, 2]);
        assert_eq!(length(), Some(10));
        assert_eq!(progress.bars.lock()[&1].bar.position(), 7);
        show(1, ProgressKind::Done);
        assert_eq!(bars(), [2]);
    }

    #[test]
    fn a_layers_bar_names_the_awaited_event() {
        let terminal = InMemoryTerm::new(10, 120);
        let target = ProgressDrawTarget::term_like_with_hz(Box::new(terminal.clone()), 255);
        let progress = ImportProgress { screen: MultiProgress::with_draw_target(target), ..Default::default() };
        let blobs = [1, 2].map(|number: u8| Digest::of(&[number]));
        let read = |index: usize, bytes| {
            let kind = ProgressKind::Reading { bytes, total: None };
            progress.show(Progress { index, layers: 2, blob: Some(blobs[index]), kind });
        };
        let retry = |url: String| Retry { url, reason: "r".into(), number: 2, tries: 6, wait: Duration::from_secs(1) };
        let message = |index: usize| progress.bars.lock()[&index].bar.message();
        read(0, 0);
        read(1, 5);
        progress.retry(&retry(format!("https://m/v2/a/blobs/{}?ns=r.io", blobs[1])));
        assert_eq!(
            (message(0).as_str(), message(1).as_str()),
            ("layer 1 of 2", "layer 2 of 2: r; try 2 of 6 in 1.0 s;")
        );
        read(1, 6);
        assert_eq!(message(1), "layer 2 of 2");
        // Messages without a layer stand above the bars.
        progress.retry(&retry("https://r.io/v2/a/manifests/1".to_owned()));
        let shown = terminal.contents();
        assert!(shown.starts_with("bellows: https://r.io/v2/a/manifests/1: r; try 2 of 6 in 1.0 s\n"), "{shown}");
    }
}
