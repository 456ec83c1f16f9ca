use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};

use bellows_devices::pci::PciAddress;
use bellows_devices::virtio::Mem;
use bellows_memory::partition::{Handled, Request};
use bellows_memory::testing::Fixture as Memory;
use bellows_memory::{BlockRange, PartitionMemory};
use bellows_protocol::agent::{
    AwaitPartitionRequest, DriverReport, Empty, FreezeInstanceRequest, FrozenInstance, InstanceRequest,
};
use bellows_protocol::agent_ttrpc::Agent;
use ttrpc::{Code, TtrpcContext};

use super::*;
use crate::guest::agent::fixture::Fixture;

const LIMIT: Duration = Duration::from_secs(30);
const NODE: u32 = 1;

/// What an agent answers, and what it was asked.
#[derive(Default)]
struct Fake {
    answer: Mutex<FrozenInstance>,
    refuses: AtomicBool,
    calls: Mutex<Vec<&'static str>>,
}

impl Fake {
    fn call<T>(&self, call: &'static str, answer: T) -> ttrpc::Result<T> {
        self.calls.lock().unwrap().push(call);
        if self.refuses.load(Ordering::Relaxed) {
            let status = ttrpc::get_status(Code::DEADLINE_EXCEEDED, "a task does not stop");
            return Err(ttrpc::Error::RpcStatus(status));
        }
        Ok(answer)
    }
}

impl Agent for Fake {
    fn freeze_instance(&self, _: &TtrpcContext, request: FreezeInstanceRequest) -> ttrpc::Result<FrozenInstance> {
        assert_eq!(request.instance_id, "a");
        self.call("freeze", self.answer.lock().unwrap().clone())
    }

    fn thaw_instance(&self, _: &TtrpcContext, _: InstanceRequest) -> ttrpc::Result<Empty> {
        self.call("thaw", Empty::new())
    }

    fn await_partition(&self, _: &TtrpcContext, request: AwaitPartitionRequest) -> ttrpc::Result<DriverReport> {
        self.call("await", DriverReport { node: request.node, ..Default::default() })
    }
}

/// A partition of 512 MiB in a guest whose driver does what the host wants at once, and the guest's agent.
struct Guest {
    entry: Entry,
    agent: AgentClient,
    fake: Arc<Fake>,
    _agent: Fixture,
    memory: Memory,
    stop: Arc<AtomicBool>,
    driver: Option<JoinHandle<()>>,
}

impl Guest {
    /// All of the partition is plugged, and `spare` MiB of it can go at once.
    fn new(spare: u64) -> Self {
        let memory = Memory::new(ByteSize::mib(512));
        let fake = Arc::new(Fake::default());
        *fake.answer.lock().unwrap() =
            FrozenInstance { node: NODE, private: true, spare_bytes: spare << 20, ..Default::default() };
        let fixture = Fixture::with_agent(fake.clone());
        let agent = fixture.connect().unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let (partition, stopped) = (memory.partition.clone(), stop.clone());
        let driver = thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                follow(&partition);
                thread::yield_now();
            }
        });
        let handle = Mem::new(memory.partition.clone()).handle();
        handle.plug(ByteSize::mib(512), LIMIT).unwrap();
        let entry = Entry::new(handle, PciAddress::new(0, 1, 0).unwrap());
        Self { entry, agent, fake, _agent: fixture, memory, stop, driver: Some(driver) }
    }

    fn freeze(&self, swap: Swap) -> Result<FreezeReport, InstanceError> {
        freeze_in(&self.agent, &id(), Some(&self.entry), Deadline::after(LIMIT), || Ok(swap))
    }

    fn thaw(&self) -> Result<ThawReport, InstanceError> {
        thaw_in(&self.agent, &id(), Some(&self.entry), Deadline::after(LIMIT))
    }

    fn plugged(&self) -> ByteSize {
        self.memory.partition.report().plugged
    }

    /// The frozen instances, with the sizes that they get back.
    fn frozen(&self) -> Vec<(String, ByteSize)> {
        self.entry.info().frozen.into_iter().map(|frozen| (frozen.instance.to_string(), frozen.size)).collect()
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(driver) = self.driver.take() {
            driver.join().unwrap();
        }
    }
}

/// Plugs or unplugs what the host wants, at the end of the partition.
fn follow(partition: &PartitionMemory) {
    let report = partition.report();
    let blocks = |size: ByteSize| u32::try_from(size.get() / BLOCK.get()).unwrap();
    let (plugged, target) = (blocks(report.plugged), blocks(report.target));
    let request = match (BlockRange::between(plugged, target), BlockRange::between(target, plugged)) {
        (Some(more), _) => Request::Plug(more),
        (_, Some(less)) => Request::Unplug(less),
        _ => return,
    };
    while partition.handle(request) == Handled::Later {
        thread::yield_now();
    }
}

fn id() -> InstanceId {
    "a".parse().unwrap()
}

#[test]
fn what_is_free_goes_and_comes_back_with_the_thaw() {
    let guest = Guest::new(300);
    let report = guest.freeze(Swap::Absent).unwrap();
    assert_eq!((report.unplugged, report.free_kept), (ByteSize::mib(300), None));
    assert_eq!((report.pushed_out, report.not_pushed_out), (ByteSize::bytes(0), Some(NotPushedOut::NoSwap)));
    assert_eq!(guest.plugged(), ByteSize::mib(212));
    assert_eq!(guest.frozen(), [("a".to_owned(), ByteSize::mib(512))]);
    // Again: what is plugged is remembered, not what is left.
    guest.fake.answer.lock().unwrap().spare_bytes = 10 << 20;
    assert_eq!(guest.freeze(Swap::Absent).unwrap().unplugged, ByteSize::mib(10));
    assert_eq!(guest.frozen(), [("a".to_owned(), ByteSize::mib(512))]);
    let report = guest.thaw().unwrap();
    assert_eq!((report.plugged, guest.plugged()), (ByteSize::mib(310), ByteSize::mib(512)));
    assert_eq!(guest.frozen(), []);
    assert_eq!(guest.thaw().unwrap().plugged, ByteSize::bytes(0));
    assert_eq!(*guest.fake.calls.lock().unwrap(), ["freeze", "freeze", "await", "thaw", "thaw"]);
}

