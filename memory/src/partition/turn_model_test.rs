//! Schedules of a guest's driver, the host's calls and the discard thread at one partition, by `sync::model`.
//!
//! The threads are the model's, the partition is the real one. A lost wake-up leaves a thread waiting for ever, which the
//! model reports with the schedule that led there.

use std::sync::mpsc::{Receiver, TryRecvError};

use shuttle::thread;

use super::*;
use crate::discard::{self, Task};
use crate::layout::{Layout, LayoutSpec};
use crate::sync::{Condvar, model};
use crate::testing::{FakeHost, RecordedSlots};
use crate::{GuestAddress, GuestMemory};

/// Blocks of a granule.
const GRANULE: u32 = 64;
/// No wait times out in a model.
const FOREVER: Duration = Duration::from_secs(3600);

/// A partition of two granules, and what goes on around it.
#[derive(Clone)]
struct World {
    partition: Arc<PartitionMemory>,
    slots: Arc<RecordedSlots>,
    admission: Arc<Admission>,
    /// For the driver: the configuration has changed, or a request that was put off may be brought again.
    news: Arc<Event>,
}

/// Something that happened, until a thread has seen it.
#[derive(Default)]
struct Event {
    happened: Mutex<bool>,
    changed: Condvar,
}

impl Event {
    fn signal(&self) {
        *self.happened.lock() = true;
        self.changed.notify_all();
    }

    fn wait(&self) {
        let mut happened = self.happened.lock();
        while !std::mem::take(&mut *happened) {
            happened = self.changed.wait(happened);
        }
    }
}

/// Runs `host` beside a driver and the discard thread, then asks for everything back and checks that it went.
fn with_guest(host: fn(&World)) {
    let (world, tasks) = world();
    let discards = thread::spawn(move || run_discards(&tasks));
    let driver = {
        let world = world.clone();
        thread::spawn(move || drive(&world))
    };
    host(&world);
    let partition = &world.partition;
    let target = world.tell(partition.set_target(ByteSize::bytes(0))).unwrap();
    partition.wait_unplugged(target, FOREVER).unwrap();
    partition.wait_discarded(FOREVER).unwrap();
    partition.retire().unwrap();
    world.news.signal();
    driver.join().unwrap();
    assert_eq!((world.slots.slots(), world.slots.lost_memory()), (vec![], None));
    assert_eq!(world.admission.admitted(), ByteSize::bytes(0));
    drop(world);
    discards.join().unwrap();
}

#[test]
fn what_is_plugged_goes_back_whatever_happens_beside_it() {
    model::explore(|| {
        with_guest(|world| {
            let beside = world.clone().start(|world| {
                let _ = world.partition.report();
                world.partition.trim_slots().unwrap();
                let _ = world.partition.save().unwrap();
            });
            let target = world.tell(world.partition.raise_target(size(2 * GRANULE))).unwrap();
            world.partition.wait_plugged(target, FOREVER).unwrap();
            // The guest keeps a part: slots are trimmed on the discard thread.
            let target = world.tell(world.partition.lower_target(size(GRANULE))).unwrap();
            world.partition.wait_unplugged(target, FOREVER).unwrap();
            beside.join().unwrap();
        });
    });
}

#[test]
fn of_two_that_set_targets_each_hears_how_it_ended() {
    model::explore(|| {
        with_guest(|world| {
            let other = world.clone().start(|world| {
                let target = world.tell(world.partition.set_target(size(GRANULE))).unwrap();
                check_end(world.partition.wait_unplugged(target, FOREVER));
            });
            let target = world.tell(world.partition.set_target(size(2 * GRANULE))).unwrap();
            check_end(world.partition.wait_plugged(target, FOREVER));
            other.join().unwrap();
        });
    });
}

#[test]
fn a_wait_ends_with_the_guest() {
    model::explore(|| {
        let (world, _tasks) = world();
        let waiting = world.clone().start(|world| {
            let target = world.partition.set_target(size(GRANULE)).unwrap();
            let error = world.partition.wait_plugged(target, FOREVER).unwrap_err();
            assert!(matches!(error, WaitError::Ended(_)), "{error}");
        });
        world.partition.end();
        waiting.join().unwrap();
    });
}

fn check_end(result: Result<Report, WaitError>) {
    assert!(matches!(result, Ok(_) | Err(WaitError::Superseded(_))), "{result:?}");
}

fn size(blocks: u32) -> ByteSize {
    ByteSize::mib(2 * u64::from(blocks))
}

fn world() -> (World, Receiver<Task>) {
    let window = ByteSize::mib(256);
    let layout = Layout::new(&LayoutSpec::x86_64(ByteSize::gib(1), vec![window], 40)).unwrap();
    let slots = Arc::new(RecordedSlots::default());
    let admission = Admission::new(Some(window), FakeHost::default());
    let (discards, tasks) = discard::channel();
    let setup = PartitionSetup {
        backing: Backing::None,
        view: GuestView::new(GuestMemory::from_ranges(&[(GuestAddress(0), 4096)]).unwrap()),
        slots: slots.clone(),
        admission: admission.clone(),
        discards,
    };
    let window = layout.windows()[0];
    let world =
        World { partition: PartitionMemory::new(window, setup).unwrap(), slots, admission, news: Arc::default() };
    let news = world.news.clone();
    world.partition.turns.set_waker(Some(Arc::new(move || news.signal())));
    (world, tasks)
}

impl World {
    fn start(self, run: fn(&Self)) -> thread::JoinHandle<()> {
        thread::spawn(move || run(&self))
    }

    /// As the device does: the driver hears of a target that was set.
    fn tell<E>(&self, target: Result<Target, E>) -> Result<Target, E> {
        target.inspect(|_| self.news.signal())
    }
}

/// The guest's driver: asks for what the configuration says, a granule at a time, until the partition is given up.
fn drive(world: &World) {
    let partition = &world.partition;
    loop {
        world.news.wait();
        while let Some(request) = wanted(&partition.report()) {
            match partition.handle(request) {
                Handled::Answer(Answer::Error) => panic!("{request:?} is an error"),
                Handled::Answer(Answer::Busy) => thread::yield_now(),
                Handled::Answer(_) => {}
                // The device waits for its waker, and the driver for the device.
                Handled::Later => world.news.wait(),
            }
        }
        if partition.turns.look(|inner| matches!(inner.service, Service::Retired)) {
            return;
        }
    }
}

fn wanted(report: &Report) -> Option<Request> {
    let granules = |size: ByteSize| u32::try_from(size.get() / self::size(GRANULE).get()).unwrap();
    let (plugged, target) = (granules(report.plugged), granules(report.target));
    if plugged < target {
        BlockRange::new(plugged * GRANULE, GRANULE).map(Request::Plug)
    } else if target == 0 && plugged > 0 {
        Some(Request::UnplugAll)
    } else if plugged > target {
        BlockRange::new((plugged - 1) * GRANULE, GRANULE).map(Request::Unplug)
    } else {
        None
    }
}

/// Runs what is queued until nothing can be queued any more.
fn run_discards(tasks: &Receiver<Task>) {
    loop {
        match tasks.try_recv() {
            Ok(Task::Discard(task) | Task::Urgent(task)) => task(),
            Ok(Task::Stop) => return,
            Err(TryRecvError::Empty) => thread::yield_now(),
            Err(TryRecvError::Disconnected) => return,
        }
    }
}
