//! One stream between a host socket and the guest, as plain data: no descriptor, no guest memory.
//!
//! ```text
//! host asks:   Requested --RESPONSE--> Established
//! guest asks:  Connecting --host socket connected--> Established
//! ```
//!
//! An established connection ends each direction on its own. The guest ends one with SHUTDOWN; the host by end of file (sends
//! no more) or by refusing data (receives no more). A SHUTDOWN tells the guest, but takes a while to arrive: data that the
//! guest sends before that is dropped, and data from the host is still delivered. When the guest has ended both directions and
//! all its data is delivered, the connection is [finished](Connection::is_finished) and answered by RST; any breach of the
//! protocol ends it at once.

use super::backlog::Backlog;
use super::credit::{CreditExceeded, ReceiveWindow, SendCredit};
use super::packet::{Op, Shutdown};

/// The two ends of a connection; together they name it.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct Ports {
    /// Port on the host.
    pub host: u32,
    /// Port in the guest.
    pub guest: u32,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Phase {
    Requested,
    Connecting,
    Established,
}

/// The effect of a guest's packet on the host end.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Effect {
    /// No effect.
    None,
    /// The guest accepted the connection.
    Established,
    /// The payload is for the host socket.
    Payload,
    /// The guest ended a direction; see [`Connection::host_duty`].
    Shutdown,
    /// The guest has forgotten the connection.
    Reset,
}

/// How the guest broke the protocol.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Violation {
    /// The operation does not fit the connection's phase.
    #[error("operation {0:?} does not fit the connection's state")]
    Unexpected(Op),
    /// The operation does not exist.
    #[error("unknown operation {0}")]
    UnknownOp(u16),
    /// The header promises more payload than the packet holds.
    #[error("the header says {len} bytes of payload where {present} are present")]
    Truncated {
        /// The length in the header.
        len: u32,
        /// The bytes present.
        present: usize,
    },
    /// The guest sent more than its credit.
    #[error(transparent)]
    Credit(#[from] CreditExceeded),
}

/// The actions that the owner of the host socket must take, each once.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct HostDuty {
    /// Stop receiving, so that a host that goes on sending learns of it.
    pub shut_read: bool,
    /// Tell the host that no more data will come.
    pub shut_write: bool,
}

/// The state of one connection.
#[derive(Debug)]
pub struct Connection {
    ports: Ports,
    phase: Phase,
    handshake: Option<Op>,
    send: SendCredit,
    window: ReceiveWindow,
    backlog: Backlog,
    /// The host socket may have data or an end of file to read.
    host_readable: bool,
    credit_update: bool,
    credit_request: bool,
    /// Whether the guest was asked for credit and has not answered.
    credit_requested: bool,
    guest_shut: Shutdown,
    host_shut: Shutdown,
    host_shut_sent: Shutdown,
    duty_done: HostDuty,
    /// The guest has forgotten the connection; only its earlier data is still being delivered.
    lingering: bool,
}

impl Connection {
    fn new(ports: Ports, phase: Phase, buf_alloc: u32) -> Self {
        Self {
            ports,
            phase,
            handshake: None,
            send: SendCredit::default(),
            window: ReceiveWindow::new(buf_alloc),
            backlog: Backlog::new(buf_alloc as usize),
            host_readable: false,
            credit_update: false,
            credit_request: false,
            credit_requested: false,
            guest_shut: Shutdown::default(),
            host_shut: Shutdown::default(),
            host_shut_sent: Shutdown::default(),
            duty_done: HostDuty::default(),
            lingering: false,
        }
    }

    /// A connection that the host asks the guest for, with `buf_alloc` bytes of buffer.
    #[must_use]
    pub fn to_guest(ports: Ports, buf_alloc: u32) -> Self {
        Self { handshake: Some(Op::Request), ..Self::new(ports, Phase::Requested, buf_alloc) }
    }

