//! TCP for the service: frames of the guest in, frames for the guest out. Time is told from outside.

use std::collections::VecDeque;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use smoltcp::iface::{Config, Interface, SocketSet};
use smoltcp::phy::{self, Checksum, DeviceCapabilities, Medium};
use smoltcp::time;
use smoltcp::wire::{EthernetAddress, EthernetProtocol, HardwareAddress, IpCidr, Ipv4Cidr};

use super::connection::Connection;
use super::ethernet::{ETHERNET_BYTES, Wanted, envelope, read};
use super::http::Service;

/// Connections at a time, one of which waits for another client. One more ends the connection that has been idle the longest.
const CONNECTIONS: usize = 32;
/// Frames that wait for the guest; while there are as many, connections wait.
const MAX_WAITING: usize = 64;
/// Most bytes of a packet to the guest, which may want fewer.
const MAX_PACKET: u16 = 1500;
/// How often connections get their turn for one frame of the guest.
const TURNS: usize = 8;
/// Shortest time between two turns without a frame of the guest.
const PATIENCE: Duration = Duration::from_millis(10);

/// The connections of one interface.
pub(super) struct Stack {
    address: Ipv4Addr,
    interface: Interface,
    sockets: SocketSet<'static>,
    connections: Vec<Connection>,
    wire: Wire,
    begin: Instant,
    /// Counts what connections have done.
    clock: u64,
    /// When connections have something to do by themselves.
    due: Option<Instant>,
}

/// The way to the guest. Its other side is where the last packet came from.
struct Wire {
    guest: EthernetAddress,
    max_packet: u16,
    /// The packet that has just come.
    incoming: Option<Vec<u8>>,
    /// Frames.
    outgoing: VecDeque<Vec<u8>>,
}

impl Stack {
    /// The stack of a service at `address`, with `seed` for what its clients should not guess.
    pub(super) fn new(address: Ipv4Addr, mtu: Option<u16>, seed: u64, begin: Instant) -> Self {
        let max_packet = mtu.map_or(MAX_PACKET, |mtu| mtu.min(MAX_PACKET));
        let mut wire =
            Wire { guest: EthernetAddress::BROADCAST, max_packet, incoming: None, outgoing: VecDeque::new() };
        let mut config = Config::new(HardwareAddress::Ip);
        config.random_seed = seed;
        let mut interface = Interface::new(config, &mut wire, time::Instant::ZERO);
        interface.update_ip_addrs(|addresses| {
            // Every address of the guest's is on the same wire.
            let _ = addresses.push(IpCidr::Ipv4(Ipv4Cidr::new(address, 0)));
        });
        let mut sockets = SocketSet::new(Vec::new());
        let connections = (0..CONNECTIONS).map(|_| Connection::new(&mut sockets)).collect();
        let mut stack = Self { address, interface, sockets, connections, wire, begin, clock: 0, due: None };
        stack.listen();
        stack
    }

    /// Takes a frame of the guest's that is for the service.
    pub(super) fn take(&mut self, frame: &[u8], service: &mut Service, now: Instant) {
        match read(frame, self.address) {
            // What is lost because too much waits is asked for again.
            Wanted::Answer(answer) if self.wire.outgoing.len() < MAX_WAITING => self.wire.outgoing.push_back(answer),
            Wanted::Packet(packet, from) => {
                self.wire.guest = from;
                self.wire.incoming = Some(packet.to_vec());
                self.turn(service, now);
                self.wire.incoming = None;
            }
            Wanted::Answer(_) | Wanted::Nothing => {}
        }
    }

    /// The next frame for the guest.
    pub(super) fn next(&mut self, service: &mut Service, now: Instant) -> Option<Vec<u8>> {
        let frame = self.wire.outgoing.pop_front();
        if self.wire.outgoing.len() < MAX_WAITING / 2 {
            self.turn(service, now);
        }
        frame
    }

    /// Frames that wait for the guest.
    pub(super) fn waiting(&self) -> usize {
        self.wire.outgoing.len()
    }

