//! On this machine's kernel, which runs the programs with packets that are made here. Needs root.

use std::net::IpAddr;
use std::num::NonZeroU64;
use std::process::Command;

use bellows_protocol::egress::{EgressProtocol, EgressRule, PacketRate};
use nix::sched::{CloneFlags, unshare};
use proptest::prelude::*;
use proptest::test_runner::TestRunner;

use super::*;

const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMP: u8 = 1;
const ICMPV6: u8 = 58;
const SYN: u8 = 0x02;
const ACK: u8 = 0x10;

/// A packet as it is on a network.
#[derive(Debug, Clone)]
struct Packet {
    from: IpAddr,
    to: IpAddr,
    protocol: u8,
    /// Of the sender and of the receiver.
    ports: (u16, u16),
    flags: u8,
    payload: usize,
}

impl Packet {
    fn new(to: &str, protocol: u8, port: u16) -> Self {
        let to: IpAddr = to.parse().unwrap();
        let from = if to.is_ipv4() { "10.0.0.9" } else { "fd00::9" }.parse().unwrap();
        Self { from, to, protocol, ports: (40_000, port), flags: SYN, payload: 0 }
    }

    /// What comes back.
    fn answer(&self) -> Self {
        let (own, peer) = self.ports;
        Self { from: self.to, to: self.from, ports: (peer, own), ..self.clone() }
    }

    fn frame(&self) -> Vec<u8> {
        let (from, to) = self.ports;
        let mut transport = [from.to_be_bytes(), to.to_be_bytes()].concat();
        transport.resize(if self.protocol == TCP { 20 } else { 8 }, 0);
        if self.protocol == TCP {
            transport[13] = self.flags;
        }
        transport.resize(transport.len() + self.payload, 0);
        let bytes = transport.len();
        let mut frame = vec![0; 12];
        match (self.from, self.to) {
            (IpAddr::V4(from), IpAddr::V4(to)) => {
                let length = (20 + bytes) as u16;
                frame.extend([0x08, 0x00, 0x45, 0]);
                frame.extend(length.to_be_bytes());
                frame.extend([0, 0, 0, 0, 64, self.protocol, 0, 0]);
                frame.extend(from.octets());
                frame.extend(to.octets());
            }
            (IpAddr::V6(from), IpAddr::V6(to)) => {
                frame.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
                frame.extend((bytes as u16).to_be_bytes());
                frame.extend([self.protocol, 64]);
                frame.extend(from.octets());
                frame.extend(to.octets());
            }
            _ => panic!("{self:?}"),
        }
        frame.extend(transport);
        frame
    }
}

struct Filter {
    programs: [(Attachment, OwnedFd); 4],
    interface: u32,
}

/// Runs `test` where there is an interface beside the loopback.
fn with_interface(test: impl FnOnce() + Send) {
    let test = move || {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        let words = "link add name eth0 type veth peer name other";
        let output = Command::new("ip").args(words.split(' ')).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        test();
    };
    std::thread::scope(|scope| scope.spawn(test).join().unwrap());
}

fn setup(rules: Vec<EgressRule>) -> OwnNetworkSetup {
    OwnNetworkSetup {
        addresses: ["10.0.0.8", "10.0.0.9", "fd00::9", "fd00::a"].map(|text| text.parse().unwrap()).into(),
        hardware_address: None,
        egress: rules,
        receive: PacketLimit::default(),
        transmit: PacketLimit::default(),
    }
}

impl Filter {
    fn new(rules: &[&str]) -> Self {
        Self::with(&setup(rules.iter().map(|rule| rule.parse().unwrap()).collect()))
    }

    fn with(setup: &OwnNetworkSetup) -> Self {
        let interface = nix::net::if_::if_nametoindex("eth0").unwrap();
        Self { programs: load(setup).unwrap(), interface }
    }

    fn run(&self, at: Attachment, frame: &[u8]) -> i32 {
        self.run_on(self.interface, at, frame)
    }

