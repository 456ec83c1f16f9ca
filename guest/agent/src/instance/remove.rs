//! Removal of an instance.

use std::time::Duration;

use bellows_protocol::values::InstanceId;

use super::table::Slot;
use super::{Instance, Instances, Parts};
use crate::error::Result;
use crate::placement::Placement;

impl Instances {
    /// Ends and removes an instance, or the remains of a failed start.
    ///
    /// # Errors
    /// [`AgentError::Gone`](crate::error::AgentError::Gone), [`AgentError::InUse`](crate::error::AgentError::InUse); errors of a step, after which the call can be repeated.
    pub fn remove(&self, id: &InstanceId) -> Result<()> {
        let slot = self.begin_removal(id)?;
        let removed = match &slot {
            Slot::Started(instance) => self.kill(instance).and_then(|()| {
                instance.init.exit.wait_for(self.kill_limit);
                instance.init.streams.close();
                instance.oom_killed();
                instance.destroy_sockets();
                self.dismantle(&instance.parts)
            }),
            Slot::Remains(parts) => parts.kill(self.kill_limit).and_then(|()| self.dismantle(parts)),
            Slot::Busy => Ok(()),
        };
        self.finish(id, removed.is_err().then_some(slot));
        removed
    }

    /// Ends all instances, as far as it goes.
    pub fn remove_all(&self) {
        for id in self.ids() {
            if let Err(error) = self.remove(&id) {
                tracing::warn!(%id, %error, "cannot remove an instance");
            }
        }
    }

    /// Kills all processes of an instance, also those that are just being started.
    fn kill(&self, instance: &Instance) -> Result<()> {
        instance.parts.kill(self.kill_limit)?;
        // Starts fail in a container whose first process is gone, but one may have joined the cgroup in the meantime.
        instance.others.close(self.kill_limit)?;
        instance.parts.kill(self.kill_limit)
    }

    /// Removes the parts of an instance without processes.
    pub(super) fn dismantle(&self, parts: &Parts) -> Result<()> {
        // Unmount first, and stop if that fails: later the folder is removed with everything in it.
        parts.rootfs.unmount()?;
        if let Some(scratch) = &parts.scratch {
            scratch.undo(&self.scratch_users)?;
        }
        if let Some(own) = &parts.own_network {
            self.network.disconnect(own);
        }
        // A removal that is tried again may have removed it before.
        if let Some(cgroup) = parts.cgroup.as_ref().filter(|cgroup| cgroup.exists()) {
            // In base memory the cache stays for the next instance, and a private node has no cache.
            if matches!(parts.limits.placement, Placement::Policy(_)) {
                match cgroup.drop_page_cache().and_then(|()| cgroup.page_cache()) {
                    Ok(0) => {}
                    Ok(bytes) => tracing::info!(id = %parts.id, bytes, "other instances still use page cache"),
                    Err(error) => tracing::warn!(id = %parts.id, %error, "cannot drop page cache"),
                }
            }
            cgroup.remove()?;
        }
        if let Err(error) = std::fs::remove_dir_all(&parts.folder) {
            tracing::warn!(path = %parts.folder.display(), %error, "cannot remove a folder");
        }
        self.images.end_use(&parts.image);
        parts.volumes.iter().for_each(|image| self.images.end_use(image));
        Ok(())
    }
}

impl Parts {
    pub(super) fn kill(&self, limit: Duration) -> Result<()> {
        self.cgroup.as_ref().map_or(Ok(()), |cgroup| cgroup.kill(limit))
    }
}
