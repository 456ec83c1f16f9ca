//! The embeddable Bellows microVM monitor.
//!
//! What happens between "run this image" and "memory is back": a [`VmBuilder`] makes and starts a [`Vm`];
//! [`Vm::wait_ready`] waits for the guest's agent; [`Vm::mount_image`] mounts layers; [`Vm::plug`] gives a partition
//! memory; [`Vm::start_instance`] runs a function in it; [`Instance::remove`] takes it apart; [`Vm::unplug`] and
//! [`Vm::await_discard`] give the memory back to the host. There is no global state: any number of VMs may run in a process.

mod agent;
mod builder;
mod command_line;
pub mod config;
mod console;
mod deadline;
mod descriptors;
mod end;
mod error;
mod hotplug;
mod images;
mod instances;
#[cfg(target_arch = "x86_64")]
pub mod machine;
mod partitions;
mod pmem;
mod processes;
mod ready;
mod rendezvous;
mod resident;
mod virtio_bus;
mod vm;

#[cfg(feature = "testing")]
pub use agent::exercise::exercise as exercise_agent_client;
pub use agent::{
    AgentError, ExitStatus, GuestDriver, GuestInfo, GuestState, GuestStatistics, GuestTimes, Holder, OomLimit,
    PartitionUse, StartFailure, Stream,
};
pub use builder::VmBuilder;
pub use config::{
    Backing, ConfigError, DriveConfig, FlatConfig, ImageConfig, LayerConfig, ParsePartitionModeError, ParseShapeError,
    ParseTransportError, PartitionMode, SerialOutput, Shape, Transport, VmConfig, VsockConfig,
};
pub use descriptors::TooFewDescriptors;
pub use end::{TripleFault, VmEnd};
pub use error::BuildError;
pub use hotplug::{DiskInfo, DiskState, DuplicateDisk, HotplugError, serial_of};
pub use images::{ImageError, ImageInfo};
pub use instances::{Account, DEFAULT_PIDS_MAX, Instance, InstanceError, InstanceSpec, User};
pub use partitions::{DiscardReport, PartitionError, PartitionInfo, PlugReport, UnplugReport};
pub use pmem::{LostLayer, PmemError};
pub use processes::{Forwarding, Process, ProcessSpec, Stdio};
pub use ready::NotReady;
pub use virtio_bus::DeviceError;
pub use vm::{NotRunning, ReadyError, StatisticsError, Vm, VmStopper};

pub use bellows_block::Profile;
pub use bellows_devices::pci::PciAddress;
pub use bellows_memory::{ByteSize, PartitionId};
pub use bellows_protocol::ready::BootTimes;
pub use bellows_protocol::stream::StreamName;
pub use bellows_protocol::values::{ImageId, InstanceId, ProcessId, TerminalSize, ValueError};
