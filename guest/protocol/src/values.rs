//! Values that cross the wire as strings and numbers: each becomes a type of its own once, where it arrives.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use thiserror::Error;

/// Largest number of a user or group, which is Docker's: larger ones are negative to programs that count in `int`, and the
/// largest that 32 bits hold means "no change" to `setuid(2)`, so a program that should run under it would stay root.
pub const MAX_ACCOUNT: u32 = i32::MAX as u32;
/// Longest instance or image identifier.
pub const MAX_IDENTIFIER: usize = 64;
/// Longest serial number of a block device: `VIRTIO_BLK_ID_BYTES` (VIRTIO 1.2 section 5.2.6).
pub const MAX_SERIAL: usize = 20;
/// Most layers of one image.
pub const MAX_LAYERS: usize = 128;
/// Most partitions' nodes: node numbers are below this.
pub const MAX_NODES: u32 = 1024;
/// Most processes of one instance that were started beside its first and have not been removed.
pub const MAX_PROCESSES: usize = 256;
/// Most PCI functions in one request.
pub const MAX_DEVICES: usize = 1024;
/// Longest name of an interface: `IFNAMSIZ` without its NUL.
pub const MAX_INTERFACE_NAME: usize = 15;
/// Longest name of a domain (RFC 1035, section 2.3.4).
pub const MAX_DOMAIN: usize = 253;
/// Most bytes in an instance's arguments and environment together.
pub const MAX_ARGUMENT_BYTES: usize = 1 << 20;

/// Least that an instance's limit on base memory can be, in bytes: what the kernel needs to start a small program.
pub const MIN_BASE_LIMIT: u64 = 4 << 20;

/// Why a value is not acceptable.
#[derive(Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum ValueError {
    /// Not `[a-z0-9-]{1,64}`, or it starts with `-`.
    #[error("{0:?} is not an identifier: expected 1 to {MAX_IDENTIFIER} of a-z, 0-9 and -, not starting with -")]
    Identifier(String),
    /// Not `dddd:bb:dd.f` in hexadecimal.
    #[error("{0:?} is not a PCI address: expected domain:bus:device.function like 0000:01:04.0")]
    PciAddress(String),
    /// Not `[A-Za-z0-9._-]{1,20}`, or it starts with `.`.
    #[error(
        "{0:?} is not a serial number: expected 1 to {MAX_SERIAL} of A-Z, a-z, 0-9, ., _ and -, not starting with ."
    )]
    Serial(String),
    /// The node number is too large.
    #[error("node {0} is not below {MAX_NODES}")]
    Node(u32),
    /// Not `NAME=value`, or it holds a NUL.
    #[error("{0:?} is not an environment variable: expected NAME=value without NUL")]
    Environment(String),
    /// An argument holds a NUL.
    #[error("argument {0:?} holds a NUL")]
    Argument(String),
    /// An image of nothing.
    #[error("an image has at least one layer")]
    NoLayers,
    /// A zygote cannot be a fork of another.
    #[error("a zygote cannot be a fork of zygote {0}")]
    ForkedZygote(InstanceId),
    /// Modules without the interpreter that would import them.
    #[error("{0} modules to import, but the zygote is not Python's")]
    Modules(usize),
    /// Nothing to run.
    #[error("no arguments: expected a command")]
    NoArguments,
    /// Not a rule of what an instance may send to.
    #[error(
        "{0:?} is not an egress rule: expected CIDR[:PORT[/tcp|/udp]] like 10.0.0.0/8, 10.0.0.1:53/udp or [fd00::/64]:443"
    )]
    Egress(String),
    /// A burst that limits of instances do not have.
    #[error("a limit of an instance's network has a one-time burst of {0}: expected none")]
    OneTimeBurst(u64),
    /// Half of a limit.
    #[error("a limit of {per_second} per second with a burst of {burst}: expected two positive numbers, or none")]
    PacketRate {
        /// The rate.
        per_second: u64,
        /// The burst.
        burst: u64,
    },
    /// Too much of something.
    #[error("{count} {what}: more than {limit}")]
    TooMany {
        /// What there is too much of.
        what: &'static str,
        /// How many there are.
        count: usize,
        /// How many there may be.
        limit: usize,
    },
    /// Not an absolute path without NUL.
    #[error("{0:?} is not an absolute path")]
    Path(String),
    /// Not a place for a volume.
    #[error(
        "{0:?} is not a place for a volume: expected an absolute path without `.`, `..` and `//`, not the root, and not in /proc, /sys or /dev"
    )]
    VolumePath(String),
    /// Two volumes in one place.
    #[error("the volume at {0:?} is there twice")]
    SameVolume(String),
    /// Not `user[:group]`.
    #[error("{0:?} is not a user: expected a user or user:group, each by name or number")]
    User(String),
    /// The number of a user or group is out of range.
    #[error("no user or group has the number {0}: expected 0 to {MAX_ACCOUNT}")]
    AccountNumber(String),
    /// Not `ADDRESS/BITS`, or no interface can have it.
    #[error("{0:?} is not the address of an interface: expected one like 172.16.0.2/30 or fd00::2/64")]
    InterfaceAddress(String),
    /// Not an IP address.
    #[error("{0:?} is not an IP address")]
    IpAddress(String),
    /// An interface could not send to it.
    #[error("the gateway {0} is in no network of the interface's addresses")]
    Gateway(IpAddr),
    /// Not the address of a name server.
    #[error("{0:?} is not the address of a name server: expected one of a host, not a link-local one")]
    NameServer(String),
    /// Not `[A-Za-z0-9_-]{1,15}`, or the kernel uses it otherwise.
    #[error(
        "{0:?} is not the name of an interface: expected 1 to {MAX_INTERFACE_NAME} of A-Z, a-z, 0-9, _ and -, not lo, all or default"
    )]
    InterfaceName(String),
    /// Not a domain's name.
    #[error(
        "{0:?} is not a domain: expected labels of A-Z, a-z, 0-9, _ and - with dots between them, at most {MAX_DOMAIN}"
    )]
    SearchDomain(String),
    /// No instance can have it as its own, or it is there twice.
    #[error("{0} cannot be an instance's own address: expected one of a host, not a link-local one, and not twice")]
    OwnAddress(IpAddr),
    /// A network without an address.
    #[error("a network of its own without an address: expected at least one")]
    NoAddress,
    /// A hardware address has six bytes.
    #[error("a hardware address of {0} bytes: expected 6")]
    HardwareAddress(usize),
    /// Two interfaces have one hardware address, or are to have one name.
    #[error("the network interface {0:?} is there twice")]
    SameInterface(String),
    /// Not a size that a terminal can have.
    #[error("a terminal cannot have {columns} columns and {rows} rows: {} at most", u16::MAX)]
    TerminalSize {
        /// Characters in a line.
        columns: u32,
        /// Lines.
        rows: u32,
    },
}

