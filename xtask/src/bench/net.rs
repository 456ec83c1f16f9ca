//! `bench net`: runs the program that makes traffic with guests, and makes a report of its output.

use std::fmt;

use bellows_bench::net::{Sample, Side, Work};
use bellows_lab::{Clock, Host, LabBuilder};
use serde::Serialize;

use super::boot::{QEMU, QEMU_FIRMWARE};
use super::figure::{Better, Figure};
use super::program::{ClockArgs, Program, lab_note};
use super::statistics::{median, sorted, spread};
use crate::error::{Error, Result};
use crate::{initramfs, packages, workspace};

/// Speed of Bellows divided by that of QEMU, at least: without vhost-net,
const AIM: f64 = 1.0;
/// and where both have it.
const VHOST_AIM: f64 = 0.9;
/// The name of the guest's initramfs on the lab's disk.
const INITRAMFS: &str = "net-initramfs.cpio";

#[derive(Debug, clap::Args)]
pub struct Options {
    /// Rounds for each monitor.
    #[arg(long, default_value_t = 5)]
    rounds: u32,
    #[command(flatten)]
    clock: ClockArgs,
}

pub fn run(options: &Options, install: bool) -> Result<()> {
    packages::ensure(&[packages::BENCH, packages::NETWORK], install)?;
    let program = Program::build("net", options.clock, install)?;
    let guest = initramfs::net(&program.cache, &workspace::net_init()?)?;
    let place = match program.host {
        Host::Kvm => guest.display().to_string(),
        Host::Lab => format!("/work/{INITRAMFS}"),
    };
    let mut samples = Vec::new();
    let furnish = |lab: LabBuilder| {
        let lab =
            lab.program(QEMU, QEMU).file(QEMU_FIRMWARE, QEMU_FIRMWARE).program("/usr/bin/passt", "/usr/bin/passt");
        lab.program("/usr/sbin/ip", "/usr/local/bin/ip").on_disk(&guest, INITRAMFS)
    };
    program.run(&[&options.rounds.to_string(), &place], furnish, |sample: Sample| {
        let Sample { side, work, packets, time, .. } = &sample;
        eprintln!("{:>4}  {side:<14} {work:<22} {packets:>6} in {time:.3?}", samples.len() + 1);
        samples.push(sample);
    })?;
    let report = Report::new(program.host, program.clock, &samples)?;
    super::keep("net", &report, report.figures())?;
    print!("{report}");
    Ok(())
}

/// What `target/bench/net.json` holds.
#[derive(Debug, Serialize)]
struct Report {
    host: Host,
    clock: Clock,
    rows: Vec<Row>,
}

/// One kind of traffic of one side: medians.
#[derive(Debug, Serialize)]
struct Row {
    work: Work,
    side: Side,
    n: usize,
    packets_per_s: f64,
    /// Distance between the quartiles.
    spread: f64,
    mb_per_s: f64,
    us_per_packet: f64,
    /// Where time is counted.
    instructions_per_packet: Option<f64>,
    instructions_per_byte: Option<f64>,
    exits_per_packet: f64,
    interrupts_per_packet: f64,
    /// Parts of all packets that got lost.
    lost: f64,
}

impl Report {
    fn new(host: Host, clock: Clock, samples: &[Sample]) -> Result<Self> {
        let mut rows = Vec::new();
        for work in Work::ALL {
            for side in Side::ALL.into_iter().filter(|side| work.is_for(*side)) {
                let own: Vec<&Sample> =
                    samples.iter().filter(|sample| sample.side == side && sample.work == work).collect();
                match Row::new(work, side, &own) {
                    Some(row) => rows.push(row),
                    // The host has no vhost-net.
                    None if side.has_vhost() => {}
                    None => return Err(Error::other(format!("the benchmark printed no samples of {side}: {work}"))),
                }
            }
        }
        Ok(Self { host, clock, rows })
    }

    fn row(&self, work: Work, side: Side) -> Option<&Row> {
        self.rows.iter().find(|row| row.work == work && row.side == side)
    }

