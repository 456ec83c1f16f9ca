//! `bench reclaim`: runs the program in which instances come and go, keeps every sample, and makes a report of all.

mod page;
mod report;
mod samples;

use bellows_bench::reclaim::{Group, Load, Mode, Sample, Wanted};
use bellows_lab::{DISK, Host, LabBuilder};

use crate::cache::Key;
use crate::error::{Error, Result};
use crate::{initramfs, packages, workspace};

use self::report::Report;
use self::samples::Samples;
use super::program::{ClockArgs, Program};
use super::statistics::ms;

/// Samples that measure the speed of a busy neighbour, which makes them long.
const WATCHED: u32 = 20;

/// The peer, and the tools for it.
const QEMU: &str = "/usr/bin/qemu-system-x86_64";
const QEMU_FILES: [&str; 3] =
    ["/usr/share/seabios/bios-256k.bin", "/usr/share/qemu/pvh.bin", "/usr/share/qemu/kvmvapic.bin"];
/// Memory of the lab: room for the largest size beside three guests, each with a neighbour.
const LAB_MEMORY_MIB: u64 = 16 << 10;
/// The program of its guests, on the lab's disk.
const PEER_INITRAMFS: &str = "peer-initramfs.cpio";

#[derive(Debug, clap::Args)]
pub struct Options {
    /// Sizes of the memory that is plugged and unplugged, in MiB.
    #[arg(long, value_delimiter = ',', default_values_t = [512, 1024, 2048, 4096, 8192])]
    sizes: Vec<u64>,
    /// The neighbour's activity.
    #[arg(long, value_delimiter = ',', value_parser = load, default_value = "quiet,busy")]
    loads: Vec<Load>,
    /// Whether the guest's kernel zeroes pages that it hands out (0, 1).
    #[arg(long, value_delimiter = ',', value_parser = switch, default_value = "0,1")]
    init_on_alloc: Vec<bool>,
    /// Samples of each row.
    #[arg(long, default_value_t = 5)]
    samples: u32,
    /// Samples of each row of the extension; from 200 on there is a 99th percentile.
    #[arg(long, default_value_t = 20)]
    extension_samples: u32,
    /// Samples of each row of the extension at 2 GiB.
    #[arg(long, default_value_t = 200)]
    extension_2g_samples: u32,
    /// QEMU with virtio-mem and with virtio-balloon as well, with a quiet neighbour.
    #[arg(long)]
    peers: bool,
    /// Only 2 GiB, without zeroing, with a quiet neighbour, five samples.
    #[arg(long, conflicts_with_all = ["sizes", "loads", "init_on_alloc", "samples", "extension_samples", "extension_2g_samples"])]
    quick: bool,
    #[command(flatten)]
    clock: ClockArgs,
}

fn load(text: &str) -> std::result::Result<Load, String> {
    [Load::Quiet, Load::Busy]
        .into_iter()
        .find(|load| load.to_string() == text)
        .ok_or_else(|| "expected quiet or busy".to_owned())
}

fn switch(text: &str) -> std::result::Result<bool, String> {
    match text {
        "0" => Ok(false),
        "1" => Ok(true),
        _ => Err("expected 0 or 1".to_owned()),
    }
}

impl Options {
    /// All rows with the number of samples that each still needs.
    fn wanted(&self, samples: &Samples) -> Vec<Wanted> {
        let (sizes, loads, switches) = if self.quick {
            (&[2048][..], &[Load::Quiet][..], &[false][..])
        } else {
            (&self.sizes[..], &self.loads[..], &self.init_on_alloc[..])
        };
        let mut wanted = Vec::new();
        for &init_on_alloc in switches {
            for &size_mib in sizes {
                for &load in loads {
                    let group = Group { init_on_alloc, size_mib, load };
                    let peers = if self.peers && load == Load::Quiet { &Mode::PEERS[..] } else { &[] };
                    let modes = Mode::OURS.iter().chain(peers);
                    wanted.extend(modes.map(|mode| self.row(group, *mode, samples.count(group, *mode))));
                }
            }
        }
        wanted.retain(|wanted| wanted.samples > 0);
        wanted
    }

    fn row(&self, group: Group, mode: Mode, there: u32) -> Wanted {
        let samples = match mode {
            _ if self.quick => 5,
            Mode::Extension if group.size_mib == 2048 => self.extension_2g_samples,
            Mode::Extension => self.extension_samples,
            _ => self.samples,
        };
        Wanted { group, mode, samples: samples.saturating_sub(there), watched: WATCHED.saturating_sub(there) }
    }
}

pub fn run(options: &Options, install: bool) -> Result<()> {
    if options.peers {
        packages::ensure(&[packages::BENCH], install)?;
    }
    let program = Program::build("reclaim", options.clock, install)?;
    let peer = if options.peers { Some(initramfs::peer(&program.cache, &workspace::peer_init()?)?) } else { None };
    let key = Key::default()
        .with("host", program.host.to_string())
        .with("clock", program.clock.to_string())
        .with_file(&program.artefacts.kernel)?
        .with_file(&program.artefacts.initramfs)?
        .with_file(&program.path)?;
    let path = super::directory()?.join("reclaim.samples");
    let mut samples = Samples::open(&path, &key)?;
    let wanted = options.wanted(&samples);
    if !wanted.is_empty() {
        let to_come = wanted.iter().map(|row| row.samples).sum::<u32>();
        eprintln!("{} samples are there, {to_come} to come", samples.all().len());
        let json = serde_json::to_string(&wanted).map_err(|error| Error::other(error.to_string()))?;
        let mut kept = Ok(());
        let place = match (&peer, program.host) {
            (Some(_), Host::Lab) => format!("{DISK}/{PEER_INITRAMFS}"),
            (peer, _) => peer.iter().map(|path| path.display().to_string()).collect(),
        };
        let furnish = |lab: LabBuilder| {
            let lab = lab.memory_mib(LAB_MEMORY_MIB);
            let lab = peer.iter().fold(lab, |lab, path| lab.on_disk(path, PEER_INITRAMFS).program(QEMU, QEMU));
            QEMU_FILES.iter().filter(|_| peer.is_some()).fold(lab, |lab, file| lab.file(file, file))
        };
        let ran = program.run(&[&json, &place], furnish, |sample: Sample| {
            tell(&sample);
            if kept.is_ok() {
                kept = samples.add(sample);
            }
        });
        kept?;
        ran.map_err(|error| Error::other(format!("{error}; run it again to go on")))?;
    }
    let report = Report::new(program.host, program.clock, samples.all());
    super::keep("reclaim", &report, report::figures(samples.all()))?;
    let page = super::directory()?.join("reclaim.html");
    std::fs::write(&page, page::html(&report, samples.all())).map_err(Error::at(&page))?;
    print!("{report}");
    println!("Plots: {}", page.display());
    Ok(())
}

/// Shows progress: a sample takes seconds.
fn tell(sample: &Sample) {
    let Group { init_on_alloc, size_mib, load } = sample.group;
    eprintln!(
        "{:<9} {size_mib:>5} MiB  init_on_alloc={}  {load:<5}  plug {:>9.3} ms  unplug {:>9.3} ms  {} pages migrated",
        sample.mode.to_string(),
        u8::from(init_on_alloc),
        ms(sample.plug),
        ms(sample.unplug),
        sample.migrated_pages(),
    );
}