    fn run_on(&self, interface: u32, at: Attachment, frame: &[u8]) -> i32 {
        let (_, program) = self.programs.iter().find(|(attachment, _)| *attachment == at).unwrap();
        kernel::test_run(program.as_fd(), interface, frame).unwrap() as i32
    }

    fn sends(&self, packet: &Packet) -> bool {
        self.sends_frame(&packet.frame())
    }

    fn sends_frame(&self, frame: &[u8]) -> bool {
        self.run(Attachment::Egress, frame) == programs::PASS
    }

    fn receives(&self, packet: &Packet) -> bool {
        self.run(Attachment::Ingress, &packet.frame()) == programs::PASS
    }
}

#[test]
fn nothing_is_sent_unless_a_rule_says_so() {
    with_interface(|| {
        let nothing = Filter::new(&[]);
        let everything = Filter::new(&["0.0.0.0/0", "::/0"]);
        for (to, icmp) in [("192.0.2.1", ICMP), ("2001:db8::1", ICMPV6), ("10.0.0.10", ICMP), ("fe80::1", ICMPV6)] {
            for protocol in [TCP, UDP, icmp] {
                let packet = Packet::new(to, protocol, 443);
                assert!(!nothing.sends(&packet) && everything.sends(&packet), "{packet:?}");
            }
        }
        let v4 = Filter::new(&["0.0.0.0/0"]);
        assert!(v4.sends(&Packet::new("192.0.2.1", TCP, 1)) && !v4.sends(&Packet::new("2001:db8::1", TCP, 1)));
    });
}

#[test]
fn a_rule_is_for_its_network_port_and_protocol() {
    with_interface(|| {
        let filter = Filter::new(&["10.1.0.0/16:443", "10.2.0.0/15:53/udp", "192.0.2.7", "[fd00:0:0:1::/64]:80/tcp"]);
        for (to, protocol, port, passes) in [
            ("10.1.255.255", TCP, 443, true),
            ("10.1.0.0", UDP, 443, true),
            ("10.1.0.1", TCP, 444, false),
            ("10.1.0.1", ICMP, 443, false),
            ("10.0.255.255", TCP, 443, false),
            ("10.3.255.255", UDP, 53, true),
            ("10.3.0.1", TCP, 53, false),
            ("10.4.0.0", UDP, 53, false),
            ("192.0.2.7", ICMP, 0, true),
            ("192.0.2.7", TCP, 1, true),
            ("192.0.2.6", TCP, 1, false),
            ("fd00:0:0:1:ffff::1", TCP, 80, true),
            ("fd00:0:0:1::1", UDP, 80, false),
            ("fd00:0:0:2::1", TCP, 80, false),
        ] {
            let packet = Packet::new(to, protocol, port);
            assert_eq!(filter.sends(&packet), passes, "{packet:?}");
        }
    });
}

#[test]
fn who_turns_to_an_instance_is_answered() {
    with_interface(|| {
        let filter = Filter::new(&[]);
        for (to, other) in [("192.0.2.1", "192.0.2.2"), ("2001:db8::1", "2001:db8:0:1::1")] {
            let tcp = Packet::new(to, TCP, 5000);
            assert!(!filter.sends(&tcp), "a connection is begun");
            for flags in [SYN | ACK, ACK, 0x11, 0x04, 0x18] {
                assert!(filter.sends(&Packet { flags, ..tcp.clone() }), "{flags:#x}");
            }
            assert!(!filter.sends(&Packet { flags: SYN | 0x08, ..tcp.clone() }), "with data");

            let answer = Packet { payload: 100, ..Packet::new(to, UDP, 5000) };
            assert!(!filter.sends(&answer));
            assert!(filter.receives(&answer.answer()));
            assert!(filter.sends(&answer));
            let (own, peer) = answer.ports;
            for ports in [(own + 1, peer), (own, peer + 1), (peer, own)] {
                assert!(!filter.sends(&Packet { ports, ..answer.clone() }), "{ports:?}");
            }
            assert!(!filter.sends(&Packet { to: other.parse().unwrap(), ..answer.clone() }));
            assert!(!filter.sends(&Packet { protocol: if answer.to.is_ipv4() { ICMP } else { ICMPV6 }, ..answer }));
        }
        assert!(!Filter::new(&[]).sends(&Packet::new("192.0.2.1", UDP, 5000)), "each instance has peers of its own");
        // The loopback is the instance's.
        let packet = Packet { payload: 1000, ..Packet::new("127.0.0.1", TCP, 1) };
        let none = Filter::new(&[]);
        assert_eq!(none.run_on(1, Attachment::Egress, &packet.frame()), programs::PASS);
        assert!(!none.sends(&packet));
    });
}

