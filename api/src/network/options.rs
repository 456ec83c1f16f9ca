//! What a command line says of the network of a run.

use std::fmt;
use std::str::FromStr;

use clap::Args;

use super::ports::Published;

/// The network of a run.
#[derive(Args, Debug)]
pub struct NetworkArgs {
    /// What the command is connected to: none; passt (a network that needs no rights, by the program of that name); cni=NAME (a
    /// network of CNI that this host has, which needs root); or vm (the network interfaces that the VM has from --config) [default: passt with --net,
    /// --publish or --host-loopback, else none]
    #[arg(long = "network", value_name = "MODE")]
    pub chosen: Option<NetMode>,
    /// The same as --network passt
    #[arg(long, conflicts_with = "chosen")]
    pub net: bool,
    /// Pass a port of this host on to one of the command's; may be given several times. ADDR is the host's address that it is open at
    /// [default: all]
    #[arg(short, long, value_name = "[ADDR:]HOST:GUEST[/tcp|/udp]")]
    pub publish: Vec<Published>,
    /// Let the command reach what listens on this host's loopback, at its gateway's address
    #[arg(long)]
    pub host_loopback: bool,
}

/// What a command is connected to.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum NetMode {
    /// No network.
    None,
    /// By passt, which needs no rights.
    Passt,
    /// The network of CNI that has this name on the host.
    Cni(String),
    /// The VM's own.
    Vm,
}

impl FromStr for NetMode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "none" => Ok(Self::None),
            "passt" => Ok(Self::Passt),
            "vm" => Ok(Self::Vm),
            _ => match text.strip_prefix("cni=") {
                Some(name) if !name.is_empty() => Ok(Self::Cni(name.to_owned())),
                _ => Err("expected none, passt, vm, or cni= and the name of a network of CNI".into()),
            },
        }
    }
}

impl NetworkArgs {
    /// What the command is connected to.
    #[must_use]
    pub fn mode(&self) -> NetMode {
        self.chosen.clone().unwrap_or(if self.needs_passt() { NetMode::Passt } else { NetMode::None })
    }

    fn needs_passt(&self) -> bool {
        self.net || self.host_loopback || !self.publish.is_empty()
    }

    /// Refuses options that exclude each other, before `image`.
    ///
    /// # Errors
    /// Why, with what was expected.
    pub(crate) fn check(&self, image: Option<&str>) -> Result<(), String> {
        match (&self.chosen, image) {
            (Some(mode @ (NetMode::None | NetMode::Vm)), _) if self.needs_passt() => {
                Err(format!("--publish and --host-loopback need the network passt: expected no other, found {mode}"))
            }
            (Some(mode @ NetMode::Cni(_)), _) if self.host_loopback => {
                Err(format!("--host-loopback needs the network passt: expected no other, found {mode}"))
            }
            (None, Some(mode)) if self.net && mode.parse::<NetMode>().is_ok() => {
                Err(format!("`{mode}` after --net would be IMAGE: write --network {mode}"))
            }
            _ => Ok(()),
        }
    }
}

impl fmt::Display for NetMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("none"),
            Self::Passt => f.write_str("passt"),
            Self::Cni(name) => write!(f, "cni={name}"),
            Self::Vm => f.write_str("vm"),
        }
    }
}
