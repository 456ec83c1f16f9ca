#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| bellows_fuzz::image_archive::run(data));
