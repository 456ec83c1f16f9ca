//! File descriptors of a VM, counted before the first is opened: a VM that runs out of them halfway is useless.

use std::{fs, io};

use nix::sys::resource::{Resource, getrlimit};

use crate::config::{BalloonConfig, ImageConfig, NetConfig, Shape, Transport, VmConfig};
use crate::kind::ErrorKind;

/// For every VM: KVM's, the device loop, entropy and vsock, the agent's connection, the console, and some for vsock clients
/// and for files that are read at boot.
const FIXED: usize = 64;
/// For every vCPU.
const PER_VCPU: usize = 1;
/// For every PCI function: two interrupt vectors and a queue.
const PER_FUNCTION: usize = 3;
/// For a function with a thread of its own.
const PER_LOOP: usize = 2;
/// For a balloon, beside those of its queues and its thread: the interrupt vector of its configuration and its timer.
const PER_BALLOON: usize = 2;
/// For a network interface: the interrupt vector of its configuration, its timer and the event of changed limits;
const PER_NETWORK: usize = 3;
/// for each of its queues: an interrupt vector and an event;
const PER_NETWORK_QUEUE: usize = 2;
/// for each pair of queues: a queue of its TAP, or its socket.
const PER_QUEUE_PAIR: usize = 1;
/// and for each that the host's kernel serves: `/dev/vhost-net`, and an event for each queue. Its event of errors takes the timer's place.
const PER_VHOST_PAIR: usize = 3;
/// For a drive, beside those of a disk: its file, its timer and the event of changes.
const PER_DRIVE: usize = 3;
/// For a partition, beside its function's: the event that resumes it.
const PER_PARTITION: usize = 1;
/// Descriptors to keep free when a disk, network interface or partition is attached to a running VM.
const SPARE: usize = 16;

/// The process may not open as many files as needed.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error(
    "{needed} more file descriptors are needed: {open} of the {limit} that the process may have are open (RLIMIT_NOFILE)"
)]
pub struct TooFewDescriptors {
    /// Descriptors to open.
    pub needed: usize,
    /// Descriptors that are open.
    pub open: usize,
    /// Descriptors that the process may have.
    pub limit: usize,
}

impl TooFewDescriptors {
    /// The kind of this error.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        ErrorKind::Host
    }
}

/// Descriptors of a VM when it boots.
pub(crate) fn of_vm(config: &VmConfig) -> usize {
    let images: usize = config.images.iter().map(|image| of_image(image, image.first_shape())).sum();
    FIXED
        + PER_VCPU * usize::from(config.vcpus)
        + images
        + config.balloon.as_ref().map_or(0, of_balloon)
        + of_drive() * config.drives.len()
        + config.network_interfaces.iter().map(of_network).sum::<usize>()
        + of_partition() * config.memory_devices()
}

/// Descriptors of an image in `shape`.
pub(crate) fn of_image(image: &ImageConfig, shape: Shape) -> usize {
    let layers = image.layers.len();
    let (disks, files) = match shape {
        Shape::Flat => (1, layers + 1),
        Shape::Layers => (layers, layers),
    };
    files + disks * of_disk(image.transport)
}

/// Descriptors of a drive.
pub(crate) fn of_drive() -> usize {
    PER_DRIVE + of_disk(Transport::Blk)
}

/// Descriptors of a scratch disk: its file, and those of a disk.
pub(crate) fn of_scratch_disk() -> usize {
    1 + of_disk(Transport::Blk)
}

/// Descriptors of a network interface.
pub(crate) fn of_network(config: &NetConfig) -> usize {
    let per_pair = PER_QUEUE_PAIR + if config.vhost { PER_VHOST_PAIR } else { 0 };
    PER_NETWORK + PER_NETWORK_QUEUE * config.queues() + per_pair * config.queue_pairs() + PER_LOOP
}

