//! What the guest sees of an image, file by file.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use bellows_block::oci::{OciLayout, Platform, SourceLayer};
use bellows_block::testing::{Archive, Compression, LayoutBuilder, Node, snapshot};
use bellows_block::{Image, ImportOptions, Store};
use bellows_vmm::{ImageConfig, LostLayer, Shape, Transport, VmEnd};
use flate2::read::GzDecoder;

use crate::fixture::{Guest, PATIENCE, Running, artefact, config_of, demo, demo_store};
use crate::images;

/// What each layer above the demo's three changes: made by a shell in an empty directory, packed by GNU tar.
const CHANGES: [&str; 9] = [
    // One of everything.
    r#"
    mkdir -p t/a/b/c t/many t/empty t/opaque/old t/gone; : > t/a/empty; head -c 4096 /dev/urandom > t/a/block
    head -c 4097 /dev/urandom > t/a/more; head -c 3000000 /dev/urandom > t/large; : > t/opaque/old/file; : > t/gone/file
    ln t/a/more t/a/b/hard; ln t/a/more t/hard; ln -s ../nowhere t/a/sym; ln -s "$(printf 'x%.0s' $(seq 4000))" t/long
    mknod t/a/char c 5 1; mknod t/a/disk b 259 70000; mkfifo t/a/fifo
    for i in $(seq 300); do echo $i > t/many/file-with-a-rather-long-name-$i; done
    mkdir "t/$(printf 'd%.0s' $(seq 255))"; : > "t/$(printf 'f%.0s' $(seq 255))"; : > "t/$(printf 'a\377\001b')"
    d=t/deep; for i in $(seq 20); do d=$d/0123456789012345678901234567890123456789; done; mkdir -p $d; echo deep > $d/file
    echo file > t/to-directory; mkdir t/to-file; echo below > t/to-file/below
    chown 1234:4294967293 t/a/more; chown 100000:100000 t/a/fifo
    chmod 4755 t/a/block; chmod 2775 t/a; chmod 1777 t/empty; chmod 0 t/a/empty
    touch -d '2001-02-03 04:05:06' t/a/more; touch -d '1901-01-01 00:00:00' t/empty
    "#,
    // Whiteouts of a file, of a directory, and of all that was in a directory that gets something new.
    "mkdir -p t/opaque t/many; : > t/many/.wh.file-with-a-rather-long-name-7; : > t/.wh.gone; : > t/opaque/.wh..wh..opq; echo new > t/opaque/new",
    // Files become directories and the reverse.
    "mkdir -p t/to-directory; echo below > t/to-directory/below; echo file > t/to-file",
    // What was removed comes back as something else; attributes change alone.
    "mkdir -p t/gone t/many; echo again > t/gone/other; ln -s target t/many/file-with-a-rather-long-name-7; mkdir -p t/a; chmod 711 t/a; chown 5:6 t/a",
    // The files that Debian brought.
    "mkdir -p usr/share etc; : > usr/share/.wh.doc; : > etc/.wh.issue; mkdir -p usr/share/common-licenses; : > usr/share/common-licenses/.wh..wh..opq",
    "mkdir -p t/layer-9; echo 9 > t/layer-9/file",
    "mkdir -p t/layer-10; echo 10 > t/layer-10/file; mkdir -p t/layer-9; : > t/layer-9/.wh.file",
    "mkdir -p t/layer-9; echo 11 > t/layer-9/file",
    "mkdir -p t; : > t/.wh.layer-10",
];

/// Prints a line for each file below `/`, in the form that [`line`] gives.
const WALK: &str = r#"
import hashlib, os, stat
root = os.lstat(b"/").st_dev
found = []
def walk(path):
    found.append(path)
    for name in sorted(os.listdir(path)):
        child = path.rstrip(b"/") + b"/" + name
        status = os.lstat(child)
        if not stat.S_ISDIR(status.st_mode):
            found.append(child)
        elif status.st_dev == root:
            walk(child)
