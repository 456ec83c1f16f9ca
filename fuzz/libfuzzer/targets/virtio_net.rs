#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| bellows_fuzz::virtio_net::run(data));
