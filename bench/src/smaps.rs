//! A monitor's own memory beside guest memory, from its `/proc/<pid>/smaps`.

use serde::{Deserialize, Serialize};

/// Memory that a process has to itself beside guest memory, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Overhead {
    /// The heap that grows by `brk(2)`.
    pub heap: u64,
    /// Anonymous mappings: more heap, stacks of threads.
    pub mappings: u64,
    /// Pages of programs and libraries that were written to.
    pub files: u64,
    /// Stack of the first thread.
    pub stack: u64,
}

/// Not exactly one mapping of the process can be guest memory.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{found} anonymous mappings of {bytes} bytes in the process: expected one, the guest's memory")]
pub struct NoGuestMemory {
    bytes: u64,
    found: usize,
}

impl Overhead {
    /// Reads the text of `smaps` of a process that keeps `guest_memory` bytes of guest memory in one anonymous mapping.
    ///
    /// # Errors
    /// Guest memory cannot be distinguished from the rest.
    pub fn parse(smaps: &str, guest_memory: u64) -> Result<Self, NoGuestMemory> {
        let mut overhead = Self::default();
        let mut found = 0;
        for mapping in mappings(smaps) {
            match (mapping.file, mapping.name) {
                // Of a private mapping of a file only written pages are the process's own.
                (true, _) => overhead.files += mapping.anonymous,
                (false, _) if mapping.size == guest_memory => found += 1,
                (false, "[heap]") => overhead.heap += mapping.pss,
                (false, "[stack]") => overhead.stack += mapping.pss,
                (false, _) => overhead.mappings += mapping.pss,
            }
        }
        if found == 1 { Ok(overhead) } else { Err(NoGuestMemory { bytes: guest_memory, found }) }
    }

    /// All of it.
    pub fn total(&self) -> u64 {
        self.heap + self.mappings + self.files + self.stack
    }
}

#[derive(Debug, Default)]
struct Mapping<'a> {
    name: &'a str,
    file: bool,
    size: u64,
    pss: u64,
    anonymous: u64,
}

/// `Documentation/filesystems/proc.rst`: a line as in `maps` for each mapping, then one `Name: value kB` a line.
fn mappings(smaps: &str) -> Vec<Mapping<'_>> {
    let mut mappings = Vec::new();
    for line in smaps.lines() {
        let mut words = line.split_ascii_whitespace();
        let Some(first) = words.next() else { continue };
        if let (Some(key), Some(mapping)) = (first.strip_suffix(':'), mappings.last_mut()) {
            let mapping: &mut Mapping<'_> = mapping;
            let bytes = words.next().and_then(|number| number.parse::<u64>().ok()).unwrap_or(0) << 10;
            match key {
                "Size" => mapping.size = bytes,
                "Pss" => mapping.pss = bytes,
                "Anonymous" => mapping.anonymous = bytes,
                _ => {}
            }
        } else if first.contains('-') {
            // Permissions, offset, device, inode, name.
            let inode = words.nth(3).unwrap_or("0");
            mappings.push(Mapping { name: words.next().unwrap_or(""), file: inode != "0", ..Mapping::default() });
        }
    }
    mappings
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMAPS: &str = "\
55e0a0000000-55e0a0100000 r--p 00000000 08:01 1234 /usr/bin/a monitor
Size:               1024 kB
Pss:                 512 kB
Pss_Dirty:             0 kB
Anonymous:            12 kB
VmFlags: rd mr
55e0b0000000-55e0b0021000 rw-p 00000000 00:00 0                          [heap]
Size:                132 kB
Pss:                 100 kB
Anonymous:           100 kB
7f0000000000-7f0020000000 rw-p 00000000 00:00 0
Size:             524288 kB
Pss:               90000 kB
Anonymous:         90000 kB
7f0030000000-7f0030080000 rw-p 00000000 00:00 0
Size:                512 kB
Pss:                   8 kB
Anonymous:             8 kB
7ffd00000000-7ffd00021000 rw-p 00000000 00:00 0                          [stack]
Size:                132 kB
Pss:                  16 kB
Anonymous:            16 kB
";

    #[test]
    fn guest_memory_and_clean_pages_of_files_do_not_count() {
        let overhead = Overhead::parse(SMAPS, 512 << 20).unwrap();
        assert_eq!(overhead, Overhead { heap: 100 << 10, mappings: 8 << 10, files: 12 << 10, stack: 16 << 10 });
        assert_eq!(overhead.total(), 136 << 10);
    }

    #[test]
    fn ambiguous_guest_memory_is_an_error() {
        let error = Overhead::parse(SMAPS, 256 << 20).unwrap_err();
        assert!(error.to_string().starts_with("0 anonymous mappings of 268435456 bytes"), "{error}");
        assert_eq!(Overhead::parse(&SMAPS.repeat(2), 512 << 20).unwrap_err().found, 2);
    }
}
