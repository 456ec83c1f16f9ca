use std::sync::Arc;

use super::*;
use crate::virtio::testing::{FakeGuest, FakeInterrupt, Part};

#[test]
fn a_group_knows_how_many_chains_hold_its_first_bytes() {
    let mut group = Group { segments: Segments::with_capacity(4), chains: Vec::with_capacity(4) };
    assert_eq!(group.chains_for(0), 0);
    group.chains.extend([(7, 100), (3, 50), (9, 1)]);
    for (bytes, chains) in [(0, 1), (1, 1), (100, 1), (101, 2), (150, 2), (151, 3), (152, 3)] {
        assert_eq!(group.chains_for(bytes), chains, "{bytes} bytes");
    }
}

/// Asks for as much as there is, and never gets enough.
#[derive(Default)]
struct Greedy {
    fills: u32,
    kept: u32,
}

impl GroupHandler for Greedy {
    fn is_ready(&mut self) -> bool {
        true
    }

    fn accepts(&mut self, _: &Chain, _: &GuestMemory) -> bool {
        true
    }

    fn wanted(&self) -> u64 {
        u64::MAX
    }

    fn fill(&mut self, _: &Group, _: &GuestMemory) -> Filled {
        self.fills += 1;
        Filled::More
    }

    fn keep(&mut self, _: &Group, _: &GuestMemory) {
        self.kept += 1;
    }

    fn discard(&mut self) {}
}

/// One that waits does not keep the thread busy, and the driver's next kick reaches it.
#[test]
fn too_few_chains_are_left_alone() {
    let guest = FakeGuest::new();
    let interrupt = Arc::new(FakeInterrupt::new(1));
    let mut driver = guest.queue(0, 16, interrupt.clone());
    let mut activation = Activation {
        memory: guest.view().clone(),
        queues: vec![Some(driver.device_side(true))],
        interrupt,
        features: 0,
        event_loop: guest.event_loop().handle(),
    };
    let mut queue = GroupQueue::take(&mut activation, 0).unwrap();
    let mut greedy = Greedy::default();
    for chains in 1..=5_u16 {
        driver.add(&[Part::Writable(10)]);
        queue.kicked(&mut greedy);
        assert_eq!((greedy.fills, greedy.kept), (chains.into(), chains.into()));
        assert_eq!(queue.state().next_avail, 0);
        assert!(queue.queue.kick.read().is_err(), "it has not kicked itself");
        // The driver kicks when it adds the next, not one that it has added before.
        let event: u16 = guest.memory().read_obj(GuestAddress(driver.used.0 + 4 + 16 * 8)).unwrap();
        assert_eq!(u16::from_le(event), chains);
    }
}