walk(b"/")
names = {}
for path in sorted(path[1:] for path in found):
    full = b"/" + path
    status = os.lstat(full)
    same_as = names.setdefault((status.st_dev, status.st_ino), path)
    kind = stat.S_IFMT(status.st_mode)
    data = hashlib.sha256(open(full, "rb").read()).hexdigest() if kind == stat.S_IFREG else "-"
    target = os.readlink(full).hex() if kind == stat.S_IFLNK else "-"
    keys = sorted(key.encode() for key in os.listxattr(full, follow_symlinks=False))
    xattrs = [key.hex() + "=" + os.getxattr(full, key, follow_symlinks=False).hex() for key in keys]
    print(path.hex(), oct(status.st_mode), status.st_uid, status.st_gid, status.st_mtime_ns,
          0 if kind == stat.S_IFDIR else status.st_nlink, status.st_rdev,
          status.st_size if kind == stat.S_IFREG else 0, data, target, ",".join(xattrs) or "-", same_as.hex())
"#;

/// What [`WALK`] prints of a file.
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

/// Fourteen layers: every file is in the guest what it is where the same archives are unpacked, however they come.
#[test]
fn the_guest_sees_the_files_that_unpacking_gives() {
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

    let alpine_like = images::alpine_like(directory.path());
    for (transport, shape) in WAYS {
        let guest = Guest::ours().vcpus(2).image(imported.config().shape(shape).transport(transport)).boot();
        compare(&guest, &expected, &format!("{shape} over {transport}"));
        alpine_like.compare(&guest, transport, shape);
        guest.shutdown();
    }
    // What is to be flat comes as layers where the guest's kernel is too old, unless it was asked for.
    let guest = Guest::old().image(imported.config()).boot();
    assert!(guest.kernel.starts_with("6.1."), "{}", guest.kernel);
    let images = guest.vm.images();
    assert_eq!((images[0].shape, images[0].disks.len(), guest.vm.disks().len()), (Shape::Layers, 15, 15));
    compare(&guest, &expected, &format!("layers in Linux {}", guest.kernel));
    let asked_for = ImageConfig { id: "asked-for".parse().unwrap(), ..imported.config() }.shape(Shape::Flat);
    let error = guest.vm.attach_image(&asked_for, PATIENCE).unwrap_err().to_string();
    assert!(error.contains("image asked-for can't be flat") && error.contains(&guest.kernel), "{error}");
    assert_eq!(guest.vm.disks().len(), 15);
    guest.shutdown();
}

/// Every way for an image into the guest.
const WAYS: [(Transport, Shape); 4] = [
    (Transport::Blk, Shape::Layers),
    (Transport::Blk, Shape::Flat),
    (Transport::Pmem, Shape::Layers),
    (Transport::Pmem, Shape::Flat),
];

/// Compares what an instance sees with what is `expected`.
fn compare(guest: &Running, expected: &BTreeMap<Vec<u8>, String>, case: &str) {
    let seen = guest.shell("walk", &format!("exec python3 -c '{WALK}'"));
    let seen: BTreeMap<Vec<u8>, &str> =
        seen.lines().map(|line| (hex::decode(line.split(' ').next().unwrap()).unwrap(), line)).collect();
    let mut wrong = Vec::new();
    for name in expected.keys().chain(seen.keys().filter(|name| !expected.contains_key(*name))) {
        let (expected, seen) =
            (expected.get(name).map_or("nothing", String::as_str), seen.get(name).unwrap_or(&"nothing"));
        if expected != *seen && !is_the_containers(name) {
            wrong.push(format!("{}:\n  unpacked {expected}\n  guest    {seen}", name.escape_ascii()));
        }
    }
    let examples = wrong[..wrong.len().min(20)].join("\n");
    assert!(wrong.is_empty(), "{case}: {} differ, for example\n{examples}", wrong.len());
}

