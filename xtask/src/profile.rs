//! `cargo xtask profile -- CMD`: where a command's counted time goes, by symbol.

mod code;
mod graph;
mod samples;
mod symbols;

use std::collections::BTreeMap;
use std::fmt;
use std::fs::{self, File};
use std::io::{BufReader, Seek, SeekFrom};
use std::path::Path;

use bellows_lab::sample::Sample;
use bellows_lab::{Clock, DISK, Job, Lab, Samples};

use crate::artefacts::Artefacts;
use crate::cache::Cache;
use crate::error::{Error, Result};
use crate::{kernel, lab, progress, workspace};

use self::code::Code;
use self::graph::Frame;
use self::samples::{Place, World, places};
use self::symbols::Symbols;

/// Artefacts that the lab has.
const ARTEFACTS: [&str; 5] =
    ["BELLOWS_BINARY", "BELLOWS_KERNEL", "BELLOWS_INITRAMFS", "BELLOWS_IMAGE", "BELLOWS_ALPINE_LIKE_IMAGE"];

/// Symbols that the report names.
const NAMED: usize = 30;

#[derive(Debug, clap::Args)]
pub struct Options {
    #[command(flatten)]
    furniture: lab::Furniture,
    /// Instructions from one sample to the next.
    #[arg(long, default_value_t = 10_007, value_parser = clap::value_parser!(u64).range(100..))]
    period: u64,
    /// What a shell does in the lab before the profile begins.
    #[arg(long, value_name = "SCRIPT")]
    before: Option<String>,
    /// The command and its arguments. `bellows` and the artefacts are there: $BELLOWS_IMAGE and $BELLOWS_ALPINE_LIKE_IMAGE name
    /// images.
    #[arg(last = true, required = true)]
    command: Vec<String>,
}

/// Runs the command in a lab with counted time, says what it spent its instructions on, and draws a flame graph of that.
/// Returns the command's exit code.
pub fn run(options: &Options, install: bool) -> Result<i32> {
    let cache = Cache::open()?;
    let artefacts = Artefacts::build(&cache, bellows_lab::Host::Lab, install)?.only(&ARTEFACTS);
    let directory = workspace::target_directory().join("profile");
    fs::create_dir_all(&directory).map_err(Error::at(&directory))?;
    let samples = directory.join("samples");

    let furnished = options.furniture.add_to(artefacts.add_to(lab::builder(&cache)?))?;
    let lab =
        lab::boot(furnished.clock(Clock::Counted).samples(Samples { path: samples.clone(), period: options.period }))?;
    let host_symbols = Symbols::parse(&run_in(&lab, &Job::new(["cat", "/proc/kallsyms"]))?);
    if let Some(script) = &options.before {
        run_in(&lab, &with_artefacts(Job::shell(script), &artefacts))?;
    }
    let start = length(&samples)?;
    let code = lab::forward(&lab, &with_artefacts(Job::new(options.command.clone()), &artefacts))?;
    let end = length(&samples)?;
    lab.shutdown()?;

    let map = kernel::symbols(&artefacts.kernel);
    let guest_symbols = Symbols::parse(&fs::read_to_string(&map).map_err(Error::at(&map))?);
    let programs = progress::step("read the code of all programs", |_| programs(options, &artefacts))?;
    let places = places(read(&samples, 0, start)?, read(&samples, start, end)?);
    let report = Report::new(places, |place| name(place, &host_symbols, &guest_symbols, &programs));
    fs::remove_file(&samples).map_err(Error::at(&samples))?;
    let graph = directory.join("profile.svg");
    fs::write(&graph, report.root.svg()).map_err(Error::at(&graph))?;
    let folded = directory.join("profile.folded");
    fs::write(&folded, report.root.folded()).map_err(Error::at(&folded))?;
    eprint!("{report}\nflame graph: {}\nfolded stacks: {}\n", graph.display(), folded.display());
    Ok(code)
}

