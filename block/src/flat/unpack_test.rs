use std::collections::BTreeMap;

use proptest::prelude::*;
use tar::EntryType;

use super::*;
use crate::archive::Limits;
use crate::erofs::{Origin, read_layer};
use crate::import::import_layer;
use crate::oci::Digests;
use crate::testing::{Archive, Entry};

/// Imports an archive and reads the layer back; its files are on device `device`.
pub(in crate::flat) fn layer(archive: &[u8], device: u16) -> (LayerTree, tempfile::NamedTempFile) {
    let file = tempfile::NamedTempFile::new().unwrap();
    import_layer(archive, Digests::default(), Limits::default(), file.as_file()).unwrap();
    (read_layer(file.as_file(), Origin::Import, device).unwrap(), file)
}

fn unpacked(archives: impl IntoIterator<Item = Archive>) -> Result<Unpacked, UnpackError> {
    let layers: Vec<_> =
        archives.into_iter().zip(1..).map(|(archive, device)| layer(&archive.finish(), device).0).collect();
    unpack(&layers, &(0..layers.len()).collect::<Vec<_>>())
}

/// What a tree has, by path: `/` behind directories, `=` between files that are one, `->` before targets.
fn listing(tree: &Tree) -> Vec<String> {
    let mut names: BTreeMap<InodeId, Vec<String>> = BTreeMap::new();
    let mut pending = vec![(String::new(), Tree::ROOT)];
    while let Some((path, id)) = pending.pop() {
        for (name, child) in tree.directory(id).into_iter().flat_map(|directory| &directory.entries) {
            let path = format!("{path}{}", name.escape_ascii());
            names.entry(*child).or_default().push(path.clone());
            pending.push((path + "/", *child));
        }
    }
    let line = |(id, mut names): (InodeId, Vec<String>)| {
        names.sort();
        match tree.content(id) {
            Content::Directory(_) => names.join("=") + "/",
            Content::Symlink(target) => format!("{} -> {}", names.join("="), target.escape_ascii()),
            _ => names.join("="),
        }
    };
    let mut lines: Vec<_> = names.into_iter().map(line).collect();
    lines.sort();
    lines
}

fn lists(archives: impl IntoIterator<Item = Archive>) -> Vec<String> {
    listing(&unpacked(archives).unwrap().tree)
}

fn fails(archives: impl IntoIterator<Item = Archive>) -> String {
    let error = unpacked(archives).unwrap_err();
    format!("{}: {error}", error.layer)
}

fn new() -> Archive {
    Archive::new()
}

#[test]
fn names_behind_a_link_of_a_lower_layer_are_where_it_leads() {
    let base = || new().directory("usr/").directory("usr/bin/").file("usr/bin/sh", "").symlink("bin", "usr/bin");
    fn whole<'a>(lines: &[&'a str]) -> Vec<&'a str> {
        [lines, &["usr/", "usr/bin/"]].concat()
    }
    let cases: [(Archive, Vec<&str>); 9] = [
        (new().file("bin/tool", ""), whole(&["bin -> usr/bin", "usr/bin/sh", "usr/bin/tool"])),
        (new().file("bin/.wh.sh", ""), whole(&["bin -> usr/bin"])),
        (new().file("bin/.wh..wh..opq", "").file("bin/x", ""), whole(&["bin -> usr/bin", "usr/bin/x"])),
        (new().file(".wh.bin", ""), whole(&["usr/bin/sh"])),
        (new().directory("bin/").file("bin/tool", ""), whole(&["bin/", "bin/tool", "usr/bin/sh"])),
        (new().hard_link("sh", "bin/sh"), whole(&["bin -> usr/bin", "sh=usr/bin/sh"])),
        (new().hard_link("b", "bin"), whole(&["b=bin -> usr/bin", "usr/bin/sh"])),
        // The same name in two ways: the later entry counts.
        (new().file("usr/bin/x", "").hard_link("bin/x", "bin/sh"), whole(&["bin -> usr/bin", "usr/bin/sh=usr/bin/x"])),
        (new().file("bin/x", "").symlink("bin", "usr"), whole(&["bin -> usr", "usr/bin/sh", "usr/bin/x"])),
    ];
    for (upper, mut expected) in cases {
        expected.sort_unstable();
        let mut lines = lists([base(), upper]);
        lines.sort();
        assert_eq!(lines, expected);
    }
}

