//! The monitor's view of the guest: it waits for the agent, and calls it.

pub(crate) mod agent;
pub(crate) mod error;
pub(crate) mod ready;
mod rendezvous;
pub(crate) mod session;