    /// A connection that the guest asked for; it waits for [`Self::host_accepted`].
    #[must_use]
    pub fn from_guest(ports: Ports, buf_alloc: u32) -> Self {
        Self::new(ports, Phase::Connecting, buf_alloc)
    }

    /// The connection's name.
    #[must_use]
    pub const fn ports(&self) -> Ports {
        self.ports
    }

    /// Bytes of buffer promised to the guest.
    #[must_use]
    pub const fn buf_alloc(&self) -> u32 {
        self.window.buf_alloc()
    }

    /// Both sides have agreed to the connection.
    #[must_use]
    pub fn is_established(&self) -> bool {
        self.phase == Phase::Established
    }

    /// The guest has forgotten the connection and only delivery to the host goes on.
    #[must_use]
    pub const fn is_lingering(&self) -> bool {
        self.lingering
    }

    /// Whether the guest still receives.
    #[must_use]
    pub fn wants_host_data(&self) -> bool {
        self.is_established() && !self.lingering && !self.host_shut.send && !self.guest_shut.receive
    }

    /// Whether the host end is gone and the guest has not ended the connection yet.
    #[must_use]
    pub const fn is_orphaned(&self) -> bool {
        self.host_shut.is_both()
    }

    /// Bytes waiting for the host socket.
    #[must_use]
    pub const fn backlog(&self) -> &Backlog {
        &self.backlog
    }

    /// Takes the credit from a packet's header.
    pub fn guest_credit(&mut self, buf_alloc: u32, fwd_cnt: u32) {
        self.send.update(buf_alloc, fwd_cnt);
        if self.send.available() > 0 {
            self.credit_requested = false;
            self.credit_request = false;
        }
        self.ask_for_credit();
    }

    /// Takes a packet from the guest, of which `present` bytes of payload are there.
    ///
    /// # Errors
    /// The guest broke the protocol: the connection must be reset.
    pub fn receive(&mut self, op: u16, len: u32, flags: u32, present: usize) -> Result<Effect, Violation> {
        let op = Op::from_number(op).ok_or(Violation::UnknownOp(op))?;
        match (op, self.phase) {
            (Op::Reset, _) => {
                // If the guest sent everything, said so and then reset the connection, the host still gets the data.
                self.lingering = self.guest_shut.send && !self.backlog.is_empty();
                Ok(Effect::Reset)
            }
            (Op::Response, Phase::Requested) => {
                self.phase = Phase::Established;
                self.ask_for_credit();
                Ok(Effect::Established)
            }
            (Op::ReadWrite, Phase::Established) if !self.guest_shut.send => {
                if len as usize > present {
                    return Err(Violation::Truncated { len, present });
                }
                self.window.receive(len)?;
                if self.host_shut.receive {
                    self.forwarded(len);
                    return Ok(Effect::None);
                }
                Ok(Effect::Payload)
            }
            (Op::Shutdown, Phase::Established) => {
                self.guest_shut.add(Shutdown::from_flags(flags));
                Ok(Effect::Shutdown)
            }
            (Op::CreditUpdate, Phase::Established) => Ok(Effect::None),
            (Op::CreditRequest, Phase::Established) => {
                self.credit_update = true;
                Ok(Effect::None)
            }
            _ => Err(Violation::Unexpected(op)),
        }
    }

    /// Counts `bytes` of accepted payload as written straight to the host socket.
    pub fn forwarded(&mut self, bytes: u32) {
        self.window.forwarded(bytes);
        self.credit_update |= self.window.wants_update();
    }

    /// Room for `count` bytes of accepted payload that the host socket did not take. There is always room for bytes
    /// accepted and not yet forwarded; `None` if `count` is more.
    pub fn store(&mut self, count: usize) -> Option<&mut [u8]> {
        self.backlog.extend(count)
    }

