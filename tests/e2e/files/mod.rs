//! An image as the guest sees it, file by file.

mod own_tools;

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use bellows_block::testing::{Archive, Node, snapshot};
use bellows_vmm::{ImageConfig, Shape, Transport};

use crate::archives::{XATTRS, import, layout_archives, scratch, tar, unpack};
use crate::fixture::{Guest, PATIENCE, Running, artefact};

/// All files of an image that comes in the usual way, and the files that the layers change in every other way.
#[test]
fn the_guest_sees_the_files_that_unpacking_gives() {
    compare_every_way(&[DEFAULT_WAY]);
}

/// Fourteen layers: the guest sees each file as unpacking the same archives gives it, in every way. In the `thorough` ways all
/// files are compared, in others those below `/t`.
pub fn compare_every_way(thorough: &[(Transport, Shape)]) {
    let directory = scratch();
    let demo_archives = layout_archives(&artefact("BELLOWS_IMAGE"), directory.path());
    let archives = [demo_archives, made_archives(directory.path()), linked_archives(directory.path())].concat();
    let imported = import(directory.path(), &archives);
    let fixup = imported.config().fixup.is_some();
    assert_eq!((imported.image.layers.len(), fixup), (14, true));
    let unpacked = directory.path().join("unpacked");
    fs::create_dir(&unpacked).unwrap();
    for archive in &archives {
        unpack(archive, &unpacked);
    }
    let expected: BTreeMap<_, _> =
        snapshot(&unpacked).iter().map(|(name, node)| (name.clone(), line(name, node))).collect();
    assert!(expected.len() > 3000, "{} files", expected.len());

    let alpine_like = own_tools::alpine_like(directory.path());
    for (transport, shape) in WAYS {
        let guest = Guest::ours().vcpus(2).image(imported.config().shape(shape).transport(transport)).boot();
        let top = if thorough.contains(&(transport, shape)) { "/" } else { "/t" };
        compare(&guest, top, &expected, &format!("{shape} over {transport}"));
        alpine_like.compare(&guest, transport, shape);
        guest.shutdown();
    }
    // If the guest's kernel is too old for a flat image, it comes as layers, unless a flat one was requested.
    let guest = Guest::old().image(imported.config()).boot();
    assert!(guest.kernel.starts_with("6.1."), "{}", guest.kernel);
    let images = guest.vm.images();
    assert_eq!((images[0].shape, images[0].disks.len(), guest.vm.disks().len()), (Shape::Layers, 15, 15));
    compare(&guest, "/t", &expected, &format!("layers in Linux {}", guest.kernel));
    let asked_for = ImageConfig { id: "asked-for".parse().unwrap(), ..imported.config() }.shape(Shape::Flat);
    let error = guest.vm.attach_image(&asked_for, PATIENCE).unwrap_err().to_string();
    assert!(error.contains("image asked-for cannot be flat") && error.contains(&guest.kernel), "{error}");
    assert_eq!(guest.vm.disks().len(), 15);
    guest.shutdown();
}

/// Every way for an image into the guest.
pub const WAYS: [(Transport, Shape); 4] = [
    (Transport::Blk, Shape::Layers),
    (Transport::Blk, Shape::Flat),
    (Transport::Pmem, Shape::Layers),
    (Transport::Pmem, Shape::Flat),
];

/// The usual way: the transport that needs no guest memory for its pages, and the shape that is the default.
const DEFAULT_WAY: (Transport, Shape) = (Transport::Blk, Shape::Flat);

/// Compares the files that an instance sees below `top` with the `expected` ones.
fn compare(guest: &Running, top: &str, expected: &BTreeMap<Vec<u8>, String>, case: &str) {
    let seen = guest.shell("walk", &format!("exec python3 -c '{}' {top}", include_str!("walk.py")));
    let seen: BTreeMap<Vec<u8>, &str> =
        seen.lines().map(|line| (hex::decode(line.split(' ').next().unwrap()).unwrap(), line)).collect();
    let is_below = |name: &[u8]| Path::new("/").join(OsStr::from_bytes(name)).starts_with(top);
    let mut wrong = Vec::new();
    for name in
        expected.keys().filter(|name| is_below(name)).chain(seen.keys().filter(|name| !expected.contains_key(*name)))
    {
        let (expected, seen) =
            (expected.get(name).map_or("nothing", String::as_str), seen.get(name).unwrap_or(&"nothing"));
        if expected != *seen && !is_the_containers(name) {
            wrong.push(format!("{}:\n  unpacked {expected}\n  guest    {seen}", name.escape_ascii()));
        }
    }
    let examples = wrong[..wrong.len().min(20)].join("\n");
    assert!(wrong.is_empty(), "{case}: {} differ, for example\n{examples}", wrong.len());
}

/// The root itself, whose time no layer sets, the mount points of every container, and the files that the agent adds.
pub fn is_the_containers(name: &[u8]) -> bool {
    let is_below = |mount: &[u8]| name.strip_prefix(mount).is_some_and(|rest| rest.is_empty() || rest[0] == b'/');
    let given = [&b"etc"[..], b"etc/hosts", b"etc/hostname", b"etc/resolv.conf", b"etc/mtab"];
    name.is_empty() || [&b"dev"[..], b"proc", b"sys"].into_iter().any(is_below) || given.contains(&name)
}

