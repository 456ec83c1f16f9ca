//! Many VMs of one image, all running at the end.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Instant;

use bellows_tests::bench::layers::{Answer, Line, Together, Way};
use bellows_tests::bench::print;
use bellows_tests::bench::smaps::Overhead;

use crate::Result;
use crate::disk::{Disk, evict};
use crate::monitor::{Launcher, Monitor, Source};

/// VMs that start at the same time, for each processor.
const STARTING: usize = 3;

/// Runs so many VMs of the image `shared` in `directory`, or of copies of the file system beside it.
pub fn run(launcher: &Launcher, directory: &Path, way: Way, vms: usize) -> Result<Together> {
    let sources = Sources::new(directory, way, vms)?;
    let disk = Disk::below(directory)?;
    // Not counted: it reads the kernel and all else that is no part of the image, and what is made of the image once is made.
    launcher.start(&sources.list[0])?.answer()?;
    evict(&directory.join("store"))?;
    sources.evict_copies()?;

    let (before, start) = (disk.bytes_read()?, Instant::now());
    let next = AtomicUsize::new(0);
    let work = || -> Result<Vec<(Monitor, Answer)>> {
        let mut started = Vec::new();
        while let Some(source) = sources.list.get(next.fetch_add(1, Ordering::Relaxed)) {
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
    let (wall, disk_bytes_read) = (start.elapsed(), disk.bytes_read()? - before);

    let started: Vec<(Monitor, Answer)> = started.into_iter().flatten().collect();
    let overheads = started.iter().map(|(monitor, _)| monitor.overhead()).collect::<Result<Vec<Overhead>>>()?;
    let answers = started.iter().map(|(_, answer)| *answer).collect();
    drop(started);
    Ok(Together { way, disk_bytes_read, wall, overheads, answers })
}

/// What each VM is started from. Copies are removed when this is dropped.
struct Sources {
    list: Vec<Source>,
    copies: Option<PathBuf>,
}

impl Sources {
    fn new(directory: &Path, way: Way, vms: usize) -> Result<Self> {
        if way != Way::Copies {
            let list = (0..vms).map(|_| Source::Image { name: "shared".into(), way }).collect();
            return Ok(Self { list, copies: None });
        }
        let copies = directory.join("copies");
        fs::create_dir_all(&copies)?;
        let mut sources = Self { list: Vec::new(), copies: Some(copies.clone()) };
        for number in 0..vms {
            let copy = copies.join(format!("{number}.ext4"));
            fs::copy(directory.join("root.ext4"), &copy)?;
            evict(&copy)?;
            sources.list.push(Source::Copy(copy));
        }
        Ok(sources)
    }

    fn evict_copies(&self) -> Result<()> {
        self.copies.as_deref().map_or(Ok(()), evict)
    }
}

impl Drop for Sources {
    fn drop(&mut self) {
        if let Some(copies) = &self.copies {
            // The next run makes them anew.
            let _ = fs::remove_dir_all(copies);
        }
    }
}
