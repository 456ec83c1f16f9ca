//! Why a VM could not be made.

use std::io;
use std::path::PathBuf;

use bellows_devices::virtio::vsock::VsockError;
use bellows_memory::MapError;
use bellows_memory::layout::LayoutError;
use bellows_memory::slots::SlotError;

use crate::arch::BootError;
use crate::command_line::CommandLineError;
use crate::config::ConfigError;
use crate::descriptors::TooFewDescriptors;
use crate::guest::error::NotReady;
use crate::kind::ErrorKind;
use crate::kvm::{HostError, MachineError, VcpuPoolError};
use crate::resources::balloon::BalloonError;
use crate::resources::error::{HotplugError, PartitionError};
use crate::resources::networks::NetworkError;
use crate::virtio_bus::DeviceError;

/// Why a VM could not be made. Nothing of it remains.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// The configuration is invalid.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The process may not open enough files for it.
    #[error("cannot open enough files for the VM")]
    Descriptors(#[from] TooFewDescriptors),
    /// This host cannot run VMs.
    #[error(transparent)]
    Host(#[from] HostError),
    /// KVM refused a VM.
    #[error(transparent)]
    Machine(#[from] MachineError),
    /// Memory does not fit into the guest's address space.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// The host has no memory for it.
    #[error(transparent)]
    Map(#[from] MapError),
    /// KVM refused the memory.
    #[error(transparent)]
    Slot(#[from] SlotError),
    /// A disk could not be added.
    #[error(transparent)]
    Disk(#[from] HotplugError),
    /// The balloon could not be made.
    #[error(transparent)]
    Balloon(#[from] BalloonError),
    /// A network interface could not be made.
    #[error(transparent)]
    Network(#[from] NetworkError),
    /// A partition could not be made.
    #[error(transparent)]
    Partition(#[from] PartitionError),
    /// The vsock device could not be made.
    #[error(transparent)]
    Vsock(#[from] VsockError),
    /// A device could not be put in place.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// The kernel command line is invalid.
    #[error(transparent)]
    CommandLine(#[from] CommandLineError),
    /// Kernel or initramfs was refused.
    #[error(transparent)]
    Boot(#[from] BootError),
    /// The vCPUs could not be made.
    #[error(transparent)]
    Vcpus(#[from] VcpuPoolError),
    /// The socket for the agent could not be made.
    #[error(transparent)]
    Ready(#[from] NotReady),
    /// Writing the file for the serial console failed.
    #[error("cannot write the serial console to `{path}`")]
    SerialFile {
        /// The file.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// The system refused another step.
    #[error("cannot make the VM's {what}")]
    System {
        /// The part that was being made.
        what: &'static str,
        /// The system's error.
        #[source]
        source: io::Error,
    },
}

impl BuildError {
    /// The kind of this error.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Config(error) => error.kind(),
            Self::Descriptors(error) => error.kind(),
            Self::Host(_) | Self::Machine(_) | Self::Map(_) | Self::Slot(_) | Self::System { .. } => ErrorKind::Host,
            Self::Layout(_) | Self::CommandLine(_) | Self::Vsock(VsockError::ReservedCid(_)) => ErrorKind::Invalid,
            Self::Disk(error) => error.kind(),
            Self::Balloon(error) => error.kind(),
            Self::Network(error) => error.kind(),
            Self::Partition(error) => error.kind(),
            Self::Vsock(VsockError::Listen(_)) => ErrorKind::Host,
            Self::Device(error) => error.kind(),
            Self::Boot(error) => error.kind(),
            Self::Vcpus(error) => error.kind(),
            Self::Ready(error) => error.kind(),
            Self::SerialFile { source, .. } => ErrorKind::of_file(source),
        }
    }
}
