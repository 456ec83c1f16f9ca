//! Errors of calls for disks, images, partitions and instances.

// Longer than 500 lines: all of them, each with its kind.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use bellows_block::ScratchError;
use bellows_devices::pci::PciAddress;
use bellows_devices::virtio::blk::ReplaceError;
use bellows_devices::virtio::{PlugError, UnplugError};
use bellows_disk::DiskError;
use bellows_memory::MapError;
use bellows_memory::admission::AdmissionError;
use bellows_memory::device_area::NoRoom;
use bellows_memory::partition::{StillInUse, TargetError, WaitError};
use bellows_memory::slots::SlotError;
use bellows_memory::{ByteSize, PartitionId};
use bellows_protocol::stream::StreamName;
use bellows_protocol::values::{ImageId, InstanceId, MAX_LAYERS, MIN_BASE_LIMIT, ProcessId, ValueError};

use crate::config::ConfigError;
use crate::descriptors::TooFewDescriptors;
use crate::guest::agent::AgentError;
use crate::guest::error::NotRunning;
use crate::kind::ErrorKind;
use crate::model::PreparationReport;
use crate::virtio_bus::DeviceError;

/// First kernel that finds the layers of a flat image on its one disk.
pub(super) const FLAT_KERNEL: (u32, u32) = (6, 4);

