//! Boot: from the kernel's start of `/init` until the agent can be called.

use std::path::Path;
use std::process::ExitCode;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use bellows_protocol::values::Node;
use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;
use tracing::Level;

use crate::base_memory::{self, BaseMemory};
use crate::cgroup::{self, Hierarchy};
use crate::container::Launcher;
use crate::elastic::ElasticBase;
use crate::error::{AgentError, Result};
use crate::image::Images;
use crate::instance::Instances;
use crate::network::Network;
use crate::partition::MemoryInfo;
use crate::pci::Sysfs;
use crate::reaper::Reaper;
use crate::server::{self, Service};
use crate::statistics::{Migrations, VmStat};
use crate::uevent::Uevents;
use crate::{log, modules, mounts, settings, stream_server, sys, vsock};

/// Brings the guest up and serves until the machine stops. A failure of a vital step ends the guest; other failures are logged.
pub fn run() -> ExitCode {
    let init = vsock::kernel_clock();
    let mounted = mounts::leave_initial_root().and_then(|()| mounts::mount_all());
    open_standard_streams();
    log::start(Level::INFO);
    log::abort_on_panic();
    let served = mounted.and_then(|()| bring_up(init));
    match served {
        Ok(_server) => loop {
            std::thread::park();
        },
        Err(error) => {
            // The kernel panics when its first process ends, so the monitor sees that the VM failed.
            tracing::error!(%error, "the guest cannot be brought up");
            ExitCode::FAILURE
        }
    }
}

fn bring_up(init: Duration) -> Result<ttrpc::Server> {
    // Before any device can appear.
    let uevents = Uevents::start().map_err(AgentError::system("uevent socket"))?;
    // Before the driver that brings a partition's memory: memory that is online already keeps its zone.
    settings::apply_all();
    settings::allow_huge_pages();
    settings::raise_limits();
    modules::load_listed(Path::new(modules::LIST));
    if let Err(error) = settings::bring_up_loopback() {
        tracing::warn!(%error, "cannot bring up the loopback interface");
    }
    // No partition has memory yet.
    let found = MemoryInfo::default().node(Node::BASE)?;
    let hierarchy = Hierarchy::new(cgroup::ROOT);
    hierarchy.confine_agent(base_memory::reserve(found.free_bytes) / 2)?;

    let reaper = Reaper::start().map_err(AgentError::system("clone"))?;
    let images = Arc::new(Images::default());
    let launcher = Launcher::new("/proc/self/exe", Arc::clone(&reaper));
    let base = Arc::new(BaseMemory::new(found.free_bytes));
    let elastic = ElasticBase::new(
        MemoryInfo::default(),
        hierarchy.clone(),
        Arc::clone(&base),
        Arc::clone(&uevents),
        found.total_bytes,
    );
    let network = Arc::new(Network::of_this_process()?);
    let instances = Instances::new(
        Arc::clone(&images),
        hierarchy,
        launcher,
        Arc::clone(&network),
        MemoryInfo::default(),
        base,
        reaper,
    );
    instances.divide_base(0, 0)?;
    let instances = Arc::new(instances);
    let service = Arc::new(Service {
        uevents,
        sysfs: Sysfs::default(),
        memory: MemoryInfo::default(),
        elastic,
        images,
        network,
        instances: Arc::clone(&instances),
        migrations: LazyLock::new(Migrations::start),
    });
    let server = server::start(Arc::clone(&service)).map_err(|error| AgentError::Container(error.to_string()))?;
    stream_server::start(Arc::clone(&instances)).map_err(AgentError::system("listening for streams"))?;
    match vsock::signal_ready(init) {
        Ok(()) => tracing::info!("ready"),
        Err(error) => tracing::error!(%error, "cannot tell the host that the guest is ready"),
    }
    // After readiness, which does not depend on these.
    instances.prepare();
    if !VmStat::read().is_ok_and(|counters| counters.migrated_for_unplug().is_some())
        && let Err(error) = &*service.migrations
    {
        tracing::warn!(%error, "migrations are not counted");
    }
    Ok(server)
}

/// A kernel without a console starts `/init` with closed standard descriptors, and the next files opened would take
/// their numbers.
fn open_standard_streams() {
    for number in 0..3 {
        if !sys::is_open(number) {
            match open("/dev/null", OFlag::O_RDWR, Mode::empty()) {
                // Takes the lowest free number, which is this descriptor's.
                Ok(null) => std::mem::forget(null),
                Err(_) => return,
            }
        }
    }
}
