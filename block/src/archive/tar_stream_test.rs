use tar::EntryType;

use super::*;
use crate::testing::{Archive, Entry};

fn entries(data: &[u8]) -> Result<Vec<TarEntry>, ArchiveError> {
    let mut archive = TarStream::new(data);
    let mut entries = Vec::new();
    while let Some(entry) = archive.next()? {
        entries.push(entry);
    }
    Ok(entries)
}

fn names(data: &[u8]) -> Vec<String> {
    entries(data).unwrap().into_iter().map(|entry| String::from_utf8(entry.name).unwrap()).collect()
}

fn refused(data: &[u8], words: &[&str]) {
    let message = entries(data).unwrap_err().to_string();
    assert!(words.iter().all(|word| message.contains(word)), "{words:?}: {message}");
}

/// Two files of a block each, without the blocks of zeros that end an archive.
fn two_files() -> Vec<u8> {
    let mut data = Archive::new().file("a", [1; 512]).file("b", [2; 512]).finish();
    data.truncate(4 * BLOCK);
    data
}

/// Changes the header in the first block, and its checksum.
fn edit(mut data: Vec<u8>, change: impl FnOnce(&mut [u8])) -> Vec<u8> {
    change(&mut data[..BLOCK]);
    data[148..156].fill(b' ');
    let sum: u32 = data[..BLOCK].iter().map(|byte| u32::from(*byte)).sum();
    data[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    data
}

#[test]
fn archives_end_with_zeros_or_without() {
    for zeros in [0, 1, 511, 512, 513, 1000, 1024, 1025, 10_240] {
        let data = [two_files(), vec![0; zeros]].concat();
        assert_eq!(names(&data), ["a", "b"], "{zeros} zeros");
    }
    for garbage in [&b"x"[..], &[b'x'; 512], &[7; 5000]] {
        let data = [&two_files()[..], &[0; 1024], garbage].concat();
        assert_eq!(names(&data), ["a", "b"]);
    }
    // Go's archives of the time before modules did not pad the last file.
    let data = Archive::new().file("a", [1; 512]).file("last", [2; 100]).finish();
    for length in [3 * BLOCK + 100, 3 * BLOCK + 101, 4 * BLOCK - 1] {
        assert_eq!(names(&data[..length]), ["a", "last"], "{length} bytes");
    }
}

#[test]
fn what_would_get_lost_is_refused() {
    let files = two_files();
    let (first, second) = files.split_at(2 * BLOCK);
    for (between, reason) in [(1, "single block"), (2, "another archive"), (20, "another archive")] {
        refused(&[first, &vec![0; between * BLOCK], second].concat(), &["behind entry `a`", reason]);
    }
    refused(&[first, &[0; BLOCK], b"x"].concat(), &["byte 1536", "single block of zeros"]);
    refused(&[first, b"x"].concat(), &["after 1025 bytes", "entry `a`"]);
    refused(&[first, &second[..BLOCK + 511]].concat(), &["entry `b`"]);
    refused(&[first, &[b'x'; BLOCK]].concat(), &["byte 1024", "behind entry `a`", "checksum"]);
}

#[test]
fn empty_number_fields_are_zero() {
    for blank in [b' ', 0] {
        let data = edit(Archive::new().file("a", "").finish(), |header| {
            for range in [100..148, 329..345] {
                header[range].fill(blank);
            }
        });
        let entry = entries(&data).unwrap().remove(0);
        assert_eq!((entry.permissions, entry.uid, entry.gid, entry.mtime.seconds), (0, 0, 0, 0));
        let device = edit(Archive::new().device("d", EntryType::Char, 5, 1).finish(), |header| {
            header[337..345].fill(blank);
        });
        assert_eq!(entries(&device).unwrap()[0].kind, TarKind::CharDevice(Device { major: 5, minor: 0 }));
    }
}

#[test]
fn owners_beyond_what_linux_has_are_refused() {
    let owner = |value: i64| {
        let binary = edit(Archive::new().file("a", "").finish(), |header| {
            header[108..116].copy_from_slice(&value.to_be_bytes());
            header[108] |= 0x80;
        });
        let pax = Archive::new().add(Entry::new("a", EntryType::Regular).pax("uid", value.to_string())).finish();
        [entries(&binary), entries(&pax)].map(|entries| entries.map(|mut entries| entries.remove(0).uid))
    };
    for (value, id) in [(0, 0), (3_000_000, 3_000_000), (4_294_967_294, 4_294_967_294), (-2, 4_294_967_294)] {
        for actual in owner(value) {
            assert_eq!(actual.unwrap(), id, "{value}");
        }
    }
    for value in [-1, u32::MAX.into(), 1 << 32, i64::from(i32::MIN) - 1] {
        for actual in owner(value) {
            let message = actual.unwrap_err().to_string();
            assert!(message.contains(&format!("entry `a` has the owner (uid) {value}")), "{message}");
        }
    }
}

#[test]
fn numbers_that_are_none_are_refused_by_name() {
    for (range, field) in [(100..108, "mode"), (108..116, "owner"), (116..124, "group"), (124..136, "size")] {
        let data = edit(Archive::new().file("a", "").finish(), |header| header[range].fill(b'9'));
        refused(&data, &["`a`", field]);
    }
    let negative = edit(Archive::new().file("a", "").finish(), |header| header[124..136].fill(0xff));
    refused(&negative, &["`a`", "size"]);
    let extended = Archive::new().add(Entry::new("a", EntryType::Regular).pax("uid", "1")).finish();
    refused(&edit(extended, |header| header[124..136].fill(0xff)), &["extended header", "invalid size"]);
}

#[test]
fn a_slash_at_the_end_makes_a_directory_of_what_has_no_data() {
    let data = Archive::new().file("d/", "").file("f/", "data").file("after", "").finish();
    let kinds: Vec<_> = entries(&data).unwrap().into_iter().map(|entry| entry.kind).collect();
    assert_eq!(kinds, [TarKind::Directory, TarKind::File(None), TarKind::File(None)]);
}

/// GNU's long name or link target for the entry behind it.
fn long(kind: u8, name: &str) -> Vec<u8> {
    let data = [name.as_bytes(), &[0]].concat();
    let mut data = Archive::new().add(Entry { data, ..Entry::new("././@LongLink", EntryType::new(kind)) }).finish();
    data.truncate(2 * BLOCK);
    data
}

#[test]
fn of_two_long_names_gnus_counts() {
    let entry = Entry::new("name", EntryType::Regular).pax("path", "pax").pax("linkpath", "pax");
    let mut link = Archive::new().add(entry).finish();
    let header = link.len() - 3 * BLOCK;
    link = [&link[..header], &edit(link[header..].to_vec(), |header| header[156] = b'2')].concat();
    let entry = |before: &[Vec<u8>]| entries(&[before.concat(), link.clone()].concat()).unwrap().remove(0);
    let found = entry(&[]);
    assert_eq!((found.name, found.kind), (b"pax".to_vec(), TarKind::Symlink(b"pax".to_vec())));
    let found = entry(&[long(b'L', "gnu"), long(b'K', "target")]);
    assert_eq!((found.name, found.kind), (b"gnu".to_vec(), TarKind::Symlink(b"target".to_vec())));
}

#[test]
fn empty_names_before_an_entry_do_not_count() {
    let link = Archive::new().symlink("name", "target").finish();
    let entry = entries(&[long(b'L', ""), long(b'K', ""), link].concat()).unwrap().remove(0);
    assert_eq!(entry.name, b"name");
    assert_eq!(entry.kind, TarKind::Symlink(b"target".to_vec()));
    refused(&Archive::new().symlink("name", [b'x'; 4096]).finish(), &["`name`", "link target"]);
    assert_eq!(entries(&Archive::new().symlink("name", [b'x'; 4095]).finish()).unwrap().len(), 1);
}
