//! `bench load`: runs the program that runs functions, and makes a report of its output.

mod report;

use bellows_bench::load::Line;

use crate::error::{Error, Result};

use self::report::Report;
use super::program::{ClockArgs, Program};
use super::statistics::ms;

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
    let program = Program::build("load", options.clock, install)?;
    let arguments = [(options.minutes * 60_000).to_string(), options.gap.to_string()];
    let mut lines = Vec::new();
    program.run(
        &arguments.each_ref().map(String::as_str),
        |lab| lab,
        |line| {
            tell(&line);
            lines.push(line);
        },
    )?;
    let report = Report::new(program.host, program.clock, options.gap, &lines);
    super::keep("load", &report, report.figures())?;
    let page = super::directory()?.join("load.html");
    std::fs::write(&page, report::html(&report)).map_err(Error::at(&page))?;
    print!("{report}");
    println!("Plots: {}", page.display());
    Ok(())
}

/// Shows progress, since minutes pass.
fn tell(line: &Line) {
    if let Line::Ran(ran) = line {
        let (after, latency) = (ran.at.as_secs(), ms(ran.done.saturating_sub(ran.at)));
        eprintln!("{after:>5} s  ran for {latency:>9.1} ms  unplug {:>8.3} ms", ms(ran.unplug));
    }
}
