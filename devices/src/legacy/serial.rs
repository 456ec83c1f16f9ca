//! A 16550 serial port: the guest's console.

use std::collections::VecDeque;
use std::io::{self, Write};

use bellows_memory::sync::Mutex;
use serde::{Deserialize, Serialize};
use vm_superio::serial::{Error, NoEvents, Serial};
use vm_superio::{SerialState, Trigger};
use vmm_sys_util::eventfd::EventFd;

use crate::bus::BusDevice;
use crate::state::{RestoreError, Version};

type Output = Box<dyn Write + Send>;

/// A serial port at any base. The guest's output goes to a writer, on the vCPU's thread: a writer that blocks stops the guest.
pub struct SerialPort {
    state: Mutex<State>,
}

struct State {
    port: Serial<Interrupt, NoEvents, Output>,
    /// Input that waits for room in the port.
    waiting: VecDeque<u8>,
    /// Whether the writer's failure has been logged.
    complained: bool,
}

struct Interrupt(EventFd);

impl Trigger for Interrupt {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        self.0.write(1)
    }
}

/// State of a [`SerialPort`].
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct SerialPortState {
    /// Version of this type.
    pub version: Version<1>,
    /// Registers, and input that the guest has not read.
    #[serde(with = "Registers")]
    pub registers: SerialState,
    /// Input that the port has no room for.
    pub waiting: Vec<u8>,
}

/// The fields of [`SerialState`].
#[derive(Deserialize, Serialize)]
#[serde(remote = "SerialState")]
struct Registers {
    baud_divisor_low: u8,
    baud_divisor_high: u8,
    interrupt_enable: u8,
    interrupt_identification: u8,
    line_control: u8,
    line_status: u8,
    modem_control: u8,
    modem_status: u8,
    scratch: u8,
    in_buffer: Vec<u8>,
}

impl SerialPort {
    /// Number of ports.
    pub const LEN: u64 = 8;
    /// Most bytes of input kept for the guest.
    const MAX_WAITING: usize = 4096;

    /// A port that writes to `output` and signals `interrupt` (edge-triggered) for each event of the port.
    #[must_use]
    pub fn new(output: Output, interrupt: EventFd) -> Self {
        let port = Serial::new(Interrupt(interrupt), output);
        Self { state: Mutex::new(State { port, waiting: VecDeque::new(), complained: false }) }
    }

    /// The state.
    #[must_use]
    pub fn save(&self) -> SerialPortState {
        let state = self.state.lock();
        SerialPortState {
            version: Version,
            registers: state.port.state(),
            waiting: state.waiting.iter().copied().collect(),
        }
    }

    /// Makes a port as [`SerialPort::new`] does, restored from `state`. Signals `interrupt` if one was pending.
    ///
    /// # Errors
    /// The state has more input than a port keeps.
    pub fn restore(output: Output, interrupt: EventFd, state: &SerialPortState) -> Result<Self, RestoreError> {
        let SerialPortState { registers, waiting, .. } = state;
        if waiting.len() > Self::MAX_WAITING {
            let expected = format!("at most {}", Self::MAX_WAITING);
            return Err(RestoreError::new("number of bytes that wait for the serial port", waiting.len(), expected));
        }
        let port = Serial::from_state(registers, Interrupt(interrupt), NoEvents, output).map_err(|error| {
            let expected = format!("a state that the port accepts ({error})");
            RestoreError::new("number of bytes in the serial port", registers.in_buffer.len(), expected)
        })?;
        let waiting = waiting.iter().copied().collect();
        Ok(Self { state: Mutex::new(State { port, waiting, complained: false }) })
    }

    /// Sends `input` to the guest. Returns the number of bytes taken: not all of them if the guest does not read.
    pub fn enqueue(&self, input: &[u8]) -> usize {
        let mut state = self.state.lock();
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
        // After a failed interrupt the bytes are in the port nevertheless; in loopback mode none are.
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
        let mut state = self.state.lock();
        if let (Ok(register), Some(byte)) = (u8::try_from(offset), data.first_mut()) {
            *byte = state.port.read(register);
            state.refill();
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if let (Ok(register), &[byte]) = (u8::try_from(offset), data) {
            let mut state = self.state.lock();
            let result = state.port.write(register, byte);
            state.complain(result);
        }
    }
}
