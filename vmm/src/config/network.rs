//! Network interfaces in a configuration.

use std::collections::HashMap;
use std::os::fd::RawFd;
use std::path::PathBuf;

use bellows_devices::virtio::net::{MAX_QUEUE_PAIRS, MTUS, MacAddress, RateLimits};
use serde::{Deserialize, Serialize};

use super::{ConfigError, GuestNetwork, count, error};

/// Most network interfaces of a VM.
pub const MAX_NETWORK_INTERFACES: usize = 16;
/// Longest name of an interface.
const MAX_ID: usize = 64;

/// A network interface: of the guest's at one end, a TAP or a stream socket of the host's at the other.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct NetConfig {
    /// Its name on the host: 1 to 64 letters, digits, `-` and `_`.
    pub id: String,
    /// The host's end, as `tap` or `stream`.
    #[serde(flatten)]
    pub host: HostEnd,
    /// The guest's hardware address; left out, one that follows from `id` and the TAP's name or the socket's path. Name it where several
    /// hosts share a network, or a snapshot is to be restored at another end.
    #[serde(default)]
    pub mac: Option<MacAddress>,
    /// Bytes of the largest packet, without its link header, that the guest is told: 68 to 65535. It should be the TAP's.
    #[serde(default)]
    pub mtu: Option<u16>,
    /// Pairs of queues, so that as many of the guest's CPUs can send and receive without waiting for each other: 1 to 16, and no more
    /// than vCPUs. Left out, it is one, or as many as the TAP's descriptors. More than one take a TAP with several queues.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queue_pairs: Option<u16>,
    /// Whether the host's kernel carries the packets between the guest's queues and the TAP (vhost-net), and the monitor sees none: then there
    /// are neither rate limits nor metadata, and nothing is counted.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub vhost: bool,
    /// Rate limits at first.
    #[serde(default)]
    pub limits: RateLimits,
    /// What the guest's agent sets up on it; left out, it is left to the guest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guest: Option<GuestNetwork>,
}

/// The host's end of a network interface.
#[derive(Clone, Debug, Deserialize, Eq, Hash, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum HostEnd {
    /// A TAP.
    Tap(Tap),
    /// A stream socket.
    Stream(StreamSocket),
}

/// A TAP of the host.
#[derive(Clone, Debug, Deserialize, Eq, Hash, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Tap {
    /// The name of one that exists, which no process uses. It has one queue, or may have several (`IFF_MULTI_QUEUE`) if there are several
    /// pairs of queues.
    Name(String),
    /// A descriptor of this process, opened with `IFF_TAP | IFF_NO_PI | IFF_VNET_HDR`. The VM uses a copy.
    Fd(RawFd),
    /// Descriptors of this process, one for each pair of queues, which are queues of one TAP and were opened with
    /// `IFF_TAP | IFF_NO_PI | IFF_VNET_HDR | IFF_MULTI_QUEUE`. The VM uses copies.
    Fds(Vec<RawFd>),
}

/// A Unix stream socket that a program such as passt is at: each packet stands behind its length of 32 bits, big-endian, as QEMU's
/// `-netdev stream` has them. Checksums are complete in both directions, and nothing is to be segmented.
#[derive(Clone, Debug, Deserialize, Eq, Hash, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum StreamSocket {
    /// Where the program listens.
    Path(PathBuf),
    /// A descriptor of this process, which is connected. The VM uses a copy.
    Fd(RawFd),
}

impl HostEnd {
    /// Its name in a configuration.
    const fn field(&self) -> &'static str {
        match self {
            Self::Tap(_) => "tap",
            Self::Stream(_) => "stream",
        }
    }

    /// Pairs of queues that it has, if that is fixed.
    const fn queue_pairs(&self) -> Option<usize> {
        match self {
            Self::Tap(Tap::Name(_)) => None,
            Self::Tap(Tap::Fds(fds)) => Some(fds.len()),
            Self::Tap(Tap::Fd(_)) | Self::Stream(_) => Some(1),
        }
    }

    fn value(&self) -> String {
        match self {
            Self::Tap(tap) => format!("{tap:?}"),
            Self::Stream(stream) => format!("{stream:?}"),
        }
    }
}

impl From<Tap> for HostEnd {
    fn from(tap: Tap) -> Self {
        Self::Tap(tap)
    }
}

impl From<StreamSocket> for HostEnd {
    fn from(stream: StreamSocket) -> Self {
        Self::Stream(stream)
    }
}

