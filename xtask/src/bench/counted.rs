//! `bench counted`: counts the cost of a short set of operations, and holds it against committed bounds.

mod bounds;
mod report;

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::process::Command;

use bellows_bench::cost::Cost;
use bellows_bench::counted::{Operation, Sample};
use bellows_lab::{Clock, Host, LabBuilder};

use crate::cache::Key;
use crate::debian::{self, Series};
use crate::error::{Error, Result};
use crate::{kernel, progress, run, workspace};

use self::bounds::Bounds;
use self::report::Report;
use super::figure::median_cost;
use super::program::Program;

/// Samples of each operation, in one boot of the lab.
const ROUNDS: usize = 9;

/// The files of the program.
const ARTEFACTS: [&str; 4] = ["BELLOWS_KERNEL", "BELLOWS_INITRAMFS", "BELLOWS_IMAGE", "BELLOWS_ALPINE_LIKE_IMAGE"];

#[derive(Debug, clap::Args)]
pub struct Options {
    /// Take new bounds and write them to `bench/bounds.json`.
    #[arg(long)]
    take_bounds: bool,
    /// Boots of the lab for new bounds.
    #[arg(long, default_value_t = 10, requires = "take_bounds", value_parser = clap::value_parser!(u32).range(2..))]
    boots: u32,
}

pub fn run(options: &Options, install: bool) -> Result<()> {
    if options.take_bounds { take_bounds(options.boots, install) } else { check(install) }
}

/// Counts once, prints the figures, and fails if an operation costs more than its bound.
pub fn check(install: bool) -> Result<()> {
    let path = bounds_path();
    let text = fs::read_to_string(&path).map_err(Error::at(&path))?;
    let bounds: Bounds =
        serde_json::from_str(&text).map_err(|error| Error::other(format!("{}: {error}", path.display())))?;
    let set = Set::build(install)?;
    let report = Report::new(set.count()?, set.versions()?, bounds);
    super::keep("counted", &report, report.figures())?;
    eprint!("{report}");
    report.verdict()
}

fn take_bounds(count: u32, install: bool) -> Result<()> {
    let set = Set::build(install)?;
    let mut boots = Vec::new();
    for boot in 1..=count {
        eprintln!("boot {boot} of {count}");
        boots.push(medians(&set.count()?));
    }
    let bounds = Bounds::new(set.versions()?, ROUNDS, &boots).ok_or_else(|| Error::other("no figures"))?;
    let path = bounds_path();
    let json = serde_json::to_string_pretty(&bounds).map_err(|error| Error::other(error.to_string()))?;
    fs::write(&path, json + "\n").map_err(Error::at(&path))?;
    println!("{}", path.display());
    Ok(())
}

fn bounds_path() -> PathBuf {
    workspace::root().join("bench/bounds.json")
}

/// The median cost of each operation, in each of its parts.
fn medians(samples: &[Sample]) -> BTreeMap<Operation, Cost> {
    let mut costs: BTreeMap<Operation, Vec<Cost>> = BTreeMap::new();
    for sample in samples {
        costs.entry(sample.operation).or_default().push(sample.cost);
    }
    costs.into_iter().filter_map(|(operation, costs)| Some((operation, median_cost(&costs)?))).collect()
}

/// The program, and the store that its guests' image is in.
struct Set {
    program: Program,
    store: PathBuf,
}

impl Set {
    /// Builds everything. The store is made on this machine, where an import takes a second.
    fn build(install: bool) -> Result<Self> {
        let mut program = Program::build_for(Host::Lab, Clock::Counted, "counted", install)?;
        program.artefacts = program.artefacts.only(&ARTEFACTS);
        let store = super::directory()?.join("counted-store");
        if store.exists() {
            fs::remove_dir_all(&store).map_err(Error::at(&store))?;
        }
        let mut import = Command::new(&program.artefacts.bellows);
        import.args(["image", "import"]).arg(&program.artefacts.image).arg("--store").arg(&store);
        progress::step("import the image", |step| run::quiet(step, &mut import))?;
        Ok(Self { program, store })
    }

    /// Boots a lab and counts in it.
    fn count(&self) -> Result<Vec<Sample>> {
        let mut samples = Vec::new();
        let furnish = |lab: LabBuilder| lab.on_disk(&self.store, "bench-store");
        self.program.run(&[&ROUNDS.to_string()], furnish, |sample: Sample| samples.push(sample))?;
        Ok(samples)
    }

    /// Versions that costs depend on, beside this project's own code.
    fn versions(&self) -> Result<BTreeMap<String, String>> {
        let first_line = |program: &str| {
            let text = run::capture(Command::new(program).arg("--version"))?;
            Ok::<_, Error>(text.lines().next().unwrap_or_default().to_owned())
        };
        let modules = debian::cloud_kernel(&self.program.cache, Series::Linux6_12)?.modules;
        let lab_kernel = modules.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let index = self.program.artefacts.image.join("index.json");
        let image = Key::default().with_file(&index)?.hex();
        Ok(BTreeMap::from([
            ("host kernel".to_owned(), lab_kernel),
            ("guest kernel source".to_owned(), kernel::source()?.version),
            ("image".to_owned(), image),
            ("qemu".to_owned(), first_line("qemu-system-x86_64")?),
            ("rustc".to_owned(), first_line("rustc")?),
        ]))
    }
}
