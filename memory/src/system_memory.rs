//! How much of the host's memory this process may still use: the least of what the host has available and what each of its
//! control groups leaves.
//!
//! In a full group the kernel kills processes, perhaps this one, long before the host is full. So the limits of the process's
//! group and of all groups above it count, as far as they are visible (version 2, and the `memory` controller of version 1). The
//! same goes for swap, whose limits are version 2's.
//! Files are read on each call; mounts are looked up once.
//!
//! ```
//! use bellows_memory::system_memory::{Swap, SystemMemory};
//!
//! match SystemMemory::open()?.swap()? {
//!     Swap::Absent => println!("what is frozen stays in memory"),
//!     other => println!("{other:?}"),
//! }
//! # Ok::<(), std::io::Error>(())
//! ```

use std::io;
use std::path::{Component, Path, PathBuf};

use crate::admission::HostMemory;
use crate::host::Backing;
use crate::{BLOCK, ByteSize};

/// The memory of the system that this process runs on.
#[derive(Clone, Debug)]
pub struct SystemMemory {
    /// `/`, but for tests.
    root: PathBuf,
    mounts: Vec<Mount>,
}

/// The names of a version's files.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Version {
    limit: &'static str,
    usage: &'static str,
    /// Field of `memory.stat`, sum over what lies in the group.
    inactive_file: &'static str,
}

const V1: Version =
    Version { limit: "memory.limit_in_bytes", usage: "memory.usage_in_bytes", inactive_file: "total_inactive_file" };
const V2: Version = Version { limit: "memory.max", usage: "memory.current", inactive_file: "inactive_file" };

/// A mounted hierarchy of control groups that counts memory.
#[derive(Clone, Debug, Eq, PartialEq)]
struct Mount {
    version: Version,
    /// The group at the mount point.
    group: PathBuf,
    point: PathBuf,
}

impl SystemMemory {
    /// The system's memory, with the control groups that are mounted now. A process in a jail sees no `/proc/self`, and no groups.
    ///
    /// # Errors
    /// `/proc/self/mountinfo` is there and cannot be read.
    pub fn open() -> io::Result<Self> {
        Self::open_at(Path::new("/"))
    }

