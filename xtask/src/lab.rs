//! `cargo xtask lab -- CMD`: runs a command in the emulated host.

use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::thread;

use bellows_lab::{Clock, Event, Job, Lab, LabBuilder, Parts};

use crate::cache::Cache;
use crate::debian::{self, Series};
use crate::error::{Error, Result};
use crate::progress;
use crate::{packages, workspace};

/// Options of the lab.
#[derive(Debug, clap::Args)]
pub struct Options {
    #[command(flatten)]
    furniture: Furniture,
    /// Count time instead of letting it pass as outside; see docs/lab.md.
    #[arg(long)]
    counted: bool,
    /// The command and its arguments.
    #[arg(last = true, required = true)]
    command: Vec<String>,
}

/// What the command line puts in the lab.
#[derive(Debug, clap::Args)]
pub struct Furniture {
    /// Memory of the emulated host, in MiB.
    #[arg(long, default_value_t = 8192)]
    memory_mib: u64,
    /// A program of this machine to have in the lab, with its libraries: PATH or PATH:PATH_IN_LAB.
    #[arg(long = "program", value_name = "PATH")]
    programs: Vec<String>,
    /// A file or directory of this machine to have on the lab's disk, below /work: PATH or PATH:NAME.
    #[arg(long = "file", value_name = "PATH")]
    files: Vec<String>,
}

/// Boots a lab, runs one command in it and returns its exit code.
pub fn run(options: &Options, install: bool) -> Result<i32> {
    packages::ensure(&[packages::LAB], install)?;
    let mut builder = options.furniture.add_to(builder(&Cache::open()?)?)?;
    if options.counted {
        builder = builder.clock(Clock::Counted);
    }
    let lab = boot(builder)?;
    let code = forward(&lab, &Job::new(options.command.clone()))?;
    lab.shutdown()?;
    Ok(code)
}

impl Furniture {
    /// Puts it there.
    pub fn add_to(&self, lab: LabBuilder) -> Result<LabBuilder> {
        let mut lab = lab.memory_mib(self.memory_mib);
        for program in &self.programs {
            let (source, target) = program.split_once(':').unwrap_or((program, program));
            lab = lab.program(absolute(source)?, target.to_owned());
        }
        for file in &self.files {
            let source = absolute(file.split_once(':').map_or(file.as_str(), |(source, _)| source))?;
            let name = match file.split_once(':') {
                Some((_, name)) => name.to_owned(),
                None => source.file_name().unwrap_or_default().to_string_lossy().into_owned(),
            };
            lab = lab.on_disk(source, name);
        }
        Ok(lab)
    }

    /// The programs, as they are on this machine.
    pub fn programs(&self) -> impl Iterator<Item = &Path> {
        self.programs.iter().map(|program| Path::new(program.split_once(':').map_or(&**program, |(source, _)| source)))
    }
}

/// An empty lab.
pub fn builder(cache: &Cache) -> Result<LabBuilder> {
    let kernel = debian::cloud_kernel(cache, Series::Linux6_12)?;
    let (init, plugin) = (workspace::lab_init()?, workspace::lab_plugin()?);
    let parts = Parts { kernel: kernel.image, modules: kernel.modules, init, plugin };
    Ok(Lab::builder(parts).scratch(cache.scratch()))
}

/// Boots it and shows progress.
pub fn boot(builder: LabBuilder) -> Result<Lab> {
    progress::step("boot the lab", |_| Ok(builder.boot()?))
}

/// Runs a job with this process's standard input, output and error.
pub fn forward(lab: &Lab, job: &Job) -> Result<i32> {
    let running = lab.start(job)?;
    let stdin = running.stdin();
    // It may wait for input long after the job has ended; it ends with the process.
    thread::spawn(move || {
        let mut buffer = vec![0; 1 << 16];
        while let Ok(length @ 1..) = io::stdin().read(&mut buffer) {
            stdin.write(&buffer[..length])?;
        }
        stdin.close()
    });
    Ok(running.wait(print)?)
}

/// Passes a job's output on at once. If our output is closed, the job's is dropped.
pub fn print(event: Event) {
    let _ = match event {
        Event::Stdout(bytes) => io::stdout().write_all(&bytes).and_then(|()| io::stdout().flush()),
        Event::Stderr(bytes) => io::stderr().write_all(&bytes),
        Event::Exit(_) => Ok(()),
    };
}

fn absolute(path: &str) -> Result<PathBuf> {
    Path::new(path).canonicalize().map_err(Error::at(path))
}