/// Bits of an address of its family.
pub(crate) const fn bits(address: IpAddr) -> u8 {
    match address {
        IpAddr::V4(_) => 32,
        IpAddr::V6(_) => 128,
    }
}

/// How an offending value appears in a message: not whole when it is long.
pub(crate) fn excerpt(text: &str) -> String {
    text.chars().take(80).collect()
}

fn is_interface_name(text: &str) -> bool {
    (1..=MAX_INTERFACE_NAME).contains(&text.len())
        // The others are folders of all interfaces' settings, in /proc/sys/net.
        && !["lo", "all", "default"].contains(&text)
        && text.bytes().all(is_name_byte)
}

fn is_domain(text: &str) -> bool {
    let labels = text.strip_suffix('.').unwrap_or(text);
    let is_label = |label: &str| (1..=63).contains(&label.len()) && label.bytes().all(is_name_byte);
    text.len() <= MAX_DOMAIN && labels.split('.').all(is_label)
}

fn is_name_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-')
}

macro_rules! text_value {
    ($(#[$doc:meta])* $name:ident, $variant:ident, $check:expr) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(String);

        impl $name {
            /// The text as it came.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = ValueError;

            fn from_str(text: &str) -> Result<Self, ValueError> {
                let check: fn(&str) -> bool = $check;
                if check(text) { Ok(Self(text.to_owned())) } else { Err(ValueError::$variant(excerpt(text))) }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str(&self.0)
            }
        }
    };
}

fn is_identifier(text: &str) -> bool {
    (1..=MAX_IDENTIFIER).contains(&text.len())
        && !text.starts_with('-')
        && text.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-'))
}

fn is_serial(text: &str) -> bool {
    (1..=MAX_SERIAL).contains(&text.len())
        && !text.starts_with('.')
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-'))
}

fn is_volume_path(text: &str) -> bool {
    let Some(below) = text.strip_prefix('/') else { return false };
    let is_name = |name: &str| (1..=255).contains(&name.len()) && !matches!(name, "." | "..") && !name.contains('\0');
    let kernels = below.split('/').next().is_some_and(|first| matches!(first, "proc" | "sys" | "dev"));
    text.len() < 4096 && !kernels && below.split('/').all(is_name)
}

fn is_pci_address(text: &str) -> bool {
    let bytes = text.as_bytes();
    let hex = |range: std::ops::Range<usize>| bytes[range].iter().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    bytes.len() == 12
        && (bytes[4], bytes[7], bytes[10]) == (b':', b':', b'.')
        && hex(0..4)
        && hex(5..7)
        && hex(8..10)
        && u8::from_str_radix(&text[8..10], 16).is_ok_and(|device| device < 32)
        && matches!(bytes[11], b'0'..=b'7')
}

text_value!(
    /// Names an instance: `[a-z0-9-]{1,64}`, safe as a file name, a cgroup name and a host name.
    InstanceId, Identifier, is_identifier
);
text_value!(
    /// Names a process within an instance, under the same rule.
    ProcessId, Identifier, is_identifier
);

text_value!(
    /// Names a network interface in the guest: `[A-Za-z0-9_-]{1,15}`, and none of the names that the kernel has a use for.
    InterfaceName, InterfaceName, is_interface_name
);
text_value!(
    /// A domain that names are looked for in.
    SearchDomain, SearchDomain, is_domain
);

impl ProcessId {
    /// The name of an instance's first process, which no other has.
    pub fn init() -> Self {
        Self("init".into())
    }
}

text_value!(
    /// Names an image within a VM, under the same rule as an instance.
    ImageId, Identifier, is_identifier
);
text_value!(
    /// Where an instance finds a volume: an absolute path without `.`, `..` and `//`, below the root, and not in `/proc`, `/sys` or `/dev`.
    VolumePath, VolumePath, is_volume_path
);
text_value!(
    /// Serial number of a block device: `[A-Za-z0-9._-]{1,20}`, safe as a file name and in mount options.
    Serial, Serial, is_serial
);
text_value!(
    /// A PCI function as sysfs names it: `0000:01:04.0`, in lower case.
    PciAddress, PciAddress, is_pci_address
);

/// A NUMA node of the guest; 0 is base memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Node(u32);

impl Node {
    /// The node of base memory.
    pub const BASE: Self = Self(0);

    /// Its number.
    pub fn number(self) -> u32 {
        self.0
    }

    /// Whether it is a partition's node.
    pub fn is_partition(self) -> bool {
        self != Self::BASE
    }
}

impl TryFrom<u32> for Node {
    type Error = ValueError;

    fn try_from(number: u32) -> Result<Self, ValueError> {
        if number < MAX_NODES { Ok(Self(number)) } else { Err(ValueError::Node(number)) }
    }
}

impl fmt::Display for Node {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(formatter)
    }
}