impl NetConfig {
    /// An interface called `id` at a host's end, with the default of everything else.
    #[must_use]
    pub fn new(id: impl Into<String>, host: impl Into<HostEnd>) -> Self {
        let (id, host, limits) = (id.into(), host.into(), RateLimits::default());
        Self { id, host, mac: None, mtu: None, queue_pairs: None, vhost: false, limits, guest: None }
    }

    /// The pairs of queues.
    pub(crate) fn queue_pairs(&self) -> usize {
        self.queue_pairs.map(usize::from).or_else(|| self.host.queue_pairs()).unwrap_or(1)
    }

    /// Its queues: two for each pair, and one for commands where there are several.
    pub(crate) fn queues(&self) -> usize {
        let pairs = self.queue_pairs();
        2 * pairs + usize::from(pairs > 1)
    }

    /// Interrupt vectors: one for each queue, and one for its configuration.
    pub(crate) fn vectors(&self) -> usize {
        self.queues() + 1
    }

    /// Checks an interface by itself, where the VM has `others` and so many vCPUs.
    pub(crate) fn check_beside(&self, others: usize, vcpus: u8) -> Result<(), ConfigError> {
        if others >= MAX_NETWORK_INTERFACES {
            let expected = format!("at most {MAX_NETWORK_INTERFACES}");
            return Err(error("network_interfaces", count(others + 1), expected));
        }
        self.check(vcpus, str::to_owned)
    }

    fn check(&self, vcpus: u8, field: impl Fn(&str) -> String) -> Result<(), ConfigError> {
        let Self { id, mtu, guest, .. } = self;
        let valid = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
        if !(1..=MAX_ID).contains(&id.len()) || !id.bytes().all(valid) {
            return Err(error(field("id"), format!("{id:?}"), format!("1 to {MAX_ID} letters, digits, `-`, `_`")));
        }
        if let Some(mtu) = mtu.filter(|mtu| !MTUS.contains(mtu)) {
            return Err(error(field("mtu"), mtu, format!("{} to {}", MTUS.start(), MTUS.end())));
        }
        self.check_queue_pairs(vcpus, &field)?;
        self.check_vhost(&field)?;
        guest.as_ref().map_or(Ok(()), |guest| guest.check(&field("guest")))
    }

    fn check_vhost(&self, field: impl Fn(&str) -> String) -> Result<(), ConfigError> {
        let (is_tap, has_limits) = (matches!(self.host, HostEnd::Tap(_)), self.limits != RateLimits::default());
        match (self.vhost, is_tap, has_limits) {
            (true, false, _) => Err(error(field("vhost"), true, "false, or an interface with a `tap`")),
            (true, _, true) => Err(error(field("vhost"), true, "false, or an interface without `limits`")),
            _ => Ok(()),
        }
    }

    fn check_queue_pairs(&self, vcpus: u8, field: impl Fn(&str) -> String) -> Result<(), ConfigError> {
        let (pairs, most) = (self.queue_pairs(), MAX_QUEUE_PAIRS.min(vcpus.into()));
        if let Some(fixed) = self.host.queue_pairs().filter(|fixed| *fixed != pairs) {
            let expected = format!("{fixed}, as many as its `{}` has queues", self.host.field());
            return Err(error(field("queue_pairs"), pairs, expected));
        }
        if !(1..=most).contains(&pairs) {
            let expected = format!("1 to {most}: at most {MAX_QUEUE_PAIRS}, and one for each of {vcpus} vCPUs");
            return Err(error(field("queue_pairs"), pairs, expected));
        }
        Ok(())
    }
}

