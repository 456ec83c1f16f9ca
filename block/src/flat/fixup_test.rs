use std::collections::BTreeMap;
use std::convert::Infallible;

use proptest::prelude::*;

use super::*;
use crate::erofs::Timestamp;
use crate::flat::unpack;
use crate::flat::unpack::tests::{archive, layer, script};

/// All that can be seen of a tree: of each path what is there, and the first path of the same file. But for the time of the root, which
/// no mount shows.
fn seen(tree: &Tree) -> BTreeMap<Vec<u8>, (Content, Metadata, Vec<u8>)> {
    let mut paths = BTreeMap::new();
    let mut pending = vec![(Vec::new(), Tree::ROOT)];
    while let Some((path, id)) = pending.pop() {
        for (name, child) in names(tree, id) {
            pending.push(([&path[..], b"/", name].concat(), *child));
        }
        paths.insert(path, id);
    }
    let mut first = HashMap::new();
    let node = |(path, id): (Vec<u8>, InodeId)| {
        let same = first.entry(id).or_insert_with(|| path.clone()).clone();
        let content = match tree.content(id) {
            Content::Directory(_) => Content::Directory(Directory::default()),
            other => other.clone(),
        };
        let mut metadata = described(tree.metadata(id));
        if path.is_empty() {
            metadata.mtime = Default::default();
        }
        (path, (content, metadata, same))
    };
    paths.into_iter().map(node).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, ..ProptestConfig::default() })]

    /// A stack with its fix-up shows what unpacking gives, and one without shows something else.
    #[test]
    fn a_fixup_mends_any_stack(scripts in script(), again in any::<prop::sample::Index>(), repeat in any::<bool>()) {
        let layers = scripts.iter().enumerate().zip(1..).map(|((number, entries), device)| {
            layer(&archive(entries, 10 * number as u64 + 1).finish(), device).0
        });
        let mut layers: Vec<_> = layers.collect();
        // The topmost may be one that is also below.
        let mut order: Vec<_> = (0..layers.len()).collect();
        if repeat {
            order.insert(again.index(order.len()), layers.len() - 1);
        }
        let Ok(truth) = unpack(&layers, &order) else { return Ok(()) };
        let expected = seen(&truth.tree);
        match Fixup::new(&layers, &truth) {
            Some(fixup) => {
                let alone = stack(&layers);
                let tree = fixup.build(|data| Ok::<_, Infallible>(data.clone())).unwrap();
                layers.push(LayerTree { tree, journal: None });
                let mended = stack(&layers);
                prop_assert_eq!(seen(&mended.tree), expected.clone());
                prop_assert!(mended.littered.is_empty());
                prop_assert!(!alone.littered.is_empty() || seen(&alone.tree) != expected);
            }
            None => prop_assert_eq!(seen(&stack(&layers).tree), expected),
        }
    }
}

/// As with most images: the lowest layer describes the root, and those above do not.
#[test]
fn the_time_of_the_root_takes_no_fixup() {
    let described = |permissions| {
        let mut tree = Tree::default();
        let mtime = Timestamp { seconds: 7, nanoseconds: 0 };
        *tree.metadata_mut(Tree::ROOT) = Metadata { permissions, mtime, implied: false, ..Tree::implied() };
        LayerTree { tree, journal: None }
    };
    let above = || LayerTree { tree: Tree::default(), journal: None };
    let needs = |layers: [LayerTree; 2]| Fixup::new(&layers, &unpack(&layers, &[0, 1]).unwrap()).is_some();
    assert!(!needs([described(Tree::implied().permissions), above()]));
    assert!(needs([described(0o700), above()]));
}
