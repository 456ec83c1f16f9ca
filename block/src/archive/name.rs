//! Names of archive entries.

use std::fmt::{self, Write as _};

use super::EntryProblem;

/// Longest name of an entry in bytes; Linux cannot name a longer one in one call (`PATH_MAX`).
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

/// Splits a name into the path below the root that it means. A slash in front, doubled ones and `.` mean nothing, and `..` goes
/// back up, by the name alone; what leads out of the root is refused.
pub(crate) fn components(path: &[u8]) -> Result<Vec<&[u8]>, EntryProblem> {
    if path.contains(&0) {
        return Err(EntryProblem::InvalidName);
    }
    let mut components = Vec::new();
    for component in path.split(|byte| *byte == b'/') {
        match component {
            b"" | b"." => {}
            b".." => drop(components.pop().ok_or(EntryProblem::ParentReference)?),
            _ => components.push(component),
        }
    }
    let length = components.iter().map(|component| component.len() + 1).sum::<usize>();
    if length > MAX_PATH || components.iter().any(|component| component.len() > MAX_COMPONENT) {
        return Err(EntryProblem::InvalidName);
    }
    Ok(components)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn names_that_leave_the_image_are_refused() {
        for (path, problem) in [
            (&b"../x"[..], EntryProblem::ParentReference),
            (b"..", EntryProblem::ParentReference),
            (b"/../x", EntryProblem::ParentReference),
            (b"./../x/y", EntryProblem::ParentReference),
            (b"a/../../x", EntryProblem::ParentReference),
            (b"a/b/../../../a/b", EntryProblem::ParentReference),
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
    fn the_root_has_many_names() {
        for path in [&b""[..], b"/", b".", b"./", b"//", b"/./", b"a/..", b"./a/b/../../"] {
            assert_eq!(meaning(path).unwrap(), Meaning::Root, "{}", EntryName::new(path));
        }
    }

    /// Ways to write the path of `components`: what is put before, between and behind them changes nothing.
    fn spellings(components: Vec<Vec<u8>>) -> impl Strategy<Value = (Vec<Vec<u8>>, Vec<u8>)> {
        let detour =
            prop::sample::select(vec![&b""[..], b"./", b"/", b"././/", b"x/../", b".wh.x/y/../../", b"...//../"]);
        let detours = prop::collection::vec(detour, components.len() + 1);
        (Just(components), detours, any::<bool>(), any::<bool>()).prop_map(|(components, detours, absolute, closed)| {
            let mut path = if absolute { b"/".to_vec() } else { Vec::new() };
            path.extend(detours[0]);
            for (component, detour) in components.iter().zip(&detours[1..]) {
                path.extend([component, &b"/"[..], detour].concat());
            }
            if !closed && !components.is_empty() && path.ends_with(b"/") {
                path.pop();
            }
            (components, path)
        })
    }

    proptest! {
        #[test]
        fn every_spelling_of_a_path_means_that_path(
            (expected, path) in prop::collection::vec("[a-z.]{0,3}[a-z]", 0..5)
                .prop_map(|names| names.into_iter().map(String::into_bytes).collect())
                .prop_flat_map(spellings)
        ) {
            prop_assert_eq!(components(&path).unwrap(), expected);
            let (absolute, relative) = ([b"/", &path[..]].concat(), [b"./", &path[..]].concat());
            prop_assert_eq!(components(&absolute).unwrap(), components(&path).unwrap());
            prop_assert_eq!(components(&relative).unwrap(), components(&path).unwrap());
        }
    }

    #[test]
    fn whiteouts() {
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