#[test]
fn links_lead_through_links_and_stay_inside() {
    for (target, leads) in [
        ("usr/bin", "usr/bin/x"),
        ("/usr/bin/", "usr/bin/x"),
        ("./usr//./bin", "usr/bin/x"),
        ("usr/../usr/bin", "usr/bin/x"),
        ("../../usr", "usr/x"),
        ("/../..", "x"),
        ("other", "usr/bin/x"),
        // Nothing is there yet: the directory is made.
        ("usr/none/deep", "usr/none/deep/x"),
    ] {
        let base = new().directory("usr/bin/").symlink("other", "/usr/bin").file("usr/bin/sh", "");
        let lines = lists([base, new().symlink("l", target), new().file("l/x", "")]);
        assert!(lines.contains(&leads.to_owned()), "{target}: {lines:?}");
    }
    // A link below a link, whose target counts from where it is.
    let lines = lists([
        new().directory("opt/").symlink("a", "opt/in").directory("opt/in/"),
        new().symlink("a/l", "../up").file("a/l/x", ""),
    ]);
    assert_eq!(lines, ["a -> opt/in", "opt/", "opt/in/", "opt/in/l -> ../up", "opt/up/", "opt/up/x"]);
}

#[test]
fn links_of_the_same_layer_count_from_their_entry_on() {
    assert_eq!(
        lists([new().symlink("bin", "usr/bin").file("bin/x", "")]),
        ["bin -> usr/bin", "usr/", "usr/bin/", "usr/bin/x"]
    );
    assert_eq!(lists([new().file("bin/x", "").symlink("bin", "usr/bin")]), ["bin -> usr/bin"]);
    let base = || new().symlink("bin", "old").directory("old/");
    assert_eq!(lists([base(), new().file("bin/x", "").symlink("bin", "new")]), ["bin -> new", "old/", "old/x"]);
    assert_eq!(lists([base(), new().file("bin/x", "").directory("bin/")]), ["bin/", "old/", "old/x"]);
}

/// What `..` leads out of again is not made. A file that comes there is in the way of the next entry.
#[test]
fn links_do_not_lead_through_a_file_that_came_later() {
    let base = || new().symlink("b/a", "b/a/..").symlink("c", "c2/..");
    let both = || new().file("b/a/a", "").directory("b/a/a/");
    assert!(lists([base(), new().file("b/a/a", "")]).contains(&"b/b/a".to_owned()));
    let error = fails([base(), both()]);
    assert!(error.starts_with("1: entry `b/a/a` lies below"), "{error}");
    let error = fails([base(), new().file("c/x", "").file("c/c2", "").file("c/y", "")]);
    assert!(error.starts_with("1: entry `c/y` lies below"), "{error}");
    let error = fails([base(), new().file("c/x", "").symlink("c2", "c").file("c/y", "")]);
    assert!(error.contains("more than 40 symbolic links"), "{error}");
}

