//! The embeddable Bellows microVM monitor.
//!
//! From "run this image" to "memory is back": a [`VmBuilder`] makes and starts a [`Vm`]; [`Vm::wait_ready`] waits for the
//! guest's agent; [`Vm::mount_image`] mounts layers; [`Vm::plug`] gives a partition memory; [`Vm::start_instance`] runs a
//! function in it; [`Instance::remove`] removes it; [`Vm::unplug`] and [`Vm::await_discard`] give the memory back to the
//! host. [`Vm::pause`] and [`Vm::resume`] stop a VM for a while. There is no global state: any number of VMs may run in a
//! process. Every error has a text for people and an [`ErrorKind`] for programs.

mod arch;
mod builder;
mod causes;
mod command_line;
pub mod config;
mod config_pages;
mod console;
mod deadline;
mod descriptors;
mod end;
mod error;
mod guest;
mod host_report;
mod kind;
#[cfg_attr(
    not(any(test, feature = "testing")),
    expect(dead_code, reason = "so far only tests save and restore the state of a machine")
)]
mod kvm;
mod last_lines;
mod lifecycle;
mod memory_map;
pub mod milliseconds;
mod model;
mod parameters;
mod poll;
mod resident;
mod resources;
mod trial;
mod virtio_bus;
mod vm;
mod vm_network;

/// The machine without the rest of the monitor, for this crate's own test and example.
#[cfg(feature = "testing")]
#[doc(hidden)]
pub mod machine {
    pub use crate::arch::cpu::VcpuState;
    pub use crate::arch::vm::VmState;
    pub use crate::arch::{BootSource, Buses, Firmware, RootBus, StateError, layout, load};
    pub use crate::command_line::CommandLine;
    pub use crate::kvm::{ExitNotice, ExitReason, Host, Machine, VcpuError, VcpuPool, Vcpus};
}

pub use builder::VmBuilder;
pub use config::{
    Backing, BalloonConfig, ConfigError, DriveConfig, ElasticBaseConfig, FlatConfig, GuestNetwork, HostEnd,
    ImageConfig, LayerConfig, MmdsConfig, NetConfig, ParsePartitionModeError, ParseShapeError, ParseTransportError,
    PartitionMode, SerialOutput, Shape, StreamSocket, Tap, Transport, VmConfig, VsockConfig,
};
pub use descriptors::TooFewDescriptors;
pub use end::{TripleFault, VmEnd};
pub use error::BuildError;
#[cfg(feature = "testing")]
pub use guest::agent::exercise::exercise as exercise_agent_client;
pub use guest::agent::{AgentError, InstanceMemory, StartFailure, Stream};
pub use guest::error::{NotReady, NotRunning, PowerOffError, ReadyError, StatisticsError};
pub use host_report::HostReport;
pub use kind::ErrorKind;
pub use kvm::{ExitCounts, HostError, needs_capability};
pub use last_lines::GuestPanic;
pub use lifecycle::{Lifecycle, LifecycleError, VmStopper};
pub use model::{
    DiscardReport, DiskInfo, DiskState, ExitStatus, FrozenInstance, GuestDriver, GuestInfo, GuestState,
    GuestStatistics, GuestTimes, Holder, ImageInfo, NotPrepared, OomLimit, PartitionInfo, PartitionReport,
    PartitionUse, PlugReport, PreparationReport, PreparedPartition, ReadyReport, RunReport, UnplugAccount,
    UnplugReport,
};
pub use resources::balloon::{Balloon, BalloonError, BalloonReport, BalloonStatistics};
pub use resources::disks::serial_of;
pub use resources::elastic::{BaseCycle, ElasticBase, ElasticBaseError, ElasticBaseReport};
pub use resources::error::{DuplicateDisk, HotplugError, ImageError, InstanceError, PartitionError, PmemError};
pub use resources::exec::Copying;
pub use resources::freeze::{FreeKept, FreezeReport, NotPushedOut, ThawReport};
pub use resources::instance_network::{InstanceNetwork, OwnNetwork};
pub use resources::instances::{Account, DEFAULT_PIDS_MAX, Instance, InstanceSpec, User, ZygoteRuntime, ZygoteSpec};
pub use resources::networks::{NetworkError, NetworkInfo};
pub use resources::pmem::LostLayer;
pub use resources::processes::{Forwarding, Process, ProcessSpec, Stdio};
pub use resources::scratch::{ScratchSpec, default_scratch_folder};
pub use trial::{HostTrial, TrialError};
pub use virtio_bus::DeviceError;
pub use vm::Vm;

pub use bellows_block::ReadSet;
pub use bellows_devices::pci::PciAddress;
pub use bellows_devices::virtio::balloon::{Discards, HintingStatus, MemoryStatistics};
pub use bellows_devices::virtio::limits::{Rate, RateLimit};
pub use bellows_devices::virtio::net::mmds::{Metadata, StoreError as MetadataError, Version as MmdsVersion};
pub use bellows_devices::virtio::net::{
    MacAddress, NetError, NetStatistics, ParseMacError, RateLimits, TapError, Traffic,
};
pub use bellows_memory::host::catch_faults;
pub use bellows_memory::threads::{ThreadRole, on_thread_start};
pub use bellows_memory::{ByteSize, PartitionId};
pub use bellows_protocol::egress::{EgressProtocol, EgressRule};
pub use bellows_protocol::network::InterfaceAddress;
pub use bellows_protocol::ready::BootTimes;
pub use bellows_protocol::stream::StreamName;
pub use bellows_protocol::values::{
    ImageId, InstanceId, ProcessId, SearchDomain, TerminalSize, ValueError, VolumePath,
};
pub use bellows_protocol::volume::{MAX_VOLUMES, Volume};
