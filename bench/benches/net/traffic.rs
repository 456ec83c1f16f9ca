//! The host's end of the traffic.

use std::io::{BufRead as _, BufReader, ErrorKind, Read as _, Write as _};
use std::net::{IpAddr, Shutdown, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use bellows_bench::cost::Meter;
use bellows_bench::net::{COMMANDS, DATAGRAMS, ECHO, Events, HOST, LARGE, SINK, SMALL, SOURCE, Sample, Side, Work};

use crate::{PATIENCE, Result};

/// Datagrams, one after the other, there and back.
const ROUND_TRIPS: u64 = 200;
/// Datagrams that are sent at once, fewer than a TAP's queue holds, and how often.
const BURST: u64 = 128;
const BURSTS: u64 = 16;
/// How often a guest is asked for a burst. What has not come then got lost.
const QUESTIONS: u32 = 8;
/// Bytes of a stream.
const STREAM: u64 = 32 << 20;

/// What talks to a guest.
pub struct Ends {
    guest: IpAddr,
    commands: BufReader<TcpStream>,
    echo: UdpSocket,
    /// For datagrams both ways; without a TAP there are none.
    datagrams: UdpSocket,
}

/// Packets that have come, ones that have not, and the bytes of the former.
struct Done {
    packets: u64,
    lost: u64,
    bytes: u64,
}

impl Ends {
    pub fn connect(guest: IpAddr) -> Result<Self> {
        let commands = TcpStream::connect((guest, COMMANDS))?;
        commands.set_nodelay(true)?;
        commands.set_read_timeout(Some(PATIENCE))?;
        let echo = UdpSocket::bind("0.0.0.0:0")?;
        echo.connect((guest, ECHO))?;
        // One that gets lost costs this time, and counts as lost.
        echo.set_read_timeout(Some(Duration::from_secs(2)))?;
        let datagrams = UdpSocket::bind((HOST, DATAGRAMS))?;
        datagrams.set_nonblocking(true)?;
        Ok(Self { guest, commands: BufReader::new(commands), echo, datagrams })
    }

    /// Makes traffic of one kind, and measures it.
    pub fn run(&mut self, side: Side, work: Work) -> Result<Sample> {
        let before = Events::so_far()?;
        let meter = Meter::start_if_counted()?;
        let begun = Instant::now();
        let done = match work {
            Work::RoundTrip => self.round_trips(),
            Work::SendSmall => self.take_datagrams(),
            Work::ReceiveSmall => self.give_datagrams(),
            Work::SendLarge => self.take_stream(),
            Work::ReceiveLarge => self.give_stream(),
        }?;
        let time = begun.elapsed();
        let cost = meter.map(Meter::stop).transpose()?;
        let events = Events::so_far()?.since(before);
        let Done { packets, lost, bytes } = done;
        if packets == 0 {
            return Err(format!("{side}: {work}: all {lost} packets got lost").into());
        }
        Ok(Sample { side, work, packets, lost, bytes, time, cost, events })
    }

    fn command(&mut self, line: &str) -> Result<String> {
        writeln!(self.commands.get_mut(), "{line}")?;
        let mut answer = String::new();
        self.commands.read_line(&mut answer)?;
        Ok(answer.trim_end().to_owned())
    }

    fn round_trips(&mut self) -> Result<Done> {
        let mut lost = 0;
        for _ in 0..ROUND_TRIPS {
            self.echo.send(&[0; SMALL])?;
            match self.echo.recv(&mut [0; SMALL]) {
                Ok(_) => {}
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => lost += 1,
                Err(error) => return Err(error.into()),
            }
        }
        let packets = ROUND_TRIPS - lost;
        Ok(Done { packets, lost, bytes: packets * SMALL as u64 })
    }

    /// What the socket holds; it has room for a burst.
    fn take_datagrams(&mut self) -> Result<Done> {
        let mut packets = 0;
        for _ in 0..BURSTS {
            let answer = self.command(&format!("send {SMALL} {BURST}"))?;
            if answer != "sent" {
                return Err(format!("the guest answers {answer:?}").into());
            }
            // The answer has come behind them.
            while self.datagrams.recv(&mut [0; 2048]).is_ok() {
                packets += 1;
            }
        }
        Ok(Done { packets, lost: (BURST * BURSTS).saturating_sub(packets), bytes: packets * SMALL as u64 })
    }

    fn give_datagrams(&mut self) -> Result<Done> {
        let mut packets = 0;
        for _ in 0..BURSTS {
            for _ in 0..BURST {
                self.datagrams.send_to(&[0; SMALL], (self.guest, DATAGRAMS))?;
            }
            // The question can be faster than the last of them.
            let mut come = 0;
            for _ in 0..QUESTIONS {
                let answer = self.command("count")?;
                come += answer.parse::<u64>().map_err(|error| format!("the guest answers {answer:?}: {error}"))?;
                if come >= BURST {
                    break;
                }
            }
            packets += come;
        }
        Ok(Done { packets, lost: (BURST * BURSTS).saturating_sub(packets), bytes: packets * SMALL as u64 })
    }

    fn take_stream(&mut self) -> Result<Done> {
        let mut stream = self.stream(SOURCE)?;
        stream.write_all(&STREAM.to_be_bytes())?;
        let mut buffer = vec![0; LARGE];
        let mut bytes = 0;
        while bytes < STREAM {
            match stream.read(&mut buffer)? {
                0 => return Err(format!("the guest's stream ends after {bytes} bytes").into()),
                read => bytes += read as u64,
            }
        }
        Ok(Done { packets: bytes / LARGE as u64, lost: 0, bytes })
    }

    fn give_stream(&mut self) -> Result<Done> {
        let mut stream = self.stream(SINK)?;
        let buffer = vec![0; LARGE];
        for _ in 0..STREAM / LARGE as u64 {
            stream.write_all(&buffer)?;
        }
        stream.shutdown(Shutdown::Write)?;
        let mut taken = [0; 8];
        stream.read_exact(&mut taken)?;
        let bytes = u64::from_be_bytes(taken);
        Ok(Done { packets: bytes / LARGE as u64, lost: 0, bytes })
    }

    fn stream(&self, port: u16) -> Result<TcpStream> {
        let stream = TcpStream::connect((self.guest, port))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        Ok(stream)
    }
}
