//! Starting an instance.

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use super::table::Slot;
use super::{Instance, Instances, Parts, Request};
use crate::cgroup::{Hierarchy, Limits};
use crate::container::Process;
use crate::container::spec::{Workload, configuration};
use crate::error::{AgentError, Result};
use crate::processes::Others;
use crate::rootfs::RootFs;
use crate::sockets::Sockets;
use crate::tmpfs::Capacities;
use crate::{files, furnish};

impl Instances {
    /// Starts an instance; returns the number of its first process.
    ///
    /// # Errors
    /// [`AgentError::Exists`]; errors of its parts. Then nothing of it remains, or remains that can be removed like an
    /// instance.
    pub fn start(&self, request: &Request) -> Result<u32> {
        self.begin_start(&request.id)?;
        match self.build(request) {
            Ok(instance) => {
                let pid = instance.init.pid.as_raw().unsigned_abs();
                self.finish(&request.id, Some(Slot::Started(Arc::new(instance))));
                Ok(pid)
            }
            Err(Failure { error, remains }) => {
                self.finish(&request.id, remains.map(Slot::Remains));
                Err(error)
            }
        }
    }

    fn build(&self, request: &Request) -> std::result::Result<Instance, Failure> {
        let claim = self.base.claim(request.base_limit, request.node.is_partition())?;
        let limits = self.limits(request, claim.bytes())?;
        let layers = self.images.begin_use(&request.image)?;
        let folder = self.folder.join(request.id.as_str());
        let mut parts = Parts {
            id: request.id.clone(),
            image: request.image.clone(),
            limits,
            cgroup: None,
            rootfs: RootFs::below(&folder),
            folder,
            claim,
        };
        match self.assemble(request, &layers, &mut parts) {
            Ok((process, network)) => Ok(Instance {
                parts,
                init: Arc::new(process),
                others: Others::default(),
                sockets: Sockets::of(network),
                oom_killed: OnceLock::new(),
            }),
            Err(error) => {
                let cleanup = parts.kill(self.kill_limit).and_then(|()| self.dismantle(&parts));
                let remains = cleanup.err().map(|cleanup| {
                    tracing::error!(id = %request.id, error = %cleanup, "remains of an instance that did not start");
                    Box::new(parts)
                });
                Err(Failure { error, remains })
            }
        }
    }

    fn assemble(&self, request: &Request, layers: &[PathBuf], parts: &mut Parts) -> Result<(Process, OwnedFd)> {
        let limits = parts.limits;
        let capacities = Capacities::within(limits.placement, limits.memory_max, parts.claim.bytes());
        files::make_directory(&parts.folder)?;
        parts.cgroup = Some(self.hierarchy.create(&request.id, limits)?);
        parts.rootfs.mount(layers, limits.placement, capacities.scratch)?;
        let root = parts.rootfs.root();
        let credentials = furnish::credentials(root, &request.process.user)?;
        furnish::furnish(root, request.id.as_str(), &request.process.working_directory)?;
        let configuration = configuration(&Workload {
            hostname: request.id.as_str(),
            root,
            cgroup: &Hierarchy::name(&request.id),
            placement: limits.placement,
            capacities,
            process: &request.process,
            credentials: &credentials,
        });
        let file = parts.folder.join("config.json");
        std::fs::write(&file, configuration.to_string()).map_err(AgentError::path("write", &file))?;
        self.launcher.launch(request.id.as_str(), &parts.folder, &request.process, &credentials)
    }

    /// The limits of an instance that may have `base` bytes of base memory.
    pub(super) fn limits(&self, request: &Request, base: u64) -> Result<Limits> {
        if !request.node.is_partition() {
            return request.limits(base, None);
        }
        let total = self.memory.node(request.node)?.total_bytes;
        if total == 0 {
            return Err(AgentError::NoMemory(request.node));
        }
        request.limits(base, Some((self.memory.placement(request.node)?, total)))
    }
}

/// Why an instance was not started, and the parts that could not be removed.
struct Failure {
    error: AgentError,
    remains: Option<Box<Parts>>,
}

impl From<AgentError> for Failure {
    fn from(error: AgentError) -> Self {
        Self { error, remains: None }
    }
}
