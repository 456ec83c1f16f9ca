//! Freezing an instance, and what must not happen to it meanwhile.
//!
//! A process that is started in a frozen cgroup, and one that is forked from a process there, would wait for the thaw before it
//! has begun. So they are refused, and an instance is not frozen while either is under way. A removal needs no thaw: the kernel
//! kills frozen processes.

use std::time::Duration;

use bellows_protocol::values::InstanceId;

use super::{Instance, Instances};
use crate::cgroup::Cgroup;
use crate::error::{AgentError, Result};
use crate::placement::Placement;
use crate::sync::Mutex;

/// Whether an instance is frozen.
#[derive(Debug, Default)]
pub(super) struct Freezer {
    /// Held by a freeze or thaw, which waits.
    turn: Mutex<()>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// From the beginning of a freeze to the end of the thaw.
    frozen: bool,
    /// Processes that are being started, and forks of it.
    starts: u32,
}

/// A process is being started.
#[derive(Debug)]
pub(super) struct Starting<'a>(&'a Freezer);

/// What a frozen instance leaves unused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frozen {
    /// The source of its memory.
    pub placement: Placement,
    /// Other instances in its partition.
    pub neighbours: u32,
    /// Bytes of its partition that the driver can give back at once; 0 where it would have to move memory for it.
    pub spare: u64,
}

impl Instances {
    /// Stops all processes of an instance. One that is frozen already stays so.
    ///
    /// # Errors
    /// [`AgentError::Unknown`], [`AgentError::InUse`] also while a process is started in it, [`AgentError::Ended`],
    /// [`AgentError::TimedOut`], [`AgentError::Path`]. Then it goes on, unless it was frozen.
    pub fn freeze(&self, id: &InstanceId, limit: Duration) -> Result<Frozen> {
        let instance = self.get(id)?;
        if instance.init.exit.get().is_some() {
            return Err(AgentError::Ended(id.to_string()));
        }
        instance.freezer.freeze(id, instance.cgroup()?, limit)?;
        let placement = instance.parts.limits.placement;
        let spare = match placement {
            // It is frozen by now, so this is no failure.
            Placement::Private(node) => self.memory.spare(node).unwrap_or_else(|error| {
                tracing::warn!(%id, %error, "cannot tell what is free in its partition");
                0
            }),
            Placement::Policy(_) | Placement::Base => 0,
        };
        Ok(Frozen { placement, neighbours: self.neighbours(&instance), spare })
    }

    /// Has a frozen instance go on.
    ///
    /// # Errors
    /// [`AgentError::Unknown`], [`AgentError::InUse`], [`AgentError::Path`].
    pub fn thaw(&self, id: &InstanceId) -> Result<()> {
        let instance = self.get(id)?;
        instance.freezer.thaw(instance.cgroup()?)
    }

    /// How many other instances have memory in its partition: with a stock kernel there may be some.
    fn neighbours(&self, instance: &Instance) -> u32 {
        let placement = instance.parts.limits.placement;
        if !matches!(placement, Placement::Policy(_)) {
            return 0;
        }
        let others = self.ids().into_iter().filter(|id| *id != instance.parts.id);
        // One that is being started or removed may be there.
        let there = others.filter(|id| self.get(id).map_or(true, |other| other.parts.limits.placement == placement));
        u32::try_from(there.count()).unwrap_or(u32::MAX)
    }
}

impl Instance {
    fn cgroup(&self) -> Result<&Cgroup> {
        self.parts.cgroup.as_ref().ok_or_else(|| AgentError::Ended(self.parts.id.to_string()))
    }
}

impl Freezer {
    /// Notes that a process is being started in the instance, or forked from it.
    ///
    /// # Errors
    /// [`AgentError::Frozen`].
    pub(super) fn start(&self, id: &InstanceId) -> Result<Starting<'_>> {
        let mut state = self.state.lock();
        if state.frozen {
            return Err(AgentError::Frozen(id.to_string()));
        }
        state.starts += 1;
        Ok(Starting(self))
    }

    fn freeze(&self, id: &InstanceId, cgroup: &Cgroup, limit: Duration) -> Result<()> {
        let _turn = self.turn.lock();
        {
            let mut state = self.state.lock();
            if state.frozen {
                return Ok(());
            }
            if state.starts != 0 {
                let by = "the start of a process".into();
                return Err(AgentError::InUse { what: format!("instance {id}"), by });
            }
            state.frozen = true;
        }
        let frozen = cgroup.freeze(limit);
        self.state.lock().frozen = frozen.is_ok();
        frozen
    }

    fn thaw(&self, cgroup: &Cgroup) -> Result<()> {
        let _turn = self.turn.lock();
        if self.state.lock().frozen {
            cgroup.thaw()?;
            self.state.lock().frozen = false;
        }
        Ok(())
    }
}

impl Drop for Starting<'_> {
    fn drop(&mut self) {
        self.0.state.lock().starts -= 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cgroup::Hierarchy;

    const LIMIT: Duration = Duration::from_millis(5);

    /// A cgroup made of files, whose processes have stopped or never do.
    fn cgroup(folder: &std::path::Path, frozen: u8) -> Cgroup {
        let cgroup = folder.join("instances/f-1");
        std::fs::create_dir_all(&cgroup).unwrap();
        std::fs::write(cgroup.join("cgroup.freeze"), "0").unwrap();
        std::fs::write(cgroup.join("cgroup.events"), format!("populated 1\nfrozen {frozen}\n")).unwrap();
        Hierarchy::new(folder).cgroup(&id())
    }

    fn id() -> InstanceId {
        "f-1".parse().unwrap()
    }

    #[test]
    fn nothing_is_started_in_a_frozen_instance() {
        let folder = tempfile::tempdir().unwrap();
        let (freezer, cgroup) = (Freezer::default(), cgroup(folder.path(), 1));
        for _ in 0..2 {
            freezer.freeze(&id(), &cgroup, LIMIT).unwrap();
            let error = freezer.start(&id()).unwrap_err();
            assert_eq!(error.to_string(), "instance \"f-1\" is frozen: thaw it first");
            assert_eq!(error.code(), ttrpc::Code::FAILED_PRECONDITION);
        }
        for _ in 0..2 {
            freezer.thaw(&cgroup).unwrap();
            freezer.start(&id()).unwrap();
        }
        assert_eq!(std::fs::read_to_string(folder.path().join("instances/f-1/cgroup.freeze")).unwrap(), "0");
    }

    #[test]
    fn an_instance_is_not_frozen_while_a_process_is_started() {
        let folder = tempfile::tempdir().unwrap();
        let (freezer, cgroup) = (Freezer::default(), cgroup(folder.path(), 1));
        let starting = [freezer.start(&id()).unwrap(), freezer.start(&id()).unwrap()];
        for starting in starting {
            let error = freezer.freeze(&id(), &cgroup, LIMIT).unwrap_err();
            assert!(error.to_string().contains("f-1 is in use by the start of a process"), "{error}");
            drop(starting);
        }
        freezer.freeze(&id(), &cgroup, LIMIT).unwrap();
    }

    #[test]
    fn an_instance_that_does_not_stop_in_time_is_not_frozen() {
        let folder = tempfile::tempdir().unwrap();
        let (freezer, cgroup) = (Freezer::default(), cgroup(folder.path(), 0));
        assert!(matches!(freezer.freeze(&id(), &cgroup, LIMIT), Err(AgentError::TimedOut { .. })));
        freezer.start(&id()).unwrap();
    }
}
