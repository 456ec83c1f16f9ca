//! What the monitor, or who speaks in its place, asks of a guest's agent.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| bellows_agent::server::exercise::exercise(data));
