//! The parts of a VM that come and go: disks, images, partitions, instances and their processes. And
//! the balloon and network interfaces, which stay.

pub(crate) mod balloon;
pub(crate) mod disks;
mod drives;
pub(crate) mod elastic;
pub(crate) mod error;
pub(crate) mod exec;
pub(crate) mod freeze;
pub(crate) mod images;
pub(crate) mod instance_network;
pub(crate) mod instances;
pub(crate) mod networks;
pub(crate) mod partitions;
pub(crate) mod pmem;
mod prepare;
pub(crate) mod processes;
pub(crate) mod scratch;
mod table;