/// Checks every interface, by itself and against the others.
pub(super) fn check(interfaces: &[NetConfig], vcpus: u8) -> Result<(), ConfigError> {
    if interfaces.len() > MAX_NETWORK_INTERFACES {
        let expected = format!("at most {MAX_NETWORK_INTERFACES}");
        return Err(error("network_interfaces", count(interfaces.len()), expected));
    }
    let (mut ids, mut ends, mut macs) = (HashMap::new(), HashMap::new(), HashMap::new());
    for (index, interface) in interfaces.iter().enumerate() {
        let field = |name: &str| format!("network_interfaces[{index}].{name}");
        interface.check(vcpus, field)?;
        let NetConfig { id, host, mac, .. } = interface;
        let another = |name: &str, other: usize| format!("another than that of `network_interfaces[{other}].{name}`");
        if let Some(other) = ids.insert(id, index) {
            return Err(error(field("id"), format!("`{id}`"), another("id", other)));
        }
        if let Some(other) = ends.insert(host, index) {
            let (name, value) = (host.field(), host.value());
            return Err(error(field(name), value, another(name, other)));
        }
        if let Some((mac, other)) = mac.and_then(|mac| Some((mac, macs.insert(mac, index)?))) {
            return Err(error(field("mac"), mac, another("mac", other)));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use bellows_memory::ByteSize;

    use super::*;
    use crate::config::VmConfig;

    fn refused(interfaces: Vec<NetConfig>) -> String {
        let mut config = VmConfig::new("vmlinux", ByteSize::mib(512));
        config.network_interfaces = interfaces;
        config.validate().unwrap_err().to_string()
    }

    fn interface(id: &str, tap: &str) -> NetConfig {
        NetConfig::new(id, Tap::Name(tap.into()))
    }

    #[test]
    fn interfaces_are_read_as_they_are_written() {
        let text = r#"{ "kernel": "vmlinux", "memory": "512M", "network_interfaces": [
            { "id": "eth0", "tap": { "name": "tap0" }, "mac": "02:00:00:00:00:01", "mtu": 1400,
              "limits": { "transmit": { "bandwidth": { "per_second": 1000000, "burst": 65536 } } } },
            { "id": "eth1", "tap": { "fd": 7 } },
            { "id": "eth2", "stream": { "fd": 7 } },
            { "id": "eth3", "stream": { "path": "/run/passt.socket" }, "mtu": 65520 },
            { "id": "eth4", "tap": { "fds": [8, 9] }, "queue_pairs": 2 }
        ], "vcpus": 2 }"#;
        let config: VmConfig = serde_json::from_str(text).unwrap();
        config.validate().unwrap();
        let [first, second, third, fourth, fifth] = &config.network_interfaces[..] else { panic!("{config:?}") };
        assert_eq!((first.mtu, first.mac.unwrap().bytes()), (Some(1400), [2, 0, 0, 0, 0, 1]));
        assert_eq!(first.limits.transmit.bandwidth.unwrap().burst.get(), 65536);
        assert_eq!(*second, NetConfig::new("eth1", Tap::Fd(7)));
        assert_eq!(*third, NetConfig::new("eth2", StreamSocket::Fd(7)));
        let path = NetConfig::new("eth3", StreamSocket::Path("/run/passt.socket".into()));
        assert_eq!(*fourth, NetConfig { mtu: Some(65520), ..path });
        assert_eq!(*fifth, NetConfig { queue_pairs: Some(2), ..NetConfig::new("eth4", Tap::Fds(vec![8, 9])) });
        let again: VmConfig = serde_json::from_str(&serde_json::to_string(&config).unwrap()).unwrap();
        assert_eq!(again, config);
    }

    #[test]
    fn an_interface_has_one_end_on_the_host() {
        for (text, expected) in [
            (r#"{ "id": "eth0" }"#, "HostEnd"),
            (r#"{ "id": "eth0", "tap": { "name": "tap0" }, "stream": { "fd": 7 } }"#, "`stream`"),
            (r#"{ "id": "eth0", "stream": { "name": "tap0" } }"#, "`path`"),
            (r#"{ "id": "eth0", "tap": { "fd": 7 }, "mtus": 1400 }"#, "`mtus`"),
            (r#"{ "id": "eth0", "packet": { "fd": 7 } }"#, "HostEnd"),
            (r#"{ "id": "eth0", "tap": { "fd": 7 }, "vhost": { "fd": 7 } }"#, "boolean"),
        ] {
            let error = serde_json::from_str::<NetConfig>(text).unwrap_err().to_string();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }

    #[test]
    fn pairs_of_queues_are_as_many_as_there_can_be() {
        let refused_with = |vcpus, interface: NetConfig| {
            let mut config = VmConfig::new("vmlinux", ByteSize::mib(512));
            (config.vcpus, config.network_interfaces) = (vcpus, vec![interface]);
            config.validate().err().map(|error| error.to_string())
        };
        let named = |pairs| NetConfig { queue_pairs: Some(pairs), ..interface("a", "tap0") };
        let fds = |fds: &[RawFd]| NetConfig::new("a", Tap::Fds(fds.to_vec()));
        assert_eq!((interface("a", "tap0").vectors(), named(1).vectors(), named(4).vectors()), (3, 3, 10));
        assert_eq!((fds(&[5, 6]).queue_pairs(), fds(&[5, 6]).queues()), (2, 5));
        for (vcpus, sound) in [(1, named(1)), (4, named(4)), (32, named(16)), (2, fds(&[5, 6])), (1, fds(&[5]))] {
            assert_eq!(refused_with(vcpus, sound), None);
        }
        for (vcpus, wrong, value, expected) in [
            (2, named(3), "3", "1 to 2: at most 16, and one for each of 2 vCPUs"),
            (32, named(17), "17", "1 to 16: at most 16, and one for each of 32 vCPUs"),
            (2, named(0), "0", "1 to 2"),
            (1, fds(&[5, 6]), "2", "1 to 1"),
            (4, fds(&[]), "0", "1 to 4"),
            (4, NetConfig { queue_pairs: Some(3), ..fds(&[5, 6]) }, "3", "2, as many as its `tap` has queues"),
            (4, NetConfig { queue_pairs: Some(2), ..NetConfig::new("a", Tap::Fd(5)) }, "2", "1, as many as its `tap`"),
            (
                4,
                NetConfig { queue_pairs: Some(2), ..NetConfig::new("a", StreamSocket::Fd(5)) },
                "2",
                "1, as many as its `stream`",
            ),
        ] {
            let text = refused_with(vcpus, wrong).unwrap();
            let start = format!("`network_interfaces[0].queue_pairs` is {value}: expected {expected}");
            assert!(text.contains(&start), "{text}");
        }
    }

    #[test]
    fn what_the_kernel_does_not_see_to_is_refused_with_vhost() {
        let vhost = |end: HostEnd| NetConfig { vhost: true, ..NetConfig::new("a", end) };
        let text = refused(vec![vhost(StreamSocket::Fd(5).into())]);
        let start = "`network_interfaces[0].vhost` is true: expected false, or an interface ";
        assert!(text.contains(&format!("{start}with a `tap`")), "{text}");
        let mut limited = vhost(Tap::Fd(5).into());
        limited.limits =
            serde_json::from_str(r#"{ "receive": { "operations": { "per_second": 1, "burst": 1 } } }"#).unwrap();
        let text = refused(vec![limited]);
        assert!(text.contains(&format!("{start}without `limits`")), "{text}");

        let mut config = VmConfig::new("vmlinux", ByteSize::mib(512));
        config.network_interfaces = vec![vhost(Tap::Fd(5).into())];
        config.validate().unwrap();
        config.mmds = serde_json::from_str(r#"{ "interfaces": ["a"] }"#).unwrap();
        let text = config.validate().unwrap_err().to_string();
        assert!(text.contains("`mmds.interfaces` is \"a\"") && text.contains("without `vhost`"), "{text}");
    }

    #[test]
    fn what_is_invalid_or_there_twice_is_named() {
        for id in ["", "a b", "\u{e9}", &"a".repeat(65)] {
            let text = refused(vec![interface("x", "tap0"), interface(id, "tap1")]);
            assert!(text.contains("network_interfaces[1].id") && text.contains("1 to 64 letters"), "{text}");
        }
        let text = refused(vec![NetConfig { mtu: Some(67), ..interface("a", "tap0") }]);
        assert!(text.contains("`network_interfaces[0].mtu` is 67: expected 68 to 65535"), "{text}");
        let text = refused(vec![interface("a", "tap0"), interface("a", "tap1")]);
        assert!(text.contains("`network_interfaces[1].id` is `a`") && text.contains("interfaces[0].id"), "{text}");
        let text = refused(vec![interface("a", "tap0"), interface("b", "tap0")]);
        assert!(text.contains("`network_interfaces[1].tap` is Name(\"tap0\")"), "{text}");
        let at = |id, path: &str| NetConfig::new(id, StreamSocket::Path(path.into()));
        let text = refused(vec![at("a", "/run/a"), at("b", "/run/a")]);
        assert!(text.contains("`network_interfaces[1].stream` is Path(\"/run/a\")"), "{text}");
        let mac = "02:00:00:00:00:01".parse().ok();
        let with_mac = |id, tap| NetConfig { mac, ..interface(id, tap) };
        let text = refused(vec![with_mac("a", "tap0"), with_mac("b", "tap1")]);
        assert!(text.contains("`network_interfaces[1].mac` is 02:00:00:00:00:01"), "{text}");
        let many = (0..17).map(|n| interface(&format!("i{n}"), &format!("tap{n}"))).collect();
        assert!(refused(many).contains("17 entries: expected at most 16"));
    }
}