#[test]
fn hard_links_mean_what_was_there() {
    let base =
        || new().file("a", "1").symlink("s", "a").device("c", EntryType::Char, 1, 3).file("d/f", "").symlink("e", "d");
    let cases: [(Vec<Archive>, &[&str]); 5] = [
        (vec![new().hard_link("b", "a"), new().file("a", "2")], &["a", "b"]),
        (vec![new().hard_link("b", "a").file(".wh.a", "")], &["b"]),
        (vec![new().hard_link("b", "s").hard_link("n", "c").file(".wh.a", "")], &["b=s -> a", "c=n"]),
        (vec![new().hard_link("b", "e/f").file(".wh.a", "")], &["b=d/f"]),
        (vec![new().hard_link("b", "a"), new().hard_link("n", "b"), new().file(".wh.b", "")], &["a=n"]),
    ];
    for (uppers, expected) in cases {
        let lines = lists(std::iter::once(base()).chain(uppers));
        assert!(expected.iter().all(|line| lines.contains(&(*line).to_owned())), "{expected:?}: {lines:?}");
    }
    for (upper, words) in [
        (new().hard_link("b", "none"), "1: entry `b` is a hard link to `none`"),
        (new().hard_link("b", "d"), "1: entry `b` is a hard link to `d`"),
        (new().hard_link("b", "a/x"), "1: entry `b` is a hard link to `a/x`"),
        (new().file(".wh.a", "").hard_link("b", "a"), "1: entry `b` is a hard link to `a`"),
        (new().file("a/x", ""), "1: entry `a/x` lies below `a`, which is not a directory"),
        (new().symlink("l", "l").file("l/.wh.x", ""), "1: entry `l/.wh.x` lies behind more than 40 symbolic links"),
        (new().symlink("l", "m").symlink("m", "l").file("l/x", ""), "1: entry `l/x` lies behind more than 40"),
    ] {
        let error = fails([base(), upper]);
        assert!(error.starts_with(words), "{error}");
    }
}

/// Links that multiply cost little, however many ways lead through them.
#[test]
fn bombs_of_links_are_refused() {
    let chain = (0..40)
        .fold(new(), |archive, n| archive.symlink(format!("l{n}"), "x/../".repeat(500) + &format!("l{}", n + 1)));
    let chain = chain.directory("x/").directory("l40/");
    let bomb = (0..4000).fold(new(), |archive, n| archive.file(format!("l0/{n}"), "").file(format!("x/{n}"), ""));
    let error = fails([chain, bomb]);
    assert!(error.contains("components altogether"), "{error}");
}

#[test]
fn deep_directories_are_refused() {
    let deep = "d/".repeat(2000);
    let base = new().directory(&deep).symlink("l", &deep);
    let error = fails([base, new().directory(format!("l/{deep}"))]);
    assert!(error.contains("more than 2048 directories deep"), "{error}");
}

/// The model: a map of whole paths, changed as the specification says.
#[derive(Default)]
struct Model {
    nodes: BTreeMap<String, Made>,
}

#[derive(Clone, PartialEq)]
struct Made {
    kind: Kind,
    by: usize,
    /// Of which entry it is; directories that were made in passing are of none.
    entry: u64,
}

#[derive(Clone, Debug, PartialEq)]
enum Kind {
    Directory,
    File,
    Symlink(String),
}

#[derive(Clone, Debug)]
pub(in crate::flat) enum Put {
    Directory,
    File,
    Symlink(String),
    Link(String),
    Whiteout,
    Opaque,
}

impl Model {
    fn parent(path: &str) -> String {
        path.rsplit_once('/').map_or_else(String::new, |(parent, _)| parent.to_owned())
    }

    fn is_directory(&self, path: &str) -> bool {
        path.is_empty() || self.nodes.get(path).is_some_and(|node| node.kind == Kind::Directory)
    }

    /// Where a path leads, every component followed. What is missing is as good as a directory.
    fn follow(&self, path: &str, links: &mut usize) -> Option<String> {
        let mut at = String::new();
        let mut rest: Vec<String> = path.split('/').rev().map(str::to_owned).collect();
        while let Some(name) = rest.pop() {
            match &*name {
                "" | "." => continue,
                ".." => at = Self::parent(&at),
                _ => {
                    let next = if at.is_empty() { name } else { format!("{at}/{name}") };
                    match self.nodes.get(&next).map(|node| &node.kind) {
                        Some(Kind::Symlink(target)) => {
                            *links += 1;
                            if *links > 40 {
                                return None;
                            }
                            if target.starts_with('/') {
                                at.clear();
                            }
                            rest.extend(target.split('/').rev().map(str::to_owned));
                        }
                        Some(Kind::File) => return None,
                        // `..` of what is not there leads to what is above it all the same: it will have been made.
                        _ => at = next,
                    }
                }
            }
        }
        Some(at)
    }

