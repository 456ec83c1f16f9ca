//! Guest packets and host socket events, against a model of every stream.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| bellows_devices::virtio::vsock::exercise::exercise(data));
