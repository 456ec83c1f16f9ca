//! Layers and images as disks and as memory: shared, come and go, lost, attacked.

use std::fs;
use std::process::Command;

use bellows_vmm::{ImageConfig, LostLayer, Shape, Transport, VmEnd};

use crate::archives::{above_small, cut_short, import, scratch, small_archives, tar};
use crate::bad_disk::BadDisk;
use crate::files::WAYS;
use crate::fixture::{Guest, PATIENCE, Running, demo, demo_store};

/// An image of more layers than overlayfs can name, each of which changes a file of the one below, is one disk and one mount.
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

/// Debian's kernel has the drivers as modules.
#[test]
fn debians_kernel_uses_the_hosts_page_cache_in_place() {
    let guest = Guest::debian().image(demo().transport(Transport::Pmem)).boot();
    assert_eq!(guest.shell("run", "python3 -c 'print(6 * 7)'").trim(), "42");
    guest.shutdown();
}

/// Pages that an instance reads are in the host's page cache; over virtio-blk they are in the guest's as well.
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
        // The shell, grep and cat themselves are in memory before the first look.
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

/// Images come and go while the VM runs, and share the disks of their common layers.
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

/// An image whose layers are on the bus over another transport gets disks of its own, and leaves the others alone.
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

/// Code in a container cannot change a file of an image that the guest has as memory: it only writes its own copy.
#[test]
fn a_container_can_not_change_an_image_in_memory() {
    let guest = Guest::ours().image(demo().transport(Transport::Pmem)).boot();
    let before = guest.shell("before", "md5sum /usr/lib/python3*/os.py");
    let seen = guest.shell("attack", &format!("exec python3 -c '{}'", include_str!("change_an_image.py")));
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

/// A layer that is truncated under a running VM gives I/O errors, and the VM goes on.
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
        cut_short(&path, 1 << 20);
        let output = guest.shell("read", "cat /large >/dev/null; echo code $?");
        assert!(output.contains("error") && output.contains("code 1"), "{shape}: {output}");
        assert_eq!(guest.shell("after", "echo still here").trim(), "still here");
        guest.shutdown();
    }
}

/// A sector of the host's disk that cannot be read is an I/O error to each guest that reads it from a disk of its own, and ends that
/// guest that has it as memory, with an error that names the layer; others of the same process go on.
#[test]
fn a_bad_sector_is_the_trouble_of_those_who_read_it() {
    let directory = scratch();
    let disk = BadDisk::new(directory.path(), 64);
    let pages = (0_u32..2048).flat_map(|page| page.to_le_bytes().repeat(1024)).collect::<Vec<u8>>();
    fs::write(directory.path().join("large"), &pages).unwrap();
    let imported = import(disk.folder(), &above_small(directory.path(), "large"));
    let config = imported.config();
    drop(imported);
    disk.spoil(pages[1024 * 4096..].first_chunk().unwrap());

    let bystander = Guest::ours().image(demo()).boot();
    let readers = ["one", "two"].map(|name| (name, Guest::ours().image(config.clone()).boot()));
    for (name, guest) in &readers {
        let output = guest.shell("read", "cat /large >/dev/null; echo code $?");
        assert!(output.contains("error") && output.contains("code 1"), "{name}: {output}");
        assert_eq!(guest.shell("after", "echo still here").trim(), "still here", "{name}");
    }
    let mapped = Guest::ours().image(config.clone().transport(Transport::Pmem)).boot();
    let _job = mapped.start("read", "cat /large >/dev/null", None);
    let end = mapped.vm.wait_timeout(PATIENCE).expect("the VM ends");
    let VmEnd::Failed(error) = &end else { panic!("{end}") };
    let lost = error.downcast_ref::<LostLayer>().unwrap_or_else(|| panic!("{end}"));
    assert!(config.layers.iter().any(|layer| (&layer.path, layer.digest) == (&lost.path, lost.digest)), "{lost}");
    drop(mapped);
    for (_, guest) in readers {
        guest.shutdown();
    }
    assert_eq!(bystander.shell("after", "cat /usr/bin/python3* >/dev/null; echo still here").trim(), "still here");
    bystander.shutdown();
}

/// A layer that is truncated under a guest that has it as memory ends that VM only, with an error that names the layer.
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
        cut_short(&layer.path, 1 << 20);
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
