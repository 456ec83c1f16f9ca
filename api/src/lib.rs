//! The `bellows` command: its subcommands, as functions.

#![deny(clippy::print_stdout, clippy::print_stderr, reason = "they panic without a reader: see `output`")]

pub mod cli;
pub mod demo;
pub mod doctor;
pub mod error;
pub mod exit;
pub mod former;
pub mod image;
pub mod jail;
pub mod landlock;
pub mod network;
pub mod options;
pub mod rest;
pub mod run;
pub mod seccomp;

mod configuration;
mod detached;
mod environment;
mod guest;
mod interrupt;
mod output;
mod partition;
mod places;
mod progress;
mod registry;
mod report;
mod store;
mod terminal;
#[cfg(feature = "otlp")]
mod traces;
mod vm_id;

use std::ffi::OsString;
use std::io::{self, IsTerminal};
use std::process::ExitCode;

use bellows_vmm::{ErrorKind, catch_faults};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tracing_subscriber::filter::LevelFilter;

use crate::cli::{Cli, Command};
use crate::error::CliError;
use crate::exit::Failure;

/// The whole command: reads arguments, runs the subcommand, prints an error if it fails.
#[must_use]
pub fn main() -> ExitCode {
    let words: Vec<OsString> = std::env::args_os().collect();
    let cli = match Cli::read(words.clone()) {
        Ok(cli) => cli,
        Err(error) => {
            let _ = error.print();
            // The user asked for help or the version.
            if !error.use_stderr() {
                return ExitCode::SUCCESS;
            }
            if rest::is_firecracker(&words) {
                return rest::WRONG_ARGUMENTS.into();
            }
            if jail::is_jailer(&words) {
                return ExitCode::FAILURE;
            }
            let run = words.get(1).is_some_and(|command| command == "run" || command == "exec");
            return Failure::Error(ErrorKind::Invalid).exit_code(run).into();
        }
    };
    let run = matches!(cli.command, Command::Run(_) | Command::Exec(_));
    match command(cli.command) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            if !error.is_closed_output() {
                output::say(error.chain());
            }
            match error.failure() {
                Failure::Error(_) if rest::is_firecracker(&words) || jail::is_jailer(&words) => ExitCode::FAILURE,
                failure => failure.exit_code(run).into(),
            }
        }
    }
}

/// Carries a command out; returns the exit code.
fn command(command: Command) -> Result<u8, CliError> {
    let log = match &command {
        Command::Api(arguments) => Some(rest::install_log(arguments)?),
        // It becomes another program, which does all this itself.
        Command::Jail(_) => None,
        _ => {
            install_log();
            None
        }
    };
    if !matches!(command, Command::Jail(_)) {
        prepare();
    }
    match command {
        Command::Run(arguments) => run::run(&arguments),
        Command::Api(arguments) => rest::run(&arguments, log.unwrap_or_default()),
        Command::Jail(arguments) => Ok(jail::run(&arguments)?),
        Command::Doctor(arguments) => doctor::run(&arguments),
        Command::Image(command) => image::run(&command),
        Command::Ps(arguments) => detached::ps(&arguments),
        Command::Exec(arguments) => detached::exec(&arguments),
        Command::Cp(arguments) => detached::cp(&arguments),
        Command::Logs(arguments) => detached::logs(&arguments),
        Command::Stop(arguments) => detached::stop(&arguments),
        Command::Rm(arguments) => detached::rm(&arguments),
        Command::Partition(command) => detached::partition(&command),
        Command::Top(arguments) => detached::top(&arguments),
        Command::CniKeeper(arguments) => network::keep(&arguments),
        Command::Demo(arguments) => demo::run(&arguments),
    }
}

/// What every command that may read layers wants.
fn prepare() {
    raise_descriptor_limit();
    // Then layers are copied from their mappings, rather than read.
    if let Err(error) = catch_faults() {
        tracing::warn!(%error, "layers are read with a system call for each request");
    }
}

/// Has the log go to standard error.
fn install_log() {
    // `BELLOWS_LOG=debug` shows more; warnings are always shown.
    let wanted = std::env::var("BELLOWS_LOG").ok().and_then(|level| level.parse().ok());
    let level: LevelFilter = wanted.unwrap_or(LevelFilter::WARN);
    let colours = io::stderr().is_terminal();
    let log = tracing_subscriber::fmt().with_max_level(level).with_ansi(colours).with_writer(io::stderr);
    // It may have no reader.
    log.log_internal_errors(false).init();
}

/// A VM has some descriptors for each of its devices. The soft limit is low for the sake of programs that use `select`.
fn raise_descriptor_limit() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(soft, hard)| if soft < hard { setrlimit(Resource::RLIMIT_NOFILE, hard, hard) } else { Ok(()) });
    if let Err(error) = raised {
        tracing::warn!(%error, "cannot raise the limit of open files");
    }
}

/// The README's example must compile.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
struct Readme;
