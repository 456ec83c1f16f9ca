//! The programs that see each packet of an instance: what it sends, what it receives, and what it connects to.
//!
//! Nothing of this follows connections. A TCP packet is part of one that others have begun unless it is a SYN without ACK, because the
//! instance has no means to make packets other than the kernel's sockets; and a datagram answers one that has come from where it goes
//! within the last minutes.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::BorrowedFd;

use bellows_protocol::egress::{EgressProtocol, EgressRule, PacketLimit, PacketRate};
use bellows_protocol::network::OwnNetworkSetup;
use nix::libc;

use super::assembler::{
    Assembler, Condition, Helper, Instruction, Label, Operation, R0, R1, R2, R3, R4, R6, R7, R8, R9, STACK, Size,
};

/// Results of programs for packets that are sent: the last has TCP slow down.
pub const DROP: i32 = 0;
pub const PASS: i32 = 1;
pub const DROP_AND_SLOW_DOWN: i32 = 2;

/// How long an instance may answer a datagram, in nanoseconds: as connection tracking has it for streams of them.
const ANSWERS: u64 = 180_000_000_000;
const NANOSECONDS: u64 = 1_000_000_000;
/// How often a bucket is tried whose level another CPU has changed meanwhile.
const TRIES: usize = 8;

const TCP: u32 = libc::IPPROTO_TCP as u32;
const UDP: u32 = libc::IPPROTO_UDP as u32;
const ICMP: u32 = libc::IPPROTO_ICMP as u32;
const ICMPV6: u32 = libc::IPPROTO_ICMPV6 as u32;

/// Ethernet's numbers of the two protocols, as they are on the wire.
const IPV4: u32 = (libc::ETH_P_IP as u16).to_be() as u32;
const IPV6: u32 = (libc::ETH_P_IPV6 as u16).to_be() as u32;

/// Fields of `struct __sk_buff` and of `struct bpf_sock_addr` (linux/bpf.h).
const SKB_LEN: i16 = 0;
const SKB_PROTOCOL: i16 = 16;
const SKB_IFINDEX: i16 = 40;
const ADDR_IP4: i16 = 4;
const ADDR_IP6: i16 = 8;
const ADDR_PORT: i16 = 24;
const ADDR_PROTOCOL: i16 = 36;

/// The number of the loopback in every network namespace (`LOOPBACK_IFINDEX`).
const LOOPBACK: u32 = 1;

/// Places on the stack, from its end: the header of the network, that of the transport, a peer with its ports, and a number.
const HEADER: i16 = -56;
const PORTS: i16 = -16;
const PEER: i16 = -80;
const NUMBER: i16 = -88;

/// Bytes of a peer: an address of either family, its port and ours. One of IPv4 is in the first four.
pub const PEER_BYTES: u32 = 20;
const PEER_PORT: i16 = PEER + 16;
const OWN_PORT: i16 = PEER + 18;

/// TCP's SYN and ACK, and where flags are in its header.
const FLAGS: i16 = 13;
const SYN: u32 = 0x02;
const SYN_OR_ACK: u32 = 0x12;

/// Maps of an instance.
#[derive(Clone, Copy, Debug)]
pub struct Maps<'a> {
    /// When somebody has sent a datagram last, by peer.
    pub peers: BorrowedFd<'a>,
    /// The levels of the buckets of one direction, if it has limits.
    pub levels: Option<BorrowedFd<'a>>,
}

/// The program for what is sent.
///
/// # Errors
/// There are too many rules.
pub fn egress(setup: &OwnNetworkSetup, maps: Maps<'_>) -> io::Result<Vec<Instruction>> {
    let mut code = Assembler::default();
    let (v6, drop, allow, pass) = (code.label(), code.label(), code.label(), code.label());
    code.compute(Operation::Move, R6, R1);
    pass_loopback(&mut code, pass);
    code.load(Size::U32, R0, R6, SKB_PROTOCOL);
    code.jump_if_u32(Condition::Equal, R0, IPV6, v6);
    code.jump_if_u32(Condition::NotEqual, R0, IPV4, drop);

    if setup.addresses.iter().any(IpAddr::is_ipv4) {
        egress_v4(&mut code, setup, maps, (allow, drop));
    } else {
        code.jump(drop);
    }
    code.place(v6);
    if setup.addresses.iter().any(IpAddr::is_ipv6) {
        egress_v6(&mut code, setup, maps, (allow, drop));
    } else {
        code.jump(drop);
    }

    code.place(allow);
    if let Some(levels) = maps.levels {
        limited(&mut code, &setup.transmit, levels, DROP_AND_SLOW_DOWN);
    }
    code.place(pass);
    code.exit_with(PASS);
    code.place(drop);
    code.exit_with(DROP);
    code.finish()
}

