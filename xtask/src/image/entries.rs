//! What layers are made of: entries that are root's, all of one time.

use std::io;

use tar::{Builder, EntryType, Header};

/// Adds a file or a directory.
pub fn add(
    out: &mut Builder<Vec<u8>>,
    path: &str,
    kind: EntryType,
    mode: u32,
    content: impl AsRef<[u8]>,
) -> io::Result<()> {
    let content = content.as_ref();
    let mut header = header(kind, mode);
    header.set_size(content.len() as u64);
    out.append_data(&mut header, path, content)
}

/// Adds a symbolic link.
pub fn link(out: &mut Builder<Vec<u8>>, path: &str, target: &str) -> io::Result<()> {
    out.append_link(&mut header(EntryType::Symlink, 0o777), path, target)
}

fn header(kind: EntryType, mode: u32) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(1_700_000_000);
    header.set_size(0);
    header
}
