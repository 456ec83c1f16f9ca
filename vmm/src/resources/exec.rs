//! Further processes in an instance: programs of it, and those that copy its files as tar streams.

use bellows_protocol::agent::{self, StartProcessRequest};
use bellows_protocol::values::{ProcessId, check_working_directory};

use super::error::InstanceError;
use super::instances::Instance;
use super::processes::{Process, ProcessSpec};

/// What a process of [`Instance::copy`] does.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Copying {
    /// Says on its standard output what is at the path: `folder`, `file` or `nothing`, and a line end.
    Look,
    /// Writes a tar archive of the file or folder to its standard output. All names there begin with the last name of the path, or, for
    /// the root, there is no such name. The guest makes it, so whoever unpacks it takes it for hostile.
    Out,
    /// Unpacks a tar archive from its standard input into the folder. Files replace files, and keep owners, modes and times of the
    /// archive.
    In,
}

impl Instance {
    /// Starts another process in it: in its namespaces, its cgroup and its partition, with at most the rights of its first
    /// process. It ends with the instance at the latest. Its name is free again once it is [removed](Process::remove).
    ///
    /// # Errors
    /// The specification is invalid, the instance has ended, or the agent could not start it.
    pub fn exec(&self, id: ProcessId, spec: &ProcessSpec) -> Result<Process, InstanceError> {
        let instance = self.id();
        let spec = spec.request().map_err(|source| InstanceError::Spec { id: instance.clone(), source })?;
        let request = StartProcessRequest {
            instance_id: instance.to_string(),
            process_id: id.to_string(),
            process: Some(spec).into(),
            ..Default::default()
        };
        self.start_process(id, &request)
    }

    pub(super) fn start_process(&self, id: ProcessId, request: &StartProcessRequest) -> Result<Process, InstanceError> {
        let instance = self.id();
        let failed = |source| InstanceError::Agent { action: "start a process in", id: instance.clone(), source };
        let pid = self.agent.start_process(request).map_err(failed)?;
        tracing::debug!(%instance, process = %id, pid, "started a process");
        Ok(Process::new(instance.clone(), id, pid, self.agent.clone()))
    }

    /// Reads or writes files at an absolute path of the instance, by a process of the agent's in it, with the rights of the instance's
    /// root, and in its memory. Its exit code is 0 if all went well; its standard error says what did not. [Remove](Process::remove) it
    /// like any process.
    ///
    /// # Errors
    /// The path is not absolute, the instance has ended, or the agent could not start the process.
    pub fn copy(&self, id: ProcessId, copying: Copying, path: &str) -> Result<Process, InstanceError> {
        let instance = self.id();
        let wrong = |source| InstanceError::Spec { id: instance.clone(), source };
        let direction = match copying {
            Copying::Look => agent::CopyDirection::LOOK,
            Copying::Out => agent::CopyDirection::OUT,
            Copying::In => agent::CopyDirection::IN,
        };
        let path = check_working_directory(path).map_err(wrong)?.to_owned();
        let copy = agent::Copy { direction: direction.into(), path, ..Default::default() };
        let request = StartProcessRequest {
            instance_id: instance.to_string(),
            process_id: id.to_string(),
            copy: Some(copy).into(),
            ..Default::default()
        };
        self.start_process(id, &request)
    }
}