#[test]
fn an_instance_sends_from_its_own_addresses() {
    with_interface(|| {
        let filter = Filter::new(&["0.0.0.0/0", "::/0"]);
        for (to, from, passes) in [
            ("192.0.2.1", "10.0.0.8", true),
            ("192.0.2.1", "10.0.0.9", true),
            ("192.0.2.1", "10.0.0.10", false),
            ("192.0.2.1", "0.0.0.0", false),
            ("2001:db8::1", "fd00::9", true),
            ("2001:db8::1", "fd00::a", true),
            ("2001:db8::1", "fd00::b", false),
            ("2001:db8::1", "fd01::9", false),
            ("2001:db8::1", "fe80::9", false),
        ] {
            let packet = Packet { from: from.parse().unwrap(), flags: ACK, ..Packet::new(to, TCP, 1) };
            assert_eq!(filter.sends(&packet), passes, "{packet:?}");
        }
    });
}

#[test]
fn an_instance_without_an_address_of_a_family_sends_none_of_it() {
    with_interface(|| {
        for (own, to, not) in [("10.0.0.9", "192.0.2.1", "2001:db8::1"), ("fd00::9", "2001:db8::1", "192.0.2.1")] {
            for rules in [&["0.0.0.0/0", "::/0"][..], &["192.0.2.1", "2001:db8::1"]] {
                let rules = rules.iter().map(|rule| rule.parse().unwrap()).collect();
                let filter = Filter::with(&OwnNetworkSetup { addresses: vec![own.parse().unwrap()], ..setup(rules) });
                assert!(filter.sends(&Packet::new(to, TCP, 1)) && !filter.sends(&Packet::new(not, TCP, 1)), "{own}");
            }
        }
    });
}

/// Packets that may go elsewhere than their destination says, and ones that are no whole packets.
#[test]
fn what_is_not_plain_does_not_pass() {
    with_interface(|| {
        let filter = Filter::new(&["0.0.0.0/0", "::/0"]);
        let v4 = Packet::new("192.0.2.1", UDP, 53).frame();
        let v6 = Packet::new("2001:db8::1", UDP, 53).frame();
        assert!(filter.sends_frame(&v4) && filter.sends_frame(&v6));
        let changed = |frame: &[u8], at: usize, to: u8| {
            let mut frame = frame.to_vec();
            frame[14 + at] = to;
            frame
        };
        // Options of IPv4, a later fragment, and another transport.
        assert!(!filter.sends_frame(&changed(&v4, 0, 0x46)));
        assert!(!filter.sends_frame(&changed(&v4, 7, 1)) && !filter.sends_frame(&changed(&v4, 6, 0x1f)));
        assert!(filter.sends_frame(&changed(&v4, 6, 0x20)), "the first of several");
        for transport in [0, 2, 4, 33, 41, 47, 58, 132, 136] {
            assert!(!filter.sends_frame(&changed(&v4, 9, transport)), "{transport}");
        }
        // Routing, hop-by-hop and destination options, a fragment.
        for next in [0, 1, 43, 44, 50, 51, 60, 4, 41, 132, 135] {
            assert!(!filter.sends_frame(&changed(&v6, 6, next)), "{next}");
        }
        for frame in [&v4, &v6] {
            let whole = if frame == &v4 { 14 + 20 + 4 } else { 14 + 40 + 4 };
            assert!(filter.sends_frame(&frame[..whole]) && !filter.sends_frame(&frame[..whole - 1]));
        }
        let mut arp = v4;
        arp[13] = 0x06;
        assert!(!filter.sends_frame(&arp));
    });
}