/// The part of it for IPv4, of an instance that has such an address.
fn egress_v4(code: &mut Assembler, setup: &OwnNetworkSetup, maps: Maps<'_>, (allow, drop): (Label, Label)) {
    load_header(code, 20, drop);
    // Without options, which may name another destination, and the first of its fragments.
    code.load(Size::U8, R0, STACK, HEADER);
    code.jump_if_u32(Condition::NotEqual, R0, 0x45, drop);
    code.load(Size::U16, R0, STACK, HEADER + 6);
    code.compute_u32(Operation::And, R0, u16::to_be(0x1fff).into());
    code.jump_if_u32(Condition::NotEqual, R0, 0, drop);
    code.load(Size::U8, R7, STACK, HEADER + 9);
    code.load(Size::U32, R8, STACK, HEADER + 16);
    check_source_v4(code, &setup.addresses, drop);
    load_ports(code, 20, ICMP, drop);
    if !match_v4(code, &setup.egress, allow) {
        code.store(Size::U32, STACK, PEER, R8);
        for word in 1..4 {
            code.store_number(Size::U32, STACK, PEER + 4 * word, 0);
        }
        answers(code, maps.peers, allow, drop);
    }
}

/// The part of it for IPv6, of an instance that has such an address.
fn egress_v6(code: &mut Assembler, setup: &OwnNetworkSetup, maps: Maps<'_>, (allow, drop): (Label, Label)) {
    load_header(code, 40, drop);
    // Headers between the network's and the transport's may name another destination: none passes.
    code.load(Size::U8, R7, STACK, HEADER + 6);
    code.load(Size::U64, R8, STACK, HEADER + 24);
    code.load(Size::U64, R9, STACK, HEADER + 32);
    check_source_v6(code, &setup.addresses, drop);
    load_ports(code, 40, ICMPV6, drop);
    if !match_v6(code, &setup.egress, allow) {
        code.store(Size::U64, STACK, PEER, R8);
        code.store(Size::U64, STACK, PEER + 8, R9);
        answers(code, maps.peers, allow, drop);
    }
}

/// The program for what is received: it takes note of who sends datagrams.
///
/// # Errors
/// None, in truth.
pub fn ingress(limit: &PacketLimit, maps: Maps<'_>) -> io::Result<Vec<Instruction>> {
    let mut code = Assembler::default();
    let (v6, drop, allow, note) = (code.label(), code.label(), code.label(), code.label());
    code.compute(Operation::Move, R6, R1);
    pass_loopback(&mut code, allow);
    if let Some(levels) = maps.levels {
        limited(&mut code, limit, levels, DROP);
    }
    code.load(Size::U32, R0, R6, SKB_PROTOCOL);
    code.jump_if_u32(Condition::Equal, R0, IPV6, v6);
    code.jump_if_u32(Condition::NotEqual, R0, IPV4, allow);

    load_header(&mut code, 20, drop);
    code.load(Size::U8, R7, STACK, HEADER + 9);
    code.jump_if_u32(Condition::NotEqual, R7, UDP, allow);
    code.load(Size::U32, R8, STACK, HEADER + 12);
    code.store(Size::U32, STACK, PEER, R8);
    for word in 1..4 {
        code.store_number(Size::U32, STACK, PEER + 4 * word, 0);
    }
    // The length of the header in words, behind which the ports are.
    code.load(Size::U8, R2, STACK, HEADER);
    code.compute_u32(Operation::And, R2, 0x0f);
    code.compute_u32(Operation::Multiply, R2, 4);
    code.jump(note);

    code.place(v6);
    load_header(&mut code, 40, drop);
    code.load(Size::U8, R7, STACK, HEADER + 6);
    // Behind other headers, it is not answered.
    code.jump_if_u32(Condition::NotEqual, R7, UDP, allow);
    for word in [0, 8] {
        code.load(Size::U64, R8, STACK, HEADER + 8 + word);
        code.store(Size::U64, STACK, PEER + word, R8);
    }
    code.compute_number(Operation::Move, R2, 40);

    code.place(note);
    load_bytes(&mut code, PORTS, 4, drop);
    copy_u16(&mut code, PEER_PORT, PORTS);
    copy_u16(&mut code, OWN_PORT, PORTS + 2);
    code.call(Helper::KtimeGetNs);
    code.store(Size::U64, STACK, NUMBER, R0);
    code.set_map(R1, maps.peers);
    code.set_stack(R2, PEER);
    code.set_stack(R3, NUMBER);
    code.compute_number(Operation::Move, R4, 0);
    // If it fails, the instance cannot answer.
    code.call(Helper::MapUpdate);
    code.place(allow);
    code.exit_with(PASS);
    code.place(drop);
    code.exit_with(DROP);
    code.finish()
}

