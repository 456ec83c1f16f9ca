//! virtio-blk requests of any shape: headers, splits, lengths, addresses; and one that must still work after them.

use std::io;

use crate::Input;
use bellows_devices::virtio::testing::{FakeGuest, Part};
use bellows_devices::virtio::{Block, VirtioDevice};
use bellows_disk::{Disk, DiskId};
use vm_memory::{GuestAddress, VolatileSlice};

/// 64 sectors of its own offset's low byte.
struct Pattern;

impl Disk for Pattern {
    fn sectors(&self) -> u64 {
        64
    }

    fn read_only(&self) -> bool {
        false
    }

    fn id(&self) -> DiskId {
        DiskId::new("pattern")
    }

    fn read_at(&self, offset: u64, buffers: &[VolatileSlice<'_>]) -> io::Result<()> {
        self.check(offset, buffers);
        for buffer in buffers {
            buffer.copy_from(&vec![7u8; buffer.len()]);
        }
        Ok(())
    }

    fn write_at(&self, offset: u64, buffers: &[VolatileSlice<'_>]) -> io::Result<()> {
        self.check(offset, buffers);
        Ok(())
    }

    fn discards(&self) -> bool {
        true
    }

    fn discard(&self, offset: u64, bytes: u64) -> io::Result<()> {
        self.check_range(offset, bytes);
        Ok(())
    }

    fn write_zeroes(&self, offset: u64, bytes: u64, _: bool) -> io::Result<()> {
        self.check_range(offset, bytes);
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        Ok(())
    }
}

impl Pattern {
    fn check(&self, offset: u64, buffers: &[VolatileSlice<'_>]) {
        self.check_range(offset, buffers.iter().map(|buffer| buffer.len() as u64).sum());
    }

    fn check_range(&self, offset: u64, bytes: u64) {
        assert!(offset.is_multiple_of(512) && bytes.is_multiple_of(512) && offset + bytes <= self.sectors() * 512);
    }
}

/// Tries one input.
///
/// # Panics
/// Something does not hold.
pub fn run(data: &[u8]) {
    let guest = FakeGuest::new();
    let mut device = Block::new(Box::new(Pattern) as Box<dyn Disk>);
    let mut driver = guest.activate(&mut device);
    let queue = &mut driver.queues[0];
    let mut input = Input::new(data);
    let mut requests = 0;
    // More would overrun the queue before the device has seen the first.
    while requests < 32 && !input.is_empty() {
        requests += 1;
        let mut header = [0; 16];
        header[0] = input.byte() % 14;
        header[8..16].copy_from_slice(&(input.u64() >> (input.byte() % 64)).to_le_bytes());
        let header = if input.byte().is_multiple_of(8) { input.bytes(20).to_vec() } else { header.to_vec() };
        let (first, second) = header.split_at(usize::from(input.byte()).min(header.len()));
        let mut parts = vec![Part::Readable(first), Part::Readable(second)];
        for _ in 0..input.byte() % 4 {
            let (kind, len) = (input.byte(), input.u32() >> (input.byte() % 32));
            parts.push(match kind % 4 {
                0 => Part::Readable(input.bytes(len as usize % 1024)),
                1 => Part::Writable(len % 2048),
                2 => Part::ReadableAt(GuestAddress(input.u64() >> 32), len),
                _ => Part::WritableAt(GuestAddress(input.u64() | 0x100_0000), len),
            });
        }
        if !input.byte().is_multiple_of(8) {
            parts.push(Part::Writable(1));
        }
        if input.byte().is_multiple_of(4) {
            queue.add_indirect(&parts)
        } else {
            queue.add(&parts)
        };
    }
    queue.kick();
    // Every chain is given back, whatever it was.
    for _ in 0..requests {
        queue.wait_used();
    }
    device.reset();

    let mut driver = guest.activate(&mut device);
    let done = driver.queues[0].request(&[&[0; 16]], &[512, 1]);
    assert_eq!((done.len, done.written[1][0]), (513, 0));
}