    /// Counts the oldest `count` bytes of the backlog as written to the host socket.
    pub fn flushed(&mut self, count: usize) {
        let before = self.backlog.len();
        self.backlog.consume(count);
        // The backlog is no longer than `buf_alloc`, a u32.
        self.forwarded((before - self.backlog.len()) as u32);
    }

    /// Records that the host socket that the guest asked for is connected.
    pub fn host_accepted(&mut self) {
        self.phase = Phase::Established;
        self.handshake = Some(Op::Response);
    }

    /// Records that the host socket may have data to read.
    pub fn host_readable(&mut self) {
        self.host_readable = true;
        self.ask_for_credit();
    }

    /// Records that the host socket has no more data for now.
    pub fn host_blocked(&mut self) {
        self.host_readable = false;
    }

    /// Records that the host sends no more.
    pub fn host_ended(&mut self) {
        self.host_readable = false;
        self.host_shut.send = true;
    }

    /// Records that the host receives no more; the backlog is lost.
    pub fn host_deaf(&mut self) {
        self.host_shut.receive = true;
        self.backlog.clear();
        self.forwarded(self.window.held());
    }

    /// Bytes of host data that may go to the guest now; 0 if the host socket has no data.
    #[must_use]
    pub fn sendable(&self) -> u32 {
        if self.host_readable && self.wants_host_data() { self.send.available() } else { 0 }
    }

    /// Counts `bytes` of host data as sent to the guest; no more than [`Self::sendable`].
    pub fn sent(&mut self, bytes: u32) {
        self.send.sent(bytes);
        self.ask_for_credit();
    }

    /// Whether a packet for the guest is due.
    #[must_use]
    pub fn has_outgoing(&self) -> bool {
        if self.lingering {
            return false;
        }
        self.handshake.is_some()
            || self.is_established()
                && (self.shutdown_due() || self.credit_update || self.credit_request || self.sendable() > 0)
    }

    /// The next control packet for the guest: operation and flags.
    pub fn take_control(&mut self) -> Option<(Op, u32)> {
        if self.lingering {
            return None;
        }
        if let Some(op) = self.handshake.take() {
            return Some((op, 0));
        }
        if !self.is_established() {
            return None;
        }
        if self.shutdown_due() {
            self.host_shut_sent = self.host_shut;
            return Some((Op::Shutdown, self.host_shut.flags()));
        }
        if std::mem::take(&mut self.credit_request) {
            self.credit_requested = true;
            return Some((Op::CreditRequest, 0));
        }
        std::mem::take(&mut self.credit_update).then_some((Op::CreditUpdate, 0))
    }

    /// `buf_alloc` and `fwd_cnt` for the header of a packet that is about to be sent.
    pub fn advertise(&mut self) -> (u32, u32) {
        self.credit_update = false;
        self.window.advertise()
    }

    /// The actions on the host socket that became due since the last call.
    pub fn host_duty(&mut self) -> HostDuty {
        let due = HostDuty {
            shut_read: self.guest_shut.receive && !self.duty_done.shut_read,
            shut_write: self.guest_shut.send && self.backlog.is_empty() && !self.duty_done.shut_write,
        };
        self.duty_done.shut_read |= due.shut_read;
        self.duty_done.shut_write |= due.shut_write;
        due
    }

    /// Whether the guest is done with the host socket: it ended both directions or is gone, and all its data was delivered.
    #[must_use]
    pub const fn is_finished(&self) -> bool {
        (self.guest_shut.is_both() || self.lingering) && self.backlog.is_empty()
    }

    fn shutdown_due(&self) -> bool {
        self.host_shut != self.host_shut_sent
    }

    /// If the host has data and the guest no room, it asks once for credit, in case the guest's driver lost the update.
    fn ask_for_credit(&mut self) {
        let stalled = self.host_readable && self.wants_host_data() && self.send.available() == 0;
        if stalled && !self.credit_requested {
            self.credit_request = true;
        }
    }
}

#[cfg(test)]
#[path = "connection_test.rs"]
mod tests;
