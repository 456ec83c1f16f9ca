//! `/proc/<pid>/numa_maps`.

use std::io::{BufRead, BufReader, Read};

/// Most bytes that are read: a process can make the file arbitrarily long.
const MAX_BYTES: u64 = 16 << 20;
/// Longest word that is parsed; a file's name can be far longer.
const MAX_WORD: usize = 64;

/// Bytes that a process maps from `node`: the sum of `N<node>=<pages>` times the page size of each mapping, as far as it
/// can be read.
///
/// The process chooses the names of files, so only numbers of a line are kept.
pub fn bytes_on(maps: impl Read, node: u32) -> u64 {
    let key = format!("N{node}=");
    let mut maps = BufReader::new(maps.take(MAX_BYTES));
    let mut word = Vec::new();
    let mut mapping = Mapping::default();
    let mut bytes: u64 = 0;
    while let Ok(data) = maps.fill_buf() {
        let count = data.len();
        for &byte in data {
            if !byte.is_ascii_whitespace() {
                if word.len() < MAX_WORD {
                    word.push(byte);
                }
                continue;
            }
            mapping.add(&word, &key);
            word.clear();
            if byte == b'\n' {
                bytes = bytes.saturating_add(std::mem::take(&mut mapping).bytes());
            }
        }
        if count == 0 {
            break;
        }
        maps.consume(count);
    }
    bytes
}

/// The figures of a line.
#[derive(Default)]
struct Mapping {
    pages: u64,
    page_kib: Option<u64>,
}

impl Mapping {
    fn add(&mut self, word: &[u8], key: &str) {
        let value = |key: &str| std::str::from_utf8(word.strip_prefix(key.as_bytes())?).ok()?.parse().ok();
        if let Some(pages) = value(key) {
            self.pages = pages;
        } else if let Some(kib) = value("kernelpagesize_kB=") {
            self.page_kib = Some(kib);
        }
    }

    fn bytes(&self) -> u64 {
        self.pages.saturating_mul(self.page_kib.unwrap_or(4)).saturating_mul(1024)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_count_with_their_size() {
        let text = "55a4 bind:1 file=/bin/x mapped=3 N0=1 N1=2 kernelpagesize_kB=4\n\
                    7f00 bind:1 anon=5 dirty=5 N1=5 kernelpagesize_kB=4\n\
                    7f80 bind:1 file=/huge huge N1=1 kernelpagesize_kB=2048\n\
                    7ffd default\n";
        assert_eq!(bytes_on(text.as_bytes(), 1), 7 * 4096 + (2 << 20));
        assert_eq!(bytes_on(text.as_bytes(), 0), 4096);
        assert_eq!(bytes_on(text.as_bytes(), 10), 0);
    }

    #[test]
    fn absurd_counts_do_not_overflow() {
        let line = format!("0 default N1={} kernelpagesize_kB={}\n", u64::MAX, u64::MAX);
        assert_eq!(bytes_on(line.repeat(2).as_bytes(), 1), u64::MAX);
    }

    #[test]
    fn a_name_can_be_anything() {
        let mut text = b"7f00 bind:1 file=/tmp/\xff\xfe".to_vec();
        text.resize(1 << 20, b'x');
        text.extend(b" anon=7 N1=7 kernelpagesize_kB=4\n7f80 bind:1 file=/tmp/\xe2\x80 N1=1 kernelpagesize_kB=4\n");
        assert_eq!(bytes_on(text.as_slice(), 1), 8 * 4096);
    }

    #[test]
    fn an_endless_file_is_read_up_to_a_limit() {
        let line = "7f00 bind:1 N1=7 kernelpagesize_kB=4\n";
        let bytes = bytes_on(line.as_bytes().chain(std::io::repeat(b'0')), 1);
        assert_eq!(bytes, 7 * 4096);
    }
}
