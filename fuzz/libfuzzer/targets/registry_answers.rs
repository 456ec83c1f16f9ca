#![no_main]

libfuzzer_sys::fuzz_target!(init: bellows_fuzz::isolate(), |data: &[u8]| bellows_fuzz::registry_answers::run(data));
