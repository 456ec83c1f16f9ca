//! `bench net`: what packets between a host and its guest cost, and what they do at a peer's network interface.

use std::fmt;
use std::fs;
use std::io;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::cost::Cost;

/// Address of the host at the guest's network, and of the guest.
pub const HOST: &str = "172.31.0.1";
/// The guest's.
pub const GUEST: &str = "172.31.0.2";
/// Bits that name the network.
pub const PREFIX: u8 = 24;

/// The guest takes commands at this port, one line each, and answers each with one (`bellows-net-init`).
pub const COMMANDS: u16 = 7000;
/// Datagrams to this port are counted, on either side.
pub const DATAGRAMS: u16 = 7001;
/// Datagrams to this port come back.
pub const ECHO: u16 = 7002;
/// What comes to this port is taken, and answered with its number of bytes, in 8 bytes, when it has ended.
pub const SINK: u16 = 7003;
/// This port takes a number of bytes, in 8 bytes, and gives as many.
pub const SOURCE: u16 = 7004;

/// Bytes of a datagram whose frame has 64, with those that Ethernet adds to it.
pub const SMALL: usize = 64 - 4 - 14 - 20 - 8;
/// Bytes that are written or read at once in a stream.
pub const LARGE: usize = 64 << 10;

/// A monitor, with what its guest's interface ends at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Side {
    /// Ours, at a TAP.
    Bellows,
    /// Ours, at a TAP that the host's kernel reads and writes in its place.
    BellowsVhost,
    /// Ours, at passt.
    BellowsPasst,
    /// The peer, at a TAP that it reads and writes itself.
    Qemu,
    /// The peer, at a TAP that the host's kernel reads and writes in its place.
    QemuVhost,
}

impl Side {
    /// All of them, in the order of a round.
    pub const ALL: [Self; 5] = [Self::Bellows, Self::Qemu, Self::BellowsVhost, Self::QemuVhost, Self::BellowsPasst];

    /// Whether the host's kernel reads and writes the TAP.
    #[must_use]
    pub const fn has_vhost(self) -> bool {
        matches!(self, Self::BellowsVhost | Self::QemuVhost)
    }

    /// Whether there is a TAP.
    #[must_use]
    pub const fn has_tap(self) -> bool {
        !matches!(self, Self::BellowsPasst)
    }
}

impl fmt::Display for Side {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(match self {
            Self::Bellows => "bellows",
            Self::BellowsVhost => "bellows, vhost",
            Self::BellowsPasst => "bellows, passt",
            Self::Qemu => "qemu",
            Self::QemuVhost => "qemu, vhost",
        })
    }
}

/// A kind of traffic.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Work {
    /// A small datagram to the guest and back, one after the other.
    RoundTrip,
    /// Small datagrams from the guest.
    SendSmall,
    /// Small datagrams to the guest.
    ReceiveSmall,
    /// A stream from the guest.
    SendLarge,
    /// A stream to the guest.
    ReceiveLarge,
}

impl Work {
    /// All of them, in the order of a round.
    pub const ALL: [Self; 5] =
        [Self::RoundTrip, Self::SendSmall, Self::ReceiveSmall, Self::SendLarge, Self::ReceiveLarge];

    /// Whether `side` can be asked to do it: through passt a guest's datagrams go to no port of this program's.
    #[must_use]
    pub const fn is_for(self, side: Side) -> bool {
        side.has_tap() || matches!(self, Self::RoundTrip | Self::SendLarge | Self::ReceiveLarge)
    }
}

impl fmt::Display for Work {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(match self {
            Self::RoundTrip => "round trip, 64 B",
            Self::SendSmall => "guest sends 64 B",
            Self::ReceiveSmall => "guest receives 64 B",
            Self::SendLarge => "guest sends 64 KiB",
            Self::ReceiveLarge => "guest receives 64 KiB",
        })
    }
}

/// A line of the program's output: one run of one kind of traffic.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    /// The side.
    pub side: Side,
    /// The traffic.
    pub work: Work,
    /// Packets that have come: datagrams, or 64 KiB of a stream.
    pub packets: u64,
    /// Packets that were sent and have not come.
    pub lost: u64,
    /// Bytes of the packets' payload.
    pub bytes: u64,
    /// How long it took.
    pub time: Duration,
    /// Its cost, if time is counted.
    pub cost: Option<Cost>,
    /// What the guest's processors did.
    pub events: Events,
}

/// Events of all running VMs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Events {
    /// Exits of vCPUs.
    pub exits: u64,
    /// Interrupts that a guest got.
    pub interrupts: u64,
}

impl Events {
    /// Those so far.
    ///
    /// # Errors
    /// KVM's accounts cannot be read; that takes root and debugfs.
    pub fn so_far() -> io::Result<Self> {
        let read = |name: &str| {
            let path = format!("/sys/kernel/debug/kvm/{name}");
            let text =
                fs::read_to_string(&path).map_err(|error| io::Error::new(error.kind(), format!("{path}: {error}")))?;
            text.trim().parse().map_err(|error| io::Error::other(format!("{path} is {text:?}: {error}")))
        };
        Ok(Self { exits: read("exits")?, interrupts: read("irq_injections")? })
    }

    /// Those since `earlier`.
    #[must_use]
    pub const fn since(self, earlier: Self) -> Self {
        Self {
            exits: self.exits.saturating_sub(earlier.exits),
            interrupts: self.interrupts.saturating_sub(earlier.interrupts),
        }
    }
}