    fn make(&mut self, path: &str, by: usize) {
        if !path.is_empty() && !self.nodes.contains_key(path) {
            self.make(&Self::parent(path), by);
            self.nodes.insert(path.to_owned(), Made { kind: Kind::Directory, by, entry: 0 });
        }
    }

    fn below(&self, path: &str) -> Vec<String> {
        let prefix = if path.is_empty() { String::new() } else { format!("{path}/") };
        self.nodes.keys().filter(|name| name.starts_with(&prefix)).cloned().collect()
    }

    /// Removes what layers below `by` have there.
    fn clear(&mut self, names: &[String], by: usize) {
        let kept: Vec<_> = names.iter().filter(|name| self.nodes[*name].by == by).cloned().collect();
        for name in names {
            let prefix = format!("{name}/");
            if self.nodes[name].by != by {
                if kept.iter().any(|other| other.starts_with(&prefix)) {
                    self.nodes.insert(name.clone(), Made { kind: Kind::Directory, by, entry: 0 });
                } else {
                    self.nodes.remove(name);
                }
            }
        }
    }

    fn apply(&mut self, path: &str, put: &Put, by: usize, entry: u64) -> Option<()> {
        let (parent, name) = path.rsplit_once('/').unwrap_or(("", path));
        let walked = if matches!(put, Put::Opaque) { path } else { parent };
        let folder = self.follow(walked, &mut 0)?;
        self.make(&folder, by);
        let place = if folder.is_empty() { name.to_owned() } else { format!("{folder}/{name}") };
        let kind = match put {
            Put::Opaque => {
                self.clear(&self.below(&folder), by);
                return Some(());
            }
            Put::Whiteout => {
                let names =
                    [self.below(&place), self.nodes.contains_key(&place).then(|| place.clone()).into_iter().collect()];
                self.clear(&names.concat(), by);
                return Some(());
            }
            Put::Link(target) => {
                let (parent, name) = target.rsplit_once('/').unwrap_or(("", target));
                let folder = self.follow(parent, &mut 0)?;
                let target = if folder.is_empty() { name.to_owned() } else { format!("{folder}/{name}") };
                let target = self.nodes.get(&target).filter(|node| node.kind != Kind::Directory)?.clone();
                self.replace(&place, Made { by, ..target });
                return Some(());
            }
            Put::Directory => {
                if self.is_directory(&place) {
                    self.nodes.insert(place, Made { kind: Kind::Directory, by, entry });
                    return Some(());
                }
                Kind::Directory
            }
            Put::File => Kind::File,
            Put::Symlink(target) => Kind::Symlink(target.clone()),
        };
        self.replace(&place, Made { kind, by, entry });
        Some(())
    }

    fn replace(&mut self, place: &str, made: Made) {
        for name in self.below(place) {
            self.nodes.remove(&name);
        }
        self.nodes.insert(place.to_owned(), made);
    }
}

/// The same of a tree: the time of an inode is its entry's number.
fn entries(tree: &Tree) -> BTreeMap<String, (Kind, u64)> {
    let mut found = BTreeMap::new();
    let mut pending = vec![(String::new(), Tree::ROOT)];
    while let Some((path, id)) = pending.pop() {
        for (name, child) in tree.directory(id).into_iter().flat_map(|directory| &directory.entries) {
            let path = format!("{path}{}", name.escape_ascii());
            let kind = match tree.content(*child) {
                Content::Directory(_) => Kind::Directory,
                Content::Symlink(target) => Kind::Symlink(target.escape_ascii().to_string()),
                _ => Kind::File,
            };
            let metadata = tree.metadata(*child);
            let entry = if metadata.implied { 0 } else { metadata.mtime.seconds.unsigned_abs() };
            found.insert(path.clone(), (kind, entry));
            pending.push((path + "/", *child));
        }
    }
    found
}

