//! One sample: plug, two instances side by side, the end of one of them, unplug.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use bellows_bench::cost::Meter;
use bellows_bench::reclaim::{Group, Load, Mode, Neighbour, Sample};
use bellows_vmm::{ByteSize, GuestState, Instance, PartitionId, StreamName};

use crate::common::{PATIENCE, Result};
use crate::guest::{Guest, NEIGHBOUR_MIB};
use crate::neighbour::Progress;

/// Share of its memory that an instance fills.
const FILLED: (u64, u64) = (3, 4);

/// How long the neighbour is watched at a time.
const WATCHED: Duration = Duration::from_secs(4);

const SIGKILL: u32 = 9;
const SIGUSR1: u32 = 10;

pub fn run(guest: &mut Guest, group: Group, watch: bool) -> Result<Sample> {
    let Group { size_mib, load, .. } = group;
    let (partition, kept) = (guest.partition()?, guest.kept());
    let size = ByteSize::mib(size_mib);
    let meter = Meter::start_if_counted()?;
    let plug = guest.vm.plug(partition, ByteSize::bytes(kept.get() + size.get()), PATIENCE)?;
    let plug_cost = meter.map(Meter::stop).transpose()?;
    let parked = guest.was_parked(&plug);

    let (instance, printed) = start(guest, &fill(size_mib, ""), partition)?;
    let churn = if load == Load::Busy { CHURN } else { "" };
    let neighbours_partition = guest.neighbours_partition()?;
    let (neighbour, progress) = start(guest, &fill(NEIGHBOUR_MIB, churn), neighbours_partition)?;
    // Both fill their memory at the same time: memory that is not kept apart gets mixed.
    printed.wait_for("ready")?;
    progress.wait_for("ready")?;
    instance.signal(SIGUSR1)?;
    neighbour.signal(SIGUSR1)?;
    printed.wait_for("full")?;
    progress.wait_for("full")?;

    let watch = watch && load == Load::Busy;
    let watched = || progress.between(Instant::now(), WATCHED);
    let before = watch.then(|| [watched(), watched()]);

    instance.signal(SIGKILL)?;
    instance.wait()?;
    let removing = Instant::now();
    instance.remove(PATIENCE)?;
    let remove = removing.elapsed();

    let statistics = guest.vm.statistics()?;
    let vcpus = guest.vcpu_time()?;
    let meter = Meter::start_if_counted()?;
    let start = Instant::now();
    let unplug = guest.vm.shrink(partition, kept, PATIENCE)?;
    let unplug_cost = meter.map(Meter::stop).transpose()?;
    let vcpus = guest.vcpu_time()? - vcpus;
    let after = guest.vm.statistics()?;
    let neighbour_speed = before.map(|before| Neighbour { before, reclaim: progress.between(start, WATCHED) });
    let discard = guest.vm.await_discard(partition, PATIENCE)?;
    neighbour.signal(SIGKILL)?;
    neighbour.wait()?;
    neighbour.remove(PATIENCE)?;

    let driver =
        guest.vm.inspect(partition)?.driver.ok_or("the guest's kernel is not ours: its driver has no report")?;
    if guest.mode == Mode::Extension && driver.state != GuestState::Parked {
        return Err(format!("the partition is not parked but {:?}", driver.state).into());
    }
    let earlier: BTreeMap<_, _> = statistics.migrated_by_reason.into_iter().collect();
    let migrated = after.migrated_by_reason.into_iter().map(|(reason, pages)| {
        let pages = pages - earlier.get(&reason).copied().unwrap_or(0);
        (reason, pages)
    });
    Ok(Sample {
        group,
        mode: guest.mode,
        parked,
        plug: plug.accepted,
        plug_cost,
        usable: plug.usable,
        remove,
        unplug: unplug.unplug,
        unplug_cost,
        guest: driver.last_unplug.guest(),
        slots: unplug.slots,
        discard: discard.discard,
        vcpus,
        migrated: migrated.filter(|(_, pages)| *pages > 0).collect(),
        zeroed: after.zeroed_pages.unwrap_or(0) - statistics.zeroed_pages.unwrap_or(0),
        discarded: discard.discarded.get(),
        left: unplug.left.get().saturating_sub(kept.get()),
        neighbour: neighbour_speed,
    })
}

fn start(guest: &mut Guest, program: &str, partition: PartitionId) -> Result<(Instance, Progress)> {
    let instance = guest.start(program, partition)?;
    let progress = Progress::default();
    // The threads end with the instance's output.
    instance.forward(StreamName::Stdout, progress.clone())?;
    instance.forward(StreamName::Stderr, progress.clone())?;
    Ok((instance, progress))
}

/// Bytes that an instance fills of `mib` MiB.
pub fn filled(mib: u64) -> u64 {
    (mib << 20) / FILLED.1 * FILLED.0
}

/// A program that fills its part of so much memory when it gets a signal, and then does `more`.
fn fill(mib: u64, more: &str) -> String {
    let bytes = filled(mib);
    format!(
        "import os, signal, sys\n\
         signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])\n\
         print('ready', flush=True)\n\
         signal.sigwait([signal.SIGUSR1])\n\
         def fill(count):\n\
         \x20   memory = bytearray(count)\n\
         \x20   memory[::4096] = b'x' * len(range(0, count, 4096))\n\
         \x20   return memory\n\
         held = fill({bytes})\n\
         print('full', flush=True)\n\
         {more}\
         signal.pause()\n"
    )
}

/// Allocates, reads a file and forks all the time; a dot is one round.
const CHURN: &str = "\
while True:
    fill(1 << 20)
    with open(sys.executable, 'rb') as file: file.read(1 << 18)
    child = os.fork()
    if child == 0: os._exit(0)
    os.waitpid(child, 0)
    os.write(1, b'.')
";
