//! The first contact with the guest's agent: it reports that it is ready, then the monitor connects.

use std::path::Path;
use std::sync::{Arc, OnceLock};

use bellows_memory::sync::Mutex;
use bellows_protocol::ready::BootTimes;

use super::agent::AgentClient;
use super::error::{NotReady, ReadyError};
use super::ready::ReadyListener;
use crate::deadline::{Deadline, Turns};
use crate::end::EndSignal;

/// The state of the contact.
pub(crate) struct Rendezvous {
    /// Callers that wait for the agent take turns.
    turns: Turns,
    /// Present until the agent has sent its line; later lines of the guest are not accepted.
    listener: Mutex<Option<ReadyListener>>,
    times: OnceLock<BootTimes>,
    client: OnceLock<Arc<AgentClient>>,
}

impl Rendezvous {
    pub(crate) fn new(listener: ReadyListener) -> Self {
        let listener = Mutex::new(Some(listener));
        Self { turns: Turns::default(), listener, times: OnceLock::new(), client: OnceLock::new() }
    }

    /// Waits for the agent's line and connects to it; steps that are done are not repeated.
    pub(crate) fn reach(
        &self,
        uds_path: &Path,
        deadline: Deadline,
        end: &Arc<EndSignal>,
    ) -> Result<&Arc<AgentClient>, ReadyError> {
        let turn = self.turns.take(deadline.left());
        if let Some(client) = self.client.get() {
            return Ok(client);
        }
        let _turn = turn.ok_or(NotReady::Timeout(deadline.limit()))?;
        let mut listener = self.listener.lock();
        if let Some(listening) = &*listener {
            let times = listening.wait(deadline, end)?;
            let _ = self.times.set(times);
            *listener = None;
        }
        let client = AgentClient::connect(uds_path, deadline, end)?;
        Ok(self.client.get_or_init(|| Arc::new(client)))
    }

    /// The way to the agent, once connected.
    pub(crate) fn client(&self) -> Option<&Arc<AgentClient>> {
        self.client.get()
    }

    /// The agent's line.
    pub(crate) fn boot_times(&self) -> Option<BootTimes> {
        self.times.get().copied()
    }
}

#[cfg(test)]
#[path = "rendezvous_test.rs"]
mod tests;
