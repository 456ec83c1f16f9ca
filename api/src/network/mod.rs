//! A network for the VM of a run: without any rights by `passt`, a program of Debian's, which translates between the VM's packets and sockets
//! of the host; or with root's one of CNI.
//!
//! From the inside out: [`options`] and [`ports`] are what a user asks for, `host` is what the host has, `plan` the addresses and passt's command
//! line, all plain data; `probe` asks passt whether it is there; `passt` is its process. `cni` has its own parts.

mod cni;
mod host;
pub mod options;
mod passt;
mod plan;
pub mod ports;
mod probe;

use std::fs;
use std::time::Duration;

use bellows_vmm::{MacAddress, NetConfig, StreamSocket};

use self::cni::Cni;
pub(crate) use self::cni::{KEEPER, KeeperArgs, keep};
use self::host::{NameServers, Routes};
use self::options::{NetMode, NetworkArgs};
use self::passt::Passt;
use self::plan::Plan;
use self::ports::Published;
use crate::error::{CliError, io_error};

/// Name of the interface on the host and in the guest.
const INTERFACE: &str = "eth0";

/// A program that has a part in the VM's network, for as long as the VM lives.
pub(crate) enum Helper {
    Passt(Passt),
    Cni(Cni),
}

impl Helper {
    /// The number of its process.
    pub(crate) fn process_id(&self) -> u32 {
        match self {
            Self::Passt(passt) => passt.process_id(),
            Self::Cni(cni) => cni.process_id(),
        }
    }

    /// Has a thread pass on what it says from here on, if nobody else does.
    ///
    /// # Errors
    /// The system has no thread.
    pub(crate) fn watch(&mut self) -> Result<(), CliError> {
        match self {
            Self::Passt(passt) => passt.watch(),
            Self::Cni(_) => Ok(()),
        }
    }

    /// Has programs that this process starts from here on inherit what it ends with, and the VM's end of the network.
    ///
    /// # Errors
    /// The system's.
    pub(crate) fn bequeath(&self) -> Result<(), CliError> {
        match self {
            Self::Passt(passt) => passt.bequeath(),
            Self::Cni(cni) => cni.bequeath(),
        }
    }

    /// Leaves it to the programs that have inherited that: it ends with the last of them.
    pub(crate) fn leave(self) {
        match self {
            Self::Passt(passt) => passt.leave(),
            Self::Cni(cni) => cni.leave(),
        }
    }
}

/// Starts the program that the network of a run takes, and waits until it is ready, at most `limit`: the program, and the VM's
/// interface at it. The interface is for a VM that boots while the program is kept.
///
/// # Errors
/// Those of the program, or it is missing.
pub(crate) fn start(args: &NetworkArgs, limit: Duration) -> Result<Option<(Helper, NetConfig)>, CliError> {
    match args.mode() {
        NetMode::None | NetMode::Vm => Ok(None),
        NetMode::Passt => {
            let (passt, interface) = start_passt(&args.publish, args.host_loopback, limit)?;
            Ok(Some((Helper::Passt(passt), interface)))
        }
        NetMode::Cni(name) => {
            let (cni, interface) = Cni::start(&name, &args.publish, limit)?;
            Ok(Some((Helper::Cni(cni), interface)))
        }
    }
}

/// Starts passt with these ports, and waits until it is ready, at most `limit`: the program, and the VM's interface at it.
///
/// # Errors
/// Those of passt, or it is missing.
pub(crate) fn publish(ports: &[Published], limit: Duration) -> Result<(Helper, NetConfig), CliError> {
    let (passt, interface) = start_passt(ports, false, limit)?;
    Ok((Helper::Passt(passt), interface))
}

/// Starts passt and waits until it answers, at most `limit`: its process, and the VM's interface at it. The interface is for a VM that boots
/// while the process is kept.
///
/// # Errors
/// The host has no passt or no default route, or passt refuses, for example because a port is in use.
fn start_passt(published: &[Published], loopback: bool, limit: Duration) -> Result<(Passt, NetConfig), CliError> {
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
