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

fn event() -> Arc<EventFd> {
    Arc::new(EventFd::new(vmm_sys_util::eventfd::EFD_NONBLOCK).unwrap())
}

#[test]
fn signals_of_an_event_are_interrupts_while_the_vector_is_on() {
    let msi = FakeMsi::new();
    let vectors = MsixVectors::new(&msi, 1).unwrap();
    let call = event();
    let signal = || {
        call.write(1).unwrap();
        msi.carry();
    };
    vectors.wire(0, &call).unwrap();
    signal();
    assert_eq!((msi.wired(), msi.count(MESSAGE)), (0, 0), "the vector is off");
    vectors.set_delivery(0, Delivery::To(MESSAGE));
    msi.carry();
    assert_eq!((msi.wired(), msi.count(MESSAGE)), (1, 1), "what nobody has taken counts");
    signal();
    assert_eq!((msi.count(MESSAGE), pending(&vectors)), (2, 0));

    vectors.set_delivery(0, Delivery::Masked);
    assert_eq!((msi.wired(), pending(&vectors)), (0, 0));
    signal();
    assert_eq!((msi.count(MESSAGE), pending(&vectors)), (2, 1));
    assert!(call.read().is_err(), "it is one or the other");
    let other = MsiMessage { data: 0x32, ..MESSAGE };
    vectors.set_delivery(0, Delivery::To(other));
    assert_eq!((msi.count(MESSAGE), msi.count(other), pending(&vectors)), (2, 1, 0));
    signal();
    assert_eq!((msi.count(MESSAGE), msi.count(other)), (2, 2), "to where the vector is routed at last");

    vectors.set_delivery(0, Delivery::Masked);
    signal();
    vectors.unwire(0, &call);
    assert_eq!((msi.wired(), pending(&vectors)), (0, 1), "what came before counts");
    vectors.set_delivery(0, Delivery::To(other));
    assert_eq!((msi.wired(), msi.count(other)), (0, 3));
    signal();
    assert_eq!(msi.count(other), 3, "it is nobody's");

    vectors.wire(0, &call).unwrap();
    vectors.wire(7, &call).unwrap();
    vectors.unwire(7, &call);
    assert_eq!(msi.wired(), 1, "there is no vector 7");
    drop(vectors);
    assert_eq!(msi.wired(), 0);
}
