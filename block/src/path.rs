//! Walks a path component by component through symbolic links, inside a root. Pure: the caller knows the directories.

use std::borrow::Cow;

/// Most symbolic links in the way of one path (Linux, `MAXSYMLINKS`).
pub const MAX_LINKS: u32 = 40;
/// Longest component in bytes.
const MAX_COMPONENT: usize = 255;
/// Most components that the links in all paths together may add: far above any image, and little work.
const MAX_ADDED: u64 = 1 << 22;

/// A path whose symbolic links cannot be followed.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum LinkProblem {
    /// More than Linux follows.
    #[error("lies behind more than {MAX_LINKS} symbolic links")]
    Loop,
    /// One with an invalid target.
    #[error("lies behind a symbolic link to a name that no file can have")]
    Name,
    /// Too many components.
    #[error("lies behind symbolic links whose targets have more than {MAX_ADDED} components altogether")]
    Work,
}

/// What links have added to all paths so far.
#[derive(Debug, Default)]
pub struct Followed(u64);

/// A walk along a path.
pub struct Walk<'a> {
    names: &'a [&'a [u8]],
    /// Number of them that were taken.
    taken: usize,
    /// Components that links put before the rest, the next one last.
    added: Vec<Box<[u8]>>,
    links: u32,
}

impl<'a> Walk<'a> {
    /// A walk along the components `names`.
    pub fn new(names: &'a [&'a [u8]]) -> Self {
        Self { names, taken: 0, added: Vec::new(), links: 0 }
    }

    /// The next component. It may be `..`, which from the root leads to the root.
    pub fn next(&mut self) -> Option<Cow<'a, [u8]>> {
        if let Some(name) = self.added.pop() {
            return Some(Cow::Owned(name.into()));
        }
        let name = self.names.get(self.taken)?;
        self.taken += 1;
        Some(Cow::Borrowed(name))
    }

    /// Goes on where a symbolic link leads, which was what the last component named. The target counts from the root where it
    /// begins with a slash, else from the directory that has the link.
    pub fn follow(&mut self, target: &[u8], followed: &mut Followed) -> Result<(), LinkProblem> {
        self.links += 1;
        if self.links > MAX_LINKS {
            return Err(LinkProblem::Loop);
        }
        for name in target.rsplit(|byte| *byte == b'/').filter(|name| !matches!(name, [] | [b'.'])) {
            if name.len() > MAX_COMPONENT || name.contains(&0) {
                return Err(LinkProblem::Name);
            }
            followed.0 += 1;
            if followed.0 > MAX_ADDED {
                return Err(LinkProblem::Work);
            }
            self.added.push(name.into());
        }
        Ok(())
    }

    /// As much of the path as was taken.
    pub fn taken(&self) -> Vec<u8> {
        self.names[..self.taken].join(&b'/')
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rest(walk: &mut Walk<'_>) -> Vec<u8> {
        std::iter::from_fn(|| walk.next()).collect::<Vec<_>>().join(&b'|')
    }

    #[test]
    fn a_link_comes_before_the_rest() {
        let mut walk = Walk::new(&[b"a", b"l", b"z"]);
        walk.next();
        walk.next();
        walk.follow(b"/b/.//../c/", &mut Followed::default()).unwrap();
        assert_eq!((walk.taken(), rest(&mut walk)), (b"a/l".to_vec(), b"b|..|c|z".to_vec()));
    }

    #[test]
    fn links_without_end_are_refused() {
        let mut followed = Followed::default();
        let mut walk = Walk::new(&[b"l"]);
        let results: Vec<_> = (0..41).map(|_| walk.follow(b"l", &mut followed)).collect();
        assert!(results[..40].iter().all(Result::is_ok) && results[40] == Err(LinkProblem::Loop));
        let long = Walk::new(&[]).follow(&[b'x'; 256], &mut followed);
        assert_eq!(long, Err(LinkProblem::Name));
        followed.0 = MAX_ADDED;
        assert_eq!(Walk::new(&[]).follow(b"x", &mut followed), Err(LinkProblem::Work));
    }
}
