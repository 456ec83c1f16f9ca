//! Many VMs of one image, all running at the end.

use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Instant;

use bellows_bench::layers::{Answer, Line, Together, Way};
use bellows_bench::print;
use bellows_bench::smaps::Overhead;

use crate::Result;
use crate::disk::{Copy, bytes_read, evict};
use crate::monitor::{Launcher, Monitor, Source};

/// VMs that start at the same time, for each processor.
const STARTING: usize = 3;

/// Runs `vms` VMs of the image `shared` in `directory`, or of copies of the file system beside it.
pub fn run(launcher: &Launcher, directory: &Path, way: Way, vms: usize) -> Result<Together> {
    // One more than is counted: with copies, the first VM finds its copy in the host's page cache.
    let sources = Sources::new(directory, way, vms + 1)?;
    let (first, counted) = sources.list.split_first().ok_or("no VMs")?;
    // The first VM reads the kernel and all other files outside the image, and has everything made that is made once
    // for an image.
    launcher.start(first)?.answer()?;
    evict(&directory.join("store"))?;

    let (before, start) = (bytes_read(directory)?, Instant::now());
    let next = AtomicUsize::new(0);
    let work = || -> Result<Vec<(Monitor, Answer)>> {
        let mut started = Vec::new();
        while let Some(source) = counted.get(next.fetch_add(1, Ordering::Relaxed)) {
            let mut monitor = launcher.start(source)?;
            let answer = monitor.answer()?;
            print(&Line::Answered { way, after: start.elapsed() })?;
            started.push((monitor, answer));
        }
        Ok(started)
    };
    let workers = STARTING * thread::available_parallelism()?.get();
    let started = thread::scope(|scope| {
        let workers: Vec<_> = (0..workers).map(|_| scope.spawn(work)).collect();
        let joined =
            workers.into_iter().map(|worker| worker.join().unwrap_or_else(|_| Err("a thread panicked".into())));
        joined.collect::<Result<Vec<_>>>()
    })?;
    let (wall, disk_bytes_read) = (start.elapsed(), bytes_read(directory)? - before);

    let started: Vec<(Monitor, Answer)> = started.into_iter().flatten().collect();
    let overheads = started.iter().map(|(monitor, _)| monitor.overhead()).collect::<Result<Vec<Overhead>>>()?;
    let answers = started.iter().map(|(_, answer)| *answer).collect();
    drop(started);
    Ok(Together { way, disk_bytes_read, wall, overheads, answers })
}

/// The source of each VM.
struct Sources {
    list: Vec<Source>,
    _copies: Vec<Copy>,
}

impl Sources {
    fn new(directory: &Path, way: Way, vms: usize) -> Result<Self> {
        let mut copies = Vec::new();
        let list = match way {
            Way::Copies => {
                let root = directory.join("root.ext4");
                evict(&root)?;
                copies = (0..vms).map(|_| Copy::attach(&root)).collect::<Result<Vec<_>>>()?;
                copies.iter().map(|copy| Source::Copy(copy.0.clone())).collect()
            }
            _ => (0..vms).map(|_| Source::Image { name: "shared".into(), way }).collect(),
        };
        Ok(Self { list, _copies: copies })
    }
}
