use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use bellows_memory::partition::Request;
use bellows_memory::testing::Fixture;
use bellows_memory::{BLOCK, BlockRange, Layout, LayoutSpec};
use bellows_protocol::agent;
use bellows_protocol::agent_ttrpc::Agent;
use ttrpc::TtrpcContext;

use super::*;
use crate::end::VmEnd;
use crate::guest::agent::fixture::Fixture as AgentFixture;

const PATIENCE: Duration = Duration::from_secs(60);
const MIB: u64 = 1 << 20;

/// Base memory that may grow by 512 MiB, in a VM that may plug 256 MiB.
struct World {
    elastic: ElasticBase,
    guest: Arc<Guest>,
    agent: Arc<AgentClient>,
    end: Arc<EndSignal>,
    host: Fixture,
    _fixture: AgentFixture,
}

/// The guest's agent, and what it finds.
#[derive(Default)]
struct Guest {
    /// Instances wait for memory.
    pressure: AtomicBool,
    /// Bytes that cannot be freed.
    kept: AtomicU64,
    /// Its limits do not follow, or its kernel does not tell pressure.
    refuses: AtomicBool,
    mute: AtomicBool,
    grown: AtomicU64,
}

impl World {
    fn new() -> Self {
        let host = Fixture::new(ByteSize::mib(256));
        let spec = LayoutSpec::x86_64(ByteSize::gib(3), vec![], 40);
        let layout = Layout::new(&LayoutSpec { growth: ByteSize::mib(512), ..spec }).unwrap();
        let memory = PartitionMemory::new(layout.growth().unwrap(), host.setup()).unwrap();
        let guest = Arc::<Guest>::default();
        let fixture = AgentFixture::with_agent(guest.clone());
        let (agent, end) = (Arc::new(fixture.connect().unwrap()), fixture.end.clone());
        // The fixture ends in good order only once it has served.
        agent.resize_base(ByteSize::bytes(0), ByteSize::bytes(0), PATIENCE).unwrap();
        let config = ElasticBaseConfig { shrink_after_s: 1, ..ElasticBaseConfig::new(ByteSize::gib(4)) };
        let elastic = ElasticBase::new(Mem::new(memory).handle(), config, &end);
        Self { elastic, guest, agent, end, host, _fixture: fixture }
    }

    /// Follows the guest, whose driver does what it is told, while `host` runs.
    fn run<T>(&self, host: impl FnOnce() -> T) -> T {
        let over = &AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(move || {
                while !over.load(Ordering::SeqCst) {
                    self.drive();
                    thread::yield_now();
                }
            });
            self.elastic.follow(&self.agent, &self.end);
            let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(host));
            over.store(true, Ordering::SeqCst);
            result.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Acts as Linux's driver of memory that is not a private node's: block by block.
    fn drive(&self) {
        let memory = self.elastic.handle.memory();
        let report = memory.report();
        let block = |from: u64| BlockRange::new(u32::try_from(from / BLOCK.get()).unwrap(), 1).unwrap();
        let request = match report.plugged.cmp(&report.target) {
            std::cmp::Ordering::Less => Request::Plug(block(report.plugged.get())),
            std::cmp::Ordering::Greater => Request::Unplug(block(report.plugged.get() - BLOCK.get())),
            std::cmp::Ordering::Equal => return,
        };
        let _ = memory.handle(request);
    }

    fn wait(&self, wanted: impl Fn(&ElasticBaseReport) -> bool) -> ElasticBaseReport {
        self.elastic.wait(PATIENCE, wanted).unwrap()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.end.report(VmEnd::Stopped);
    }
}

impl Guest {
    fn found(&self, pressure: bool) -> agent::BaseMemoryUse {
        let grown_bytes = self.grown.load(Ordering::SeqCst);
        agent::BaseMemoryUse { grown_bytes, pressure, total_bytes: 1 << 30, free_bytes: 0, ..Default::default() }
    }

    fn refusal(code: ttrpc::Code, text: &str) -> ttrpc::Error {
        ttrpc::Error::RpcStatus(ttrpc::get_status(code, text))
    }
}

impl Agent for Guest {
    fn resize_base(&self, _: &TtrpcContext, request: agent::ResizeBaseRequest) -> ttrpc::Result<agent::BaseMemoryUse> {
        if self.refuses.load(Ordering::SeqCst) {
            return Err(Self::refusal(ttrpc::Code::DEADLINE_EXCEEDED, "no memory"));
        }
        self.grown.store(request.grown_bytes.max(self.kept.load(Ordering::SeqCst)), Ordering::SeqCst);
        Ok(self.found(false))
    }

    fn await_base_pressure(
        &self,
        _: &TtrpcContext,
        _: agent::AwaitBasePressureRequest,
    ) -> ttrpc::Result<agent::BaseMemoryUse> {
        if self.mute.load(Ordering::SeqCst) {
            return Err(Self::refusal(ttrpc::Code::UNIMPLEMENTED, "this kernel has no pressure stall information"));
        }
        Ok(self.found(self.pressure.load(Ordering::SeqCst)))
    }
}

