use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::Instant;

use bellows_devices::virtio::Mem;
use bellows_memory::partition::{Report, Request};
use bellows_memory::testing::Fixture;
use bellows_memory::{BLOCK, BlockRange, Layout, LayoutSpec, PartitionMemory};
use bellows_protocol::agent::{self, DriverState};
use bellows_protocol::agent_ttrpc::Agent;
use ttrpc::TtrpcContext;

use super::*;
use crate::end::VmEnd;
use crate::guest::agent::fixture::Fixture as AgentFixture;
use crate::memory_map::Added;
use crate::model::PreparedPartition;

const PATIENCE: Duration = Duration::from_secs(60);
const SHORT: Duration = Duration::from_millis(50);
const GRANULE: u64 = 128 << 20;

/// Two partitions with windows of 256 MiB, in a VM that may have 256 MiB plugged.
struct World {
    partitions: Arc<[Partition; 2]>,
    preparer: Preparer,
    agent: Arc<AgentClient>,
    end: Arc<EndSignal>,
    host: Fixture,
    _fixture: AgentFixture,
}

struct Partition {
    memory: Arc<PartitionMemory>,
    added: Added,
    /// Whether its driver parks.
    private: AtomicBool,
    parks: AtomicU64,
    /// What a call does just before the agent reports that the driver has parked.
    meanwhile: Mutex<Option<fn(&PartitionMemory)>>,
}

impl World {
    fn new() -> Self {
        let host = Fixture::new(ByteSize::mib(256));
        let windows = vec![ByteSize::mib(256); 2];
        let layout = Layout::new(&LayoutSpec::x86_64(ByteSize::gib(3), windows, 40)).unwrap();
        let partition = |window: &Window| Partition {
            memory: PartitionMemory::new(*window, host.setup()).unwrap(),
            added: Added::default(),
            private: true.into(),
            parks: 0.into(),
            meanwhile: Mutex::default(),
        };
        let partitions = Arc::new([partition(&layout.windows()[0]), partition(&layout.windows()[1])]);
        let fixture = AgentFixture::with_agent(Arc::new(Guest(partitions.clone())));
        let (agent, end) = (Arc::new(fixture.connect().unwrap()), fixture.end.clone());
        // The fixture ends in good order only once it has served.
        agent.await_driver(1, false, PATIENCE).unwrap();
        let preparer = Preparer::new(layout.windows(), ByteSize::mib(256), &end);
        let weak = Arc::downgrade(&partitions);
        end.on_end(move || weak.upgrade().iter().for_each(|all| all.iter().for_each(|it| it.memory.end())));
        Self { partitions, preparer, agent, end, host, _fixture: fixture }
    }

    fn begin(&self) {
        let partitions = self.partitions.clone();
        self.preparer.begin(&self.agent, &self.end, move |id| {
            let partition = &partitions[usize::from(id.get()) - 1];
            Some(Subject { handle: partition.handle(), added: partition.added.clone() })
        });
    }

    /// Does `host` while the guest's driver does its part, for each granule once `may_add` says so.
    fn with_driver<T>(&self, may_add: mpsc::Receiver<()>, host: impl FnOnce() -> T) -> T {
        let over = &AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(move || {
                while !over.load(Ordering::SeqCst) {
                    self.partitions.iter().for_each(|partition| partition.follow(&may_add));
                    thread::yield_now();
                }
            });
            // The driver ends even if a check fails.
            let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(host));
            over.store(true, Ordering::SeqCst);
            result.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    fn await_target(&self, index: usize, mib: u64) -> Report {
        let start = Instant::now();
        loop {
            let report = self.partitions[index].memory.report();
            if report.target == ByteSize::mib(mib) {
                return report;
            }
            assert!(start.elapsed() < PATIENCE, "{report:?}");
            thread::yield_now();
        }
    }

    fn call(&self, number: u16) -> Call<'_> {
        self.preparer.call(id(number))
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.end.report(VmEnd::Stopped);
    }
}