    fn open_at(root: &Path) -> io::Result<Self> {
        let mounts = match read(&root.join("proc/self/mountinfo")) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            text => parse_mounts(&text?),
        };
        Ok(Self { root: root.to_owned(), mounts })
    }

    /// Whether the host can push pages of this process out to its swap.
    ///
    /// # Errors
    /// The host does not say.
    pub fn swap(&self) -> io::Result<Swap> {
        let text = match read(&self.root.join("proc/swaps")) {
            // A kernel that knows no swap.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Swap::Absent),
            text => text?,
        };
        let (all, used) = parse_swaps(&text)?;
        if all == 0 {
            return Ok(Swap::Absent);
        }
        let mut free = all.saturating_sub(used);
        if free == 0 {
            return Ok(Swap::Full(ByteSize::bytes(all)));
        }
        for (version, directory) in self.groups()? {
            let Some((path, text)) = (if version == V2 { self.file(&directory, "memory.swap.max")? } else { None })
            else {
                continue;
            };
            let Some(limit) = parse_limit(&path, &text)? else { continue };
            let current = self.file(&directory, "memory.swap.current")?;
            let used = current.map_or(Ok(0), |(path, text)| parse_number(&path, &text))?;
            if used >= limit {
                return Ok(Swap::Limited { group: directory, limit: ByteSize::bytes(limit) });
            }
            free = free.min(limit - used);
        }
        Ok(Swap::Free(ByteSize::bytes(free)))
    }

    /// The directories of the process's groups and of those above them.
    fn groups(&self) -> io::Result<Vec<(Version, PathBuf)>> {
        if self.mounts.is_empty() {
            return Ok(Vec::new());
        }
        let memberships = read(&self.root.join("proc/self/cgroup"))?;
        let of = |mount: &Mount| {
            let group = own_group(&memberships, mount.version);
            let directories = group.map(|group| directories(mount, &group)).unwrap_or_default();
            let version = mount.version;
            directories.into_iter().map(move |directory| (version, directory))
        };
        Ok(self.mounts.iter().flat_map(of).collect())
    }

    /// What the process's groups leave; `None` if they have no limit.
    fn left_by_groups(&self) -> io::Result<Option<u64>> {
        let mut least = None;
        for (version, directory) in self.groups()? {
            let left = self.left_by(&directory, version)?;
            least = least.into_iter().chain(left).min();
        }
        Ok(least)
    }

    /// What the group in `directory` leaves, if it has a limit. Inactive page cache does not count: the kernel drops it
    /// before it kills a process.
    fn left_by(&self, directory: &Path, version: Version) -> io::Result<Option<u64>> {
        let Some((path, text)) = self.file(directory, version.limit)? else { return Ok(None) };
        let Some(limit) = parse_limit(&path, &text)? else { return Ok(None) };
        let Some((path, text)) = self.file(directory, version.usage)? else { return Ok(None) };
        let usage = parse_number(&path, &text)?;
        let stat = self.file(directory, "memory.stat")?.map(|(_, text)| text).unwrap_or_default();
        let reclaimable = stat_field(&stat, version.inactive_file);
        Ok(Some(limit.saturating_sub(usage.saturating_sub(reclaimable))))
    }

    /// A file of the group in `directory`, with its path. The root group lacks some, and so does one of which the controller is
    /// off.
    fn file(&self, directory: &Path, name: &str) -> io::Result<Option<(PathBuf, String)>> {
        // What a mount point's path says holds from the root.
        let path = self.root.join(directory.strip_prefix("/").unwrap_or(directory)).join(name);
        match read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            text => text.map(|text| Some((path, text))),
        }
    }
}

/// Whether the host can push pages of this process out to its swap.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Swap {
    /// It has this much left for the process.
    Free(ByteSize),
    /// It has none.
    Absent,
    /// All of it, this much, is in use.
    Full(ByteSize),
    /// A control group of the process allows no more.
    Limited {
        /// Its directory.
        group: PathBuf,
        /// Its `memory.swap.max`.
        limit: ByteSize,
    },
}

impl HostMemory for SystemMemory {
    fn available(&self, backing: Backing) -> io::Result<ByteSize> {
        let host = parse_meminfo(&read(&self.root.join("proc/meminfo"))?, backing)?;
        if backing == Backing::Hugetlbfs {
            // Its pages are not the groups' memory.
            return Ok(host);
        }
        let groups = self.left_by_groups()?.map_or(host, ByteSize::bytes);
        Ok(host.min(groups))
    }
}

/// The hierarchies that count memory, from `/proc/self/mountinfo` (proc_pid_mountinfo(5)).
fn parse_mounts(text: &str) -> Vec<Mount> {
    let mount = |line: &str| {
        let (own, rest) = line.split_once(" - ")?;
        let mut own = own.split(' ').skip(3);
        let (group, point) = (unescape(own.next()?), unescape(own.next()?));
        let mut rest = rest.split(' ');
        let (kind, _source, options) = (rest.next()?, rest.next()?, rest.next().unwrap_or_default());
        let version = match kind {
            "cgroup2" => V2,
            "cgroup" if options.split(',').any(|option| option == "memory") => V1,
            _ => return None,
        };
        Some(Mount { version, group, point })
    };
    text.lines().filter_map(mount).collect()
}