/// The programs for connections that are begun, over IPv4 and IPv6: a program is told at once that it may not, and does not wait for
/// answers to packets that were dropped.
///
/// # Errors
/// There are too many rules.
pub fn connect(setup: &OwnNetworkSetup, over_v6: bool) -> io::Result<Vec<Instruction>> {
    // What stays in the instance, by any of its names.
    let own = setup.addresses.iter().map(|address| (*address, if address.is_ipv4() { 32 } else { 128 }));
    let inside = [(IpAddr::V4(Ipv4Addr::new(127, 0, 0, 0)), 8), (Ipv6Addr::LOCALHOST.into(), 128)];
    let nowhere = [(Ipv4Addr::UNSPECIFIED.into(), 32), (Ipv6Addr::UNSPECIFIED.into(), 128)];
    let own =
        own.chain(inside).chain(nowhere).filter_map(|(network, prefix)| EgressRule::new(network, prefix, None).ok());
    let rules: Vec<_> = own.chain(setup.egress.iter().copied()).collect();
    let rules = &rules;
    let mut code = Assembler::default();
    let (allow, mapped) = (code.label(), code.label());
    code.compute(Operation::Move, R6, R1);
    code.load(Size::U32, R7, R6, ADDR_PROTOCOL);
    // What datagrams are sent to is seen when they are.
    code.jump_if_u32(Condition::NotEqual, R7, TCP, allow);
    code.load(Size::U32, R0, R6, ADDR_PORT);
    code.store(Size::U16, STACK, PORTS + 2, R0);
    if over_v6 {
        for word in 0..4 {
            code.load(Size::U32, R0, R6, ADDR_IP6 + 4 * word);
            code.store(Size::U32, STACK, PEER + 4 * word, R0);
        }
        code.load(Size::U64, R8, STACK, PEER);
        code.load(Size::U64, R9, STACK, PEER + 8);
        // An address of IPv4 in one of IPv6.
        code.load(Size::U32, R0, STACK, PEER + 8);
        let plain = code.label();
        code.jump_if_zero(Condition::NotEqual, R8, plain);
        code.jump_if_u32(Condition::Equal, R0, u32::to_be(0xffff), mapped);
        code.place(plain);
        if !match_v6(&mut code, rules, allow) {
            code.exit_with(DROP);
        }
        code.place(mapped);
        code.load(Size::U32, R8, STACK, PEER + 12);
    } else {
        code.load(Size::U32, R8, R6, ADDR_IP4);
    }
    if !match_v4(&mut code, rules, allow) {
        code.exit_with(DROP);
    }
    code.place(allow);
    code.exit_with(PASS);
    code.finish()
}

/// Jumps to `pass` with a packet of the instance's to itself.
fn pass_loopback(code: &mut Assembler, pass: Label) {
    code.load(Size::U32, R0, R6, SKB_IFINDEX);
    code.jump_if_u32(Condition::Equal, R0, LOOPBACK, pass);
}

/// Jumps to `forged` unless the packet comes from one of `addresses`.
fn check_source_v4(code: &mut Assembler, addresses: &[IpAddr], forged: Label) {
    let own = code.label();
    code.load(Size::U32, R2, STACK, HEADER + 12);
    for address in addresses {
        if let IpAddr::V4(address) = address {
            code.jump_if_u32(Condition::Equal, R2, address.to_bits().to_be(), own);
        }
    }
    code.jump(forged);
    code.place(own);
}

/// The same for IPv6.
fn check_source_v6(code: &mut Assembler, addresses: &[IpAddr], forged: Label) {
    let own = code.label();
    code.load(Size::U64, R2, STACK, HEADER + 8);
    code.load(Size::U64, R3, STACK, HEADER + 16);
    for address in addresses {
        let IpAddr::V6(address) = address else { continue };
        let next = code.label();
        let [high, low] = halves(address.to_bits());
        code.set(R4, high);
        code.jump_if(Condition::NotEqual, R2, R4, next);
        code.set(R4, low);
        code.jump_if(Condition::Equal, R3, R4, own);
        code.place(next);
    }
    code.jump(forged);
    code.place(own);
}

