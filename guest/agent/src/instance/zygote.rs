//! Instances that others are forked from.

use std::os::unix::net::UnixStream;
use std::sync::Arc;

use bellows_protocol::READY_LIMIT;
use bellows_protocol::values::{ImageId, InstanceId};

use super::{Instance, Instances};
use crate::accounts::Credentials;
use crate::cgroup::Cgroup;
use crate::container::Process;
use crate::error::{AgentError, Result};
use crate::zygote::{self, Zygote};

impl Instances {
    /// The zygote `id`, to fork an instance of `image` from.
    ///
    /// # Errors
    /// [`AgentError::Unknown`], [`AgentError::InUse`], [`AgentError::NotZygote`], [`AgentError::Ended`],
    /// [`AgentError::ZygoteImage`].
    pub(super) fn zygote(&self, id: &InstanceId, image: &ImageId) -> Result<Arc<Instance>> {
        let instance = self.get(id)?;
        if instance.zygote.is_none() {
            return Err(AgentError::NotZygote(id.to_string()));
        }
        if instance.init.exit.get().is_some() {
            return Err(AgentError::Ended(id.to_string()));
        }
        // Its memory refers to the image's files.
        if instance.parts.image != *image {
            let (found, wanted) = (instance.parts.image.to_string(), image.to_string());
            return Err(AgentError::ZygoteImage { zygote: id.to_string(), found, wanted });
        }
        Ok(instance)
    }
}

impl Instance {
    /// What a fork of this zygote with these credentials takes over.
    ///
    /// # Errors
    /// [`AgentError::ZygoteUser`], [`AgentError::NotZygote`].
    pub(super) fn forked_as(&self, credentials: &Credentials) -> Result<&Zygote> {
        let zygote = self.zygote.as_ref().ok_or_else(|| AgentError::NotZygote(self.parts.id.to_string()))?;
        let wanted = user(credentials);
        if zygote.user == wanted {
            Ok(zygote)
        } else {
            Err(AgentError::ZygoteUser { zygote: self.parts.id.to_string(), found: zygote.user, wanted })
        }
    }
}

/// Makes the process of a container that has been started in `cgroup` a zygote. `control` is the agent's end of its socket.
///
/// # Errors
/// Those of [`zygote::arm`].
pub(super) fn arm(
    cgroup: &Cgroup,
    process: &Process,
    control: &UnixStream,
    credentials: &Credentials,
) -> Result<Zygote> {
    let process = zygote::arm(control, process.pid, cgroup, READY_LIMIT)?;
    Ok(Zygote { process, user: user(credentials) })
}

fn user(credentials: &Credentials) -> (u32, u32) {
    (credentials.uid, credentials.gid)
}
