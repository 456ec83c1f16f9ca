//! The guest's side of the VM, as far as the monitor talks to it: meeting the agent, and calling it.

pub(crate) mod agent;
pub(crate) mod error;
pub(crate) mod ready;
mod rendezvous;
pub(crate) mod session;
