#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| bellows_fuzz::erofs_reader::run(data));
