//! Networks of instances' own: each has a namespace with one interface, whose other end is in the VM's namespace.
//!
//! ```text
//! instance: eth0 ──(veth)── VM: own<N> ── routes ── VM's interfaces ── hosts
//! ```
//!
//! The VM's kernel passes packets on, and answers for the instance's addresses on the VM's interfaces (proxy ARP, NDP), so that hosts there
//! reach an instance as they reach the VM. Its gateway is the VM, at the same two link-local addresses in each namespace. Nothing
//! translates addresses. What the instance may send to is checked at its sockets ([`filter`](super::filter)).

use std::fs::File;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;

use bellows_protocol::network::{InterfaceAddress, OwnNetworkSetup};
use nix::sched::{CloneFlags, setns, unshare};

use super::links::Link;
use super::route::Routing;
use super::{Network, failed};
use crate::error::{AgentError, Result};
use crate::{files, settings};

/// The instance's interface.
const INSIDE: &str = "eth0";
/// Where the instance sends packets for others.
const GATEWAYS: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(169, 254, 1, 1)), IpAddr::V6(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1))];
/// Of the only default route.
const METRIC: u32 = 100;

/// The network of one instance, as long as its namespace is there.
#[derive(Debug)]
pub struct OwnNetwork {
    namespace: OwnedFd,
    /// The VM's end.
    index: u32,
    addresses: Vec<IpAddr>,
    /// The VM's interfaces that answer for its IPv6 addresses.
    answering: Vec<u32>,
}

impl OwnNetwork {
    /// Its namespace.
    pub fn namespace(&self) -> BorrowedFd<'_> {
        self.namespace.as_fd()
    }
}

impl Network {
    /// Makes a network of an instance's own.
    ///
    /// # Errors
    /// [`AgentError::Interface`] names the step; [`AgentError::InUse`] if somebody has one of the addresses; [`AgentError::System`],
    /// [`AgentError::Path`]. Nothing of it remains then.
    pub fn connect(&self, setup: &OwnNetworkSetup) -> Result<OwnNetwork> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        // While interfaces are set up nothing is connected to them.
        let resolver = self.resolver.lock();
        if let Some(address) = setup.addresses.iter().find(|address| resolver.is_own(**address)) {
            return Err(AgentError::InUse { what: format!("the address {address}"), by: "the VM".into() });
        }
        let namespace = new_namespace().map_err(AgentError::system("network namespace"))?;
        let routing = Routing::open().map_err(AgentError::system("netlink socket"))?;
        let uplinks: Vec<Link> = Link::all(&self.links)?.into_iter().filter(is_uplink).collect();
        let name = format!("own{}", NUMBER.fetch_add(1, Ordering::Relaxed));
        let mtu = uplinks.iter().filter_map(|link| mtu(&self.links.join(&link.name))).min();
        let index = routing
            .add_pair(&name, mtu, namespace.as_fd(), INSIDE, setup.hardware_address)
            .and_then(|()| nix::net::if_::if_nametoindex(&*name).map_err(Into::into))
            .map_err(failed(&name, "make it"))?;
        let answering = uplinks.iter().map(|link| link.index).collect();
        let own = OwnNetwork { namespace, index, addresses: setup.addresses.clone(), answering };
        if let Err(error) = pass_on(&name, &uplinks).and_then(|()| outside(&routing, &name, &own)) {
            // Where an address is another's, so is what answers for it.
            let _ = routing.remove_link(index);
            return Err(error);
        }
        if let Err(error) = answer(&routing, &name, &own).and_then(|()| inside(&own)) {
            self.disconnect(&own);
            return Err(error);
        }
        Ok(own)
    }

    /// Takes a network apart: its addresses are free then. Again is fine.
    pub fn disconnect(&self, own: &OwnNetwork) {
        let routing = match Routing::open() {
            Ok(routing) => routing,
            Err(error) => {
                tracing::warn!(%error, "an instance's network stays until its namespace goes");
                return;
            }
        };
        for address in own.addresses.iter().filter(|address| address.is_ipv6()) {
            for &link in &own.answering {
                // It may not have been said.
                let _ = routing.answer_for(link, *address, false);
            }
        }
        // Otherwise it goes with the namespace, later.
        let _ = routing.remove_link(own.index);
    }
}

/// A network namespace with a loopback that is up.
fn new_namespace() -> io::Result<OwnedFd> {
    on_a_thread(|| {
        unshare(CloneFlags::CLONE_NEWNET)?;
        settings::bring_up_loopback()?;
        Ok(File::open("/proc/thread-self/ns/net")?.into())
    })
}

