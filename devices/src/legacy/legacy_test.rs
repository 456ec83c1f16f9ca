use std::io::{self, Write};
use std::sync::{Arc, Mutex};

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::*;
use crate::bus::BusDevice;

#[derive(Clone, Default)]
struct Screen(Arc<Mutex<Vec<u8>>>);

impl Write for Screen {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend(data);
        Ok(data.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

const DATA: u64 = 0;
const INTERRUPT_ENABLE: u64 = 1;
const MODEM_CONTROL: u64 = 4;
const LINE_STATUS: u64 = 5;

fn read(device: &dyn BusDevice, offset: u64) -> u8 {
    let mut data = [0];
    device.read(offset, &mut data);
    data[0]
}

fn serial() -> (SerialPort, Screen, EventFd) {
    let (screen, interrupt) = (Screen::default(), EventFd::new(EFD_NONBLOCK).unwrap());
    (SerialPort::new(Box::new(screen.clone()), interrupt.try_clone().unwrap()), screen, interrupt)
}

#[test]
fn the_guests_output_is_written() {
    let (port, screen, _interrupt) = serial();
    for byte in b"hello\n" {
        assert_eq!(read(&port, LINE_STATUS) & 0x20, 0x20, "ready to send");
        port.write(DATA, &[*byte]);
    }
    assert_eq!(*screen.0.lock().unwrap(), b"hello\n");
}

#[test]
fn input_reaches_the_guest_in_order_with_an_interrupt() {
    let (port, _screen, interrupt) = serial();
    port.write(INTERRUPT_ENABLE, &[1]);
    let input: Vec<u8> = (0..200).collect();
    assert_eq!(port.enqueue(&input), 200);
    interrupt.read().unwrap();
    let mut got = Vec::new();
    while read(&port, LINE_STATUS) & 1 != 0 {
        got.push(read(&port, DATA));
    }
    assert_eq!(got, input);
}

#[test]
fn unread_input_is_bounded() {
    let (port, _screen, _interrupt) = serial();
    let mut taken = 0;
    for _ in 0..10 {
        taken += port.enqueue(&[7; 1000]);
    }
    assert!((4096..5000).contains(&taken), "{taken}");
    // In loopback mode the guest talks to itself.
    port.write(MODEM_CONTROL, &[0x10]);
    for _ in 0..5000 {
        port.write(DATA, &[8]);
        read(&port, DATA);
    }
    assert_eq!(port.enqueue(&[7]), 0);
    port.write(MODEM_CONTROL, &[0]);
    read(&port, DATA);
    assert!(port.enqueue(&[7]) == 1, "there is room again");
}

#[test]
fn a_failing_writer_does_not_fail_the_guest() {
    struct Broken;
    impl Write for Broken {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::Error::from(io::ErrorKind::BrokenPipe))
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let port = SerialPort::new(Box::new(Broken), EventFd::new(EFD_NONBLOCK).unwrap());
    for _ in 0..3 {
        port.write(DATA, b"x");
    }
    assert_eq!(read(&port, LINE_STATUS) & 0x20, 0x20);
}

#[test]
fn a_serial_port_goes_on_from_its_state() {
    let (port, _screen, _interrupt) = serial();
    port.write(1, &[0x01]);
    port.write(7, &[0x5a]);
    let input: Vec<u8> = (0..100).collect();
    assert_eq!(port.enqueue(&input), 100);
    let state = port.save();
    let text = serde_json::to_string(&state).unwrap();
    assert_eq!(serde_json::from_str::<SerialPortState>(&text).unwrap(), state);

    let interrupt = EventFd::new(EFD_NONBLOCK).unwrap();
    let restored = SerialPort::restore(Box::new(Screen::default()), interrupt.try_clone().unwrap(), &state).unwrap();
    assert_eq!(restored.save(), state);
    assert!(interrupt.read().is_ok(), "the guest has an interrupt to handle");
    assert_eq!(read(&restored, 7), 0x5a);
    let read: Vec<u8> = (0..100).map(|_| read(&restored, DATA)).collect();
    assert_eq!(read, input);

    let restore = |change: fn(&mut SerialPortState)| {
        let mut state = state.clone();
        change(&mut state);
        let restored = SerialPort::restore(Box::new(Screen::default()), EventFd::new(0).unwrap(), &state);
        restored.err().unwrap().to_string()
    };
    let error = restore(|state| state.waiting = vec![0; 4097]);
    assert_eq!(error, "number of bytes that wait for the serial port is 4097: expected at most 4096");
    let error = restore(|state| state.registers.in_buffer = vec![0; 65]);
    assert!(error.starts_with("number of bytes in the serial port is 65: expected"), "{error}");
}

#[test]
fn no_access_to_the_serial_port_panics() {
    let (port, _screen, _interrupt) = serial();
    for offset in 0..SerialPort::LEN {
        for len in [1, 2, 4, 8] {
            for value in [0, 0xff, 0x80] {
                port.write(offset, &vec![value; len]);
                port.read(offset, &mut vec![0; len]);
            }
        }
    }
}

#[test]
fn where_no_serial_port_is_a_guest_is_heard_and_gets_no_answer() {
    let screen = Screen::default();
    let port = VacantSerialPort::new(Box::new(screen.clone()));
    // As a driver sets a speed, and looks for the chip.
    port.write(3, &[0x80]);
    port.write(DATA, &[12]);
    port.write(1, &[0]);
    assert_eq!(port.save().line_control, 0x80);
    port.write(3, &[0x03]);
    port.write(7, &[0x5a]);
    port.write(DATA, b"ab");
    for offset in 0..VacantSerialPort::LEN {
        assert_eq!(read(&port, offset), 0xff);
    }
    port.write(DATA, b"a");
    let restored = VacantSerialPort::restore(Box::new(screen.clone()), &port.save());
    restored.write(DATA, b"b");
    assert_eq!(*screen.0.lock().unwrap(), b"ab");
}

#[test]
fn sleep_and_reset_registers_request_power_off_and_reset() {
    let asked = Arc::new(Mutex::new(Vec::new()));
    let seen = asked.clone();
    let ports = PowerPorts::new(move |request| seen.lock().unwrap().push(request));
    assert_eq!(read(&ports, PowerPorts::SLEEP_STATUS), 0);
    // No SLP_EN; S3; not the reset value; two bytes at once; beside the registers.
    ports.write(PowerPorts::SLEEP_CONTROL, &[5 << 2]);
    ports.write(PowerPorts::SLEEP_CONTROL, &[3 << 2 | 1 << 5]);
    ports.write(PowerPorts::RESET, &[2]);
    ports.write(PowerPorts::RESET, &[1, 0]);
    ports.write(PowerPorts::SLEEP_STATUS, &[1]);
    assert!(asked.lock().unwrap().is_empty());

    ports.write(PowerPorts::SLEEP_CONTROL, &[PowerPorts::SLEEP_TYPE_OFF << 2 | 1 << 5]);
    ports.write(PowerPorts::RESET, &[PowerPorts::RESET_VALUE]);
    assert_eq!(*asked.lock().unwrap(), [PowerRequest::Shutdown, PowerRequest::Reset]);
}

#[test]
fn the_keyboard_controllers_reset_line_resets() {
    let pulled = Arc::new(Mutex::new(0));
    let seen = pulled.clone();
    let controller = KeyboardController::new(move || *seen.lock().unwrap() += 1);
    assert_eq!(read(&controller, 0), 0, "ready for a command");
    controller.write(0, &[0xae]);
    controller.write(0, &[0xfe, 0xfe]);
    assert_eq!(*pulled.lock().unwrap(), 0);
    controller.write(0, &[0xfe]);
    assert_eq!(*pulled.lock().unwrap(), 1);
}