impl Partition {
    fn handle(&self) -> bellows_devices::virtio::MemHandle {
        Mem::new(self.memory.clone()).handle()
    }

    /// Acts as Linux's driver.
    fn follow(&self, may_add: &mpsc::Receiver<()>) {
        let report = self.memory.report();
        let granule = |from: u64| {
            let blocks = |bytes: u64| u32::try_from(bytes / BLOCK.get()).unwrap();
            BlockRange::new(blocks(from), blocks(GRANULE)).unwrap()
        };
        let request = match report.plugged.cmp(&report.target) {
            std::cmp::Ordering::Less if may_add.try_recv() != Err(mpsc::TryRecvError::Empty) => {
                Request::Plug(granule(report.plugged.get()))
            }
            std::cmp::Ordering::Greater if report.target.get() == 0 => Request::UnplugAll,
            std::cmp::Ordering::Greater => Request::Unplug(granule(report.plugged.get() - GRANULE)),
            _ => return,
        };
        if matches!(request, Request::UnplugAll) {
            self.parks.fetch_add(1, Ordering::SeqCst);
        }
        let _ = self.memory.handle(request);
    }
}

/// The agent, which reports what the driver of a partition does.
struct Guest(Arc<[Partition; 2]>);

impl Guest {
    fn answer(&self, node: u32) -> (agent::DriverReport, bool) {
        let partition = &self.0[node as usize - 1];
        let report = partition.memory.report();
        let private = partition.private.load(Ordering::SeqCst);
        let state = match (report.plugged.cmp(&report.target), report.target.get()) {
            (std::cmp::Ordering::Less, _) => DriverState::PLUGGING,
            (std::cmp::Ordering::Greater, _) => DriverState::DRAINING,
            (std::cmp::Ordering::Equal, 0) if private => DriverState::PARKED,
            (std::cmp::Ordering::Equal, 0) => DriverState::EMPTY,
            (std::cmp::Ordering::Equal, _) => DriverState::ONLINE,
        };
        let idle = report.plugged == report.target;
        let driver = agent::PartitionDriver { state: state.into(), private, ..Default::default() };
        (agent::DriverReport { node, driver: Some(driver).into(), ..Default::default() }, idle)
    }

    fn wait(&self, node: u32, timeout_ms: u64) -> agent::DriverReport {
        let start = Instant::now();
        loop {
            let (answer, idle) = self.answer(node);
            if idle || start.elapsed() > Duration::from_millis(timeout_ms) {
                return answer;
            }
            thread::yield_now();
        }
    }
}

impl Agent for Guest {
    fn await_driver(&self, _: &TtrpcContext, request: agent::AwaitDriverRequest) -> ttrpc::Result<agent::DriverReport> {
        let partition = &self.0[request.node as usize - 1];
        if partition.parks.load(Ordering::SeqCst) > 0
            && let Some(meanwhile) = partition.meanwhile.lock().take()
        {
            meanwhile(&partition.memory);
        }
        Ok(self.wait(request.node, request.timeout_ms.into()))
    }

    fn await_partition(
        &self,
        _: &TtrpcContext,
        request: agent::AwaitPartitionRequest,
    ) -> ttrpc::Result<agent::DriverReport> {
        Ok(self.wait(request.node, request.timeout_ms.into()))
    }
}

fn id(number: u16) -> PartitionId {
    PartitionId::new(number).unwrap()
}

/// A driver that adds at once.
fn at_once() -> mpsc::Receiver<()> {
    mpsc::channel().1
}

fn reasons(report: &PreparationReport) -> Vec<Option<NotPrepared>> {
    report.partitions.iter().map(|part| part.reason.clone()).collect()
}

fn prepared(report: &PreparationReport) -> Vec<u64> {
    report.partitions.iter().map(|part: &PreparedPartition| part.prepared.get() >> 20).collect()
}