fn on_a_thread<T: Send>(work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    thread::scope(|scope| {
        let thread = thread::Builder::new().name("setns".into()).spawn_scoped(scope, work)?;
        thread.join().unwrap_or_else(|_| Err(io::Error::other("the thread panicked")))
    })
}

/// Whether hosts may be behind it.
fn is_uplink(link: &Link) -> bool {
    link.name != "lo" && !link.name.starts_with("own")
}

fn mtu(link: &Path) -> Option<u32> {
    files::read(link.join("mtu")).ok()?.parse().ok()
}

/// Has the VM's kernel pass packets on between its interfaces, and answer on `uplinks` for hosts behind others.
fn pass_on(name: &str, uplinks: &[Link]) -> Result<()> {
    let set = |path: &str, value: &str| match files::write(format!("/proc/sys/net/{path}"), value) {
        // A kernel without IPv6.
        Err(AgentError::Path { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    };
    for Link { name, .. } in uplinks {
        // A kernel that passes packets on listens to routers only if it is told to.
        let accepts = files::read(format!("/proc/sys/net/ipv6/conf/{name}/accept_ra"));
        if accepts.is_ok_and(|text| text == "1") {
            set(&format!("ipv6/conf/{name}/accept_ra"), "2")?;
        }
        set(&format!("ipv4/conf/{name}/proxy_arp"), "1")?;
        set(&format!("ipv6/conf/{name}/proxy_ndp"), "1")?;
    }
    // What comes from an instance has its address.
    set(&format!("ipv4/conf/{name}/rp_filter"), "1")?;
    set("ipv4/ip_forward", "1")?;
    set("ipv6/conf/all/forwarding", "1")
}

/// The VM's end.
fn outside(routing: &Routing, name: &str, own: &OwnNetwork) -> Result<()> {
    let index = own.index;
    for gateway in gateways(own) {
        let address = alone(gateway)?;
        routing.add_address(index, address).map_err(failed(name, format!("give it the address {address}")))?;
    }
    routing.set_up(index, true).map_err(failed(name, "set it up"))?;
    for &address in &own.addresses {
        routing.add_host_route(index, address).map_err(|error| match error.kind() {
            io::ErrorKind::AlreadyExists => {
                AgentError::InUse { what: format!("the address {address}"), by: "another instance".into() }
            }
            _ => failed(name, format!("route to {address}"))(error),
        })?;
    }
    Ok(())
}

/// Has the VM's interfaces answer for its IPv6 addresses; for IPv4 they answer wherever there is a route.
fn answer(routing: &Routing, name: &str, own: &OwnNetwork) -> Result<()> {
    for &address in own.addresses.iter().filter(|address| address.is_ipv6()) {
        for &link in &own.answering {
            let answers = routing.answer_for(link, address, true);
            answers.map_err(failed(name, format!("have the VM answer for {address}")))?;
        }
    }
    Ok(())
}

/// The instance's end.
fn inside(own: &OwnNetwork) -> Result<()> {
    let routing = on_a_thread(|| {
        setns(own.namespace(), CloneFlags::CLONE_NEWNET)?;
        Ok((Routing::open()?, nix::net::if_::if_nametoindex(INSIDE)?))
    });
    let (routing, index) = routing.map_err(failed(INSIDE, "find it"))?;
    for &address in &own.addresses {
        let address = alone(address)?;
        routing.add_address(index, address).map_err(failed(INSIDE, format!("give it the address {address}")))?;
    }
    routing.set_up(index, true).map_err(failed(INSIDE, "set it up"))?;
    for gateway in gateways(own) {
        let route = routing.set_default_route(index, gateway, METRIC, true);
        route.map_err(failed(INSIDE, format!("route through {gateway}")))?;
    }
    Ok(())
}

/// Those of the families that it has addresses of.
fn gateways(own: &OwnNetwork) -> impl Iterator<Item = IpAddr> {
    let has = |family: &IpAddr| own.addresses.iter().any(|address| address.is_ipv4() == family.is_ipv4());
    GATEWAYS.into_iter().filter(has)
}

/// In a network of its own.
fn alone(address: IpAddr) -> Result<InterfaceAddress> {
    Ok(InterfaceAddress::new(address, if address.is_ipv4() { 32 } else { 128 })?)
}
