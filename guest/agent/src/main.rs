//! `/init` of a Bellows guest, and the single-threaded helper that it runs itself as to make containers.

use std::process::ExitCode;

use bellows_agent::{boot, container};

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    match arguments.next().as_deref() {
        Some(container::HELPER) => container::helper::main(),
        _ if std::process::id() == 1 => boot::run(),
        _ => {
            eprintln!("bellows-agent {} is the /init of a Bellows guest", env!("CARGO_PKG_VERSION"));
            ExitCode::from(2)
        }
    }
}
