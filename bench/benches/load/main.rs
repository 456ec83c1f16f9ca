//! Runs functions that come in bursts, in guests that get their memory in different ways, one guest after the other, and
//! prints a JSON object a line: see [`bellows_bench::load`]. `cargo xtask bench load` and `bench elastic` run it where KVM is.

#[path = "../common/mod.rs"]
mod common;
mod function;
mod guest;
mod pool;

use std::process::ExitCode;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use bellows_bench::cost::Meter;
use bellows_bench::load::{Arrival, Line, Provision, Ran, arrivals};
use bellows_bench::print;

use crate::common::{Image, Result};
use crate::guest::Guest;
use crate::pool::Place;

/// Time between two looks at memory.
const PAUSE: Duration = Duration::from_millis(100);
/// Looks before the first arrival, for their cost.
const LOOKS: u32 = 20;
const SEED: u64 = 0x5eed_ba11;

fn main() -> ExitCode {
    bellows_bench::end("load", run())
}

fn run() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let mut milliseconds = |name: &str| {
        let text = arguments.next().ok_or_else(|| format!("expected {name} in ms"))?;
        let number = text.parse().map_err(|error| format!("{name} {text:?}: {error}"))?;
        Ok::<_, Box<dyn std::error::Error + Send + Sync>>(Duration::from_millis(number))
    };
    let arrivals = arrivals(SEED, milliseconds("a length")?, milliseconds("a gap")?);
    let provisions = arguments.map(|name| name.parse()).collect::<std::result::Result<Vec<Provision>, _>>()?;
    let image = Image::import()?;
    for provision in provisions {
        eprintln!("boot a guest: {provision}");
        let guest = Guest::boot(&image, provision)?;
        print(&Line::Guest { provision, base: guest.base })?;
        count_looks(&guest)?;
        let meter = Meter::start_if_counted()?;
        let result = replay(&guest, &arrivals);
        if let Some(meter) = meter {
            print(&Line::Cost(meter.stop()?))?;
        }
        guest.shutdown()?;
        result?;
    }
    Ok(())
}

/// Tells what a look costs, where time is counted.
fn count_looks(guest: &Guest) -> Result<()> {
    let Some(meter) = Meter::start_if_counted()? else { return Ok(()) };
    for _ in 0..LOOKS {
        guest.look(Duration::ZERO)?;
    }
    Ok(print(&Line::Looks { count: LOOKS, cost: meter.stop()? })?)
}

/// Runs all of them, each when it arrives.
fn replay(guest: &Guest, arrivals: &[Arrival]) -> Result<()> {
    let start = Instant::now();
    let (stop, stopped) = mpsc::channel::<()>();
    thread::scope(|scope| {
        let watch = scope.spawn(move || {
            while stopped.recv_timeout(PAUSE) == Err(mpsc::RecvTimeoutError::Timeout) {
                print(&Line::Look(guest.look(start.elapsed())?))?;
            }
            Ok(())
        });
        let functions: Vec<_> = arrivals
            .iter()
            .enumerate()
            .map(|(number, arrival)| {
                scope.spawn(move || {
                    thread::sleep(arrival.at.saturating_sub(start.elapsed()));
                    Ok(print(&Line::Ran(one(guest, number, arrival, start)?))?)
                })
            })
            .collect();
        let results = functions.into_iter().map(joined).collect::<Result<Vec<()>>>();
        drop(stop);
        joined(watch)?;
        results.map(drop)
    })
}

fn one(guest: &Guest, number: usize, arrival: &Arrival, start: Instant) -> Result<Ran> {
    let place: Place<'_> = guest.pool.take(arrival.memory_mib);
    let admitted = start.elapsed();
    let plug = guest.plug(&place)?;
    let (instance, peak) = function::run(guest, number, arrival, &place)?;
    let done = start.elapsed();
    instance.remove(common::PATIENCE)?;
    let unplug = guest.unplug(&place)?;
    Ok(Ran { at: arrival.at, admitted, done, unplugged: start.elapsed(), plug, unplug, peak })
}

fn joined(thread: thread::ScopedJoinHandle<'_, Result<()>>) -> Result<()> {
    thread.join().unwrap_or_else(|_| Err("a thread panicked".into()))
}
