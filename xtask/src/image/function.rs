//! Layer 3: the function, and changes to the layers below it.

use std::io;
use std::path::Path;

use serde_json::{Value, json};
use tar::{Builder, EntryType, Header};

use super::diff::whiteout;

/// The function's source.
pub const SOURCE: &str = include_str!("handler.py");

/// The layer, an uncompressed tar.
pub fn layer() -> io::Result<Vec<u8>> {
    let mut out = Builder::new(Vec::new());
    entry(&mut out, "function/", EntryType::Directory, 0o755, "")?;
    out.append_pax_extensions([("SCHILY.xattr.user.bellows.role", b"handler".as_slice())])?;
    entry(&mut out, "function/handler.py", EntryType::Regular, 0o755, SOURCE)?;
    // A file goes, and a directory loses what the layers below have in it.
    entry(&mut out, "etc/", EntryType::Directory, 0o755, "")?;
    whiteout(&mut out, Path::new("etc/issue.net"))?;
    for directory in ["usr/", "usr/share/", "usr/share/doc/"] {
        entry(&mut out, directory, EntryType::Directory, 0o755, "")?;
    }
    whiteout(&mut out, Path::new("usr/share/doc/.wh..opq"))?;
    entry(&mut out, "usr/share/doc/README", EntryType::Regular, 0o644, "Documentation was left out of this image.\n")?;
    out.into_inner()
}

/// What runs by default: the image config's `config` object.
pub fn process() -> Value {
    json!({
        "Cmd": ["/usr/bin/python3", "/function/handler.py"],
        "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8"],
        "WorkingDir": "/function",
        "User": "0:0",
    })
}

/// Adds a file or a directory of root's.
pub fn entry(
    out: &mut Builder<Vec<u8>>,
    path: &str,
    kind: EntryType,
    mode: u32,
    content: impl AsRef<[u8]>,
) -> io::Result<()> {
    let content = content.as_ref();
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(1_700_000_000);
    header.set_size(content.len() as u64);
    out.append_data(&mut header, path, content)
}
