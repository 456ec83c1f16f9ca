//! Images without Python: their own tools see the files that unpacking gives.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use bellows_block::testing::{Node, snapshot};
use bellows_vmm::{ImageConfig, Shape, Transport};

use super::{is_the_containers, line};
use crate::archives::{Imported, import, layout_archives, scratch, unpack};
use crate::fixture::{Guest, PATIENCE, Running, artefact};

/// Lines for each kind of file: attributes, digests, targets.
const APPLETS: &str = "
find / -xdev -type d -exec stat -c '%f %u %g %Y %n' {} +
find / -xdev ! -type d -exec stat -c '%f %u %g %Y %h %t:%T %n' {} +
find / -xdev -type f -exec sha256sum {} +
find / -xdev -type l -exec stat -c %N {} +";

/// Prints lines as [`line`] does, without extended attributes.
const SCRIPT: &str = include_str!("walk.js");

/// An image, and the tree that unpacking its layers gives.
pub struct Bare {
    imported: Imported,
    id: &'static str,
    tree: BTreeMap<Vec<u8>, Node>,
    walk: &'static [&'static str],
    /// A line of the walk about a file.
    lines: fn(&[u8], &Node) -> Vec<String>,
}

/// The image of busybox and musl, in `directory`.
pub fn alpine_like(directory: &Path) -> Bare {
    Bare::new(directory, "alpine-like", "BELLOWS_ALPINE_LIKE_IMAGE", &["/bin/sh", "-c", APPLETS], applet_lines)
}

/// The image of Node.js, in `directory`.
fn node(directory: &Path) -> Bare {
    Bare::new(directory, "node", "BELLOWS_NODE_IMAGE", &["/usr/bin/node", "-e", SCRIPT], |name, node| {
        vec![line(name, &Node { xattrs: BTreeMap::new(), ..node.clone() })]
    })
}

impl Bare {
    fn new(
        directory: &Path,
        id: &'static str,
        variable: &str,
        walk: &'static [&'static str],
        lines: fn(&[u8], &Node) -> Vec<String>,
    ) -> Self {
        let directory = directory.join(id);
        let unpacked = directory.join("unpacked");
        fs::create_dir_all(&unpacked).unwrap();
        let archives = layout_archives(&artefact(variable), &directory);
        archives.iter().for_each(|archive| unpack(archive, &unpacked));
        Self { imported: import(&directory, &archives), id, tree: snapshot(&unpacked), walk, lines }
    }

    /// Adds the image to a VM, compares, and takes it out again.
    pub fn compare(&self, guest: &Running, transport: Transport, shape: Shape) {
        let image = ImageConfig { id: self.id.parse().unwrap(), ..self.imported.config() };
        let attached = guest.vm.attach_image(&image.clone().shape(shape).transport(transport), PATIENCE).unwrap();
        assert_eq!((attached.shape, attached.transport), (shape, transport));
        let seen = guest.run_in("walk", self.id, self.walk);
        guest.vm.detach_image(&image.id, PATIENCE).unwrap();
        let seen: BTreeSet<&str> = seen.lines().collect();
        let theirs = self.tree.iter().filter(|(name, _)| is_the_containers(name));
        let theirs: BTreeSet<String> = theirs.flat_map(|(name, node)| (self.lines)(name, node)).collect();
        let ours = self.tree.iter().filter(|(name, _)| !is_the_containers(name));
        let expected: BTreeSet<String> = ours.flat_map(|(name, node)| (self.lines)(name, node)).collect();
        let case = format!("{} as {shape} over {transport}", self.id);
        let missing: Vec<_> = expected.iter().filter(|line| !seen.contains(line.as_str())).take(20).collect();
        assert!(
            expected.len() > 60 && missing.is_empty(),
            "{case}: of {} lines are missing {missing:#?}",
            expected.len()
        );
        // And only the container's own files are there beside them.
        let known = |line: &&&str| expected.contains(**line) || theirs.contains(**line) || is_of_the_container(line);
        let more: Vec<_> = seen.iter().filter(|line| !known(line)).take(20).collect();
        assert!(more.is_empty(), "{case}: unknown {more:#?}");
    }
}

/// Each transport and each shape once.
#[test]
fn the_image_of_node_is_seen_as_unpacking_gives_it() {
    let directory = scratch();
    let node = node(directory.path());
    for (transport, shape) in [(Transport::Blk, Shape::Layers), (Transport::Pmem, Shape::Flat)] {
        let guest = Guest::ours().vcpus(2).boot();
        node.compare(&guest, transport, shape);
        guest.shutdown();
    }
}

/// Whether a line of either kind is about the root or something that every container has.
fn is_of_the_container(line: &str) -> bool {
    let plain = line.rsplit(' ').next().unwrap_or_default().trim_matches('\'').trim_start_matches('/').to_owned();
    let encoded = line.split(' ').next().and_then(|name| hex::decode(name).ok());
    is_the_containers(plain.as_bytes()) || encoded.is_some_and(|name| is_the_containers(&name))
}

fn applet_lines(name: &[u8], node: &Node) -> Vec<String> {
    let Node { mode, uid, gid, mtime: (seconds, _), links, device, .. } = node;
    let name = format!("/{}", String::from_utf8(name.to_vec()).unwrap());
    let (major, minor) = (libc::major(*device), libc::minor(*device));
    let mut lines = vec![match mode & libc::S_IFMT {
        libc::S_IFDIR => format!("{mode:x} {uid} {gid} {seconds} {name}"),
        _ => format!("{mode:x} {uid} {gid} {seconds} {links} {major:x}:{minor:x} {name}"),
    }];
    lines.extend(node.data.map(|digest| format!("{}  {name}", digest.hex())));
    let target = node.target.as_ref().map(|target| String::from_utf8(target.clone()).unwrap());
    lines.extend(target.map(|target| format!("'{name}' -> '{target}'")));
    lines
}
