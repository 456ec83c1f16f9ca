//! What a command line says of the network of a run.

use std::fmt;

use clap::{Args, ValueEnum};

use super::ports::Published;

/// The network of a run.
#[derive(Args, Debug)]
pub struct NetworkArgs {
    /// What the command is connected to: none; passt (a network that needs no rights, by the program of that name); or vm (the network
    /// interfaces that the VM has from --config) [default: passt with --net, --publish or --host-loopback, else none]
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
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub enum NetMode {
    /// No network
    None,
    /// By passt, which needs no rights
    Passt,
    /// The VM's own
    Vm,
}

impl NetworkArgs {
    /// What the command is connected to.
    #[must_use]
    pub fn mode(&self) -> NetMode {
        self.chosen.unwrap_or(if self.needs_passt() { NetMode::Passt } else { NetMode::None })
    }

    fn needs_passt(&self) -> bool {
        self.net || self.host_loopback || !self.publish.is_empty()
    }

    /// Refuses options that exclude each other, before `image`.
    ///
    /// # Errors
    /// Why, with what was expected.
    pub(crate) fn check(&self, image: Option<&str>) -> Result<(), String> {
        match (self.chosen, image) {
            (Some(mode @ (NetMode::None | NetMode::Vm)), _) if self.needs_passt() => {
                Err(format!("--publish and --host-loopback need the network passt: expected no other, found {mode}"))
            }
            (None, Some(mode @ ("none" | "passt" | "vm"))) if self.net => {
                Err(format!("`{mode}` after --net would be IMAGE: write --network {mode}"))
            }
            _ => Ok(()),
        }
    }
}

impl fmt::Display for NetMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "none",
            Self::Passt => "passt",
            Self::Vm => "vm",
        })
    }
}