/// Loads the header of the network.
fn load_header(code: &mut Assembler, bytes: i32, missing: Label) {
    code.compute_number(Operation::Move, R2, 0);
    load_bytes(code, HEADER, bytes, missing);
}

/// Loads bytes of the packet, from where R2 says, to the stack.
fn load_bytes(code: &mut Assembler, to: i16, bytes: i32, missing: Label) {
    code.compute(Operation::Move, R1, R6);
    code.set_stack(R3, to);
    code.compute_number(Operation::Move, R4, bytes);
    code.call(Helper::SkbLoadBytes);
    code.jump_if_zero(Condition::NotEqual, R0, missing);
}

/// Loads the transport's header behind that of the network, with all that is looked at there. R7 has the protocol; one that is neither
/// TCP nor UDP nor `icmp` is not known.
fn load_ports(code: &mut Assembler, header: i32, icmp: u32, unknown: Label) {
    let (udp, done) = (code.label(), code.label());
    for word in [0, 8] {
        code.store_number(Size::U64, STACK, PORTS + word, 0);
    }
    code.jump_if_u32(Condition::Equal, R7, UDP, udp);
    code.jump_if_u32(Condition::Equal, R7, icmp, done);
    code.jump_if_u32(Condition::NotEqual, R7, TCP, unknown);
    code.compute_number(Operation::Move, R2, header);
    load_bytes(code, PORTS, i32::from(FLAGS) + 1, unknown);
    code.jump(done);
    code.place(udp);
    code.compute_number(Operation::Move, R2, header);
    load_bytes(code, PORTS, 4, unknown);
    code.place(done);
}

fn copy_u16(code: &mut Assembler, to: i16, from: i16) {
    code.load(Size::U16, R0, STACK, from);
    code.store(Size::U16, STACK, to, R0);
}

/// Jumps to `allow` if a rule for IPv4 is for the address in R8, the protocol in R7 and the port on the stack. Returns whether one is for
/// all: the kernel takes no program with instructions behind that.
fn match_v4(code: &mut Assembler, rules: &[EgressRule], allow: Label) -> bool {
    for rule in rules {
        let IpAddr::V4(network) = rule.network() else { continue };
        let next = code.label();
        let mask = u32::MAX.checked_shl(32 - u32::from(rule.prefix())).unwrap_or(0);
        if mask != 0 {
            code.compute(Operation::Move, R2, R8);
            code.compute_u32(Operation::And, R2, mask.to_be());
            code.jump_if_u32(Condition::NotEqual, R2, network.to_bits().to_be(), next);
        }
        if match_rest(code, rule, allow, next) {
            return true;
        }
    }
    false
}

/// The same for IPv6, with the halves of the address in R8 and R9.
fn match_v6(code: &mut Assembler, rules: &[EgressRule], allow: Label) -> bool {
    for rule in rules {
        let IpAddr::V6(network) = rule.network() else { continue };
        let next = code.label();
        let mask = u128::MAX.checked_shl(128 - u32::from(rule.prefix())).unwrap_or(0);
        let (mask, network) = (halves(mask), halves(network.to_bits()));
        for ((mask, network), address) in mask.into_iter().zip(network).zip([R8, R9]) {
            if mask != 0 {
                code.set(R2, mask);
                code.compute(Operation::And, R2, address);
                code.set(R3, network);
                code.jump_if(Condition::NotEqual, R2, R3, next);
            }
        }
        if match_rest(code, rule, allow, next) {
            return true;
        }
    }
    false
}

/// The halves of an address as they are loaded from a packet.
const fn halves(bits: u128) -> [u64; 2] {
    [((bits >> 64) as u64).to_be(), (bits as u64).to_be()]
}

/// Goes on to `allow` if a rule whose network is that of the address is for the port, too, and else to `next`. Returns whether the rule is
/// for all.
fn match_rest(code: &mut Assembler, rule: &EgressRule, allow: Label, next: Label) -> bool {
    match_port(code, rule, next);
    code.jump(allow);
    code.place(next);
    rule.prefix() == 0 && rule.port().is_none()
}