/// Descriptors of a balloon: two for each queue.
fn of_balloon(config: &BalloonConfig) -> usize {
    2 * config.settings().queues() + PER_BALLOON + PER_LOOP
}

/// Descriptors of a partition.
pub(crate) fn of_partition() -> usize {
    PER_FUNCTION + PER_PARTITION
}

/// Descriptors of a disk without its files.
fn of_disk(transport: Transport) -> usize {
    match transport {
        Transport::Blk => PER_FUNCTION + PER_LOOP,
        Transport::Pmem => PER_FUNCTION,
    }
}

/// Makes sure that the process can have `needed` more descriptors.
pub(crate) fn check(needed: usize) -> Result<(), TooFewDescriptors> {
    match usage() {
        Ok((open, limit)) => room(needed, open, limit),
        // If the system does not tell, the call that needs one too many fails.
        Err(error) => {
            tracing::debug!(%error, "cannot count the descriptors of the process");
            Ok(())
        }
    }
}

/// [`check`] for an attachment to a running VM.
pub(crate) fn check_attach(needed: usize) -> Result<(), TooFewDescriptors> {
    check(needed + SPARE)
}

fn room(needed: usize, open: usize, limit: usize) -> Result<(), TooFewDescriptors> {
    if needed <= limit.saturating_sub(open) { Ok(()) } else { Err(TooFewDescriptors { needed, open, limit }) }
}

/// The number of descriptors that the process has open, and the most it may have.
fn usage() -> io::Result<(usize, usize)> {
    let (limit, _) = getrlimit(Resource::RLIMIT_NOFILE)?;
    // One of them is what reads the directory.
    let open = fs::read_dir("/proc/self/fd")?.count().saturating_sub(1);
    Ok((open, usize::try_from(limit).unwrap_or(usize::MAX)))
}

#[cfg(test)]
mod tests {
    use bellows_memory::ByteSize;

    use super::*;
    use crate::config::{DriveConfig, Tap};

    #[test]
    fn a_refusal_gives_all_figures() {
        assert_eq!(room(10, 90, 100), Ok(()));
        let error = room(11, 90, 100).unwrap_err();
        assert_eq!(error, TooFewDescriptors { needed: 11, open: 90, limit: 100 });
        let text = error.to_string();
        assert!(["11 more", "90 of the 100", "RLIMIT_NOFILE"].iter().all(|part| text.contains(part)), "{text}");
        assert!(room(1, 101, 100).is_err(), "the limit was lowered");
        assert!(room(usize::MAX, 3, usize::MAX).is_err());
    }

    #[test]
    fn the_descriptors_of_this_process_are_counted() {
        let (before, limit) = usage().unwrap();
        assert!(before >= 3 && before < limit, "{before} of {limit}");
        assert!(check(0).is_ok());
        assert!(check(limit + 1).is_err());
    }

    #[test]
    fn every_part_of_a_vm_counts() {
        let mut config = VmConfig::new("vmlinux", ByteSize::mib(512));
        let mut last = of_vm(&config);
        assert_eq!(last, FIXED + PER_VCPU);
        let mut grows = |config: &VmConfig, by: usize| {
            assert_eq!(of_vm(config), last + by);
            last += by;
        };
        config.drives.push(DriveConfig::new("disk", true));
        grows(&config, 8);
        config.partitions.push(ByteSize::gib(1));
        grows(&config, 4);
        config.network_interfaces.push(NetConfig::new("eth0", Tap::Fd(7)));
        grows(&config, 10);
        config.network_interfaces.push(NetConfig::new("eth1", Tap::Fds(vec![8, 9])));
        grows(&config, 17);
        config.network_interfaces.push(NetConfig { vhost: true, ..NetConfig::new("eth2", Tap::Fd(10)) });
        grows(&config, 13);
        config.vcpus += 2;
        grows(&config, 2);
        config.balloon = Some(BalloonConfig { stats_polling_interval_s: 1, ..BalloonConfig::default() });
        grows(&config, 10);
    }
}