/// Size of a terminal in characters; zero where it is not known.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TerminalSize {
    /// Characters in a line.
    pub columns: u16,
    /// Lines.
    pub rows: u16,
}

impl TerminalSize {
    /// The size that a message gives.
    ///
    /// # Errors
    /// [`ValueError::TerminalSize`].
    pub fn new(columns: u32, rows: u32) -> Result<Self, ValueError> {
        match (columns.try_into(), rows.try_into()) {
            (Ok(columns), Ok(rows)) => Ok(Self { columns, rows }),
            _ => Err(ValueError::TerminalSize { columns, rows }),
        }
    }
}

/// Parses every one of `texts`, of which there may be at most `limit`.
///
/// # Errors
/// The first value that is not acceptable, or [`ValueError::TooMany`].
pub fn parse_all<T: FromStr<Err = ValueError>>(
    texts: &[String],
    what: &'static str,
    limit: usize,
) -> Result<Vec<T>, ValueError> {
    if texts.len() > limit {
        return Err(ValueError::TooMany { what, count: texts.len(), limit });
    }
    texts.iter().map(|text| text.parse()).collect()
}

/// Checks what an instance runs: arguments and environment fit an `execve`.
///
/// # Errors
/// [`ValueError::NoArguments`], [`ValueError::Argument`], [`ValueError::Environment`] or [`ValueError::TooMany`].
pub fn check_command(arguments: &[String], environment: &[String]) -> Result<(), ValueError> {
    if arguments.first().is_none_or(String::is_empty) {
        return Err(ValueError::NoArguments);
    }
    if let Some(argument) = arguments.iter().find(|argument| argument.contains('\0')) {
        return Err(ValueError::Argument(excerpt(argument)));
    }
    let well_formed = |variable: &&String| {
        !variable.contains('\0') && variable.split_once('=').is_some_and(|(name, _)| !name.is_empty())
    };
    if let Some(variable) = environment.iter().find(|variable| !well_formed(variable)) {
        return Err(ValueError::Environment(excerpt(variable)));
    }
    let count = arguments.iter().chain(environment).map(|text| text.len().saturating_add(1)).sum();
    if count > MAX_ARGUMENT_BYTES {
        return Err(ValueError::TooMany {
            what: "bytes of arguments and environment",
            count,
            limit: MAX_ARGUMENT_BYTES,
        });
    }
    Ok(())
}

/// Checks a working directory: absolute; empty means `/`.
///
/// # Errors
/// [`ValueError::Path`].
pub fn check_working_directory(path: &str) -> Result<&str, ValueError> {
    match path {
        "" => Ok("/"),
        path if path.starts_with('/') && !path.contains('\0') && path.len() < 4096 => Ok(path),
        path => Err(ValueError::Path(excerpt(path))),
    }
}

#[cfg(test)]
#[path = "values_test.rs"]
mod tests;
