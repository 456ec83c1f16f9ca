//! The embeddable Bellows microVM monitor.

mod agent;
mod command_line;
pub mod config;
mod end;
#[cfg(target_arch = "x86_64")]
pub mod machine;
mod ready;

pub use agent::{AgentError, ExitStatus, GuestInfo, GuestStatistics, Holder, Output, PartitionUse};
pub use config::{ConfigError, DriveConfig, LayerConfig, SerialOutput, VmConfig, VsockConfig};
pub use end::{TripleFault, VmEnd};
pub use ready::NotReady;
