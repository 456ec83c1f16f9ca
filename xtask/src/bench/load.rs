//! `bench load`: runs the program that runs functions, and makes a report of its output.

mod report;
mod row;
mod timeline;

use bellows_bench::load::{Line, Provision};
use bellows_lab::{Clock, Host};

use crate::error::{Error, Result};

use self::report::Report;
pub use self::row::Row;
use super::program::{ClockArgs, Program};
use super::statistics::ms;

/// The guests, in order. The baseline comes twice: its two runs show how far the same differs from itself.
const GUESTS: [Provision; 5] =
    [Provision::Static, Provision::Shared, Provision::Stock, Provision::Extension, Provision::Static];

/// The files of the program.
const ARTEFACTS: [&str; 3] = ["BELLOWS_KERNEL", "BELLOWS_INITRAMFS", "BELLOWS_IMAGE"];

#[derive(Debug, clap::Args)]
pub struct Options {
    /// Minutes in which functions arrive, for each of the five guests.
    #[arg(long, default_value_t = 10)]
    minutes: u64,
    /// Time between two arrivals on average; the default suits an emulated host.
    #[arg(long, value_name = "MS", default_value_t = 6000)]
    gap: u64,
    #[command(flatten)]
    clock: ClockArgs,
}

pub fn run(options: &Options, install: bool) -> Result<()> {
    let ran = replay(&GUESTS, options.minutes, options.gap, options.clock, install)?;
    let report = Report::new(ran.host, ran.clock, options.gap, &ran.lines);
    super::keep("load", &report, report.figures())?;
    let page = super::directory()?.join("load.html");
    std::fs::write(&page, report::html(&report)).map_err(Error::at(&page))?;
    print!("{report}");
    println!("Plots: {}", page.display());
    Ok(())
}

/// What the program has printed, and where it ran.
pub struct Replay {
    pub host: Host,
    pub clock: Clock,
    pub lines: Vec<Line>,
}

/// Runs the functions that arrive within some minutes, `gap` milliseconds apart on average, in one guest after the other.
pub fn replay(guests: &[Provision], minutes: u64, gap: u64, clock: ClockArgs, install: bool) -> Result<Replay> {
    let mut program = Program::build("load", clock, install)?;
    program.artefacts = program.artefacts.only(&ARTEFACTS);
    let mut arguments = vec![(minutes * 60_000).to_string(), gap.to_string()];
    arguments.extend(guests.iter().map(Provision::to_string));
    let mut lines = Vec::new();
    program.run(
        &arguments.iter().map(String::as_str).collect::<Vec<_>>(),
        |lab| lab,
        |line| {
            tell(&line);
            lines.push(line);
        },
    )?;
    Ok(Replay { host: program.host, clock: program.clock, lines })
}

/// Shows progress, since minutes pass.
fn tell(line: &Line) {
    if let Line::Ran(ran) = line {
        let (after, latency) = (ran.at.as_secs(), ms(ran.done.saturating_sub(ran.at)));
        eprintln!("{after:>5} s  ran for {latency:>9.1} ms  unplug {:>8.3} ms", ms(ran.unplug));
    }
}
