//! Starting an instance.

use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use super::freeze::Freezer;
use super::table::Slot;
use super::{Instance, InstanceNetwork, Instances, Parts, Request, Role};
use crate::accounts::Credentials;
use crate::cgroup::{Cgroup, Limits};
use crate::container::{Mounted, Network, Process, Running, Site};
use crate::error::{AgentError, Result};
use crate::network::filter;
use crate::processes::Others;
use crate::rootfs::RootFs;
use crate::sockets::Sockets;
use crate::tmpfs::Capacities;
use crate::zygote::Zygote;
use crate::{files, furnish};

impl Instances {
    /// Starts an instance, with the block device `scratch_node` where it is to have a scratch disk; returns the number of its first
    /// process.
    ///
    /// # Errors
    /// [`AgentError::Exists`]; errors of its parts. Then nothing of it remains, or remains that can be removed like an
    /// instance.
    pub fn start(&self, request: &Request, scratch_node: Option<&Path>) -> Result<u32> {
        self.begin_start(&request.id)?;
        match self.build(request, scratch_node) {
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

    fn build(&self, request: &Request, scratch_node: Option<&Path>) -> std::result::Result<Instance, Failure> {
        let parent = match &request.role {
            Role::ForkOf(id) => Some(self.zygote(id, &request.image)?),
            Role::Plain | Role::Zygote => None,
        };
        let _starting = parent.as_ref().map(|parent| parent.freezer.start(&parent.parts.id)).transpose()?;
        let claim = self.base.claim(request.base_limit, request.node.is_partition())?;
        let limits = self.limits(request, claim.bytes())?;
        let volumes = self.images.begin_volumes(&request.volumes)?;
        let layers = self.images.begin_use(&request.image).inspect_err(|_| {
            request.volumes.iter().for_each(|volume| self.images.end_use(&volume.image));
        })?;
        let folder = self.folder.join(request.id.as_str());
        let mut parts = Parts {
            id: request.id.clone(),
            image: request.image.clone(),
            volumes: request.volumes.iter().map(|volume| volume.image.clone()).collect(),
            limits,
            cgroup: None,
            rootfs: RootFs::below(&folder),
            scratch: None,
            shares_network: request.network == InstanceNetwork::Shared,
            own_network: None,
            folder,
            claim,
        };
        match self.assemble(request, scratch_node, &layers, &volumes, parent.as_deref(), &mut parts) {
            Ok(Container { process, sockets, zygote }) => Ok(Instance {
                parts,
                init: Arc::new(process),
                others: Others::default(),
                sockets,
                freezer: Freezer::default(),
                zygote,
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

    fn assemble(
        &self,
        request: &Request,
        scratch_node: Option<&Path>,
        layers: &[PathBuf],
        volumes: &[PathBuf],
        parent: Option<&Instance>,
        parts: &mut Parts,
    ) -> Result<Container> {
        let limits = parts.limits;
        let capacities = Capacities::within(limits.placement, limits.memory_max, parts.claim.bytes());
        files::make_directory(&parts.folder)?;
        let cgroup = parts.cgroup.insert(self.hierarchy.create(&request.id, limits)?);
        parts.rootfs.mount(layers, limits.placement, capacities.scratch)?;
        let volumes = request.volumes.iter().zip(volumes);
        let mut mounted: Vec<_> =
            volumes.map(|(volume, layer)| Mounted { source: layer, place: &volume.path, writable: false }).collect();
        if let (Some(disk), Some(node)) = (&request.scratch, scratch_node) {
            let users = &self.scratch_users;
            let mount = parts.scratch.insert(users.begin(disk, &request.id, &parts.folder.join("d"))?);
            // Volumes may be in it.
            mounted.insert(0, Mounted { source: mount.mount(node)?, place: &disk.path, writable: true });
        }
        let root = parts.rootfs.root();
        let credentials = furnish::credentials(root, &request.process.user)?;
        let (network, resolver) = match &request.network {
            InstanceNetwork::Unconnected => (Network::Unconnected, None),
            InstanceNetwork::Shared => (Network::Shared(self.network.namespace()), Some(self.network.resolver())),
            InstanceNetwork::Own(setup) => {
                filter::apply(cgroup.boundary(), setup)?;
                let own = parts.own_network.insert(self.network.connect(setup)?);
                (Network::Own(own.namespace()), Some(self.network.resolver().at(&setup.addresses)))
            }
        };
        furnish::furnish(root, request.id.as_str(), &request.process.working_directory, resolver.as_ref())?;
        let site = Site {
            hostname: request.id.as_str(),
            root,
            cgroup: cgroup.folder(),
            placement: limits.placement,
            capacities,
            network,
            volumes: mounted,
        };
        self.launch(request, &site, &credentials, parent, cgroup)
    }

    /// Starts the first process, and makes it what it is to others.
    fn launch(
        &self,
        request: &Request,
        site: &Site<'_>,
        credentials: &Credentials,
        parent: Option<&Instance>,
        cgroup: &Cgroup,
    ) -> Result<Container> {
        let launch = |running| {
            let launched = self.launcher.launch(site, &request.process, credentials, running);
            let (process, network) = launched?;
            let sockets = match site.network {
                Network::Unconnected | Network::Own(_) => Sockets::of(network),
                // The others there belong to other instances.
                Network::Shared(_) => {
                    Sockets::of_cgroup(network, site.cgroup).map_err(AgentError::path("look at", site.cgroup))?
                }
            };
            Ok(Container { process, sockets, zygote: None })
        };
        match (&request.role, parent) {
            (Role::Zygote, _) => {
                let (ours, theirs) = UnixStream::pair().map_err(AgentError::system("socketpair"))?;
                let container = launch(Running::Zygote(theirs.as_fd()))?;
                // Only the zygote has it now: it ends with it.
                drop(theirs);
                let zygote = super::zygote::arm(cgroup, &container.process, &ours, credentials)?;
                Ok(Container { zygote: Some(zygote), ..container })
            }
            (Role::ForkOf(id), Some(parent)) => {
                let zygote = parent.forked_as(credentials)?;
                launch(Running::Fork(zygote.process.as_fd())).map_err(|error| match error {
                    AgentError::NotAdopted(error) if error.raw_os_error() == Some(libc::ESRCH) => {
                        AgentError::Ended(id.to_string())
                    }
                    error => error,
                })
            }
            (Role::Plain | Role::ForkOf(_), _) => launch(Running::Command),
        }
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

/// What runs, of an instance.
struct Container {
    process: Process,
    sockets: Sockets,
    zygote: Option<Zygote>,
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