/// An image of more layers than overlayfs can name, each of which changes what the one below has, is one disk and one mount.
#[test]
fn an_image_of_120_layers_is_mounted_once() {
    let directory = scratch();
    let mut archives = small_archives(directory.path());
    archives.extend((archives.len()..120).map(|number| {
        let source = directory.path().join(format!("source-{number}"));
        fs::create_dir_all(source.join("many")).unwrap();
        fs::write(source.join("many/shared"), format!("{number}\n")).unwrap();
        fs::write(source.join(format!("many/own-{number}")), "").unwrap();
        fs::write(source.join(format!("many/.wh.own-{}", number - 1)), "").unwrap();
        let archive = directory.path().join(format!("{number}.tar"));
        tar(Command::new("tar").args(["-c", "-f"]).arg(&archive).arg("many"), &source);
        archive
    }));
    let imported = import(directory.path(), &archives);
    for transport in [Transport::Blk, Transport::Pmem] {
        let guest = Guest::ours().image(imported.config().transport(transport)).boot();
        let images = guest.vm.images();
        assert_eq!((images[0].shape, images[0].disks.len(), imported.image.layers.len()), (Shape::Flat, 1, 120));
        let seen = guest.shell("list", "cd /many && cat shared && ls");
        assert_eq!(seen.split_whitespace().collect::<Vec<_>>(), ["119", "own-119", "shared"], "{transport}");
        guest.shutdown();
    }
}

/// Debian's kernel has what it takes as modules.
#[test]
fn debians_kernel_uses_the_hosts_page_cache_in_place() {
    let guest = Guest::debian().image(demo().transport(Transport::Pmem)).boot();
    assert_eq!(guest.shell("run", "python3 -c 'print(6 * 7)'").trim(), "42");
    guest.shutdown();
}

/// What an instance reads is in the host's page cache; over virtio-blk it is in the guest's as well.
#[test]
fn a_guest_with_pmem_keeps_no_page_cache_of_its_own() {
    let directory = scratch();
    let large: Vec<u8> = (0..60_u32 << 20).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    fs::write(directory.path().join("large"), large).unwrap();
    let archives = above_small(directory.path(), "large");
    let imported = import(directory.path(), &archives);
    for (transport, shape) in WAYS {
        let guest = Guest::ours().image(imported.config().shape(shape).transport(transport)).boot();
        let cached = "grep ^Cached: /proc/meminfo";
        // The shell, grep and cat themselves are there before the first look.
        let line = format!("cat /dev/null; {cached}; {cached}; cat /large >/dev/null; {cached}");
        let seen = guest.shell("read", &line);
        let count = |line: &str| line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap();
        let kib: Vec<u64> = seen.lines().map(count).collect();
        let growth = kib[2] - kib[1];
        println!("{shape} over {transport}: the guest's page cache grew by {growth} KiB");
        match transport {
            Transport::Blk => {
                assert!(growth > 55 << 10, "{shape}: {seen}");
                let kept = count(&guest.shell("next", cached));
                assert!(kept + (2 << 10) > kib[2], "{shape}: the next instance finds {kept} KiB of {}", kib[2]);
            }
            Transport::Pmem => assert!(growth < 2 << 10, "{shape}: {seen}"),
        }
        guest.shutdown();
    }
}

/// Images come and go while the VM runs, and have their common layers' disks in common.
#[test]
fn images_come_and_go() {
    let directory = scratch();
    fs::write(directory.path().join("extra"), "extra\n").unwrap();
    let archives = above_small(directory.path(), "extra");
    let below = import(directory.path(), &archives[..archives.len() - 1]);
    let imported = import(directory.path(), &archives);
    let config = |id: &str, shape| ImageConfig { id: id.parse().unwrap(), ..imported.config() }.shape(shape);
    for transport in [Transport::Blk, Transport::Pmem] {
        let guest = Guest::ours().image(below.config().shape(Shape::Layers).transport(transport)).boot();
        let before = guest.vm.disks();
        for shape in [Shape::Layers, Shape::Flat] {
            let more = config("more", shape).transport(transport);
            let image = guest.vm.attach_image(&more, PATIENCE).unwrap();
            assert_eq!((image.shape, image.transport, guest.vm.disks().len()), (shape, transport, before.len() + 1));
            assert_eq!(guest.shell_in("extra", "more", "cat /extra"), "extra\n");
            let taken = guest.vm.attach_image(&more, PATIENCE).unwrap_err();
            assert!(taken.to_string().contains("`more` already"), "{taken}");
            guest.vm.detach_image(&more.id, PATIENCE).unwrap();
            assert_eq!(guest.vm.disks(), before);
        }
        let other = if transport == Transport::Blk { Transport::Pmem } else { Transport::Blk };
        both_ways(&guest, &config("other-way", Shape::Layers).transport(other));
        guest.shutdown();
    }
}

