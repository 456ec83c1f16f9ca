use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use tar::EntryType;
use tempfile::TempDir;

use super::*;
use crate::archive::DirectoryArchive;
use crate::compression::Compression;
use crate::digest::Digest;
use crate::testing::{
    Archive, Entry, Mount, Node, check_with_fsck, compress, difference, read_independently, snapshot,
};

#[path = "damage_test.rs"]
mod damage;

fn digests(archive: &[u8], blob: &[u8]) -> Digests {
    Digests { blob: Some(Digest::of(blob)), diff_id: Some(Digest::of(archive)) }
}

struct Imported {
    directory: TempDir,
    layer: ImportedLayer,
}

impl Imported {
    fn path(&self) -> PathBuf {
        self.directory.path().join("layer.erofs")
    }

    fn bytes(&self) -> Vec<u8> {
        fs::read(self.path()).unwrap()
    }

    /// The files as the kernel sees them, where it can, and as another reader does: the same.
    fn snapshot(&self) -> BTreeMap<Vec<u8>, Node> {
        let read = read_independently(&self.path(), &[]);
        if let Some(mount) = Mount::new(&self.path()) {
            assert_eq!(difference(&snapshot(mount.path()), &read), None);
        }
        read
    }
}

fn import(archive: &[u8]) -> Result<Imported, LayerError> {
    import_blob(archive, digests(archive, archive))
}

fn import_blob(blob: &[u8], digests: Digests) -> Result<Imported, LayerError> {
    let directory = tempfile::tempdir().unwrap();
    let file = File::create(directory.path().join("layer.erofs")).unwrap();
    let layer = import_layer(blob, digests, Limits::default(), &file)?;
    let imported = Imported { directory, layer };
    assert_eq!(fs::metadata(imported.path()).unwrap().len(), layer.bytes);
    assert!(layer.bytes.is_multiple_of(4096));
    check_with_fsck(&imported.path());
    Ok(imported)
}

fn import_directory(root: &Path) -> Imported {
    let directory = tempfile::tempdir().unwrap();
    let file = File::create(directory.path().join("layer.erofs")).unwrap();
    let archive = DirectoryArchive::new(root.to_owned(), None);
    let layer = import_layer(archive, Digests::default(), Limits::default(), &file).unwrap();
    let imported = Imported { directory, layer };
    check_with_fsck(&imported.path());
    imported
}

fn refused(archive: &[u8]) -> String {
    let Err(error) = import(archive) else { panic!("the archive was imported") };
    chain(&error)
}

