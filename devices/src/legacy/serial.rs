//! A 16550 serial port: the guest's console.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::sync::Mutex;

use vm_superio::Trigger;
use vm_superio::serial::{Error, NoEvents, Serial};
use vmm_sys_util::eventfd::EventFd;

use crate::bus::BusDevice;

type Output = Box<dyn Write + Send>;

/// A serial port at any base. What the guest sends goes to a writer, on the vCPU's thread: one that blocks stops the guest.
pub struct SerialPort {
    state: Mutex<State>,
}

struct State {
    port: Serial<Interrupt, NoEvents, Output>,
    /// Input that the guest has not made room for yet.
    waiting: VecDeque<u8>,
    /// The writer's failure has been logged.
    complained: bool,
}

struct Interrupt(EventFd);

impl Trigger for Interrupt {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        self.0.write(1)
    }
}

impl SerialPort {
    /// Number of ports.
    pub const LEN: u64 = 8;
    /// Most bytes of input kept for the guest.
    const MAX_WAITING: usize = 4096;

    /// A port that writes to `output` and signals `interrupt` (edge-triggered) when the guest has to look.
    #[must_use]
    pub fn new(output: Output, interrupt: EventFd) -> Self {
        let port = Serial::new(Interrupt(interrupt), output);
        Self { state: Mutex::new(State { port, waiting: VecDeque::new(), complained: false }) }
    }

    /// Sends `input` to the guest and says how many bytes of it were taken: not all of them if the guest does not read.
    pub fn enqueue(&self, input: &[u8]) -> usize {
        let mut state = super::lock(&self.state);
        let taken = input.len().min(Self::MAX_WAITING - state.waiting.len());
        state.waiting.extend(&input[..taken]);
        state.refill();
        taken
    }
}

impl State {
    /// Moves input to the port as far as it has room.
    fn refill(&mut self) {
        let count = self.waiting.len().min(self.port.fifo_capacity());
        if count == 0 {
            return;
        }
        let bytes: Vec<u8> = self.waiting.iter().take(count).copied().collect();
        let result = self.port.enqueue_raw_bytes(&bytes);
        // With a failed interrupt the bytes are in the port all the same; in loopback mode none are.
        let moved = *result.as_ref().unwrap_or(&count);
        self.waiting.drain(..moved);
        self.complain(result.map(drop));
    }

    fn complain(&mut self, result: Result<(), Error<io::Error>>) {
        if let Err(error) = result
            && !std::mem::replace(&mut self.complained, true)
        {
            tracing::warn!(%error, "the serial port loses data");
        }
    }
}

impl BusDevice for SerialPort {
    fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        let mut state = super::lock(&self.state);
        if let (Ok(register), Some(byte)) = (u8::try_from(offset), data.first_mut()) {
            *byte = state.port.read(register);
            state.refill();
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if let (Ok(register), &[byte]) = (u8::try_from(offset), data) {
            let mut state = super::lock(&self.state);
            let result = state.port.write(register, byte);
            state.complain(result);
        }
    }
}