fn match_port(code: &mut Assembler, rule: &EgressRule, next: Label) {
    let Some((port, protocol)) = rule.port() else { return };
    match protocol {
        Some(EgressProtocol::Tcp) => code.jump_if_u32(Condition::NotEqual, R7, TCP, next),
        Some(EgressProtocol::Udp) => code.jump_if_u32(Condition::NotEqual, R7, UDP, next),
        // Others have no port, which is 0 on the stack.
        None => {}
    }
    code.load(Size::U16, R2, STACK, PORTS + 2);
    code.jump_if_u32(Condition::NotEqual, R2, port.get().to_be().into(), next);
}

/// Jumps to `allow` if the packet answers what has come from where it goes to, and to `drop` otherwise. The peer's address is in its
/// place.
fn answers(code: &mut Assembler, peers: BorrowedFd<'_>, allow: Label, drop: Label) {
    let datagram = code.label();
    code.jump_if_u32(Condition::NotEqual, R7, TCP, datagram);
    code.load(Size::U8, R2, STACK, PORTS + FLAGS);
    code.compute_u32(Operation::And, R2, SYN_OR_ACK);
    code.jump_if_u32(Condition::NotEqual, R2, SYN, allow);
    code.jump(drop);
    code.place(datagram);
    code.jump_if_u32(Condition::NotEqual, R7, UDP, drop);
    copy_u16(code, PEER_PORT, PORTS + 2);
    copy_u16(code, OWN_PORT, PORTS);
    code.set_map(R1, peers);
    code.set_stack(R2, PEER);
    code.call(Helper::MapLookup);
    code.jump_if_zero(Condition::Equal, R0, drop);
    code.load(Size::U64, R9, R0, 0);
    code.call(Helper::KtimeGetNs);
    code.compute(Operation::Subtract, R0, R9);
    code.set(R1, ANSWERS);
    code.jump_if(Condition::Greater, R0, R1, drop);
    code.jump(allow);
}

/// Ends with `over` if a bucket has no token, and takes the packet's tokens otherwise.
///
/// A bucket is kept as the moment at which it will be full: what is missing is the time until then, and tokens are taken by moving it
/// further away. One number is changed at once, so that CPUs need no lock.
fn limited(code: &mut Assembler, limit: &PacketLimit, levels: BorrowedFd<'_>, over: i32) {
    let (known, refused, done) = (code.label(), code.label(), code.label());
    code.store_number(Size::U32, STACK, NUMBER, 0);
    code.set_map(R1, levels);
    code.set_stack(R2, NUMBER);
    code.call(Helper::MapLookup);
    code.jump_if_zero(Condition::NotEqual, R0, known);
    code.exit_with(DROP);
    code.place(known);
    code.compute(Operation::Move, R7, R0);
    code.call(Helper::KtimeGetNs);
    code.compute(Operation::Move, R8, R0);
    // A packet that has no token costs no bytes.
    if let Some(rate) = limit.packets {
        code.set(R9, NANOSECONDS / rate.per_second.get());
        take(code, 8, rate, refused);
    }
    if let Some(rate) = limit.bytes {
        code.load(Size::U32, R9, R6, SKB_LEN);
        code.set(R1, NANOSECONDS);
        code.compute(Operation::Multiply, R9, R1);
        code.set(R1, rate.per_second.get());
        code.compute(Operation::Divide, R9, R1);
        take(code, 0, rate, refused);
    }
    code.jump(done);
    code.place(refused);
    code.exit_with(over);
    code.place(done);
}

/// Takes R9 nanoseconds' tokens of the bucket at R7 and `offset`, at the moment R8.
fn take(code: &mut Assembler, offset: i16, rate: PacketRate, refused: Label) {
    let taken = code.label();
    let burst = u128::from(rate.burst.get()) * u128::from(NANOSECONDS) / u128::from(rate.per_second.get());
    for _ in 0..TRIES {
        let behind = code.label();
        code.load(Size::U64, R0, R7, offset);
        code.compute(Operation::Move, R2, R0);
        code.jump_if(Condition::GreaterOrEqual, R2, R8, behind);
        code.compute(Operation::Move, R2, R8);
        code.place(behind);
        code.compute(Operation::Move, R3, R2);
        code.compute(Operation::Subtract, R3, R8);
        code.set(R1, burst.clamp(1, u128::from(u64::MAX >> 2)) as u64);
        code.jump_if(Condition::GreaterOrEqual, R3, R1, refused);
        code.compute(Operation::Add, R2, R9);
        code.compute(Operation::Move, R4, R0);
        code.compare_exchange(R7, offset, R2);
        code.jump_if(Condition::Equal, R0, R4, taken);
    }
    code.jump(refused);
    code.place(taken);
}