fn path() -> impl Strategy<Value = String> {
    prop::collection::vec("[a-c]", 1..4).prop_map(|names| names.join("/"))
}

fn target() -> impl Strategy<Value = String> {
    let name = prop_oneof![4 => "[a-c]", 1 => Just("..".to_owned())];
    (prop_oneof![Just(""), Just("/")], prop::collection::vec(name, 1..4))
        .prop_map(|(root, names)| root.to_owned() + &names.join("/"))
}

fn put() -> impl Strategy<Value = Put> {
    prop_oneof![
        3 => Just(Put::Directory),
        4 => Just(Put::File),
        3 => target().prop_map(Put::Symlink),
        2 => path().prop_map(Put::Link),
        1 => Just(Put::Whiteout),
        1 => Just(Put::Opaque),
    ]
}

/// The entries of some layers, lowest first.
pub(in crate::flat) fn script() -> impl Strategy<Value = Vec<Vec<(String, Put)>>> {
    prop::collection::vec(prop::collection::vec((path(), put()), 1..7), 1..5)
}

/// The archive with these entries; the time of each is its number, counted from `first`.
pub(in crate::flat) fn archive(entries: &[(String, Put)], first: u64) -> Archive {
    let add = |archive: Archive, ((path, put), number): (&(String, Put), u64)| {
        let (parent, name) =
            path.rsplit_once('/').map_or((String::new(), &**path), |(parent, name)| (format!("{parent}/"), name));
        let entry = |name: &str, kind| Entry { mtime: number, ..Entry::new(name, kind) };
        archive.add(match put {
            Put::Directory => entry(path, EntryType::Directory),
            Put::File => Entry { data: number.to_string().into_bytes(), ..entry(path, EntryType::Regular) },
            Put::Symlink(target) => Entry { link: target.clone().into_bytes(), ..entry(path, EntryType::Symlink) },
            Put::Link(target) => Entry { link: target.clone().into_bytes(), ..entry(path, EntryType::Link) },
            Put::Whiteout => entry(&format!("{parent}.wh.{name}"), EntryType::Regular),
            Put::Opaque => entry(&format!("{path}/.wh..wh..opq"), EntryType::Regular),
        })
    };
    entries.iter().zip(first..).fold(Archive::new(), add)
}

/// The first `c/a/c` lies where a link leads that the directory `c` then replaces.
#[test]
fn a_directory_that_is_described_twice_may_be_two() {
    let entries_of = |paths: &[&str]| paths.iter().map(|path| ((*path).to_owned(), Put::Directory)).collect::<Vec<_>>();
    let link = archive(&[("c".to_owned(), Put::Symlink("a".to_owned()))], 1);
    let found = unpacked(vec![link, archive(&entries_of(&["c/a/c", "c", "c/a/c"]), 2)]).unwrap();
    let found = entries(&found.tree);
    assert_eq!(found["a/a/c"], (Kind::Directory, 2));
    assert_eq!(found["c/a/c"], (Kind::Directory, 4));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn random_layers_are_unpacked_as_the_model_does(layers in script()) {
        let mut model = Model::default();
        let mut archives = Vec::new();
        let mut expected = Some(());
        let mut number = 1;
        for (by, entries) in layers.iter().enumerate() {
            archives.push(archive(entries, number));
            for (path, put) in entries {
                expected = expected.and_then(|()| model.apply(path, put, by, number));
                number += 1;
            }
        }
        let found = unpacked(archives);
        prop_assert_eq!(expected.is_some(), found.is_ok(), "{:?}", found.err());
        if let Ok(found) = found {
            let expected: BTreeMap<_, _> = model.nodes.into_iter().map(|(path, node)| (path, (node.kind, node.entry))).collect();
            prop_assert_eq!(entries(&found.tree), expected);
        }
    }
}
