//! virtio-pmem requests of any shape: kinds, splits, lengths, addresses, also in the device's own memory; and one that must
//! still work after them.

use crate::Input;
use bellows_devices::virtio::testing::{FakeGuest, Part};
use bellows_devices::virtio::{Pmem, VirtioDevice};
use vm_memory::GuestAddress;

const START: u64 = 6 << 30;
const BYTES: u64 = 64 << 20;

/// Tries one input.
///
/// # Panics
/// Something does not hold.
pub fn run(data: &[u8]) {
    let guest = FakeGuest::new();
    let mut device = Pmem::new(GuestAddress(START), BYTES);
    let mut input = Input::new(data);
    let offset = input.u64() >> (input.byte() % 64);
    let bytes = input.bytes(24);
    device.write_config(offset, bytes);
    let mut read = vec![0xff; bytes.len()];
    device.read_config(offset, &mut read);
    let mut config = [0xff; 16];
    device.read_config(0, &mut config);
    assert_eq!((&config[..8], &config[8..]), (&START.to_le_bytes()[..], &BYTES.to_le_bytes()[..]));

    let mut driver = guest.activate(&mut device);
    let queue = &mut driver.queues[0];
    let mut requests = 0;
    // More would overrun the queue before the device has seen the first.
    while requests < 16 && !input.is_empty() {
        requests += 1;
        let kind = u32::from(input.byte() % 3).to_le_bytes();
        let mut parts = vec![Part::Readable(&kind[..usize::from(input.byte() % 5)])];
        for _ in 0..input.byte() % 3 {
            let (kind, len) = (input.byte(), input.u32() >> (input.byte() % 32));
            // Behind the guest's memory, whose rings an answer would break; half of them in the device's own.
            let address = match kind & 4 {
                0 => input.u64() | FakeGuest::MEMORY as u64,
                _ => START + u64::from(input.u32()),
            };
            parts.push(match kind % 4 {
                0 => Part::Readable(input.bytes(len as usize % 64)),
                1 => Part::Writable(len % 64),
                2 => Part::ReadableAt(GuestAddress(address), len),
                _ => Part::WritableAt(GuestAddress(address), len),
            });
        }
        if input.byte().is_multiple_of(4) {
            queue.add_indirect(&parts)
        } else {
            queue.add(&parts)
        };
    }
    queue.kick();
    // Every chain is given back, whatever it was, and no answer is longer than that.
    for _ in 0..requests {
        assert!(queue.wait_used().len <= 4);
    }
    device.reset();

    let mut driver = guest.activate(&mut device);
    let done = driver.queues[0].request(&[&[0; 4]], &[4]);
    assert_eq!((done.len, &done.written[0][..]), (4, &[0; 4][..]));
}
