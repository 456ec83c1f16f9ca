//! `bench elastic`: runs the functions of `bench load` in guests whose memory follows them more or less, and shows it over time.

mod report;

use bellows_bench::load::Provision;

use crate::error::{Error, Result};

use self::report::Report;
use super::load;
use super::program::ClockArgs;

/// The guests, in order: each follows the load more closely than the one before.
const GUESTS: [Provision; 4] = [Provision::Static, Provision::Shared, Provision::Extension, Provision::Elastic];

#[derive(Debug, clap::Args)]
pub struct Options {
    /// Minutes in which functions arrive, for each of the four guests.
    #[arg(long, default_value_t = 3)]
    minutes: u64,
    /// Time between two arrivals on average; the default has bursts of functions side by side in counted time.
    #[arg(long, value_name = "MS", default_value_t = 1500)]
    gap: u64,
    #[command(flatten)]
    clock: ClockArgs,
}

pub fn run(options: &Options, install: bool) -> Result<()> {
    let Options { minutes, gap, clock } = *options;
    let ran = load::replay(&GUESTS, minutes, gap, clock, install)?;
    let report = Report::new(ran.host, ran.clock, minutes, gap, &ran.lines);
    super::keep("elastic", &report, report.figures())?;
    let page = super::directory()?.join("elastic.html");
    std::fs::write(&page, report::html(&report)).map_err(Error::at(&page))?;
    print!("{report}");
    println!("Plots: {}", page.display());
    Ok(())
}