fn rate(per_second: u64, burst: u64) -> Option<PacketRate> {
    Some(PacketRate { per_second: NonZeroU64::new(per_second).unwrap(), burst: NonZeroU64::new(burst).unwrap() })
}

#[test]
fn what_is_beyond_a_limit_is_dropped() {
    with_interface(|| {
        let limited =
            |receive, transmit| OwnNetworkSetup { receive, transmit, ..setup(vec!["0.0.0.0/0".parse().unwrap()]) };
        let none = PacketLimit::default();
        let packet = Packet { payload: 972, ..Packet::new("192.0.2.1", UDP, 53) };
        // A thousand bytes. One packet more than the burst passes, for which the bucket goes into debt.
        for (limit, passes) in [
            (PacketLimit { packets: rate(1, 5), bytes: None }, 6),
            (PacketLimit { bytes: rate(1000, 3000), packets: None }, 4),
            (PacketLimit { bytes: rate(1, 1), packets: None }, 1),
            (PacketLimit { bytes: rate(1000, 3000), packets: rate(1, 1) }, 2),
            (PacketLimit { bytes: rate(u64::MAX, u64::MAX), packets: rate(u64::MAX, 1) }, 20),
        ] {
            let filter = Filter::with(&limited(none, limit));
            let results: Vec<_> = (0..20).map(|_| filter.run(Attachment::Egress, &packet.frame())).collect();
            let expected: Vec<_> =
                (0..20).map(|n| if n < passes { programs::PASS } else { programs::DROP_AND_SLOW_DOWN }).collect();
            assert_eq!(results, expected, "{limit:?}");
            assert!((0..20).all(|_| filter.receives(&packet.answer())), "{limit:?}");

            let filter = Filter::with(&limited(limit, none));
            assert_eq!((0..20).filter(|_| filter.receives(&packet.answer())).count(), passes, "{limit:?}");
            assert!((0..20).all(|_| filter.sends(&packet)), "{limit:?}");
        }
        // What no rule allows costs nothing.
        let filter = Filter::with(&OwnNetworkSetup {
            egress: vec![],
            ..limited(none, PacketLimit { packets: rate(1, 1), bytes: None })
        });
        assert!((0..20).all(|_| !filter.sends(&packet)));
        assert!(filter.sends(&Packet { flags: ACK, ..Packet::new("192.0.2.1", TCP, 1) }));
    });
}

/// A bucket fills as fast as it is said to.
#[test]
fn a_limit_lets_as_much_pass_as_comes_in() {
    with_interface(|| {
        let transmit = PacketLimit { packets: rate(100, 1), bytes: None };
        let filter = Filter::with(&OwnNetworkSetup { transmit, ..setup(vec!["0.0.0.0/0".parse().unwrap()]) });
        let frame = Packet::new("192.0.2.1", UDP, 53).frame();
        let begun = std::time::Instant::now();
        let mut passed = 0;
        while passed < 30 {
            passed += u64::from(filter.sends_frame(&frame));
            let most = 2 + begun.elapsed().as_millis() as u64 / 10 + 1;
            assert!(passed <= most, "{passed} in {:?}", begun.elapsed());
        }
        assert!(begun.elapsed().as_secs() < 20, "{:?}", begun.elapsed());
    });
}