/// A path of `/proc/self/mountinfo`, where some characters stand as `\ooo`.
fn unescape(text: &str) -> PathBuf {
    let plain = [(r"\040", " "), (r"\011", "\t"), (r"\012", "\n"), (r"\134", r"\")];
    PathBuf::from(plain.iter().fold(text.to_owned(), |text, (escaped, plain)| text.replace(escaped, plain)))
}

/// The group of the process in the hierarchy of `version`, from `/proc/self/cgroup` (cgroups(7)).
fn own_group(text: &str, version: Version) -> Option<PathBuf> {
    text.lines().find_map(|line| {
        let mut fields = line.splitn(3, ':');
        let (number, controllers, group) = (fields.next()?, fields.next()?, fields.next()?);
        let fits = match version {
            V2 => number == "0" && controllers.is_empty(),
            _ => controllers.split(',').any(|controller| controller == "memory"),
        };
        fits.then(|| PathBuf::from(group))
    })
}

/// The directories of `group` and of the groups above it, up to the mount point; empty if the mount shows other groups only.
fn directories(mount: &Mount, group: &Path) -> Vec<PathBuf> {
    let Ok(below) = group.strip_prefix(&mount.group) else { return Vec::new() };
    // A process that was moved out of what its namespace shows is in `/../...`.
    if below.components().any(|part| part == Component::ParentDir) {
        return Vec::new();
    }
    below.ancestors().map(|part| mount.point.join(part)).collect()
}

/// A limit in bytes. `max`, and in version 1 a number beyond all addresses, means that there is no limit.
fn parse_limit(path: &Path, text: &str) -> io::Result<Option<u64>> {
    const NONE_FROM: u64 = 1 << 62;
    if text.trim() == "max" {
        return Ok(None);
    }
    parse_number(path, text).map(|limit| Some(limit).filter(|limit| *limit < NONE_FROM))
}

fn parse_number(path: &Path, text: &str) -> io::Result<u64> {
    text.trim().parse().map_err(|_| {
        let message = format!("{} holds {:?}: expected a number of bytes", path.display(), text.trim());
        io::Error::new(io::ErrorKind::InvalidData, message)
    })
}

/// All swap, and what is in use of it, in bytes, from `/proc/swaps` (proc_swaps(5)): a line of titles, then one for each area.
/// The columns are its name, in which white space is escaped, its type, size and use in KiB, and its priority.
fn parse_swaps(text: &str) -> io::Result<(u64, u64)> {
    let (mut all, mut used) = (0_u64, 0_u64);
    for line in text.lines().skip(1) {
        let number = |column| line.split_whitespace().nth(column)?.parse::<u64>().ok()?.checked_mul(1024);
        let (Some(size), Some(use_of_it)) = (number(2), number(3)) else {
            let message = format!("/proc/swaps holds {line:?}: expected a name, a type, a size and what is used");
            return Err(io::Error::new(io::ErrorKind::InvalidData, message));
        };
        all = all.saturating_add(size);
        used = used.saturating_add(use_of_it);
    }
    Ok((all, used))
}

/// A field of `memory.stat`, 0 where it is missing.
fn stat_field(text: &str, name: &str) -> u64 {
    let value = |line: &str| line.strip_prefix(name)?.strip_prefix(' ')?.trim().parse().ok();
    text.lines().find_map(value).unwrap_or(0)
}

fn parse_meminfo(text: &str, backing: Backing) -> io::Result<ByteSize> {
    let field = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        let number = line.and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok());
        number.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, format!("/proc/meminfo has no {name}")))
    };
    match backing {
        Backing::None | Backing::Thp => Ok(ByteSize::bytes(field("MemAvailable")?.saturating_mul(1024))),
        Backing::Hugetlbfs => {
            let page = field("Hugepagesize")?.saturating_mul(1024);
            if page != BLOCK.get() {
                // The figures are of the default size only; another size is left to the reservation at plug.
                return Ok(ByteSize::bytes(u64::MAX));
            }
            let free = field("HugePages_Free")?.saturating_sub(field("HugePages_Rsvd")?);
            Ok(ByteSize::bytes(free.saturating_mul(page)))
        }
    }
}

fn read(path: &Path) -> io::Result<String> {
    std::fs::read_to_string(path)
        .map_err(|error| io::Error::new(error.kind(), format!("cannot read {}: {error}", path.display())))
}

#[cfg(test)]
#[path = "system_memory_test.rs"]
mod tests;
