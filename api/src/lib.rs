//! The `bellows` command: its subcommands, as functions.

pub mod cli;
pub mod demo;
pub mod error;
pub mod image;
pub mod run;

mod interrupt;
mod measure;
mod mount;
mod progress;
mod registry;
mod store;
mod usage;

use std::io::{self, IsTerminal};
use std::process::ExitCode;

use clap::Parser;
use tracing_subscriber::filter::LevelFilter;

use crate::cli::{Cli, Command};

/// The whole command: reads arguments, does what they say, prints an error if there is one.
#[must_use]
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are no errors, which the exit code knows.
            let _ = error.print();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(error::USAGE));
        }
    };
    // `BELLOWS_LOG=debug` shows more; warnings are for everybody.
    let wanted = std::env::var("BELLOWS_LOG").ok().and_then(|level| level.parse().ok());
    let level: LevelFilter = wanted.unwrap_or(LevelFilter::WARN);
    let colours = io::stderr().is_terminal();
    tracing_subscriber::fmt().with_max_level(level).with_ansi(colours).with_writer(io::stderr).init();
    let result = match cli.command {
        Command::Run(arguments) => run::run(&arguments),
        Command::Image(command) => image::run(&command),
        Command::Demo(arguments) => demo::run(&arguments),
    };
    match result {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("bellows: {}", error.chain());
            ExitCode::from(error.exit_code())
        }
    }
}

/// The README's example has to compile.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
struct Readme;