    /// The figures to compare two runs by.
    fn figures(&self) -> Vec<Figure> {
        let figure = |row: &Row| Figure {
            name: format!("{}, {}", row.work, row.side),
            unit: "packets/s".to_owned(),
            better: Better::Higher,
            value: row.packets_per_s,
            spread: Some(row.spread),
        };
        self.rows.iter().map(figure).collect()
    }
}

impl Row {
    fn new(work: Work, side: Side, samples: &[&Sample]) -> Option<Self> {
        let values = |of: &dyn Fn(&Sample) -> f64| sorted(samples.iter().map(|sample| of(sample)).collect());
        let middle = |of: &dyn Fn(&Sample) -> f64| median(&values(of));
        let packets = |sample: &Sample| sample.packets as f64;
        let seconds = |sample: &Sample| sample.time.as_secs_f64();
        let rates = values(&|sample| packets(sample) / seconds(sample));
        let counted = samples.iter().all(|sample| sample.cost.is_some());
        let instructions = |sample: &Sample| sample.cost.map_or(0.0, |cost| cost.instructions as f64);
        Some(Self {
            work,
            side,
            n: samples.len(),
            packets_per_s: median(&rates)?,
            spread: spread(&rates).unwrap_or_default(),
            mb_per_s: middle(&|sample| sample.bytes as f64 / seconds(sample) / 1e6)?,
            us_per_packet: middle(&|sample| seconds(sample) * 1e6 / packets(sample))?,
            instructions_per_packet: middle(&|sample| instructions(sample) / packets(sample)).filter(|_| counted),
            instructions_per_byte: middle(&|sample| instructions(sample) / sample.bytes as f64).filter(|_| counted),
            exits_per_packet: middle(&|sample| sample.events.exits as f64 / packets(sample))?,
            interrupts_per_packet: middle(&|sample| sample.events.interrupts as f64 / packets(sample))?,
            lost: middle(&|sample| sample.lost as f64 / (sample.lost as f64 + packets(sample)))?,
        })
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "Packets of a guest, on this host ({}), medians:\n", self.host)?;
        writeln!(
            f,
            "  traffic                 side              packets/s      MB/s   us/packet   instructions/packet  /byte   \
             exits  interrupts    lost"
        )?;
        for row in &self.rows {
            let Row { work, side, packets_per_s, mb_per_s, us_per_packet, exits_per_packet, .. } = row;
            let optional =
                |value: Option<f64>, digits: usize| value.map_or("-".into(), |value| format!("{value:.digits$}"));
            writeln!(
                f,
                "  {work:<22}  {side:<14} {packets_per_s:>12.0} {mb_per_s:>9.1} {us_per_packet:>11.1} {:>21} {:>6} \
                 {exits_per_packet:>7.3} {:>11.3} {:>6.1} %",
                optional(row.instructions_per_packet, 0),
                optional(row.instructions_per_byte, 2),
                row.interrupts_per_packet,
                row.lost * 100.0,
            )?;
        }
        writeln!(f)?;
        lab_note(f, self.host, self.clock)?;
        for work in Work::ALL {
            let Some((own, peer)) = self.row(work, Side::Bellows).zip(self.row(work, Side::Qemu)) else { continue };
            let aim = |f: &mut fmt::Formatter<'_>, met: bool, text: String| {
                writeln!(f, "  {}  {work}: {text}", if met { "met    " } else { "not met" })
            };
            let ratio = own.packets_per_s / peer.packets_per_s;
            aim(f, ratio >= AIM, format!("{ratio:.2} of QEMU's packets per second, at least {AIM:.1}"))?;
            for (name, own, peer) in [
                ("exits", own.exits_per_packet, peer.exits_per_packet),
                ("interrupts", own.interrupts_per_packet, peer.interrupts_per_packet),
            ] {
                aim(f, own <= peer, format!("{own:.3} {name} per packet, at most QEMU's {peer:.3}"))?;
            }
            if let Some(vhost) = self.row(work, Side::QemuVhost) {
                let ratio = own_ratio(self, work, vhost);
                writeln!(f, "           {work}: {ratio:.2} of QEMU's packets per second with vhost-net")?;
                if let Some(own) = self.row(work, Side::BellowsVhost) {
                    let ratio = own.packets_per_s / vhost.packets_per_s;
                    aim(
                        f,
                        ratio >= VHOST_AIM,
                        format!("with vhost-net {ratio:.2} of QEMU's, at least {VHOST_AIM:.1}"),
                    )?;
                }
            }
            if let Some(passt) = self.row(work, Side::BellowsPasst) {
                let ratio = own_ratio(self, work, passt);
                writeln!(f, "           {work}: a TAP carries {ratio:.2} of what passt does")?;
            }
        }
        Ok(())
    }
}

