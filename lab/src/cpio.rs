//! Writes `newc` cpio archives, the format of an initramfs.
//!
//! Source: `Documentation/driver-api/early-userspace/buffer-format.rst` of Linux. Inode numbers are given in order and
//! times are zero, so the same entries always make the same bytes.

use std::collections::BTreeSet;
use std::io::{self, Write};
use std::path::{Component, Path};

const S_IFMT: u32 = 0o170_000;
const S_IFDIR: u32 = 0o040_000;
const S_IFREG: u32 = 0o100_000;
const S_IFLNK: u32 = 0o120_000;
const S_IFCHR: u32 = 0o020_000;

/// An archive under construction; it adds parent directories by itself.
#[derive(Debug)]
pub struct Writer<W> {
    out: W,
    next_inode: u32,
    directories: BTreeSet<String>,
}

impl<W: Write> Writer<W> {
    /// Starts an empty archive.
    pub fn new(out: W) -> Self {
        Self { out, next_inode: 1, directories: BTreeSet::new() }
    }

    /// Adds a directory and those above it, once each.
    pub fn directory(&mut self, path: &Path) -> io::Result<()> {
        let mut name = String::new();
        for component in path.components() {
            let Component::Normal(part) = component else { continue };
            if !name.is_empty() {
                name.push('/');
            }
            name.push_str(&utf8(Path::new(part))?);
            if self.directories.insert(name.clone()) {
                self.entry(&name, S_IFDIR | 0o755, (0, 0), &[])?;
            }
        }
        Ok(())
    }

    /// Adds a regular file with the permission bits `mode`.
    pub fn file(&mut self, path: &Path, mode: u32, data: &[u8]) -> io::Result<()> {
        let name = self.prepare(path)?;
        self.entry(&name, S_IFREG | (mode & 0o7777), (0, 0), data)
    }

    /// Adds a symbolic link.
    pub fn symlink(&mut self, path: &Path, target: &Path) -> io::Result<()> {
        let name = self.prepare(path)?;
        let target = utf8(target)?;
        self.entry(&name, S_IFLNK | 0o777, (0, 0), target.as_bytes())
    }

    /// Adds a character device. The kernel opens `/dev/console` before PID 1 can make one.
    pub fn char_device(&mut self, path: &Path, mode: u32, device: (u32, u32)) -> io::Result<()> {
        let name = self.prepare(path)?;
        self.entry(&name, S_IFCHR | (mode & 0o7777), device, &[])
    }

    /// Writes the trailer and gives the output back.
    pub fn finish(mut self) -> io::Result<W> {
        self.entry("TRAILER!!!", 0, (0, 0), &[])?;
        self.out.flush()?;
        Ok(self.out)
    }

    fn prepare(&mut self, path: &Path) -> io::Result<String> {
        if let Some(parent) = path.parent() {
            self.directory(parent)?;
        }
        utf8(path.strip_prefix("/").unwrap_or(path))
    }

    fn entry(&mut self, name: &str, mode: u32, device: (u32, u32), data: &[u8]) -> io::Result<()> {
        let size = u32::try_from(data.len())
            .map_err(|_| io::Error::new(io::ErrorKind::FileTooLarge, format!("{name}: cpio holds less than 4 GiB")))?;
        let inode = if name == "TRAILER!!!" { 0 } else { self.next_inode };
        self.next_inode += 1;
        let links = if mode & S_IFMT == S_IFDIR { 2 } else { 1 };
        // Magic, then: ino mode uid gid nlink mtime filesize devmajor devminor rdevmajor rdevminor namesize check.
        let fields = [inode, mode, 0, 0, links, 0, size, 0, 0, device.0, device.1, name.len() as u32 + 1, 0];
        let mut header = String::from("070701");
        for field in fields {
            header.push_str(&format!("{field:08x}"));
        }
        header.push_str(name);
        header.push('\0');
        self.out.write_all(header.as_bytes())?;
        self.pad(header.len())?;
        self.out.write_all(data)?;
        self.pad(data.len())
    }

    fn pad(&mut self, written: usize) -> io::Result<()> {
        self.out.write_all(&[0; 3][..written.next_multiple_of(4) - written])
    }
}

fn utf8(path: &Path) -> io::Result<String> {
    path.to_str().map(str::to_owned).ok_or_else(|| {
        io::Error::new(io::ErrorKind::InvalidInput, format!("{}: file name is not UTF-8", path.display()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parents_come_first_and_once() {
        let mut archive = Writer::new(Vec::new());
        archive.file(Path::new("/a/b/one"), 0o644, b"1").unwrap();
        archive.file(Path::new("/a/b/two"), 0o755, b"22").unwrap();
        let bytes = archive.finish().unwrap();
        assert_eq!(bytes.len() % 4, 0);
        let text = String::from_utf8_lossy(&bytes);
        let names: Vec<usize> =
            ["a\0", "a/b\0", "a/b/one\0", "a/b/two\0", "TRAILER!!!\0"].iter().map(|n| text.find(n).unwrap()).collect();
        assert!(names.is_sorted());
        assert_eq!(text.matches("070701").count(), 5);
    }
}