/// An image whose layers are there over another transport gets disks of its own, and leaves the others alone.
fn both_ways(guest: &Running, image: &ImageConfig) {
    let before = guest.vm.disks();
    let attached = guest.vm.attach_image(image, PATIENCE).unwrap();
    assert_eq!(attached.transport, image.transport);
    let disks = guest.vm.disks();
    let own = disks.iter().filter(|disk| attached.disks.contains(&disk.serial) && disk.transport == image.transport);
    assert_eq!((own.count(), disks.len()), (image.layers.len(), before.len() + image.layers.len()));
    assert_eq!(guest.shell_in("other-way", image.id.as_str(), "cat /extra"), "extra\n");
    assert_eq!(guest.shell("first-way", "cat /bin/busybox >/dev/null && echo there"), "there\n");
    guest.vm.detach_image(&image.id, PATIENCE).unwrap();
    assert_eq!(guest.vm.disks(), before);
}

/// Tries what code in a container could try to change a file of its image for others; prints the attempts that worked.
const ATTACK: &str = r#"
import ctypes, mmap, os, stat
path = os.__file__
libc = ctypes.CDLL(None, use_errno=True)
mapping = mmap.mmap(os.open(path, os.O_RDONLY), 4096, mmap.MAP_SHARED, mmap.PROT_READ)
address = None
for line in open("/proc/self/maps"):
    if line.rstrip().endswith(path) and " r--s " in line:
        address = int(line.split("-")[0], 16)
def memory():
    with open("/proc/self/mem", "r+b", buffering=0) as memory:
        memory.seek(address)
        memory.write(b"broken")
