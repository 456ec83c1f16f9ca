//! The `bellows` binary.

use std::process::ExitCode;

fn main() -> ExitCode {
    bellows::main()
}
