//! Writes the manual pages and the shells' completions of `bellows` to a folder, for a package:
//! `cargo run -p bellows --example manual -- FOLDER`.

use std::io;
use std::path::PathBuf;

use bellows::cli::Cli;
use clap::CommandFactory;
use clap_complete::Shell;

fn main() -> io::Result<()> {
    let usage = || io::Error::new(io::ErrorKind::InvalidInput, "expected the path of a folder");
    let folder = PathBuf::from(std::env::args_os().nth(1).ok_or_else(usage)?);
    clap_mangen::generate_to(Cli::command(), &folder)?;
    for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
        clap_complete::generate_to(shell, &mut Cli::command(), "bellows", &folder)?;
    }
    Ok(())
}
