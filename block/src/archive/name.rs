//! Names of archive entries.

use std::fmt::{self, Write as _};

use super::EntryProblem;

/// Longest name of an entry in bytes; Linux can't name a longer one in one call (`PATH_MAX`).
const MAX_PATH: usize = 4096;
/// Longest component in bytes.
const MAX_COMPONENT: usize = 255;

const WHITEOUT_PREFIX: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";
/// What AUFS keeps its own records under; they mean nothing elsewhere.
const AUFS_PREFIX: &[u8] = b".wh..wh.";

/// An entry's name as the archive has it: any bytes. Shown with escapes, the middle left out where it is long.
#[derive(Clone, Eq, PartialEq)]
pub struct EntryName(Vec<u8>);

impl EntryName {
    /// Any bytes.
    #[must_use]
    pub fn new(name: &[u8]) -> Self {
        // Only ever shown: more than this is not worth the memory.
        Self(name[..name.len().min(MAX_PATH)].to_owned())
    }
}

impl fmt::Display for EntryName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SHOWN: usize = 200;
        let cut = self.0.len().min(SHOWN);
        for chunk in self.0[..cut].utf8_chunks() {
            for c in chunk.valid().chars() {
                if c.is_control() { write!(f, "{}", c.escape_default())? } else { f.write_char(c)? }
            }
            write!(f, "{}", chunk.invalid().escape_ascii())?;
        }
        if cut < self.0.len() { f.write_str("...") } else { Ok(()) }
    }
}

impl fmt::Debug for EntryName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{self}`")
    }
}

/// What an entry's name says about the layer (OCI image specification, "Representing Changes").
#[derive(Debug, Eq, PartialEq)]
pub(crate) enum Meaning<'a> {
    /// The root directory itself.
    Root,
    /// `name` in `parent` is there.
    Present { parent: Vec<&'a [u8]>, name: &'a [u8] },
    /// `name` in `parent` hides what is below.
    Whiteout { parent: Vec<&'a [u8]>, name: &'a [u8] },
    /// The directory hides the one below.
    Opaque { directory: Vec<&'a [u8]> },
    /// Nothing.
    Ignored,
}

/// Reads an entry's name.
pub(crate) fn meaning(path: &[u8]) -> Result<Meaning<'_>, EntryProblem> {
    let mut parent = components(path)?;
    let Some(name) = parent.pop() else { return Ok(Meaning::Root) };
    if name == OPAQUE {
        return Ok(Meaning::Opaque { directory: parent });
    }
    if parent.iter().any(|name| name.starts_with(AUFS_PREFIX)) || name.starts_with(AUFS_PREFIX) {
        return Ok(Meaning::Ignored);
    }
    if parent.iter().any(|name| name.starts_with(WHITEOUT_PREFIX)) {
        return Err(EntryProblem::InvalidWhiteout);
    }
    match name.strip_prefix(WHITEOUT_PREFIX) {
        Some(b"" | b"." | b"..") => Err(EntryProblem::InvalidWhiteout),
        Some(hidden) => Ok(Meaning::Whiteout { parent, name: hidden }),
        None => Ok(Meaning::Present { parent, name }),
    }
}

/// Splits a name that is relative and goes only down; `.` and doubled slashes mean nothing.
pub(crate) fn components(path: &[u8]) -> Result<Vec<&[u8]>, EntryProblem> {
    if path.starts_with(b"/") {
        return Err(EntryProblem::Absolute);
    }
    if path.is_empty() || path.len() > MAX_PATH || path.contains(&0) {
        return Err(EntryProblem::InvalidName);
    }
    let mut components = Vec::new();
    for component in path.split(|byte| *byte == b'/') {
        match component {
            b"" | b"." => {}
            b".." => return Err(EntryProblem::ParentReference),
            _ if component.len() > MAX_COMPONENT => return Err(EntryProblem::InvalidName),
            _ => components.push(component),
        }
    }
    Ok(components)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_leave_the_image_are_refused() {
        for (path, problem) in [
            (&b"/etc/passwd"[..], EntryProblem::Absolute),
            (b"../x", EntryProblem::ParentReference),
            (b"a/../../x", EntryProblem::ParentReference),
            (b"a/..", EntryProblem::ParentReference),
            (b"", EntryProblem::InvalidName),
            (b"a\0b", EntryProblem::InvalidName),
            (&[b'a'; 256], EntryProblem::InvalidName),
            (&b"ab/".repeat(2000), EntryProblem::InvalidName),
            (b"a/.wh.", EntryProblem::InvalidWhiteout),
            (b"a/.wh..", EntryProblem::InvalidWhiteout),
            (b"a/.wh...", EntryProblem::InvalidWhiteout),
            (b".wh.a/b", EntryProblem::InvalidWhiteout),
        ] {
            assert_eq!(meaning(path).unwrap_err(), problem, "{}", EntryName::new(path));
        }
    }

    #[test]
    fn whiteouts() {
        assert_eq!(meaning(b"./").unwrap(), Meaning::Root);
        assert_eq!(meaning(b"./a//b/").unwrap(), Meaning::Present { parent: vec![b"a"], name: b"b" });
        assert_eq!(meaning(b"a/.wh.b").unwrap(), Meaning::Whiteout { parent: vec![b"a"], name: b"b" });
        assert_eq!(meaning(b"a/.wh..wh..opq").unwrap(), Meaning::Opaque { directory: vec![b"a"] });
        assert_eq!(meaning(b".wh..wh.plnk").unwrap(), Meaning::Ignored);
        assert_eq!(meaning(b".wh..wh.plnk/1.2").unwrap(), Meaning::Ignored);
        assert_eq!(meaning(b"a/..wh.b").unwrap(), Meaning::Present { parent: vec![b"a"], name: b"..wh.b" });
    }

    #[test]
    fn are_shown_short_and_printable() {
        assert_eq!(EntryName::new(b"a\xff\nb\xc3\xa4").to_string(), "a\\xff\\nb\u{e4}");
        assert_eq!(EntryName::new(&[b'x'; 1 << 20]).to_string().len(), 203);
    }
}