#[test]
fn base_memory_follows_the_guest_up_and_down() {
    let world = World::new();
    world.guest.pressure.store(true, Ordering::SeqCst);
    let grown = world.run(|| {
        let grown = world.wait(|report| report.plugged == ByteSize::mib(128) && report.cycle.peak.get() > 0);
        world.guest.pressure.store(false, Ordering::SeqCst);
        grown
    });
    assert_eq!((grown.most, grown.target, grown.fault.as_deref()), (ByteSize::mib(512), ByteSize::mib(128), None));
    let cycle = BaseCycle { peak: ByteSize::mib(128), ..BaseCycle::default() };
    assert_eq!((grown.grown, grown.returned, grown.cycle), (ByteSize::mib(128), ByteSize::bytes(0), cycle));

    let back = world.run(|| world.wait(|report| report.cycle.returned.get() > 0));
    assert_eq!((back.plugged.get(), back.returned), (0, ByteSize::mib(128)));
    assert_eq!(back.cycle, BaseCycle { returned: ByteSize::mib(128), ..cycle });
    assert_eq!(world.guest.grown.load(Ordering::SeqCst), 0);
    world.elastic.handle.memory().wait_discarded(PATIENCE).unwrap();
    assert_eq!(world.host.admission.admitted(), ByteSize::bytes(0));
}

/// In whole blocks.
#[test]
fn what_the_guest_cannot_free_stays_and_is_reported() {
    let world = World::new();
    world.guest.pressure.store(true, Ordering::SeqCst);
    world.guest.kept.store(61 * MIB, Ordering::SeqCst);
    let report = world.run(|| {
        world.wait(|report| report.cycle.peak == ByteSize::mib(128));
        world.guest.pressure.store(false, Ordering::SeqCst);
        world.wait(|report| report.cycle.kept.get() > 0)
    });
    let [peak, returned, kept] = [128, 66, 62].map(ByteSize::mib);
    assert_eq!((report.plugged, report.cycle), (kept, BaseCycle { peak, returned, kept }));
}

#[test]
fn memory_that_the_guest_cannot_use_goes_back() {
    let world = World::new();
    world.guest.pressure.store(true, Ordering::SeqCst);
    world.guest.refuses.store(true, Ordering::SeqCst);
    let report = world.run(|| world.wait(|report| report.fault.is_some()));
    assert_eq!((report.plugged.get(), report.target.get(), report.grown.get()), (0, 0, 0));
    assert!(report.fault.unwrap().contains("no memory"));
}

#[test]
fn growth_beyond_the_limit_of_the_vm_is_refused_and_said() {
    let world = World::new();
    world.guest.pressure.store(true, Ordering::SeqCst);
    let report = world.run(|| world.wait(|report| report.fault.is_some()));
    assert_eq!(report.cycle.peak, ByteSize::mib(128), "384 MiB would be next");
    assert!(report.fault.unwrap().contains("256 MiB"));
}

#[test]
fn a_guest_that_does_not_tell_is_followed_no_longer() {
    let world = World::new();
    world.guest.mute.store(true, Ordering::SeqCst);
    let report = world.run(|| world.wait(|report| report.fault.is_some()));
    assert!(report.fault.unwrap().contains("pressure stall information"));
    let thread = world.elastic.thread.lock().take().unwrap();
    thread.join().unwrap();
}

#[test]
fn what_is_requested_comes_and_goes_while_nothing_follows_the_guest() {
    let world = World::new();
    let settle = |size: ByteSize| {
        world.elastic.request(size).unwrap();
        while world.elastic.report().plugged != size {
            world.drive();
        }
        world.elastic.report()
    };
    let grown = settle(ByteSize::mib(256));
    assert_eq!((grown.most, grown.target, grown.plugged), (ByteSize::mib(512), ByteSize::mib(256), ByteSize::mib(256)));
    assert_eq!(settle(ByteSize::mib(100)).returned, ByteSize::mib(156));
    for (size, part) in [(101, "2 MiB"), (514, "512 MiB"), (512, "256 MiB")] {
        let error = world.elastic.request(ByteSize::mib(size)).unwrap_err();
        assert!(crate::causes::chain(&error).contains(part), "{}", crate::causes::chain(&error));
        assert_eq!(world.elastic.report().target, ByteSize::mib(100), "a refusal changes nothing");
    }
    settle(ByteSize::bytes(0));
    world.elastic.handle.memory().wait_discarded(PATIENCE).unwrap();
    assert_eq!(world.host.admission.admitted(), ByteSize::bytes(0));
}

#[test]
fn waits_end_with_the_vm() {
    let world = World::new();
    world.run(|| {
        let report = world.elastic.wait(Duration::from_millis(1), |_| false).unwrap_err();
        assert_eq!(report.plugged.get(), 0);
        thread::scope(|scope| {
            let waiter = scope.spawn(|| world.elastic.wait(PATIENCE, |_| false));
            world.end.report(VmEnd::Stopped);
            waiter.join().unwrap().unwrap_err();
        });
    });
}
