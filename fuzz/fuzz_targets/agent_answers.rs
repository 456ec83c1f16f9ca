//! What a guest's agent answers, against the monitor's calls.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| bellows_vmm::exercise_agent_client(data));
