//! Developer commands: `cargo xtask demo | lab | profile | build | guest | package | test | tidy | stress | bench | fuzz`.

mod artefacts;
mod bench;
mod cache;
mod clients;
mod debian;
mod demo;
mod dependencies;
mod error;
mod fuzz;
mod guest;
mod image;
mod initramfs;
mod kernel;
mod kvm_host;
mod kvm_tests;
mod lab;
mod package;
mod packages;
mod profile;
mod progress;
mod rights;
mod run;
mod selection;
mod stress;
mod tally;
mod test;
mod tidy;
mod workspace;

use std::process::ExitCode;

use bellows_lab::Host;
use clap::{Parser, Subcommand};

use crate::artefacts::Artefacts;
use crate::cache::Cache;
use crate::error::Result;
use crate::tally::Tally;

/// Developer commands of Bellows.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask")]
struct Options {
    /// Refuse to install missing Debian packages; list them instead.
    #[arg(long, global = true)]
    no_install: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the demonstration: a function of a real container image in microVMs, and their memory returning to the host.
    Demo {
        /// Print the report as JSON.
        #[arg(long)]
        json: bool,
    },
    /// Run a command in the emulated host.
    Lab(lab::Options),
    /// Say where a command's counted time goes, by symbol, in the host and its guests. Runs in the emulated host.
    Profile(profile::Options),
    /// Build the artefacts that all other commands use, and print their paths.
    Build,
    /// Build the guest's kernel and initramfs, and put them where `bellows` finds them.
    Guest,
    /// Build a Debian package, and print its path.
    Package,
    /// Run all checks and tests.
    Test {
        /// Run only the tests that need KVM whose names contain one of these.
        #[arg(value_name = "NAME")]
        only: Vec<String>,
    },
    /// Hold the tree against its map, and dependencies against `deny.toml`.
    Tidy,
    /// Run the tests that are too long for every run, and those of the guest kernel with a debug build of it.
    Stress(stress::Options),
    /// Compare with other monitors, both sides in one run.
    Bench(bench::Options),
    /// Run the fuzz targets, two at a time.
    Fuzz {
        /// Time for each target; 0 only keeps its corpus.
        #[arg(long, default_value_t = 60)]
        seconds: u64,
        /// Run only the targets whose names contain this.
        #[arg(long, default_value = "", hide_default_value = true, value_name = "NAME")]
        only: String,
        /// Keep the resulting inputs, minimised, as their corpora in `fuzz/corpus`.
        #[arg(long)]
        keep: bool,
    },
}

fn main() -> ExitCode {
    let options = Options::parse();
    match execute(&options) {
        Ok(code) => ExitCode::from(u8::try_from(code).unwrap_or(1)),
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn execute(options: &Options) -> Result<i32> {
    let install = !options.no_install;
    match &options.command {
        Command::Lab(lab) => return lab::run(lab, install),
        Command::Profile(options) => return profile::run(options, install),
        Command::Demo { json } => return demo::run(*json, install),
        Command::Build => {
            for (variable, path) in Artefacts::build(&Cache::open()?, Host::detect(), install)?.environment() {
                println!("{variable}={path}");
            }
        }
        Command::Guest => guest::install(install)?,
        Command::Package => println!("{}", package::build(install)?.display()),
        Command::Test { only } if only.is_empty() => test::run(install)?,
        Command::Test { only } => test::run_with_kvm(only, install)?,
        Command::Tidy => {
            let mut tally = Tally::default();
            tidy::run(&mut tally);
            tally.conclude()?;
        }
        Command::Stress(options) => stress::run(options, install)?,
        Command::Bench(options) => bench::run(options, install)?,
        Command::Fuzz { seconds, only, keep } => fuzz::run_all(*seconds, only, *keep)?,
    }
    Ok(0)
}
