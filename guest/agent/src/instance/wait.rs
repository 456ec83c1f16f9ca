//! Waiting for the processes of an instance.

use std::io;

use bellows_protocol::values::ProcessId;

use super::{Instance, Parts};
use crate::cgroup::OomLimit;
use crate::error::Result;

impl Instance {
    /// Blocks until a process has ended; returns its exit code, and the limit met if the kernel killed for lack of memory.
    ///
    /// # Errors
    /// Those of [`Instance::process`].
    pub fn wait(&self, id: &ProcessId) -> Result<(i32, Option<OomLimit>)> {
        let code = self.process(id)?.exit.wait();
        if *id != ProcessId::init() {
            return Ok((code, self.parts.oom_killed()));
        }
        // Done here already, so that the kernel has cleaned up its network by the time of the unplug.
        self.destroy_sockets();
        Ok((code, self.oom_killed()))
    }

    /// Destroys the sockets that would keep memory of its partition, once its first process has ended and the kernel has
    /// ended all others with it; if that fails, memory is given back later.
    pub(super) fn destroy_sockets(&self) {
        let id = &self.parts.id;
        match self.sockets.destroy() {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::Unsupported => {
                tracing::debug!(%id, %error, "sockets may stay")
            }
            Err(error) => tracing::warn!(%id, %error, "sockets may stay"),
        }
    }

    pub(super) fn oom_killed(&self) -> Option<OomLimit> {
        // Kept, because the cgroup may be gone at the next call.
        *self.oom_killed.get_or_init(|| self.parts.oom_killed())
    }
}

impl Parts {
    fn oom_killed(&self) -> Option<OomLimit> {
        let killed = self.cgroup.as_ref().map(|cgroup| cgroup.oom_killed(self.limits));
        killed.transpose().unwrap_or_else(|error| {
            tracing::warn!(id = %self.id, %error, "cannot tell whether it was killed for lack of memory");
            None
        })?
    }
}
