//! `cargo xtask profile -- CMD`: where a command's counted time goes, by symbol.

mod code;
mod graph;
mod samples;
mod symbols;

use std::fmt;
use std::fs::{self, File};
use std::io::BufReader;
use std::path::Path;

use bellows_lab::sample::Sample;
use bellows_lab::{Clock, Job, Samples};

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
    let host_symbols = Symbols::parse(&String::from_utf8_lossy(&lab.read_file("/proc/kallsyms")?));
    if let Some(script) = &options.before {
        let code = lab.exec(&artefacts.in_lab(Job::shell(script)), lab::print)?;
        if code != 0 {
            return Err(Error::other(format!("`{script}` ended with exit code {code}: expected 0")));
        }
    }
    let start = length(&samples)?;
    let code = lab::forward(&lab, &artefacts.in_lab(Job::new(options.command.clone())))?;
    let end = length(&samples)?;
    lab.shutdown()?;

    let map = kernel::symbols(&artefacts.kernel);
    let guest_symbols = Symbols::parse(&fs::read_to_string(&map).map_err(Error::at(&map))?);
    let programs = progress::step("read the code of all programs", |_| programs(options, &artefacts))?;
    let all = read(&samples)?;
    fs::remove_file(&samples).map_err(Error::at(&samples))?;
    let mut spent = Frame::default();
    for (place, instructions) in places(&all[..start], &all[start..end]) {
        spent.add(&name(&place, &host_symbols, &guest_symbols, &programs), instructions);
    }
    let graph = directory.join("profile.svg");
    fs::write(&graph, spent.svg()).map_err(Error::at(&graph))?;
    let folded = directory.join("profile.folded");
    fs::write(&folded, spent.folded()).map_err(Error::at(&folded))?;
    eprint!("{}\nflame graph: {}\nfolded stacks: {}\n", Report(&spent), graph.display(), folded.display());
    Ok(code)
}

/// Whole samples that are written by now.
fn length(samples: &Path) -> Result<usize> {
    let bytes = fs::metadata(samples).map_err(Error::at(samples))?.len();
    Ok(bytes as usize / Sample::BYTES)
}

fn read(samples: &Path) -> Result<Vec<Sample>> {
    let mut file = BufReader::new(File::open(samples).map_err(Error::at(samples))?);
    std::iter::from_fn(|| Sample::read(&mut file).map_err(Error::at(samples)).transpose()).collect()
}

/// The code of all programs that the lab and its guests have.
fn programs(options: &Options, artefacts: &Artefacts) -> Result<Code> {
    let mut code = Code::default();
    let own = [artefacts.bellows.as_path(), &artefacts.agent, &workspace::lab_init()?, Path::new("/bin/busybox")];
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

/// What the instructions were spent on, for people.
struct Report<'a>(&'a Frame);

impl fmt::Display for Report<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let total = self.0.instructions().max(1);
        let share = |instructions: u64| 100.0 * instructions as f64 / total as f64;
        writeln!(f, "{total} instructions; share in %, instructions, symbol:")?;
        for (world, instructions) in self.0.children() {
            writeln!(f, "{:5.1} {instructions:>14}  {world}", share(instructions))?;
        }
        writeln!(f)?;
        let mut symbols = self.0.innermost();
        symbols.sort_by_key(|(_, instructions)| std::cmp::Reverse(*instructions));
        for (path, instructions) in symbols.into_iter().take(NAMED) {
            writeln!(f, "{:5.1} {instructions:>14}  {}", share(instructions), path.join(": "))?;
        }
        Ok(())
    }
}
