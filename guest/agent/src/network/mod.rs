//! The VM's network interfaces: the monitor says what each gets, and the kernel is told over rtnetlink. Instances that share the VM's
//! network are told of it by files.

pub mod filter;
pub mod links;
mod own;
mod resolver;
mod route;

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use bellows_protocol::network::InterfaceSetup;

use self::links::Link;
pub use self::own::OwnNetwork;
pub use self::resolver::Resolver;
use self::route::Routing;
use crate::error::{AgentError, Result};
use crate::files;
use crate::sync::Mutex;

/// Metric of the first interface's default routes; those of the others follow, so the first one's are taken while it is up.
const FIRST_METRIC: u32 = 100;

/// The VM's network.
#[derive(Debug)]
pub struct Network {
    /// Its network namespace, which is the agent's.
    namespace: OwnedFd,
    /// Where its interfaces are listed.
    links: PathBuf,
    /// What instances are told of it. Held while interfaces are set up.
    resolver: Mutex<Resolver>,
}

impl Network {
    /// The network of this process's namespace.
    ///
    /// # Errors
    /// [`AgentError::Path`].
    pub fn of_this_process() -> Result<Self> {
        let path = "/proc/self/ns/net";
        let namespace = File::open(path).map_err(AgentError::path("open", path))?.into();
        Ok(Self { namespace, links: links::FOLDER.into(), resolver: Mutex::default() })
    }

    /// Its namespace.
    pub fn namespace(&self) -> BorrowedFd<'_> {
        self.namespace.as_fd()
    }

    /// What instances that share it are told.
    pub fn resolver(&self) -> Resolver {
        self.resolver.lock().clone()
    }

    /// Sets interfaces up. Those that are not named stay as they are. After an error another call begins anew.
    ///
    /// # Errors
    /// [`AgentError::Interface`] names the interface; [`AgentError::Path`], [`AgentError::System`].
    pub fn configure(&self, setups: &[InterfaceSetup]) -> Result<()> {
        let mut resolver = self.resolver.lock();
        let routing = Routing::open().map_err(AgentError::system("netlink socket"))?;
        let links = Link::all(&self.links)?;
        configure(&routing, &links, setups)?;
        *resolver = Resolver::of(setups);
        Ok(())
    }
}

fn configure(routing: &Routing, links: &[Link], setups: &[InterfaceSetup]) -> Result<()> {
    let found = setups.iter().map(|setup| find(links, setup)).collect::<Result<Vec<&Link>>>()?;
    let wanted: Vec<_> =
        found.iter().zip(setups).filter_map(|(link, setup)| Some((link.index, setup.name.clone()?))).collect();
    for (index, name) in links::renaming(links, &wanted) {
        let failed = failed(name.text(), "rename it");
        routing.set_up(index, false).and_then(|()| routing.rename(index, name.text())).map_err(failed)?;
    }
    for ((link, setup), metric) in found.into_iter().zip(setups).zip(FIRST_METRIC..) {
        let name = setup.name.as_ref().map_or(&*link.name, |name| name.as_str());
        set_up(routing, link.index, name, setup, metric)?;
    }
    Ok(())
}

fn find<'a>(links: &'a [Link], setup: &InterfaceSetup) -> Result<&'a Link> {
    let found = links.iter().find(|link| link.hardware_address == Some(setup.hardware_address));
    found.ok_or_else(|| {
        let [a, b, c, d, e, f] = setup.hardware_address;
        let address = format!("{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}");
        let name = setup.name.as_ref().map_or(&*address, |name| name.as_str());
        let missing = io::Error::new(io::ErrorKind::NotFound, "no driver has made one with this address");
        failed(name, format!("find one with the hardware address {address}"))(missing)
    })
}

fn set_up(routing: &Routing, index: u32, name: &str, setup: &InterfaceSetup, metric: u32) -> Result<()> {
    let InterfaceSetup { addresses, gateways, .. } = setup;
    if addresses.iter().map(|own| own.address()).chain(gateways.iter().copied()).any(|address| address.is_ipv6()) {
        // What a router says would stand beside what has been said here.
        match files::write(format!("/proc/sys/net/ipv6/conf/{name}/accept_ra"), "0") {
            Err(AgentError::Path { source, .. }) if source.kind() != io::ErrorKind::NotFound => {
                return Err(failed(name, "ignore routers on it")(source));
            }
            _ => {}
        }
    }
    routing.set_up(index, true).map_err(failed(name, "set it up"))?;
    for &address in addresses {
        routing.add_address(index, address).map_err(failed(name, format!("give it the address {address}")))?;
    }
    for &gateway in gateways {
        let on_link = !addresses.iter().any(|own| own.reaches(gateway));
        let route = routing.set_default_route(index, gateway, metric, on_link);
        route.map_err(failed(name, format!("route through {gateway}")))?;
    }
    Ok(())
}

fn failed(name: &str, action: impl Into<String>) -> impl FnOnce(io::Error) -> AgentError {
    let (name, action) = (name.to_owned(), action.into());
    move |source| AgentError::Interface { name, action, source }
}

#[cfg(test)]
#[path = "network_test.rs"]
mod tests;
