//! `bench import`: a layer into the store, beside unpacking it and making an image of the files with mkfs.erofs.

mod report;

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use flate2::read::GzDecoder;
use tar::Archive;

use crate::cache::Cache;
use crate::error::{Error, Result};
use crate::{image, packages, run, workspace};

use self::report::{Form, Layer, Report, Sample, Side};

/// An image's block: data that is used in place begins at one.
const BLOCK: u64 = 4096;

#[derive(Debug, clap::Args)]
pub struct Options {
    /// Rounds; in each one both sides import each form of the layer twice.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// The processor that everything runs on.
    #[arg(long, default_value_t = 0)]
    cpu: u32,
}

pub fn run(options: &Options, install: bool) -> Result<()> {
    packages::ensure(&[packages::IMAGE, packages::BENCH_IMPORT], install)?;
    let place = Place::new(options.cpu, &image::demo(&Cache::open()?)?)?;
    let mut samples = Vec::new();
    // The first import pays for a cold page cache.
    for form in Form::ALL {
        Side::ALL.into_iter().try_for_each(|side| place.measure(side, form, 0).map(drop))?;
    }
    for round in 0..options.rounds {
        for turn in 0..2 {
            for (form, side) in Form::ALL.into_iter().flat_map(|form| Side::ALL.map(|side| (form, side))) {
                let sample = place.measure(side, form, turn)?;
                let (wall, cpu) = (sample.wall.as_secs_f64(), sample.cpu.as_secs_f64());
                eprintln!(
                    "{:>3}  {form:<6} {side:<8} {wall:>7.2} s, {cpu:>6.2} s of the processor",
                    round * 2 + turn + 1
                );
                samples.push(sample);
            }
        }
    }
    let report = Report::new(place.source, &samples)?;
    super::keep("import", &report, report::figures(&samples))?;
    print!("{report}");
    Ok(())
}

/// The folder with the layer and all results.
struct Place {
    directory: PathBuf,
    bellows: PathBuf,
    cpu: String,
    source: Layer,
}

impl Place {
    /// Takes the lowest layer of `image`, which is gzip.
    fn new(cpu: u32, image: &Path) -> Result<Self> {
        let directory = super::directory()?.join("import");
        fs::create_dir_all(&directory).map_err(Error::at(&directory))?;
        let source = Layer { bytes: 0, aligned: 0 };
        let mut place = Self { directory, bellows: workspace::bellows()?, cpu: cpu.to_string(), source };
        let blob = image::lowest_layer(image)?;
        let (gzip, plain) = (place.layer(Form::Gzip), place.layer(Form::Plain));
        fs::copy(&blob, &gzip).map_err(Error::at(&gzip))?;
        // By streaming: this process's memory must not count for its children.
        let mut from = GzDecoder::new(File::open(&blob).map_err(Error::at(&blob))?);
        let mut to = File::create(&plain).map_err(Error::at(&plain))?;
        let bytes = io::copy(&mut from, &mut to).map_err(Error::at(&plain))?;
        place.source = Layer { bytes, aligned: aligned_bytes(&plain).map_err(Error::at(&plain))? };
        Ok(place)
    }

    fn layer(&self, form: Form) -> PathBuf {
        self.directory.join(match form {
            Form::Plain => "layer.tar",
            Form::Gzip => "layer.tar.gz",
        })
    }

    /// Imports the layer once and removes the result.
    fn measure(&self, side: Side, form: Form, turn: u32) -> Result<Sample> {
        let (layer, output) = (self.layer(form), self.directory.join("output"));
        if output.exists() {
            fs::remove_dir_all(&output).map_err(Error::at(&output))?;
        }
        fs::create_dir_all(&output).map_err(Error::at(&output))?;
        // Write-back of the other side's files must not count for this one.
        run::capture(&mut Command::new("sync"))?;
        let mut sample = Sample { side, form, turn, ..Sample::default() };
        let image = match side {
            Side::Bellows => {
                let store = output.join("store");
                let mut command = self.pinned(&self.bellows);
                self.time(command.args(["image", "import"]).arg(&layer).arg("--store").arg(&store), &mut sample)?;
                only_layer(&store.join("layers"))?
            }
            Side::Mkfs => {
                let (root, image) = (output.join("root"), output.join("image.erofs"));
                fs::create_dir(&root).map_err(Error::at(&root))?;
                let mut tar = self.pinned("tar");
                tar.args(["-x", "--numeric-owner", "--xattrs", "--xattrs-include=*", "-f"])
                    .arg(&layer)
                    .arg("-C")
                    .arg(&root);
                self.time(&mut tar, &mut sample)?;
                self.time(self.pinned("mkfs.erofs").arg("--quiet").arg(&image).arg(&root), &mut sample)?;
                // An import ends when its layer is on the disk.
                self.time(self.pinned("sync").arg(&image), &mut sample)?;
                image
            }
        };
        sample.image_bytes = fs::metadata(&image).map_err(Error::at(&image))?.len();
        Ok(sample)
    }

    fn pinned(&self, program: impl AsRef<Path>) -> Command {
        let mut command = Command::new("time");
        command.args(["--quiet", "--format", "%U %S %M", "--output"]).arg(self.times());
        command.args(["taskset", "--cpu-list", &self.cpu]).arg(program.as_ref());
        command
    }

    /// The output of GNU time: seconds for the program, seconds for the kernel, and the most KiB that were resident.
    fn times(&self) -> PathBuf {
        self.directory.join("times")
    }

    /// Runs a pinned command and adds what it cost.
    fn time(&self, command: &mut Command, sample: &mut Sample) -> Result<()> {
        let start = Instant::now();
        run::capture(command)?;
        sample.wall += start.elapsed();
        let path = self.times();
        let text = fs::read_to_string(&path).map_err(Error::at(&path))?;
        let numbers: Vec<f64> = text.split_whitespace().map_while(|word| word.parse().ok()).collect();
        let [user, system, kib] = numbers[..] else {
            return Err(Error::other(format!("`time` wrote `{}`: expected three numbers", text.trim())));
        };
        sample.cpu += Duration::from_secs_f64(user + system);
        sample.peak_bytes = sample.peak_bytes.max(kib as u64 * 1024);
        Ok(())
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // The next run makes it all again.
        let _ = fs::remove_dir_all(&self.directory);
    }
}

/// The bytes of an archive's files, in whole blocks.
fn aligned_bytes(archive: &Path) -> io::Result<u64> {
    let mut archive = Archive::new(File::open(archive)?);
    let mut sizes = archive.entries_with_seek()?.map(|entry| {
        let entry = entry?;
        Ok(if entry.header().entry_type().is_file() { entry.size().next_multiple_of(BLOCK) } else { 0 })
    });
    sizes.try_fold(0, |sum, size: io::Result<u64>| Ok(sum + size?))
}

fn only_layer(layers: &Path) -> Result<PathBuf> {
    let entries = fs::read_dir(layers).map_err(Error::at(layers))?;
    let mut images =
        entries.flatten().map(|entry| entry.path()).filter(|path| path.extension().is_some_and(|e| e == "erofs"));
    match (images.next(), images.next()) {
        (Some(image), None) => Ok(image),
        _ => Err(Error::other(format!("{}: expected one layer", layers.display()))),
    }
}