def writable_mapping():
    mmap.mmap(os.open(path, os.O_RDONLY), 4096, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
def protect():
    if libc.mprotect(ctypes.c_void_p(address), 4096, 3):
        raise OSError(ctypes.get_errno(), "mprotect")
def node(kind, major, minor):
    name = f"/tmp/{major}-{minor}"
    os.mknod(name, kind | 0o600, os.makedev(major, minor))
    os.open(name, os.O_RDWR)
def disk(name):
    major, minor = map(int, open(f"/sys/block/{name}/dev").read().split(":"))
    node(stat.S_IFBLK, major, minor)
def remount(flags):
    if libc.mount(b"none", b"/", None, flags, None):
        raise OSError(ctypes.get_errno(), "mount")
attempts = {
    "memory of the process": memory,
    "a writable mapping": writable_mapping,
    "mprotect": protect,
    "/dev/mem": lambda: os.open("/dev/mem", os.O_RDWR),
    "a node of /dev/mem": lambda: node(stat.S_IFCHR, 1, 1),
    "a node of pmem0": lambda: disk("pmem0"),
    "a node of some block device": lambda: node(stat.S_IFBLK, 259, 0),
    "a remount": lambda: remount(32),
    "sysfs": lambda: open("/sys/block/pmem0/ro", "w").write("0"),
}
for name, attempt in attempts.items():
    try:
        attempt()
        print("worked:", name)
    except OSError as error:
        print("refused:", name, error)
assert address
with open(path, "r+b") as file:
    file.write(b"broken")
print("own copy:", open(path, "rb").read(6))
"#;

/// Code in a container gets at no file of an image that the guest has as memory: what it writes is its own.
#[test]
fn a_container_can_not_change_an_image_in_memory() {
    let guest = Guest::ours().image(demo().transport(Transport::Pmem)).boot();
    let before = guest.shell("before", "md5sum /usr/lib/python3*/os.py");
    let seen = guest.shell("attack", &format!("exec python3 -c '{ATTACK}'"));
    assert!(!seen.contains("worked") && seen.matches("refused: ").count() == 9, "{seen}");
    assert!(seen.contains("own copy: b'broken'"), "{seen}");
    assert_eq!(guest.shell("after", "md5sum /usr/lib/python3*/os.py"), before);
    let exits = guest.vm.exits().into_iter().sum::<bellows_vmm::ExitCounts>();
    println!("{seen}{} writes of the guest led nowhere", exits.unclaimed_writes);
    guest.shutdown();
    for layer in demo().layers {
        demo_store().verify(&layer.digest).unwrap();
    }
}

/// A layer that is cut short under a running VM gives I/O errors, and the VM goes on.
#[test]
fn a_layer_that_is_cut_short_is_an_io_error_to_the_guest() {
    let directory = scratch();
    fs::write(directory.path().join("large"), vec![7; 8 << 20]).unwrap();
    let archives = above_small(directory.path(), "large");
    for shape in [Shape::Layers, Shape::Flat] {
        let store = tempfile::tempdir_in(directory.path()).unwrap();
        let imported = import(store.path(), &archives);
        let config = imported.config().shape(shape);
        let path = config.layers.last().unwrap().path.clone();
        let guest = Guest::ours().image(config).boot();
        fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(1 << 20).unwrap();
        let output = guest.shell("read", "cat /large >/dev/null; echo code $?");
        assert!(output.contains("error") && output.contains("code 1"), "{shape}: {output}");
        assert_eq!(guest.shell("after", "echo still here").trim(), "still here");
        guest.shutdown();
    }
}

/// A layer that is cut short under a guest that has it as memory ends that VM, by name, and no other.
#[test]
fn a_mapped_layer_that_is_cut_short_ends_its_vm() {
    let directory = scratch();
    fs::write(directory.path().join("large"), vec![7; 8 << 20]).unwrap();
    let archives = above_small(directory.path(), "large");
    let bystander = Guest::ours().image(demo().transport(Transport::Pmem)).boot();
    for shape in [Shape::Layers, Shape::Flat] {
        let store = tempfile::tempdir_in(directory.path()).unwrap();
        let imported = import(store.path(), &archives);
        let config = imported.config().shape(shape).transport(Transport::Pmem);
        let layer = config.layers.last().unwrap().clone();
        let guest = Guest::ours().image(config).boot();
        fs::OpenOptions::new().write(true).open(&layer.path).unwrap().set_len(1 << 20).unwrap();
        let _job = guest.start("read", "cat /large >/dev/null", None);
        let end = guest.vm.wait_timeout(PATIENCE).expect("the VM ends");
        println!("{shape}: {end}");
        let VmEnd::Failed(error) = &end else { panic!("{shape}: {end}") };
        let lost = error.downcast_ref::<LostLayer>().unwrap_or_else(|| panic!("{shape}: {end}"));
        assert_eq!((&lost.path, lost.digest), (&layer.path, layer.digest), "{shape}");
    }
    assert_eq!(
        bystander.shell("after", "cat /usr/bin/python3* | wc -c; echo still here").lines().last(),
        Some("still here")
    );
    bystander.shutdown();
}

/// A directory on the disk that layers lie on.
pub fn scratch() -> tempfile::TempDir {
    tempfile::tempdir_in(artefact("BELLOWS_IMAGE").parent().unwrap()).unwrap()
}

/// The root itself, whose time no layer sets, where the guest mounts what every container has, and the files that it is given.
pub fn is_the_containers(name: &[u8]) -> bool {
    let is_below = |mount: &[u8]| name.strip_prefix(mount).is_some_and(|rest| rest.is_empty() || rest[0] == b'/');
    let given = [&b"etc"[..], b"etc/hosts", b"etc/hostname", b"etc/resolv.conf", b"etc/mtab"];
    name.is_empty() || [&b"dev"[..], b"proc", b"sys"].into_iter().any(is_below) || given.contains(&name)
}

/// The layers of the image of busybox as plain archives, lowest first: a shell, and little to import.
pub fn small_archives(directory: &Path) -> Vec<PathBuf> {
    layout_archives(&artefact("BELLOWS_ALPINE_LIKE_IMAGE"), directory)
}

/// They, and a layer with one file of `directory`.
fn above_small(directory: &Path, file: &str) -> Vec<PathBuf> {
    let archive = directory.join(file).with_extension("tar");
    tar(Command::new("tar").args(["-c", "-f"]).arg(&archive).arg(file), directory);
    let mut archives = small_archives(directory);
    archives.push(archive);
    archives
}

/// The layers of an image as plain archives in `directory`, lowest first.
pub fn layout_archives(layout: &Path, directory: &Path) -> Vec<PathBuf> {
    let layout = OciLayout::open(layout).unwrap();
    let image = layout.image(&Platform::host(), None).unwrap();
    let unpack = |(number, layer): (usize, &SourceLayer)| {
        let mut blob = Vec::new();
        layer.open().unwrap().1.read_to_end(&mut blob).unwrap();
        let mut reader: Box<dyn Read> = match blob[..2] {
            [0x1f, 0x8b] => Box::new(GzDecoder::new(&blob[..])),
            _ => Box::new(zstd::Decoder::new(&blob[..]).unwrap()),
        };
        let archive = directory.join(format!("layer-{number}.tar"));
        std::io::copy(&mut reader, &mut fs::File::create(&archive).unwrap()).unwrap();
        archive
    };
    image.layers.iter().enumerate().map(unpack).collect()
}

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

const XATTRS: [&str; 2] = ["--xattrs", "--xattrs-include=*"];

/// Runs GNU tar in a directory.
pub fn tar(command: &mut Command, directory: &Path) -> Vec<u8> {
    let output = command.current_dir(directory).output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

/// Unpacks a layer over those below it as the OCI image specification says, with GNU tar.
pub fn unpack(archive: &Path, root: &Path) {
    let listing = tar(Command::new("tar").args(["-t", "--quoting-style=literal", "--null", "-f"]).arg(archive), root);
    for name in listing.split(|byte| *byte == b'\n') {
        let path = Path::new(OsStr::from_bytes(name));
        let Some(file_name) = path.file_name().map(OsStrExt::as_bytes) else { continue };
        let target = root.join(path);
        match file_name.strip_prefix(b".wh.") {
            Some(b".wh..opq") => {
                for entry in fs::read_dir(target.parent().unwrap()).unwrap() {
                    remove(&entry.unwrap().path());
                }
            }
            Some(hidden) => remove(&target.with_file_name(OsStr::from_bytes(hidden))),
            // tar merges directories, and replaces what is none by what it has; but it keeps a directory that is in the way.
            None if !name.ends_with(b"/") && target.symlink_metadata().is_ok_and(|found| found.is_dir()) => {
                remove(&target)
            }
            None => {}
        }
    }
    tar(
        Command::new("tar")
            .args(["-x", "-p", "--same-owner", "--numeric-owner", "--exclude=.wh.*"])
            .args(XATTRS)
            .arg("-f")
            .arg(archive),
        root,
    );
}

fn remove(path: &Path) {
    match path.symlink_metadata() {
        Ok(found) if found.is_dir() => fs::remove_dir_all(path).unwrap(),
        Ok(_) => fs::remove_file(path).unwrap(),
        Err(_) => {}
    }
}

/// An image in a store of its own.
pub struct Imported {
    _layout: LayoutBuilder,
    pub store: Store,
    pub image: Image,
}

impl Imported {
    pub fn config(&self) -> ImageConfig {
        config_of(&self.store, &self.image)
    }
}

/// An image of the archives, imported to a store of its own.
pub fn import(directory: &Path, archives: &[PathBuf]) -> Imported {
    let mut layout = LayoutBuilder::new();
    for archive in archives {
        layout.layer(&fs::read(archive).unwrap(), Compression::None);
    }
    let layout = layout.finish();
    let store = Store::open(directory.join("store")).unwrap();
    let opened = OciLayout::open(layout.path()).unwrap();
    let oci = opened.image(&Platform::host(), None).unwrap();
    let image = store.import(&oci, None, &ImportOptions::default()).unwrap();
    drop(opened);
    Imported { _layout: layout, store, image }
}
