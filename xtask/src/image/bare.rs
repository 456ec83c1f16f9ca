//! The layers above unpacked packages.

use std::io;
use std::path::Path;

use tar::{Builder, EntryType};

use super::diff::whiteout;
use super::entries::{add, link};

/// What busybox is called by, beside its own name.
const APPLETS: [&str; 12] =
    ["cat", "echo", "find", "grep", "head", "ls", "readlink", "sh", "sha256sum", "stat", "true", "wc"];

/// Names of busybox in `/bin`, links as in Alpine's images; and its documentation is gone.
pub fn applets() -> io::Result<Vec<u8>> {
    let mut out = Builder::new(Vec::new());
    add(&mut out, "bin/", EntryType::Directory, 0o755, "")?;
    for applet in APPLETS {
        link(&mut out, &format!("bin/{applet}"), "/bin/busybox")?;
    }
    for directory in ["usr/", "usr/share/"] {
        add(&mut out, directory, EntryType::Directory, 0o755, "")?;
    }
    whiteout(&mut out, Path::new("usr/share/doc"))?;
    out.into_inner()
}

/// A short name for Java, whose own is another one in every release.
pub fn java() -> io::Result<Vec<u8>> {
    let mut out = Builder::new(Vec::new());
    add(&mut out, "usr/bin/", EntryType::Directory, 0o755, "")?;
    link(&mut out, "usr/bin/java", "../lib/jvm/java-21-openjdk-amd64/bin/java")?;
    out.into_inner()
}

/// A program for Node.js.
pub fn script() -> io::Result<Vec<u8>> {
    let mut out = Builder::new(Vec::new());
    add(&mut out, "app/", EntryType::Directory, 0o755, "")?;
    let program = "console.log(JSON.stringify({ version: process.version }));\n";
    add(&mut out, "app/main.js", EntryType::Regular, 0o755, program)?;
    out.into_inner()
}
