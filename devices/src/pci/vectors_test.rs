use std::sync::atomic::AtomicBool;
use std::time::Instant;

use super::*;
use crate::interrupt::MsiMessage;
use crate::virtio::testing::{FakeMsi, PATIENCE};

const MESSAGE: MsiMessage = MsiMessage { address: 0xfee0_0000, data: 0x31 };

fn pending(vectors: &MsixVectors) -> u8 {
    let mut data = [0xaa];
    vectors.read_pending(0, &mut data);
    data[0]
}

#[test]
fn off_drops_masked_keeps_and_on_sends() {
    let msi = FakeMsi::new();
    let vectors = MsixVectors::new(&msi, 2).unwrap();
    vectors.trigger(0);
    vectors.set_delivery(0, Delivery::Masked);
    assert_eq!(pending(&vectors), 0);
    vectors.trigger(0);
    vectors.trigger(0);
    assert_eq!(pending(&vectors), 1);
    assert_eq!(msi.count(MESSAGE), 0);
    vectors.set_delivery(0, Delivery::Masked);
    assert_eq!(pending(&vectors), 1, "masking again forgets nothing");
    vectors.set_delivery(0, Delivery::To(MESSAGE));
    assert_eq!(pending(&vectors), 0);
    assert_eq!(msi.count(MESSAGE), 1);
    vectors.trigger(0);
    assert_eq!(msi.count(MESSAGE), 2);

    vectors.set_delivery(0, Delivery::Masked);
    vectors.trigger(0);
    vectors.set_delivery(0, Delivery::Off);
    vectors.set_delivery(0, Delivery::To(MESSAGE));
    assert_eq!(pending(&vectors), 0, "switching off forgets");
    assert_eq!(msi.count(MESSAGE), 2, "switching off forgets");

    vectors.trigger(2);
    vectors.trigger(0xffff);
    vectors.set_delivery(2, Delivery::To(MESSAGE));
    vectors.read_pending(u64::MAX, &mut [0; 1]);
    drop(vectors);
    assert_eq!(msi.live(), 0);
}

#[test]
fn no_interrupt_is_lost_while_the_mask_changes() {
    const ROUNDS: u64 = 20_000;
    let msi = FakeMsi::new();
    let vectors = MsixVectors::new(&msi, 1).unwrap();
    // A vector that is off would drop interrupts.
    vectors.set_delivery(0, Delivery::Masked);
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                vectors.set_delivery(0, Delivery::Masked);
                vectors.set_delivery(0, Delivery::To(MESSAGE));
            }
        });
        let began = Instant::now();
        for round in 1..=ROUNDS {
            vectors.trigger(0);
            while msi.count(MESSAGE) < round && began.elapsed() < PATIENCE {
                std::hint::spin_loop();
            }
        }
        done.store(true, Ordering::Relaxed);
    });
    assert_eq!(msi.count(MESSAGE), ROUNDS);
}