    /// How long until connections have something to do by themselves; while frames wait, that is the guest's to say.
    pub(super) fn wait(&self, now: Instant) -> Option<Duration> {
        let due = self.due.filter(|_| self.waiting() == 0)?;
        Some(due.saturating_duration_since(now).max(PATIENCE))
    }

    /// Does all that there is to do.
    pub(super) fn turn(&mut self, service: &mut Service, now: Instant) {
        let moment = self.moment(now);
        self.turns(service, now, moment);
        let wait = self.interface.poll_delay(moment, &self.sockets);
        self.due = wait.map(|wait| now + Duration::from_micros(wait.total_micros()));
    }

    fn turns(&mut self, service: &mut Service, now: Instant, moment: time::Instant) {
        for _ in 0..TURNS {
            self.interface.poll(moment, &mut self.wire, &mut self.sockets);
            let mut is_busy = false;
            for connection in &mut self.connections {
                if connection.serve(&mut self.sockets, service, now) {
                    self.clock += 1;
                    connection.used = self.clock;
                    is_busy = true;
                }
            }
            if !self.listen() && !is_busy {
                return;
            }
        }
        self.interface.poll(moment, &mut self.wire, &mut self.sockets);
        self.listen();
    }

    /// Ends all connections and forgets what waits, without a word to the guest.
    pub(super) fn reset(&mut self) {
        self.wire.outgoing.clear();
        self.due = None;
        for connection in &mut self.connections {
            connection.forget(&mut self.sockets);
        }
        self.listen();
    }

    /// Has a connection wait for a client, or end for the sake of one that will. Returns whether there was something to do.
    fn listen(&mut self) -> bool {
        if self.connections.iter().any(|connection| connection.waits(&self.sockets)) {
            return false;
        }
        let sockets = &mut self.sockets;
        match self.connections.iter_mut().find(|connection| connection.is_free(sockets)) {
            Some(free) => free.listen(sockets),
            None => {
                if let Some(idle) = self.connections.iter_mut().min_by_key(|connection| connection.used) {
                    idle.abort(sockets);
                }
            }
        }
        true
    }

    fn moment(&self, now: Instant) -> time::Instant {
        let micros = now.saturating_duration_since(self.begin).as_micros();
        time::Instant::from_micros(i64::try_from(micros).unwrap_or(i64::MAX))
    }
}

struct Incoming(Vec<u8>);

struct Outgoing<'a>(EthernetAddress, &'a mut VecDeque<Vec<u8>>);

impl phy::Device for Wire {
    type RxToken<'a> = Incoming;
    type TxToken<'a> = Outgoing<'a>;

    fn receive(&mut self, _: time::Instant) -> Option<(Incoming, Outgoing<'_>)> {
        if self.outgoing.len() >= MAX_WAITING {
            return None;
        }
        let incoming = Incoming(self.incoming.take()?);
        Some((incoming, Outgoing(self.guest, &mut self.outgoing)))
    }

    fn transmit(&mut self, _: time::Instant) -> Option<Outgoing<'_>> {
        (self.outgoing.len() < MAX_WAITING).then_some(Outgoing(self.guest, &mut self.outgoing))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        capabilities.max_transmission_unit = self.max_packet.into();
        // A guest leaves checksums of what it sends to the other side.
        capabilities.checksum.tcp = Checksum::Tx;
        capabilities
    }
}

impl phy::RxToken for Incoming {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, use_it: F) -> R {
        use_it(&self.0)
    }
}

impl phy::TxToken for Outgoing<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, length: usize, fill: F) -> R {
        let mut frame = vec![0; ETHERNET_BYTES + length];
        envelope(&mut frame, self.0, EthernetProtocol::Ipv4);
        let result = fill(&mut frame[ETHERNET_BYTES..]);
        self.1.push_back(frame);
        result
    }
}

#[cfg(test)]
#[path = "stack_test.rs"]
mod tests;
