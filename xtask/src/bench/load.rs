//! `bench load`: runs the program that runs functions, and makes a report of what it prints.

mod report;

use bellows_tests::bench::load::Line;
use bellows_tests::lab::Host;

use crate::artefacts::Artefacts;
use crate::cache::Cache;
use crate::error::{Error, Result};
use crate::kvm_host::KvmHost;
use crate::workspace;

use self::report::Report;
use super::statistics::ms;

#[derive(Debug, clap::Args)]
pub struct Options {
    /// Minutes in which functions arrive, for each of the five guests.
    #[arg(long, default_value_t = 10)]
    minutes: u64,
    /// Time between two arrivals on average; what a host that is emulated bears is the default.
    #[arg(long, value_name = "MS", default_value_t = 6000)]
    gap: u64,
}

pub fn run(options: &Options, install: bool) -> Result<()> {
    let host = Host::detect();
    eprintln!("host: {host}");
    let cache = Cache::open()?;
    let artefacts = Artefacts::build(&cache, host, install)?;
    let program = workspace::benchmark("load")?;
    let kvm_host = KvmHost::start(host, &cache, &artefacts, std::slice::from_ref(&program), |lab| lab)?;
    let arguments = [(options.minutes * 60_000).to_string(), options.gap.to_string()];
    let mut lines = Vec::new();
    let code =
        kvm_host.run(&program, &arguments.each_ref().map(String::as_str), |text| match serde_json::from_str(text) {
            Ok(line) => {
                tell(&line);
                lines.push(line);
            }
            Err(_) => eprintln!("{text}"),
        })?;
    kvm_host.stop()?;
    if code != 0 {
        return Err(Error::other(format!("the benchmark ended with exit code {code}")));
    }
    let report = Report::new(host, options.gap, &lines);
    super::keep("load.json", &report)?;
    let page = super::directory()?.join("load.html");
    std::fs::write(&page, report::html(&report)).map_err(Error::at(&page))?;
    print!("{report}");
    println!("Plots: {}", page.display());
    Ok(())
}

/// Minutes pass: shows that something goes on.
fn tell(line: &Line) {
    if let Line::Ran(ran) = line {
        let (after, latency) = (ran.at.as_secs(), ms(ran.done.saturating_sub(ran.at)));
        eprintln!("{after:>5} s  ran for {latency:>9.1} ms  unplug {:>8.3} ms", ms(ran.unplug));
    }
}
