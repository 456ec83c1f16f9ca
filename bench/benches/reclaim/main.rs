//! Has instances come and go in guests that keep memory apart in different ways, in turn, and prints a JSON object for each:
//! see [`bellows_bench::reclaim`]. `cargo xtask bench reclaim` runs it where KVM is.

#[path = "../common/mod.rs"]
mod common;
mod cycle;
mod guest;
mod neighbour;
mod peer;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use bellows_bench::reclaim::{Group, Mode, Wanted};

use crate::common::{Image, Result};
use crate::guest::Guest;
use crate::peer::Peer;

fn main() -> ExitCode {
    bellows_bench::end("reclaim", run())
}

fn run() -> Result<()> {
    let wanted = std::env::args().nth(1).ok_or("expected what is wanted, as JSON")?;
    let wanted: Vec<Wanted> = serde_json::from_str(&wanted)?;
    let peer_initramfs: PathBuf = std::env::args_os().nth(2).unwrap_or_default().into();
    let image = Image::import()?;
    let largest = wanted.iter().map(|wanted| wanted.group.size_mib).max().unwrap_or(0);
    for init_on_alloc in [false, true] {
        let part: Vec<_> = wanted.iter().filter(|wanted| wanted.group.init_on_alloc == init_on_alloc).collect();
        let mut guests = BTreeMap::new();
        for mode in Mode::OURS.into_iter().chain(Mode::PEERS) {
            if part.iter().any(|wanted| wanted.mode == mode) {
                eprintln!("boot a guest: {mode}, init_on_alloc={}", u8::from(init_on_alloc));
                guests.insert(mode, Side::boot(&image, &peer_initramfs, mode, init_on_alloc, largest)?);
            }
        }
        let mut groups: BTreeMap<Group, Vec<Wanted>> = BTreeMap::new();
        for wanted in part {
            groups.entry(wanted.group).or_default().push(*wanted);
        }
        for (group, wanted) in groups {
            take_turns(&mut guests, group, wanted)?;
        }
        for guest in guests.into_values() {
            guest.shutdown()?;
        }
    }
    Ok(())
}

/// A guest of Bellows, or of a peer.
enum Side {
    Ours(Box<Guest>),
    Peer(Peer),
}

impl Side {
    fn boot(image: &Image, peer_initramfs: &Path, mode: Mode, init_on_alloc: bool, largest_mib: u64) -> Result<Self> {
        Ok(match mode.is_peer() {
            false => Self::Ours(Box::new(Guest::boot(image, mode, init_on_alloc, largest_mib)?)),
            true => Self::Peer(Peer::boot(mode, peer_initramfs, init_on_alloc, largest_mib)?),
        })
    }

    fn shutdown(self) -> Result<()> {
        match self {
            Self::Ours(guest) => guest.shutdown(),
            // It ends when this is dropped.
            Self::Peer(_) => Ok(()),
        }
    }
}

/// One sample of each mode after the other, as long as further samples are wanted.
fn take_turns(guests: &mut BTreeMap<Mode, Side>, group: Group, mut wanted: Vec<Wanted>) -> Result<()> {
    while wanted.iter().any(|wanted| wanted.samples > 0) {
        for wanted in wanted.iter_mut().filter(|wanted| wanted.samples > 0) {
            let guest = guests.get_mut(&wanted.mode).ok_or("no guest of that mode")?;
            let sample = match guest {
                Side::Ours(guest) => cycle::run(guest, group, wanted.watched > 0)?,
                Side::Peer(peer) => peer.sample(group)?,
            };
            wanted.samples -= 1;
            wanted.watched = wanted.watched.saturating_sub(1);
            bellows_bench::print(&sample)?;
        }
    }
    Ok(())
}