#[test]
fn as_many_rules_as_there_can_be_are_taken() {
    with_interface(|| {
        let rules: Vec<String> = (0..64)
            .map(|n| {
                if n % 2 == 0 {
                    format!("10.{n}.0.0/16:{}", n + 1)
                } else {
                    format!("[fd00:{n:x}::1/128]:{}/tcp", n + 1)
                }
            })
            .collect();
        let filter = Filter::new(&rules.iter().map(String::as_str).collect::<Vec<_>>());
        assert!(filter.sends(&Packet::new("10.62.1.1", TCP, 63)) && filter.sends(&Packet::new("fd00:3f::1", TCP, 64)));
        assert!(
            !filter.sends(&Packet::new("10.62.1.1", TCP, 64)) && !filter.sends(&Packet::new("fd00:3f::1", UDP, 64))
        );
    });
}

/// Whether `rule` allows `packet`, bit by bit.
fn allows(rule: &EgressRule, packet: &Packet) -> bool {
    let bits = |address: IpAddr| match address {
        IpAddr::V4(address) => (u128::from(address.to_bits()), 32),
        IpAddr::V6(address) => (address.to_bits(), 128),
    };
    let ((network, size), (to, other)) = (bits(rule.network()), bits(packet.to));
    let same = (0..rule.prefix()).all(|bit| (network ^ to) >> (size - 1 - u32::from(bit)) & 1 == 0);
    let port = rule.port().is_none_or(|(port, protocol)| {
        let known = match protocol {
            Some(EgressProtocol::Tcp) => packet.protocol == TCP,
            Some(EgressProtocol::Udp) => packet.protocol == UDP,
            None => matches!(packet.protocol, TCP | UDP),
        };
        known && port.get() == packet.ports.1
    });
    size == other && same && port
}

/// Addresses that are alike, so that rules meet packets.
fn address() -> impl Strategy<Value = IpAddr> {
    prop_oneof![
        (0..4_u32, 0..3_u32).prop_map(|(high, low)| IpAddr::V4((0x0a00_0000 | high << 22 | low).into())),
        (0..4_u128, 0..3_u128).prop_map(|(high, low)| IpAddr::V6((0xfd << 120 | high << 62 | low).into())),
    ]
}

fn rule() -> impl Strategy<Value = EgressRule> {
    let protocol = prop_oneof![Just(None), Just(Some(EgressProtocol::Tcp)), Just(Some(EgressProtocol::Udp))];
    let port = prop::option::of((1..4_u16).prop_map(|port| port.try_into().unwrap()));
    (address(), 0..=128_u8, port, protocol).prop_map(|(address, prefix, port, protocol)| {
        let (network, prefix) = match address {
            IpAddr::V4(address) => {
                let prefix = prefix % 33;
                let mask = u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0);
                (IpAddr::V4((address.to_bits() & mask).into()), prefix)
            }
            IpAddr::V6(address) => {
                let mask = u128::MAX.checked_shl(128 - u32::from(prefix)).unwrap_or(0);
                (IpAddr::V6((address.to_bits() & mask).into()), prefix)
            }
        };
        EgressRule::new(network, prefix, port.map(|port| (port, protocol))).unwrap()
    })
}

fn packet() -> impl Strategy<Value = Packet> {
    (address(), 0..3_u8, 1..4_u16).prop_map(|(to, protocol, port)| {
        let icmp = if to.is_ipv4() { ICMP } else { ICMPV6 };
        Packet::new(&to.to_string(), [TCP, UDP, icmp][usize::from(protocol)], port)
    })
}

/// Bit by bit, and whatever the order of the rules.
#[test]
fn a_packet_passes_if_a_rule_allows_it() {
    with_interface(|| {
        let rules = prop::collection::vec(rule(), 0..6);
        let packets = prop::collection::vec(packet(), 1..20);
        let mut runner = TestRunner::new(ProptestConfig::with_cases(64));
        let result = runner.run(&(rules, packets), |(rules, packets)| {
            let filter = Filter::with(&setup(rules.clone()));
            for packet in packets {
                let expected = rules.iter().any(|rule| allows(rule, &packet));
                prop_assert_eq!(filter.sends(&packet), expected, "{:?} with {:?}", packet, rules);
            }
            Ok(())
        });
        result.unwrap();
    });
}