/// Why a disk was not attached or detached.
#[derive(Debug, thiserror::Error)]
pub enum HotplugError {
    /// The file cannot be a disk.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// The guest could not distinguish it from another.
    #[error(transparent)]
    Duplicate(#[from] DuplicateDisk),
    /// The process may not open enough files for it.
    #[error(transparent)]
    Descriptors(#[from] TooFewDescriptors),
    /// It could not be put on the bus.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// It could not be put into the guest's memory.
    #[error(transparent)]
    Pmem(#[from] PmemError),
    /// The agent cannot be called.
    #[error(transparent)]
    NotRunning(#[from] NotRunning),
    /// No disk has that serial number.
    #[error("no disk of the VM has the serial number `{0}`")]
    NoDisk(String),
    /// The disk cannot change: it is of an image, or an instance's scratch disk.
    #[error("the disk with the serial number `{0}` is of an image or an instance: expected a drive")]
    NotDrive(String),
    /// The file cannot take the place of a drive's.
    #[error(transparent)]
    Replace(#[from] ReplaceError),
    /// The system has no descriptor for what changes a drive.
    #[error("cannot make the event of the drive `{path}`")]
    Control {
        /// Its file.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// A driver of the guest did not bind. The disks stay on the bus as
    /// [`DiskState::Unbound`](crate::DiskState::Unbound).
    #[error("no driver of the guest has bound the disk {serial} at {address}{}", or_others(*others))]
    NotBound {
        /// The first disk.
        serial: String,
        /// Its address on the bus.
        address: PciAddress,
        /// The number of disks attached with it.
        others: usize,
        /// The agent's error.
        #[source]
        source: AgentError,
    },
    /// The guest did not let go of it. The disk stays as it was.
    #[error("the guest has not let go of the disk {serial} at {address}")]
    NotReleased {
        /// The disk.
        serial: String,
        /// Where it is.
        address: PciAddress,
        /// The agent's error.
        #[source]
        source: AgentError,
    },
}

impl HotplugError {
    /// The kind of this error.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Disk(error) => of_disk(error),
            Self::Duplicate(error) => error.kind(),
            Self::Descriptors(error) => error.kind(),
            Self::Device(error) => error.kind(),
            Self::Pmem(error) => error.kind(),
            Self::NotRunning(error) => error.kind(),
            Self::NoDisk(_) => ErrorKind::NotFound,
            Self::NotDrive(_) | Self::Replace(_) => ErrorKind::Invalid,
            Self::Control { .. } => ErrorKind::Host,
            Self::NotBound { source, .. } | Self::NotReleased { source, .. } => source.kind(),
        }
    }
}

/// Two disks with one serial number.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("the disk `{path}` has the serial number {serial} of `{other}`")]
pub struct DuplicateDisk {
    /// File of the disk that was to be added.
    pub path: PathBuf,
    /// File of the disk that is there.
    pub other: PathBuf,
    /// Their common serial number.
    pub serial: String,
}

impl DuplicateDisk {
    /// The kind of this error.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        ErrorKind::Conflict
    }
}

/// Why the guest cannot have files as memory.
#[derive(Debug, thiserror::Error)]
pub enum PmemError {
    /// Its address space is full.
    #[error(transparent)]
    NoRoom(#[from] NoRoom),
    /// KVM refused.
    #[error(transparent)]
    Slot(#[from] SlotError),
}

impl PmemError {
    /// The kind of this error.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::NoRoom(_) => ErrorKind::Conflict,
            Self::Slot(_) => ErrorKind::Host,
        }
    }
}

/// Why a call for an image failed.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// Its configuration is invalid.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The VM does not have the image.
    #[error("the VM has no image `{0}`")]
    Unknown(ImageId),
    /// The VM has an image of that name already.
    #[error("the VM has an image `{0}` already")]
    Exists(ImageId),
    /// The guest's kernel cannot mount it in the configured shape.
    #[error(
        "image {image} cannot be flat: expected Linux {}.{} or later in the guest, found {kernel:?}{}",
        FLAT_KERNEL.0,
        FLAT_KERNEL.1,
        if *layers > MAX_LAYERS { format!(", and {layers} layers are too many for another shape") } else { String::new() }
    )]
    Flat {
        /// The image.
        image: ImageId,
        /// Release of the guest's kernel.
        kernel: String,
        /// The number of layers of the image.
        layers: usize,
    },
    /// Reads are not recorded.
    #[error("reads of image {0} are not recorded: `record_reads` is off in the VM's configuration")]
    NotRecorded(ImageId),
    /// The record of reads could not be read back.
    #[error("cannot read the record of image {image}'s reads")]
    Touched {
        /// The image.
        image: ImageId,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// The agent cannot be asked.
    #[error(transparent)]
    NotRunning(#[from] NotRunning),
    /// Its disks could not be attached or detached.
    #[error(transparent)]
    Disks(#[from] HotplugError),
    /// The agent failed.
    #[error("cannot {action} image {image}")]
    Agent {
        /// The action.
        action: &'static str,
        /// The image.
        image: ImageId,
        /// The agent's error.
        #[source]
        source: AgentError,
    },
}

impl ImageError {
    /// The kind of this error.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Config(error) => error.kind(),
            Self::Unknown(_) => ErrorKind::NotFound,
            Self::Exists(_) | Self::NotRecorded(_) => ErrorKind::Conflict,
            Self::Flat { .. } => ErrorKind::Invalid,
            Self::Touched { .. } => ErrorKind::Host,
            Self::NotRunning(error) => error.kind(),
            Self::Disks(error) => error.kind(),
            Self::Agent { source, .. } => source.kind(),
        }
    }
}

/// Why a call for a partition failed.
#[derive(Debug, thiserror::Error)]
pub enum PartitionError {
    /// The VM does not have the partition.
    #[error("the VM has no partition {id}: it has {count}, numbered from 1")]
    NoPartition {
        /// The number.
        id: PartitionId,
        /// The number of partitions.
        count: usize,
    },
    /// Its device was removed.
    #[error("partition {0} has no device: it was removed")]
    NoDevice(PartitionId),
    /// It has a device already.
    #[error("partition {0} has a device already")]
    HasDevice(PartitionId),
    /// The agent cannot be asked.
    #[error(transparent)]
    NotRunning(#[from] NotRunning),
    /// Memory was not plugged.
    #[error("cannot plug partition {id} with {size}")]
    Plug {
        /// The partition.
        id: PartitionId,
        /// The target.
        size: ByteSize,
        /// The cause.
        #[source]
        source: PlugError,
    },
    /// The memory is in the wrong node or zone of the guest, or not online. The guest was asked to give it back.
    #[error("the guest cannot use {size} in partition {id}")]
    NotUsable {
        /// The partition.
        id: PartitionId,
        /// Its size.
        size: ByteSize,
        /// The agent's error.
        #[source]
        source: AgentError,
    },
    /// Memory was not unplugged.
    #[error("cannot unplug partition {id}")]
    Unplug {
        /// The partition.
        id: PartitionId,
        /// The cause.
        #[source]
        source: UnplugError,
    },
    /// Partitions are still being prepared.
    #[error("partitions are still being prepared after {limit:?}: {report}")]
    NotPrepared {
        /// The time limit.
        limit: Duration,
        /// How far it is.
        report: Box<PreparationReport>,
    },
    /// Memory has not gone back to the host.
    #[error("partition {id} was not discarded")]
    Discard {
        /// The partition.
        id: PartitionId,
        /// The cause.
        #[source]
        source: WaitError,
    },
    /// The agent failed.
    #[error("cannot look into partition {id}")]
    Inspect {
        /// The partition.
        id: PartitionId,
        /// The agent's error.
        #[source]
        source: AgentError,
    },
    /// The partition holds memory, so its device stays.
    #[error(transparent)]
    StillInUse(#[from] StillInUse),
    /// The guest's driver did not bind. The device stays on the bus.
    #[error("the guest has not bound the device of partition {id} at {address}")]
    NotBound {
        /// The partition.
        id: PartitionId,
        /// The address of its device.
        address: PciAddress,
        /// The agent's error.
        #[source]
        source: AgentError,
    },
    /// The guest did not let go of its device, which stays on the bus.
    #[error("the guest has not released the device of partition {id} at {address}")]
    NotReleased {
        /// The partition.
        id: PartitionId,
        /// Where its device is.
        address: PciAddress,
        /// The agent's error.
        #[source]
        source: AgentError,
    },
    /// The process may not open enough files for its device.
    #[error(transparent)]
    Descriptors(#[from] TooFewDescriptors),
    /// The device could not be put on the bus or taken off.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// The host has no room for the window.
    #[error(transparent)]
    Map(#[from] MapError),
}

impl PartitionError {
    /// The kind of this error.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::NoPartition { .. } => ErrorKind::NotFound,
            Self::NoDevice(_) | Self::HasDevice(_) | Self::StillInUse(_) => ErrorKind::Conflict,
            Self::NotRunning(error) => error.kind(),
            Self::Plug { source: PlugError::Refused(error), .. }
            | Self::Unplug { source: UnplugError::Refused(error), .. } => of_target(error),
            Self::Plug { source: PlugError::Incomplete(error), .. }
            | Self::Unplug { source: UnplugError::Incomplete(error), .. } => of_wait(error),
            Self::Unplug { source: UnplugError::Slots(_), .. }
            | Self::Map(_)
            | Self::Discard { source: WaitError::Timeout { .. }, .. } => ErrorKind::Host,
            Self::Discard { source, .. } => of_wait(source),
            Self::NotUsable { source, .. }
            | Self::Inspect { source, .. }
            | Self::NotBound { source, .. }
            | Self::NotReleased { source, .. } => source.kind(),
            Self::NotPrepared { .. } => ErrorKind::Guest,
            Self::Descriptors(error) => error.kind(),
            Self::Device(error) => error.kind(),
        }
    }
}

/// Why a call for an instance failed.
#[derive(Debug, thiserror::Error)]
pub enum InstanceError {
    /// Its specification is invalid.
    #[error("instance {id} cannot run")]
    Spec {
        /// The instance.
        id: InstanceId,
        /// The cause.
        #[source]
        source: ValueError,
    },
    /// The VM does not have its partition.
    #[error(transparent)]
    Partition(#[from] PartitionError),
    /// Its partition is not plugged.
    #[error("instance {id} cannot run in partition {partition}: nothing is plugged there")]
    NotPlugged {
        /// The instance.
        id: InstanceId,
        /// The partition.
        partition: PartitionId,
    },
    /// A partition is to be plugged for it, and it names none.
    #[error("instance {0} names no partition that could be plugged for it")]
    NoPartition(InstanceId),
    /// Its limit on base memory is invalid.
    #[error(
        "instance {id} cannot have {limit} of base memory: expected {} to {memory}",
        ByteSize::bytes(MIN_BASE_LIMIT)
    )]
    BaseLimit {
        /// The instance.
        id: InstanceId,
        /// The limit.
        limit: ByteSize,
        /// All base memory.
        memory: ByteSize,
    },
    /// The agent cannot be asked.
    #[error(transparent)]
    NotRunning(#[from] NotRunning),
    /// The agent failed.
    #[error("cannot {action} instance {id}")]
    Agent {
        /// The action.
        action: &'static str,
        /// The instance.
        id: InstanceId,
        /// The agent's error.
        #[source]
        source: AgentError,
    },
    /// Its scratch disk could not be made.
    #[error("instance {id} cannot have its scratch disk")]
    Scratch {
        /// The instance.
        id: InstanceId,
        /// The cause.
        #[source]
        source: ScratchError,
    },
    /// Its scratch disk did not reach the guest, or the guest did not let go of it.
    #[error("cannot {action} the scratch disk of instance {id}")]
    ScratchDisk {
        /// The action.
        action: &'static str,
        /// The instance.
        id: InstanceId,
        /// The cause.
        #[source]
        source: Box<HotplugError>,
    },
    /// The VM still has a scratch disk for an instance of that name.
    #[error(
        "instance {0} has a scratch disk already: expected that it is removed before another one of its name begins"
    )]
    ScratchLeft(InstanceId),
    /// A stream could not be connected.
    #[error("cannot connect to {stream} of process {process} of instance {id}")]
    Connect {
        /// The instance.
        id: InstanceId,
        /// The process.
        process: ProcessId,
        /// The stream.
        stream: StreamName,
        /// The agent's error.
        #[source]
        source: Box<AgentError>,
    },
    /// A stream broke off.
    #[error("cannot continue {stream} of process {process} of instance {id}")]
    Stream {
        /// The instance.
        id: InstanceId,
        /// The process.
        process: ProcessId,
        /// The stream.
        stream: StreamName,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// The sink or the source of a stream failed.
    #[error("cannot pass on {stream} of process {process} of instance {id}")]
    PassOn {
        /// The instance.
        id: InstanceId,
        /// The process.
        process: ProcessId,
        /// The stream.
        stream: StreamName,
        /// The system's error.
        #[source]
        source: io::Error,
    },
}

impl InstanceError {
    /// The kind of this error.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Spec { .. } | Self::BaseLimit { .. } | Self::NoPartition(_) => ErrorKind::Invalid,
            Self::NotPlugged { .. } | Self::ScratchLeft(_) => ErrorKind::Conflict,
            Self::Scratch { source: ScratchError::Size(_), .. } => ErrorKind::Invalid,
            Self::Scratch { source: ScratchError::Create { source, .. }, .. } => ErrorKind::of_file(source),
            Self::ScratchDisk { source, .. } => source.kind(),
            Self::Partition(error) => error.kind(),
            Self::NotRunning(error) => error.kind(),
            Self::Agent { source, .. } => source.kind(),
            Self::Connect { source, .. } => source.kind(),
            Self::Stream { .. } => ErrorKind::Guest,
            Self::PassOn { .. } => ErrorKind::Host,
        }
    }
}

fn or_others(others: usize) -> String {
    if others == 0 { String::new() } else { format!(", or one of {others} others") }
}

fn of_disk(error: &DiskError) -> ErrorKind {
    match error {
        DiskError::Open { source, .. } => ErrorKind::of_file(source),
        _ => ErrorKind::Invalid,
    }
}

pub(super) fn of_target(error: &TargetError) -> ErrorKind {
    match error {
        TargetError::Size(..) => ErrorKind::Invalid,
        TargetError::Admission(AdmissionError::Limit { .. })
        | TargetError::Retired(_)
        | TargetError::Superseded(_)
        | TargetError::NoGrowth { .. }
        | TargetError::NoShrinking { .. } => ErrorKind::Conflict,
        TargetError::Admission(_) | TargetError::Broken(_) => ErrorKind::Host,
    }
}

fn of_wait(error: &WaitError) -> ErrorKind {
    match error {
        WaitError::Timeout { .. } => ErrorKind::Guest,
        WaitError::Superseded(_) | WaitError::Ended(_) => ErrorKind::Conflict,
        WaitError::Failed(..) | WaitError::NotDiscarded(..) => ErrorKind::Host,
    }
}

#[cfg(test)]
#[path = "error_test.rs"]
mod tests;