#[test]
fn all_partitions_are_parked_with_a_memory_map_and_nothing_stays_plugged() {
    let world = World::new();
    world.begin();
    let report = world.with_driver(at_once(), || world.preparer.wait(PATIENCE).unwrap());
    assert_eq!((prepared(&report), reasons(&report)), (vec![256, 256], vec![None, None]));
    assert_eq!(report.memory_map, ByteSize::mib(8));
    for partition in world.partitions.iter() {
        let memory = partition.memory.report();
        assert_eq!((memory.plugged.get(), memory.target.get(), memory.discarding.get()), (0, 0, 0));
        assert!(!memory.preparing);
        assert_eq!(partition.added.get(), ByteSize::mib(256));
        assert_eq!(partition.parks.load(Ordering::SeqCst), 2, "once for each memory block");
    }
    assert_eq!(world.host.admission.admitted(), ByteSize::bytes(0));
    world.begin();
    world.preparer.wait(Duration::ZERO).unwrap();
}

#[test]
fn a_call_that_comes_first_keeps_all_steps_off() {
    let world = World::new();
    let call = world.call(2);
    world.begin();
    world.with_driver(at_once(), || {
        let report = world.preparer.wait(SHORT).unwrap_err();
        assert_eq!((prepared(&report), reasons(&report)), (vec![0, 0], vec![None, None]));
        assert!(!call.outlasts_step(Deadline::after(PATIENCE)), "there is none");
        drop(call);
        assert_eq!(prepared(&world.preparer.wait(PATIENCE).unwrap()), [256, 256]);
    });
}

#[test]
fn a_plug_takes_over_in_the_middle_and_the_next_partition_follows() {
    for mib in [128, 256] {
        let world = World::new();
        let (add, may_add) = mpsc::channel();
        world.begin();
        // The guest does not add the first block before the plug is there.
        world.with_driver(may_add, || {
            world.await_target(0, 128);
            let call = world.call(1);
            let plugging = thread::spawn({
                let handle = world.partitions[0].handle();
                move || handle.plug(ByteSize::mib(mib), PATIENCE)
            });
            while world.partitions[0].memory.report().preparing {
                thread::yield_now();
            }
            drop(add);
            assert_eq!(plugging.join().unwrap().unwrap().report.plugged, ByteSize::mib(mib));
            // For the other partition's step to be admitted.
            world.partitions[0].handle().unplug(PATIENCE).unwrap();
            world.partitions[0].memory.wait_discarded(PATIENCE).unwrap();
            drop(call);
            let report = world.preparer.wait(PATIENCE).unwrap();
            assert_eq!((prepared(&report), reasons(&report)), (vec![0, 256], vec![Some(NotPrepared::Used), None]));
        });
    }
}

/// The guest has given all back, and the host has not yet heard that it is parked.
#[test]
fn a_plug_can_take_over_at_the_last_moment() {
    let world = World::new();
    *world.partitions[0].meanwhile.lock() = Some(|memory| {
        let target = memory.raise_target(ByteSize::mib(128)).unwrap();
        memory.wait_plugged(target, PATIENCE).unwrap();
    });
    world.begin();
    world.with_driver(at_once(), || {
        let report = world.preparer.wait(PATIENCE).unwrap();
        assert_eq!(reasons(&report)[0], Some(NotPrepared::Used), "{report:?}");
    });
}

#[test]
fn a_call_for_another_partition_begins_at_once_and_can_wait_for_the_step() {
    let world = World::new();
    let (add, may_add) = mpsc::channel();
    world.begin();
    world.with_driver(may_add, || {
        world.await_target(0, 128);
        let call = world.call(2);
        assert!(!call.outlasts_step(Deadline::after(SHORT)), "the guest takes its time");
        add.send(()).unwrap();
        assert!(call.outlasts_step(Deadline::after(PATIENCE)));
        assert_eq!(world.host.admission.admitted(), ByteSize::bytes(0));
        assert_eq!(world.partitions[0].memory.report().target, ByteSize::bytes(0), "and no step has followed");
        drop((call, add));
        world.preparer.wait(PATIENCE).unwrap();
    });
}