/// A line of `walk.py` about a file.
pub fn line(name: &[u8], node: &Node) -> String {
    let xattr = |(key, value): (&Vec<u8>, &Vec<u8>)| format!("{}={}", hex::encode(key), hex::encode(value));
    let xattrs = node.xattrs.iter().map(xattr).collect::<Vec<_>>().join(",");
    let is_directory = node.mode & libc::S_IFMT == libc::S_IFDIR;
    format!(
        "{} 0o{:o} {} {} {} {} {} {} {} {} {} {}",
        hex::encode(name),
        node.mode,
        node.uid,
        node.gid,
        i128::from(node.mtime.0) * 1_000_000_000 + i128::from(node.mtime.1),
        if is_directory { 0 } else { node.links },
        node.device,
        node.bytes,
        node.data.map_or_else(|| "-".to_owned(), |digest| digest.hex()),
        node.target.as_ref().map_or_else(|| "-".to_owned(), hex::encode),
        if xattrs.is_empty() { "-" } else { &xattrs },
        hex::encode(&node.same_as),
    )
}

/// The changes of each layer above the demo's three: made by a shell in an empty directory, packed by GNU tar.
const CHANGES: [&str; 9] = [
    include_str!("one_of_everything.sh"),
    // Whiteouts of a file, of a directory, and of all that was in a directory that gets something new.
    "mkdir -p t/opaque t/many; : > t/many/.wh.file-with-a-rather-long-name-7; : > t/.wh.gone; : > t/opaque/.wh..wh..opq; echo new > t/opaque/new",
    // Files become directories and the reverse.
    "mkdir -p t/to-directory; echo below > t/to-directory/below; echo file > t/to-file",
    // Removed files come back with another type; attributes change alone.
    "mkdir -p t/gone t/many; echo again > t/gone/other; ln -s target t/many/file-with-a-rather-long-name-7; mkdir -p t/a; chmod 711 t/a; chown 5:6 t/a",
    // The files that Debian brought.
    "mkdir -p usr/share etc; : > usr/share/.wh.doc; : > etc/.wh.issue; mkdir -p usr/share/common-licenses; : > usr/share/common-licenses/.wh..wh..opq",
    "mkdir -p t/layer-9; echo 9 > t/layer-9/file",
    "mkdir -p t/layer-10; echo 10 > t/layer-10/file; mkdir -p t/layer-9; : > t/layer-9/.wh.file",
    "mkdir -p t/layer-9; echo 11 > t/layer-9/file",
    "mkdir -p t; : > t/.wh.layer-10",
];

fn made_archives(directory: &Path) -> Vec<PathBuf> {
    CHANGES
        .iter()
        .enumerate()
        .map(|(number, script)| {
            let source = directory.join(format!("source-{number}"));
            fs::create_dir(&source).unwrap();
            let made = Command::new("/bin/sh").args(["-e", "-c", script]).current_dir(&source).status().unwrap();
            assert!(made.success(), "{script}");
            if number == 0 {
                set_xattrs(&source.join("t"));
            }
            let archive = directory.join(format!("{number}.tar"));
            let names = fs::read_dir(&source).unwrap().map(|entry| entry.unwrap().file_name());
            tar(
                Command::new("tar")
                    .args(["-c", "--format=pax", "--numeric-owner"])
                    .args(XATTRS)
                    .arg("-f")
                    .arg(&archive)
                    .args(names),
                &source,
            );
            archive
        })
        .collect()
}

/// A layer with a link and one whose names lead through it.
fn linked_archives(directory: &Path) -> Vec<PathBuf> {
    let through = Archive::new()
        .directory("t/")
        .file("t/way/through", vec![b'x'; 10_000])
        .file("t/way/.wh.block", "")
        .hard_link("t/again", "t/way/more")
        .directory("t/a/");
    let archives = [Archive::new().directory("t/").symlink("t/way", "../t/a"), through];
    let write = |(name, archive): (&str, Archive)| {
        let path = directory.join(name);
        fs::write(&path, archive.finish()).unwrap();
        path
    };
    ["link.tar", "through.tar"].into_iter().zip(archives).map(write).collect()
}

fn set_xattrs(root: &Path) {
    let capability = b"\x01\0\0\x02\0\x04\x0a\0\x0a\0\0\0\0\0\0\0\0\0\0\0";
    let acl = b"\x02\0\0\0\x01\0\x07\0\xff\xff\xff\xff\x02\0\x05\0\x0a\0\0\0\x04\0\x05\0\xff\xff\xff\xff\
        \x10\0\x05\0\xff\xff\xff\xff\x20\0\x05\0\xff\xff\xff\xff";
    for (name, key, value) in [
        ("a/more", "user.text", &b"value\n\0=7 x\n"[..]),
        ("a/more", "user.long", &[b'v'; 2500]),
        ("a/block", "security.capability", capability),
        ("empty", "user.on-directory", b""),
        ("a/b", "system.posix_acl_access", acl),
    ] {
        xattr::set(root.join(name), key, value).unwrap();
    }
}
