//! What stands in the way of forking a process: what its forks would share with it and with each other, and what they would miss.
//!
//! A fork has the memory of the zygote's one thread, and descriptors of its own. The look is for programs that err: one that is
//! hostile can change all of this afterwards, and harms only its own forks.

use std::fmt;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read};
use std::path::Path;

use nix::unistd::Pid;

use super::CONTROL;
use crate::error::{AgentError, Result};

/// Most obstacles that are reported.
const MAX_OBSTACLES: usize = 8;
/// Most threads that are named.
const MAX_THREADS: usize = 8;
/// Most bytes of a memory map that are read.
const MAX_MAP_BYTES: u64 = 16 << 20;
/// Longest name that is shown, in characters.
const MAX_NAME: usize = 80;

/// A reason why a process cannot be forked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Obstacle {
    /// More than one thread: only one would be in the fork.
    Threads(Vec<String>),
    /// Memory that forks would share.
    SharedMapping {
        /// The file, as the process sees it.
        path: String,
        /// Where in the file, in bytes.
        offset: u64,
    },
    /// A segment of SysV shared memory.
    SharedMemory(String),
    /// A context of asynchronous I/O, which belongs to one process.
    AsynchronousIo,
    /// A descriptor that forks would not have.
    Descriptor {
        /// Its number.
        number: u32,
        /// What it is, in the kernel's words.
        target: String,
    },
    /// A memory map that is too long to look at.
    LongMap,
}

impl fmt::Display for Obstacle {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Threads(names) => {
                let more = if names.len() > MAX_THREADS { ", ..." } else { "" };
                let names = names.iter().take(MAX_THREADS).map(String::as_str).collect::<Vec<_>>().join(", ");
                write!(formatter, "more than one thread ({names}{more})")
            }
            Self::SharedMapping { path, offset } => {
                write!(formatter, "a shared mapping that it can write to ({path} at {offset:#x})")
            }
            Self::SharedMemory(name) => write!(formatter, "SysV shared memory ({name})"),
            Self::AsynchronousIo => formatter.write_str("a context of asynchronous I/O"),
            Self::Descriptor { number, target } => write!(formatter, "descriptor {number} ({target})"),
            Self::LongMap => write!(formatter, "a memory map of more than {MAX_MAP_BYTES} bytes"),
        }
    }
}

/// The obstacles in one line.
pub(super) fn list(obstacles: &[Obstacle]) -> String {
    let named: Vec<String> = obstacles.iter().take(MAX_OBSTACLES).map(Obstacle::to_string).collect();
    named.join(", ") + if obstacles.len() > MAX_OBSTACLES { ", and more" } else { "" }
}

/// What stands in the way of forking process `pid`, by the procfs at `proc`: at most a few of each kind.
///
/// # Errors
/// [`AgentError::Path`].
pub(super) fn obstacles(proc: &Path, pid: Pid) -> Result<Vec<Obstacle>> {
    let folder = proc.join(pid.to_string());
    let tasks = folder.join("task");
    let names = fs::read_dir(&tasks).map_err(AgentError::path("read", &tasks))?.flatten().take(MAX_THREADS + 1);
    let names = names.map(|task| fs::read(task.path().join("comm")).map_or_else(|_| "?".into(), |name| shown(&name)));
    let mut found: Vec<Obstacle> = threads(names.collect()).into_iter().collect();

    let maps = folder.join("maps");
    let file = File::open(&maps).map_err(AgentError::path("open", &maps))?;
    found.extend(mappings(file).map_err(AgentError::path("read", &maps))?);

    let descriptors = folder.join("fd");
    let links = fs::read_dir(&descriptors).map_err(AgentError::path("read", &descriptors))?.flatten();
    found.extend(
        links
            .filter_map(|link| {
                let number = link.file_name().to_str()?.parse().ok()?;
                // One that has been closed meanwhile is no obstacle.
                descriptor(number, fs::read_link(link.path()).ok()?.to_string_lossy().as_bytes())
            })
            .take(MAX_OBSTACLES),
    );
    Ok(found)
}

/// Of the threads with these names.
fn threads(names: Vec<String>) -> Option<Obstacle> {
    (names.len() > 1).then_some(Obstacle::Threads(names))
}

/// Of the lines of `/proc/<pid>/maps`.
///
/// # Errors
/// Those of `maps`.
pub(super) fn mappings(maps: impl Read) -> std::io::Result<Vec<Obstacle>> {
    let mut found = Vec::new();
    let mut maps = BufReader::new(maps.take(MAX_MAP_BYTES));
    let mut line = Vec::new();
    while found.len() <= MAX_OBSTACLES && maps.read_until(b'\n', &mut line)? > 0 {
        found.extend(mapping(&line));
        line.clear();
    }
    if maps.get_ref().limit() == 0 {
        found.push(Obstacle::LongMap);
    }
    Ok(found)
}

/// Of a line `START-END MODE OFFSET DEVICE INODE NAME`, whose name may have blanks.
fn mapping(line: &[u8]) -> Option<Obstacle> {
    let line = String::from_utf8_lossy(line);
    let mut words = line.split_ascii_whitespace();
    let mode = words.nth(1)?.as_bytes();
    let offset = u64::from_str_radix(words.next()?, 16).ok()?;
    let path = words.skip(2).collect::<Vec<_>>().join(" ");
    if mode.get(3) != Some(&b's') {
        return None;
    }
    if path.starts_with("/[aio]") {
        Some(Obstacle::AsynchronousIo)
    } else if path.starts_with("/SYSV") {
        Some(Obstacle::SharedMemory(shown(path.as_bytes())))
    } else if mode.get(1) == Some(&b'w') {
        Some(Obstacle::SharedMapping { path: shown(path.as_bytes()), offset })
    } else {
        None
    }
}

/// Of descriptor `number`, which `/proc/<pid>/fd` shows as a link to `target`.
fn descriptor(number: u32, target: &[u8]) -> Option<Obstacle> {
    let own = number <= 2 || i64::from(number) == i64::from(CONTROL);
    (!own).then(|| Obstacle::Descriptor { number, target: shown(target) })
}

/// A name that the process chose.
fn shown(name: &[u8]) -> String {
    let text = String::from_utf8_lossy(name);
    let printable = text.trim_end().chars().map(|character| if character.is_control() { '?' } else { character });
    printable.take(MAX_NAME).collect()
}

#[cfg(test)]
#[path = "inspect_test.rs"]
mod tests;
