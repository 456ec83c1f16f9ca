//! The layers above unpacked packages.

use std::io;
use std::path::Path;

use tar::{Builder, EntryType, Header};

use super::diff::whiteout;

/// What busybox is called by, beside its own name.
const APPLETS: [&str; 12] =
    ["cat", "echo", "find", "grep", "head", "ls", "readlink", "sh", "sha256sum", "stat", "true", "wc"];

/// Names of busybox in `/bin`, links as in Alpine's images; and its documentation is gone.
pub fn applets() -> io::Result<Vec<u8>> {
    let mut out = Builder::new(Vec::new());
    add(&mut out, "bin/", EntryType::Directory, "")?;
    for applet in APPLETS {
        let mut header = header(EntryType::Symlink, 0o777, 0);
        out.append_link(&mut header, format!("bin/{applet}"), "/bin/busybox")?;
    }
    for directory in ["usr/", "usr/share/"] {
        add(&mut out, directory, EntryType::Directory, "")?;
    }
    whiteout(&mut out, Path::new("usr/share/doc"))?;
    out.into_inner()
}

/// A program for Node.js.
pub fn script() -> io::Result<Vec<u8>> {
    let mut out = Builder::new(Vec::new());
    add(&mut out, "app/", EntryType::Directory, "")?;
    add(&mut out, "app/main.js", EntryType::Regular, "console.log(JSON.stringify({ version: process.version }));\n")?;
    out.into_inner()
}

fn add(out: &mut Builder<Vec<u8>>, path: &str, kind: EntryType, content: &str) -> io::Result<()> {
    let mut header = header(kind, 0o755, content.len() as u64);
    out.append_data(&mut header, path, content.as_bytes())
}

fn header(kind: EntryType, mode: u32, bytes: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(1_700_000_000);
    header.set_size(bytes);
    header
}
