//! All samples so far, in a file to which each is added at once: an interrupted run continues where it stopped.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use bellows_bench::reclaim::{Group, Mode, Sample};

use crate::cache::Key;
use crate::error::{Error, Result};

pub struct Samples {
    path: PathBuf,
    file: File,
    all: Vec<Sample>,
}

impl Samples {
    /// The samples of `path`, if they were taken with the inputs of `key`; otherwise the file starts empty.
    pub fn open(path: &Path, key: &Key) -> Result<Self> {
        let text = fs::read_to_string(path).unwrap_or_default();
        let (first, rest) = text.split_once('\n').unwrap_or_default();
        let all: Vec<Sample> = if first == key.hex() { rest.lines().map_while(parse).collect() } else { Vec::new() };
        let new = path.with_extension("new");
        let mut file = File::create(&new).map_err(Error::at(&new))?;
        writeln!(file, "{}", key.hex()).map_err(Error::at(&new))?;
        let mut samples = Self { path: path.to_owned(), file, all: Vec::new() };
        all.into_iter().try_for_each(|sample| samples.add(sample))?;
        fs::rename(&new, path).map_err(Error::at(path))?;
        Ok(samples)
    }

    pub fn add(&mut self, sample: Sample) -> Result<()> {
        let line = serde_json::to_string(&sample).map_err(|error| Error::other(error.to_string()))?;
        writeln!(self.file, "{line}").map_err(Error::at(&self.path))?;
        self.all.push(sample);
        Ok(())
    }

    pub fn all(&self) -> &[Sample] {
        &self.all
    }

    pub fn count(&self, group: Group, mode: Mode) -> u32 {
        self.all.iter().filter(|sample| sample.group == group && sample.mode == mode).count() as u32
    }
}

/// `None` for an incomplete line.
fn parse(line: &str) -> Option<Sample> {
    serde_json::from_str(line).ok()
}

#[cfg(test)]
mod tests {
    use super::super::report::tests::sample;
    use super::*;

    #[test]
    fn samples_are_kept_unless_their_inputs_have_changed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("samples");
        let (key, other) = (Key::default().with("a", "1"), Key::default().with("a", "2"));
        let one = sample(Mode::Stock, 2048, 3);
        Samples::open(&path, &key).unwrap().add(one.clone()).unwrap();
        // As if the machine had been switched off while the next was written.
        write!(File::options().append(true).open(&path).unwrap(), "{{\"init_on").unwrap();
        let samples = Samples::open(&path, &key).unwrap();
        assert_eq!(samples.all(), std::slice::from_ref(&one));
        assert_eq!((samples.count(one.group, Mode::Stock), samples.count(one.group, Mode::Shared)), (1, 0));
        assert_eq!(Samples::open(&path, &other).unwrap().all(), []);
    }
}