/// The VM may have no more than 256 MiB, of which the step has 128.
#[test]
fn a_plug_is_not_refused_for_what_is_being_prepared() {
    let world = World::new();
    let (add, may_add) = mpsc::channel();
    world.begin();
    world.with_driver(may_add, || {
        world.await_target(0, 128);
        let (call, handle) = (world.call(2), world.partitions[1].handle());
        let plugging = || call.plug(&handle, ByteSize::mib(256), Deadline::after(PATIENCE));
        let plugged = thread::scope(|scope| {
            let plugging = scope.spawn(plugging);
            drop(add);
            plugging.join().unwrap().unwrap()
        });
        assert_eq!(plugged.report.plugged, ByteSize::mib(256));
        drop(call);
        let report = world.preparer.wait(PATIENCE).unwrap();
        let [Some(NotPrepared::NotAdmitted(_)), Some(NotPrepared::Used)] = &reasons(&report)[..] else {
            panic!("{report:?}")
        };
        assert_eq!(prepared(&report), [128, 0]);
    });
}

#[test]
fn a_call_that_sets_no_target_ends_no_preparation() {
    let world = World::new();
    let (add, may_add) = mpsc::channel();
    world.begin();
    world.with_driver(may_add, || {
        world.await_target(0, 128);
        let call = world.call(1);
        world.partitions[0].handle().plug(ByteSize::mib(258), PATIENCE).unwrap_err();
        drop(add);
        let report = world.preparer.wait(SHORT).unwrap_err();
        assert_eq!(prepared(&report), [0, 0], "it does not park before the call has ended");
        drop(call);
        assert_eq!(prepared(&world.preparer.wait(PATIENCE).unwrap()), [256, 256]);
    });
}

#[test]
fn a_paused_vm_prepares_nothing_until_it_goes_on() {
    let world = World::new();
    world.end.set_paused(true);
    world.begin();
    world.with_driver(at_once(), || {
        world.preparer.wait(SHORT).unwrap_err();
        assert_eq!(world.partitions[0].memory.generation(), 0);
        world.end.set_paused(false);
        assert_eq!(prepared(&world.preparer.wait(PATIENCE).unwrap()), [256, 256]);
    });
}

#[test]
fn the_end_of_the_vm_ends_a_step() {
    let world = World::new();
    world.begin();
    // No driver acts.
    world.await_target(0, 128);
    world.end.report(VmEnd::Stopped);
    world.preparer.wait(PATIENCE).unwrap();
    drop(world);
}

#[test]
fn what_is_not_admitted_is_skipped_with_its_reason() {
    let world = World::new();
    world.host.host.set(ByteSize::mib(130));
    world.begin();
    let report = world.with_driver(at_once(), || world.preparer.wait(PATIENCE).unwrap());
    assert_eq!(prepared(&report), [128, 128], "what there was memory for stays");
    let reason = reasons(&report)[0].clone().expect("a reason").to_string();
    assert!(reason.contains("not admitted") && reason.contains("130 MiB"), "{reason}");
}

#[test]
fn a_driver_that_does_not_park_is_found_out() {
    let world = World::new();
    world.partitions[0].private.store(false, Ordering::SeqCst);
    world.begin();
    let report = world.with_driver(at_once(), || world.preparer.wait(PATIENCE).unwrap());
    assert_eq!((prepared(&report), reasons(&report)), (vec![0, 256], vec![Some(NotPrepared::Stock), None]));
    assert_eq!(world.partitions[0].memory.report().plugged, ByteSize::bytes(0));
}

#[test]
fn who_gives_up_says_why() {
    let world = World::new();
    world.preparer.give_up(&NotPrepared::BaseMemory(ByteSize::mib(1)));
    world.begin();
    let report = world.preparer.wait(Duration::ZERO).unwrap();
    assert_eq!(report.to_string(), "0 bytes of 256 MiB of partition 1, 0 bytes of 256 MiB of partition 2");
    let json = serde_json::to_value(&report).unwrap();
    let text = "base memory leaves 1 MiB for instances: expected at least 4 MiB";
    assert_eq!(json["partitions"][1]["reason"], text);
}