/// Packets per second of Bellows at a TAP, divided by those of `other`.
fn own_ratio(report: &Report, work: Work, other: &Row) -> f64 {
    report.row(work, Side::Bellows).map_or(f64::NAN, |own| own.packets_per_s / other.packets_per_s)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use bellows_bench::cost::Cost;
    use bellows_bench::net::Events;

    use super::*;

    fn samples(sides: &[Side]) -> Vec<Sample> {
        let sample = |side: Side, work, milliseconds| Sample {
            side,
            work,
            packets: 900,
            lost: 100,
            bytes: 90_000,
            time: Duration::from_millis(milliseconds),
            cost: Some(Cost { instructions: 1_800_000, waited_ns: 0, exits: 0 }),
            events: Events { exits: if side == Side::Bellows { 900 } else { 450 }, interrupts: 90 },
        };
        let of = |(side, work): (Side, Work)| [100, 300, 200].map(|milliseconds| sample(side, work, milliseconds));
        let pairs = sides.iter().flat_map(|side| Work::ALL.map(|work| (*side, work)));
        pairs.filter(|(side, work)| work.is_for(*side)).flat_map(of).collect()
    }

    #[test]
    fn a_report_has_medians_and_says_what_is_met() {
        let report = Report::new(Host::Lab, Clock::Counted, &samples(&Side::ALL)).unwrap();
        assert_eq!(report.rows.len(), 4 * 5 + 3);
        let json = serde_json::to_value(&report).unwrap();
        let row = &json["rows"][0];
        assert_eq!((&row["side"], &row["work"], &row["n"]), (&"bellows".into(), &"round-trip".into(), &3.into()));
        assert_eq!((row["packets_per_s"].as_f64(), row["mb_per_s"].as_f64()), (Some(4500.0), Some(0.45)));
        assert_eq!(row["instructions_per_packet"].as_f64(), Some(2000.0));
        assert_eq!((row["exits_per_packet"].as_f64(), row["lost"].as_f64()), (Some(1.0), Some(0.1)));
        let text = report.to_string();
        assert!(text.contains("met      round trip, 64 B: 1.00 of QEMU's packets per second"), "{text}");
        assert!(text.contains("not met  round trip, 64 B: 1.000 exits per packet, at most QEMU's 0.500"), "{text}");
        assert!(text.contains("met      round trip, 64 B: 0.100 interrupts per packet"), "{text}");
        assert!(text.contains("1.00 of QEMU's packets per second with vhost-net"), "{text}");
        assert!(text.contains("met      round trip, 64 B: with vhost-net 1.00 of QEMU's, at least 0.9"), "{text}");
    }

    #[test]
    fn what_was_not_measured_is_an_error_but_for_vhost() {
        let report = Report::new(Host::Kvm, Clock::Wall, &samples(&[Side::Bellows, Side::Qemu, Side::BellowsPasst]));
        assert!(!report.unwrap().to_string().contains("vhost-net"));
        let error = Report::new(Host::Kvm, Clock::Wall, &samples(&[Side::Bellows, Side::QemuVhost])).unwrap_err();
        assert!(error.to_string().contains("qemu: round trip"), "{error}");
    }
}
