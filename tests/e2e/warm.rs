//! Warm starts: pages that a first run read are in the host's page cache before the next run needs them.

use std::fs;

use bellows_block::page_cache::evict;
use bellows_block::page_cache::resident;
use bellows_block::{ReadSet, StoredFile};
use bellows_vmm::{ImageConfig, Shape, Transport};

use crate::command::{bellows_run_in, image as demo_image};
use crate::fixture::{Guest, Running, artefact, demo, image_id};

const WORK: &str = "python3 -c 'import json; print(json.dumps(6 * 7))'";

/// The image's files, flat metadata included.
fn files(image: &ImageConfig) -> Vec<StoredFile> {
    let flat = image.flat.as_ref().unwrap();
    let metadata = StoredFile { digest: flat.digest, path: flat.path.clone(), bytes: flat.bytes };
    image.layers.iter().map(StoredFile::from).chain([metadata]).collect()
}

fn make_cold(image: &ImageConfig) {
    for file in files(image) {
        evict(&file.path).unwrap();
        assert!(resident(&file.path).unwrap().is_empty(), "{}", file.path.display());
    }
}

fn cached(image: &ImageConfig) -> ReadSet {
    let mut cached = ReadSet::default();
    files(image).iter().for_each(|file| cached.insert(file.digest, resident(&file.path).unwrap()));
    cached
}

/// Bytes that the guest waited for: disk reads of the threads that serve it or run it.
fn waited_for() -> u64 {
    let threads = fs::read_dir("/proc/self/task").unwrap().map(|entry| entry.unwrap().path());
    let serves = |name: &str| ["blk", "vcpu"].iter().any(|prefix| name.starts_with(prefix));
    let read = |thread: &std::path::Path| {
        let io = fs::read_to_string(thread.join("io")).unwrap();
        io.lines().find_map(|line| line.strip_prefix("read_bytes: ")).unwrap().parse::<u64>().unwrap()
    };
    threads.filter(|thread| serves(&fs::read_to_string(thread.join("comm")).unwrap())).map(|thread| read(&thread)).sum()
}

fn work(guest: &Running) -> u64 {
    assert_eq!(guest.shell("work", WORK).trim(), "42");
    waited_for()
}

#[test]
fn a_second_start_finds_what_the_first_one_read() {
    for (transport, shape) in [(Transport::Blk, Shape::Flat), (Transport::Pmem, Shape::Layers)] {
        let image = demo().shape(shape).transport(transport);
        make_cold(&image);
        let guest = Guest::ours().image(image.clone()).record_reads().boot();
        let cold = work(&guest);
        let profile = guest.vm.profile(&image_id()).unwrap();
        guest.shutdown();
        let (read, whole) = (profile.bytes(), image.layers.iter().map(|layer| layer.bytes).sum::<u64>());
        println!("{shape} over {transport}: {read} of {whole} bytes read, {cold} bytes from the disk for them");
        assert!(read > 4 << 20 && read < whole / 2 && cold > 4 << 20, "{read} of {whole} bytes, {cold}");

        make_cold(&image);
        let image = image.profile(profile.clone());
        let guest = Guest::ours().image(image.clone()).boot_unmounted();
        assert_eq!(guest.vm.images()[0].prefetched, read);
        // So far the kernel has only booted, and at most probed its disks.
        let arrived = cached(&image);
        guest.mount();
        let warm = work(&guest);
        guest.shutdown();
        println!("{shape} over {transport}: read ahead {}, then {warm} bytes from the disk", arrived.bytes());
        assert_eq!(arrived, profile, "{shape} over {transport}");
        assert!(warm < cold / 20, "{shape} over {transport}: {warm} bytes after {cold}");
    }
}

/// The first run saves a read set, and the second uses it.
#[test]
fn the_command_records_once_and_reads_ahead_then() {
    let directory = tempfile::tempdir_in(artefact("BELLOWS_IMAGE").parent().unwrap()).unwrap();
    let run = || {
        let mut command = bellows_run_in(&directory.path().join("store"));
        let output = command.args(["--json", "--memory=256M"]).arg(demo_image()).arg("/bin/true").output().unwrap();
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{errors}"));
        (report["prefetched_bytes"].as_u64().unwrap(), report["recorded_bytes"].as_u64())
    };
    let (prefetched, recorded) = run();
    assert!(prefetched == 0 && recorded.is_some_and(|bytes| bytes > 1 << 20), "{recorded:?}");
    assert_eq!(run(), (recorded.unwrap(), None));
}
