//! Shared by the two halves of a benchmark: the program that runs on a host with KVM, and the command that makes a report
//! of its output.

pub mod api;
pub mod boot;
pub mod cost;
pub mod counted;
pub mod exits;
pub mod fork;
pub mod layers;
pub mod load;
pub mod net;
pub mod reclaim;
pub mod smaps;

use std::error::Error;
use std::io::{self, Write};
use std::process::ExitCode;

use serde::Serialize;

/// Prints a line of a program's results.
///
/// # Errors
/// The reader of standard output is gone.
pub fn print(line: &impl Serialize) -> io::Result<()> {
    let mut out = io::stdout().lock();
    serde_json::to_writer(&mut out, line)?;
    out.write_all(b"\n")?;
    out.flush()
}

/// The exit code of the benchmark `name`; prints the error if it failed.
pub fn end(name: &str, result: Result<(), Box<dyn Error + Send + Sync>>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let causes = std::iter::successors(error.source(), |&error| error.source());
            let why: String = causes.map(|cause| format!(": {cause}")).collect();
            eprintln!("bench {name}: {error}{why}");
            ExitCode::FAILURE
        }
    }
}