fn chain(error: &dyn std::error::Error) -> String {
    let sources = std::iter::successors(Some(error), |error| error.source());
    sources.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

fn files(snapshot: &BTreeMap<Vec<u8>, Node>) -> Vec<&str> {
    snapshot.keys().skip(1).map(|name| std::str::from_utf8(name).unwrap()).collect()
}

const WHITEOUT: (u32, u64) = (libc::S_IFCHR, 0);

fn is_whiteout(node: &Node) -> bool {
    (node.mode & libc::S_IFMT, node.device) == WHITEOUT
}

fn is_opaque(node: &Node) -> bool {
    node.xattrs.get(&b"trusted.overlay.opaque"[..]).is_some_and(|value| value == b"y")
}

/// A tree with one of everything, made by the kernel, packed by GNU tar, read back by the kernel.
#[test]
fn a_tree_comes_through_as_it_was() {
    let source = tempfile::tempdir().unwrap();
    let root = source.path();
    let script = r#"
        set -e
        mkdir -p a/b/c many empty; : > a/empty; head -c 4096 /dev/urandom > a/block; head -c 4097 /dev/urandom > a/more
        head -c 3000000 /dev/urandom > big; ln a/more a/b/hard; ln a/more hard2; ln -s ../nowhere a/sym; ln -s "$(printf 'x%.0s' $(seq 4000))" long
        mknod a/char c 5 1; mknod a/block.dev b 259 70000; mkfifo a/fifo; ln -P a/sym a/sym2
        for i in $(seq 600); do echo $i > many/file-with-a-rather-long-name-$i; done
        mkdir "$(printf 'd%.0s' $(seq 255))"; : > "$(printf 'f%.0s' $(seq 255))"; : > "$(printf 'a\377\001b')"; : > '!first'; : > '..second'
        d=deep; for i in $(seq 30); do d=$d/0123456789012345678901234567890123456789; done; mkdir -p $d; echo deep > $d/file
        chmod 4755 a/block; chmod 2775 a; chmod 1777 empty; chmod 0 a/empty; chown 1234:4294967293 a/more; chown -h 7:8 a/sym; chown 100000:100000 a/fifo
        head -c 5000 /dev/urandom > holes; truncate -s 9000000 holes; head -c 5000 /dev/urandom | dd of=holes seek=6000 bs=1000 conv=notrunc status=none
        truncate -s 30000000 hole
        touch -h -d '1969-12-31T23:59:58.25Z' a/sym; touch -d '2038-01-20T00:00:00.123456789Z' a/more; touch -d '1901-01-01T00:00:00Z' empty
    "#;
    let made = Command::new("sh").args(["-c", script]).current_dir(root).status().unwrap();
    assert!(made.success());
    let capability = b"\x01\0\0\x02\0\x04\x0a\0\x0a\0\0\0\0\0\0\0\0\0\0\0";
    let acl = b"\x02\0\0\0\x01\0\x07\0\xff\xff\xff\xff\x02\0\x05\0\x0a\0\0\0\x04\0\x05\0\xff\xff\xff\xff\
        \x10\0\x05\0\xff\xff\xff\xff\x20\0\x05\0\xff\xff\xff\xff";
    for (name, key, value) in [
        ("a/more", "user.text", &b"value\n\0=7 x\n"[..]),
        ("a/more", "user.large", &[b'v'; 2500]),
        ("a", "trusted.thing", b"t"),
        ("a/block", "security.capability", capability),
        ("empty", "user.on-directory", b""),
        ("a/b", "system.posix_acl_access", acl),
    ] {
        xattr::set(root.join(name), key, value).unwrap();
    }
    let expected = snapshot(root);
    assert!(expected.len() > 640);
    let directory = import_directory(root);
    assert!(directory.bytes().len() < 7_000_000, "holes are not stored");
    assert_eq!(difference(&directory.snapshot(), &expected), None);
    for format in ["pax", "gnu"] {
        let mut tar = Command::new("tar");
        tar.args(["-cS", "--sort=none", "--numeric-owner", "--format", format]).current_dir(root);
        if format == "pax" {
            tar.args(["--xattrs", "--xattrs-include=*"]);
        }
        let output = tar.arg(".").output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let imported = import(&output.stdout).unwrap();
        let actual = imported.snapshot();
        assert_eq!(actual.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>());
        for (name, expected) in &expected {
            let mut expected = expected.clone();
            if format == "gnu" {
                // What that format has no place for.
                expected.xattrs.clear();
                expected.mtime.1 = 0;
            }
            assert_eq!(actual[name], expected, "{format}: {}", name.escape_ascii());
        }
    }
}

#[test]
fn the_same_input_gives_the_same_bytes() {
    let archive = Archive::new().directory("b/").file("b/x", [1; 5000]).file("a", "a").symlink("c", "b/x").finish();
    let first = import(&archive).unwrap().bytes();
    assert!(first == import(&archive).unwrap().bytes());
    for compression in [Compression::Gzip, Compression::Zstd] {
        let blob = compress(&archive, compression);
        let imported = import_blob(&blob, digests(&archive, &blob)).unwrap();
        assert!(first == imported.bytes(), "{compression:?}");
    }
}

#[test]
fn file_data_is_never_inline_and_always_aligned() {
    let archive = Archive::new().file("small", "find me in a block of my own").finish();
    let bytes = import(&archive).unwrap().bytes();
    let at = bytes.windows(28).position(|window| window == b"find me in a block of my own").unwrap();
    assert_eq!(at % 4096, 0);
    assert!(bytes[at + 28..at + 4096].iter().all(|byte| *byte == 0));
}

#[test]
fn whiteouts_become_what_overlayfs_reads() {
    let archive = Archive::new()
        .directory("d/")
        .file("d/.wh.gone", "")
        .file("d/.wh.replaced-file", "")
        .file("d/replaced-file", "new")
        .directory("d/replaced-directory/")
        .file("d/replaced-directory/kept", "")
        .file("d/.wh.replaced-directory", "")
        .directory("opaque/")
        .file("opaque/before", "")
        .file("opaque/.wh..wh..opq", "")
        // Attributes that come after it leave it opaque.
        .add(Entry::new("opaque/", EntryType::Directory).mode(0o700))
        .file("opaque/after", "")
        .file(".wh..wh.plnk/1.2", "")
        .file(".wh..wh.aufs", "")
        .file(".wh.at-root", "")
        .file("no/parents/.wh.x", "")
        .finish();
    let imported = import(&archive).unwrap();
    assert!(!imported.layer.opaque_root);
    let snapshot = imported.snapshot();
    let names = [
        "at-root",
        "d",
        "d/gone",
        "d/replaced-directory",
        "d/replaced-directory/kept",
        "d/replaced-file",
        "no",
        "no/parents",
        "no/parents/x",
        "opaque",
        "opaque/after",
        "opaque/before",
    ];
    assert_eq!(files(&snapshot), names);
    for name in names {
        let node = &snapshot[name.as_bytes()];
        assert_eq!(is_whiteout(node), ["at-root", "d/gone", "no/parents/x"].contains(&name), "{name}");
        assert_eq!(is_opaque(node), ["opaque", "d/replaced-directory"].contains(&name), "{name}");
    }
    assert_eq!(snapshot[&b"opaque"[..]].mode & 0o7777, 0o700);
}

#[test]
fn an_opaque_root_is_reported() {
    let archive = Archive::new().file(".wh..wh..opq", "").directory("./").finish();
    assert!(import(&archive).unwrap().layer.opaque_root);
}

#[test]
fn an_image_gives_overlayfs_no_instructions() {
    let entry = Entry::new("d/", EntryType::Directory)
        .pax("SCHILY.xattr.trusted.overlay.redirect", "/etc")
        .pax("SCHILY.xattr.trusted.overlay.opaque", "y")
        .pax("SCHILY.xattr.user.kept", "1");
    let imported = import(&Archive::new().add(entry).finish()).unwrap();
    let snapshot = imported.snapshot();
    let names: Vec<_> = snapshot[&b"d"[..]].xattrs.keys().cloned().collect();
    assert_eq!(names, [b"user.kept".to_vec()]);
}

#[test]
fn the_last_of_several_entries_wins() {
    let archive = Archive::new()
        .file("file", "old")
        .hard_link("other-name", "file")
        .file("file", "new!")
        .directory("to-file/")
        .file("to-file/below", "")
        .file("to-file", "file now")
        .file("to-directory", "")
        .directory("to-directory/")
        .file("to-directory/below", "")
        .directory("kept/")
        .file("kept/below", "")
        .add(Entry::new("kept", EntryType::Directory).mode(0o500).owner(5, 6))
        .hard_link("other-name", "other-name")
        .finish();
    let imported = import(&archive).unwrap();
    let snapshot = imported.snapshot();
    let names = ["file", "kept", "kept/below", "other-name", "to-directory", "to-directory/below", "to-file"];
    assert_eq!(files(&snapshot), names);
    let node = |name: &str| &snapshot[name.as_bytes()];
    assert_eq!(node("file").data, Some(Digest::of(b"new!")));
    assert_eq!(node("other-name").data, Some(Digest::of(b"old")));
    assert_eq!((node("file").links, node("other-name").links), (1, 1));
    assert_eq!(node("to-file").data, Some(Digest::of(b"file now")));
    assert_eq!((node("kept").mode & 0o7777, node("kept").uid, node("kept").gid), (0o500, 5, 6));
}

/// As tools write them that pack from the root, or from elsewhere.
#[test]
fn names_below_the_root_may_be_written_in_any_way() {
    let root = Entry { mode: 0o700, ..Entry::new("/", EntryType::Directory) };
    let archive = Archive::new()
        .add(root)
        .directory("/usr/")
        .file("/usr/bin/python3", "py")
        .symlink("/usr/bin/python", "python3")
        .hard_link("usr/lib/../bin/py", "/usr/bin/./python3")
        .file("./usr/lib/x/../../share//doc", "doc")
        .file("/usr/.wh.gone", "")
        .file("/usr/share/../lib/.wh..wh..opq", "");
    let imported = import(&archive.finish()).unwrap();
    let snapshot = imported.snapshot();
    let names = [
        "usr",
        "usr/bin",
        "usr/bin/py",
        "usr/bin/python",
        "usr/bin/python3",
        "usr/gone",
        "usr/lib",
        "usr/share",
        "usr/share/doc",
    ];
    assert_eq!(files(&snapshot), names);
    assert_eq!(snapshot[&b""[..]].mode & 0o7777, 0o700);
    assert_eq!(snapshot[&b"usr/bin/python3"[..]].same_as, b"usr/bin/py");
    assert!(is_whiteout(&snapshot[&b"usr/gone"[..]]) && is_opaque(&snapshot[&b"usr/lib"[..]]));
}

#[test]
fn hostile_entries_are_refused_by_name() {
    let link = |name: &str, target: &str| Archive::new().file("here", "").hard_link(name, target).finish();
    for (archive, words) in [
        (Archive::new().file("../up", "").finish(), ["`../up`", "leaves the image"]),
        (Archive::new().file("a/../../up", "").finish(), ["`a/../../up`", "leaves the image"]),
        (Archive::new().file("/../up", "").finish(), ["`/../up`", "leaves the image"]),
        (link("l", "../../etc/shadow"), ["`l`", "`../../etc/shadow`"]),
        (link("l", "/../here"), ["`l`", "`/../here`"]),
        (Archive::new().file("./", "").symlink("./", "x").finish(), ["`./`", "root directory"]),
        (Archive::new().file("d/.wh..", "").finish(), ["`d/.wh..`", "whiteout"]),
        (Archive::new().file([b'n'; 256], "").finish(), ["nnnnnn", "no file can have"]),
        (Archive::new().file(b"ab/".repeat(340_000), "").finish(), ["ab/ab/ab/", "no file can have"]),
        (Archive::new().file(b"ab/".repeat(400_000), "").finish(), ["1200001 bytes", "1048576"]),
        (Archive::new().device("d", EntryType::Char, 5000, 0).finish(), ["`d`", "invalid device number"]),
        (Archive::new().symlink("s", "").finish(), ["`s`", "invalid link target"]),
        (Archive::new().add(Entry::new("v", EntryType::new(b'V'))).finish(), ["`v`", "unsupported type V"]),
        (
            Archive::new().add(Entry::new("u", EntryType::Regular).owner(1 << 32, 0)).finish(),
            ["`u`", "owner (uid) 4294967296"],
        ),
        (Archive::new().add(Entry::new("x", EntryType::Regular).pax("mtime", "soon")).finish(), ["`mtime`", "`soon`"]),
        (
            Archive::new().add(Entry::new("x", EntryType::Regular).pax("GNU.sparse.major", "1")).finish(),
            ["`x`", "invalid map of holes"],
        ),
        (
            Archive::new().add(Entry::new("x", EntryType::Regular).pax("SCHILY.acl.access", "user:joe:rwx")).finish(),
            ["`x`", "invalid access control list"],
        ),
    ] {
        let message = refused(&archive);
        assert!(words.iter().all(|word| message.contains(word)), "{message}");
        assert!(message.len() < 500, "{message}");
    }
}

#[test]
fn attributes_that_are_too_large_are_named_by_their_file() {
    let with = |name: &str, sizes: &[usize]| {
        let entry = Entry::new(name, EntryType::Regular);
        let attribute =
            |entry: Entry, (n, size): (usize, &usize)| entry.pax(&format!("SCHILY.xattr.user.{n}"), vec![b'v'; *size]);
        let entry = sizes.iter().enumerate().fold(entry, attribute);
        Archive::new().directory("d/").file("d/small", "").add(entry).hard_link("d/z", name).finish()
    };
    assert!(import(&with("d/most", &[65_535; 3])).is_ok());
    let message = refused(&with("d/big", &[10, 65_536]));
    assert!(message.contains("`d/big` has 65") && message.contains("at most 65535"), "{message}");
    let message = refused(&with("d/many", &[65_535; 5]));
    assert!(message.contains("`d/many` has 327") && message.contains("262148 fit together"), "{message}");
    let root = Entry::new("./", EntryType::Directory).pax("SCHILY.xattr.user.x", vec![b'v'; 65_536]);
    assert!(refused(&Archive::new().add(root).finish()).contains("`/` has 65"));
}

#[test]
fn pax_records_override_the_header() {
    let data = vec![7; 3000];
    let long = format!("dir/{}", "n".repeat(200));
    let entry = Entry { data: data.clone(), ..Entry::new("short", EntryType::Regular) }
        .pax("path", &long)
        .pax("uid", "3000000000")
        .pax("mtime", "-1.5")
        .pax("size", "3000");
    let imported = import(&Archive::new().add(entry).file("after", "x").finish()).unwrap();
    let snapshot = imported.snapshot();
    let node = &snapshot[long.as_bytes()];
    assert_eq!((node.uid, node.mtime, node.bytes), (3_000_000_000, (-2, 500_000_000), 3000));
    assert!(snapshot.contains_key(&b"after"[..]));
}

#[test]
fn an_empty_layer_is_an_empty_directory() {
    for archive in [Archive::new().finish(), Vec::new()] {
        let imported = import(&archive).unwrap();
        let snapshot = imported.snapshot();
        assert_eq!(snapshot.len(), 1);
        assert_eq!(snapshot[&b""[..]].mode, libc::S_IFDIR | 0o755);
    }
}

/// erofs-utils and the kernel agree on the data that was put in.
#[test]
fn extraction_by_erofs_utils_gives_the_same_files() {
    let archive = Archive::new()
        .directory("d/")
        .file("d/large", (0..200_000_u32).flat_map(u32::to_le_bytes).collect::<Vec<_>>())
        .symlink("d/link", "large")
        .file("d/empty", "")
        .finish();
    let imported = import(&archive).unwrap();
    let target = imported.directory.path().join("extracted");
    let status = Command::new("fsck.erofs")
        .arg(format!("--extract={}", target.display()))
        .arg(imported.path())
        .status()
        .unwrap();
    assert!(status.success());
    let data = fs::read(target.join("d/large")).unwrap();
    assert!(data.chunks(4).zip(0..).all(|(bytes, n)| bytes == u32::to_le_bytes(n)) && data.len() == 800_000);
    assert_eq!(fs::read_link(target.join("d/link")).unwrap(), Path::new("large"));
    assert_eq!(fs::read(target.join("d/empty")).unwrap(), b"");
}

/// All four ways in which GNU tar writes files with holes.
#[test]
fn holes_stay_holes() {
    let source = tempfile::tempdir().unwrap();
    let root = source.path();
    let script = r#"
        set -e
        truncate -s 20000000 all; truncate -s 1 one
        for i in $(seq 0 40); do echo $i | dd of=many seek=$((i * 300)) bs=4096 conv=notrunc status=none; done
        echo start > start; truncate -s 50000 start; truncate -s 50000 end; echo end >> end
    "#;
    assert!(Command::new("sh").args(["-ec", script]).current_dir(root).status().unwrap().success());
    let expected = snapshot(root);
    for arguments in
        ["--format=gnu", "--format=pax --sparse-version=0.0", "--format=pax --sparse-version=0.1", "--format=pax"]
    {
        let mut tar = Command::new("tar");
        let output = tar.arg("-cS").args(arguments.split(' ')).arg(".").current_dir(root).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let imported = import(&output.stdout).unwrap();
        assert!(imported.layer.bytes < 1 << 20, "{arguments}: {} bytes", imported.layer.bytes);
        let seen = imported.snapshot();
        for (name, node) in &expected {
            let actual = &seen[name];
            assert_eq!((actual.bytes, actual.data), (node.bytes, node.data), "{arguments}: {}", name.escape_ascii());
        }
    }
}

#[test]
fn sockets_come_from_directories() {
    let source = tempfile::tempdir().unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(source.path().join("socket")).unwrap();
    let expected = snapshot(source.path());
    assert_eq!(difference(&import_directory(source.path()).snapshot(), &expected), None);
}

#[test]
fn attributes_that_inodes_share_are_stored_once() {
    let archive = |count: usize| {
        (0..count).fold(Archive::new(), |archive, n| {
            let entry = Entry::new(format!("f{n}"), EntryType::Directory);
            archive.add(entry.pax("SCHILY.xattr.user.common", [b'v'; 3000]).pax("SCHILY.xattr.user.own", n.to_string()))
        })
    };
    let imported = import(&archive(100).finish()).unwrap();
    assert!(imported.layer.bytes < 40_000, "{}", imported.layer.bytes);
    let seen = imported.snapshot();
    assert_eq!(seen[&b"f7"[..]].xattrs[&b"user.own"[..]], b"7");
    assert_eq!(seen[&b"f99"[..]].xattrs[&b"user.common"[..]], [b'v'; 3000]);
}

#[test]
fn access_control_lists_in_text() {
    let text = "user::rwx,user:10:r-x,group::r-x,mask::r-x,other::r-x";
    let entry = Entry::new("d", EntryType::Directory).mode(0o755);
    let entry = entry.pax("SCHILY.acl.access", text).pax("SCHILY.acl.default", "default:user::rwx,mask::rwx");
    let plain = Entry::new("f", EntryType::Regular).pax("SCHILY.acl.access", "user::rw-,group::r--,other::r--");
    let seen = import(&Archive::new().add(entry).add(plain).finish()).unwrap().snapshot();
    assert_eq!(seen[&b"d"[..]].xattrs[&b"system.posix_acl_access"[..]].len(), 44);
    assert_eq!(seen[&b"d"[..]].xattrs[&b"system.posix_acl_default"[..]].len(), 20);
    assert!(seen[&b"f"[..]].xattrs.is_empty());
}
