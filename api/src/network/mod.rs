//! A network for a VM without any rights: `passt`, a program of Debian's, translates between the VM's packets and sockets of the host.
//!
//! From the inside out: [`options`] and [`ports`] are what a user asks for, `host` is what the host has, `plan` the addresses and passt's command
//! line, all plain data; `probe` asks passt whether it is there; `passt` is its process.

mod host;
pub mod options;
mod passt;
mod plan;
pub mod ports;
mod probe;

use std::fs;
use std::time::Duration;

use bellows_vmm::{MacAddress, NetConfig, StreamSocket};

use self::host::{NameServers, Routes};
pub(crate) use self::passt::Passt;
use self::plan::Plan;
use self::ports::Published;
use crate::error::{CliError, io_error};

/// Name of the interface on the host and in the guest.
const INTERFACE: &str = "eth0";

/// Starts passt and waits until it answers, at most `limit`: its process, and the VM's interface at it. The interface is for a VM that boots
/// while the process is kept.
///
/// # Errors
/// The host has no passt or no default route, or passt refuses, for example because a port is in use.
pub(crate) fn start(published: &[Published], loopback: bool, limit: Duration) -> Result<(Passt, NetConfig), CliError> {
    let read = |path| fs::read_to_string(path).map_err(io_error("read", path));
    // Without IPv6 the kernel has no such file.
    let routes = Routes::parse(&read("/proc/net/route")?, &read("/proc/net/ipv6_route").unwrap_or_default());
    let name_servers = NameServers::parse(&read("/etc/resolv.conf").unwrap_or_default());
    let plan = Plan::new(routes, &name_servers, published.to_vec(), loopback).ok_or(CliError::NoRoute)?;
    let passt = Passt::start(&plan, limit)?;
    let mut interface = NetConfig::new(INTERFACE, StreamSocket::Fd(passt.descriptor()));
    interface.mac = Some(guest_mac());
    interface.mtu = Some(plan::MTU);
    interface.guest = Some(plan.guest()?);
    Ok((passt, interface))
}

/// The guest's hardware address. Every VM has a passt of its own, so all may have the same.
fn guest_mac() -> MacAddress {
    MacAddress::derived("passt", INTERFACE)
}