#[test]
fn an_agent_that_claims_too_much_gets_no_invalid_target() {
    for (claims, left) in [(u64::MAX, 2), (511 << 20, 2), ((10 << 20) + 1, 502), (1, 512)] {
        let guest = Guest::new(0);
        guest.fake.answer.lock().unwrap().spare_bytes = claims;
        guest.freeze(Swap::Absent).unwrap();
        assert_eq!(guest.plugged(), ByteSize::mib(left), "{claims}");
    }
}

#[test]
fn a_guest_that_keeps_more_than_it_said_is_not_asked_for_it_any_longer() {
    let mut guest = Guest::new(300);
    guest.stop.store(true, Ordering::Relaxed);
    guest.driver.take().unwrap().join().unwrap();
    let report = guest.freeze(Swap::Absent).unwrap();
    assert_eq!(report.unplugged, ByteSize::bytes(0));
    assert_eq!(guest.memory.partition.report().target, ByteSize::mib(512));
}

#[test]
fn an_instance_that_does_not_stop_keeps_everything() {
    let guest = Guest::new(300);
    guest.fake.refuses.store(true, Ordering::Relaxed);
    let error = guest.freeze(Swap::Free(ByteSize::gib(1))).unwrap_err();
    assert!(matches!(error, InstanceError::Agent { action: "freeze", .. }), "{error:?}");
    assert_eq!((guest.plugged(), guest.frozen()), (ByteSize::mib(512), vec![]));
}

#[test]
fn a_thaw_that_the_host_cannot_back_can_be_tried_again() {
    let guest = Guest::new(300);
    guest.freeze(Swap::Absent).unwrap();
    guest.memory.host.set(ByteSize::mib(1));
    let error = guest.thaw().unwrap_err();
    assert!(matches!(error, InstanceError::Partition(PartitionError::Plug { .. })), "{error:?}");
    assert_eq!(*guest.fake.calls.lock().unwrap(), ["freeze"], "it stays frozen");
    assert_eq!(guest.frozen(), [("a".to_owned(), ByteSize::mib(512))]);
    guest.memory.host.set(ByteSize::gib(1));
    assert_eq!(guest.thaw().unwrap().plugged, ByteSize::mib(300));
}

#[test]
fn what_is_not_pushed_out_has_a_reason() {
    let guest = Guest::new(0);
    let limited = || Swap::Limited { group: "/sys/fs/cgroup/vm".into(), limit: ByteSize::mib(1) };
    for (swap, reason) in [
        (Swap::Absent, "the host has no swap"),
        (Swap::Full(ByteSize::gib(2)), "the host's 2 GiB of swap are full"),
        (limited(), "the control group /sys/fs/cgroup/vm allows no more swap than 1 MiB"),
    ] {
        let report = guest.freeze(swap).unwrap();
        assert_eq!(report.not_pushed_out.as_ref().unwrap().to_string(), reason);
        assert_eq!(serde_json::to_value(&report).unwrap()["not_pushed_out"], reason);
    }
    // Whether this machine has swap is not the test's to say.
    assert_eq!(guest.freeze(Swap::Free(ByteSize::gib(1))).unwrap().not_pushed_out, None);
    let unknown = freeze_in(&guest.agent, &id(), Some(&guest.entry), Deadline::after(LIMIT), || {
        Err(io::Error::other("cannot read /proc/swaps"))
    });
    assert_eq!(unknown.unwrap().not_pushed_out.unwrap().to_string(), "cannot read /proc/swaps");
}

#[test]
fn a_partition_that_is_shared_stays_as_it_is() {
    let guest = Guest::new(0);
    *guest.fake.answer.lock().unwrap() = FrozenInstance { node: NODE, neighbours: 2, ..Default::default() };
    let report = guest.freeze(Swap::Free(ByteSize::gib(1))).unwrap();
    assert_eq!(report.free_kept, Some(FreeKept::StockKernel));
    assert_eq!(report.not_pushed_out, Some(NotPushedOut::Neighbours(2)));
    assert_eq!(guest.plugged(), ByteSize::mib(512));
}

#[test]
fn an_instance_without_a_partition_only_stops() {
    let guest = Guest::new(0);
    *guest.fake.answer.lock().unwrap() = FrozenInstance::default();
    let report = freeze(&guest.agent, &id(), None, LIMIT, || panic!("there is nothing to push out")).unwrap();
    assert_eq!((report.free_kept, report.unplugged), (Some(FreeKept::NoPartition), ByteSize::bytes(0)));
    assert_eq!(report.not_pushed_out, Some(NotPushedOut::NoPartition));
    assert_eq!(thaw(&guest.agent, &id(), None, LIMIT).unwrap().plugged, ByteSize::bytes(0));
}

#[test]
fn who_is_removed_is_not_frozen_any_longer() {
    let guest = Guest::new(300);
    guest.freeze(Swap::Absent).unwrap();
    guest.entry.forget_frozen(&id());
    assert_eq!((guest.frozen(), guest.plugged()), (vec![], ByteSize::mib(212)));
    guest.thaw().unwrap();
    assert_eq!(guest.plugged(), ByteSize::mib(212), "nothing is plugged for an instance that is not frozen");
}
