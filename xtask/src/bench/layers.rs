//! `bench layers`: runs the program in which many VMs share an image, and makes a report of its output.

mod report;

use std::path::PathBuf;
use std::process::Command;

use bellows_bench::layers::{Line, Way};
use bellows_lab::{Clock, DISK, Host, LabBuilder};

use crate::artefacts::Artefacts;
use crate::cache::Cache;
use crate::error::{Error, Result};
use crate::image::layers::Images;
use crate::{progress, run};

use super::program::Program;
use super::statistics::ms;

pub use self::report::Report;

/// The program.
pub const NAME: &str = "layers";
/// Memory of the lab: room for all guests.
const LAB_MEMORY_MIB: u64 = 18 << 10;
/// Makes the stand-in for a copy; busybox's `losetup` cannot.
const LOSETUP: &str = "/usr/sbin/losetup";

#[derive(Debug, clap::Args)]
pub struct Options {
    /// VMs that run at the same time, of each kind; with none, only single starts are timed.
    #[arg(long, default_value_t = 80)]
    vms: u32,
    /// Starts of a single VM, of each kind, with images of 1, 10 and 40 layers.
    #[arg(long, default_value_t = 5)]
    rounds: u32,
}

pub fn run(options: &Options, install: bool) -> Result<()> {
    let program = Program::build_for(Host::detect(), Clock::Wall, NAME, install)?;
    let inputs = Inputs::make(&program.cache, &program.artefacts)?;
    let mut lines = Vec::new();
    program.run(
        &inputs.arguments(program.host, options.vms, options.rounds, &Way::ALL).each_ref().map(String::as_str),
        |lab| inputs.furnish(lab).memory_mib(LAB_MEMORY_MIB),
        |line| {
            tell(&line);
            lines.push(line);
        },
    )?;
    let report = Report::new(program.host, &lines);
    super::keep("layers", &report, report::figures(&lines))?;
    let page = super::directory()?.join("layers.html");
    std::fs::write(&page, report.html()).map_err(Error::at(&page))?;
    print!("{report}");
    println!("Plots: {}", page.display());
    Ok(())
}

/// Files of the program beside the artefacts: a layer store, and a file system to copy.
pub struct Inputs {
    directory: PathBuf,
}

impl Inputs {
    /// Makes images and imports them with the monitor that is measured.
    pub fn make(cache: &Cache, artefacts: &Artefacts) -> Result<Self> {
        let images = Images::make(cache, &artefacts.image)?;
        let directory = super::directory()?.join("layers");
        if directory.exists() {
            std::fs::remove_dir_all(&directory).map_err(Error::at(&directory))?;
        }
        std::fs::create_dir(&directory).map_err(Error::at(&directory))?;
        progress::step("import images", |step| {
            for (name, layout) in images.layouts() {
                let mut import = Command::new(&artefacts.bellows);
                import
                    .args(["image", "import", "--name", &name])
                    .arg(&layout)
                    .arg("--store")
                    .arg(directory.join("store"));
                run::quiet(step, &mut import)?;
            }
            Ok(())
        })?;
        let root = directory.join("root.ext4");
        std::fs::copy(images.root(), &root).map_err(Error::at(&root))?;
        Ok(Self { directory })
    }

    /// Puts them on the lab's disk.
    pub fn furnish(&self, lab: LabBuilder) -> LabBuilder {
        lab.on_disk(&self.directory, NAME).program(LOSETUP, LOSETUP)
    }

    /// The program's arguments: the directory, the number of VMs side by side, the number of single starts, and the ways of
    /// the former's images.
    pub fn arguments(&self, host: Host, vms: u32, rounds: u32, ways: &[Way]) -> [String; 4] {
        let place = match host {
            Host::Kvm => self.directory.display().to_string(),
            Host::Lab => format!("{DISK}/{NAME}"),
        };
        let ways: Vec<String> = ways.iter().map(|way| format!("{:?}", way.to_string())).collect();
        [place, vms.to_string(), rounds.to_string(), format!("[{}]", ways.join(","))]
    }
}

/// Shows progress: a VM in the lab takes seconds.
fn tell(line: &Line) {
    match line {
        Line::Answered { way, after } => eprintln!("{way:<12} {:>10.1} ms  answered", ms(*after)),
        Line::Together(all) => eprintln!("{:<12} {:>10} bytes read from the disk", all.way, all.disk_bytes_read),
        Line::Started(one) => {
            let cache = if one.cold { "cold" } else { "hot" };
            eprintln!("{:<12} {:>10.1} ms  {:>2} layers, {cache}", one.way, ms(one.time), one.layers);
        }
    }
}