fn with_artefacts(job: Job, artefacts: &Artefacts) -> Job {
    artefacts.lab_environment().into_iter().fold(job, |job, (variable, path)| job.env(variable, path)).cwd(DISK)
}

/// What a job prints, which must end well.
fn run_in(lab: &Lab, job: &Job) -> Result<String> {
    let output = lab.output(job)?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    if output.code == 0 {
        return Ok(text(&output.stdout));
    }
    Err(Error::other(format!("{:?}: exit code {}\n{}", job.argv, output.code, text(&output.stderr))))
}

/// All whole samples that are written.
fn length(samples: &Path) -> Result<u64> {
    let bytes = fs::metadata(samples).map_err(Error::at(samples))?.len();
    Ok(bytes / Sample::BYTES as u64)
}

/// Samples `from..to`.
fn read(path: &Path, from: u64, to: u64) -> Result<Vec<Sample>> {
    let mut file = File::open(path).map_err(Error::at(path))?;
    file.seek(SeekFrom::Start(from * Sample::BYTES as u64)).map_err(Error::at(path))?;
    let mut file = BufReader::new(file);
    (from..to).map_while(|_| Sample::read(&mut file).map_err(Error::at(path)).transpose()).collect()
}

/// The code of all programs that the lab and its guests have.
fn programs(options: &Options, artefacts: &Artefacts) -> Result<Code> {
    let mut code = Code::default();
    let agent = workspace::agent()?;
    let own = [artefacts.bellows.as_path(), &agent, &workspace::lab_init()?, Path::new("/bin/busybox")];
    for program in own.into_iter().chain(options.furniture.programs()) {
        for file in bellows_lab::program::with_libraries(program)? {
            code.add_file(&file)?;
        }
    }
    for image in [&artefacts.image, &artefacts.alpine_like_image] {
        code.add_image(image)?;
    }
    Ok(code)
}

/// From the whole to the part: where the code runs, what it is part of, its symbol.
fn name(place: &Place, host: &Symbols, guest: &Symbols, programs: &Code) -> [String; 3] {
    const UNKNOWN: &str = "[unknown]";
    let (part, symbol) = match place.world {
        World::HostKernel => host.find(place.address).unwrap_or(("kernel", UNKNOWN)),
        World::GuestKernel => guest.find(place.address).unwrap_or(("kernel", UNKNOWN)),
        World::HostUser | World::GuestUser => programs.find(place).unwrap_or((UNKNOWN, UNKNOWN)),
    };
    [place.world.to_string(), part.to_owned(), format!("{:#}", rustc_demangle::demangle(symbol))]
}

/// What the instructions were spent on.
struct Report {
    root: Frame,
    by_symbol: Vec<([String; 3], u64)>,
}

impl Report {
    fn new(places: BTreeMap<Place, u64>, name: impl Fn(&Place) -> [String; 3]) -> Self {
        let mut root = Frame::default();
        let mut by_symbol: BTreeMap<[String; 3], u64> = BTreeMap::new();
        for (place, instructions) in places {
            let path = name(&place);
            root.add(&path, instructions);
            *by_symbol.entry(path).or_default() += instructions;
        }
        let mut by_symbol: Vec<_> = by_symbol.into_iter().collect();
        by_symbol.sort_by_key(|(_, instructions)| std::cmp::Reverse(*instructions));
        Self { root, by_symbol }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let total = self.root.instructions().max(1);
        let share = |instructions: u64| 100.0 * instructions as f64 / total as f64;
        writeln!(f, "{total} instructions; share in %, instructions, symbol:")?;
        for (world, instructions) in self.root.children() {
            writeln!(f, "{:5.1} {instructions:>14}  {world}", share(instructions))?;
        }
        writeln!(f)?;
        for ([world, part, symbol], instructions) in self.by_symbol.iter().take(NAMED) {
            writeln!(f, "{:5.1} {instructions:>14}  {world}: {part}: {symbol}", share(*instructions))?;
        }
        Ok(())
    }
}
