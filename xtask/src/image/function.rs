//! Layer 3: the function, and changes to the layers below it.

use std::io;
use std::path::Path;

use serde_json::{Value, json};
use tar::{Builder, EntryType};

use super::diff::whiteout;
use super::entries::add;

/// The function's source.
pub const SOURCE: &str = include_str!("handler.py");

/// The layer, an uncompressed tar.
pub fn layer() -> io::Result<Vec<u8>> {
    let mut out = Builder::new(Vec::new());
    add(&mut out, "function/", EntryType::Directory, 0o755, "")?;
    out.append_pax_extensions([("SCHILY.xattr.user.bellows.role", b"handler".as_slice())])?;
    add(&mut out, "function/handler.py", EntryType::Regular, 0o755, SOURCE)?;
    // A file goes, and a directory loses what the layers below have in it.
    add(&mut out, "etc/", EntryType::Directory, 0o755, "")?;
    whiteout(&mut out, Path::new("etc/issue.net"))?;
    for directory in ["usr/", "usr/share/", "usr/share/doc/"] {
        add(&mut out, directory, EntryType::Directory, 0o755, "")?;
    }
    whiteout(&mut out, Path::new("usr/share/doc/.wh..opq"))?;
    add(&mut out, "usr/share/doc/README", EntryType::Regular, 0o644, "Documentation was left out of this image.\n")?;
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
